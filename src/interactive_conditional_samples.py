"""Continues the prompts you type: python3 src/interactive_conditional_samples.py. See --help."""

import sys

import checkpoint
import cli
import generation
from engine import open_sampler

try:
    import readline  # line editing and history for input(), where there is one
except ImportError:
    readline = None


def interact_model(model_name='124M', seed=None, nsamples=1, batch_size=1, length=None,
                   temperature=1, top_k=0, top_p=1, models_dir='models',
                   engine='auto', dtype='float32'):
    """Asks for prompts and shows how the model continues each. Ctrl-D ends it.

    python3 src/interactive_conditional_samples.py [flags]

    Ctrl-C stops the samples being made and asks for the next prompt; at the prompt it leaves.

    --model_name   a folder of MODELS_DIR: 124M
    --seed         a whole number from 0 on, which fixes every sample; if not given, one is drawn
                   and told
    --nsamples     samples of each prompt, at least 1: 1
    --batch_size   samples made at the same time, at least 1; changes the speed alone: 1
    --length       new tokens in a sample, 1 to the model's window; half of it if not given
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
    cli.check_int('nsamples', nsamples, 1)
    cli.check_sampling_flags(seed, batch_size, length, temperature, top_k, top_p)
    cli.check_engine_flags(engine, dtype)
    opened = checkpoint.open_model(model_name, models_dir)
    hparams, encoder = opened.hparams, opened.encoder
    length = cli.fit_to_model(hparams, length, hparams.n_ctx // 2, top_k)

    if readline:  # UTF-8 in and out, whatever the locale says
        for setting in ('input-meta on', 'output-meta on', 'convert-meta off'):
            readline.parse_and_bind('set ' + setting)
    sampler = open_sampler(opened, engine, dtype, temperature=temperature, top_k=top_k, top_p=top_p)
    seed = cli.choose_seed(seed)
    made = 0
    while True:
        try:
            prompt = read_prompt(encoder, hparams.n_ctx - length + 1)
        except EOFError:
            print()
            return
        try:
            for first in range(0, nsamples, batch_size):
                indices = range(made + first, made + min(first + batch_size, nsamples))
                rows = generation.complete(sampler, [prompt] * len(indices), indices, seed=seed,
                                           length=length)
                for number, row in enumerate(rows, first + 1):
                    print('=' * 40 + ' SAMPLE %d ' % number + '=' * 40)
                    print(encoder.decode(row))
            print('=' * 80, flush=True)
        except KeyboardInterrupt:
            print(file=sys.stderr)
        made += nsamples


def read_prompt(encoder, longest):
    """Asks until it gets a prompt of 1 to `longest` tokens, and returns its ids."""
    while True:
        prompt = encoder.encode(input('Model prompt >>> '))
        if not prompt:
            print('The prompt is empty: type some text, or Ctrl-D to leave.', file=sys.stderr)
        elif len(prompt) > longest:
            print('The prompt is %d tokens too long: it has %d, and with --length to come the '
                  'window leaves room for %d.' % (len(prompt) - longest, len(prompt), longest),
                  file=sys.stderr)
        else:
            return prompt


if __name__ == '__main__':
    cli.run(interact_model)
