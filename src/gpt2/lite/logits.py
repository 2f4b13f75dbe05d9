"""From logits to a token by SamplingOptions, as in `sample.py`, on NumPy arrays.

Weights, which are probabilities before they are divided by their sum, stand in for logits: those of
tokens that are filtered out are 0.
"""

import numpy as np

from gpt2.sampling.rng import grid_side

FILTERED = np.float32(-1e10)  # the logit of a token that is filtered out


def penalize(logits, texts, options):
    """Return logits that depend on the tokens in the texts, a list of ids a row: float32 [B, V].

    As `sample.penalize_repetition` and `sample.ban_repeated_ngrams`.
    """
    penalty, n = np.float32(options.repetition_penalty), options.no_repeat_ngram_size
    if penalty == 1 and n == 0:
        return logits
    logits = logits.copy()
    for row, text in zip(logits, map(np.array, texts)):
        scores = row[text]
        row[text] = np.where(scores < 0, scores * penalty, scores / penalty)
        if 0 < n <= len(text):
            ngrams = np.stack([text[i:len(text) - n + 1 + i] for i in range(n)])
            same = (ngrams[:-1] == text[len(text) - n + 1:, np.newaxis]).all(axis=0)
            row[ngrams[-1, same]] = FILTERED
    return logits


def process_logits(logits, options):
    """Return the weights to draw from: float32 [B, V] -> [B, R^2], padded with zeros.

    At temperature 0 there is nothing to draw: the logits are returned.
    """
    if options.greedy:
        return logits
    weights = softmax_weights(logits, options.temperature)
    for row in weights[:, :logits.shape[-1]]:
        if options.top_k > 0:
            row *= row >= top_k_threshold(row, options.top_k)
        if 0 < options.top_p < 1:
            row *= row >= nucleus_threshold(row, options.top_p)
        if options.min_p > 0:
            row *= row >= row.max() * np.float32(options.min_p)
        if 0 < options.typical_p < 1:
            row *= most_typical(row, options.typical_p)
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


def most_typical(weights, p):
    """Return which tokens `sample.typical_p_logits` keeps, of weights float32 [V]: bool [V]."""
    probabilities = weights / weights.sum()
    with np.errstate(divide='ignore'):
        information = -np.log(probabilities)  # of what is filtered out, infinity
    likely = probabilities > 0
    entropy = (probabilities[likely] * information[likely]).sum()
    distance = np.abs(information - entropy)
    order = distance.argsort()
    n_below = np.count_nonzero(probabilities[order].cumsum(dtype=np.float64) < p)
    return distance <= distance[order[min(n_below, likely.sum() - 1)]]


def sample_token(processed, uniforms, options):
    """Choose the next token of each row, with uniforms [B, 2R]: `process_logits`' -> int [B]."""
    return processed.argmax(axis=-1) if options.greedy else gumbel_sample(processed, uniforms)


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


def token_logprobs(logits, processed, token, options):
    """As `sample.token_logprobs`: float32 [B, V], `process_logits`', int [B] -> float32 [B, 2]."""
    chosen = np.arange(len(token)), token
    own = logits[chosen] - logits.max(axis=-1)
    own -= np.log(softmax_weights(logits).sum(axis=-1))
    if options.greedy:
        return np.stack([own, np.zeros_like(own)], axis=-1)
    drawn = np.log(processed[chosen] / processed.sum(axis=-1))
    return np.stack([own, drawn], axis=-1)


def top_logprobs(logits, n):
    """As `sample.top_logprobs`: float32 [B, V] -> int32 [B, n] and float32 [B, n]."""
    def likeliest(row):
        candidates = np.flatnonzero(row >= np.partition(row, -n)[-n])
        return candidates[np.argsort(-row[candidates], kind='stable')[:n]]

    tokens = np.stack([likeliest(row) if n else np.zeros(0) for row in logits]).astype(np.int32)
    below = np.take_along_axis(logits, tokens, axis=-1) - logits.max(axis=-1, keepdims=True)
    return tokens, below - np.log(softmax_weights(logits).sum(axis=-1, keepdims=True))
