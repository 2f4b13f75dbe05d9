"""Samples texts from scratch: python3 src/generate_unconditional_samples.py. See --help."""

import itertools
import types

import checkpoint
import cli
import job


def sample_model(model_name='124M', seed=None, nsamples=0, batch_size=1, length=None,
                 temperature=1, top_k=0, top_p=1, models_dir='models',
                 engine='auto', dtype='float32', *, output: str = None, first_sample=0,
                 stop=True, stop_at: str = None, keep=None, logprobs=False):
    """Writes texts that the model makes up, one after another.

    python3 src/generate_unconditional_samples.py [flags] --output FILE

    Interrupted with Ctrl-C or otherwise, the same command goes on where it was.

    --output       the file to write: a .txt has each text under a line with its number, a .jsonl
                   has an object a line; what is in it is continued; if not given, they are printed
    --model_name   a folder of MODELS_DIR: 124M
    --seed         a whole number from 0 on, which fixes every sample; if not given, that of the
                   file, or one is drawn and told
    --nsamples     number of samples; 0 goes on until stopped with Ctrl-C: 0
    --first_sample  index of the first of them, so that many processes can share the work: 0
    --batch_size   samples made at the same time, at least 1; changes the speed alone: 1
    --length       tokens in a sample, at least 1; as many as the model's window if not given
    --stop         end a sample at <|endoftext|>; --nostop goes on with what follows
    --stop_at      a text; end a sample where it says this, which is left out
    --keep         when the window is full, a sample goes on from this many of its last tokens; half
                   the window if not given
    --temperature  from 0 on: below 1 likely tokens become likelier, 0 always takes the likeliest: 1
    --top_k        from 0 on: choose among this many likeliest tokens; 0, among all: 0
    --top_p        above 0, at most 1: choose among the fewest likeliest tokens that together have
                   this probability, the one that reaches it included; 1, among all: 1
    --logprobs     record the log probability of each token, in a .jsonl: under the model, and under
                   the distribution it was drawn from
    --models_dir   where the models are: models
    --engine       what runs the model: graph; lite, a faster one for CPUs, which converts the
                   weights at its first run; or auto, lite where it has done so before: auto
    --dtype        of the weights: float32, or int8, which is lite's, smaller, faster and a little
                   less exact: float32
    """
    flags = types.SimpleNamespace(**locals())
    cli.check_int('nsamples', nsamples, 0)
    cli.check_int('first_sample', first_sample, 0)
    opened = job.open_model(flags, default_length=lambda n_ctx: n_ctx)
    start = [opened.encoder.encoder[checkpoint.END_OF_TEXT]]
    last = first_sample + nsamples if nsamples else None

    def prompts(first):
        indices = itertools.count(first) if last is None else range(first, last)
        return ((index, start) for index in indices)

    job.write_samples(flags, opened, prompts, first_sample, last)


if __name__ == '__main__':
    cli.run(sample_model)
