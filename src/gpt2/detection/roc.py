"""How well values separate two sides: ROC curves, the area below them, and thresholds.

The sides are called human, N values, and synthetic, M values; a text counts as synthetic if its
value is at or above a threshold.
"""

import collections
import math

import numpy as np

NORMAL_QUANTILE = 1.959963984540054  # 97.5 % of the standard normal distribution are below
FALSE_POSITIVE_RATE = 0.01  # at which true positives are counted

# An area below a ROC curve, and its interval of 95 % confidence.
Auroc = collections.namedtuple('Auroc', 'value low high')


def roc_curve(human, synthetic):
    """Return the ROC curve of values [N] and [M]: thresholds, false and true positive rates.

    Each is float64 [T + 1], for T different values; the first threshold, infinity, leaves nothing.
    """
    thresholds = np.append(np.inf, np.unique(np.append(human, synthetic))[::-1])
    return (thresholds, *(1 - np.searchsorted(np.sort(values), thresholds) / len(values)
                          for values in (human, synthetic)))


def auroc(human, synthetic):
    """Return the Auroc of values [N] and [M], two or more each: P(synthetic > human).

    Ties count half, as for Mann and Whitney (1947). The interval is that of DeLong, DeLong and
    Clarke-Pearson (1988): the variance of the area is that of the placements of synthetic values,
    divided by M, and of human ones, divided by N. Sorting takes the place of comparing all pairs,
    as Sun and Xu (2014) proposed. The interval is cut to 0 to 1, and is of no width at 0 and 1.
    """
    synthetic_places = placements(synthetic, human)
    human_places = 1 - placements(human, synthetic)
    value = synthetic_places.mean()
    variance = sum(np.var(places, ddof=1) / len(places)
                   for places in (synthetic_places, human_places))
    margin = NORMAL_QUANTILE * math.sqrt(variance)
    return Auroc(float(value), float(max(0, value - margin)), float(min(1, value + margin)))


def placements(values, others):
    """Return the share of others [M] that is below each value [N], with ties counted half: [N]."""
    others = np.sort(others)
    return sum(np.searchsorted(others, values, side) for side in ('left', 'right')) / (
        2 * len(others))


def best_threshold(human, synthetic):
    """Return the threshold of the highest `accuracy`, one of the values; the highest of several."""
    thresholds, false_positives, true_positives = roc_curve(human, synthetic)
    return float(thresholds[1:][np.argmax((true_positives - false_positives)[1:])])


def accuracy(human, synthetic, threshold):
    """Return the mean of the shares of both sides that a threshold tells rightly.

    For sides of the same size it is the share of all texts.
    """
    return float((np.mean(human < threshold) + np.mean(synthetic >= threshold)) / 2)


def true_positive_rate(human, synthetic, rate=FALSE_POSITIVE_RATE):
    """Return the share of synthetic values above all but `rate` of the human ones.

    Of fewer than 1 / rate human values, none may be as high.
    """
    allowed = int(rate * len(human) + 1e-9)  # of 0.01 * 700, for one, rounding might take one
    return float(np.mean(synthetic > np.sort(human)[::-1][allowed]))
