"""The hosts of a training, as the environment variable TF_CONFIG names them.

    {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}
"""

import dataclasses
import os
import reprlib

from gpt2 import files
from gpt2.cluster.options import ADDRESS
from gpt2.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hosts:
    """All hosts, HOST:PORT each, and which of them this one is. The first is the chief."""

    addresses: tuple = ('localhost',)
    index: int = 0

    @property
    def n(self):
        """The number of hosts."""
        return len(self.addresses)

    @property
    def is_chief(self):
        """Whether this host writes, validates, samples and prints."""
        return self.index == 0

    @property
    def port(self):
        """The port that this host listens on, if it is not alone."""
        return int(self.addresses[self.index].rpartition(':')[2])

    def name(self, index):
        """Return what to call a host in messages."""
        return f'host {index} ({self.addresses[index]})'

    def share(self, batch):
        """Return the rows of a batch that this host learns from, an equal share."""
        n_rows = len(batch) // self.n
        return batch[self.index * n_rows:(self.index + 1) * n_rows]


def from_environment():
    """Return the Hosts that TF_CONFIG names; this one alone without it. Raises UserError."""
    text = os.environ.get('TF_CONFIG')
    if not text:
        return Hosts()
    try:
        hosts = parse(files.parse_object(text))
    except ValueError as error:
        problem = str(error)
    except (KeyError, TypeError, AttributeError):
        problem = 'it lacks a part, or has another in its place'
    else:
        return hosts if hosts.n > 1 else Hosts()
    raise UserError(f'TF_CONFIG cannot be used: {problem}; give {{"cluster": {{"worker": '
                    '["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}, or unset it')


def parse(config):
    """Return the Hosts of a TF_CONFIG. A "chief" stands before the workers.

    Raises ValueError, KeyError, TypeError or AttributeError if it names none.
    """
    jobs, task = config['cluster'], config['task']
    unknown = sorted({*jobs, task['type']} - {'chief', 'worker'})
    if unknown:
        raise ValueError(f'{reprlib.repr(unknown[0])} is neither "chief" nor "worker"')
    chiefs, workers = (as_addresses(jobs.get(name, [])) for name in ('chief', 'worker'))
    addresses = chiefs + workers
    if len(chiefs) > 1 or len(set(addresses)) < len(addresses):
        raise ValueError('it has a host twice' if len(chiefs) < 2 else 'it has several chiefs')
    index, is_chief = task['index'], task['type'] == 'chief'
    if type(index) is not int or not 0 <= index < len(chiefs if is_chief else workers):
        raise ValueError(f'the index {reprlib.repr(index)} is not that of a {task["type"]}')
    return Hosts(addresses, index if is_chief else len(chiefs) + index)


def as_addresses(values):
    """Return a tuple of addresses. Raises ValueError if they are none."""
    if not isinstance(values, list):
        raise ValueError(f'{reprlib.repr(values)} is not a list of addresses')
    for value in values:
        if not ADDRESS.accepts(value) or not 0 < int(value.rpartition(':')[2]) < 2**16:
            raise ValueError(f'{reprlib.repr(value)} is not HOST:PORT')
    return tuple(values)
