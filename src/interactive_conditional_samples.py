"""Continues the prompts you type: python3 src/interactive_conditional_samples.py. See --help."""

import itertools
import sys
import types

import cli
import job
import prompts
import records

try:
    import readline  # line editing and history for input(), where there is one
except ImportError:
    readline = None


def interact_model(model_name='124M', seed=None, nsamples=1, batch_size=1, length=None,
                   temperature=1, top_k=0, top_p=1, models_dir='models',
                   engine='auto', dtype='float32', *, stop=False, stop_at: str = None, keep=None):
    """Asks for prompts and shows how the model continues each. Ctrl-D ends it.

    python3 src/interactive_conditional_samples.py [flags]

    Ctrl-C stops the samples being made and asks for the next prompt; at the prompt it leaves.

    --model_name   a folder of MODELS_DIR: 124M
    --seed         a whole number from 0 on, which fixes every sample; if not given, one is drawn
                   and told
    --nsamples     samples of each prompt, at least 1: 1
    --batch_size   samples made at the same time, at least 1; changes the speed alone: 1
    --length       new tokens in a sample, at least 1; half the model's window if not given
    --stop         end a sample at <|endoftext|>, in place of going on with what follows
    --stop_at      a text; end a sample where it says this, which is left out
    --keep         when the window is full, a sample goes on from this many of its last tokens; half
                   the window if not given
    --temperature  from 0 on: below 1 likely tokens become likelier, 0 always takes the likeliest: 1
    --top_k        from 0 on: choose among this many likeliest tokens; 0, among all: 0
    --top_p        above 0, at most 1: choose among the fewest likeliest tokens that together have
                   this probability, the one that reaches it included; 1, among all: 1
    --models_dir   where the models are: models
    --engine       what runs the model: graph; lite, a faster one for CPUs, which converts the
                   weights at its first run; or auto, lite where it has done so before: auto
    --dtype        of the weights: float32, or int8, which is lite's, smaller, faster and a little
                   less exact: float32
    """
    flags = types.SimpleNamespace(**locals())
    cli.check_int('nsamples', nsamples, 1)
    opened = job.open_model(flags, default_length=lambda n_ctx: n_ctx // 2)
    if readline:  # UTF-8 in and out, whatever the locale says
        for setting in ('input-meta on', 'output-meta on', 'convert-meta off'):
            readline.parse_and_bind('set ' + setting)
    sampler = job.load(flags, opened)
    flags.seed = cli.choose_seed(flags.seed)
    for first in itertools.count(0, nsamples):
        try:
            prompt = read_prompt(opened.encoder, opened.hparams.n_ctx)
        except EOFError:
            print()
            return
        samples = ((index, prompt) for index in range(first, first + nsamples))
        batches = job.grow(flags, opened, sampler, samples, batch_size=min(batch_size, nsamples))
        if not sys.stdout.isatty():  # a terminal shows by the text itself how far it is
            batches = records.watched(batches, first + nsamples, flags.length, leave=False)
            batches = records.done(batches)
        try:
            show(batches, first)
        except KeyboardInterrupt:
            print(file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)


def show(batches, first):
    """Shows the samples of a prompt, as far as they are made, one after the other.

    Args:
      batches: what `texts.grow` yields.
      first: the index of the first sample.
    """
    begun = None  # the sample that is being shown
    for batch in batches:
        for text in batch:
            if text is not begun:
                begun = text
                print(records.rule(text.index - first + 1), end='')
            print(text.take(), end='\n' if text.done else '', flush=True)
            if not text.done:
                break
    print('=' * 80, flush=True)


def read_prompt(encoder, n_ctx):
    """Asks until it gets a prompt that fits the window, and returns its ids."""
    while True:
        tokens = encoder.encode(input('Model prompt >>> '))
        try:
            prompts.check_tokens(tokens, n_ctx)
            return tokens
        except ValueError as error:
            print('This prompt cannot be continued: %s.' % error, file=sys.stderr)


if __name__ == '__main__':
    cli.run(interact_model)
