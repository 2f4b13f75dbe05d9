"""The sampling commands: their texts are the reference's, and they behave as processes should."""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import generate_unconditional_samples as unconditional
from gpt2 import runtime
from helpers import LONG, SRC, numbered, only_long

UNCONDITIONAL = 'generate_unconditional_samples.py'
CONDITIONAL = 'generate_conditional_samples.py'
INTERACTIVE = 'interactive_conditional_samples.py'
ALL = [UNCONDITIONAL, CONDITIONAL, INTERACTIVE, 'generate_output_dataset.py', 'train.py',
       'learn_vocabulary.py', 'evaluate.py', 'convert.py']


# ---- samples -----------------------------------------------------------------------------------


def test_a_process_makes_the_samples_of_the_reference_until_ctrl_c(command, tiny, tmp_path):
    """With flags in any form: = or a space, - or _, by position, twice; a name like a number."""
    (tmp_path / '007').symlink_to(tiny.path)
    script = command(UNCONDITIONAL, '007', f'--models-dir={tmp_path}', '--seed', 3,
                     '--max-new-tokens', 12, '--top_k=0', '--top-p', '1.0', '--seed=4',
                     '--batch_size', 2).start()
    read = b''
    while b' SAMPLE 9 ' not in read:
        read += os.read(script.stdout.fileno(), 4096)
    for _ in range(4):  # Python loses one that comes in a destructor
        script.send_signal(signal.SIGINT)
        try:
            rest, stderr = script.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert script.returncode == 130
    assert stderr == b'' or b'Exception ignored' in stderr
    expected = numbered(tiny.samples(range(9), seed=4, length=12)).encode('utf-8')
    assert (read + rest).startswith(expected)


@pytest.mark.parametrize('batch_size', [1, 2, 7, 8, 2**31 - 1])
def test_the_batch_size_changes_nothing(sample, tiny, batch_size):
    assert sample(unconditional.sample_model, '--nsamples', 7, '--batch_size', batch_size) == (
        numbered(tiny.samples(range(7), seed=4, length=12)), '')


@pytest.mark.parametrize('options', [
    {'temperature': 0}, {'temperature': 0.7}, {'temperature': 3.5}, {'top_k': 1}, {'top_k': 257},
    {'top_p': 1e-9}, {'top_p': 0.6}, {'temperature': 2, 'top_k': 20, 'top_p': 0.9}], ids=str)
def test_options_reach_the_decoder(sample, tiny, options):
    flags = [f'--{name}={value}' for name, value in options.items()]
    stdout, _ = sample(unconditional.sample_model, '--nsamples', 2, '--seed', 2, *flags)
    assert stdout == numbered(tiny.samples(range(2), seed=2, length=12, **options))


@pytest.mark.parametrize('flag, options', [
    ('--top_p=0', {}), ('--temperature=1e-50', {'temperature': 0}), ('--top_p=1.0', {})])
def test_options_that_mean_others(sample, tiny, flag, options):
    """top_p 0 means off, and no float32 is as small as 1e-50."""
    stdout, _ = sample(unconditional.sample_model, '--nsamples', 2, '--seed', 2, flag)
    assert stdout == numbered(tiny.samples(range(2), seed=2, length=12, **options))


def test_the_default_length_is_the_window_and_a_new_seed_is_printed(
        call, graph_decoders, monkeypatch, tiny):
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)

    def sample(*argv):
        return call(unconditional.sample_model, unconditional.OPTIONS, *tiny.flags, '--engine',
                    'graph', *argv)

    assert sample('--seed', 2, '--nsamples', 1) == (
        0, numbered(tiny.samples([0], seed=2, length=32)), '')
    status, stdout, stderr = sample('--nsamples', 2)
    seed = int(re.match(r'seed (\d+)\n$', stderr).group(1))
    assert status == 0 and stdout.count(' SAMPLE ') == 2
    assert sample('--nsamples', 2, '--seed', seed) == (0, stdout, '')


def test_the_lite_engine_says_the_same_and_is_as_quiet(tf, command, tiny, tmp_path):
    for path in tiny.path.iterdir():
        (tmp_path / 'tiny').mkdir(exist_ok=True)
        (tmp_path / 'tiny' / path.name).write_bytes(path.read_bytes())
    status, stdout, stderr = command(
        UNCONDITIONAL, '--engine', 'lite', '--model_name', 'tiny', '--models_dir', tmp_path,
        '--seed', 4, '--nsamples', 3, '--length', 12, '--batch_size', 2).run()
    if tf.__version__.startswith('1.'):
        assert (status, stdout, stderr.count('\n')) == (1, '', 1)
        assert stderr.startswith(f'{UNCONDITIONAL}: ') and '--engine graph' in stderr
    else:
        assert (status, stderr) == (0, '')
        assert stdout == numbered(tiny.samples(range(3), seed=4, length=12))


def test_prompts_and_samples_are_utf_8_whatever_the_locale(command, tiny, tmp_path):
    """With a byte order mark and Windows' line ends."""
    source, path = tmp_path / 'prompts.txt', tmp_path / 'samples.jsonl'
    source.write_bytes(b'\xef\xbb\xbf' + 'é\r\n🙂'.encode())
    status, stdout, stderr = command(
        CONDITIONAL, *tiny.flags, '--seed', 4, '--length', 12, '--stop_at', '你好', '--engine',
        'graph', '--prompts', source, '--output', path,
        env={'LC_ALL': 'C', 'PYTHONUTF8': 0, 'PYTHONCOERCECLOCALE': 0}).run()
    assert (status, stdout, stderr) == (0, '', '')
    found = [json.loads(line) for line in path.read_bytes().decode('utf-8').splitlines()]
    assert len(found) == 2
    for index, (prompt, record) in enumerate(zip('é🙂', found)):
        assert record['prompt'] == prompt and record['settings']['stop_at'] == '你好'
        assert [record['text']] == tiny.samples([index], seed=4, length=12, prompt=prompt)


# ---- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize('script, arguments', [
    (UNCONDITIONAL, ['--nsamples', 3, '--length', 20]), (INTERACTIVE, ['--length', 20]),
    (CONDITIONAL, ['--prompts', '-', '--length', 20, '--engine', 'graph']),
    ('train.py', ['text.txt', '--output', 'new', '--steps', 3]),
    ('evaluate.py', ['score', 'text.txt']), ('convert.py', ['tiny', 'new', '--to', 'tensorflow'])],
    ids=lambda value: value if isinstance(value, str) else '')
def test_ctrl_c_at_any_moment_never_shows_a_traceback(command, tiny, tmp_path, script, arguments):
    """From the first line of the script, before which Python has no way to be silent."""
    (tmp_path / 'text.txt').write_text('One two three four. ' * 50)
    (tmp_path / 'tiny').symlink_to(tiny.path)
    flags = ['--models_dir', tmp_path] + (['--model_name', 'tiny'] if 'convert' not in script
                                          else [])
    moments = random.Random(script)
    for _ in range(6 if LONG else 1):
        for name in ('new', 'lite'):
            shutil.rmtree(str(tmp_path / name), ignore_errors=True)
        process = command(script, *arguments, *flags).start(cwd=str(tmp_path))
        process.stdin.write(b'One\nTwo\n')
        process.stdin.close()
        process.stdin = None
        wait_for_first_line(process)
        time.sleep(moments.random() * moments.choice([0.3, 2, 8]))
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        assert process.returncode in (0, 1, 130, -signal.SIGINT), stderr
        # Python 3.7 prints what it cannot raise, in a destructor say.
        assert b'Traceback' not in stderr or (
            sys.version_info < (3, 8) and b'Exception ignored' in stderr), stderr


def wait_for_first_line(process):
    """Wait until Python's own start has ended, whose handler of Ctrl-C gpt2.cli replaces at once.

    Where the system does not say so, and if it is missed, a moment must do.
    """
    started = False
    for _ in range(3000):
        try:
            with open(f'/proc/{process.pid}/status', encoding='ascii', errors='replace') as file:
                caught = int(re.search(r'^SigCgt:\s*(\w+)', file.read(), re.MULTILINE).group(1), 16)
        except (OSError, AttributeError):
            time.sleep(0.2)
            return
        is_caught = bool(caught >> (signal.SIGINT - 1) & 1)
        if started and not is_caught:
            return
        started = started or is_caught
        time.sleep(0.001)


# ---- pipes -------------------------------------------------------------------------------------


@only_long
def test_a_reader_may_leave_early(command, tiny):
    """As with `| head -n 3`, while samples are made until somebody stops them."""
    script = command(UNCONDITIONAL, *tiny.flags, '--seed', 4).start()
    head = subprocess.Popen(['head', '-n', '3'], stdin=script.stdout, stdout=subprocess.PIPE)
    script.stdout.close()
    first = head.communicate(timeout=120)[0]
    _, stderr = script.communicate(timeout=120)
    expected = numbered(tiny.samples(range(3), seed=4, length=32)).encode('utf-8')
    assert first == b''.join(expected.splitlines(True)[:3])
    assert (script.returncode, stderr) == (0, b'')


@pytest.mark.pure
def test_a_reader_may_leave_before_the_first_line(command):
    script = command(UNCONDITIONAL, '--help').start()
    script.stdout.close()
    assert script.stderr.read() == b'' and script.wait(timeout=120) == 0


# ---- before TensorFlow is imported -------------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize('script', ALL)
def test_a_process_refuses_an_unknown_flag_before_tensorflow_is_imported(refused, script):
    assert refused(script, '--qqq', 1) == (2, 'there is no flag --qqq; see --help')


@pytest.mark.pure
def test_a_process_prints_the_help(bare):
    status, stdout, stderr = bare(UNCONDITIONAL, '--seed', 1, '--help')
    assert (status, stderr) == (0, '')
    assert re.search(r'\n--model_name +a folder of MODELS_DIR \(default: 124M\)\n', stdout)


@pytest.mark.pure
@pytest.mark.parametrize('arguments, words', [
    (['--top_k', 258], '--top_k 257 258'), (['--stop_at', b'\xff'], '--stop_at UTF-8'),
    (['--ÿ'], '--ÿ'), (['--output', '/dev/full/a.txt'], '/dev/full'),
    (['--seed', '1' * 5000], '--seed')], ids=lambda value: str(value)[:30])
def test_a_process_refuses_what_the_model_or_the_system_cannot_do(refused, unloaded, arguments,
                                                                  words):
    """Arguments may be any bytes."""
    argv = [os.fsdecode(argument) if isinstance(argument, bytes) else argument
            for argument in arguments]
    status, message = refused(UNCONDITIONAL, *unloaded, *argv)
    assert status in (1, 2)
    for word in words.split():
        assert word in message


@pytest.mark.pure
def test_a_complete_file_needs_no_tensorflow(bare, unloaded, tmp_path):
    """That two samples are there is known from the file."""
    from gpt2 import model_dir
    digest = model_dir.weights_digest(os.path.join(unloaded[-1], 'tiny'))
    settings = {'weights': digest, 'dtype': 'float32', 'batch_size': 1, 'length': 32, 'keep': 16,
                'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'stop': True, 'stop_at': None,
                'logprobs': False, 'engine': 'graph', 'tensorflow': '2.21.0'}
    path = tmp_path / 'samples.jsonl'
    path.write_text(''.join(json.dumps({'index': index, 'model': 'tiny', 'seed': 4,
                                        'settings': settings}) + '\n' for index in range(2)))
    before = path.read_bytes()
    status, stdout, stderr = bare(UNCONDITIONAL, *unloaded, '--nsamples', 2, '--output', path)
    assert (status, stdout) == (0, '') and stderr.startswith(f'{path} has all these samples')
    assert path.read_bytes() == before


@pytest.mark.pure
def test_tensorflow_that_is_missing_is_reported(command, unloaded, tmp_path):
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("no such\\nthing")')
    status, stdout, stderr = command(UNCONDITIONAL, *unloaded, '--engine', 'graph',
                                     env={'PYTHONPATH': tmp_path}).run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert 'TensorFlow' in stderr and 'pip install -r requirements.txt' in stderr


# ---- too little memory -------------------------------------------------------------------------


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('megabytes', [600, 1500])
def test_too_little_address_space_is_one_line(tf, command, tiny, engine, megabytes):
    """TensorFlow would abort. The lite engine may have enough, if weights are converted."""
    resource = pytest.importorskip('resource')

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6,) * 2)

    status, stdout, stderr = command(UNCONDITIONAL, *tiny.flags, '--engine', engine, '--seed', 1,
                                     '--nsamples', 1, '--length', 2).run(preexec_fn=limit)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert 'address space' in stderr or 'TensorFlow 2' in stderr


@pytest.mark.parametrize('engine', ['graph', 'lite'])
def test_a_batch_that_memory_cannot_hold_is_one_line(tf, call, tiny, monkeypatch, tmp_path, engine):
    monkeypatch.setattr(runtime, 'available_memory', lambda: 10**7)
    monkeypatch.setattr(runtime, 'has_gpu', lambda: False)
    if tf.__version__.startswith('1.') and engine == 'lite':
        pytest.skip('the lite engine needs TensorFlow 2')
    status, stdout, stderr = call(
        unconditional.sample_model, unconditional.OPTIONS, *tiny.flags, '--engine', engine,
        '--seed', 1, '--nsamples', 1, '--batch_size', 5000, '--output', tmp_path / 'a.txt')
    assert (status, stdout) == (1, '')
    assert 'too little memory; try a smaller --batch_size' in stderr.split('\n')[-2]


# ---- unusual surroundings ----------------------------------------------------------------------


CLOSED = {'stdin': '<&-', 'stdout': '>&-', 'stderr': '2>&-'}


def without(stream, script):
    """Run a command with one of its streams closed: return (status, stdout, stderr)."""
    shell = ['sh', '-c', f'exec "$@" {CLOSED[stream]}', 'sh']
    done = subprocess.run(shell + script.arguments, env=script.env, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode('utf-8'), done.stderr.decode('utf-8')


@pytest.mark.pure
@pytest.mark.parametrize('stream', CLOSED)
def test_a_closed_stream_is_no_reason_to_crash(command, unloaded, stream):
    """As some service managers start a program."""
    status, stdout, stderr = without(stream, command(UNCONDITIONAL, *unloaded, '--seed', -1))
    assert (status, stdout) == (2, '')
    assert stderr.count('\n') == (stream != 'stderr')
    assert stream == 'stderr' or stderr.startswith(f'{UNCONDITIONAL}: --seed ')


@only_long
@pytest.mark.parametrize('stream', CLOSED)
def test_samples_without_a_stream(command, tiny, stream):
    status, stdout, stderr = without(
        stream, command(UNCONDITIONAL, *tiny.flags, '--seed', 4, '--nsamples', 1))
    samples = numbered(tiny.samples([0], seed=4, length=32))
    assert (status, stdout, stderr) == (0, '' if stream == 'stdout' else samples, '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
@pytest.mark.parametrize('arguments', [
    ['--help'], pytest.param(['--seed', 4], marks=only_long)], ids=str)
def test_a_full_disk_behind_stdout_is_reported_in_one_line(tiny, command, arguments):
    with open('/dev/full', 'w') as full:
        status, _, stderr = command(UNCONDITIONAL, *tiny.flags, *arguments).run(stdout=full)
    assert status == 1
    assert stderr.count('\n') == 1 and 'No space left on device' in stderr


# ---- the model in the box ----------------------------------------------------------------------

COMMON_WORDS = set("""
    a all and are as be but by do for from good have he her here him his i if in is it king know let
    lord man me my no not now o of on our shall she sir so that the thee their them then there they
    this thou thy to was we well what when which who will with would you your""".split())


@only_long
def test_the_model_in_the_box_writes_shakespeare(sample):
    stdout, _ = sample(unconditional.sample_model, '--model_name', '1M', '--models_dir',
                       SRC.parent / 'models', '--seed', 1, '--nsamples', 4, '--batch_size', 4,
                       '--length', 150)
    words = re.findall("[a-z']+", stdout.lower())
    assert len(words) > 200
    assert sum(word in COMMON_WORDS for word in words) > 0.4 * len(words)
    assert len(re.findall(r'^\n?[A-Z][A-Za-z ]+:\n', stdout, re.MULTILINE)) > 4  # who speaks
    assert '\ufffd' not in stdout
