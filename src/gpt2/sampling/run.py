"""A run of a sampling command: from options to a decoder."""

import dataclasses
import os
import sys

from gpt2.model_dir import ModelDir, open_model_dir, weights_digest
from gpt2.options import as_tuple
from gpt2.sampling import batching
from gpt2.sampling.engines import choose_engine, lite_hint, open_decoder
from gpt2.sampling.options import EngineOptions, GenerationOptions, SamplingOptions


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

    def choose_engine(self):
        """Return the name of the engine that `open_decoder` takes."""
        return choose_engine(self.model_dir, self.engine.engine, self.engine.dtype)

    def engine_hint(self):
        """Return a line about a faster engine, None if there is nothing to say."""
        return lite_hint(self.model_dir, self.engine)

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
    return fit_model(open_model_dir(model.model_name, model.models_dir), engine, sampling,
                     generation, conditional)


def fit_model(model_dir, engine, sampling, generation, conditional):
    """Return the Run of a ModelDir and options; otherwise see `open_run`."""
    n_ctx = model_dir.hparams.n_ctx
    sampling.check_vocabulary(model_dir.hparams.n_vocab)
    return Run(model_dir, engine, sampling,
               generation.fit_model(n_ctx, n_ctx // 2 if conditional else n_ctx))
