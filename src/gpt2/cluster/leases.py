"""Which items of the work are still to be done, and who does them. Knows no network and no clock.

An item is a text to make, a batch of windows to score: anything with an `index`, and a property
`done`. A finished one replaces the one that was wanted.
"""

import collections
import itertools
import math

WINDOW = 5000  # items in memory: a late one holds up no more than these

# An item that is not finished, or waits for an earlier one, and when its worker was last heard of,
# None while it waits in the queue.
Entry = collections.namedtuple('Entry', 'item heard')


class Leases:
    """Shares out items to workers, `size` in a lease, and puts them in order again.

    What a worker has taken and is silent about for `patience` seconds is offered again. So no
    item is lost, and of those that are done twice the second is dropped.
    """

    def __init__(self, items, size, patience):
        """Args: items: an iterator over items that are not done, in the order of their indices."""
        self._new, self._size, self._patience = items, size, patience
        self._entries = collections.OrderedDict()  # index -> Entry
        self._queued = collections.deque()  # the indices in each lease that waits in the queue
        self._complete = False

    @property
    def complete(self):
        """Whether all items are finished and were returned by `ready`."""
        return self._complete and not self._entries

    def offers(self, room, n_queued, now):
        """Return leases to offer, lists of items, at most `room` of them.

        `n_queued` leases that were returned before are still in the queue, from which the oldest is
        always taken first.
        """
        while len(self._queued) > n_queued:
            self._touch(self._queued.popleft(), now, only_new=True)
        waiting = itertools.chain(self._silent(now), self._admit())
        leases = []
        while len(leases) < room:
            items = list(itertools.islice(waiting, self._size))
            if not items:
                break
            self._queued.append([item.index for item in items])
            leases.append(items)
        return leases

    def hear(self, indices, now):
        """Note that these items are in the hands of a worker that is alive."""
        self._touch(indices, now)

    def give_back(self, indices):
        """Note that nobody does these items now."""
        self._touch(indices, -math.inf)

    def wanted(self, index):
        """Return the item of an index if it is still to be done, else None."""
        entry = self._entries.get(index)
        return entry and not entry.item.done and entry.item or None

    def finish(self, item):
        """Note a finished item in place of the one that is wanted."""
        self._entries[item.index] = Entry(item, None)

    def ready(self):
        """Return the items that are wanted or finished, in order; forget the first finished ones.

        Forgotten are those before the first one that is not finished.
        """
        items = [entry.item for entry in self._entries.values()]
        for item in itertools.takewhile(lambda item: item.done, items):
            del self._entries[item.index]
        return items

    def _touch(self, indices, now, only_new=False):
        for index in indices:
            entry = self._entries.get(index)
            if entry and not (only_new and entry.heard is not None):
                self._entries[index] = entry._replace(heard=now)

    def _silent(self, now):
        """Yield the items whose workers have been silent for too long."""
        for index, (item, heard) in list(self._entries.items()):
            if heard is not None and now - heard > self._patience and not item.done:
                self._entries[index] = Entry(item, None)
                yield item

    def _admit(self):
        """Yield new items."""
        while len(self._entries) < WINDOW:
            item = next(self._new, None)
            if item is None:
                self._complete = True
                return
            self._entries[item.index] = Entry(item, None)
            yield item
