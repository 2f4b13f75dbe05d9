"""A progress bar for texts whose lengths nobody knows beforehand."""

import itertools

from tqdm import tqdm


def with_progress(batches, last, length, **options):
    """Pass on what `batching.generate` yields, with a progress bar if stderr is a terminal.

    `last` is the index after that of the last text, None if there is no last; `length`, the tokens
    of a text that does not end early; `options`, those of tqdm.
    """
    n_gone = n_tokens = 0  # texts that are not in `batch` any more, and their tokens
    with tqdm(unit=' tokens', **{'disable': None, **options}) as progress:
        for batch in batches:
            made = n_tokens + sum(len(sequence.tokens) for sequence in batch)
            n_done = n_gone + sum(sequence.done for sequence in batch)
            if last is not None:
                progress.total = made + round(estimate_missing(batch, last, length, made, n_done))
            progress.update(made - progress.n)
            yield batch
            for sequence in itertools.takewhile(lambda sequence: sequence.done, batch):
                n_gone += 1
                n_tokens += len(sequence.tokens)


def estimate_missing(batch, last, length, made, n_done):
    """Estimate how many tokens are still to be made.

    As if each token were equally likely to end its text: the more tokens were made for each text
    that is done, the longer the others are expected to be.
    """
    expected = min(length, made / n_done) if n_done else length
    return expected * (last - batch[-1].index - 1) + sum(
        min(expected, length - len(sequence.tokens)) for sequence in batch if not sequence.done)
