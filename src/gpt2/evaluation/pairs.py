"""Pairs of texts that differ in whom they speak of: which one the model finds likelier.

    pairs -> log likelihoods of both texts -> the share of pairs whose first text is likelier
"""

import collections
import json
import math
import sys

import numpy as np

from gpt2 import files
from gpt2.detection.roc import NORMAL_QUANTILE
from gpt2.evaluation import readers
from gpt2.evaluation.loglikelihood import total_logprob
from gpt2.evaluation.scorer import open_scorer
from gpt2.evaluation.summary import one_line

# A task of pairs. `read`: a function from a path to dicts with a `first` and a `second` text;
# `groups`: the fields of a pair by which the shares are also given.
PairTask = collections.namedtuple('PairTask', 'read groups')

PAIR_TASKS = {'pairs': PairTask(readers.read_pairs, ['category']),
              'crows_pairs': PairTask(readers.read_crows_pairs, ['direction', 'category'])}

MEASURE = 'total log likelihood'
COLUMNS = ('pairs', 'first likelier', '95 % interval', 'mean difference')
WIDTHS = (8, 16, 18, 17)  # of COLUMNS on a terminal


def compare_pairs(model_dir, pairs, options):
    """Print the shares of pairs, dicts as PairTask says; write each pair to options.output.

    On a terminal that is a row for all pairs and for each group, otherwise a JSON object a line.
    """
    results = score_pairs(model_dir, pairs, options)
    rows = [summarize(group, members)
            for group, members in group_pairs(results, PAIR_TASKS[options.task].groups)]
    if sys.stdout.isatty():
        print_table(rows)
    else:
        for row in rows:
            print(json.dumps(row))
    if options.output:
        files.write_file(options.output, (json.dumps(result) + '\n' for result in results))


def score_pairs(model_dir, pairs, options):
    """Return the pairs with their log likelihoods, in nats, of whole texts after <|endoftext|>."""
    # Each text once: in another row of a batch, the same text may differ in its last bits.
    texts = list(dict.fromkeys(pair[side] for pair in pairs for side in ('first', 'second')))
    with open_scorer(model_dir, options) as scorer:
        scores = scorer.loglikelihood_rolling([*map(model_dir.encoder.encode, texts)],
                                              options.batch_size, options.stride)
    totals = dict(zip(texts, map(total_logprob, scores)))
    return [compare(pair, totals[pair['first']], totals[pair['second']]) for pair in pairs]


def compare(pair, first, second):
    """Return a pair with the log likelihoods of its texts, and which one is likelier."""
    likelier = None if first == second else 'first' if first > second else 'second'
    return dict(pair, first_logprob=first, second_logprob=second, difference=first - second,
                likelier=likelier)


def group_pairs(pairs, fields):
    """Yield groups of pairs: all, then those with each value of each field.

    A group is a dict of what its pairs have in common, {'category': 'age'}, and a list of them.
    """
    yield {}, pairs
    for field in fields:
        groups = collections.defaultdict(list)
        for pair in pairs:
            groups[pair[field]].append(pair)
        for value in sorted(groups):
            yield {field: value}, groups[value]


def summarize(group, pairs):
    """Return the figures of a group, a dict. A tie does not count as `first_likelier`."""
    n_first = sum(pair['likelier'] == 'first' for pair in pairs)
    return {'group': group, 'measure': MEASURE, 'pairs': len(pairs), 'first_likelier': n_first,
            'share': n_first / len(pairs), 'interval': wilson_interval(n_first, len(pairs)),
            'mean_difference': float(np.mean([pair['difference'] for pair in pairs]))}


def wilson_interval(k, n):
    """Return the 95 % score interval of a share, from k hits in n independent trials.

    It has the shares p from which k / n is at most NORMAL_QUANTILE standard errors,
    sqrt(p (1 - p) / n), away (Wilson 1927).
    """
    share, spread = k / n, NORMAL_QUANTILE**2 / n
    centre, radius = share + spread / 2, math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    return [max(0., (centre - radius) / (1 + spread)), min(1., (centre + radius) / (1 + spread))]


def print_table(rows):
    """Print what `summarize` returned, a row for each group."""
    names = [one_line(next(iter(row['group'].values()), 'all')) for row in rows]
    width = max(map(len, [f'by {MEASURE}', *names]))
    cells = [COLUMNS, *map(figures, rows)]
    for name, texts in zip([f'by {MEASURE}', *names], cells):
        print(''.join([f'{name:{width}}', *(f'{text:>{n}}' for text, n in zip(texts, WIDTHS))]))


def figures(row):
    """Return the figures of a group as the texts below COLUMNS."""
    low, high = row['interval']
    return [f'{row["pairs"]:,}', f'{100 * row["share"]:.1f} %',
            f'{100 * low:.1f} to {100 * high:.1f} %', f'{row["mean_difference"]:.2f} nats']
