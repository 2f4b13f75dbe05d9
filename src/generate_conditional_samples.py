"""Continues the prompts in a file: python3 src/generate_conditional_samples.py. See --help."""

import types

import cli
import job
from prompts import Prompts


def continue_prompts(model_name='124M', seed=None, nsamples=1, batch_size=1, length=None,
                     temperature=1, top_k=0, top_p=1, models_dir='models',
                     engine='auto', dtype='float32', *, prompts: str = None, output: str = None,
                     stop=True, stop_at: str = None, keep=None, logprobs=False):
    """Writes how the model continues each prompt of a file.

    python3 src/generate_conditional_samples.py --prompts FILE [flags] --output FILE

    Interrupted with Ctrl-C or otherwise, the same command goes on where it was.

    --prompts      the prompts: a .txt has one a line, a .jsonl has an object a line with a text
                   named "prompt"; --prompts=- reads lines from stdin
    --output       the file to write: a .txt has each text under a line with its number, a .jsonl
                   has an object a line; what is in it is continued; if not given, they are printed
    --model_name   a folder of MODELS_DIR: 124M
    --seed         a whole number from 0 on, which fixes every sample; if not given, that of the
                   file, or one is drawn and told
    --nsamples     samples of each prompt, at least 1: 1
    --batch_size   samples made at the same time, at least 1; changes the speed alone: 1
    --length       new tokens in a sample, at least 1; half the model's window if not given
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
    cli.check_int('nsamples', nsamples, 1)
    if prompts is None:
        raise cli.UsageError('--prompts is missing: give a .txt or .jsonl file, or - for stdin')
    opened = job.open_model(flags, default_length=lambda n_ctx: n_ctx // 2)
    lines = Prompts(prompts)

    def prompts_from(first):
        return lines.encode(opened.encoder, opened.hparams.n_ctx, nsamples, first)

    job.write_samples(flags, opened, prompts_from, None, len(lines) * nsamples,
                      nsamples=nsamples, prompts=lines.digest)


if __name__ == '__main__':
    cli.run(continue_prompts)
