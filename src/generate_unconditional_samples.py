"""Samples texts from scratch: python3 src/generate_unconditional_samples.py. See --help."""

import itertools

import checkpoint
import cli
import generation
from engine import open_sampler


def sample_model(model_name='124M', seed=None, nsamples=0, batch_size=1, length=None,
                 temperature=1, top_k=0, top_p=1, models_dir='models',
                 engine='auto', dtype='float32'):
    """Prints texts that the model makes up, one after another.

    python3 src/generate_unconditional_samples.py [flags] > FILE

    --model_name   a folder of MODELS_DIR: 124M
    --seed         a whole number from 0 on, which fixes every sample; if not given, one is drawn
                   and told
    --nsamples     number of samples; 0 goes on until stopped with Ctrl-C: 0
    --batch_size   samples made at the same time, at least 1; changes the speed alone: 1
    --length       tokens in a sample, 1 to the model's window; all of it if not given
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
    cli.check_int('nsamples', nsamples, 0)
    cli.check_sampling_flags(seed, batch_size, length, temperature, top_k, top_p)
    cli.check_engine_flags(engine, dtype)
    opened = checkpoint.open_model(model_name, models_dir)
    hparams, encoder = opened.hparams, opened.encoder
    length = cli.fit_to_model(hparams, length, hparams.n_ctx, top_k)

    sampler = open_sampler(opened, engine, dtype, temperature=temperature, top_k=top_k, top_p=top_p)
    seed = cli.choose_seed(seed)
    start = [encoder.encoder[checkpoint.END_OF_TEXT]]
    numbers = itertools.count() if nsamples == 0 else iter(range(nsamples))
    while True:
        indices = list(itertools.islice(numbers, batch_size))
        if not indices:
            return
        rows = generation.complete(sampler, [start] * len(indices), indices, seed=seed,
                                   length=length)
        for index, row in zip(indices, rows):
            print('=' * 40 + ' SAMPLE %d ' % (index + 1) + '=' * 40)
            print(encoder.decode(row), flush=True)


if __name__ == '__main__':
    cli.run(sample_model)
