"""A data set of a model's output, in the files of OpenAI's gpt-2-output-dataset.

Each file is a ResumableFile: it does not depend on how often the run was interrupted, nor on how
many processes or machines made it.
"""

import collections
import contextlib
import dataclasses
import os

from tqdm import tqdm

from gpt2 import runtime
from gpt2.errors import UserError
from gpt2.sampling.options import GenerationOptions, SamplingOptions
from gpt2.sampling.output import Content, DatasetLines
from gpt2.sampling.run import open_run
from gpt2.sampling.workers import Job, open_samples

# What the names of the published files call the released models: by the sizes in the paper.
PUBLISHED = {'124M': 'small-117M', '117M': 'small-117M', '355M': 'medium-345M',
             '345M': 'medium-345M', '774M': 'large-762M', '1558M': 'xl-1542M'}

# What a sampling adds to the names of its files. The seed of the second one is the next number:
# with the same random numbers, its texts would resemble those of the first.
SAMPLINGS = (('', SamplingOptions()), ('-k40', SamplingOptions(top_k=40)))
SPLITS = ('train', 'valid', 'test')

# A file of the data set: its DatasetLines, its place in SAMPLINGS, the index after its last text.
Part = collections.namedtuple('Part', 'target sampling last')


def write_dataset(model, engine, options):
    """Write the files of DatasetOptions, by the model of ModelOptions, run by EngineOptions.

    Raises UserError as `open_run`, ResumableFile and `open_samples` do.
    """
    run = open_run(model, engine, SamplingOptions(), GenerationOptions(seed=options.seed),
                   conditional=False)
    for _, sampling in SAMPLINGS:
        sampling.check_vocabulary(run.model_dir.hparams.n_vocab)
    with contextlib.ExitStack() as stack:
        parts = []
        for path, number, indices in list_files(run.model_dir.name, options):
            target = DatasetLines(path, indices.start, Content(run.model_dir.encoder))
            parts.append(Part(stack.enter_context(contextlib.closing(target)), number,
                              indices.stop))
        run = resume(run, parts).with_seed()
        for part in parts:
            part.target.check(settings(with_sampling(run, part.sampling), options.batch_size))
        missing = [part for part in parts if part.target.next < part.last]
        if missing:  # else the model is not needed
            write_missing(run, missing, options)


def list_files(model_name, options):
    """Yield the path of each file, its place in SAMPLINGS, and the range of its indices.

    Their folder is created. Raises UserError if it cannot be.
    """
    try:
        os.makedirs(options.data_dir, exist_ok=True)
    except OSError as error:
        raise UserError(f'{options.data_dir}: {error.strerror}; name another --data_dir')
    name = os.path.basename(os.path.normpath(model_name))
    for number, (suffix, _) in enumerate(SAMPLINGS):
        first = 0
        for split in SPLITS:
            indices = range(first, first + getattr(options, split))
            if indices:
                file = f'{PUBLISHED.get(name, name)}{suffix}.{split}.jsonl'
                yield os.path.join(options.data_dir, file), number, indices
            first = indices.stop


def resume(run, parts):
    """Return a Run with the seed and the engine of files that exist, if it names none."""
    for part in parts:
        if part.target.settings is not None:
            seed = part.target.settings['seed'] - part.sampling
            return run.resume({**part.target.settings, 'seed': seed})
    return run


def with_sampling(run, number):
    """Return a Run with the sampling at a place in SAMPLINGS, and with its seed."""
    generation = dataclasses.replace(run.generation, seed=run.generation.seed + number)
    return dataclasses.replace(run, sampling=SAMPLINGS[number][1], generation=generation)


def settings(run, batch_size):
    """Return the settings to record beside a file."""
    return {**run.settings(batch_size), 'seed': run.generation.seed}


def write_missing(run, parts, options):
    """Make the texts that are missing in files, and write them."""
    jobs = [Job(with_sampling(run, part.sampling), range(part.target.next, part.last))
            for part in parts]
    with open_samples(jobs, options) as (engine, samples):
        for part, job in zip(parts, jobs):
            part.target.begin({**settings(job.run, options.batch_size), 'engine': engine,
                               'tensorflow': runtime.tensorflow_version()})
        total = len(SAMPLINGS) * sum(getattr(options, split) for split in SPLITS)
        n_missing = sum(len(job.indices) for job in jobs)
        with tqdm(total=total, initial=total - n_missing, unit=' texts', smoothing=0,
                  disable=None) as progress:
            for part, batches in zip(parts, samples):
                progress.set_description(os.path.basename(part.target.path))
                write_samples(part.target, batches, progress)


def write_samples(target, batches, progress):
    """Write samples to a ResumableFile as they are made; an error or Ctrl-C loses none of them."""
    try:
        for samples in batches:
            target.write(samples)
            progress.update(len(samples))
    finally:
        target.flush()
