"""The data set of a model's output: the published form, continued to the same bytes, by several."""
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import types

import pytest
import tqdm

import generate_output_dataset as command
import reference
from gpt2.errors import OptionError, UserError
from gpt2.sampling import dataset, output, workers
from gpt2.sampling.batching import Sequence
from gpt2.sampling.options import DatasetOptions
from helpers import Command, contents, file_names, only_long

SCRIPT = 'generate_output_dataset.py'
SIZES = {'train': 4, 'valid': 2, 'test': 3}
NAMES = [f'tiny{suffix}.{split}.jsonl' for suffix in ('', '-k40') for split in SIZES]


@pytest.fixture(scope='module')
def ending(tmp_path_factory, tiny):
    """The models_dir of a model that ends its texts early, after different lengths; its weights."""
    folder = tmp_path_factory.mktemp('models')
    weights = dict(tiny.weights)
    weights['model/ln_f/b'] = weights['model/ln_f/b'] + weights['model/wte'][256] / 2
    reference.write_checkpoint(folder / 'tiny', tiny.hparams, weights)
    return folder, weights


@pytest.fixture(scope='module')
def flags(ending):
    return ['tiny', '--models_dir', ending[0], '--engine', 'graph', '--batch_size', 3,
            *[argument for split, n in SIZES.items() for argument in (f'--{split}', n)]]


@pytest.fixture
def write(call, graph_decoders, monkeypatch, flags):
    """A function that runs the command in this process, on a folder; returns what call returns."""
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)

    def write(folder, *argv):
        return call(command.generate_dataset, command.OPTIONS, *flags, '--data_dir', folder, *argv)

    return write


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """The folder for the files of a run that nothing interrupts, with seed 4."""
    return tmp_path_factory.mktemp('made') / 'data'


@pytest.fixture
def whole(write, made):
    """The contents of that folder."""
    if not made.exists():
        assert write(made, '--seed', 4) == (0, '', '')
    return contents(made)


def records(data):
    return [json.loads(line) for line in data.decode('utf-8').splitlines()]


# ---- what is in the files ----------------------------------------------------------------------


def test_the_files_have_the_published_form_and_the_texts_of_the_reference(whole, tiny, ending):
    """The ids count through the splits. The second sampling has the next seed."""
    assert sorted(whole) == sorted([*NAMES, *[f'{name}.settings.json' for name in NAMES]])
    n_ended = 0
    for suffix, seed, options in [('', 4, {}), ('-k40', 5, {'top_k': 40})]:
        splits = [records(whole[f'tiny{suffix}.{split}.jsonl']) for split in SIZES]
        assert [len(split) for split in splits] == [4, 2, 3]
        for index, record in enumerate(itertools.chain(*splits)):
            tokens, gaps = reference.sample(ending[1], tiny.hparams, [256], 32, seed, index,
                                            **options)
            assert min(gaps) > 1e-4, 'choose another seed'
            ended = 256 in tokens
            tokens = tokens[:tokens.index(256)] if ended else tokens
            assert list(record.items()) == [
                ('id', index), ('ended', ended), ('length', len(tokens)),
                ('text', tiny.decode(tokens)), ('synthetic', True)]
            n_ended += ended
    assert 0 < n_ended < 18


def test_the_settings_beside_say_how_to_make_a_file(whole):
    for name in NAMES:
        state = json.loads(whole[f'{name}.settings.json'].decode('utf-8'))
        settings, is_k40 = state['settings'], '-k40' in name
        assert state['first_sample'] == {'train': 0, 'valid': 4, 'test': 6}[name.split('.')[1]]
        assert (settings['seed'], settings['top_k']) == ((5, 40) if is_k40 else (4, 0))
        assert (settings['temperature'], settings['length'], settings['stop']) == (1, 32, True)


@pytest.mark.pure
@pytest.mark.parametrize('model_name, name', [
    ('124M', 'small-117M'), ('345M', 'medium-345M'), ('774M', 'large-762M'),
    ('1558M', 'xl-1542M'), ('mine', 'mine'), ('folder/mine/', 'mine')])
def test_the_released_models_have_their_published_names_and_ids(tmp_path, model_name, name):
    files = dataset.list_files(model_name, DatasetOptions(data_dir=str(tmp_path / 'a' / 'b')))
    assert [(path, indices) for path, _, indices in files] == [
        (str(tmp_path / 'a' / 'b' / f'{name}{suffix}.{split}.jsonl'), indices)
        for suffix in ('', '-k40')
        for split, indices in [('train', range(250000)), ('valid', range(250000, 255000)),
                               ('test', range(255000, 260000))]]


# ---- continuing --------------------------------------------------------------------------------


def test_killed_at_any_step_the_same_command_continues_to_the_same_bytes(
        write, whole, monkeypatch, tmp_path):
    """What a killed process leaves is copied before some steps of the decoder, then continued.

    Half a record is at the end of each file that has been begun. No seed is given again.
    """
    from gpt2.sampling.graph import GraphDecoder
    monkeypatch.setattr(output, 'FLUSH_SECONDS', 0)
    folder, copies, decode = tmp_path / 'data', [], GraphDecoder.decode

    def watched(*args, **options):
        copies.append(contents(folder))
        return decode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GraphDecoder, 'decode', watched)
        assert write(folder, '--seed', 4) == (0, '', '')
    assert contents(folder) == whole
    distinct = [copy for i, copy in enumerate(copies) if copy not in copies[:i]]
    assert len(distinct) > 8
    for number, there in enumerate(distinct[1::4]):
        broken = tmp_path / str(number)
        broken.mkdir()
        for name, data in there.items():
            torn = whole[name][len(data):][:9] if name.endswith('.jsonl') else b''
            (broken / name).write_bytes(data + torn)
        assert write(broken) == (0, '', '')
        assert contents(broken) == whole


def test_ctrl_c_keeps_what_is_finished(write, whole, monkeypatch, tmp_path):
    from gpt2.sampling.graph import GraphDecoder
    decode, n_calls = GraphDecoder.decode, []

    def watched(*args, **options):
        n_calls.append(1)
        if len(n_calls) == 12:
            raise KeyboardInterrupt
        return decode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GraphDecoder, 'decode', watched)
        assert write(tmp_path, '--seed', 4) == (130, '', '')
    found = contents(tmp_path)
    assert found[NAMES[0]] and all(whole[name].startswith(found[name]) for name in NAMES)
    assert found != whole
    assert write(tmp_path) == (0, '', '')
    assert contents(tmp_path) == whole


def test_a_complete_data_set_needs_no_model(write, whole, made, monkeypatch):
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', lambda *args: pytest.fail('the model was opened'))
    assert write(made) == (0, '', '') and contents(made) == whole


def test_a_seed_is_drawn_printed_and_kept(write, tmp_path):
    folder, other = tmp_path / 'data', tmp_path / 'other'
    sizes = ['--valid', 0, '--test', 0, '--train']
    status, stdout, stderr = write(folder, *sizes, 1)
    assert (status, stdout) == (0, '') and re.match(r'seed \d+\n$', stderr)
    assert file_names(folder)[::2] == ['tiny-k40.train.jsonl', 'tiny.train.jsonl']
    first = (folder / 'tiny.train.jsonl').read_bytes()
    assert write(folder, *sizes, 2) == (0, '', '')
    assert write(other, *sizes, 2, '--seed', stderr.split()[1]) == (0, '', '')
    assert contents(folder) == contents(other)
    assert contents(folder)['tiny.train.jsonl'].startswith(first)


def test_a_terminal_sees_how_many_texts_are_still_to_come(write, made, whole, monkeypatch,
                                                          tmp_path):
    for name in NAMES[:2]:
        for suffix in ('', '.settings.json'):
            shutil.copy(str(made / (name + suffix)), str(tmp_path))
    monkeypatch.setattr(dataset, 'tqdm', lambda **options: tqdm.tqdm(
        **{**options, 'disable': False, 'mininterval': 0}))
    status, stdout, stderr = write(tmp_path)
    assert (status, stdout) == (0, '') and contents(tmp_path) == whole
    counts = [int(count) for count in re.findall(r'(\d+)/18 \[', stderr)]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (6, 18)
    assert 'tiny.test.jsonl:' in stderr and 'texts/s' in stderr


# ---- several processes -------------------------------------------------------------------------


@only_long
def test_two_processes_make_the_same_files(call, flags, whole, tmp_path):
    assert call(command.generate_dataset, command.OPTIONS, *flags, '--seed', 4, '--processes', 2,
                '--data_dir', tmp_path) == (0, '', '')
    assert contents(tmp_path) == whole
    assert not multiprocessing.active_children()


@only_long
def test_a_worker_makes_the_same_files(write, whole, port, monkeypatch, tmp_path):
    """It hears that the work changes: the second sampling has another seed, and top-k 40."""
    from gpt2.cluster import chief
    monkeypatch.setattr(chief, 'LINGER', 0)
    status, stdout, stderr = write(tmp_path, '--seed', 4, '--serve', port)
    assert (status, stdout) == (0, '') and 'joined' in stderr
    assert contents(tmp_path) == whole


@pytest.mark.pure
@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_texts_are_taken_from_workers_by_turns(monkeypatch, n):
    """Also if one is late: then, what is there can be written meanwhile."""
    monkeypatch.setattr(workers, 'FLUSH_SECONDS', 0.01)
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(n)]
    for k, (_, sender) in enumerate(pipes):
        for index in range(10, 17)[k::n]:
            sender.send(index)
    job = workers.Job(None, range(10, 18))
    batches = workers.collect(job, [receiver for receiver, _ in pipes])
    assert [next(batches) for _ in range(7)] == [[index] for index in range(10, 17)]
    assert next(batches) == []
    pipes[7 % n][1].send(17)
    assert [batch for batch in batches if batch] == [[17]]


@pytest.mark.pure
@pytest.mark.parametrize('error, expected', [
    (OptionError('top_k', 'must be smaller'), UserError), (UserError('damaged'), UserError),
    (MemoryError('9 bytes'), MemoryError), (OSError(28, 'no space', 'lite'), OSError)], ids=repr)
def test_an_error_in_a_worker_is_raised_where_it_is_received(monkeypatch, error, expected):
    def fail():
        raise error

    monkeypatch.setattr(workers.runtime, 'follow', lambda parent: None)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    workers.work(sender, 0, [workers.Job(types.SimpleNamespace(open_decoder=fail), range(3))], 1, 0,
                 2)
    with pytest.raises(expected) as caught:
        workers.receive(receiver)
    assert type(caught.value) is expected and str(caught.value) == str(error)


class FakeRun:
    """A Run that needs no model, and is killed when it is to make the sample `deadly`."""

    model_dir = types.SimpleNamespace(encoder=types.SimpleNamespace(end_of_text=0))

    def __init__(self, deadly=None):
        self.deadly = deadly

    def open_decoder(self):
        return types.SimpleNamespace(engine='fake')

    def resume(self, settings):
        assert settings == {'engine': 'fake'}
        return self

    def generate(self, decoder, prompts, batch_size, fill):
        for index, prompt in prompts:
            if index == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            yield [Sequence(index, prompt, done=True)]


def made_by_workers(jobs):
    """Yield the indices of the samples that two processes make for jobs."""
    with workers.open_samples(jobs, DatasetOptions(processes=2)) as (engine, samples):
        assert engine == 'fake'
        for batches in samples:
            for sequence in itertools.chain.from_iterable(batches):
                yield sequence.index


@pytest.mark.pure
def test_processes_share_jobs_until_one_is_killed():
    """The other is ended."""
    jobs = [workers.Job(FakeRun(deadly), indices) for deadly, indices in [
        (None, range(3, 8)), (None, range(0)), (3, range(9))]]
    indices = []
    with pytest.raises(UserError, match='a process that made texts was killed.*fewer --processes'):
        for index in made_by_workers(jobs):
            indices.append(index)
    assert indices == [*range(3, 8), 0, 1, 2]
    assert not multiprocessing.active_children()


def children(process):
    """Return the ids of the workers of a process: those of its children that Python spawned."""
    path = f'/proc/{process.pid}/task/{process.pid}/children'
    with open(path, encoding='ascii') as file:
        pids = file.read().split()
    return [int(pid) for pid in pids
            if b'spawn_main' in open(f'/proc/{pid}/cmdline', 'rb').read()]


def is_running(pid):
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii') as file:
            return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@only_long
@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='finds processes in /proc')
def test_processes_that_end_in_every_way(flags, write, ending, tmp_path):
    """Ctrl-C, a worker that is killed, and all killed at once; then the files are completed."""
    more = ['--seed', 4, '--train', 150, '--processes']
    path, workers_seen = tmp_path / 'data' / NAMES[0], []

    def start_until(size):
        process = Command(SCRIPT, *flags, *more, 2, '--data_dir', tmp_path / 'data').start(
            start_new_session=True)
        while process.poll() is None and not (path.exists() and path.stat().st_size > size):
            time.sleep(0.05)
        assert process.poll() is None
        workers_seen[:] = children(process)
        assert len(workers_seen) == 2
        return process

    def end(process, status):
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (status, b'')
        for _ in range(100):
            if not any(map(is_running, workers_seen)):
                return stderr.decode('utf-8')
            time.sleep(0.1)
        pytest.fail('workers live on')

    process = start_until(0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    assert end(process, 130) == ''
    process = start_until(path.stat().st_size)
    os.kill(workers_seen[1], signal.SIGKILL)
    line = end(process, 1)
    assert line.count('\n') == 1 and 'a process that made texts was killed' in line
    process = start_until(path.stat().st_size)
    process.kill()
    assert end(process, -signal.SIGKILL) == ''
    for folder in ('data', 'whole'):
        assert write(tmp_path / folder, *more, 1) == (0, '', '')
    assert contents(tmp_path / 'data') == contents(tmp_path / 'whole')


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize('argv, words', [
    (['--seed', 5], ['tiny.train.jsonl', 'seed 4, now 5', '--data_dir']),
    (['--batch_size', 4], ['batch_size 3, now 4']),
    (['--train', 5], ['tiny.valid.jsonl starts with sample 4, not 5', '--train'])],
    ids=lambda value: value[0])
def test_other_settings_are_refused(write, made, whole, argv, words):
    status, stdout, stderr = write(made, *argv)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert all(word in stderr for word in words) and '--output' not in stderr
    assert contents(made) == whole


@pytest.mark.pure
def test_a_published_file_is_left_alone(refuse, unloaded, tmp_path):
    path = tmp_path / 'tiny.train.jsonl'
    path.write_text('{"id": 0, "ended": true, "length": 1, "text": "x"}\n')
    status, line = refuse(command.generate_dataset, command.OPTIONS, *unloaded, '--data_dir',
                          tmp_path)
    assert status == 1 and 'something else than samples; give another --data_dir' in line
    assert path.read_text().count('\n') == 1


@pytest.mark.pure
@pytest.mark.parametrize('argv, status, words', [
    (['--train', 0, '--valid', 0, '--test', 0], 2, '--train is 0'),
    (['--processes', 0], 2, '--processes'),
    (['--processes', 2, '--serve', 5000], 2, 'src/worker.py'),
    (['--seed', 2**64 - 1], 2, '--seed'),
    (['--data_dir', '/dev/null/x'], 1, '/dev/null/x')],
    ids=lambda value: str(value)[:30])
def test_what_cannot_be_done_is_refused(refuse, unloaded, argv, status, words):
    found, line = refuse(command.generate_dataset, command.OPTIONS, *unloaded, *argv)
    assert found == status and words in line
