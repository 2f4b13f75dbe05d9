"""download_model.py against a server that misbehaves.

The tests serve small models in the official files. Most call `main` in this process, with another
vocabulary and without long pauses; a few need real processes: to kill or interrupt them, to run
two at a time, or to take rights away from them.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import tempfile
import time
import types

import pytest

import model_server
from helpers import DATA, LONG, SRC, Command, contents, finish, needs_data
from model_server import (
    FILES,
    HPARAMS,
    WEIGHTS,
    ModelServer,
    broken,
    chunks,
    page,
    raw,
    small_model,
    status,
)

pytestmark = pytest.mark.pure

SCRIPT = SRC.parent / 'download_model.py'
MODEL = small_model()
SHA256 = {name: hashlib.sha256(MODEL[name]).hexdigest() for name in ('encoder.json', 'vocab.bpe')}
NO_PAUSES = {'FIRST_PAUSE': 0.001, 'LONGEST_PAUSE': 0.002, 'LOCK_EVERY': 0.02, 'RETRIES': 4}
NETWORK = dict.fromkeys(
    ['GPT2_MODELS_URL', *(name for name in os.environ if 'proxy' in name.lower())])

NOBODY = 'import os; os.getuid() or os.setuid(65534)'  # root may write everywhere


def import_script():
    spec = importlib.util.spec_from_file_location('download_model', str(SCRIPT))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


download_model = import_script()


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """Change the vocabulary and the pauses; return a function that changes other constants."""
    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(download_model, name, value, raising=False)

    change(SHA256=SHA256, **NO_PAUSES)
    for name in NETWORK:
        monkeypatch.delenv(name, raising=False)
    return change


@pytest.fixture
def server():
    with ModelServer({'124M': dict(MODEL)}) as server:
        yield server


@pytest.fixture
def models(tmp_path):
    return tmp_path / 'models'


def call(*args):
    """Run the command in this process; return (status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = download_model.main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def download(server, models, *sizes):
    return call(*(sizes or ['124M']), '--url', server.url, '--models_dir', models)


def script(*args, **env):
    """Return the unchanged script as a Command."""
    return Command(SCRIPT, *args, env=dict(NETWORK, **env))


def patched(server, models, patch=''):
    """Return a Command with the same changes as in this process, and others."""
    command = script('124M', '--url', server.url, '--models_dir', models)
    command.arguments[1:2] = ['-c', f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import download_model as d
vars(d).update(SHA256={SHA256!r}, **{NO_PAUSES!r})
{patch}
sys.exit(d.main())
"""]
    return command


def store(models):
    """Write a complete model, as a download does."""
    directory = models / '124M'
    directory.mkdir(parents=True)
    for name, data in MODEL.items():
        (directory / name).write_bytes(data)


def last_line(err):
    return err.rstrip('\n').split('\n')[-1]


def assert_complete(models, size='124M', model=MODEL):
    assert contents(models / size) == model


def assert_incomplete(models, err, *words, model=MODEL):
    """Check that no file or folder looks complete without being it, and that a line says why."""
    directory = models / '124M'
    assert not (directory / 'checkpoint').exists()
    for name in FILES:
        assert not (directory / name).exists() or (directory / name).read_bytes() == model[name]
    assert 'Traceback' not in err
    assert all(line.isprintable() and len(line) <= 1100 for line in err.split('\n'))
    assert last_line(err).startswith('download_model.py: ')
    for word in words:
        assert word in last_line(err)


# The command

def test_downloads_the_seven_files_and_later_nothing(server, models):
    code, out, err = download(server, models)
    assert (code, out.count('\n')) == (0, 1)
    assert 'complete and checked' in out
    assert_complete(models)
    assert sorted(r.name for r in server.requests('GET')) == sorted(FILES)
    assert server.requests('GET')[-1].name == 'checkpoint'

    del server.log[:]
    code, out, err = download(server, models)
    assert (code, err) == (0, '')
    assert 'nothing had to be downloaded' in out
    assert not server.requests('GET')
    assert_complete(models)


def test_former_names_are_stored_under_the_current_ones(server, models):
    server.models['355M'] = small_model(1)
    code, out, err = download(server, models, '117M', '345M', '124M')
    assert code == 0 and out.count('\n') == 2
    assert '117M is now called 124M' in err and '345M is now called 355M' in err
    assert sorted(path.name for path in models.iterdir()) == ['124M', '355M']
    assert_complete(models, '355M', small_model(1))


def test_the_url_may_come_from_the_environment_and_the_folder_is_the_current_one(
        server, tmp_path, monkeypatch):
    monkeypatch.setenv('GPT2_MODELS_URL', server.url + '/')
    monkeypatch.chdir(tmp_path)
    assert call('124M')[0] == 0
    assert_complete(tmp_path / 'models')


def test_needs_no_package_but_requests_and_tqdm(server, models):
    hide = """
others = ['tensorflow', 'numpy', 'fire', 'regex']
assert not sys.modules.keys() & others
sys.modules.update(dict.fromkeys(others))
"""
    assert patched(server, models, hide).run()[0] == 0
    assert_complete(models)


@pytest.mark.parametrize('package', ['requests', 'tqdm'])
def test_a_missing_package_gets_a_line(package, tmp_path):
    (tmp_path / f'{package}.py').write_text(f'raise ImportError(name={package!r})')
    code, out, err = script(PYTHONPATH=tmp_path).run()
    assert (code, out, err.count('\n')) == (1, '', 1)
    assert f'needs the package {package}: python3 -m pip install' in err


def test_lists_the_sizes(tmp_path):
    code, out, err = script().run(cwd=str(tmp_path))
    assert (code, err) == (0, '')
    assert re.search(r'1558M +1,557,611,200 +6\.23GB', out)
    assert re.search(r'124M +117M +124,439,808 +498MB', out)
    code, out, err = call('--help')
    assert code == 0 and all(word in out for word in ('--models_dir', '--url', 'GPT2_MODELS_URL'))


WRONG_ARGUMENTS = [
    (['345'], 'the sizes are 124M, 355M, 774M, 1558M; did you mean 345M?'),
    (['124M', '1.5B'], 'there is no size'),
    (['../124M'], 'there is no size'),
    (['124M/../..'], 'there is no size'),
    ([''], 'there is no size'),
    (['124M', '--model_dir', 'x'], 'did you mean --models_dir?'),
    (['124M', '--model\n\x1b[2Jdir'], 'there is no flag'),
    (['124M', '--models_dir'], '--models_dir'),
    (['124M', '--models_dir', ''], 'is empty'),
    (['124M', '--url', 'models.example'], 'must begin with http'),
    (['124M', '--url', 'http:///x'], 'must begin with http'),
    (['124M', '--url', 'file:///etc'], 'must begin with http'),
]


@pytest.mark.parametrize('args, words', WRONG_ARGUMENTS)
def test_wrong_arguments_get_a_line(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*args)
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert words in err and err[:-1].isprintable()
    assert not list(tmp_path.iterdir())


def test_a_process_ends_with_the_status_of_wrong_arguments():
    code, out, err = script('345').run()
    assert (code, out, err.count('\n')) == (2, '', 1)


@needs_data
def test_the_unchanged_script_with_the_released_vocabulary(models):
    vocabulary = [(pathlib.Path(DATA) / 'gpt2-vocab' / name).read_bytes()
                  for name in ('encoder.json', 'vocab.bpe')]
    hparams = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 4, 'n_head': 2, 'n_layer': 1}
    model = small_model(0, hparams, vocabulary)
    with ModelServer({'1558M': model}) as server:
        command = script('1558M', '--url', server.url, '--models_dir', models)
        assert command.run()[0] == 0
        assert_complete(models, '1558M', model)
        server.models['1558M'] = dict(model, **{'vocab.bpe': model['vocab.bpe'][:-1] + b'\r'})
        (models / '1558M' / 'vocab.bpe').unlink()
        code, out, err = command.run()
        assert code == 1 and 'sha256' in last_line(err)


# Resuming

def partial_files(models):
    return [path for path in models.glob('124M/*.partial*') if path.name.startswith(FILES)]


def partial(models):
    """Return the path of the partial file of the weights, or None."""
    paths = [path for path in partial_files(models)
             if path.name.startswith(WEIGHTS) and path.suffix == '.partial']
    return paths[0] if paths else None


def interrupt(server, models, after=589824):
    """Leave a partial file of the weights, from a connection that broke."""
    # Without HEAD, two GETs that are not read come before: in the survey, and in the attempt.
    intact = [] if server.heads else [lambda answer: None] * 2
    server.inject(WEIGHTS, *intact, broken('close', after))
    retries, download_model.RETRIES = download_model.RETRIES, 0
    code, out, err = download(server, models)
    download_model.RETRIES = retries
    assert code == 1
    assert_incomplete(models, err, WEIGHTS, f'{after:,} bytes', 'same command')
    assert partial(models).read_bytes() == MODEL[WEIGHTS][:after]
    del server.log[:]


def weights_requests(server):
    return [(r.range, r.status) for r in server.requests('GET', WEIGHTS)]


def test_resumes_where_it_stopped(server, models):
    interrupt(server, models)
    assert download(server, models)[0] == 0
    request, = server.requests('GET', WEIGHTS)
    assert request.range == 'bytes=589824-' and request.status == 206
    assert request.if_range == f'"{hashlib.sha1(MODEL[WEIGHTS]).hexdigest()}"'
    assert len(server.requests('GET')) == 2  # and `checkpoint`
    assert_complete(models)


def test_a_partial_file_that_is_complete_needs_no_request(server, models):
    interrupt(server, models)
    with partial(models).open('ab') as file:
        file.write(MODEL[WEIGHTS][589824:])
    assert download(server, models)[0] == 0
    assert not weights_requests(server)
    assert_complete(models)


def test_a_partial_file_that_is_too_long_starts_over(server, models):
    interrupt(server, models)
    with partial(models).open('ab') as file:
        file.write(MODEL[WEIGHTS])
    assert download(server, models)[0] == 0
    assert weights_requests(server)[-1] == (None, 200)
    assert_complete(models)


RESUMED, REPEATED = ('bytes=589824-', 206), ('bytes=589824-', 200)
FIRST = (None, 200)


@pytest.mark.parametrize('abilities, expected', [
    ({'ranges': False}, [REPEATED]),
    # It is the same file by its MD5, by its date, or nothing shows that it is.
    ({'etags': False}, [RESUMED]),
    ({'etags': False, 'md5s': False, 'dates': True}, [RESUMED]),
    ({'etags': False, 'md5s': False}, [FIRST]),
    ({'md5s': False}, [RESUMED]),
    ({'lengths': False}, [RESUMED]),
    ({'heads': False}, [FIRST, FIRST, RESUMED]),
    ({'heads': False, 'lengths': False, 'md5s': False, 'ranges': False}, [FIRST, FIRST, REPEATED]),
])
def test_servers_that_lack_something(server, models, abilities, expected):
    vars(server).update(abilities)
    interrupt(server, models)
    assert download(server, models)[0] == 0
    assert weights_requests(server) == expected
    assert_complete(models)


@pytest.mark.parametrize('moment', ['between runs', 'between HEAD and GET', 'If-Range is ignored'])
def test_a_file_that_changed_starts_over(server, models, moment):
    interrupt(server, models)
    changed = dict(MODEL, **{WEIGHTS: small_model(1)[WEIGHTS]})
    if moment == 'between runs':
        server.models['124M'] = changed
        expected = [FIRST]
    else:
        # The last HEAD for the weights comes before GET; the first one is part of the survey.
        server.inject(WEIGHTS, lambda answer: None,
                      lambda answer: server.models.update({'124M': changed}), method='HEAD')
        server.if_range = moment != 'If-Range is ignored'
        expected = [REPEATED if server.if_range else RESUMED, FIRST]
    assert download(server, models)[0] == 0
    assert weights_requests(server) == expected
    assert_complete(models, model=changed)


def test_a_damaged_partial_file_starts_over(server, models):
    interrupt(server, models)
    partial(models).write_bytes(bytes(589824))
    code, out, err = download(server, models)
    assert code == 0 and 'downloading it again' in err
    assert weights_requests(server) == [RESUMED, FIRST]
    assert_complete(models)


def test_partial_files_of_earlier_versions_are_removed(server, models):
    (models / '124M').mkdir(parents=True)
    (models / '124M' / (WEIGHTS + '.partial')).write_bytes(b'x')
    for name in FILES:
        (models / '124M' / (name + '.partial.json')).write_text('[' * 100000)
    assert download(server, models)[0] == 0
    assert_complete(models)


def test_other_files_in_the_folder_are_left_alone(server, models):
    (models / '124M').mkdir(parents=True)
    mine = {'notes.partial': b'mine', 'checkpoint-1.partial': b'mine', 'model.ckpt': b'mine'}
    for name, data in mine.items():
        (models / '124M' / name).write_bytes(data)
    assert download(server, models)[0] == 0
    assert_complete(models, model=dict(MODEL, **mine))


@pytest.mark.parametrize('etag', ['"a\x1bb"', '"\xe9"', '"a\tb"', '"' + 'x' * 1000 + '"'])
def test_an_etag_that_cannot_be_sent_back_is_not_used(server, models, etag):
    server.etags = False

    def odd(answer):
        answer.headers['ETag'] = etag

    interrupt(server, models)
    for method in 'HEAD', 'GET':
        server.inject(WEIGHTS, odd, method=method, always=True)
    assert download(server, models)[0] == 0
    request, = server.requests('GET', WEIGHTS)
    assert (request.range, request.if_range) == ('bytes=589824-', None)  # by its MD5
    assert_complete(models)


def test_killed_at_random_moments(server, models):
    rng = random.Random(0)
    server.piece_pause = 0.002
    resumed = 0
    for _ in range(50 if LONG else 12):
        before = {path.name.rsplit('.', 2)[0]: path.stat().st_size
                  for path in partial_files(models)}
        del server.log[:]
        goal = on_disk(models) + rng.randrange(400000)
        process = patched(server, models).start()
        while on_disk(models) < goal and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() / 100)
        process.kill()
        process.communicate()
        if (models / '124M' / 'checkpoint').exists():
            assert_complete(models)
        for name in FILES:
            path = models / '124M' / name
            assert not path.exists() or path.read_bytes() == MODEL[name]
            first = server.requests('GET', name)[:1]
            if first and before.get(name):
                assert first[0].range == f'bytes={before[name]}-' and first[0].status == 206
                resumed += 1
    server.piece_pause = 0
    assert download(server, models)[0] == 0
    assert_complete(models)
    assert resumed >= 3


def on_disk(models):
    """Return how many bytes of the model's largest files exist, partial ones included."""
    total = 0
    for path in models.glob('124M/model*'):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError('waited in vain')


# Ctrl-C

def test_ctrl_c_keeps_what_has_arrived(server, models):
    # The unchanged script, which would not accept the small vocabulary: it stalls before it.
    hparams = MODEL['hparams.json'] + b' ' * 200000
    server.models['124M'] = model = dict(MODEL, **{'hparams.json': hparams})
    server.inject('hparams.json', broken('stall', 131072))
    process = script('124M', '--url', server.url, '--models_dir', models).start()
    wait_for(lambda: sum(path.stat().st_size for path in partial_files(models)) == 131072)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, '')
    assert 'same command' in last_line(err) and 'Traceback' not in err
    assert download(server, models)[0] == 0
    assert server.requests('GET', 'hparams.json')[-1].range == 'bytes=131072-'
    assert_complete(models, model=model)


def test_ctrl_c_during_the_imports_prints_no_traceback(tmp_path):
    (tmp_path / 'requests.py').write_text(
        'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(10)\n')
    code, out, err = script('124M', PYTHONPATH=tmp_path).run(cwd=str(tmp_path))
    assert (code, out) == (130, '')
    assert err.strip() == 'stopped; run the same command again to resume'


def test_an_imported_module_leaves_ctrl_c_alone():
    handler = signal.getsignal(signal.SIGINT)
    import_script()
    assert signal.getsignal(signal.SIGINT) is handler


# Faults

PASSING = {
    'reset': [broken('reset')],
    'closed early': [broken('close')],
    'stall': [broken('stall')],
    'three in a row, each further': [broken('reset', 196608)] * 3,
    'a flipped bit': [model_server.flip],
    'too short, Content-Length too': [model_server.shorten],
    '500': [status(500)],
    '503, twice': [status(503), status(503)],
    '429 with Retry-After': [status(429, Retry_After='0')],
    '503 with a date': [status(503, Retry_After='Wed, 21 Oct 2015 07:28:00 GMT')],
    '503 with nonsense': [status(503, Retry_After='\xb2soon')],
    '503 with an impossible date': [status(503, Retry_After='Wed, 21 Oct 99999 07:28:00 GMT')],
    'a page that is not called one': [page('application/octet-stream')],
    '416 to a range': [broken('reset'), status(416)],
    'another range': [broken('reset'), model_server.wrong_range],
    'no HTTP': [raw(b'SSH-2.0-OpenSSH\r\n')],
    'a negative chunk size': [chunks(b'-5\r\nhello\r\n0\r\n\r\n')],
    'a chunk size that is no number': [chunks(b'five\r\nhello\r\n0\r\n\r\n')],
}


@pytest.mark.parametrize('case', PASSING)
def test_faults_that_pass(server, models, case, settings):
    if case == 'stall':
        settings(TIMEOUT=0.5)
    server.inject(WEIGHTS, *PASSING[case])
    code, out, err = download(server, models)
    assert code == 0
    assert 'retrying in' in err or 'downloading it again' in err
    assert_complete(models)


@pytest.mark.parametrize('fault', [status(500), status(429), broken('close', 0)])
def test_faults_of_head_that_pass(server, models, fault):
    server.inject('vocab.bpe', fault, method='HEAD')
    assert download(server, models)[0] == 0
    assert_complete(models)


LASTING = {
    # The fault, words of the last line, the requests for the weights, and the bytes kept of them.
    'reset': (broken('reset', 0), 'connection broke', 5, 196608),
    'stall': (broken('stall', 0), 'timed out', 5, 196608),
    'always half of it': (model_server.shorten, 'ended early', None, len(MODEL[WEIGHTS]) - 1),
    'too long': (model_server.lengthen, 'announced, at the second attempt as well', 2, None),
    'flipped bits': (model_server.flip, 'MD5 differs), at the second attempt as well', 2, None),
    '500': (status(500), '500', 5, 196608),
    '429': (status(429), '429', 5, 196608),
    '429 for an hour': (status(429, Retry_After='3600'), 'wait 3,600 s', 1, 196608),
    '429 for ever': (status(429, Retry_After='9' * 400), '429', None, 196608),
    '404': (status(404), '404', 1, 196608),
    '403': (status(403), '403', 1, 196608),
    '204': (status(204), '204', 1, 196608),
    'page': (page(), 'web page', 1, 196608),
    'page in disguise': (page('text/plain'), 'it sends (50 bytes)', 5, 196608),
    'gzip': (model_server.compress, 'Content-Encoding gzip', 1, 196608),
    'redirect in a circle': (status(302, Location=WEIGHTS), '30 redirects', 31, 196608),
    'redirect to a file': (status(302, Location='file:///etc/passwd'), '--url', 1, 196608),
    'redirect to nonsense': (status(302, Location='http://[x'), '--url', 1, 196608),
    'no HTTP': (raw(b'SSH-2.0-OpenSSH\r\n'), 'does not answer', 5, 196608),
    'several lines for a status': (raw(b'a\rb\x0bc\x85d\x1b[2J\r\n'), 'does not answer', 5, 196608),
    'terminal escapes in a reason': (
        raw(b'HTTP/1.1 404 \x1b]0;title\x07\x9b31mred\r\nContent-Length: 0\r\n\r\n'), '404', 1,
        196608),
    'terminal escapes in a header': (
        raw(b'HTTP/1.1 200 OK\r\nContent-Encoding: \x1b[31mx\r\n\r\n'), 'Content-Encoding', 1,
        196608),
    'a very long reason': (
        raw(b'HTTP/1.1 404 ' + b'x' * 60000 + b'\r\nContent-Length: 0\r\n\r\n'), 'check --url', 1,
        196608),
    'a negative chunk size': (chunks(b'-5\r\nhello\r\n0\r\n\r\n'), 'connection broke', 5, 0),
    'a chunk size of many digits': (chunks(b'f' * 5000 + b'\r\nhello'), 'connection broke', 5, 0),
}


@pytest.mark.parametrize('case', LASTING)
def test_faults_that_last(server, models, case, settings):
    fault, words, count, kept = LASTING[case]
    interrupt(server, models, 196608)
    if case == 'stall':
        settings(TIMEOUT=0.5)
    server.inject(WEIGHTS, fault, always=True)
    code, out, err = download(server, models)
    assert (code, out) == (1, '')
    assert_incomplete(models, err, words)
    assert count in (None, len(server.requests('GET', WEIGHTS)))
    assert (partial(models).stat().st_size if partial(models) else None) == kept


def test_headers_that_arrive_too_slowly_are_an_error(server, models, settings):
    settings(ANSWER_TIMEOUT=0.2, RETRIES=1)
    server.inject('hparams.json', model_server.slow_header, method='HEAD', always=True)
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, 'does not answer')
    assert not models.exists()


@pytest.mark.parametrize('name, fault, words', [
    ('hparams.json', status(404), '404'),
    ('model.ckpt.meta', page(), 'web page'),
    ('checkpoint', status(503), '503'),
])
def test_nothing_is_written_before_the_server_has_answered(server, models, name, fault, words):
    server.inject(name, fault, method='HEAD', always=True)
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, words)
    assert not models.exists()


@pytest.fixture
def gone():
    """A server that is not there."""
    with ModelServer({}) as server:
        pass
    return server


def test_no_server_at_all(gone, models):
    code, out, err = download(gone, models)
    assert code == 1
    assert_incomplete(models, err, 'Connection refused')
    assert 'retrying in' in err
    assert not models.exists()


def test_redirects_are_followed(server, models):
    server.models['elsewhere'] = MODEL
    for name in FILES:
        for method in 'HEAD', 'GET':
            server.inject(name, *[status(307, Location='/elsewhere/' + name)] * 2, method=method)
    assert download(server, models)[0] == 0
    assert_complete(models)


def test_a_file_of_unknown_length_is_refused(server, models):
    server.heads = server.md5s = False
    server.inject('model.ckpt.index', model_server.no_length, always=True)
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, 'does not say how long')


@pytest.mark.parametrize('announced', [False, True])
def test_small_files_that_are_too_large_are_refused(server, models, announced, settings):
    settings(SMALL_FILE=500000)
    server.lengths = announced
    server.models['124M']['hparams.json'] += b' ' * 1500000
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, 'hparams.json: it has more than 500kB')
    assert all(path.stat().st_size < 600000 for path in models.glob('124M/*'))


@pytest.mark.parametrize('name, data, words', [
    ('hparams.json', b'{"n_vocab": 300, ', 'not JSON'),
    ('hparams.json', b'{"n_vocab": 300}', 'n_ctx'),
    ('hparams.json', json.dumps(dict(HPARAMS, n_embd='96')).encode(), 'not JSON'),
    ('hparams.json', json.dumps(dict(HPARAMS, n_embd=True)).encode(), 'not JSON'),
    ('hparams.json', json.dumps(dict(HPARAMS, n_embd=0)).encode(), 'not JSON'),
    ('hparams.json', json.dumps(dict(HPARAMS, n_embd=10 ** 30)).encode(), 'not JSON'),
    ('hparams.json', json.dumps(HPARAMS).encode().replace(b'96', b'9' * 4000), 'not JSON'),
    ('hparams.json', b'[' * 100000, 'not JSON'),
    ('hparams.json', b'\xff', 'not JSON'),
    ('hparams.json', json.dumps(dict(HPARAMS, n_embd=192)).encode(), 'do not belong together'),
    ('encoder.json', b'{"a": 1, "b": 0}', 'sha256'),
    ('vocab.bpe', b'<html>Welcome</html>', 'web page'),
    ('checkpoint', b'model_checkpoint_path: "/etc/model.ckpt"', 'does not name model.ckpt'),
    ('model.ckpt.index', b'', 'empty'),
])
def test_files_that_are_wrong_on_the_server(server, models, name, data, words):
    server.models['124M'][name] = data
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, words, model=server.models['124M'])
    assert name == 'checkpoint' or not weights_requests(server)


@pytest.mark.parametrize('hparams', [(768, 12), (1024, 24), (1280, 36), (1600, 48)])
def test_parameters_of_the_released_sizes(tmp_path, hparams):
    embd, layer = hparams
    path = tmp_path / 'hparams.json'
    path.write_text(json.dumps(
        {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': embd, 'n_layer': layer, 'n_head': 1}))
    assert download_model.weights_size(str(path)) // 4 in download_model.PARAMETERS.values()


def test_pauses_grow_and_end(monkeypatch, settings):
    settings(FIRST_PAUSE=0.5, LONGEST_PAUSE=60, RETRIES=8)
    pauses = []
    clock = types.SimpleNamespace(sleep=pauses.append)  # threads of other tests may sleep, too
    monkeypatch.setattr(download_model, 'time', clock)

    def fail():
        raise download_model.RetryableError('no luck', wait=7 if len(pauses) == 3 else 0)

    with pytest.raises(download_model.DownloadError, match='^name: no luck'):
        download_model.retry(fail, 'name', 8)
    assert len(pauses) == 8
    assert pauses[3] == 7
    for i, pause in enumerate(pauses):
        longest = min(60, 0.5 * 2 ** i)
        assert i == 3 or longest / 2 <= pause <= longest
    assert sum(pauses) < 150


def test_the_real_pauses():
    fresh = import_script()
    assert (fresh.FIRST_PAUSE, fresh.LONGEST_PAUSE, fresh.RETRIES) == (0.5, 60, 8)
    assert fresh.SMALL_FILE <= 10 ** 8 and fresh.ANSWER_TIMEOUT <= 120


def test_progress_resets_the_count_of_retries():
    positions = []
    coming = iter([10, 5, 10, 11, 11, 11, 11])

    def action():
        positions.append(next(coming))
        raise download_model.RetryableError('no luck', position=positions[-1])

    with pytest.raises(download_model.DownloadError, match='after the 11 bytes'):
        download_model.retry(action, 'name', 3)
    assert positions == [10, 5, 10, 11, 11, 11, 11]  # three more retries after the first 11


# What exists already

def test_no_server_and_a_complete_model(gone, models):
    store(models)
    code, out, err = download(gone, models)
    assert code == 0
    assert 'complete as far as one can check without the server' in out
    assert 'Connection refused' in err and 'retrying' not in err


OTHER = b'model_checkpoint_path: "other"\n'
MARKERS = {
    'official': (MODEL['checkpoint'], True),
    'with carriage returns': (MODEL['checkpoint'].replace(b'\n', b'\r\n'), True),
    'with times': (MODEL['checkpoint'] + b'all_model_checkpoint_timestamps: 1.5\n', True),
    'one line': (MODEL['checkpoint'].replace(b'\n', b' '), True),
    'another': (OTHER, False),
    'another first': (OTHER + MODEL['checkpoint'], False),
    'another last': (MODEL['checkpoint'] + OTHER, False),
    'another, and the right one in a comment': (b'# ' + MODEL['checkpoint'] + OTHER, False),
    'another in single quotes': (MODEL['checkpoint'] + OTHER.replace(b'"', b"'"), False),
    'strings that are joined': (b'model_checkpoint_path: "model.ckpt"\n "/other"', False),
    'a longer name': (b'model_checkpoint_path: "model.ckpt\\"x"', False),
    'only all paths': (b'all_model_checkpoint_paths: "model.ckpt"', False),
}


@pytest.mark.parametrize('case', MARKERS)
def test_a_model_is_complete_only_if_checkpoint_names_its_weights_alone(
        gone, models, case):
    store(models)
    text, complete = MARKERS[case]
    (models / '124M' / 'checkpoint').write_bytes(text)
    code, out, err = download(gone, models)
    assert (code, 'complete' in out) == ((0, True) if complete else (1, False))


def test_damaged_files_are_downloaded_again(server, models):
    store(models)
    with (models / '124M' / WEIGHTS).open('r+b') as file:
        file.truncate(1000)
    with (models / '124M' / 'model.ckpt.index').open('r+b') as file:
        file.write(b'\0')
    server.inject(WEIGHTS, status(404))
    assert download(server, models)[0] == 1
    assert 'checkpoint' not in contents(models / '124M')  # it looked complete, and was not
    assert download(server, models)[0] == 0
    assert {r.name for r in server.requests('GET')} == {'model.ckpt.index', WEIGHTS, 'checkpoint'}
    assert_complete(models)


def test_a_newer_model_replaces_the_older_file_by_file(server, models):
    store(models)
    newer = server.models['124M'] = small_model(1)
    server.inject('model.ckpt.index', status(404))
    assert download(server, models)[0] == 1
    assert contents(models / '124M')['checkpoint']
    for path in partial_files(models):
        path.unlink()
    assert_complete(models)  # it is the older one until a file is replaced
    server.inject(WEIGHTS, status(404))
    assert download(server, models)[0] == 1
    assert 'checkpoint' not in contents(models / '124M')  # a mixture is no model
    assert download(server, models)[0] == 0
    assert_complete(models, model=newer)


def test_a_login_page_does_not_harm_a_complete_model(server, models):
    store(models)
    for name in FILES:
        server.inject(name, page('text/plain'), method='HEAD', always=True)
        server.inject(name, page('text/plain'), always=True)
    code, out, err = download(server, models)
    assert code == 1
    assert_complete(models)


# Two at a time

def test_two_processes_share_the_work(server, models):
    server.inject('hparams.json', broken('stall', 10))
    first = patched(server, models).start()
    wait_for(lambda: server.requests('GET'))
    second = patched(server, models).start()
    assert b'waiting for another process' in second.stderr.readline()
    server.closing.set()
    code, out, err = finish(first)
    assert code == 0 and 'downloaded' in out
    code, out, err = finish(second)
    assert code == 0 and 'nothing had to be downloaded' in out
    assert len(server.requests('GET')) == 8  # one of them was stopped
    assert_complete(models)


def test_the_lock_of_a_killed_process_stops_nobody(server, models):
    server.inject('hparams.json', broken('stall', 10))
    process = patched(server, models).start()
    wait_for(lambda: server.requests('GET'))
    process.kill()
    process.communicate()
    assert (models / '124M' / '.lock').exists()
    code, out, err = download(server, models)
    assert code == 0 and 'waiting' not in err
    assert_complete(models)


# Planted files

@pytest.mark.parametrize('kind', ['link', 'dangling link', 'hard link', 'fifo', 'folder'])
@pytest.mark.parametrize('place', ['partial', '.lock'])
def test_planted_files_are_neither_followed_nor_waited_for(server, models, tmp_path, kind, place):
    interrupt(server, models)
    victim = tmp_path / 'victim'
    if kind != 'dangling link':
        victim.write_bytes(b'precious')
    paths = [models / '124M' / '.lock'] if place == '.lock' else partial_files(models)
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        if kind == 'hard link':
            os.link(str(victim), str(path))
        elif kind == 'fifo':
            os.mkfifo(str(path))
        elif kind == 'folder':
            path.mkdir()
        else:
            path.symlink_to(victim)
    if kind == 'fifo':  # in a process, as it may block
        process = patched(server, models).start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        code, out, err = finish(process)
    else:
        code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, 'cannot write to ', paths[0].name)
    assert victim.exists() == (kind != 'dangling link')
    assert not victim.exists() or victim.read_bytes() == b'precious'
    assert not server.requests('GET', WEIGHTS)


def test_a_link_in_place_of_a_file_is_replaced_not_followed(server, models, tmp_path):
    (models / '124M').mkdir(parents=True)
    (tmp_path / 'victim').write_bytes(b'precious')
    (models / '124M' / 'vocab.bpe').symlink_to(tmp_path / 'victim')
    assert download(server, models)[0] == 0
    assert (tmp_path / 'victim').read_bytes() == b'precious'
    assert_complete(models)


# The disk

@pytest.mark.parametrize('lengths', [True, False])
def test_too_little_room_is_noticed_before_the_download(server, models, lengths, monkeypatch):
    server.lengths = lengths
    monkeypatch.setattr(download_model.shutil, 'disk_usage',
                        lambda path: type('Usage', (), {'free': 1000000}))
    code, out, err = download(server, models)
    assert code == 1
    still = '2.32MB' if lengths else '1.92MB'  # without lengths, hparams.json gives the weights'
    assert_incomplete(models, err, f'{still} are still to come, but only 1.00MB are free')
    assert not (server.requests('GET') if lengths else partial(models).stat().st_size)


def test_files_reach_the_disk_before_they_get_their_names(server, models, monkeypatch):
    events = []

    def record(name):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: events.append(name) or function(*args))

    record('fsync')
    record('replace')
    assert download(server, models)[0] == 0
    assert events == ['fsync', 'replace', 'fsync'] * len(FILES)  # a file, its name, the folder


def test_a_disk_that_fills_up_during_the_download(server, models):
    pytest.importorskip('resource')
    patch = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))'
    code, out, err = patched(server, models, patch).run()
    assert code == 1
    assert_incomplete(models, err, 'cannot write', 'File too large', '--models_dir')
    size = partial(models).stat().st_size
    assert 0 < size <= 1000000
    assert download(server, models)[0] == 0
    assert weights_requests(server)[-1] == (f'bytes={size}-', 206)
    assert_complete(models)


def test_a_folder_without_write_permission(server):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        code, out, err = patched(server, folder, NOBODY).run()
        assert code == 1
        assert_incomplete(pathlib.Path(folder), err, 'cannot write', 'Permission denied')
        assert not server.requests('GET')


def test_a_complete_model_in_such_a_folder(server):
    with tempfile.TemporaryDirectory() as folder:
        store(pathlib.Path(folder))
        paths = [pathlib.Path(folder) / '124M', pathlib.Path(folder)]
        for path in paths:
            path.chmod(0o555)
        code, out, err = patched(server, folder, NOBODY).run()
        for path in paths:
            path.chmod(0o755)
        assert code == 0 and 'nothing had to be downloaded' in out


def test_a_file_where_the_folder_should_be(server, models):
    models.write_text('not a folder')
    code, out, err = download(server, models)
    assert code == 1 and 'cannot write' in last_line(err)
    assert not server.requests('GET')


# Progress

def test_lines_if_stderr_is_not_a_terminal(server, models, settings):
    settings(LINE_EVERY=0)
    code, out, err = download(server, models)
    assert '\r' not in err and '\n\n' not in err
    lines = [line for line in err.split('\n') if line.startswith(WEIGHTS)]
    assert len(lines) > 3
    assert re.search(r': 1\.92MB of 1\.92MB, .*B/s, 00:00 left$', lines[-1])


def test_few_lines_by_default(server, models):
    err = download(server, models)[2]
    assert len(err.split('\n')) <= 2 * len(FILES) + 1


def test_a_bar_on_a_terminal_starts_where_it_stopped(server, models):
    fcntl, pty, termios = map(pytest.importorskip, ('fcntl', 'pty', 'termios'))
    interrupt(server, models, 983040)
    server.piece_pause = 0.005
    control, terminal = pty.openpty()
    lines_and_columns = struct.pack('HHHH', 25, 100, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, lines_and_columns)
    process = patched(server, models).start(stderr=terminal)
    os.close(terminal)
    shown = read_all(control)
    assert finish(process)[0] == 0
    counts = [int(count) for count in re.findall(WEIGHTS + r': +(\d+)%\|', shown)]
    assert len(counts) > 3
    assert counts[0] == 100 * 983040 // len(MODEL[WEIGHTS]) and counts[-1] == 100
    assert re.search(r'\[\d\d:\d\d<\d\d:\d\d, +[\d.]+MB/s\]', shown)


def read_all(descriptor):
    """Return what a pseudo-terminal shows until its last process has ended."""
    data = b''
    with contextlib.suppress(OSError), open(descriptor, 'rb', buffering=0) as file:
        for piece in iter(lambda: file.read(65536), b''):
            data += piece
    return data.decode()
