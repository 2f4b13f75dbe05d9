"""The chief: offers samples to workers, checks what they send back, and puts it in order."""

import contextlib
import json
import math
import os
import sys
import time

from tqdm import tqdm

from gpt2 import runtime
from gpt2.cli import printable
from gpt2.cluster import link, worker
from gpt2.cluster.leases import Leases
from gpt2.errors import UserError
from gpt2.sampling import batching
from gpt2.sampling.decoder import Scores

PATIENCE = 10  # seconds of silence after which a worker's samples are offered to others
LINGER = 2  # seconds in which workers can hear that the work has ended


def generate(run, prompts, subject, options):
    """Let workers make a text of each prompt; otherwise see `batching.generate`.

    Args:
      subject: the settings of the samples, a dict.
      options: OutputOptions with the port, and whether a worker is started on this machine.
    """
    chief = link.Link(link.start_server(options.serve))
    chief.describe(subject)
    print(f'workers may join: python3 src/worker.py HOST:{options.serve}; whoever reaches this '
          'port controls this process, so keep it within a private network', file=sys.stderr)
    leases = Leases(prompts, max(1, options.batch_size // 4), PATIENCE)
    with closing(chief), local_worker(options.work, options.serve, run.model_dir) as process:
        yield from Chief(chief, leases, run, link.digest(link.encode(subject)), process).generate()


@contextlib.contextmanager
def closing(chief):
    """Tell the workers in the end that there is no more work."""
    try:
        yield
    finally:
        with contextlib.suppress(link.LostError):
            chief.close()
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
    """Passes samples on between a Link and Leases."""

    def __init__(self, link_, leases, run, digest, local=None):
        """Args:
          digest: of the subject; reports of another one are left out.
          local: the process of the worker on this machine, if there is one.
        """
        self._link, self._leases, self._digest, self._local = link_, leases, digest, local
        self._n_vocab = run.model_dir.hparams.n_vocab
        self._has_scores = bool(run.generation.logprobs)
        self._n_top = min(run.generation.n_top, self._n_vocab)
        self._criteria = batching.stop_criteria(run.generation, run.model_dir.encoder)
        self._token_bytes = batching.cached_token_bytes(run.model_dir.encoder)
        self._heard = {}  # when each worker was last heard of

    def generate(self):
        """Yield lists of Sequences as `batching.generate` does."""
        while not self._leases.complete:
            self._offer(time.monotonic())
            reports = self._link.hear(timeout=0.2)
            if any([self._hear(report, time.monotonic()) for report in reports]):
                yield self._leases.ready()

    def _offer(self, now):
        room = self._link.room()
        for samples in self._leases.offers(room, link.N_LEASES - room, now):
            self._link.offer({'digest': self._digest, 'samples': samples})
        for name in [name for name, heard in self._heard.items() if now - heard > PATIENCE]:
            del self._heard[name]
            tell(f'{name} is silent; its samples are offered to others')
        if not self._heard and self._local and not self._local.is_alive():
            raise UserError('the worker on this machine has ended, and there is no other; the same '
                            'command continues')

    def _hear(self, data, now):
        """Take in a report, bytes. Return whether a sample was finished."""
        try:
            report = json.loads(data)
            if report['digest'] != self._digest:
                return False  # of a worker that has not yet heard of a new run
            name, note = as_name(report['worker']), as_name(report.get('note', ''))
            held, returned = as_indices(report['held']), as_indices(report['returned'])
            finished = [self._replay(*sample) for sample in report['finished']]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            tell('a report that makes no sense was left out')
            return False
        if name not in self._heard or note:
            tell(f'{name} {note or "joined"}')
        self._heard[name] = now
        self._leases.hear(held, now)
        self._leases.give_back(returned)
        finished = list(filter(None, finished))
        for sequence in finished:
            self._leases.finish(sequence)
        return bool(finished)

    def _replay(self, index, tokens, scores):
        """Return the Sequence of reported tokens, None if it is not wanted (any more).

        The text is made from the tokens here. Raises ValueError if they cannot be a whole sample.
        """
        wanted = self._leases.sequence(index)
        if wanted is None:
            return None
        check_tokens(tokens, self._n_vocab)
        if self._has_scores:
            scores = check_scores(scores, len(tokens), self._n_top, self._n_vocab)
        elif scores is not None:
            raise ValueError('nobody asked for scores')
        sequence = batching.Sequence(index, wanted.prompt)
        batching.extend(sequence, tokens, scores, self._token_bytes, self._criteria)
        if not sequence.done or len(sequence.tokens) != len(tokens):
            raise ValueError('no sample ends there')
        return sequence


def tell(line):
    """Print a line above the progress bar."""
    tqdm.write(printable(line), sys.stderr)


def as_name(value):
    """Return a text of a worker. Raises ValueError if it is none, or long."""
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError('not a name')
    return value


def as_indices(values):
    """Return a list of indices. Raises ValueError if it is none."""
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise ValueError('not a list of indices')
    return values


def check_tokens(tokens, n_vocab):
    """Raise ValueError unless something is a list of tokens."""
    if not all(0 <= token < n_vocab for token in as_indices(tokens)):
        raise ValueError('not in the vocabulary')


def check_scores(scores, n_tokens, n_top, n_vocab):
    """Return the Scores of tokens from a list, with so many of the likeliest at each place.

    Raises ValueError or TypeError if it has no such Scores.
    """
    scores = Scores(*scores)
    for part, width in zip(scores, (2, n_top, n_top)):
        if len(part) != n_tokens or any(len(place) != width for place in part):
            raise ValueError('not the scores of these tokens')
    for place in scores.top_tokens:
        check_tokens(place, n_vocab)
    if not all(type(value) is float and math.isfinite(value)
               for place in [*scores.logprobs, *scores.top_logprobs] for value in place):
        raise ValueError('not log probabilities')
    return scores
