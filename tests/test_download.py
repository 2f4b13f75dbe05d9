"""download_model.py, run as a process of its own against a server that misbehaves.

The tests serve small models in the official files. Where their vocabulary is not GPT-2's, its
sha256 is patched into the process; `script` runs the file as it is.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time

import pytest

import model_server
from model_server import FILES, WEIGHTS, ModelServer, broken, page, small_model, status

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = small_model()

# What a test changes in the process: the vocabulary it must have, and no long waits.
PATCH = """
import sys
sys.path.insert(0, {root!r})
import download_model as d
d.SHA256 = {sha256!r}
d.FIRST_PAUSE, d.LONGEST_PAUSE, d.LOCK_EVERY, d.RETRIES = 0.005, 0.02, 0.02, 4
{patch}
sys.exit(d.main())
"""
NO_RETRY = 'd.RETRIES = 0'
SHORT_TIMEOUT = 'd.TIMEOUT = 0.5'


@pytest.fixture
def server():
    with ModelServer({'124M': dict(MODEL)}) as server:
        yield server


@pytest.fixture
def models(tmp_path):
    return tmp_path / 'models'


def start(*args, patch='', **options):
    """Starts download_model.main(args) as a process."""
    sha256 = {name: hashlib.sha256(MODEL[name]).hexdigest()
              for name in ('encoder.json', 'vocab.bpe')}
    code = PATCH.format(root=str(ROOT), sha256=sha256, patch=patch)
    return launch([sys.executable, '-c', code, *map(str, args)], **options)


def launch(command, **options):
    environment = {key: value for key, value in os.environ.items()
                   if 'proxy' not in key.lower() and key != 'GPT2_MODELS_URL'}
    environment.update(options.pop('env', {}))
    options = dict(dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE), **options)
    return subprocess.Popen(command, universal_newlines=True, env=environment, **options)


def finish(process):
    """Returns exit status, stdout and stderr of a process that is to end soon."""
    out, err = process.communicate(timeout=60)
    assert 'Traceback' not in err, err
    return process.returncode, out, err


def download(server, models, *sizes, **options):
    url = options.pop('url', None) or server.url
    return finish(start(*(sizes or ['124M']), '--url', url, '--models_dir', models, **options))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def last_line(err):
    return err.rstrip('\n').split('\n')[-1]


def assert_complete(models, size='124M', model=MODEL):
    assert contents(models / size) == model


def assert_incomplete(models, err, *words, model=MODEL):
    """Nothing looks complete that is not, no file and no directory, and a line says why."""
    directory = models / '124M'
    files = contents(directory) if directory.exists() else {}
    assert 'checkpoint' not in files
    for name in set(files) & set(FILES):
        assert files[name] == model[name]
    assert last_line(err).startswith('download_model.py: ')
    for word in words:
        assert word in last_line(err)


# The command

def test_fetches_the_seven_files_and_then_none_again(server, models):
    code, out, err = download(server, models)
    assert (code, out.count('\n')) == (0, 1)
    assert 'complete and checked' in out
    assert_complete(models)
    assert sorted(r.name for r in server.requests('GET')) == sorted(FILES)
    assert server.requests('GET')[-1].name == 'checkpoint'

    del server.log[:]
    code, out, err = download(server, models)
    assert (code, err) == (0, '')
    assert 'nothing had to be fetched' in out
    assert not server.requests('GET')
    assert_complete(models)


def test_old_names_are_stored_under_the_new_ones(server, models):
    server.models['355M'] = small_model(1)
    code, out, err = download(server, models, '117M', '345M', '124M')
    assert code == 0 and out.count('\n') == 2
    assert '117M is called 124M now' in err and '345M is called 355M now' in err
    assert sorted(path.name for path in models.iterdir()) == ['124M', '355M']
    assert_complete(models, '355M', small_model(1))


def test_runs_from_any_folder_by_its_environment_variable(server, tmp_path):
    process = start('124M', cwd=str(tmp_path), env={'GPT2_MODELS_URL': server.url + '/'})
    assert finish(process)[0] == 0
    assert_complete(tmp_path / 'models')


def test_needs_requests_and_tqdm_only(server, models):
    hide = 'for name in "tensorflow", "numpy", "fire", "regex": sys.modules[name] = None'
    assert download(server, models, patch=hide)[0] == 0


def script(*args, **options):
    return finish(launch([sys.executable, str(ROOT / 'download_model.py'), *args], **options))


def test_lists_the_sizes(tmp_path):
    code, out, err = script(cwd=str(tmp_path))
    assert (code, err) == (0, '')
    assert re.search(r'1558M +1,557,611,200 +6\.23GB', out)
    assert re.search(r'124M +117M +124,439,808 +498MB', out)
    code, out, err = script('--help', cwd=str(tmp_path))
    assert code == 0 and all(word in out for word in ('--models_dir', '--url', 'GPT2_MODELS_URL'))


@pytest.mark.parametrize('args, words', [
    (['345'], 'the sizes are 124M, 355M, 774M, 1558M; did you mean 345M?'),
    (['124M', '1.5B'], 'there is no size'),
    (['../124M'], 'there is no size'),
    (['124M/../..'], 'there is no size'),
    ([''], 'there is no size'),
    (['124M', '--model_dir', 'x'], 'did you mean --models_dir?'),
    (['124M', '--models_dir'], '--models_dir'),
    (['124M', '--models_dir', ''], 'is empty'),
    (['124M', '--url', 'models.example'], 'must begin with http'),
    (['124M', '--url', 'http:///x'], 'must begin with http'),
    (['124M', '--url', 'file:///etc'], 'must begin with http'),
])
def test_unusable_arguments_get_a_line(args, words, tmp_path):
    code, out, err = script(*args, cwd=str(tmp_path))
    assert (code, out, err.count('\n')) == (2, '', 1)
    assert words in err
    assert not list(tmp_path.iterdir())


def test_the_script_as_it_is_with_the_real_vocabulary(models):
    folder = os.environ.get('GPT2_TEST_DATA')
    if not folder:
        pytest.skip('GPT2_TEST_DATA, the folder with gpt2-vocab, is not set')
    vocabulary = [(pathlib.Path(folder) / 'gpt2-vocab' / name).read_bytes()
                  for name in ('encoder.json', 'vocab.bpe')]
    hparams = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 4, 'n_head': 2, 'n_layer': 1}
    model = small_model(0, hparams, vocabulary)
    with ModelServer({'1558M': model}) as server:
        code, out, err = script('1558M', '--url', server.url, '--models_dir', str(models))
        assert code == 0
        assert_complete(models, '1558M', model)
        server.models['1558M'] = dict(model, **{'vocab.bpe': model['vocab.bpe'][:-1] + b'\r'})
        (models / '1558M' / 'vocab.bpe').unlink()
        code, out, err = script('1558M', '--url', server.url, '--models_dir', str(models))
        assert code == 1 and 'sha256' in last_line(err)


# Going on

def partial(models, name=WEIGHTS):
    return models / '124M' / (name + '.partial')


def interrupt(server, models, after=589824):
    """Leaves a partial file of the weights, as a connection that broke."""
    server.inject(WEIGHTS, broken('close', after))
    code, out, err = download(server, models, patch=NO_RETRY)
    assert code == 1
    assert_incomplete(models, err, WEIGHTS, '{:,} bytes'.format(after), 'same command')
    assert partial(models).read_bytes() == MODEL[WEIGHTS][:after]
    del server.log[:]


def weights_requests(server):
    return [(r.range, r.status) for r in server.requests('GET', WEIGHTS)]


def test_goes_on_where_it_stopped(server, models):
    interrupt(server, models)
    assert download(server, models)[0] == 0
    request, = server.requests('GET', WEIGHTS)
    assert request.range == 'bytes=589824-' and request.status == 206
    assert request.if_range == '"%s"' % hashlib.sha1(MODEL[WEIGHTS]).hexdigest()
    assert len(server.requests('GET')) == 2  # and `checkpoint`
    assert_complete(models)


def test_a_partial_file_that_is_whole_needs_no_request(server, models):
    interrupt(server, models)
    with open(str(partial(models)), 'ab') as file:
        file.write(MODEL[WEIGHTS][589824:])
    assert download(server, models)[0] == 0
    assert not weights_requests(server)
    assert_complete(models)


CONTINUED, AGAIN = ('bytes=589824-', 206), ('bytes=589824-', 200)


@pytest.mark.parametrize('abilities, expected', [
    ({'ranges': False}, AGAIN),
    ({'etags': False}, CONTINUED),                     # The MD5 tells that it is the same file,
    ({'etags': False, 'md5s': False, 'dates': True}, CONTINUED),          # or its date does,
    ({'etags': False, 'md5s': False}, (None, 200)),                       # or nothing does.
    ({'md5s': False}, CONTINUED),
    ({'lengths': False}, CONTINUED),
    ({'heads': False}, CONTINUED),
    ({'heads': False, 'lengths': False, 'md5s': False, 'ranges': False}, AGAIN),
])
def test_servers_that_lack_something(server, models, abilities, expected):
    vars(server).update(abilities)
    interrupt(server, models)
    assert download(server, models)[0] == 0
    assert weights_requests(server) == [expected]
    assert_complete(models)


@pytest.mark.parametrize('moment', ['between runs', 'between HEAD and GET', 'If-Range is ignored'])
def test_a_file_that_changed_starts_over(server, models, moment):
    interrupt(server, models)
    changed = dict(MODEL, **{WEIGHTS: small_model(1)[WEIGHTS]})
    if moment == 'between runs':
        server.models['124M'] = changed
        expected = [(None, 200)]
    else:
        # The last HEAD asks for `checkpoint`; the weights were asked for before.
        server.inject('checkpoint', lambda answer: server.models.update({'124M': changed}),
                      method='HEAD')
        server.if_range = moment != 'If-Range is ignored'
        expected = [('bytes=589824-', 200)] if server.if_range else [
            ('bytes=589824-', 206), (None, 200)]
    assert download(server, models)[0] == 0
    assert weights_requests(server) == expected
    assert_complete(models, model=changed)


def test_a_spoilt_partial_file_starts_over(server, models):
    interrupt(server, models)
    partial(models).write_bytes(bytes(589824))
    code, out, err = download(server, models)
    assert code == 0 and 'once more' in err
    assert weights_requests(server) == [('bytes=589824-', 206), (None, 200)]
    assert_complete(models)


def test_a_torn_note_starts_over(server, models):
    interrupt(server, models)
    (models / '124M' / (WEIGHTS + '.partial.json')).write_text('{"size": 17')
    assert download(server, models)[0] == 0
    assert weights_requests(server) == [(None, 200)]
    assert_complete(models)


def test_killed_at_random_moments(server, models):
    rng = random.Random(0)
    server.piece_pause = 0.002
    resumed = 0
    for _ in range(20):
        there = {path.name[:-len('.partial')]: path.stat().st_size
                 for path in models.glob('124M/*.partial')}
        del server.log[:]
        goal = on_disk(models) + rng.randrange(250000)
        process = start('124M', '--url', server.url, '--models_dir', models)
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
            if first and there.get(name):
                assert first[0].range == 'bytes=%d-' % there[name] and first[0].status == 206
                resumed += 1
    server.piece_pause = 0
    assert download(server, models)[0] == 0
    assert_complete(models)
    assert resumed >= 5


def test_ctrl_c_keeps_what_has_come(server, models):
    server.inject(WEIGHTS, broken('stall'))
    # pytest may have been started with Ctrl-C ignored, as in the background of a script.
    patch = 'import signal; signal.signal(signal.SIGINT, signal.default_int_handler)'
    process = start('124M', '--url', server.url, '--models_dir', models, patch=patch)
    wait_for(lambda: on_disk(models) == 5000 + 400000 + 589824)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, '')
    assert 'same command' in last_line(err)
    assert download(server, models)[0] == 0
    assert weights_requests(server)[-1] == ('bytes=589824-', 206)
    assert_complete(models)


def on_disk(models):
    """Returns how many bytes of the model's files there are, partial ones included."""
    total = 0
    for path in models.glob('124M/model*'):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.suffix != '.json' else 0
    return total


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError('waited in vain')


# Faults

PASSING = {
    'reset': [broken('reset')],
    'closed early': [broken('close')],
    'stall': [broken('stall')],
    'three in a row, further each time': [broken('reset', 196608)] * 3,
    'a flipped bit': [model_server.flip],
    'too short, Content-Length too': [model_server.shorten],
    '500': [status(500)],
    '503, twice': [status(503), status(503)],
    '429 with Retry-After': [status(429, Retry_After='0')],
    '503 with a date': [status(503, Retry_After='Wed, 21 Oct 2015 07:28:00 GMT')],
    '503 with nonsense': [status(503, Retry_After='\xb2soon')],
    'a page that is not called one': [page('application/octet-stream')],
    '416 to a range': [broken('reset'), status(416)],
    'another range': [broken('reset'), model_server.wrong_range],
}


@pytest.mark.parametrize('case', PASSING)
def test_faults_that_pass(server, models, case):
    server.inject(WEIGHTS, *PASSING[case])
    code, out, err = download(server, models, patch=SHORT_TIMEOUT if case == 'stall' else '')
    assert code == 0
    assert 'trying again' in err or 'once more' in err
    assert_complete(models)


@pytest.mark.parametrize('fault', [status(500), status(429), broken('close', 0)])
def test_faults_of_head_that_pass(server, models, fault):
    server.inject('vocab.bpe', fault, method='HEAD')
    code, out, err = download(server, models)
    assert code == 0
    assert_complete(models)


LASTING = {
    # The fault, words of the last line, the requests for the weights, and the bytes kept of them.
    'reset': (broken('reset', 0), 'connection broke', 5, 196608),
    'stall': (broken('stall', 0), 'timed out', 5, 196608),
    'always half of it': (model_server.shorten, 'ended early', None, len(MODEL[WEIGHTS]) - 1),
    'too long': (model_server.lengthen, 'announced, at the second try as well', 2, None),
    'flipped bits': (model_server.flip, 'MD5 differs), at the second try as well', 2, None),
    '500': (status(500), '500', 5, 196608),
    '429': (status(429), '429', 5, 196608),
    '429 for an hour': (status(429, Retry_After='3600'), 'wait 3,600 s', 1, 196608),
    '404': (status(404), '404', 1, 196608),
    '403': (status(403), '403', 1, 196608),
    'page': (page(), 'web page', 1, 196608),
    'page in disguise': (page('text/plain'), 'the server sends 50 bytes', 5, 196608),
    'gzip': (model_server.compress, 'Content-Encoding gzip', 1, 196608),
    'redirect in a circle': (status(302, Location=WEIGHTS), '30 redirects', 31, 196608),
    'redirect to a file': (status(302, Location='file:///etc/passwd'), '--url', 1, 196608),
    'redirect to nonsense': (status(302, Location='http://[x'), '--url', 1, 196608),
}


@pytest.mark.parametrize('case', LASTING)
def test_faults_that_last(server, models, case):
    fault, words, count, kept = LASTING[case]
    interrupt(server, models, 196608)
    server.inject(WEIGHTS, fault, always=True)
    code, out, err = download(server, models, patch=SHORT_TIMEOUT if case == 'stall' else '')
    assert (code, out) == (1, '')
    assert_incomplete(models, err, words)
    assert count in (None, len(server.requests('GET', WEIGHTS)))
    assert (partial(models).stat().st_size if partial(models).exists() else None) == kept


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


def test_no_server_at_all(models):
    with ModelServer({}) as server:
        url = server.url
    code, out, err = download(None, models, url=url)
    assert code == 1
    assert_incomplete(models, err, 'Connection refused')
    assert 'trying again' in err
    assert not models.exists()


def test_redirects_are_followed(server, models):
    server.models['elsewhere'] = MODEL
    for name in FILES:
        for method in 'HEAD', 'GET':
            server.inject(name, status(307, Location='/elsewhere/' + name), method=method)
    assert download(server, models)[0] == 0
    assert_complete(models)


def test_a_file_of_unknown_length_is_refused(server, models):
    server.heads = server.md5s = False
    server.inject('model.ckpt.index', model_server.no_length)
    code, out, err = download(server, models)
    assert code == 1
    assert_incomplete(models, err, 'does not say how long')


@pytest.mark.parametrize('name, data, words', [
    ('hparams.json', b'{"n_vocab": 300, ', 'not JSON'),
    ('hparams.json', b'{"n_vocab": 300}', 'n_ctx'),
    ('hparams.json', json.dumps(dict(model_server.HPARAMS, n_embd='96')).encode(), 'integer'),
    ('hparams.json', b'[' * 100000, 'RecursionError'),
    ('hparams.json', json.dumps(dict(model_server.HPARAMS, n_embd=192)).encode(),
     'do not belong together'),
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
def test_parameters_of_the_released_sizes(download_model, tmp_path, hparams):
    embd, layer = hparams
    path = tmp_path / 'hparams.json'
    path.write_text(json.dumps(
        {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': embd, 'n_layer': layer, 'n_head': 1}))
    assert download_model.weights_size(str(path)) // 4 in download_model.PARAMETERS.values()


# In the same process, where that shows more.

@pytest.fixture
def download_model(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import download_model
    return download_model


def test_pauses_grow_and_end(download_model, monkeypatch):
    pauses = []
    monkeypatch.setattr(download_model.time, 'sleep', pauses.append)

    def fail():
        raise download_model.Trouble('no luck', wait=7 if len(pauses) == 3 else 0)

    with pytest.raises(download_model.Failure):
        download_model.persist(fail, 'name', download_model.RETRIES)
    assert len(pauses) == download_model.RETRIES
    assert pauses[3] == 7
    for i, pause in enumerate(pauses):
        longest = min(download_model.LONGEST_PAUSE, download_model.FIRST_PAUSE * 2 ** i)
        assert i == 3 or longest / 2 <= pause <= longest
    assert sum(pauses) < 150


def test_progress_starts_the_count_of_tries_again(download_model, monkeypatch):
    monkeypatch.setattr(download_model.time, 'sleep', lambda _: None)
    positions = [0]
    coming = iter([10, 5, 10, 11, 11, 11, 11])

    def action():
        positions.append(next(coming))
        raise download_model.Trouble('no luck')

    with pytest.raises(download_model.Failure):
        download_model.persist(action, 'name', 3, lambda: positions[-1])
    assert positions == [0, 10, 5, 10, 11, 11, 11, 11]  # Three more tries after the first 11.


# What is there already

def test_no_server_and_a_complete_model(server, models):
    assert download(server, models)[0] == 0
    with ModelServer({}) as gone:
        url = gone.url
    code, out, err = download(None, models, url=url)
    assert code == 0
    assert 'complete as far as can be told without the server' in out
    assert 'Connection refused' in err and 'trying again' not in err


def test_damaged_files_are_fetched_again(server, models):
    assert download(server, models)[0] == 0
    with open(str(models / '124M' / WEIGHTS), 'r+b') as file:
        file.truncate(1000)
    with open(str(models / '124M' / 'model.ckpt.index'), 'r+b') as file:
        file.write(b'\0')
    del server.log[:]
    server.inject(WEIGHTS, status(404))
    code, out, err = download(server, models)
    assert code == 1
    assert 'checkpoint' not in contents(models / '124M')  # It looked complete, and was not.
    assert download(server, models)[0] == 0
    assert {r.name for r in server.requests('GET')} == {'model.ckpt.index', WEIGHTS, 'checkpoint'}
    assert_complete(models)


def test_a_newer_model_replaces_the_older_file_by_file(server, models):
    assert download(server, models)[0] == 0
    newer = server.models['124M'] = small_model(1)
    server.inject('model.ckpt.index', status(404))
    assert download(server, models)[0] == 1
    assert_complete(models)  # It is the older one as long as no file is replaced.
    server.inject(WEIGHTS, status(404))
    assert download(server, models)[0] == 1
    assert 'checkpoint' not in contents(models / '124M')  # A mixture is no model.
    assert download(server, models)[0] == 0
    assert_complete(models, model=newer)


def test_a_hotel_page_costs_a_complete_model_nothing(server, models):
    assert download(server, models)[0] == 0
    for name in FILES:
        server.inject(name, page('text/plain'), method='HEAD', always=True)
        server.inject(name, page('text/plain'), always=True)
    code, out, err = download(server, models)
    assert code == 1
    assert_complete(models)


# Two at a time

def test_two_processes_share_the_work(server, models):
    server.inject('hparams.json', broken('stall', 10))
    first = start('124M', '--url', server.url, '--models_dir', models)
    wait_for(lambda: server.requests('GET'))
    second = start('124M', '--url', server.url, '--models_dir', models)
    waits = second.stderr.readline()
    assert 'waiting for another process' in waits
    server.closing.set()
    code, out, err = finish(first)
    assert code == 0 and 'fetched' in out
    code, out, err = finish(second)
    assert code == 0 and 'nothing had to be fetched' in out
    assert len(server.requests('GET')) == 8  # One of them was stopped.
    assert_complete(models)


def test_a_lock_left_by_a_killed_process_holds_nobody_up(server, models):
    server.inject('hparams.json', broken('stall', 10))
    process = start('124M', '--url', server.url, '--models_dir', models)
    wait_for(lambda: server.requests('GET'))
    process.kill()
    process.communicate()
    assert (models / '124M' / '.lock').exists()
    code, out, err = download(server, models)
    assert code == 0 and 'waiting' not in err
    assert_complete(models)


# The disk

def test_too_little_room_is_seen_before_the_download(server, models):
    patch = 'd.shutil.disk_usage = lambda path: type("Usage", (), {"free": 1000000})'
    code, out, err = download(server, models, patch=patch)
    assert code == 1
    assert_incomplete(models, err, '2.32MB are still to come, but only 1.00MB are free')
    assert not server.requests('GET')


def test_a_disk_that_fills_up_on_the_way(server, models):
    pytest.importorskip('resource')
    patch = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))'
    code, out, err = download(server, models, patch=patch)
    assert code == 1
    assert_incomplete(models, err, 'cannot write', 'File too large', '--models_dir')
    size = partial(models).stat().st_size
    assert 0 < size <= 1000000
    assert download(server, models)[0] == 0
    assert weights_requests(server)[-1] == ('bytes=%d-' % size, 206)
    assert_complete(models)


NOBODY = 'import os; os.getuid() or os.setuid(65534)'  # To root, every folder is open.


def test_a_folder_that_must_not_be_written(server):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        code, out, err = download(server, folder, patch=NOBODY)
        assert code == 1
        assert_incomplete(pathlib.Path(folder), err, 'cannot write', 'Permission denied')
        assert not server.requests('GET')


def test_a_complete_model_in_such_a_folder(server):
    with tempfile.TemporaryDirectory() as folder:
        assert download(server, folder)[0] == 0
        places = [pathlib.Path(folder) / '124M', pathlib.Path(folder)]
        for place in places:
            place.chmod(0o555)
        code, out, err = download(server, folder, patch=NOBODY)
        for place in places:
            place.chmod(0o755)
        assert code == 0 and 'nothing had to be fetched' in out


def test_a_file_in_the_way(server, models):
    models.write_text('not a folder')
    code, out, err = download(server, models)
    assert code == 1 and 'cannot write' in last_line(err)
    assert not server.requests('GET')


# Progress

def test_lines_where_stderr_is_no_terminal(server, models):
    code, out, err = download(server, models, patch='d.LINE_EVERY = 0')
    assert '\r' not in err
    lines = [line for line in err.split('\n') if line.startswith(WEIGHTS)]
    assert len(lines) > 3
    assert re.search(r': 1\.92MB of 1\.92MB, .*B/s, 00:00 left$', lines[-1])


def test_a_bar_on_a_terminal_goes_on_where_it_was(server, models):
    fcntl, pty, termios = map(pytest.importorskip, ('fcntl', 'pty', 'termios'))
    interrupt(server, models, 983040)
    server.piece_pause = 0.005
    control, terminal = pty.openpty()
    lines_and_columns = struct.pack('HHHH', 25, 100, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, lines_and_columns)
    process = start('124M', '--url', server.url, '--models_dir', models, stderr=terminal)
    os.close(terminal)
    shown = read_all(control)
    assert process.wait() == 0
    counts = [int(count) for count in re.findall(WEIGHTS + r': +(\d+)%\|', shown)]
    assert len(counts) > 3
    assert counts[0] == 100 * 983040 // len(MODEL[WEIGHTS]) and counts[-1] == 100
    assert re.search(r'\[\d\d:\d\d<\d\d:\d\d, +[\d.]+MB/s\]', shown)


def read_all(descriptor):
    """Returns what a pseudo-terminal shows until its last process has gone."""
    data = b''
    with contextlib.suppress(OSError), open(descriptor, 'rb', buffering=0) as file:
        for piece in iter(lambda: file.read(65536), b''):
            data += piece
    return data.decode()
