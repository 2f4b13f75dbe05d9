"""Comparisons of texts by people with texts by a model: how well each detector tells them apart.

    texts -> scores -> cut to equal lengths -> statistics -> AUROC, accuracy, true positives
"""

import collections
import math

import numpy as np

from gpt2.detection import roc, tfidf
from gpt2.detection.statistics import STATISTICS, Statistic, statistics_table

FEWEST_TEXTS = 10  # of a side; with fewer, figures say nothing

# A text: its token ids, a list, and their Scores.
Text = collections.namedtuple('Text', 'tokens scores')

# What tells texts apart: a Statistic, the values of the human texts [N] and of the synthetic ones
# [M] that it was measured on, and its figures, a dict that JSON can hold.
Detector = collections.namedtuple('Detector', 'statistic human synthetic figures')

TFIDF = Statistic('tfidf', 'TF-IDF', 1, -math.inf, math.inf,
                  'Logistic regression on TF-IDF of words and pairs of words, trained on the '
                  'validation half and measured on the other half: log odds.', None)


def equal_lengths(human, synthetic):
    """Return how many tokens to keep of texts, given their lengths, int [N] and [M]: [N] and [M].

    The longest human text is paired with the longest synthetic one, and so on, and both texts of a
    pair are cut to the shorter one's length: so length says nothing about the side. Of the larger
    side only as many texts are used, its first ones; 0 stands for the others.
    """
    n = min(len(human), len(synthetic))
    shorter = np.minimum(np.sort(human[:n]), np.sort(synthetic[:n]))
    cuts = np.zeros(len(human), np.int64), np.zeros(len(synthetic), np.int64)
    for cut, lengths in zip(cuts, (human, synthetic)):
        cut[np.argsort(lengths[:n], kind='stable')] = shorter
    return cuts


def fixed_length(lengths, length):
    """Return how many tokens to keep of texts of these lengths [N]: 0 of those that are shorter."""
    return np.where(lengths >= length, length, 0)


def usable_lengths(human, synthetic, lengths):
    """Return those of some lengths, in order, that FEWEST_TEXTS of both sides have or exceed."""
    return [length for length in sorted(set(lengths))
            if min(np.sum(side >= length) for side in (human, synthetic)) >= FEWEST_TEXTS]


def compare(sides, cuts, seed, encoder=None):
    """Return the Detectors of two sides, lists of Texts: human and synthetic.

    `cuts` are how many tokens of each text to use, int [N] and [M], none where 0. `seed` decides
    which half of each side is for validation. With an `encoder`, TF-IDF is also trained.
    """
    tables = [statistics_table([text.scores for text in side], cut)[cut > 0]
              for side, cut in zip(sides, cuts)]
    halves = [validation_half(len(table), seed) for table in tables]
    detectors = [measure(statistic, *(table[:, i] for table in tables), halves)
                 for i, statistic in enumerate(STATISTICS)]
    if encoder:
        texts = [[encoder.decode(text.tokens[:n]) for text, n in zip(side, cut) if n]
                 for side, cut in zip(sides, cuts)]
        detectors.append(measure_tfidf(texts, halves))
    return detectors


def validation_half(n, seed):
    """Return which of n texts are for validation, bool [n]: half of them, drawn with a seed."""
    half = np.zeros(n, bool)
    half[np.random.RandomState(seed).permutation(n)[:n // 2]] = True
    return half


def measure(statistic, human, synthetic, halves):
    """Return the Detector of a statistic with the values [N] and [M].

    Its threshold is the best on the validation halves, bool [N] and [M]; its accuracy is that on
    the other halves. The other figures are of all texts.
    """
    sides = [statistic.sign * values for values in (human, synthetic)]
    threshold = roc.best_threshold(*(values[half] for values, half in zip(sides, halves)))
    accuracy = roc.accuracy(*(values[~half] for values, half in zip(sides, halves)), threshold)
    return Detector(statistic, human, synthetic,
                    figures(statistic, sides, threshold, accuracy))


def measure_tfidf(texts, halves):
    """Train TF-IDF on the validation halves of human and synthetic texts; return its Detector.

    All figures are of the other halves. The threshold, 0, is the one that training chose.
    """
    train, test = ([[text for text, is_chosen in zip(side, chosen) if is_chosen]
                    for side, chosen in zip(texts, masks)]
                   for masks in (halves, [~half for half in halves]))
    values = tfidf.classify(*train, *test)
    return Detector(TFIDF, *values,
                    figures(TFIDF, values, 0.0, roc.accuracy(*values, 0.0)))


def figures(statistic, sides, threshold, accuracy):
    """Return the figures of a detector whose synthetic values are the larger ones."""
    area = roc.auroc(*sides)
    return {'statistic': statistic.name, 'human_texts': len(sides[0]),
            'synthetic_texts': len(sides[1]), 'auroc': area.value,
            'auroc_interval': [area.low, area.high], 'accuracy': accuracy,
            'threshold': statistic.sign * threshold,
            'true_positive_rate': roc.true_positive_rate(*sides)}
