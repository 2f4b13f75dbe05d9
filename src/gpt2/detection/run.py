"""The task detect: tells texts by a model from texts by people, and places one among them."""

import itertools
import json
import sys

import numpy as np

from gpt2 import files
from gpt2.detection import report
from gpt2.detection.comparison import (
    FEWEST_TEXTS,
    Text,
    compare,
    equal_lengths,
    fixed_length,
    usable_lengths,
)
from gpt2.detection.page import page
from gpt2.detection.reference import (
    comparisons,
    is_reference,
    read_reference,
    write_reference,
)
from gpt2.detection.tfidf import require_sklearn
from gpt2.errors import UserError
from gpt2.evaluation.readers import read_documents
from gpt2.evaluation.scorer import open_scorer
from gpt2.evaluation.summary import headings
from gpt2.model_dir import weights_digest
from gpt2.options import as_tuple

DEFAULT_LENGTHS = (50, 100, 200, 500, 1000)


def detect(model_dir, options):
    """Run the task detect, as EvaluationOptions say. Raises UserError."""
    if options.human:
        compare_files(model_dir, options)
    else:
        place_files(model_dir, options)


def read_files(paths, limit):
    """Return the documents of files, at most `limit`. Raises UserError."""
    return [*itertools.chain.from_iterable(map(read_documents, as_tuple(paths)))][:limit]


def encode(encoder, documents):
    """Return the token ids of what stands before documents, and of their texts: pairs of lists."""
    return [(encoder.encode(document.get('prompt') or ''), encoder.encode(document['text']))
            for document in documents]


def score(model_dir, pairs, options):
    """Return the Texts of pairs of a context and a text, as lists of token ids."""
    with open_scorer(model_dir, options, top=0) as scorer:
        scores = scorer.loglikelihood(pairs, options.batch_size, options.stride)
    return [Text(tokens, text_scores) for (_, tokens), text_scores in zip(pairs, scores)]


# ---- two sides ---------------------------------------------------------------------------------


def compare_files(model_dir, options):
    """Measure how well human and synthetic texts are told apart; write what the options name."""
    if options.baseline:
        require_sklearn()
    documents = [read_files(paths, options.limit) for paths in (options.human, options.synthetic)]
    sides = [[pair for pair in encode(model_dir.encoder, side) if pair[1]]
             for side in documents]  # nothing can be said about an empty text
    lengths = [np.array([len(tokens) for _, tokens in pairs]) for pairs in sides]
    curve = check_lengths(lengths, options)
    texts = score(model_dir, sides[0] + sides[1], options)
    texts = texts[:len(sides[0])], texts[len(sides[0]):]
    cuts = equal_lengths(*lengths) if options.equal_lengths else lengths
    encoder = model_dir.encoder if options.baseline else None
    detectors = compare(texts, cuts, options.seed, encoder)
    by_length = [(length, compare(texts, [fixed_length(side, length) for side in lengths],
                                  options.seed, encoder)) for length in curve]
    result = as_json(model_dir, options, [len(side) for side in documents], cuts, detectors,
                     by_length)
    write(result, texts, lengths, curve, options)
    if options.html:
        files.write_file(options.html, [page(result, detectors, by_length)])


def check_lengths(lengths, options):
    """Return the lengths to measure at. Raises UserError if there are too few texts for any."""
    for name, side in zip(('human', 'synthetic'), lengths):
        if len(side) < FEWEST_TEXTS:
            raise UserError(f'--{name} has too few texts, {len(side)}; name a file with '
                            f'{FEWEST_TEXTS} or more that are not empty')
    wanted = as_tuple(options.lengths) or DEFAULT_LENGTHS
    curve = usable_lengths(*lengths, wanted)
    if not curve and is_reference(options.output):
        raise UserError(f'a reference needs {FEWEST_TEXTS} texts of each side with {min(wanted)} '
                        'tokens or more; name longer texts, or fewer tokens with --lengths')
    return curve


def as_json(model_dir, options, n_documents, cuts, detectors, by_length):
    """Return a comparison as a dict that JSON can hold.

    `n_documents` are the numbers of human and synthetic documents; `cuts` how many tokens of each
    text of these sides were used, int [N] and [M]; `by_length` are pairs of a length and the
    Detectors there.
    """
    used = [cut[cut > 0] for cut in cuts]
    names = ('human', 'synthetic')
    return {'model': model_dir.name, 'weights': weights_digest(model_dir.path),
            'human': as_tuple(options.human), 'synthetic': as_tuple(options.synthetic),
            'limit': options.limit, 'stride': options.stride, 'seed': options.seed,
            'equal_lengths': options.equal_lengths,
            'left_out': {name: n - len(lengths)
                         for name, n, lengths in zip(names, n_documents, used)},
            'tokens': dict(zip(names, map(describe_lengths, used))),
            'figures': [detector.figures for detector in detectors],
            'by_length': [{'length': length, 'figures': [detector.figures for detector in others]}
                          for length, others in by_length]}


def describe_lengths(lengths):
    """Return the least, mean and largest of some numbers of tokens."""
    return {'least': int(lengths.min()), 'mean': float(lengths.mean()), 'most': int(lengths.max())}


def write(result, texts, lengths, curve, options):
    """Write a result: a table on a terminal, JSON elsewhere, and the output."""
    text = json.dumps(result, indent=1) + '\n'
    if sys.stdout.isatty():
        print('\n'.join(report.comparison_lines(result)))
    elif not options.output or is_reference(options.output):
        print(text, end='')
    if is_reference(options.output):
        write_reference(options.output, result, texts, lengths, curve)
    elif options.output:
        files.write_file(options.output, [text])


# ---- one text ----------------------------------------------------------------------------------


def place_files(model_dir, options):
    """Compare each document of files with a reference; print or write a JSON line, or a table."""
    reference = read_reference(options.reference, weights_digest(model_dir.path))
    documents = read_files(options.file, options.limit)
    texts = score(model_dir, encode(model_dir.encoder, documents), options)
    results = [dict(document, n_tokens=len(text.tokens), **comparisons(reference, text),
                    caution=report.CAUTION) for document, text in zip(documents, texts)]
    lines = [json.dumps(result) for result in results]
    if options.output:
        files.write_file(options.output, (line + '\n' for line in lines))
    elif sys.stdout.isatty():
        lines = report.placement_lines(headings(documents), results)
    if not options.output:
        print('\n'.join(lines))
