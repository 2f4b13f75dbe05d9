"""What the sampling commands share: from options to a decoder, and from prompts to samples."""

import contextlib
import dataclasses
import itertools
import os
import sys

from gpt2 import runtime
from gpt2.errors import UsageError
from gpt2.model_dir import ModelDir, open_model_dir, weights_digest
from gpt2.options import as_tuple
from gpt2.sampling import batching, output, progress
from gpt2.sampling.engines import open_decoder
from gpt2.sampling.options import EngineOptions, GenerationOptions, SamplingOptions
from gpt2.sampling.prompts import open_prompts


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a sampling command: an opened model, and options that fit it."""

    model_dir: ModelDir
    engine: EngineOptions
    sampling: SamplingOptions
    generation: GenerationOptions

    def open_decoder(self):
        """Return the decoder of this run, with the weights loaded."""
        return open_decoder(self.model_dir, self.engine.engine, self.engine.dtype)

    def generate(self, decoder, prompts, batch_size, fill=False):
        """Make a text of each prompt, see `batching.generate`."""
        return batching.generate(decoder, self.model_dir.encoder, prompts, self.generation,
                                 self.sampling, batch_size=batch_size, fill=fill)

    def with_seed(self):
        """Return this run with a seed. A new one is printed, so that the run can be repeated."""
        generation = self.generation.with_seed()
        if self.generation.seed is None:
            print(f'seed {generation.seed}', file=sys.stderr)
        return dataclasses.replace(self, generation=generation)

    def resume(self, settings):
        """Return this run with the seed and the engine of an earlier run, if it names none."""
        if settings is None:
            return self
        generation, engine = self.generation, self.engine
        if generation.seed is None:
            generation = dataclasses.replace(generation, seed=settings['seed'])
        if engine.engine == 'auto':
            engine = dataclasses.replace(engine, engine=settings.get('engine', 'auto'))
        return dataclasses.replace(self, generation=generation, engine=engine)

    def parts(self, batch):
        """Return the options that may change from prompt to prompt, with BatchOptions."""
        return self.sampling, self.generation, batch

    def change(self, batch, name, value):
        """Return this run and BatchOptions with one option changed; texts are parsed as flags are.

        Raises OptionError if the value cannot be used.
        """
        sampling, generation, batch = (part.with_option(name, value) for part in self.parts(batch))
        hparams = self.model_dir.hparams
        sampling.check_vocabulary(hparams.n_vocab)
        generation = generation.fit_model(hparams.n_ctx, hparams.n_ctx // 2).with_seed()
        return dataclasses.replace(self, sampling=sampling, generation=generation), batch

    def settings(self, batch_size):
        """Return the settings that samples depend on, by name. The engine is left out."""
        generation, sampling = self.generation, self.sampling
        return {'model': os.fsencode(self.model_dir.name).decode('utf-8', 'replace'),
                'weights': weights_digest(self.model_dir.path), 'dtype': self.engine.dtype,
                'batch_size': batch_size, 'length': generation.length, 'keep': generation.keep,
                'temperature': float(sampling.temperature), 'top_k': sampling.top_k,
                'top_p': float(sampling.top_p), 'stop': generation.stop,
                'stop_at': one_or_all(generation.stop_at), 'logprobs': generation.logprobs,
                **changed(sampling, 'min_p', 'typical_p', 'repetition_penalty',
                          'no_repeat_ngram_size')}


def one_or_all(value):
    """Return the value of an option that may have several: itself if it is one, or a list."""
    values = as_tuple(value)
    return list(values) if len(values) > 1 else values[0] if values else None


def changed(options, *names):
    """Return those of the options that differ from their defaults, by name."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    return {name: getattr(options, name) for name in names
            if getattr(options, name) != defaults[name]}


def open_run(model, engine, sampling, generation, conditional):
    """Return the Run of ModelOptions, EngineOptions, SamplingOptions and GenerationOptions.

    The default length is the window, or half of it if there are prompts (`conditional`). Raises
    ModelError if the model cannot be used, and OptionError if an option does not fit the model.
    """
    model_dir = open_model_dir(model.model_name, model.models_dir)
    n_ctx = model_dir.hparams.n_ctx
    sampling.check_vocabulary(model_dir.hparams.n_vocab)
    return Run(model_dir, engine, sampling,
               generation.fit_model(n_ctx, n_ctx // 2 if conditional else n_ctx))


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
    decoder = run.open_decoder()
    run = run.with_seed()
    target.begin({**settings, 'seed': run.generation.seed, 'engine': decoder.engine,
                  'tensorflow': runtime.tensorflow_version()})
    batch_size = options.batch_size
    if not options.output and last is not None:
        batch_size = min(batch_size, last - target.next)
    # The last bits of a result depend on the batch size, so a file always has the same one.
    batches = run.generate(decoder, prompts, batch_size, fill=bool(options.output))
    try:
        for samples in batching.finished(
                progress.with_progress(batches, last, run.generation.length)):
            target.write(samples)
    finally:
        target.flush()
