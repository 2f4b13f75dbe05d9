"""Reports on the user's texts: JSON lines for programs, and a page made from report.html."""

import codecs
import html
import json
import math
import pathlib
import string

import numpy as np

from gpt2 import files
from gpt2.evaluation.loglikelihood import Scorer, exp, total_logprob

GROUP = 64  # documents to score before their results are written

# Classes of ranks, shown in different colours as in GLTR (Gehrmann, Strobelt and Rush 2019): the
# more tokens are of the first classes, the likelier it is that a model wrote the text.
RANK_CLASSES = ('1', '2-10', '11-100', '101-1000', '1001-')
RANK_LIMITS = (1, 10, 100, 1000)  # the last rank of each class but the last


def score_documents(model_dir, documents, options):
    """Score documents; write a JSON line for each, after its own fields, and a page if named."""
    scorer = Scorer(model_dir, progress=True)
    results = []
    for first in range(0, len(documents), GROUP):
        group = documents[first:first + GROUP]
        texts = [model_dir.encoder.encode(document['text']) for document in group]
        scores = scorer.loglikelihood_rolling(texts, options.batch_size, options.stride)
        for document, tokens, text_scores in zip(group, texts, scores):
            n_bytes = len(model_dir.encoder.decode_bytes(tokens))
            results.append(dict(document, **summarize(tokens, text_scores, n_bytes)))
            if not options.output:
                print(json.dumps(results[-1]), flush=True)
    if options.output:
        files.write_file(options.output, (json.dumps(result) + '\n' for result in results))
    if options.html:
        files.write_file(options.html, [page(results, model_dir)])


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


def page(results, model_dir):
    """Return the page that shows documents, given by their JSON lines."""
    template = pathlib.Path(__file__).with_name('report.html').read_text(encoding='utf-8')
    articles = [article(i, result, model_dir.encoder) for i, result in enumerate(results, 1)]
    return string.Template(template).substitute(model=html.escape(model_dir.name),
                                                documents=''.join(articles))


def article(number, result, encoder):
    """Return the part of the page for one document: its figures, a bar of its ranks, its text."""
    start = f'<article>\n<h2>Document {number}</h2>\n'
    if not result['n_tokens']:
        return f'{start}<p>This document is empty.</p>\n</article>\n'
    perplexity = result['perplexity']
    cells = [('tokens', f'{result["n_tokens"]:,}'),
             ('perplexity', 'above 1e308' if perplexity is None else f'{perplexity:,.2f}'),
             ('bits per byte', f'{result["bits_per_byte"]:.3f}'),
             ('log probability', f'{result["total_logprob"]:,.1f}')]
    figures = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in cells)
    return (f'{start}<dl>{figures}</dl>\n<div class="bar">{bar(result["rank_shares"])}</div>\n'
            f'<p class="text">{"".join(spans(result, encoder))}</p>\n</article>\n')


def bar(shares):
    """Return the elements of a bar that shows the shares of the rank classes."""
    return ''.join(f'<span class="r{i}" style="flex-grow:{share:.4f}" '
                   f'title="rank {name}: {100 * share:.1f} %">'
                   f'{f"{100 * share:.0f} %" if share >= 0.05 else ""}</span>'
                   for i, (name, share) in enumerate(shares.items()) if share)


def spans(result, encoder):
    """Yield an element for each token, or for tokens that form whole characters only together.

    It has the colour of the largest rank in it, and shows ranks and probabilities under the mouse.
    """
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    text, ranks, notes = '', [], []
    tokens = list(zip(result['tokens'], result['ranks'], result['logprobs']))
    for i, (token, rank, logprob) in enumerate(tokens, 1):
        text += decoder.decode(encoder.decode_bytes([token]), final=i == len(tokens))
        ranks.append(rank)
        notes.append(f'rank {rank}, probability {math.exp(logprob):.3g}')
        if text and not decoder.getstate()[0]:
            color, title = np.searchsorted(RANK_LIMITS, max(ranks)), '&#10;'.join(notes)
            yield f'<span class="r{color}" title="{title}">{html.escape(text)}</span>'
            text, ranks, notes = '', [], []
