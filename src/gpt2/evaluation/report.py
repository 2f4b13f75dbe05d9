"""Scores of the user's texts: JSON lines for programs, a table on a terminal, and a page."""

import json
import sys

from gpt2 import files
from gpt2.evaluation.page import TOP, page
from gpt2.evaluation.scorer import open_scorer
from gpt2.evaluation.summary import COLUMNS, figures, headings, summarize

GROUP = 64  # documents to score before their results are written
WIDTHS = (9, 14, 13, 11, 9, 9, 9)  # of COLUMNS on a terminal
LONGEST_NAME = 40  # characters of a document's heading there


def score_documents(model_dir, documents, options):
    """Score documents, dicts with `text`, `file` and perhaps `prompt`; write what `options` name.

    That is a JSON line for each document, its own fields first, or a row on a terminal; and a page.
    """
    top = min(TOP, model_dir.hparams.n_vocab) if options.html else None
    names = headings(documents)
    show = print_nothing if options.output else (
        open_table(names) if sys.stdout.isatty() else print_line)
    results, scores = [], []
    with open_scorer(model_dir, options, top=top) as scorer:
        for first in range(0, len(documents), GROUP):
            group = slice(first, first + GROUP)
            for name, (result, document_scores) in zip(
                    names[group], score_group(scorer, model_dir, documents[group], options)):
                show(name, result)
                results.append(result)
                scores.append(document_scores if options.html else None)
    if options.output:
        files.write_file(options.output, (json.dumps(result) + '\n' for result in results))
    if options.html:
        files.write_file(options.html, [page(model_dir, names, results, scores)])


def score_group(scorer, model_dir, documents, options):
    """Return what each document becomes, a dict that JSON can hold, and its Scores."""
    encoder = model_dir.encoder
    texts = [encoder.encode(document['text']) for document in documents]
    prompts = [encoder.encode(document.get('prompt') or '') for document in documents]
    scores = scorer.loglikelihood([*zip(prompts, texts)], options.batch_size, options.stride)
    return [(dict(document, **summarize(tokens, s, len(encoder.decode_bytes(tokens)))), s)
            for document, tokens, s in zip(documents, texts, scores)]


def print_nothing(name, result):
    """Show nothing of a document: its line goes to a file."""


def print_line(name, result):
    """Print a document as a JSON line."""
    print(json.dumps(result), flush=True)


def open_table(names):
    """Print the head of a table of documents; return a function that prints the row of one."""
    width = max(len('document'), *(min(len(name), LONGEST_NAME) for name in names))

    def print_row(name, texts):
        name = name if len(name) <= width else name[:width - 1] + '…'
        cells = [f'{text:>{n}}' for text, n in zip(texts, WIDTHS)]
        print(''.join([f'{name:{width}}', *cells]).rstrip(), flush=True)

    print_row('document', COLUMNS)
    return lambda name, result: print_row(name, figures(result))
