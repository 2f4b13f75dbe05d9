"""The chief: offers work to workers, checks what they send back, and puts it in order.

What the work is it does not know. A Work says that: samples.Work, or scores.Work.
"""

import contextlib
import json
import os
import sys
import time

from tqdm import tqdm

from gpt2 import runtime
from gpt2.cli import printable
from gpt2.cluster import link, server, worker
from gpt2.cluster.leases import Leases
from gpt2.errors import UserError

PATIENCE = 10  # seconds of silence after which a worker's items are offered to others
ROUND_SECONDS = 0.1  # between looks at what workers have reported
LINGER = 2  # seconds in which workers can hear that the work has ended
NONSENSE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@contextlib.contextmanager
def serve(work, options):
    """Yield a Chief that shares a Work with whoever joins, until the block ends.

    Args:
      options: ServeOptions with the port, and whether a worker is started on this machine.
    """
    queues = link.Link(link.start_server(options.serve))
    print(f'workers may join: python3 src/worker.py HOST:{options.serve}; whoever reaches this '
          'port controls this process, so keep it within a private network', file=sys.stderr)
    with closing(queues):
        chief = Chief(queues, work)
        with local_worker(options.work, options.serve, work.model_dir) as chief.local:
            yield chief


@contextlib.contextmanager
def closing(queues):
    """Tell the workers in the end that there is no more work."""
    try:
        yield
    finally:
        with contextlib.suppress(server.LostError):
            queues.close()
            time.sleep(LINGER)


@contextlib.contextmanager
def local_worker(wanted, port, model_dir):
    """Yield the process of a worker on this machine, None if it is not wanted."""
    if not wanted:
        yield None
        return
    with runtime.child_process(worker.work_as_child, f'localhost:{port}',
                               os.path.dirname(model_dir.path), os.getpid()) as process:
        yield process


class Chief:
    """Passes items on between a Link and Leases.

    local: the process of the worker on this machine, None if there is none.
    """

    def __init__(self, link_, work):
        self._link, self.local = link_, None
        self._heard = {}  # when each worker was last heard of
        self.describe(work)

    def describe(self, work):
        """Say what the work is about from now on."""
        self._work, self._digest = work, link.digest(link.encode(work.subject))
        self._link.describe(work.subject)

    def share(self, items):
        """Let workers do items of the Work, an iterator over them in the order of their indices.

        Yields, whenever some are finished, a list as `Leases.ready` returns it. Raises UserError if
        the only worker has ended.
        """
        self._leases = Leases(items, self._work.lease_size, PATIENCE)
        self._heard = dict.fromkeys(self._heard, time.monotonic())  # nobody has listened meanwhile
        while not self._leases.complete:
            try:
                self._offer(time.monotonic())
                reports = self._link.hear(ROUND_SECONDS)
            except server.LateError:  # this machine was asleep, or is very busy
                continue
            if any([self._hear(report, time.monotonic()) for report in reports]):
                yield self._leases.ready()

    def _offer(self, now):
        room = self._link.room()
        for items in self._leases.offers(room, link.N_LEASES - room, now):
            self._link.offer({'digest': self._digest, 'items': [*map(self._work.encode, items)]})
        for name in [name for name, heard in self._heard.items() if now - heard > PATIENCE]:
            del self._heard[name]
            tell(f'{name} is silent; its work is offered to others')
        if not self._heard and self.local and not self.local.is_alive():
            raise UserError('the worker on this machine has ended, and there is no other; run the '
                            'same command again')

    def _hear(self, data, now):
        """Take in a report, bytes. Return whether an item was finished."""
        try:
            report = json.loads(data)
            if report['digest'] != self._digest:
                return False  # of a worker that has not yet heard of other work
            name, note = as_name(report['worker']), as_name(report.get('note', ''))
            held, returned = link.as_indices(report['held']), link.as_indices(report['returned'])
            finished = [self._decode(*item) for item in report['finished']]
        except NONSENSE:
            tell('a report that makes no sense was left out')
            return False
        if name not in self._heard or note:
            tell(f'{name} {note or "joined"}')
        self._heard[name] = now
        self._leases.hear(held, now)
        self._leases.give_back(returned)
        finished = list(filter(None, finished))
        for item in finished:
            self._leases.finish(item)
        return bool(finished)

    def _decode(self, index, *result):
        """Return a finished item, None if it is not wanted (any more). Raises as Work.decode."""
        wanted = self._leases.wanted(index)
        return wanted and self._work.decode(wanted, *result)


def tell(line):
    """Print a line above the progress bar."""
    tqdm.write(printable(line), sys.stderr)


def as_name(value):
    """Return a text of a worker. Raises ValueError if it is none, or long."""
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError('not a name')
    return value
