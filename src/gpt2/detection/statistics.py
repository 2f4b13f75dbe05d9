"""Statistics by which the text of a model may be told from that of people, without training.

All come from one reading of the text by the model: `Scores` with entropies and variances.
"""

import collections
import math

import numpy as np

from gpt2.evaluation.loglikelihood import Scores

ROUNDING = 1e-3  # by which float32 may leave a range

# A figure of a text. `sign`: 1 if text of a model is expected to have the larger values, else -1;
# `low`, `high`: what a value cannot be below or above, apart from rounding; `meaning`: a sentence
# about it; `compute`: a function of the Scores of one token or more.
Statistic = collections.namedtuple('Statistic', 'name heading sign low high meaning compute')


def mean(values):
    """Return the mean in float64, whatever the type of the values."""
    return np.mean(values, dtype=np.float64)


def log_likelihood_log_rank_ratio(scores):
    """Return LRR (Su et al. 2023, equation 1): -sum(log p) / sum(log rank).

    The divisor is at least log 2, as if one token had rank 2, so that there is always a quotient.
    """
    log_ranks = np.log(scores.ranks.astype(np.float64)).sum()
    return -scores.logprobs.sum(dtype=np.float64) / max(log_ranks, math.log(2))


def fast_detectgpt(scores):
    """Return the sampling discrepancy of Fast-DetectGPT (Bao et al. 2024), white box, analytic.

    It is (sum(log p) - sum(mu)) / sqrt(sum(sigma^2)), where mu = sum(p log p) and sigma^2 =
    sum(p log^2 p) - mu^2 are the mean and the variance of the log probability of a token that the
    model draws at this place; 0 if nothing varies.
    """
    surprise = scores.logprobs.astype(np.float64) + scores.entropies
    variance = scores.variances.sum(dtype=np.float64)
    return surprise.sum() / math.sqrt(variance) if variance > 0 else 0.0


STATISTICS = (
    Statistic('log_likelihood', 'log likelihood', 1, -math.inf, ROUNDING,
              'Mean log probability of a token, in nats.',
              lambda scores: mean(scores.logprobs)),
    Statistic('rank', 'rank', -1, 1, math.inf,
              'Mean rank of a token among all that were possible (Gehrmann et al. 2019, GLTR).',
              lambda scores: mean(scores.ranks)),
    Statistic('log_rank', 'log rank', -1, 0, math.inf,
              'Mean natural logarithm of the rank (Mitchell et al. 2023).',
              lambda scores: mean(np.log(scores.ranks.astype(np.float64)))),
    Statistic('entropy', 'entropy', -1, -ROUNDING, math.inf,
              'Mean entropy of what the model expects, in nats; low where it is sure (GLTR).',
              lambda scores: mean(scores.entropies)),
    Statistic('lrr', 'LRR', 1, -ROUNDING, math.inf,
              'Log likelihood divided by log rank, without its sign (Su et al. 2023).',
              log_likelihood_log_rank_ratio),
    Statistic('top_10', 'top 10', 1, 0, 1, 'Share of tokens among the 10 likeliest (GLTR).',
              lambda scores: mean(scores.ranks <= 10)),
    Statistic('top_100', 'top 100', 1, 0, 1, 'Share of tokens among the 100 likeliest (GLTR).',
              lambda scores: mean(scores.ranks <= 100)),
    Statistic('fast_detectgpt', 'Fast-DetectGPT', 1, -math.inf, math.inf,
              'By how many standard deviations the text is likelier than what the model would draw '
              'at each place (Bao et al. 2024).', fast_detectgpt),
)


def text_statistics(scores):
    """Return the STATISTICS of a text of one token or more, float64 [S], given its Scores."""
    return np.array([statistic.compute(scores) for statistic in STATISTICS])


def statistics_table(all_scores, lengths):
    """Return the STATISTICS of the first tokens of texts, float64 [N, S].

    `all_scores` are the Scores of N texts, `lengths` how many tokens of each count, int [N]. A row
    of NaN stands for a text of which none do.
    """
    table = np.full([len(all_scores), len(STATISTICS)], np.nan)
    for row, scores, length in zip(table, all_scores, lengths):
        if length:
            row[:] = text_statistics(Scores(*(values[:length] for values in scores)))
    return table
