"""Random numbers as data: sample i of a run depends on the run's seed and on i alone."""

import math

import numpy as np


def sample_rng(seed, index):
    """Return the random generator of sample `index` of a run, both ints >= 0."""
    return np.random.Philox(np.random.SeedSequence([seed, index]))


def grid_side(n_vocab):
    """Return R, the side of the smallest square that holds the vocabulary."""
    return math.ceil(math.sqrt(n_vocab))


def draw_uniforms(rngs, length, n_vocab):
    """Draw from each generator the numbers for its next `length` tokens, float32 [B, length, 2R].

    Each is a multiple of 2**-24 strictly between 0 and 1, exact. R is `grid_side(n_vocab)`.
    """
    width = 2 * grid_side(n_vocab)
    raw = np.stack([rng.random_raw(length * width) for rng in rngs])
    uniform = ((raw >> np.uint64(41)).astype(np.float64) + 0.5) * 2**-23
    return uniform.reshape([len(rngs), length, width]).astype(np.float32)
