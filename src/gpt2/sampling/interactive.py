"""The dialogue of the interactive command: prompts that the user types, and their samples."""

import itertools
import sys

from gpt2.sampling import batching, output, progress, prompts

try:
    import readline  # line editing and history for input(), where there is one
except ImportError:
    readline = None


def interact(run, options):
    """Ask for prompts and show the samples that BatchOptions ask for, until the input ends."""
    if readline:  # UTF-8 in and out, whatever the locale
        for setting in ('input-meta on', 'output-meta on', 'convert-meta off'):
            readline.parse_and_bind(f'set {setting}')
    decoder = run.open_decoder()
    run = run.with_seed()
    for first in itertools.count(0, options.nsamples):
        try:
            prompt = read_prompt(run.model_dir)
        except EOFError:
            print()
            return
        samples = ((index, prompt) for index in range(first, first + options.nsamples))
        batches = run.generate(decoder, samples, min(options.batch_size, options.nsamples))
        if not sys.stdout.isatty():  # on a terminal the text itself shows the progress
            batches = batching.finished(progress.with_progress(
                batches, first + options.nsamples, run.generation.length, leave=False))
        try:
            show(batches, first)
        except KeyboardInterrupt:
            print(file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)


def read_prompt(model_dir):
    """Ask until there is a prompt that fits the window, and return its ids."""
    while True:
        tokens = model_dir.encoder.encode(input('Model prompt >>> '))
        try:
            prompts.check_prompt(tokens, model_dir.hparams.n_ctx)
            return tokens
        except ValueError as error:
            print(f'This prompt cannot be continued: {error}.', file=sys.stderr)


def show(batches, first):
    """Print the samples that `batching.generate` yields, from index `first`, as they grow."""
    shown = None  # the sample that is being printed
    for batch in batches:
        for sequence in batch:
            if sequence is not shown:
                shown = sequence
                print(output.banner(sequence.index - first + 1), end='')
            print(sequence.stream(), end='\n' if sequence.done else '', flush=True)
            if not sequence.done:
                break
    print('=' * 80, flush=True)
