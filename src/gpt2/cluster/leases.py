"""Which samples are still to be made, and who makes them. Knows no network and no clock."""

import collections
import itertools
import math

from gpt2.sampling.batching import Sequence

WINDOW = 5000  # samples in memory: a late one holds up no more than these

# A sample that is not finished, or waits for an earlier one: its Sequence, and when its worker was
# last heard of, None while it waits in the queue.
Sample = collections.namedtuple('Sample', 'sequence heard')


class Leases:
    """Shares out samples to workers, `size` in a lease, and puts them in order again.

    What a worker has taken and is silent about for `patience` seconds is offered again. So no
    sample is lost, and of those that are made twice the second is dropped.
    """

    def __init__(self, prompts, size, patience):
        """Args: prompts: an iterator over (index, ids), in order."""
        self._prompts, self._size, self._patience = prompts, size, patience
        self._samples = collections.OrderedDict()  # index -> Sample
        self._queued = collections.deque()  # the indices in each lease that waits in the queue
        self._complete = False

    @property
    def complete(self):
        """Whether all samples are finished and were returned by `ready`."""
        return self._complete and not self._samples

    def offers(self, room, n_queued, now):
        """Return leases to offer, at most `room`, as lists of (index, ids).

        `n_queued` leases that were returned before are still in the queue, from which the oldest is
        always taken first.
        """
        while len(self._queued) > n_queued:
            self._touch(self._queued.popleft(), now, only_new=True)
        waiting = itertools.chain(self._silent(now), self._admit())
        leases = []
        while len(leases) < room:
            sequences = list(itertools.islice(waiting, self._size))
            if not sequences:
                break
            self._queued.append([sequence.index for sequence in sequences])
            leases.append([(sequence.index, sequence.prompt) for sequence in sequences])
        return leases

    def hear(self, indices, now):
        """Note that these samples are in the hands of a worker that is alive."""
        self._touch(indices, now)

    def give_back(self, indices):
        """Note that nobody makes these samples now."""
        self._touch(indices, -math.inf)

    def sequence(self, index):
        """Return the Sequence of a sample that is wanted, or None if it is not, or not any more."""
        sample = self._samples.get(index)
        return sample and not sample.sequence.done and sample.sequence or None

    def finish(self, sequence):
        """Note a finished Sequence of a sample that is wanted."""
        self._samples[sequence.index] = Sample(sequence, None)

    def ready(self):
        """Return the Sequences that are wanted or finished, in order; forget the finished ones."""
        sequences = [sample.sequence for sample in self._samples.values()]
        for sequence in itertools.takewhile(lambda sequence: sequence.done, sequences):
            del self._samples[sequence.index]
        return sequences

    def _touch(self, indices, now, only_new=False):
        for index in indices:
            sample = self._samples.get(index)
            if sample and not (only_new and sample.heard is not None):
                self._samples[index] = sample._replace(heard=now)

    def _silent(self, now):
        """Yield the samples whose workers have been silent for too long."""
        for index, (sequence, heard) in list(self._samples.items()):
            if heard is not None and now - heard > self._patience and not sequence.done:
                self._samples[index] = Sample(sequence, None)
                yield sequence

    def _admit(self):
        """Yield new samples."""
        while len(self._samples) < WINDOW:
            index, prompt = next(self._prompts, (None, None))
            if index is None:
                self._complete = True
                return
            self._samples[index] = Sample(Sequence(index, prompt), None)
            yield self._samples[index].sequence
