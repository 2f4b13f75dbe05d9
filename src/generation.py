"""Decoding with any engine: random numbers, checks, and texts that grow chunk by chunk.

Nothing here knows how the model is run, and nothing needs TensorFlow. An engine's Sampler continues
a batch of texts; `sample.Sampler` and `lite.Sampler` are the two there are. N is a number of new
tokens, R the side of the grid that `sample.draw` lays the vocabulary out in.
"""

import collections
import math
import time

import numpy as np

CACHE_SLOTS = 128  # a cache grows by so many slots: making room means copying it


# What fits

def check_window(hparams, n_context, length):
    """Raises ValueError if a text of n_context tokens and `length` more do not fit the window."""
    excess = n_context + length - 1 - hparams.n_ctx
    if excess > 0:
        raise ValueError('%d tokens and %d new ones are %d too many for the window of %d'
                         % (n_context, length, excess, hparams.n_ctx))


def check_prompts(hparams, prompts):
    """Raises ValueError if a prompt has no tokens, an id that is none, or is beyond the window."""
    for prompt in prompts:
        if not prompt:
            raise ValueError('a prompt has no tokens')
        if not 0 <= min(prompt) <= max(prompt) < hparams.n_vocab:
            raise ValueError('a prompt has an id that is not in 0 to %d' % (hparams.n_vocab - 1))
        check_window(hparams, len(prompt), 1)


def rows_by_prompt(prompts):
    """Returns each different prompt and the list of the rows that have it."""
    rows = collections.OrderedDict()
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(row)
    return [(list(prompt), numbers) for prompt, numbers in rows.items()]


# Randomness

def grid_side(n_vocab):
    """Returns R, the side of the smallest square that holds the vocabulary."""
    return math.ceil(math.sqrt(n_vocab))


def random_stream(seed, index):
    """Returns the random numbers of sample `index` of a run with this seed, both ints >= 0."""
    return np.random.Philox(np.random.SeedSequence([seed, index]))


def random_uniforms(streams, length, n_vocab):
    """Takes from each stream the numbers its next `length` tokens are drawn with.

    Every value is a multiple of 2**-24 strictly between 0 and 1, exact in float32.

    Returns:
      float32 [B, length, 2R].
    """
    width = 2 * grid_side(n_vocab)
    raw = np.stack([stream.random_raw(length * width) for stream in streams])
    uniform = ((raw >> np.uint64(41)).astype(np.float64) + 0.5) * 2**-23
    return uniform.reshape([len(streams), length, width]).astype(np.float32)


# Decoding in chunks

def generate(sampler, prompts, indices, *, seed, length, chunk_seconds=0.5):
    """Continues a batch of prompts, in chunks that each take about chunk_seconds at most.

    The first chunk is a single token, so that the first word shows early. Chunks do not change
    the text, nor do the other prompts in the batch.

    Args:
      sampler: a Sampler, or anything else with its `hparams`, `greedy`, `stop_token`, `start`
        and `decode`.
      prompts: lists of ids.
      indices: the number of each sample in the run, ints >= 0.
      seed: of the run, an int >= 0. Seed and index decide a sample's randomness.
      length: of each text, in new tokens.

    Yields:
      int32 [B, N], the next N tokens of each row, until there are `length` or all rows are done.
    """
    streams = [random_stream(seed, index) for index in indices]
    done = np.zeros(len(prompts), dtype=bool)
    sampler.start(prompts)
    chunk = 1
    while length > 0 and not done.all():
        chunk = min(chunk, length)
        began = time.perf_counter()
        noise = None if sampler.greedy else random_uniforms(streams, chunk,
                                                            sampler.hparams.n_vocab)
        tokens = sampler.decode(chunk, noise)
        rate = chunk / (time.perf_counter() - began)
        yield tokens
        if sampler.stop_token is not None:
            done |= (tokens == sampler.stop_token).any(axis=1)
        length -= chunk
        chunk = max(1, min(2 * chunk, int(rate * chunk_seconds)))
