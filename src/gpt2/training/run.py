"""A training run, from options to a model directory."""

import dataclasses
import os

from gpt2 import model_dir, runtime
from gpt2.training import resume
from gpt2.training.data import open_training_data


def train(model, options, compute, run):
    """Train a model as ModelOptions, TrainingOptions, ComputeOptions and RunOptions say.

    Raises UserError for what the user can correct. After Ctrl-C it raises KeyboardInterrupt, once
    the step is done and validated.
    """
    if compute.devices:
        options.check_devices(compute.devices)
    start = model_dir.open_model_dir(model.model_name, model.models_dir,
                                     weights=not options.scratch)
    options = options.fit_model(start.hparams)
    path = os.path.join(model.models_dir, run.output)
    model_dir.check_path(path)
    resume.check_output(path, run.resume)
    data = open_training_data(run.data, start, options.seq_len, options.held_out)
    settings = dict(model_name=model.model_name, **dataclasses.asdict(options),
                    text=data.fingerprint)
    output = resume.Output(path, settings, run.keep_last)
    with output.lock(run.resume):
        progress = output.read_progress() if run.resume else resume.Progress(0, None)
        output.trim_metrics(progress.step)
        runtime.import_tensorflow()  # only now that all else is checked
        from gpt2.training import loop
        loop.train(start, data, options, compute, run.sample_length, output, progress)
