"""A worker: takes work from the chief, does it, and reports what is finished."""

import contextlib
import math
import os
import socket
import sys
import threading
import time

from gpt2 import cli, files, runtime
from gpt2.cluster import link, samples, scores, server
from gpt2.errors import UserError

WAIT = 120  # seconds until a chief that does not answer is given up
REPORT_SECONDS = 0.5  # between reports, if something is finished
ALIVE_SECONDS = 2  # and if not
MAKERS = {'samples': samples.Maker, 'scores': scores.Maker}  # by the kinds of work


def work(address, models_dir):
    """Work for the chief at HOST:PORT until it has ended. Raises UserError."""
    chief, worker = link.Link('grpc://' + address), None
    with contextlib.suppress(server.EndedError):
        while True:
            subject = wait_for_subject(chief, address)
            if worker is None or worker.digest != link.digest(subject):
                worker = None  # whose memory the next one may need
                worker = open_worker(chief, subject, models_dir)
            with contextlib.suppress(server.LostError):
                worker.work()


def work_as_child(address, models_dir, parent):
    """Work as a child process of the chief, and end with it."""
    runtime.follow(parent)
    try:
        work(address, models_dir)
    except (UserError, MemoryError) as error:
        cli.fail(error, 1)


def wait_for_subject(chief, address):
    """Return what the work of the chief is about, bytes. Raises UserError if it stays silent."""
    start, said = time.monotonic(), False
    while True:
        try:
            return chief.subject()
        except server.LostError:
            if time.monotonic() - start > WAIT:
                raise UserError(f'no chief answers at {address}; start it with --serve, and check '
                                'the address')
        if not said:
            print(f'waiting for the chief at {address}', file=sys.stderr)
            said = True
        time.sleep(1)


def open_worker(chief, subject, models_dir):
    """Return the Worker for the work of a chief, who hears of it if there can be none.

    Raises UserError if the model or TensorFlow is not the chief's.
    """
    try:
        return Worker(chief, subject, models_dir)
    except UserError as error:
        with contextlib.suppress(server.LostError):
            chief.report(report(link.digest(subject), note=f'cannot work: {error}'[:200]))
        raise


def report(digest, held=(), returned=(), finished=(), note=''):
    """Return a report: the indices in hand and given back, finished items, and a note."""
    return {'digest': digest, 'worker': f'{socket.gethostname()[:50]}:{os.getpid()}',
            'held': list(held), 'returned': list(returned), 'finished': list(finished),
            'note': note}


def open_maker(subject, models_dir):
    """Return what does the work of a subject, bytes. Raises UserError if it cannot be done here."""
    try:
        subject = files.parse_object(subject)
        maker = MAKERS[subject['kind']]
    except (ValueError, TypeError, KeyError):
        raise UserError('the chief has work of a kind that is not known here; use the same version')
    return maker(subject, models_dir)


class Worker:
    """Does the work that a chief describes."""

    def __init__(self, chief, subject, models_dir):
        """Load the model. Raises UserError if it, or TensorFlow, is not the chief's."""
        self._chief, self.digest = chief, link.digest(subject)
        self._maker = open_maker(subject, models_dir)

    def work(self):
        """Work until the chief has other work. Raises LostError and EndedError."""
        with Reporter(self._chief, self.digest, self._maker.encode) as reporter:
            while link.digest(self._chief.subject()) == self.digest:
                lease = self._take(1)
                if lease:
                    for items in self._maker.make(self._items(lease, reporter)):
                        reporter.add(items)

    def _items(self, lease, reporter):
        """Yield the items of a lease, and then of others as long as there are some."""
        while lease:
            reporter.hold(item.index for item in lease)
            yield from lease
            lease = self._take(0.3)

    def _take(self, timeout):
        """Return a lease, a list of items, or None if none comes for so many seconds."""
        data = self._chief.take(timeout)
        if data is None:
            return None
        try:
            lease = files.parse_object(data)
            if lease['digest'] == self.digest:
                return [self._maker.decode(*item) for item in lease['items']]
            returned = link.as_indices([index for index, *_ in lease['items']])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            print('a lease that makes no sense was left out', file=sys.stderr)
            return None
        self._chief.report(report(lease['digest'], returned=returned))  # other work has begun
        return None


class Reporter:
    """A thread that keeps the chief informed, also while the model is busy."""

    def __init__(self, chief, digest, encode):
        """Args: encode: a function from a finished item to what is reported of it."""
        self._chief, self._digest, self._encode = chief, digest, encode
        self._held, self._finished, self._lock = {}, [], threading.Lock()
        self._leaving, self._ended, self._last = threading.Event(), False, -math.inf
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        """Send what is left to send, and give back what is in hand."""
        self._leaving.set()
        self._thread.join()
        self._send(leaving=True)

    def hold(self, indices):
        """Note items that were taken."""
        with self._lock:
            self._held.update(dict.fromkeys(indices))

    def add(self, items):
        """Note those of these items that are done. Raises EndedError if the chief has ended."""
        with self._lock:
            for item in items:
                if item.done and item.index in self._held:
                    del self._held[item.index]
                    self._finished.append(self._encode(item))
        if self._ended:
            raise server.EndedError

    def _run(self):
        while not self._leaving.wait(REPORT_SECONDS):
            if self._finished or time.monotonic() - self._last > ALIVE_SECONDS:
                self._send()

    def _send(self, leaving=False):
        self._last = time.monotonic()
        with self._lock:
            held, finished = list(self._held), self._finished[:]
        message = report(self._digest, () if leaving else held, held if leaving else (), finished,
                         'left' if leaving else '')
        try:
            self._chief.report(message)
            with self._lock:
                del self._finished[:len(finished)]
        except server.LostError:
            pass  # it may come back
        except server.EndedError:
            self._ended = True
