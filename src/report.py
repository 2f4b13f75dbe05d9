"""Scores documents: JSON lines for programs, and a page in HTML for readers."""

import codecs
import html
import json
import math
import os
import sys

import numpy as np

import checkpoint
import cli
import corpora

GROUP = 64  # documents to score before their results are written

# Ranks are told apart as in GLTR (Gehrmann, Strobelt and Rush 2019): the more of the first classes,
# the likelier a text is a model's own.
CLASSES = ('1', '2-10', '11-100', '101-1000', '1001-')
LIMITS = (1, 10, 100, 1000)  # the last rank of each class but the last


# Files

def read_documents(path):
    """Returns the documents of a file, or of stdin for -: dicts with at least a `text`.

    A file that begins with { or is named *.jsonl holds JSON objects, one a line; any other is one
    document.

    Raises:
      UserError: the file is missing, empty or malformed; the message names the line.
    """
    data = sys.stdin.buffer.read() if path == '-' else corpora.read_bytes(path)
    name = 'stdin' if path == '-' else path
    text = corpora.decode(name, data)
    if not (text.startswith('{') or path.endswith('.jsonl')):
        return [{'text': text}]
    documents = []
    for number, line in enumerate(text.split('\n'), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            raise cli.UserError('%s, line %d: this is not JSON; correct the file' % (name, number))
        if not isinstance(document, dict) or not isinstance(document.get('text'), str):
            raise cli.UserError('%s, line %d: this is not an object with a "text"; correct the file'
                                % (name, number))
        documents.append(document)
    return documents


def check_writable(path):
    """Raises UserError if a file cannot be written there, before hours go into what it holds."""
    try:
        open(path + '.partial', 'w').close()
        os.remove(path + '.partial')
    except OSError as error:
        raise cli.UserError('%s cannot be written: %s' % (path, error.strerror))


# Scores

def score_documents(run, documents, output, html_path):
    """Scores documents and writes a JSON line for each, and a page if `html_path` is given.

    Args:
      run: an evaluate.Run.
      documents: dicts with a `text`; what else is in them comes out again.
      output: the file to write, or None for stdout.
    """
    results = []
    for first in range(0, len(documents), GROUP):
        group = score_group(run, documents[first:first + GROUP])
        if not output:
            for result in group:
                print(json.dumps(result), flush=True)
        results += group
    if output:
        checkpoint.write_file(output, [json.dumps(result) + '\n' for result in results])
    if html_path:
        checkpoint.write_file(html_path, page(results, run.opened))


def score_group(run, documents):
    """Returns the results of some documents, see `evaluate.evaluate` for what is in them."""
    encoder = run.opened.encoder
    start = encoder.encoder[checkpoint.END_OF_TEXT]
    texts = [encoder.encode(document['text']) for document in documents]
    scores = run.scorer.score([[start] + text for text in texts], run.batch_size, run.stride)
    return [dict(document, **summary(text, s, len(encoder.decode_bytes(text))))
            for document, text, s in zip(documents, texts, scores)]


def summary(tokens, scores, n_bytes):
    """Returns what is said about one document; the figures of an empty one are None."""
    total = float(scores.log_probs.sum(dtype=np.float64))
    n = len(tokens)
    classes = np.bincount(np.searchsorted(LIMITS, scores.ranks), minlength=len(CLASSES))
    return {
        'n_tokens': n,
        'n_bytes': n_bytes,
        'total_log_prob': total,
        'mean_log_prob': total / n if n else None,
        'perplexity': math.exp(-total / n) if n else None,
        'bits_per_byte': -total / math.log(2) / n_bytes if n else None,
        'rank_shares': {name: count / n if n else None
                        for name, count in zip(CLASSES, classes.tolist())},
        'tokens': tokens,
        'log_probs': [float('%.6g' % value) for value in scores.log_probs],
        'ranks': scores.ranks.tolist(),
    }


# The page

def page(results, opened):
    """Yields the parts of a page in HTML that shows documents, tokens coloured by rank."""
    name = html.escape(os.path.basename(opened.directory))
    yield HEAD % {'title': 'Text as %s sees it' % name, 'model': name}
    for number, result in enumerate(results, 1):
        yield '<article>\n<h2>Document %d</h2>\n' % number
        if result['n_tokens']:
            yield figures(result) + bar(result)
            yield '<p class="text">%s</p>\n' % ''.join(spans(result, opened.encoder))
        else:
            yield '<p>This document is empty.</p>\n'
        yield '</article>\n'
    yield '</main>\n</body>\n</html>\n'


def figures(result):
    """Returns the line of figures of a document."""
    cells = [('tokens', '{:,}'.format(result['n_tokens'])),
             ('perplexity', '{:,.2f}'.format(result['perplexity'])),
             ('bits per byte', '%.3f' % result['bits_per_byte']),
             ('log probability', '{:,.1f}'.format(result['total_log_prob']))]
    return '<dl>%s</dl>\n' % ''.join('<div><dt>%s</dt><dd>%s</dd></div>' % cell for cell in cells)


def bar(result):
    """Returns the bar of rank classes of a document."""
    parts = ['<span class="r%d" style="flex-grow:%.4f" title="rank %s: %.1f %%">%s</span>'
             % (i, share, name, 100 * share, '%.0f %%' % (100 * share) if share >= 0.05 else '')
             for i, (name, share) in enumerate(result['rank_shares'].items()) if share]
    return '<div class="bar">%s</div>\n' % ''.join(parts)


def spans(result, encoder):
    """Yields an element for each token, or for tokens that only together are whole characters.

    It has the colour of the largest rank in it, and tells ranks and probabilities under the mouse.
    """
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    text, ranks, notes = '', [], []
    tokens = list(zip(result['tokens'], result['ranks'], result['log_probs']))
    for i, (token, rank, log_prob) in enumerate(tokens, 1):
        text += decoder.decode(encoder.decode_bytes([token]), final=i == len(tokens))
        ranks.append(rank)
        notes.append('rank %d, probability %.3g' % (rank, math.exp(log_prob)))
        if text and not decoder.getstate()[0]:
            yield '<span class="r%d" title="%s">%s</span>' % (
                np.searchsorted(LIMITS, max(ranks)), '&#10;'.join(notes), html.escape(text))
            text, ranks, notes = '', [], []


HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<style>
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5d6873; --page: #f5f6f8; --card: #fff;
  --r0: #d5efd0; --r1: #fbf1b4; --r2: #fcd3a6; --r3: #f6a9a4; --r4: #cfb3ee; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa5b1; --page: #14171a; --card: #1e2328;
    --r0: #1f4d2b; --r1: #5b5213; --r2: #71451a; --r3: #7d2f31; --r4: #55378a; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 52rem; margin: 0 auto; padding: 2rem 1rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 0 0 .75rem; }
.note { color: var(--soft); margin: .25rem 0 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: 1.5rem; font-size: .85rem; }
.legend span { padding: .1rem .6rem; border-radius: 1rem; }
article { background: var(--card); border-radius: .6rem; padding: 1.25rem 1.5rem; margin: 1rem 0;
  box-shadow: 0 1px 3px rgba(0, 0, 0, .15); }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 0 .75rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.bar { display: flex; height: 1.4rem; border-radius: .35rem; overflow: hidden; font-size: .75rem;
  line-height: 1.4rem; margin-bottom: 1rem; }
.bar span { flex-basis: 0; text-align: center; white-space: nowrap; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; margin: 0; }
.text span { border-radius: .2rem; padding: .1rem 0; }
.text span:hover { outline: 2px solid var(--ink); }
.r0 { background: var(--r0); } .r1 { background: var(--r1); } .r2 { background: var(--r2); }
.r3 { background: var(--r3); } .r4 { background: var(--r4); }
</style>
</head>
<body>
<main>
<h1>%(title)s</h1>
<p class="note">A token's colour is its rank among all that %(model)s thought could come next. Point
at one to see its rank and its probability.</p>
<div class="legend"><span class="r0">likeliest: rank 1</span><span class="r1">2 to 10</span><span
class="r2">11 to 100</span><span class="r3">101 to 1,000</span><span class="r4">beyond</span></div>
"""
