"""What the sampling scripts share: from their flags to a sampler, and from texts to a file."""

import contextlib
import itertools
import os

import checkpoint
import cli
import lite
import records
import texts
from engine import open_sampler


def open_model(flags, default_length):
    """Checks the flags, fills in the defaults that depend on the model, and opens it.

    Args:
      flags: an object with the flags by name.
      default_length: a function of n_ctx.

    Returns:
      A checkpoint.Model.
    """
    cli.check_sampling_flags(flags)
    opened = checkpoint.open_model(flags.model_name, flags.models_dir)
    cli.fit_to_model(flags, opened.hparams, default_length(opened.hparams.n_ctx))
    return opened


def load(flags, opened, **options):
    """Returns the sampler that the flags describe."""
    end = opened.encoder.encoder[checkpoint.END_OF_TEXT]
    return open_sampler(opened, flags.engine, flags.dtype, temperature=flags.temperature,
                        top_k=flags.top_k, top_p=flags.top_p,
                        stop_token=end if flags.stop else None, **options)


def grow(flags, opened, sampler, prompts, **options):
    """Makes texts as the flags say, by `texts.grow`."""
    return texts.grow(sampler, opened.encoder, prompts, seed=flags.seed, length=flags.length,
                      keep=flags.keep, stop_at=flags.stop_at or '', **options)


def write_samples(flags, opened, samples, first, last, **settings):
    """Makes samples and writes them to --output, or to stdout.

    Args:
      samples: a function of an index that returns an iterator over the index and the prompt of each
        sample from there on.
      first: the index of the first sample; None if it may be any.
      last: the index after that of the last; None if they go on for ever.
      settings: of the run, to be recorded, beside those that all runs have.

    Raises:
      UserError: the file is no such file, was made with other settings, or cannot be written to.
    """
    with contextlib.closing(open_output(flags, opened, first, 'prompts' in settings)) as output:
        settings = dict(run_settings(flags, opened), **settings)
        if flags.seed is None and output.settings:
            flags.seed = output.settings['seed']
        if flags.engine == 'auto' and output.settings:
            flags.engine = output.settings.get('engine', 'auto')
        if flags.seed is not None:
            output.check(dict({'prompts': None}, **dict(settings, seed=flags.seed)))
        todo = samples(output.next)
        sample = next(todo, None)
        if sample is not None:  # else the file is complete, and the model not needed
            write_rest(flags, opened, output, itertools.chain([sample], todo), last, settings)


def write_rest(flags, opened, output, samples, last, settings):
    """Makes the samples that `write_samples` has found missing, an index and a prompt each."""
    sampler = load(flags, opened, logprobs=flags.logprobs)
    flags.seed = cli.choose_seed(flags.seed)
    output.begin(dict(settings, seed=flags.seed, engine=sampler.engine,
                      tensorflow=lite.tensorflow_version()))
    batch_size = flags.batch_size
    if not flags.output and last is not None:
        batch_size = min(batch_size, last - output.next)
    # A file always has the same batch size, on which the last bits of a result depend.
    batches = grow(flags, opened, sampler, samples, batch_size=batch_size, fill=bool(flags.output))
    try:
        for done in records.done(records.watched(batches, last, flags.length)):
            output.write(done)
    finally:
        output.flush()


def open_output(flags, opened, first, with_prompt):
    """Returns what the samples are written to.

    Raises:
      UsageError: --output is not a .txt or .jsonl, or --logprobs is for another than a .jsonl.
    """
    output = flags.output or ''
    if flags.logprobs and not output.endswith('.jsonl'):
        raise cli.UsageError('--logprobs is for an --output that ends in .jsonl')
    if flags.output is None:
        return records.Printer(first)
    if output.endswith('.jsonl'):
        return records.JsonLines(output, first, opened.encoder, with_prompt)
    if output.endswith('.txt'):
        return records.PlainText(output, first)
    raise cli.UsageError('--output must end in .txt or .jsonl, not %r' % output)


def run_settings(flags, opened):
    """Returns the settings that samples depend on, the seed and the engine excepted, by name."""
    return dict(model=os.fsencode(flags.model_name).decode('utf-8', 'replace'),
                weights=checkpoint.weights_digest(opened.directory), dtype=flags.dtype,
                batch_size=flags.batch_size, length=flags.length, keep=flags.keep,
                temperature=float(flags.temperature), top_k=flags.top_k, top_p=float(flags.top_p),
                stop=flags.stop, stop_at=flags.stop_at, logprobs=flags.logprobs)
