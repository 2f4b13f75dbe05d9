"""A document's figures, and how tables show them."""

import collections
import math

import numpy as np

from gpt2.evaluation.loglikelihood import exp, total_logprob

# Classes of ranks, shown in different colours as in GLTR (Gehrmann, Strobelt and Rush 2019): the
# more tokens are of the first classes, the likelier it is that a model wrote the text.
RANK_CLASSES = ('1', '2-10', '11-100', '101-1000', '1001-')
RANK_LIMITS = (1, 10, 100, 1000)  # the last rank of each class but the last

COLUMNS = ('tokens', 'mean logprob', 'perplexity', 'bits/byte', 'rank 1', 'top 10', 'top 100')
LONGEST_TITLE = 60  # characters
TITLES = ('title', 'id', 'index')  # fields by which a document may be known, the best first


def summarize(tokens, scores, n_bytes):
    """Return the figures of one document, see the help of evaluate.py; None for an empty one's."""
    total, n = total_logprob(scores), len(tokens)
    classes = np.searchsorted(RANK_LIMITS, scores.ranks)
    counts = np.bincount(classes, minlength=len(RANK_CLASSES)).tolist()
    shares = [count / n if n else None for count in counts]
    return {'n_tokens': n, 'n_bytes': n_bytes, 'total_logprob': total,
            'mean_logprob': total / n if n else None,
            'perplexity': exp(-total / n) if n else None,
            'bits_per_byte': -total / math.log(2) / n_bytes if n else None,
            'rank_shares': dict(zip(RANK_CLASSES, shares)), 'tokens': tokens,
            'logprobs': [float(f'{value:.6g}') for value in scores.logprobs],
            'ranks': scores.ranks.tolist()}


def figures(result):
    """Return what `summarize` returned as the texts below COLUMNS."""
    if not result['n_tokens']:
        return ['0'] + [''] * (len(COLUMNS) - 1)
    perplexity = result['perplexity']
    up_to = np.cumsum([*result['rank_shares'].values()][:3])
    return [f'{result["n_tokens"]:,}', f'{result["mean_logprob"]:.3f}',
            'above 1e308' if perplexity is None else f'{perplexity:,.2f}' if perplexity < 1e6
            else f'{perplexity:.3g}',
            f'{result["bits_per_byte"]:.3f}', *(f'{100 * share:.1f} %' for share in up_to)]


def headings(documents):
    """Return what documents are called: by file, number in it if that has several, and title."""
    totals = collections.Counter(document['file'] for document in documents)
    numbers, names = collections.Counter(), []
    for document in documents:
        file = document['file']
        numbers[file] += 1
        number = f', {numbers[file]}' if totals[file] > 1 else ''
        title = next((document[field] for field in TITLES
                      if isinstance(document.get(field), (str, int))), '')
        title = one_line(str(title))[:LONGEST_TITLE]
        names.append(one_line(file) + number + (f': {title}' if title else ''))
    return names


def one_line(text):
    """Return a text without anything that a terminal or a page would act on."""
    return ''.join(c if c.isprintable() else ' ' if c.isspace() else '\ufffd' for c in text).strip()
