"""Hosts that train together: they meet, watch one another, and leave together.

A thread of each host exchanges notes with the chief twice a second, see `board`. A note says how
far its host is, and what went wrong; that it changes is the sign of life. Without this a lost host
would hold up the others for ever: TensorFlow 1.15 waits for it in a collective operation, which
nothing can cancel. So the thread ends the process.
"""

import contextlib
import itertools
import os
import secrets
import socket
import sys
import threading
import time

from tqdm import tqdm

from gpt2 import cli, runtime
from gpt2.cluster import server
from gpt2.cluster.board import JOB, Board
from gpt2.cluster.subject import differences
from gpt2.errors import UserError

BEAT = 0.5  # seconds from one note to the next
PATIENCE = 20  # seconds of silence after which a host is lost; a machine may be very busy
SUSPICION = 3  # the same if its port is closed, too: the process has ended
LINGER = 2  # seconds in which the others can read why a host ends


@contextlib.contextmanager
def connect(hosts, config, subject, step):
    """Wait for the other hosts, and yield the target of sessions and the step to start after.

    A host that is alone need not wait. The block must do the same collective operations on all
    hosts. When it ends, this one waits until no other needs it; if it ends with an error, the
    others end, too. Ctrl-C ends the process at once, unless the block handles it.

    Args:
      config: the tf.ConfigProto of the server and the sessions, which is completed.
      subject: what must be the same on all hosts, a dict.
      step: what the chief yields to all.

    Raises:
      UserError: the port cannot be opened, or the subject is not the chief's.
    """
    if hosts.n == 1:
        yield '', step
        return
    tf = runtime.import_tensorflow()
    with runtime.default_sigint():
        configure(config, hosts.index)
        target = server.start({JOB: hosts.addresses}, JOB, hosts.index, config,
                              'name another in TF_CONFIG, on all hosts')
        tell(f'host {hosts.index} of {hosts.n} waits for '
             f'{"the others" if hosts.is_chief else hosts.name(0)}; whoever reaches port '
             f'{hosts.port} controls this process, so keep it within a private network')
        chief = target if hosts.is_chief else f'grpc://{hosts.addresses[0]}'
        meeting = Meeting(hosts, Board(chief, hosts.n, hosts.index), subject)
        try:
            yield target, meeting.join(step)
            meeting.leave()
        except BaseException as error:
            if isinstance(error, tf.errors.OpError):
                error = meeting.explain(error)
            meeting.fail(error)
            raise error
        finally:
            meeting.close()


def configure(config, index):
    """Complete the tf.ConfigProto of host `index`."""
    tf = runtime.import_tensorflow()
    # Without the filter, a session would wait until it reaches all hosts.
    config.device_filters.append(f'/job:{JOB}/task:{index}')
    # Without the leader, collective operations would wait for ever.
    config.experimental.collective_group_leader = f'/job:{JOB}/replica:0/task:0'
    config.experimental.collective_nccl = bool(
        tf.config.experimental.list_physical_devices('GPU'))


class Meeting:
    """One host's part in a meeting."""

    def __init__(self, hosts, board, subject):
        self._hosts, self._board, self._subject = hosts, board, subject
        self._note = {'instance': secrets.token_hex(8), 'phase': 'joining', 'subject': subject}
        self._peers = {index: Peer() for index in (range(1, hosts.n) if hosts.is_chief else [0])}
        self._watching, self._lock = False, threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self, step):
        """Wait until all hosts are there; return the chief's step. From then on, watch them.

        Raises UserError if this host's subject is not the chief's.
        """
        step = self._admit_all(step) if self._hosts.is_chief else self._wait_for_chief()
        self._watching = True
        return step

    def leave(self):
        """Wait until all hosts leave: none may end while others read from it."""
        if self._hosts.is_chief:
            self._wait_for_phase('done')
            self._watch_no_more()
            self._say(phase='over')
            self._wait_for_phase('left', PATIENCE)
        else:
            self._say(phase='done')
            self._wait_for_phase('over')
            self._watch_no_more()
            self._say(phase='left')

    def explain(self, error):
        """Return the UserError for an error of TensorFlow, unless it comes from a lost host.

        Then the watch ends the process meanwhile, with a line that names the host.
        """
        time.sleep(PATIENCE)
        return UserError(f'TensorFlow failed ({error.message}); start all hosts again with '
                         '--resume')

    def fail(self, error):
        """Tell the others that this host ends with an error."""
        if self._watching:
            self._watch_no_more()
            self._say(problem=f'{self._hosts.name(self._hosts.index)} has ended: {error}')
            time.sleep(LINGER)

    def close(self):
        """Write the last note, and end the thread, which Python could not end without a crash."""
        self._closing.set()
        self._thread.join()

    def _admit_all(self, step):
        """Let the other hosts join the chief; return the step that it is told."""
        admitted, refused = {}, {}
        while len(admitted) < len(self._peers):
            for index, peer in self._peers.items():
                note = peer.note
                if is_lost(peer.silence(), self._hosts.addresses[index]):
                    admitted.pop(index, None)
                elif note['instance'] not in {*admitted.values(), *refused}:
                    differ = differences(note['subject'], self._subject)
                    if differ:
                        refused[note['instance']] = differ
                        admitted.pop(index, None)
                        self._say(refused=refused)
                        tell(f'{self._hosts.name(index)} was refused: {differ}')
                    else:
                        admitted[index] = note['instance']
                        tell(f'{self._hosts.name(index)} joined')
            time.sleep(BEAT)
        for index, instance in admitted.items():
            self._peers[index].instance = instance
        self._say(step=step, admitted=list(admitted.values()))
        return step

    def _wait_for_chief(self):
        """Return the chief's step once it lets this host join. Raises UserError if it does not."""
        peer, instance = self._peers[0], self._note['instance']
        while True:
            note = peer.note
            if instance in note.get('admitted', ()):
                peer.instance = note['instance']
                return note['step']
            if instance in note.get('refused', ()):
                raise UserError(note['refused'][instance])
            time.sleep(BEAT)

    def _wait_for_phase(self, phase, timeout=float('inf')):
        """Wait until all others are in a phase, but only for so many seconds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and any(
                peer.note['phase'] != phase for peer in self._peers.values()):
            time.sleep(BEAT / 5)

    def _say(self, **values):
        self._note = dict(self._note, **values)

    def _watch_no_more(self):
        with self._lock:
            self._watching = False

    def _run(self):
        """Exchange notes, and end the process if another host is lost, or has ended."""
        for beat in itertools.count():
            is_last = self._closing.wait(BEAT)
            with contextlib.suppress(server.LostError):
                notes = self._board.exchange(dict(self._note, beat=beat))
                for index, peer in self._peers.items():
                    peer.hear(notes[index])
            if is_last:
                return
            with self._lock:
                if self._watching:
                    self._check()

    def _check(self):
        for index, peer in self._peers.items():
            problem = peer.note.get('problem')
            if is_lost(peer.silence(), self._hosts.addresses[index]):
                problem = f'{self._hosts.name(index)} does not answer'
            if problem:
                self._end(problem)

    def _end(self, problem):
        """End the process with a line, whatever the main thread is doing."""
        if self._hosts.is_chief:
            with contextlib.suppress(server.LostError):
                self._board.exchange(dict(self._note, problem=problem))
        with tqdm.external_write_mode(sys.stderr), contextlib.suppress(SystemExit):
            cli.fail(f'{problem}; start all hosts again with --resume', 1)
        sys.stderr.flush()
        if self._hosts.is_chief:
            time.sleep(LINGER)
        os._exit(1)


class Peer:
    """Another host: its last note, and which process writes it, None before that is fixed."""

    def __init__(self):
        self.note, self.instance, self._heard = {}, None, -float('inf')

    def hear(self, note):
        """Take in a note, if it is a new one of that process."""
        if is_note(note) and note != self.note and self.instance in (None, note['instance']):
            self.note, self._heard = note, time.monotonic()

    def silence(self):
        """Return how many seconds nothing was heard of the host."""
        return time.monotonic() - self._heard


def is_note(note):
    """Return whether a dict is a note of a host."""
    return (isinstance(note.get('subject'), dict)
            and all(isinstance(note.get(name), str) for name in ('instance', 'phase')))


def is_lost(silence, address):
    """Return whether a host, HOST:PORT, can be given up after so many seconds of silence."""
    return silence > PATIENCE or (silence > SUSPICION and is_closed(address))


def is_closed(address):
    """Return whether a machine says that nobody listens on HOST:PORT."""
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:  # which says nothing about the process
        pass
    return False


def tell(line):
    """Print a line on stderr at once, which Python would not do before 3.9."""
    print(cli.printable(line), file=sys.stderr, flush=True)
