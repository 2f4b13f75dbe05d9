"""A training run, from options to a model directory."""

import contextlib
import dataclasses
import os
import shlex
import sys

from gpt2 import model_dir, runtime
from gpt2.cluster import hosts as cluster_hosts
from gpt2.errors import OptionError
from gpt2.training import resume
from gpt2.training.data import open_training_data


def train(model, options, compute, run):
    """Train a model as ModelOptions, TrainingOptions, ComputeOptions and RunOptions say.

    Raises UserError for what the user can correct. After Ctrl-C it raises KeyboardInterrupt, once
    the step is done and validated. What is trained on, and how to sample from the model, is printed
    on stderr. Of several hosts, the first one alone does more than steps.
    """
    hosts = cluster_hosts.from_environment()
    if run.validation is not None and options.held_out is not None:
        raise OptionError('held_out', 'is a share of the text to train on; leave it out, or '
                                      '--validation')
    options.check_devices(compute.devices or 1, hosts.n)
    start = model_dir.open_model_dir(model.model_name, model.models_dir,
                                     weights=hosts.is_chief and not options.scratch)
    start = dataclasses.replace(start, hparams=options.resize(start.hparams))
    options = options.fit_model(start.hparams)
    folder = model.models_dir if run.output_dir is None else run.output_dir
    path = os.path.join(folder, run.output)
    model_dir.check_path(path)
    if hosts.is_chief:
        resume.check_output(path, run.resume)
    data = open_training_data(run.data, start, options.seq_len, options.held_out, run.validation)
    settings = dict(model_name=model.model_name, **dataclasses.asdict(options),
                    text=data.fingerprint, validation=data.validation_fingerprint)
    output = resume.Output(path, settings, run.keep_last)
    from_start = contextlib.nullcontext(resume.Progress(0, None))
    with locked(output, run.resume) if hosts.is_chief else from_start as progress:
        runtime.import_tensorflow()  # only now that all else is checked
        from gpt2.training import loop
        interrupted = loop.train(start, data, options, compute, run.sample_length, output, progress,
                                 hosts)
        if hosts.is_chief:
            print(f'the model is {path}; sample from it with: '
                  f'{sampling_command(folder, run.output)}', file=sys.stderr)
        if interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def locked(output, resume_):
    """Lock an Output and prepare it; yield the Progress to continue from. Raises UserError."""
    with output.lock(resume_):
        progress = output.read_progress() if resume_ else resume.Progress(0, None)
        output.trim(progress.step)
        yield progress


def sampling_command(folder, name):
    """Return the command that samples from a model in a folder of models."""
    command = ['python3', 'src/generate_unconditional_samples.py', '--nsamples', '1',
               f'--model_name={name}']
    if folder != 'models':
        command.append(f'--models_dir={folder}')
    return ' '.join(map(shlex.quote, command))
