"""From logits to a token by SamplingOptions, as in `sample.py`, on NumPy arrays.

Weights, which are probabilities before they are divided by their sum, stand in for logits: those of
tokens that are filtered out are 0.
"""

import numpy as np

from gpt2.sampling.rng import grid_side


def sample_token(logits, uniforms, options):
    """Choose the next token of each row, with uniforms [B, 2R]: float32 [B, V] -> int [B]."""
    if options.greedy:
        return logits.argmax(axis=-1)
    return gumbel_sample(process_logits(logits, options), uniforms)


def process_logits(logits, options):
    """Return the weights to draw from: float32 [B, V] -> [B, R^2], padded with zeros."""
    weights = softmax_weights(logits, options.temperature)
    for row in weights[:, :logits.shape[-1]]:
        if options.top_k > 0:
            row *= row >= top_k_threshold(row, options.top_k)
        if 0 < options.top_p < 1:
            row *= row >= nucleus_threshold(row, options.top_p)
    return weights


def softmax_weights(logits, temperature=1):
    """Return e^(logits / temperature), up to a factor a row: float32 [B, V] -> [B, R^2]."""
    n_batch, n_vocab = logits.shape
    padded = np.zeros([n_batch, grid_side(n_vocab) ** 2], np.float32)
    weights = padded[:, :n_vocab]  # a view: all is done in place, as memory costs more than sums
    np.subtract(logits, logits.max(axis=-1, keepdims=True), out=weights)
    weights /= np.float32(max(temperature, 1e-30))
    np.exp(weights, out=weights)
    return padded


def top_k_threshold(weights, k):
    """Return the k-th largest of weights [V].

    Cut into groups, k of them have a largest member that reaches the k-th largest of those, and so
    does the weight we look for. This leaves out most of the vocabulary before anything is sorted.
    """
    size = max(1, min(256, len(weights) // k))
    largest = weights[:len(weights) // size * size].reshape([-1, size]).max(axis=-1)
    candidates = weights[weights >= np.partition(largest, -k)[-k]]
    return np.partition(candidates, -k)[-k]


def nucleus_threshold(weights, p):
    """Return the smallest weight that top-p keeps, of weights float32 [V].

    Only the few weights near it are sorted: floats that are not negative compare as their bits do,
    so sums over those that begin with the same bits tell where it is.
    """
    bits = weights.view(np.int32) >> 19
    # In the types that bincount works with: its own casts take five times as long.
    mass = np.bincount(bits.astype(np.intp), weights.astype(np.float64))
    larger = mass[::-1].cumsum()[::-1] - mass
    limit = p * mass.sum()
    group = np.argmax(larger < limit)  # the first: of the smallest weights
    near = np.sort(weights[bits == group])[::-1]
    n_kept = np.count_nonzero(larger[group] + near.cumsum(dtype=np.float64) - near < limit)
    return near[max(n_kept, 1) - 1]


def gumbel_sample(weights, uniforms):
    """Draw one token of each row, as `sample.gumbel_sample`: float32 [B, R^2] -> int [B]."""
    n_batch, side = len(weights), uniforms.shape[-1] // 2
    grid = weights.reshape([n_batch, side, side])
    gumbel = -np.log(-np.log(uniforms))
    with np.errstate(divide='ignore'):  # the logarithm of 0 is never the largest
        row = (np.log(grid.sum(axis=-1)) + gumbel[:, :side]).argmax(axis=-1)
        in_row = np.log(grid[np.arange(n_batch), row])  # [B, R]
    column = (in_row + gumbel[:, side:]).argmax(axis=-1)
    return row * side + column


def token_logprobs(logits, token, options):
    """As `sample.token_logprobs`: logits float32 [B, V], tokens int [B] -> float32 [B, 2]."""
    chosen = np.arange(len(token)), token
    own = logits[chosen] - logits.max(axis=-1)
    own -= np.log(softmax_weights(logits).sum(axis=-1))
    if options.greedy:
        return np.stack([own, np.zeros_like(own)], axis=-1)
    weights = process_logits(logits, options)
    return np.stack([own, np.log(weights[chosen] / weights.sum(axis=-1))], axis=-1)
