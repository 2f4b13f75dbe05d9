"""The dialogue of the interactive command: prompts that the user types, and their samples."""

import dataclasses
import sys

from gpt2.errors import OptionError
from gpt2.sampling import batching, output, progress, prompts, terminal

PROMPT = 'Model prompt >>> '


def interact(run, options):
    """Ask for prompts and show the samples that BatchOptions ask for, until the input ends."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        print(f'Loading {run.model_dir.name}. Ctrl-D leaves; /help shows what else there is.',
              file=sys.stderr)
    decoder, first = run.open_decoder(), 0
    run, hint = run.with_seed(), run.engine_hint()
    start = settings(run, options)
    with terminal.line_editing():
        while True:
            try:
                line = terminal.read(PROMPT) if at_terminal else input(PROMPT)
            except EOFError:
                print()
                return
            if at_terminal and terminal.is_command(line):
                run, options = obey(line, run, options, start)
                continue
            prompt = encode(line, run.model_dir)
            if prompt:
                sample(run, options, decoder, prompt, first)
                if first == 0 and hint:
                    print(hint, file=sys.stderr)
                first += options.nsamples


def settings(run, options):
    """Return the values of the options that /set changes, by name."""
    values = {name: value for part in run.parts(options)
              for name, value in dataclasses.asdict(part).items()}
    del values['logprobs']  # which only files record
    return values


def obey(line, run, options, start):
    """Carry out a command, see `terminal.HELP`; return the Run and the BatchOptions after it.

    `start` has the `settings` at the start.
    """
    command, name, text, *_ = line.strip().split(maxsplit=2) + [None, None]
    if command == '/help':
        print(terminal.HELP)
    elif name is None:
        for name, value in settings(run, options).items():
            print(f'{name:22}{value}')
    elif name not in start:
        print(f'/set {name}: there is no such option; /set shows all', file=sys.stderr)
    else:
        try:
            return run.change(options, name, start[name] if text is None else text)
        except OptionError as error:
            print(error, file=sys.stderr)
    return run, options


def encode(line, model_dir):
    """Return the ids of a prompt, or None, and say why, if it cannot be continued."""
    tokens = model_dir.encoder.encode(line)
    try:
        prompts.check_prompt(tokens, model_dir.hparams.n_ctx)
        return tokens
    except ValueError as error:
        print(f'This prompt cannot be continued: {error}.', file=sys.stderr)


def sample(run, options, decoder, prompt, first):
    """Show the samples of a prompt, from index `first` of the run. Ctrl-C stops them."""
    samples = ((index, prompt) for index in range(first, first + options.nsamples))
    batches = run.generate(decoder, samples, min(options.batch_size, options.nsamples))
    if not sys.stdout.isatty():  # on a terminal the text itself shows the progress
        batches = batching.finished(progress.with_progress(
            batches, first + options.nsamples, run.generation.length, leave=False))
    try:
        show(batches, first)
    except KeyboardInterrupt:
        print(file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)


def show(batches, first):
    """Print the samples that `batching.generate` yields, from index `first`, as they grow."""
    shown = None  # the sample that is being printed
    for batch in batches:
        for sequence in batch:
            if sequence is not shown:
                shown, wrap = sequence, terminal.wrapper()
                print(output.banner(sequence.index - first + 1), end='')
            print(wrap(sequence.stream(), sequence.done), end='\n' if sequence.done else '',
                  flush=True)
            if not sequence.done:
                break
    print('=' * 80, flush=True)
