"""Files of samples: whole records whatever happens, continued to the same bytes."""
import contextlib
import errno
import io
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import generate_conditional_samples as conditional
import generate_unconditional_samples as unconditional
import reference
from gpt2 import files
from gpt2.errors import UserError
from gpt2.sampling import output, progress
from helpers import LONG, SRC, contents, numbered, only_long

UNCONDITIONAL = 'generate_unconditional_samples.py'
NAMES = ['samples.jsonl', 'samples.txt']
both_formats = pytest.mark.parametrize('name', NAMES)


def records(path):
    """Return the records of a .jsonl."""
    return [json.loads(line) for line in path.read_bytes().decode('utf-8').splitlines()]


# ---- what is in a file -------------------------------------------------------------------------


def test_a_txt_has_what_is_printed(sample, tiny, tmp_path):
    path = tmp_path / 'samples.txt'
    assert sample(unconditional.sample_model, '--nsamples', 7, '--output', path) == ('', '')
    expected = numbered(tiny.samples(range(7), seed=4, length=12))
    assert path.read_bytes().decode('utf-8') == expected
    assert sample(unconditional.sample_model, '--nsamples', 7) == (expected, '')
    settings = json.loads((tmp_path / 'samples.txt.settings.json').read_text(encoding='utf-8'))
    assert settings['settings']['seed'] == 4 and settings['settings']['temperature'] == 1
    assert sorted(os.listdir(str(tmp_path))) == ['samples.txt', 'samples.txt.settings.json']


def test_a_jsonl_says_how_each_sample_was_made(tf, sample, tiny, tmp_path):
    path = tmp_path / 'samples.jsonl'
    sample(unconditional.sample_model, '--nsamples', 7, '--top_k', 40, '--temperature', 0.9,
           '--output', path)
    texts = tiny.samples(range(7), seed=4, length=12, top_k=40, temperature=0.9)
    assert os.listdir(str(tmp_path)) == ['samples.jsonl']
    found = records(path)
    assert len(found) == 7
    for index, (record, text) in enumerate(zip(found, texts)):
        assert list(record) == ['index', 'model', 'seed', 'settings', 'text', 'tokens', 'ended',
                                'finish_reason', 'synthetic']
        assert (record['index'], record['model'], record['seed']) == (index, 'tiny', 4)
        assert (record['text'], record['ended'], record['synthetic']) == (text, False, True)
        assert tiny.decode(record['tokens']) == text and len(record['tokens']) == 12
        settings = record['settings']
        assert (settings['top_k'], settings['temperature'], settings['top_p']) == (40, 0.9, 1)
        assert (settings['length'], settings['batch_size'], settings['engine']) == (12, 3, 'graph')
        assert settings['tensorflow'] == tf.__version__


@pytest.fixture(scope='module')
def stopping(tmp_path_factory, tiny):
    """Flags of a model that ends its texts early, after very different lengths; its weights."""
    folder = tmp_path_factory.mktemp('models')
    weights = dict(tiny.weights)
    weights['model/ln_f/b'] = weights['model/ln_f/b'] + weights['model/wte'][256]  # a likely end
    reference.write_checkpoint(folder / 'tiny', tiny.hparams, weights)
    return ['--models_dir', folder], weights


def test_texts_end_at_the_end_of_text(sample, tiny, stopping, tmp_path):
    flags, weights = stopping
    plain, stopped = tmp_path / 'plain.jsonl', tmp_path / 'stopped.jsonl'
    flags = [*flags, '--nsamples', 30, '--length', 30, '--temperature', 1.5, '--output']
    sample(unconditional.sample_model, *flags, plain, '--nostop')
    sample(unconditional.sample_model, *flags, stopped)
    n_ended = 0
    for index, (whole, record) in enumerate(zip(records(plain), records(stopped))):
        tokens, gaps = reference.sample(weights, tiny.hparams, [256], 30, 4, index, temperature=1.5)
        assert min(gaps) > 1e-4, 'choose another seed'
        assert (whole['tokens'], whole['ended']) == (tokens, False)
        ended = 256 in tokens
        n = tokens.index(256) if ended else 30
        assert record['tokens'] == tokens[:n + 1]
        assert (record['ended'], record['finish_reason']) == (
            ended, 'stop' if ended else 'length')
        assert record['text'] == tiny.decode(tokens[:n])
        n_ended += ended
    assert 3 < n_ended < 27


def test_log_probabilities_on_request(sample, tiny, tmp_path):
    path = tmp_path / 'samples.jsonl'
    sample(unconditional.sample_model, '--nsamples', 4, '--logprobs', '--top_p', 0.8, '--output',
           path)
    assert len(records(path)) == 4
    for record in records(path):
        logits = reference.forward(tiny.weights, tiny.hparams, [256] + record['tokens'][:-1])
        logprobs = record['logprobs']
        assert len(logprobs['model']) == len(logprobs['sampled']) == 12
        for row, token, model, sampled in zip(logits, record['tokens'], logprobs['model'],
                                              logprobs['sampled']):
            assert abs(model - math.log(reference.softmax(row)[token])) < 1e-4
            assert abs(sampled - math.log(reference.warp(row, top_p=0.8)[token])) < 1e-4


def test_the_likeliest_tokens_at_each_place(sample, tiny, tmp_path):
    """Five of them, though the token was drawn from others."""
    path = tmp_path / 'samples.jsonl'
    sample(unconditional.sample_model, '--nsamples', 2, '--logprobs', 5, '--output', path)
    for record in records(path):
        logits = reference.forward(tiny.weights, tiny.hparams, [256] + record['tokens'][:-1])
        for row, top in zip(logits, record['logprobs']['top']):
            best = np.argsort(-row, kind='stable')[:5].tolist()
            assert [place['id'] for place in top] == best
            assert [place['text'] for place in top] == [tiny.decode([token]) for token in best]
            np.testing.assert_allclose([place['logprob'] for place in top],
                                       np.log(reference.softmax(row)[best]), atol=1e-4)


@pytest.mark.parametrize('option', [
    {'min_p': 0.3}, {'typical_p': 0.6}, {'repetition_penalty': 1.5}, {'no_repeat_ngram_size': 1},
    {'min_p': 0.05, 'typical_p': 0.9, 'repetition_penalty': 1.2, 'no_repeat_ngram_size': 2,
     'top_k': 100, 'temperature': 0.8}], ids=str)
def test_options_of_a_token_act_and_are_recorded(sample, sample_error, tiny, tmp_path, option):
    path = tmp_path / 'samples.jsonl'
    flags = [argument for flag, value in option.items() for argument in ('--' + flag, value)]
    sample(unconditional.sample_model, '--nsamples', 2, *flags, '--output', path)
    texts = tiny.samples(range(2), seed=4, length=12, **option)
    assert [record['text'] for record in records(path)] == texts
    settings = records(path)[0]['settings']
    assert {flag: settings[flag] for flag in option} == option
    first = next(iter(option))
    assert first in sample_error(unconditional.sample_model, '--nsamples', 3, '--output', path)


@both_formats
def test_many_processes_share_one_numbering(sample, tmp_path, name):
    """Their files, one after the other, are the file of a single process."""
    whole = tmp_path / f'whole.{name}'
    sample(unconditional.sample_model, '--nsamples', 8, '--output', whole)
    parts = [tmp_path / f'{i}.{name}' for i in range(3)]
    for part, (first, n) in zip(parts, [(0, 3), (3, 1), (4, 4)]):
        sample(unconditional.sample_model, '--first_sample', first, '--nsamples', n, '--output',
               part)
    assert b''.join(part.read_bytes() for part in parts) == whole.read_bytes()


# ---- continuing --------------------------------------------------------------------------------


@both_formats
def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(sample, tmp_path, name):
    """As a process leaves it that is killed while it writes."""
    path, beside = tmp_path / name, tmp_path / f'{name}.settings.json'
    sample(unconditional.sample_model, '--nsamples', 4, '--output', path)
    size_of_4 = len(path.read_bytes())
    state_of_4 = beside.read_bytes() if name.endswith('.txt') else None
    sample(unconditional.sample_model, '--nsamples', 9, '--output', path)  # a larger number
    whole = path.read_bytes()
    cuts = random.Random(0)
    for cut in [0, 1, size_of_4, len(whole)] + [cuts.randrange(len(whole)) for _ in range(6)]:
        if state_of_4:
            cut = max(cut, size_of_4)
            beside.write_bytes(state_of_4)
        path.write_bytes(whole[:cut])
        sample(unconditional.sample_model, '--nsamples', 9, '--output', path)
        assert path.read_bytes() == whole
    fresh = tmp_path / f'fresh.{name}'
    sample(unconditional.sample_model, '--nsamples', 9, '--output', fresh)
    assert fresh.read_bytes() == whole


@both_formats
def test_a_complete_file_is_left_alone_without_the_model(sample, refuse, monkeypatch, tmp_path,
                                                         name):
    path = tmp_path / name
    sample(unconditional.sample_model, '--nsamples', 4, '--output', path)
    before = contents(tmp_path)
    forbid_the_model(monkeypatch)
    for n in (3, 4):
        assert sample(unconditional.sample_model, '--nsamples', n, '--output', path) == (
            '', f'{path} has all these samples already; for others, give another --output\n')
    assert contents(tmp_path) == before


def forbid_the_model(monkeypatch):
    """Make a test fail if a decoder is opened from now on."""
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', lambda *args: pytest.fail('the model was opened'))


@both_formats
def test_the_seed_of_the_file_is_taken_if_none_is_given(call, graph_decoders, monkeypatch, tiny,
                                                        tmp_path, name):
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)
    path, whole = tmp_path / name, tmp_path / f'whole.{name}'
    flags = [*tiny.flags, '--engine', 'graph', '--length', 12]

    def sample(*argv):
        return call(unconditional.sample_model, unconditional.OPTIONS, *flags, *argv)

    status, stdout, stderr = sample('--nsamples', 2, '--output', path)
    seed = int(re.match(r'seed (\d+)\n$', stderr).group(1))
    assert (status, stdout) == (0, '')
    assert sample('--nsamples', 5, '--output', path) == (0, '', '')
    assert sample('--nsamples', 5, '--seed', seed, '--output', whole) == (0, '', '')
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize('flags, words', [
    ('--temperature 0.5', 'temperature 1.0 0.5'), ('--seed 5', 'seed 4 5'),
    ('--batch_size 4', 'batch_size 3 4'), ('--length 13 --top_k 9', 'length 12 13 top_k 9'),
    ('--nostop', 'stop'), ('--stop_at x', 'stop_at "x"'), ('--keep 3', 'keep 3'),
    ('--first_sample 1', '--first_sample 0 1')])
@both_formats
def test_other_settings_are_refused(sample, sample_error, tmp_path, name, flags, words):
    path = tmp_path / name
    sample(unconditional.sample_model, '--nsamples', 1, '--output', path)
    before = contents(tmp_path)
    message = sample_error(unconditional.sample_model, '--nsamples', 4, '--output', path,
                           *flags.split())
    for word in [str(path), *words.split()]:
        assert word in message
    assert contents(tmp_path) == before


@both_formats
def test_other_weights_are_refused(sample, sample_error, stopping, tmp_path, name):
    path = tmp_path / name
    sample(unconditional.sample_model, '--nsamples', 1, '--output', path)
    assert 'weights' in sample_error(unconditional.sample_model, '--nsamples', 4, '--output', path,
                                     *stopping[0])


@both_formats
def test_a_file_of_another_command_is_refused(sample, sample_error, tmp_path, name):
    source = tmp_path / 'prompts.txt'
    source.write_text('Hello', encoding='utf-8')
    first, second = tmp_path / name, tmp_path / f'second.{name}'
    sample(unconditional.sample_model, '--nsamples', 1, '--output', first)
    assert 'prompts' in sample_error(conditional.continue_prompts, '--prompts', source, '--output',
                                     first)
    sample(conditional.continue_prompts, '--prompts', source, '--output', second)
    for nsamples in (1, 4):
        assert 'prompts' in sample_error(unconditional.sample_model, '--nsamples', nsamples,
                                         '--output', second)


@only_long
def test_auto_continues_with_the_engine_of_the_file(tf, sample, sample_error, tiny, tmp_path,
                                                    monkeypatch):
    """Whether or not the weights have been converted since, the same command continues the file."""
    from gpt2.sampling import run
    if tf.__version__.startswith('1.'):
        pytest.skip('TensorFlow 1 has one engine')
    models = tmp_path / 'models'
    tiny.copy(models / 'tiny')
    flags = ['--models_dir', models, '--engine', 'auto', '--output']
    path, whole, lite = [tmp_path / f'{name}.jsonl' for name in ('samples', 'whole', 'lite')]

    def engines(path):
        return [record['settings']['engine'] for record in records(path)]

    sample(unconditional.sample_model, *flags, whole, '--nsamples', 6)
    sample(unconditional.sample_model, *flags, path, '--nsamples', 3)
    sample(unconditional.sample_model, *flags, lite, '--nsamples', 3, '--engine', 'lite')
    sample(unconditional.sample_model, *flags, lite, '--nsamples', 5)
    sample(unconditional.sample_model, *flags, path, '--nsamples', 6)
    assert path.read_bytes() == whole.read_bytes()
    assert engines(path) == ['graph'] * 6 and engines(lite) == ['lite'] * 5
    shutil.rmtree(str(models / 'tiny' / 'lite'))
    asked = []

    def open_decoder(model_dir, engine, dtype):
        asked.append(engine)
        raise UserError('enough')

    monkeypatch.setattr(run, 'open_decoder', open_decoder)
    sample_error(unconditional.sample_model, *flags, lite, '--nsamples', 6)
    assert asked == ['lite']


@both_formats
def test_no_two_processes_write_one_file(sample, sample_error, tmp_path, name):
    path = tmp_path / name
    sample(unconditional.sample_model, '--nsamples', 1, '--output', path)
    before = path.read_bytes()
    with contextlib.closing(opened(path)):
        assert 'another process' in sample_error(unconditional.sample_model, '--nsamples', 3,
                                                 '--output', path)
        assert path.read_bytes() == before
    sample(unconditional.sample_model, '--nsamples', 3, '--output', path)
    assert path.read_bytes().startswith(before)


def test_missing_and_repeated_samples_are_noticed(sample, sample_error, tmp_path):
    path = tmp_path / 'samples.jsonl'
    sample(unconditional.sample_model, '--nsamples', 4, '--output', path)
    lines = path.read_bytes().splitlines(True)
    for wrong in [lines[:2] + lines[3:], lines[:2] + lines[1:], lines[:1] + [b'\n'] + lines[1:],
                  [lines[0][:50] + b'\n'] + lines[1:]]:
        path.write_bytes(b''.join(wrong))
        assert str(path) in sample_error(unconditional.sample_model, '--nsamples', 6, '--output',
                                         path)
        assert path.read_bytes() == b''.join(wrong)


def test_a_txt_must_fit_the_file_beside_it(sample, sample_error, tmp_path):
    path, beside = tmp_path / 'samples.txt', tmp_path / 'samples.txt.settings.json'
    flags = [unconditional.sample_model, '--output', path, '--nsamples']
    sample(*flags, 4)
    whole, settings = path.read_bytes(), beside.read_bytes()
    path.write_bytes(whole[:-1])  # somebody else has changed it
    assert str(beside) in sample_error(*flags, 6)
    assert path.read_bytes() == whole[:-1]
    wrong = [b'', b'{}', b'[1]', b'\xff', settings[:-9]]
    for name in ('first_sample', 'next', 'bytes'):
        values = [-3, 1.5, 'x', [0], 10**12, None][:6 if name == 'bytes' else 4]
        wrong += [json.dumps({**json.loads(settings.decode('utf-8')), name: value}).encode('ascii')
                  for value in values]
    for content in wrong:
        path.write_bytes(whole)
        beside.write_bytes(content)
        assert str(beside) in sample_error(*flags, 6), content
        assert path.read_bytes() == whole
    beside.unlink()
    assert str(path) in sample_error(*flags, 6)
    assert path.read_bytes() == whole
    path.unlink()  # to start over, also with other settings
    beside.write_bytes(settings)
    sample(*flags, 4, '--seed', 5)
    assert path.read_bytes() != whole
    assert json.loads(beside.read_text(encoding='utf-8'))['settings']['seed'] == 5


@pytest.mark.parametrize('seed', ['abc', -1, 1.5, True, None, 2**64, [1]], ids=repr)
@both_formats
def test_a_file_with_a_seed_that_cannot_be_is_refused(sample, call, tiny, tmp_path, name, seed):
    path = tmp_path / name
    sample(unconditional.sample_model, '--nsamples', 2, '--output', path)
    for file in tmp_path.iterdir():
        file.write_text(re.sub('"seed": 4', f'"seed": {json.dumps(seed)}',
                               file.read_text(encoding='utf-8')), encoding='utf-8')
    before = contents(tmp_path)
    status, stdout, stderr = call(unconditional.sample_model, unconditional.OPTIONS, *tiny.flags,
                                  '--nsamples', 4, '--length', 12, '--output', path)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1) and name in stderr
    assert contents(tmp_path) == before


@pytest.mark.pure
@pytest.mark.parametrize('content', [b'mine', b'{}', b'[]', b'[' * 10**5, b'{"settings": {}}'],
                         ids=lambda content: repr(content[:9]))
def test_settings_of_something_else_are_not_replaced(refuse, unloaded, tmp_path, content):
    (tmp_path / 'a.txt.settings.json').write_bytes(content)
    status, message = refuse(unconditional.sample_model, unconditional.OPTIONS, *unloaded,
                             '--nsamples', 2, '--output', tmp_path / 'a.txt')
    assert status == 1 and 'a.txt.settings.json' in message
    assert (tmp_path / 'a.txt.settings.json').read_bytes() == content


@pytest.mark.pure
@pytest.mark.parametrize('name, content', [
    ('a.jsonl', b'{"index": 0, "model": "m", "seed": 1, "settings": ' + b'[' * 10**5 + b'}\n'),
    ('a.jsonl', b'{"index": ' + b'9' * 5000 + b', "model": "m", "seed": 1, "settings": {}}\n'),
    ('a.jsonl', b'{"text": "mine"}\n'), ('a.jsonl', b'no newline'), ('a.jsonl', b'[1]\n'),
    ('a.jsonl', b'{"index": 0, "text": "mine"}\n'), ('a.jsonl', b'{"index": 0, x}\n'),
    ('a.jsonl', b'{"index": 0, "model": "m", "seed": 1, "settings": 3}\n'),
    ('a.jsonl', b'\xff\n'), ('a.txt', b'my own text\n')],
                         ids=lambda value: repr(value[:60]))
def test_a_file_of_something_else_is_not_touched(refuse, unloaded, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    status, message = refuse(unconditional.sample_model, unconditional.OPTIONS, *unloaded,
                             '--nsamples', 2, '--output', tmp_path / name)
    assert status == 1 and name in message and '--output' in message
    assert contents(tmp_path) == {name: content}


# ---- interruptions -----------------------------------------------------------------------------


class Given:
    """A finished text as an output takes it."""

    ended, done, logprobs, finish_reason = False, True, [], 'length'

    def __init__(self, index, n_tokens=3):
        self.index, self.text, self.tokens = index, f'text {index}', [7] * n_tokens


SETTINGS = {'model': 'm', 'seed': 1}
MODULES = [output, files]


def opened(path):
    """Open an output that starts with sample 0 and has no prompts."""
    return output.open_output(str(path), 0, output.Content(None))


def make(path, n):
    """Write or continue a file of samples up to sample n."""
    with contextlib.closing(opened(path)) as file:
        file.begin(SETTINGS)
        file.write([Given(index) for index in range(file.next, n)])
        file.flush()


@pytest.fixture
def whole(tmp_path, name):
    """The contents of a folder with a file of five samples, {name: bytes}."""
    folder = tmp_path / 'whole'
    folder.mkdir()
    make(folder / name, 5)
    assert b'text 4' in (folder / name).read_bytes()
    return contents(folder)


@pytest.fixture
def continued(tmp_path, monkeypatch, name):
    """A function from a folder's contents to those after its file was continued to five samples."""
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # what is tested is the order

    def run(there):
        folder = tmp_path / 'continued'
        folder.mkdir()
        for entry, data in there.items():
            (folder / entry).write_bytes(data)
        make(folder / name, 5)
        found = contents(folder)
        shutil.rmtree(str(folder))
        return {entry: data for entry, data in found.items() if not entry.endswith('.partial')}

    return run


@pytest.mark.pure
@both_formats
def test_killed_before_any_line_a_file_is_continued(at_each_line, tmp_path, name, whole, continued):
    """The folder is kept as it is before each line of the code that writes, then continued."""
    folder, seen = tmp_path / 'folder', []
    folder.mkdir()

    def keep(line):
        there = contents(folder)
        if there not in seen:
            seen.append(there)

    at_each_line(MODULES, lambda: make(folder / name, 2), keep)
    at_each_line(MODULES, lambda: make(folder / name, 5), keep)
    assert contents(folder) == whole and whole in seen
    assert len(seen) > (12 if name.endswith('.txt') else 5)
    for there in seen:
        assert continued(there) == whole


@pytest.mark.pure
@both_formats
def test_killed_within_any_write_a_file_is_continued(tmp_path, name, whole, continued):
    """The file ends anywhere after the two samples that are known to be on the disk."""
    (tmp_path / 'folder').mkdir()
    make(tmp_path / 'folder' / name, 2)
    there = contents(tmp_path / 'folder')
    shortest = 0 if name.endswith('.jsonl') else len(there[name])
    for size in range(shortest, len(whole[name]) + 1):
        assert continued({**there, name: whole[name][:size]}) == whole


@pytest.mark.pure
@both_formats
def test_ctrl_c_before_any_line_loses_and_repeats_nothing(interrupt_at, tmp_path, name, whole,
                                                          continued):
    """A second Ctrl-C may come while the rest is written: then the next run writes it."""
    def interrupted(lines):
        """Write, with Ctrl-C before these lines of the calls of flush; return what is there."""
        folder = tmp_path / '-'.join(map(str, lines))
        folder.mkdir()
        n_interruptions = 0
        with contextlib.closing(opened(folder / name)) as file:
            file.begin(SETTINGS)
            file.write([Given(index) for index in range(5)])
            for line in lines:
                n_interruptions += interrupt_at(line, MODULES, file.flush)
            if len(lines) == 1:
                file.flush()
        return contents(folder), n_interruptions

    for line in range(1, 1000):
        found, n_interruptions = interrupted([line])
        assert {key: found[key] for key in whole} == whole
        assert all(entry in whole or entry.endswith('.partial') for entry in found)
        if not n_interruptions:
            break
        second = line if LONG else 1 + line * 7 % 40
        assert continued(interrupted([line, second])[0]) == whole
    assert 30 < line < 1000


class SmallDisk:
    """A raw file on a disk with room for so many more bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if not self._room:
            raise OSError(errno.ENOSPC, 'No space left on device')
        n = self._file.write(data[:self._room])
        self._room -= n
        return n


@pytest.mark.pure
@both_formats
def test_a_disk_that_is_full_after_any_byte(tmp_path, name, whole, continued):
    path, sizes = tmp_path / 'disk' / name, set()
    path.parent.mkdir()
    for room in range(0, len(whole[name]), 1 if LONG else 3):
        with contextlib.closing(opened(path)) as file:
            file.begin(SETTINGS)
            file.write([Given(index) for index in range(5)])
            file._file = SmallDisk(file._file, room)
            with pytest.raises(UserError) as caught:
                file.flush()
            file.flush()  # nothing is left to write
        assert str(caught.value) == f'{path}: No space left on device'
        there = contents(path.parent)
        assert whole[name].startswith(there[name]) and len(there[name]) <= room
        sizes.add(len(there[name]))
        assert continued(there) == whole
        for entry in there:
            (path.parent / entry).unlink()
    assert len(sizes) == 5  # whole records


@pytest.mark.pure
@pytest.mark.parametrize('name', ['samples.txt'])
def test_a_disk_that_is_full_for_the_file_beside_a_txt(tmp_path, monkeypatch, name, whole,
                                                       continued):
    path = tmp_path / 'disk' / name
    path.parent.mkdir()
    with contextlib.closing(opened(path)) as file:
        file.begin(SETTINGS)
        file.write([Given(index) for index in range(5)])
        with monkeypatch.context() as patch:
            def fail(path, *args, **options):
                raise OSError(errno.ENOSPC, 'No space left on device', path)

            patch.setattr(files, 'write_json', fail)
            with pytest.raises(UserError, match='settings.json: No space left on device'):
                file.flush()
    assert continued(contents(path.parent)) == whole


@pytest.mark.pure
@both_formats
def test_a_file_is_written_and_synchronized_at_most_once_a_second(tmp_path, monkeypatch, name):
    path, now = tmp_path / name, 100.
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    with contextlib.closing(opened(path)) as file:
        file.begin(SETTINGS)
        sizes = []
        for index in range(20):
            now += 0.1
            file.write([Given(index)])
            sizes.append(path.stat().st_size)
    assert sizes[:10] == [0] * 10 and len(set(sizes)) == 2


# ---- files that are no files -------------------------------------------------------------------


@pytest.mark.pure
@both_formats
@pytest.mark.parametrize('kind', ['fifo', 'device', 'folder', 'link', 'dangling link'])
def test_an_output_that_is_no_regular_file_is_refused(tmp_path, name, kind):
    path, target = tmp_path / name, tmp_path / f'target.{name}'
    if kind == 'fifo':
        os.mkfifo(str(path))
    elif kind == 'device':
        path.symlink_to('/dev/full')
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to(target)
        if kind == 'link':
            target.write_bytes(b'')
        make(path, 2)  # a link may name a file
        assert path.is_symlink() and b'text 1' in target.read_bytes()
        return
    with pytest.raises(UserError, match='it is not a regular file|Is a directory'):
        opened(path)


@pytest.mark.pure
@both_formats
def test_the_folder_of_an_output_must_exist(tmp_path, name):
    folder = os.path.realpath(str(tmp_path / 'nowhere'))
    (tmp_path / name).symlink_to(tmp_path / 'nowhere' / name)
    for path in (tmp_path / 'nowhere' / name, tmp_path / name):
        with pytest.raises(UserError) as caught:
            opened(path)
        assert str(caught.value) == (f'{path}: there is no folder {folder}; create it, or give '
                                     'another --output')


@both_formats
def test_a_full_disk(sample, small_disk, tmp_path, name):
    """All records that fit are kept; moved to a larger disk, the file is continued."""
    flags = [unconditional.sample_model, '--batch_size', 8, '--length', 31, '--output']
    folder = small_disk(24)
    path, moved, whole = folder / name, tmp_path / name, tmp_path / f'whole.{name}'
    stdout, stderr = sample(*flags, path, status=1)
    assert (stdout, stderr.count('\n')) == ('', 1)
    assert name in stderr and 'No space left on device' in stderr
    written = path.read_bytes()
    n = written.count(b'\n' if name.endswith('.jsonl') else b' SAMPLE ')
    assert n > 10 and len(written) > (22000 if name.endswith('.jsonl') else 12000)
    for source in folder.iterdir():
        shutil.copy(str(source), str(tmp_path))
    for target in (moved, whole):
        sample(*flags, target, '--nsamples', n + 5)
    assert whole.read_bytes().startswith(written)
    assert moved.read_bytes() == whole.read_bytes()


def test_a_folder_that_cannot_be_written_to(refuse, unloaded, tmp_path):
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
        status, message = refuse(unconditional.sample_model, unconditional.OPTIONS, *unloaded,
                                 '--output', folder / 'samples.txt')
    finally:
        if mounted:
            subprocess.check_call(['umount', str(folder)])
    assert status == 1 and str(folder) in message


# ---- kills and Ctrl-C --------------------------------------------------------------------------

BOX = ['--model_name', '1M', '--models_dir', SRC.parent / 'models', '--seed', 1, '--length', 40,
       '--batch_size', 4, '--stop_at', '\n\n', '--engine', 'graph']


@only_long
@pytest.mark.parametrize('name, n_kills', [('samples.jsonl', 4), ('samples.txt', 2)])
def test_killed_at_random_moments_and_continued(command, sample, tmp_path, name, n_kills):
    flags = [*BOX, '--logprobs'] if name.endswith('.jsonl') else BOX
    moments = random.Random(1)
    whole, path = tmp_path / f'whole.{name}', tmp_path / name
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
    assert sizes == sorted(sizes) and sizes[0] > 0
    n = path.read_bytes().count(b'\n' if name.endswith('.jsonl') else b' SAMPLE ') + 3
    for target in (path, whole):
        sample(unconditional.sample_model, *flags, '--output', target, '--nsamples', n)
    assert path.read_bytes() == whole.read_bytes()
    if name.endswith('.jsonl'):
        assert [record['index'] for record in records(path)] == list(range(n))


@both_formats
def test_ctrl_c_keeps_all_finished_samples(sample, monkeypatch, tmp_path, name):
    """It comes in a step of the decoder, in the middle of the run."""
    from gpt2.sampling.graph import GraphDecoder
    path, whole = tmp_path / name, tmp_path / f'whole.{name}'
    flags = [unconditional.sample_model, '--nsamples', 12, '--output']
    decode, n_calls, stop_at = GraphDecoder.decode, 0, None

    def watched(*args, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == stop_at:
            raise KeyboardInterrupt
        return decode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GraphDecoder, 'decode', watched)
        sample(*flags, whole)
        n_calls, stop_at = 0, n_calls - 1
        assert sample(*flags, path, status=130) == ('', '')
    n = path.read_bytes().count(b'\n' if name.endswith('.jsonl') else b' SAMPLE ')
    assert 2 < n < 12
    assert whole.read_bytes().startswith(path.read_bytes())
    sample(*flags, path)
    assert path.read_bytes() == whole.read_bytes()


@only_long
def test_ctrl_c_at_a_process_keeps_all_finished_samples(command, tmp_path):
    path = tmp_path / 'samples.jsonl'
    process = command(UNCONDITIONAL, *BOX, '--output', path).start()
    while process.poll() is None and (not path.exists() or not path.stat().st_size):
        time.sleep(0.02)
    for _ in range(4):  # Python loses one that comes in a destructor
        process.send_signal(signal.SIGINT)
        try:
            stdout, _ = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130 and stdout == b''
    assert path.read_bytes().endswith(b'\n')
    assert [record['index'] for record in records(path)] == list(range(len(records(path))))


# ---- progress ----------------------------------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize('lengths, expected', [([9, 9, 9, 9], 36), ([1, 9, 2, 5], 8)], ids=str)
def test_the_progress_bar_ends_at_the_number_of_tokens(lengths, expected):
    """Before, it estimates from what is there: here, a text for every two tokens."""
    all_texts = [Given(index, n) for index, n in enumerate(lengths, 5)]
    first = [Given(5, 1), Given(6, 1)]
    first[0].done = first[1].done = False
    batches = [first, all_texts[:1] + first[1:], [all_texts[1]], all_texts[2:]]
    bar = io.StringIO()
    passed = list(progress.with_progress(iter(batches), 9, 9, disable=False, file=bar,
                                         mininterval=0, miniters=0))
    assert passed == batches
    shown = [tuple(map(int, pair)) for pair in re.findall(r'(\d+)/(\d+) ', bar.getvalue())]
    n, two, total = lengths[0], sum(lengths[:2]), sum(lengths)
    assert shown[:4] == [(2, 36), (n + 1, expected), (two, 2 * two), (total, total)]
    assert 'tokens/s' in bar.getvalue()


@pytest.mark.pure
def test_a_terminal_alone_has_a_progress_bar(capsys):
    assert list(progress.with_progress(iter([[Given(0)]]), 1, 3)) != []
    assert capsys.readouterr() == ('', '')
