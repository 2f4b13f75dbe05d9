"""Writes samples: finds out what is missing from the output, and lets it be made."""

import contextlib
import itertools
import sys

from tqdm import tqdm

from gpt2 import runtime
from gpt2.errors import UsageError
from gpt2.sampling import batching, output, progress
from gpt2.sampling.prompts import open_prompts
from gpt2.sampling.run import changed


def write_unconditional(run, options):
    """Write the samples that UnconditionalOptions ask for."""
    last = options.first_sample + options.nsamples if options.nsamples else None

    def prompts_from(first):
        indices = itertools.count(first) if last is None else range(first, last)
        return zip(indices, itertools.repeat([run.model_dir.encoder.end_of_text]))

    write_samples(run, options, prompts_from, options.first_sample, last,
                  output.Content(run.model_dir.encoder))


def write_conditional(run, options):
    """Write the samples of the prompts that ConditionalOptions name."""
    prompts, n, offset = open_prompts(options), options.nsamples, options.first_sample
    encoder = run.model_dir.encoder

    def prompts_from(first):
        pairs = prompts.encode(encoder, run.model_dir.hparams.n_ctx, n, max(first - offset, 0))
        return ((offset + index, ids) for index, ids in pairs)

    content = output.Content(encoder, lambda index: prompts.fields((index - offset) // n),
                             options.include_prompt)
    write_samples(run, options, prompts_from, None, offset + len(prompts) * n, content,
                  nsamples=n, prompts=prompts.digest,
                  **changed(options, 'first_sample', 'include_prompt'))


def write_samples(run, options, prompts_from, first, last, content, **settings):
    """Make samples and write them as OutputOptions ask for.

    Args:
      prompts_from: a function from an index to an iterator over (index, ids) from there.
      first, last: the index of the first sample and that after the last; None if not fixed.
      content: the output.Content of a sample.
      settings: to record beside those that all runs have.

    Raises UserError if the output was made with other settings, or as `open_output` does.
    """
    if run.generation.logprobs and not (options.output or '').endswith('.jsonl'):
        raise UsageError('--logprobs is for an --output that ends in .jsonl')
    with contextlib.closing(output.open_output(options.output, first, content)) as target:
        run = run.resume(target.settings)
        settings = {**run.settings(options.batch_size), **settings}
        if run.generation.seed is not None:
            target.check({**settings, 'seed': run.generation.seed})
        prompts = prompts_from(target.next)
        prompt = next(prompts, None)
        if prompt is not None:
            write_missing(run, options, target, itertools.chain([prompt], prompts), last, settings)
        elif target.settings is not None:  # the output is complete, and the model is not needed
            print(f'{options.output} has all these samples already; for others, give another '
                  '--output', file=sys.stderr)


def write_missing(run, options, target, prompts, last, settings):
    """Make the samples that `write_samples` has found missing, an index and a prompt each."""
    decoder = None if options.serve else run.open_decoder()
    run = run.with_seed()
    settings = {**settings, 'seed': run.generation.seed, 'engine': run.choose_engine(),
                'tensorflow': runtime.tensorflow_version()}
    target.begin(settings)
    if options.serve:
        batches = serve(run, prompts, settings, options)
    else:
        batch_size = options.batch_size
        if not options.output and last is not None:
            batch_size = min(batch_size, last - target.next)
        # The last bits of a result depend on the batch size, so a file always has the same one.
        batches = run.generate(decoder, prompts, batch_size, fill=bool(options.output))
    hint = None if options.serve else run.engine_hint()
    try:
        for samples in batching.finished(
                progress.with_progress(batches, last, run.generation.length)):
            target.write(samples)
            if samples and hint:
                tqdm.write(hint, sys.stderr)
                hint = None
    finally:
        target.flush()


def serve(run, prompts, settings, options):
    """Let workers make a text of each prompt; otherwise see `batching.generate`."""
    from gpt2.cluster import chief, samples  # most runs need no chief
    work = samples.Work(run, settings)
    with chief.serve(work, options) as served:
        yield from served.share(work.items(prompts))
