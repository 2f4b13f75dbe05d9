"""Samples in files: whole records whatever happens, continued to the byte; prompts from files."""
import contextlib
import functools
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tensorflow.compat.v1 as real_tf

import generate_conditional_samples as conditional
import generate_unconditional_samples as unconditional
import records
import reference
from test_scripts import CONDITIONAL, LONG, UNCONDITIONAL, called, numbered

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IS_TF1 = real_tf.__version__.startswith('1.')


class Writer:
    """Runs the scripts' functions on the tiny model in this process."""

    def __init__(self, tf, tiny, capsys):
        self.tf, self.capsys = tf, capsys
        self.flags = dict(model_name=tiny.name, models_dir=str(tiny.models_dir), seed=4, length=12,
                          batch_size=3, engine='graph')

    def __call__(self, function, output, **flags):
        output = None if output is None else str(output)
        return called(function, self.tf, self.capsys, **dict(self.flags, output=output, **flags))

    def error(self, *args, **flags):
        """Returns the message of the UserError that must come."""
        import cli
        with pytest.raises(cli.UserError) as error:
            self(*args, **flags)
        assert '\n' not in str(error.value)
        return str(error.value)


@pytest.fixture
def write(tf, tiny, capsys):
    return Writer(tf, tiny, capsys)


def parsed(path):
    with open(str(path), encoding='utf-8', newline='\n') as file:
        return [json.loads(line) for line in file]


# ---- what is in a file -------------------------------------------------------------------------


def test_a_txt_has_what_is_printed(write, tiny, tmp_path):
    path = tmp_path / 'samples.txt'
    assert write(unconditional.sample_model, path, nsamples=7) == ('', '')
    expected = numbered(tiny.samples(range(7), seed=4, length=12))
    assert path.read_bytes().decode('utf-8') == expected
    assert write(unconditional.sample_model, None, nsamples=7) == (expected, '')
    settings = json.loads((tmp_path / 'samples.txt.settings.json').read_text(encoding='utf-8'))
    assert settings['settings']['seed'] == 4 and settings['settings']['temperature'] == 1
    assert sorted(os.listdir(str(tmp_path))) == ['samples.txt', 'samples.txt.settings.json']


def test_a_jsonl_says_how_each_sample_was_made(write, tiny, tmp_path):
    path = tmp_path / 'samples.jsonl'
    write(unconditional.sample_model, path, nsamples=7, top_k=40, temperature=0.9)
    texts = tiny.samples(range(7), seed=4, length=12, top_k=40, temperature=0.9)
    assert os.listdir(str(tmp_path)) == ['samples.jsonl']
    for index, (record, text) in enumerate(zip(parsed(path), texts)):
        assert list(record) == ['index', 'model', 'seed', 'settings', 'text', 'tokens', 'ended',
                                'synthetic']
        assert (record['index'], record['model'], record['seed']) == (index, 'tiny', 4)
        assert (record['text'], record['ended'], record['synthetic']) == (text, False, True)
        assert tiny.decode(record['tokens']) == text and len(record['tokens']) == 12
        settings = record['settings']
        assert (settings['top_k'], settings['temperature'], settings['top_p']) == (40, 0.9, 1)
        assert (settings['length'], settings['batch_size'], settings['engine']) == (12, 3, 'graph')


@pytest.fixture(scope='module')
def stopping(tmp_path_factory, tiny):
    """A model that ends its texts early, after very different lengths."""
    folder = tmp_path_factory.mktemp('models')
    weights = dict(tiny.weights)
    weights['model/ln_f/b'] = weights['model/ln_f/b'] + weights['model/wte'][256]  # a likely end
    reference.write_checkpoint(folder / 'tiny', tiny.hparams, weights)
    return folder, weights


def test_documents_end_at_the_end_of_text(write, tiny, stopping, tmp_path):
    folder, weights = stopping
    plain, stopped = tmp_path / 'plain.jsonl', tmp_path / 'stopped.jsonl'
    flags = dict(models_dir=str(folder), nsamples=30, length=30, temperature=1.5)
    write(unconditional.sample_model, plain, stop=False, **flags)
    write(unconditional.sample_model, stopped, **flags)
    n_ended = 0
    for index, (whole, record) in enumerate(zip(parsed(plain), parsed(stopped))):
        tokens, gaps = reference.sample(weights, tiny.hparams, [256], 30, 4, index, temperature=1.5)
        assert min(gaps) > 1e-4, 'choose another seed'
        assert (whole['tokens'], whole['ended']) == (tokens, False)
        ended = 256 in tokens
        n = tokens.index(256) if ended else 30
        assert record['tokens'] == tokens[:n + 1]
        assert record['ended'] == ended
        assert record['text'] == tiny.decode(tokens[:n])
        n_ended += ended
    assert 3 < n_ended < 27


def test_log_probabilities_on_request(write, tiny, tmp_path):
    path = tmp_path / 'samples.jsonl'
    write(unconditional.sample_model, path, nsamples=4, logprobs=True, top_p=0.8)
    for record in parsed(path):
        logits = reference.forward(tiny.weights, tiny.hparams, [256] + record['tokens'][:-1])
        for row, token, model, sampled in zip(logits, record['tokens'], record['logprobs']['model'],
                                              record['logprobs']['sampled']):
            assert abs(model - math.log(reference.softmax(row)[token])) < 1e-4
            assert abs(sampled - math.log(reference.warp(row, top_p=0.8)[token])) < 1e-4


def test_many_processes_share_one_numbering(write, tmp_path):
    """Their files, one after the other, are the file of a single process."""
    for name in ['jsonl', 'txt']:
        whole = tmp_path / ('whole.' + name)
        write(unconditional.sample_model, whole, nsamples=8)
        parts = [tmp_path / ('part%d.%s' % (i, name)) for i in range(3)]
        for part, (first, n) in zip(parts, [(0, 3), (3, 1), (4, 4)]):
            write(unconditional.sample_model, part, first_sample=first, nsamples=n)
        assert b''.join(part.read_bytes() for part in parts) == whole.read_bytes()


# ---- continuing --------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(write, tmp_path, name):
    """As a process leaves it that is killed while it writes."""
    path, beside = tmp_path / name, tmp_path / (name + '.settings.json')
    write(unconditional.sample_model, path, nsamples=4)
    if beside.exists():  # how it was after four samples
        after_4 = beside.read_bytes()
    write(unconditional.sample_model, path, nsamples=9)  # a larger number continues
    whole = path.read_bytes()
    at_4 = len(b''.join(whole.splitlines(True)[:4])) if name.endswith('l') else json.loads(
        after_4.decode('utf-8'))['bytes']
    moments = random.Random(0)
    for cut in [0, 1, at_4, len(whole)] + [moments.randrange(len(whole)) for _ in range(6)]:
        if name.endswith('.txt'):
            cut = max(cut, at_4)
            beside.write_bytes(after_4)
        path.write_bytes(whole[:cut])
        write(unconditional.sample_model, path, nsamples=9)
        assert path.read_bytes() == whole
    fresh = tmp_path / ('fresh.' + name.rpartition('.')[2])
    write(unconditional.sample_model, fresh, nsamples=9)
    assert fresh.read_bytes() == whole


def test_a_file_that_is_complete_is_left_alone_without_a_model_run(write, refused, bare, tiny,
                                                                   tmp_path):
    path = tmp_path / 'samples.jsonl'
    write(unconditional.sample_model, path, nsamples=4)
    before = path.read_bytes()
    status, stdout, stderr = bare(UNCONDITIONAL, *tiny.flags, '--length', 12, '--batch_size', 3,
                                  '--nsamples', 3, '--output', path)
    assert (status, stdout, stderr) == (0, '', '')  # nor is a seed needed: the file has one
    assert path.read_bytes() == before


@pytest.mark.parametrize('flags, words', [
    ({'temperature': 0.5}, 'temperature 1.0 0.5'), ({'seed': 5}, 'seed 4 5'),
    ({'batch_size': 4}, 'batch_size 3 4'), ({'length': 13, 'top_k': 9}, 'length 12 13 top_k 9'),
    ({'stop': False}, 'stop'), ({'stop_at': 'x'}, 'stop_at "x"'), ({'keep': 3}, 'keep 3'),
    ({'first_sample': 1}, '--first_sample 0 1'),
], ids=str)
@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_other_settings_are_refused(write, tmp_path, name, flags, words):
    path = tmp_path / name
    if not path.exists():
        write(unconditional.sample_model, path, nsamples=1)
    before = path.read_bytes()
    flags = dict(flags)
    write.flags.update((key, flags.pop(key)) for key in list(flags) if key in write.flags)
    message = write.error(unconditional.sample_model, path, nsamples=4, **flags)
    for word in [str(path)] + words.split():
        assert word in message
    assert path.read_bytes() == before


def test_prompts_that_are_done_need_no_model(write, bare, tiny, tmp_path):
    """Also if the last ones cannot be used, and no later record tells that they were read."""
    source = tmp_path / 'prompts.txt'
    source.write_text('Hello\n\nyou\n\n' + 'x' * 33 + '\n', encoding='utf-8')
    for name in ['samples.jsonl', 'samples.txt']:
        path = tmp_path / name
        write(conditional.continue_prompts, path, prompts=str(source), nsamples=2)
        before = path.read_bytes()
        status, stdout, stderr = bare(
            CONDITIONAL, *tiny.flags, '--length', 12, '--batch_size', 3, '--nsamples', 2,
            '--prompts', source, '--output', path)
        assert (status, stdout) == (0, '') and path.read_bytes() == before
        assert [line.split(':')[0] for line in stderr.splitlines()] == [
            'prompt in line 4 left out', 'prompt in line 5 left out']


def test_other_weights_are_refused(write, tiny, stopping, tmp_path):
    path = tmp_path / 'samples.jsonl'
    write(unconditional.sample_model, path, nsamples=1)
    write.flags['models_dir'] = str(stopping[0])
    assert 'weights' in write.error(unconditional.sample_model, path, nsamples=4)


def test_what_another_script_made_is_refused(write, tmp_path):
    source = tmp_path / 'prompts.txt'
    source.write_text('Hello', encoding='utf-8')
    for name in ['samples.jsonl', 'samples.txt']:
        write(unconditional.sample_model, tmp_path / ('un' + name), nsamples=1)
        assert 'prompts' in write.error(conditional.continue_prompts, tmp_path / ('un' + name),
                                        prompts=str(source))
        write(conditional.continue_prompts, tmp_path / name, prompts=str(source))
        for nsamples in (1, 4):
            assert 'prompts' in write.error(unconditional.sample_model, tmp_path / name,
                                            nsamples=nsamples)


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has one engine')
def test_auto_goes_on_with_the_engine_it_began_with(write, tf, tmp_path):
    """Whether or not the weights have been converted since, the same command goes on."""
    import lite
    models = tmp_path / 'models'
    shutil.copytree(os.path.join(write.flags['models_dir'], 'tiny'), str(models / 'tiny'),
                    ignore=shutil.ignore_patterns('lite'))
    write.flags.update(models_dir=str(models), engine='auto')
    path, whole = tmp_path / 'samples.jsonl', tmp_path / 'whole.jsonl'
    write(unconditional.sample_model, whole, nsamples=6)
    write(unconditional.sample_model, path, nsamples=3)
    write(unconditional.sample_model, tmp_path / 'lite.jsonl', nsamples=3, engine='lite')
    assert os.path.isdir(lite.converted_folder(str(models / 'tiny'), 'float32'))
    write(unconditional.sample_model, path, nsamples=6)
    assert path.read_bytes() == whole.read_bytes()
    shutil.rmtree(str(models / 'tiny' / 'lite'))
    write(unconditional.sample_model, tmp_path / 'lite.jsonl', nsamples=6)
    assert [record['settings']['engine'] for record in parsed(tmp_path / 'lite.jsonl')
            ] == ['lite'] * 6


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_no_two_processes_write_one_file(write, tiny, tmp_path, name):
    path = tmp_path / name
    opened = records.JsonLines if name.endswith('l') else records.PlainText
    write(unconditional.sample_model, path, nsamples=1)
    before = path.read_bytes()
    more = [None, False] if name.endswith('l') else []
    with contextlib.closing(opened(str(path), 0, *more)):
        assert 'another process' in write.error(unconditional.sample_model, path, nsamples=3)
        assert path.read_bytes() == before
    write(unconditional.sample_model, path, nsamples=3)
    assert path.read_bytes().startswith(before)


def test_samples_missing_or_twice_are_noticed(write, tmp_path):
    path = tmp_path / 'samples.jsonl'
    write(unconditional.sample_model, path, nsamples=4)
    lines = path.read_bytes().splitlines(True)
    for wrong in [lines[:2] + lines[3:], lines[:2] + lines[1:], lines[:1] + [b'\n'] + lines[1:],
                  [lines[0][:50] + b'\n'] + lines[1:]]:
        path.write_bytes(b''.join(wrong))
        assert str(path) in write.error(unconditional.sample_model, path, nsamples=6)
        assert path.read_bytes() == b''.join(wrong)


def test_a_txt_and_its_settings_must_fit(write, tmp_path):
    path, beside = tmp_path / 'samples.txt', tmp_path / 'samples.txt.settings.json'
    write(unconditional.sample_model, path, nsamples=4)
    whole, settings = path.read_bytes(), beside.read_bytes()
    path.write_bytes(whole[:-1])  # somebody else was at it
    assert str(beside) in write.error(unconditional.sample_model, path, nsamples=6)
    assert path.read_bytes() == whole[:-1]
    for content in [b'', b'{}', b'[1]', b'\xff', settings[:-9]]:
        path.write_bytes(whole)
        beside.write_bytes(content)
        assert str(beside) in write.error(unconditional.sample_model, path, nsamples=6)
    beside.unlink()
    assert str(path) in write.error(unconditional.sample_model, path, nsamples=6)
    assert path.read_bytes() == whole
    path.unlink()  # to start anew, also with other settings
    beside.write_bytes(settings)
    write.flags['seed'] = 5
    write(unconditional.sample_model, path, nsamples=4)
    assert path.read_bytes() != whole
    assert json.loads(beside.read_text(encoding='utf-8'))['settings']['seed'] == 5


@pytest.mark.parametrize('name, content', [
    ('a.jsonl', b'{"text": "mine"}\n'), ('a.jsonl', b'no newline'), ('a.jsonl', b'[1]\n'),
    ('a.txt', b'my own text\n'), ('a.jsonl', b'\xff\n')], ids=repr)
def test_a_file_of_something_else_is_not_touched(refused, tiny, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    status, message = refused(UNCONDITIONAL, *tiny.flags, '--nsamples', 2, '--output',
                              tmp_path / name)
    assert status == 1 and name in message and '--output' in message
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize('arguments, words', [
    ('--output samples.csv', '.txt .jsonl samples.csv'), ('--logprobs', '--logprobs .jsonl'),
    ('--logprobs --output a.txt', '--logprobs .jsonl'), ('--output=', '.txt .jsonl'),
    ('--output .', '.txt .jsonl'), ('--stop_at \udcff', '--stop_at UTF-8'),
    ('--first_sample -1', '--first_sample'), ('--output nowhere/a.txt', 'nowhere/a.txt'),
])
def test_outputs_that_cannot_be(refused, tiny, tmp_path, arguments, words):
    status, message = refused(UNCONDITIONAL, *tiny.flags, '--nsamples', 1, *arguments.split(),
                              cwd=str(tmp_path))
    assert status in (1, 2)
    for word in words.split():
        assert word in message


# ---- interruptions -----------------------------------------------------------------------------


class Given:
    """A text as `records` wants it."""

    ended, done, logprobs = False, True, []

    def __init__(self, index, n_tokens=3):
        self.index, self.text, self.tokens = index, 'text %d' % index, [7] * n_tokens


def interrupt_at(line, function):
    """Calls a function, with Ctrl-C when it comes to this line, counted in all of records.py.

    Returns:
      Whether it came so far.
    """
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if frame.f_code.co_filename != records.__file__:
            return None
        if event == 'line':
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_ctrl_c_in_the_middle_of_writing_loses_and_doubles_nothing(tmp_path, name):
    settings = {'model': 'm', 'seed': 1}
    opened = records.PlainText if name.endswith('txt') else functools.partial(
        records.JsonLines, encoder=None, with_prompt=False)

    def made(folder, line):
        """Returns what is in a file of three samples, and whether writing was interrupted."""
        folder.mkdir()
        path = folder / name
        with contextlib.closing(opened(str(path), 0)) as file:
            file.begin(settings)
            file.write([Given(index) for index in range(3)])
            interrupted = interrupt_at(line, file.flush)
            file.flush()
        return [(folder / entry).read_bytes() for entry in sorted(os.listdir(str(folder)))
                ], interrupted
    whole, _ = made(tmp_path / 'whole', 0)
    assert b'text 2' in whole[0]
    for line in range(1, 200):
        found, interrupted = made(tmp_path / str(line), line)
        assert found == whole
        if not interrupted:
            break
    assert 15 < line < 199


@pytest.mark.parametrize('lengths, expected', [([9, 9, 9, 9], 36), ([1, 9, 2, 5], 8)], ids=str)
def test_the_progress_bar_ends_at_all_that_there_is(lengths, expected):
    """And until then it guesses from what there is: here, a text for every two tokens."""
    all_texts = [Given(index, n) for index, n in enumerate(lengths, 5)]
    first = [Given(5, 1), Given(6, 1)]
    first[0].done = first[1].done = False
    batches = [first, all_texts[:1] + first[1:], [all_texts[1]], all_texts[2:]]
    bar = io.StringIO()
    for batch in records.watched(iter(batches), 9, 9, disable=False, file=bar, mininterval=0,
                                 miniters=0):
        assert batch
    shown = [tuple(map(int, pair)) for pair in re.findall(r'(\d+)/(\d+) ', bar.getvalue())]
    n, two, total = lengths[0], sum(lengths[:2]), sum(lengths)
    assert shown[:4] == [(2, 36), (n + 1, expected), (two, 2 * two), (total, total)]
    assert 'tokens/s' in bar.getvalue()


# ---- kill -9, full disks -----------------------------------------------------------------------

BOX = ['--model_name', '1M', '--models_dir', os.path.join(ROOT, 'models'), '--seed', 1, '--length',
       40, '--batch_size', 4, '--logprobs', '--stop_at', '\n\n', '--engine',
       'graph' if IS_TF1 else 'lite']


@pytest.mark.parametrize('name, n_kills', [
    ('samples.jsonl', 20 if LONG or not IS_TF1 else 4), ('samples.txt', 4)])
def test_killed_at_random_moments_and_resumed(command, tmp_path, name, n_kills):
    flags = [flag for flag in BOX if name.endswith('l') or flag != '--logprobs']
    moments = random.Random(1)
    whole, path = tmp_path / ('whole.' + name), tmp_path / name
    begun = time.monotonic()
    endless = command(UNCONDITIONAL, *flags, '--output', path)
    sizes = []
    for _ in range(n_kills):
        process = endless.start()
        size = path.stat().st_size if path.exists() else 0
        while process.poll() is None and (not path.exists() or path.stat().st_size <= size):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        sizes.append(path.stat().st_size)
        assert time.monotonic() - begun < 300
    assert sizes == sorted(sizes) and sizes[0] > 0
    n = path.read_bytes().count(b'\n' if name.endswith('l') else b' SAMPLE ') + 3
    assert command(UNCONDITIONAL, *flags, '--output', path, '--nsamples', n).run()[0] == 0
    assert command(UNCONDITIONAL, *flags, '--output', whole, '--nsamples', n).run()[0] == 0
    assert path.read_bytes() == whole.read_bytes()
    if name.endswith('l'):
        assert [record['index'] for record in parsed(path)] == list(range(n))


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_a_full_disk(command, tiny, small_disk, tmp_path, name):
    flags = [*tiny.flags, '--seed', 4, '--batch_size', 8, '--engine', 'graph', '--output']
    folder = small_disk(64)
    path = folder / name
    status, stdout, stderr = command(UNCONDITIONAL, *flags, path).run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert name in stderr and 'No space left on device' in stderr
    written = path.read_bytes()
    n = written.count(b'\n' if name.endswith('l') else b' SAMPLE ')
    assert n > 10  # all records that fit: there is no room for another
    if name.endswith('l'):
        assert len(written) > 60000
    # Moved to where there is room, it goes on.
    for source in os.listdir(str(folder)):
        shutil.copy(str(folder / source), str(tmp_path))
    for target in (tmp_path / name, tmp_path / ('whole.' + name)):
        command(UNCONDITIONAL, *flags, target, '--nsamples', n + 5).run()
    whole = (tmp_path / ('whole.' + name)).read_bytes()
    assert whole.startswith(written) and (tmp_path / name).read_bytes() == whole


def test_a_folder_that_cannot_be_written_to(refused, tiny, tmp_path):
    folder = tmp_path / 'read-only'
    folder.mkdir()
    mounted = os.getuid() == 0
    if mounted:
        if shutil.which('mount') is None or subprocess.call(
                ['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(folder)],
                stderr=subprocess.DEVNULL):
            pytest.skip('root may write anywhere, and nothing can be mounted here')
    else:
        folder.chmod(0o500)
    try:
        status, message = refused(UNCONDITIONAL, *tiny.flags, '--output', folder / 'samples.txt')
    finally:
        if mounted:
            subprocess.check_call(['umount', str(folder)])
    assert status == 1 and str(folder) in message


def test_ctrl_c_keeps_all_that_is_done(command, tmp_path):
    path = tmp_path / 'samples.jsonl'
    process = command(UNCONDITIONAL, *BOX, '--output', path).start()
    while process.poll() is None and (not path.exists() or not path.stat().st_size):
        time.sleep(0.02)
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130 and stdout == b''
    assert [record['index'] for record in parsed(path)] == list(range(len(parsed(path))))
    assert path.read_bytes().endswith(b'\n')


# ---- files of prompts --------------------------------------------------------------------------

LINES = ['Hello', '你好 🙂', '', 'x' * 33, 'y' * 32, 'Hello', ' z\t']
USABLE = [0, 1, 4, 5, 6]


def sample_lines(tiny, length=12, nsamples=2):
    """Returns the reference's texts of the usable lines, by index, within the window."""
    return {line * nsamples + n: tiny.samples([line * nsamples + n], seed=4, length=length,
                                              prompt=LINES[line])[0]
            for line in USABLE for n in range(nsamples) if len(LINES[line].encode()) < 20}


@pytest.mark.parametrize('batch_size', [1, 3, 16])
def test_prompts_of_all_lengths_share_a_batch(write, tiny, tmp_path, batch_size):
    write.flags['batch_size'] = batch_size
    source, path = tmp_path / 'prompts.txt', tmp_path / 'samples.jsonl'
    source.write_bytes('\n'.join(LINES).encode('utf-8').replace(b'Hello\n', b'Hello\r\n', 1))
    stdout, stderr = write(conditional.continue_prompts, path, prompts=str(source), nsamples=2)
    assert stdout == '' and stderr.count('\n') == 2
    assert 'line 3 ' in stderr and 'empty' in stderr and 'line 4 ' in stderr and '1 token' in stderr
    found = parsed(path)
    assert [record['index'] for record in found] == [2 * line + n for line in USABLE
                                                     for n in range(2)]
    expected = sample_lines(tiny)
    for record in found:
        assert record['prompt'] == LINES[record['index'] // 2]
        assert record['text'] == expected.get(record['index'], record['text'])
        assert len(record['tokens']) == 12


def test_prompts_from_stdin_and_from_json(command, tiny, tmp_path):
    flags = [*tiny.flags, '--seed', 4, '--length', 12, '--batch_size', 2, '--engine', 'graph']
    status, stdout, stderr = command(CONDITIONAL, *flags, '--prompts=-').run('Hello\n\n你好 🙂\n')
    assert status == 0 and stderr.count('\n') == 1 and 'line 2 ' in stderr
    texts = [tiny.samples([index], seed=4, length=12, prompt=prompt)[0]
             for index, prompt in [(0, 'Hello'), (2, '你好 🙂')]]
    assert stdout == numbered(texts[:1]) + numbered(texts[1:], 3)
    source = tmp_path / 'prompts.jsonl'
    lines = ['{"prompt": "Hello", "id": 7}', '{"text": "Hello"}', json.dumps({'prompt': '你好 🙂'}),
             '{"prompt": 3}', '[]', 'Hello', '{"prompt": ""}']
    source.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    status, again, stderr = command(CONDITIONAL, *flags, '--prompts', source).run()
    assert (status, again) == (0, stdout)
    assert [line.split(':')[0] for line in stderr.splitlines()] == [
        'prompt in line %d left out' % number for number in (2, 4, 5, 6, 7)]


@pytest.mark.parametrize('env', [
    {'LC_ALL': 'C', 'PYTHONUTF8': 0, 'PYTHONCOERCECLOCALE': 0}, {'LC_ALL': 'C.UTF-8'}], ids=str)
def test_all_is_utf_8_whatever_the_locale(command, tiny, tmp_path, env):
    """With a byte order mark and Windows' line ends, too."""
    source, path = tmp_path / 'prompts.txt', tmp_path / 'samples.jsonl'
    source.write_bytes(b'\xef\xbb\xbf' + 'é\r\n🙂'.encode())
    status, stdout, stderr = command(
        CONDITIONAL, *tiny.flags, '--seed', 4, '--length', 12, '--stop_at', '你好', '--engine',
        'graph', '--prompts', source, '--output', path, env=env).run()
    assert (status, stdout, stderr) == (0, '', '')
    for index, (prompt, record) in enumerate(zip('é🙂', parsed(path))):
        assert record['prompt'] == prompt and record['settings']['stop_at'] == '你好'
        assert [record['text']] == tiny.samples([index], seed=4, length=12, prompt=prompt)


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_a_file_of_prompts_is_continued(write, tmp_path, name):
    source, path = tmp_path / 'prompts.txt', tmp_path / name
    source.write_text('\n'.join(LINES), encoding='utf-8')
    flags = dict(prompts=str(source), nsamples=2)
    write(conditional.continue_prompts, path, **flags)
    whole = path.read_bytes()
    if name.endswith('l'):
        for cut in range(0, len(whole), len(whole) // 5):
            path.write_bytes(whole[:cut])
            write(conditional.continue_prompts, path, **flags)
            assert path.read_bytes() == whole
    assert 'nsamples' in write.error(conditional.continue_prompts, path, prompts=str(source),
                                     nsamples=3)
    source.write_text('other prompts', encoding='utf-8')
    assert 'prompts' in write.error(conditional.continue_prompts, path, **flags)
    assert path.read_bytes() == whole


@pytest.mark.parametrize('arguments, words', [
    ('', '--prompts .txt .jsonl'), ('--prompts nothing.txt', 'nothing.txt'),
    ('--prompts a.csv', '.txt .jsonl a.csv'), ('--prompts=- --nsamples 0', '--nsamples'),
    ('--prompts .', '.txt'),
])
def test_prompts_that_cannot_be_read(refused, tiny, arguments, words):
    status, message = refused(CONDITIONAL, *tiny.flags, *arguments.split())
    assert status in (1, 2)
    for word in words.split():
        assert word in message
