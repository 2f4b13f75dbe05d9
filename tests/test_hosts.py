"""Training on several hosts: TF_CONFIG, how they meet, what they learn, and what if one dies."""
import contextlib
import json
import re
import signal
import socket
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import train
from gpt2 import runtime
from gpt2.cluster import meeting
from gpt2.cluster.hosts import Hosts, from_environment
from gpt2.cluster.server import LostError
from gpt2.errors import UserError
from gpt2.model_dir import open_model_dir
from gpt2.training.options import ComputeOptions, TrainingOptions
from helpers import SRC, Command, finish, only_long

pure = pytest.mark.pure

TWO = {'worker': ['a:1', 'b:2']}
THREE = Hosts(('a:1', 'b:2', 'c:3'))


# ---- TF_CONFIG ---------------------------------------------------------------------------------


def config(cluster, index, kind='worker'):
    return json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': index}})


@pure
@pytest.mark.parametrize('text, expected', [
    (None, Hosts()), ('', Hosts()),
    (config(TWO, 0), Hosts(('a:1', 'b:2'), 0)), (config(TWO, 1), Hosts(('a:1', 'b:2'), 1)),
    (config({'chief': ['c:3'], **TWO}, 0, 'chief'), Hosts(('c:3', 'a:1', 'b:2'), 0)),
    (config({'chief': ['c:3'], **TWO}, 1), Hosts(('c:3', 'a:1', 'b:2'), 2)),
    (config({'worker': ['[::1]:5', 'x-y.z_1:65535']}, 1), Hosts(('[::1]:5', 'x-y.z_1:65535'), 1)),
    (config({'worker': ['a:1']}, 0), Hosts()), (config({'chief': ['a:1']}, 0, 'chief'), Hosts()),
    (json.dumps({**json.loads(config(TWO, 1)), 'environment': 'cloud'}), Hosts(('a:1', 'b:2'), 1)),
], ids=str)
def test_the_hosts_of_tf_config(monkeypatch, text, expected):
    monkeypatch.delenv('TF_CONFIG', raising=False)
    if text is not None:
        monkeypatch.setenv('TF_CONFIG', text)
    assert from_environment() == expected


@pure
@pytest.mark.parametrize('text, words', [
    ('{', 'not JSON'), ('[]', 'not a JSON object'), ('[' * 100000, 'not JSON'), ('{}', 'lacks'),
    ('{"cluster": {}}', 'lacks'), ('{"cluster": 1, "task": 2}', 'lacks'),
    (config([], 0), 'lacks'), (config({}, 0), 'not that of'),
    (config({'chief': [], **TWO}, 0, 'chief'), 'not that of a chief'),
    *((config(TWO, index), 'index') for index in (2, -1, '0', 1.0, True, None, [0])),
    (config(TWO, 0, 'ps'), "'ps' is neither"), (config({**TWO, 'eval': ['e:1']}, 0), 'neither'),
    (config(TWO, 0, 7), 'neither'), (config(TWO, 0, ['worker']), 'lacks'),
    (config({'chief': ['c:1', 'd:1'], **TWO}, 0), 'several chiefs'),
    (config({'worker': ['a:1', 'a:1']}, 0), 'twice'), (config({'worker': 'a:1'}, 0), 'list'),
    *((config({'worker': ['a:1', address]}, 0), 'not HOST:PORT')
      for address in ('b', 'b:', ':2', 'b:0', 'b:65536', 'b:x', 'http://b:2', 'b c:2', 7, None))])
def test_a_tf_config_that_cannot_be_used(refuse, monkeypatch, text, words):
    monkeypatch.setenv('TF_CONFIG', text)
    status, line = refuse(train.train, train.OPTIONS, 'text', '--output', 'mine')
    assert status == 1
    assert line.startswith('TF_CONFIG cannot be used: ') and line.endswith('or unset it')
    assert words in line


@pure
def test_all_hosts_and_devices_share_a_batch(refuse, monkeypatch, unloaded):
    monkeypatch.setenv('TF_CONFIG', config(TWO, 1))
    for flags, numbers in (['--batch_size', 3], '2 x 1'), (['--devices', 4], '2 x 4'):
        status, line = refuse(train.train, train.OPTIONS, 'text', '--output', 'mine', *flags)
        assert (status, line.split()[0]) == (2, '--batch_size') and numbers in line
    shares = [Hosts(THREE.addresses, index).share(np.arange(6)).tolist() for index in range(3)]
    assert shares == [[0, 1], [2, 3], [4, 5]]


# ---- how hosts meet ----------------------------------------------------------------------------


class Notes:
    """Stands in for the boards of all hosts, in memory."""

    def __init__(self, n):
        self.notes, self.lost = ['{}'] * n, False

    def board(self, index):
        def exchange(note):
            if self.lost:
                raise LostError
            self.notes[index] = json.dumps(note)
            return list(map(json.loads, self.notes[:1] if index else self.notes))

        return types.SimpleNamespace(exchange=exchange)


@pytest.fixture
def meet(monkeypatch):
    """A function that makes the Meeting of host `index` of three, or n; all are closed in the end.

    What ends processes is in `meet.ends`: pairs of an index and a problem.
    """
    monkeypatch.setattr(meeting, 'BEAT', 0.005)
    monkeypatch.setattr(meeting, 'LINGER', 0.05)
    monkeypatch.setattr(meeting, 'is_closed', lambda address: False)
    monkeypatch.setattr(meeting.Meeting, '_end', lambda self, problem: (
        meet.ends.append((self._hosts.index, problem)), setattr(self, '_watching', False)))
    notes, made = {}, []

    def meet(index, n=3, **subject):
        board = notes.setdefault(n, Notes(n)).board(index)
        made.append(meeting.Meeting(Hosts(THREE.addresses[:n], index), board,
                                    dict({'text': 'abc', 'seed': 1}, **subject)))
        return made[-1]

    meet.ends, meet.notes = [], notes
    yield meet
    for one in made:
        one.close()


@pytest.fixture
def threads():
    """A function that calls functions at the same time: return their futures."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda *functions: [pool.submit(function) for function in functions]


def join_all(threads, *meetings):
    return [future.result(20) for future in threads(
        *(lambda step=step, one=one: one.join(step) for step, one in enumerate(meetings, 5)))]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pure
def test_all_hosts_learn_the_step_of_the_chief_and_leave_together(meet, threads):
    hosts = [meet(index) for index in range(3)]
    assert join_all(threads, *hosts) == [5, 5, 5]
    leaving = threads(hosts[1].leave, hosts[2].leave)
    time.sleep(0.1)
    assert not any(future.done() for future in leaving)  # the chief may still validate
    leaving += threads(hosts[0].leave)
    assert [future.result(20) for future in leaving] == [None] * 3
    assert meet.ends == []


@pure
def test_a_host_may_be_started_again_until_all_are_there(meet, threads, monkeypatch, capsys):
    monkeypatch.setattr(meeting, 'PATIENCE', 0.3)
    chief = threads(lambda: meet(0).join(7))[0]
    wait_until(lambda: 3 in meet.notes)
    killed = meet(1)
    wait_until(lambda: 'host 1 (b:2) joined' in capsys.readouterr().err)
    killed.close()
    time.sleep(0.5)
    others = threads(lambda: meet(2).join(0))
    wait_until(lambda: 'host 2 (c:3) joined' in capsys.readouterr().err)
    time.sleep(0.1)
    assert not chief.done() and not others[0].done()
    others += threads(lambda: meet(1).join(0))
    assert [future.result(20) for future in [chief, *others]] == [7, 7, 7]


@pure
def test_a_host_that_differs_is_refused_until_it_is_corrected(meet, threads, capsys):
    chief = threads(lambda: meet(0, n=2).join(7))[0]
    with pytest.raises(UserError) as error:
        meet(1, n=2, seed=2, text='xyz').join(0)
    assert str(error.value) == 'other text, seed than the chief has; use the same'
    assert f'host 1 (b:2) was refused: {error.value}\n' in capsys.readouterr().err
    assert not chief.done()
    assert (meet(1, n=2).join(0), chief.result(20)) == (7, 7)


@pure
@pytest.mark.parametrize('note', [
    {}, {'instance': 'x'}, {'instance': ['x'], 'phase': 'joining', 'subject': {}},
    {'instance': 'x', 'phase': None, 'subject': {}},
    {'instance': 'x', 'phase': 'joining', 'subject': [1]}], ids=str)
def test_what_is_no_note_is_not_heard(note):
    peer = meeting.Peer()
    peer.hear(note)
    assert (peer.note, peer.silence()) == ({}, float('inf'))
    whole = {'instance': 'x', 'phase': 'joining', 'subject': {}}
    peer.hear(whole)
    assert peer.note == whole and peer.silence() < 20


@pure
@pytest.mark.parametrize('index', [0, 1])
def test_a_host_that_falls_silent_is_lost(meet, threads, monkeypatch, index):
    hosts = [meet(0, n=2), meet(1, n=2)]
    join_all(threads, *hosts)
    hosts[index].close()
    monkeypatch.setattr(meeting, 'PATIENCE', 0.2)
    wait_until(lambda: meet.ends)
    name = THREE.name(index)
    assert meet.ends == [(1 - index, f'{name} does not answer')]
    assert name in ('host 0 (a:1)', 'host 1 (b:2)')


@pure
def test_a_chief_whose_port_is_closed_is_lost_soon(meet, threads, monkeypatch):
    hosts = [meet(0, n=2), meet(1, n=2)]
    join_all(threads, *hosts)
    monkeypatch.setattr(meeting, 'SUSPICION', 0.2)
    meet.notes[2].lost = True
    time.sleep(0.4)
    assert meet.ends == []
    monkeypatch.setattr(meeting, 'is_closed', lambda address: address == 'a:1')
    wait_until(lambda: (1, 'host 0 (a:1) does not answer') in meet.ends)


@pure
def test_a_port_is_closed_if_the_machine_says_so():
    port, = free_ports(1)
    with socket.socket() as taken:
        taken.bind(('localhost', 0))
        taken.listen()
        assert not meeting.is_closed(f'localhost:{taken.getsockname()[1]}')
    assert meeting.is_closed(f'localhost:{port}')
    assert not meeting.is_closed('nowhere.invalid:1')


@pure
@pytest.mark.parametrize('index', [0, 1])
def test_a_host_that_ends_says_why(meet, threads, index):
    """Also one that was started again meanwhile is not taken for the one that joined."""
    hosts = [meet(0, n=2), meet(1, n=2)]
    join_all(threads, *hosts)
    meet(1, n=2).close()
    assert meet.ends == []
    hosts[index].fail(UserError('the memory is too small'))
    wait_until(lambda: meet.ends)
    assert meet.ends == [(1 - index, f'{THREE.name(index)} has ended: the memory is too small')]


@pure
def test_the_line_at_the_end_of_a_process(monkeypatch, capsys):
    def end(status):
        raise SystemExit(f'ended with {status}')

    monkeypatch.setattr(sys, 'argv', ['src/train.py'])
    monkeypatch.setattr(meeting.os, '_exit', end)
    monkeypatch.setattr(meeting, 'LINGER', 0)
    for index in (0, 1):
        one = meeting.Meeting(Hosts(('a:1', 'b:2'), index), Notes(2).board(index), {})
        with pytest.raises(SystemExit, match='ended with 1'):
            one._end('host 1 (b:2) does not answer')
        one.close()
        assert capsys.readouterr() == ('', 'train.py: host 1 (b:2) does not answer; start all '
                                           'hosts again with --resume\n')


# ---- what they learn ---------------------------------------------------------------------------


def free_ports(n):
    """Return ports that nobody uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(('', 0))
        return [one.getsockname()[1] for one in sockets]


def steps_of_host(tf, start, hosts, tokens, n_steps, interrupted, **options):
    """Return (loss, stop) of steps of a host, in this thread, after which Ctrl-C comes."""
    from gpt2.cluster import collective
    from gpt2.training import loop
    options = TrainingOptions(**options).fit_model(start.hparams)
    session_config = tf.ConfigProto()
    with meeting.connect(hosts, session_config, {}, 0) as (target, step), \
            tf.Graph().as_default(), tf.Session(target, config=session_config) as session:
        group = collective.Collective(hosts) if hosts.n > 1 else collective.Alone()
        graph = loop.build_graph(start.hparams, options, ComputeOptions(), [''], group.average,
                                 hosts.index)
        if hosts.is_chief:
            loop.initialize(session, start, scratch=False)
        group.broadcast(session, tf.global_variables())
        steps = loop.Steps(session, graph, options, tokens, hosts, group)
        found = [steps.do(number, number == interrupted) for number in range(1, n_steps + 1)]
        return [loss for loss, _, _ in found], [stop for _, _, stop in found]


@pytest.mark.parametrize('n, options, error', [
    (2, {'accumulation': 2}, 1e-6),
    pytest.param(3, {}, 1e-6, marks=only_long),
    pytest.param(3, {'train_only': '1', 'accumulation': 3}, 1e-6, marks=only_long),
    pytest.param(2, {'optimizer': 'adafactor'}, 2e-4, marks=only_long)], ids=str)
def test_hosts_learn_what_one_does(tf, tiny, threads, monkeypatch, n, options, error):
    """In this process. Gradients are sent in several buckets, and all hear of Ctrl-C at once.

    Adafactor makes steps of full size of gradients that are zero but for rounding.
    """
    from gpt2.cluster import collective
    monkeypatch.setattr(collective, 'BUCKET', 2**14)
    monkeypatch.setattr(runtime, 'silent_stderr', contextlib.nullcontext)  # it is for one thread
    start = open_model_dir('tiny', str(tiny.models_dir))
    tokens = np.array(tiny.encode('The cat sat on the mat. ' * 20), np.uint16)
    options = dict(options, steps=8, batch_size=6, seq_len=16, learning_rate=0.01, seed=3)
    addresses = tuple(f'localhost:{port}' for port in free_ports(n))
    results = [future.result(100) for future in threads(*(
        lambda index=index: steps_of_host(tf, start, Hosts(addresses, index), tokens, 8,
                                          5 if index == n - 1 else None, **options)
        for index in range(n)))]
    one, _ = steps_of_host(tf, start, Hosts(), tokens, 8, None, **options)
    for losses, stops in results:
        assert losses == results[0][0] == pytest.approx(one, rel=error)
        assert stops == [number == 5 for number in range(1, 9)]
    assert one[-1] < one[0] - 0.2


def test_gradients_are_divided_into_buckets(tf):
    from gpt2.cluster import collective
    sizes = [2**20, 2**21, 1, 2**23, 5, 6, 2**22, 2**22]
    with tf.Graph().as_default():
        tensors = [tf.placeholder(tf.float32, [size]) for size in sizes]
        found = [[tensor.shape.num_elements() for tensor in bucket]
                 for bucket in collective.buckets(tensors)]
    assert found == [[2**20, 2**21, 1], [2**23], [5, 6], [2**22], [2**22]]


# ---- processes ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tiny, tmp_path_factory):
    """A folder with a model and a text."""
    folder = tmp_path_factory.mktemp('hosts')
    tiny.copy(folder / 'models' / 'tiny')
    (folder / 'book.txt').write_text('The cat sat on the mat. ' * 40)
    return folder


# A train.py that gets a signal before it does a step.
SIGNALLED = """
import os, sys
sys.argv[0] = 'train.py'
sys.path.insert(0, {src!r})
import train
from gpt2 import cli
from gpt2.training import loop
run_step, calls = loop.run_step, []
def signalled(*arguments):
    calls.append(arguments)
    if len(calls) == {step}:
        os.kill(os.getpid(), {signal})
    return run_step(*arguments)
loop.run_step = signalled
cli.run(train.train, *train.OPTIONS)
"""


@pytest.fixture(scope='module')
def command(folder):
    """A function from the name of a model to write, and the host, to the Command that trains it."""
    def command(output, addresses=None, index=0, text='book.txt', flags=()):
        env = {'TF_CONFIG': addresses and config({'worker': addresses}, index)}
        models = folder / ('models' if index == 0 else 'nothing is written here')
        return Command('train.py', folder / text, '--output', output, '--output_dir', models,
                       '--model_name', 'tiny', '--models_dir', folder / 'models', '--steps', 30,
                       '--val_every', 10, '--seq_len', 8, '--batch_size', 6, '--dropout', 0.1,
                       '--learning_rate', 0.003, '--sample_length', 0, *flags, env=env)

    return command


@pytest.fixture(scope='module')
def run_hosts(command):
    """A function that runs n hosts to their end; return their (status, stdout, stderr), as three.

    A host of a dict `signals` gets a signal, before a step.
    """
    def run(output, n=2, flags=(), signals=None):
        addresses = [f'localhost:{port}' for port in free_ports(n)]
        commands = [command(output, addresses, index, flags=flags) for index in range(n)]
        for index, (number, step) in (signals or {}).items():
            commands[index].arguments[1:2] = ['-c', SIGNALLED.format(
                src=str(SRC), step=step, signal=int(number))]
        with ThreadPoolExecutor(n) as pool:
            return list(zip(*pool.map(lambda one: one.run(), commands)))

    return run


def state(folder, name):
    """Return the bytes of all variables after the last step, and of the metrics."""
    path = folder / 'models' / name
    return [(path / file).read_bytes() for file in (
        'training/step-30.data-00000-of-00001', 'metrics.jsonl')]


@pytest.fixture(scope='module')
def unbroken(tf, run_hosts):
    """What the two hosts print that train models/unbroken."""
    statuses, stdouts, stderrs = run_hosts('unbroken')
    assert statuses == (0, 0), stderrs
    return stdouts, stderrs


@only_long
def test_two_hosts_learn_what_two_devices_do(unbroken, command, folder):
    """To the last bit, with dropout; the chief alone writes and prints."""
    status, stdout, _ = command('devices', flags=['--devices', 2]).run()
    assert status == 0
    assert state(folder, 'unbroken')[0] == state(folder, 'devices')[0]
    (first, second), (said, heard) = unbroken
    assert (first, second) == (stdout, '')
    assert 'private network' in said and 'host 1 (localhost:' in said
    assert 'waits for host 0' in heard and heard.count('\n') == 1
    assert not (folder / 'nothing is written here').exists()


def resume(run_hosts, folder, name, like, n=2):
    """Resume a training; it must end with the weights and metrics of another."""
    statuses, _, stderrs = run_hosts(name, n, ['--resume'])
    assert statuses == (0,) * n, stderrs
    assert 'resuming after step ' in stderrs[0]
    assert state(folder, name) == state(folder, like)


@only_long
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_host_ends_all_and_they_resume(unbroken, run_hosts, folder, victim):
    name = f'killed-{victim}'
    statuses, _, stderrs = run_hosts(name, signals={victim: (signal.SIGKILL, 15)})
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 1), stderrs
    last = stderrs[1 - victim].splitlines()[-1]
    assert last.startswith(f'train.py: host {victim} (localhost:'), stderrs
    assert last.endswith(') does not answer; start all hosts again with --resume')
    resume(run_hosts, folder, name, 'unbroken')


@only_long
def test_of_three_hosts_one_is_killed(run_hosts, folder):
    statuses, _, stderrs = run_hosts('three', 3)
    assert statuses == (0, 0, 0), stderrs
    statuses, _, stderrs = run_hosts('broken', 3, signals={2: (signal.SIGKILL, 24)})
    assert statuses == (1, 1, -signal.SIGKILL), stderrs
    resume(run_hosts, folder, 'broken', 'three', 3)


@only_long
def test_ctrl_c_on_any_host_stops_all_after_the_same_step(unbroken, run_hosts, folder):
    statuses, stdouts, stderrs = run_hosts('interrupted', signals={1: (signal.SIGINT, 15)})
    assert statuses == (130, 130), stderrs
    assert re.findall('step ([0-9]+)', stdouts[0]) == ['10', '15']
    assert 'Traceback' not in str(stderrs)
    statuses, _, stderrs = run_hosts('interrupted', flags=['--resume'])
    assert statuses == (0, 0), stderrs
    assert state(folder, 'interrupted')[0] == state(folder, 'unbroken')[0]


@only_long
def test_a_host_that_diverges_is_not_alone(run_hosts):
    """All have the same mean loss."""
    statuses, _, stderrs = run_hosts('diverged', flags=['--learning_rate', 1e30])
    assert statuses == (1, 1), stderrs
    for stderr in stderrs:
        assert 'training diverged at step' in stderr.splitlines()[-1]


def test_a_host_with_another_text_is_refused_on_both_sides(tf, command, folder):
    (folder / 'other.txt').write_text('The cat sat on the mat! ' * 40)
    addresses = [f'localhost:{port}' for port in free_ports(2)]
    chief = command('refused', addresses).start()
    status, stdout, stderr = command('refused', addresses, 1, 'other.txt').run()
    words = 'other text than the chief has; use the same\n'
    assert (status, stdout) == (1, '') and stderr.endswith(f'\ntrain.py: {words}')
    said = b''
    while words.encode('utf-8') not in said:
        said += chief.stderr.readline()
        assert chief.poll() is None, said
    assert said.decode('utf-8').endswith(f'\nhost 1 ({addresses[1]}) was refused: {words}')
    chief.send_signal(signal.SIGINT)  # while it waits
    assert finish(chief) == (-signal.SIGINT, '', '')
