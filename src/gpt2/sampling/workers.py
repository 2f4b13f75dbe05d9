"""Samples without prompts, made in this process, or in several, or by other machines.

Process k of n makes every n-th sample, from the k-th. They are taken from one after the other, in
the order of their indices, and are the same for any n.
"""

import collections
import contextlib
import itertools
import multiprocessing
import os

from gpt2 import runtime
from gpt2.errors import UserError
from gpt2.sampling import batching
from gpt2.sampling.output import FLUSH_SECONDS

# Samples to make: a Run, which must have a seed, and a range of indices.
Job = collections.namedtuple('Job', 'run indices')


@contextlib.contextmanager
def open_samples(jobs, options):
    """Yield the name of the engine, and an iterator that has for each Job one over its samples.

    These are lists of finished Sequences, in the order of the indices. The model, which is the same
    for all jobs, is loaded once in each process. How many there are, or that other machines help,
    DatasetOptions say. Raises UserError if a process was killed, and what `Run.open_decoder` and
    `Run.generate` raise in it.
    """
    batch_size, n_processes = options.batch_size, options.processes
    if options.serve:
        with serve_samples(jobs, options) as samples:
            yield jobs[0].run.choose_engine(), samples
        return
    if n_processes == 1:
        decoder = jobs[0].run.open_decoder()
        yield decoder.engine, make_samples(decoder, jobs, batch_size)
        return
    with contextlib.ExitStack() as workers:
        # The first worker decides the engine, and converts the weights if need be.
        connections = [workers.enter_context(start_worker(jobs, batch_size, 0, n_processes))]
        engine = receive(connections[0])
        jobs = [job._replace(run=job.run.resume({'engine': engine})) for job in jobs]
        connections += [workers.enter_context(start_worker(jobs, batch_size, k, n_processes))
                        for k in range(1, n_processes)]
        for connection in connections[1:]:
            receive(connection)
        yield engine, (collect(job, connections) for job in jobs)


def make_samples(decoder, jobs, batch_size):
    """Yield an iterator over the samples of each Job, made in this process."""
    for job in jobs:
        # Batches are filled up, since the last bits of a result depend on their size.
        yield batching.finished(job.run.generate(decoder, prompts(job), batch_size, fill=True))


def prompts(job):
    """Return an iterator over the indices of a Job, with the ids of a prompt."""
    return zip(job.indices, itertools.repeat([job.run.model_dir.encoder.end_of_text]))


@contextlib.contextmanager
def serve_samples(jobs, options):
    """Yield an iterator that has for each Job one over its samples, which other machines make."""
    from gpt2.cluster import chief, samples  # most runs need no chief
    works = [samples.Work(job.run, job.run.settings(options.batch_size)) for job in jobs]

    def share():
        for work, job in zip(works, jobs):
            served.describe(work)
            yield batching.finished(served.share(work.items(prompts(job))))

    with chief.serve(works[0], options) as served:
        yield share()


def collect(job, connections):
    """Yield the samples of a Job, which the workers at these connections make by turns."""
    for connection, _ in zip(itertools.cycle(connections), job.indices):
        while not connection.poll(FLUSH_SECONDS):
            yield []  # time to write those that are there
        yield [receive(connection)]


def receive(connection):
    """Return what a worker sends next; raise it if it is an error."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionError):
        raise UserError('a process that made texts was killed; if memory is short, try fewer '
                        '--processes; the same command continues the files')
    if isinstance(message, Exception):
        raise message
    return message


@contextlib.contextmanager
def start_worker(jobs, batch_size, k, n):
    """Yield a connection from worker k of n; it is ended when the block ends."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with runtime.child_process(work, sender, os.getpid(), jobs, batch_size, k, n):
        sender.close()  # the worker has the only one, so its end is noticed
        yield receiver


def work(connection, parent, jobs, batch_size, k, n):
    """Make the samples of worker k of n, and send them, after the name of the engine."""
    runtime.follow(parent)
    jobs = [job._replace(indices=job.indices[k::n]) for job in jobs]
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        try:
            decoder = jobs[0].run.open_decoder()
            connection.send(decoder.engine)
            for batches in make_samples(decoder, jobs, batch_size):
                for sequence in itertools.chain.from_iterable(batches):
                    connection.send(sequence)
        except UserError as error:
            connection.send(UserError(str(error)))  # any kind of which can be pickled
        except (MemoryError, OSError) as error:
            connection.send(error)
