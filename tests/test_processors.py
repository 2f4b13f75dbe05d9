"""Options that filter tokens or penalize them, on both decoders: against NumPy and transformers."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import reference
import sample
from gpt2.lite import logits as lite_logits
from gpt2.sampling.options import SamplingOptions
from helpers import LONG

N, V, T = 1000 if LONG else 100, 300, 40

FILTERS = [{'min_p': 0.05}, {'min_p': 1}, {'min_p': 1e-30}, {'typical_p': 0.2}, {'typical_p': 0.95},
           {'typical_p': 1e-30}, {'top_k': 50, 'top_p': 0.8, 'min_p': 0.02, 'typical_p': 0.7,
                                  'temperature': 0.7}]
PENALTIES = [{'repetition_penalty': 1.3}, {'repetition_penalty': 0.5}, {'no_repeat_ngram_size': 1},
             {'no_repeat_ngram_size': 2}, {'no_repeat_ngram_size': 3}, {'no_repeat_ngram_size': 50},
             {'repetition_penalty': 1.2, 'no_repeat_ngram_size': 2}]


@pytest.fixture(scope='module')
def rows():
    """Logits [N, V], half of them with many ties, texts of few different ids, and their lengths."""
    random = np.random.RandomState(0)
    logits = random.normal(0, 3, [N, V]).astype(np.float32)
    logits[::2] = np.round(logits[::2])
    texts = random.randint(0, 5, [N, T])
    texts[::3] = random.randint(0, V, texts[::3].shape)
    return logits, texts, random.randint(1, T + 1, N)


@pytest.fixture
def in_graph():
    """A function that runs a function of `sample` on arrays that are fed."""
    def run(function, *arrays, **options):
        with tf.Graph().as_default(), tf.Session() as session:
            feeds = {tf.placeholder(array.dtype, [None] + list(array.shape[1:])): array
                     for array in map(np.asarray, arrays)}
            return session.run(function(*feeds, **options), feeds)

    return run


def penalize(logits, texts, lengths, repetition_penalty=1, no_repeat_ngram_size=0):
    logits = sample.penalize_repetition(logits, repetition_penalty, texts, lengths)
    return sample.ban_repeated_ngrams(logits, no_repeat_ngram_size, texts, lengths)


def penalized_by(engine, in_graph, rows, **options):
    logits, texts, lengths = rows
    if engine == 'graph':
        texts, lengths = texts.astype(np.int32), lengths.astype(np.int32)
        return in_graph(penalize, logits, texts, lengths, **options)
    return lite_logits.penalize(
        logits, [text[:n].tolist() for text, n in zip(texts, lengths)], SamplingOptions(**options))


def kept_by(engine, in_graph, logits, **options):
    """Return which tokens may be drawn, bool [N, V]."""
    if engine == 'graph':
        return in_graph(sample.process_logits, logits, **options) > sample.FILTERED / 2
    return lite_logits.process_logits(logits, SamplingOptions(**options))[:, :V] > 0


def near_the_edge(row, options, kept):
    """Return whether the reference keeps the same if one of the options is changed a little."""
    changed = [{**options, name: min(options[name] * factor, 1)}
               for name in ('min_p', 'typical_p', 'top_p') if name in options
               for factor in (1 - 1e-5, 1 + 1e-5)]
    return any(np.array_equal(kept, np.isfinite(reference.warp_logits(row, **each)))
               for each in changed)


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('options', FILTERS, ids=str)
def test_filters_keep_what_the_reference_keeps(in_graph, rows, options, engine):
    kept, n_differ = kept_by(engine, in_graph, rows[0], **options), 0
    for row, found in zip(rows[0], kept):
        expected = np.isfinite(reference.warp_logits(row, **options))
        if not np.array_equal(found, expected):
            n_differ += 1
            assert near_the_edge(row, options, found)
    assert n_differ < N / 50


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('options', PENALTIES, ids=str)
def test_penalties_are_those_of_the_reference(in_graph, rows, options, engine):
    found = penalized_by(engine, in_graph, rows, **options)
    for row, text, n, penalized in zip(*rows, found):
        expected = reference.penalize(row, text[:n].tolist(), **options)
        assert np.array_equal(penalized == sample.FILTERED, np.isneginf(expected))
        finite = np.isfinite(expected)
        np.testing.assert_allclose(penalized[finite], expected[finite], rtol=1e-6)


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('options', FILTERS + PENALTIES, ids=str)
def test_they_do_what_those_of_transformers_do(in_graph, rows, options, engine):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    logits, texts, lengths = rows
    processors = {
        'repetition_penalty': transformers.RepetitionPenaltyLogitsProcessor,
        'no_repeat_ngram_size': transformers.NoRepeatNGramLogitsProcessor,
        'temperature': transformers.TemperatureLogitsWarper, 'top_k': transformers.TopKLogitsWarper,
        'top_p': transformers.TopPLogitsWarper, 'min_p': transformers.MinPLogitsWarper,
        'typical_p': transformers.TypicalLogitsWarper}
    ours = (penalized_by(engine, in_graph, rows, **options) if options in PENALTIES
            else kept_by(engine, in_graph, logits, **options))
    n_differ = 0
    # Of several equals, theirs drops some for top_p. Every second row has no ties.
    chosen = slice(1, None, 2) if 'top_p' in options else slice(None)
    for row, text, n, found in zip(*(part[chosen] for part in (logits, texts, lengths, ours))):
        ids, scores = torch.tensor(text[None, :n]), torch.tensor(row[None].copy())
        for name, processor in processors.items():
            if name in options:
                if name == 'typical_p' and options[name] == 1:
                    continue
                scores = processor(options[name])(ids, scores)
        theirs = scores[0].numpy()
        if options in PENALTIES:
            np.testing.assert_allclose(np.maximum(theirs, sample.FILTERED), found, rtol=1e-6)
        elif not np.array_equal(np.isfinite(theirs), found):
            n_differ += 1
            assert near_the_edge(row, options, found)
    assert n_differ < N / 50


@pytest.mark.parametrize('name, values', [
    ('min_p', [0, 0.05, 1, 0.3]), ('typical_p', [1, 0.2, 0, 0.9])])
def test_filters_may_differ_by_row(in_graph, rows, name, values):
    logits = rows[0][:4]
    found = in_graph(sample.process_logits, logits, **{name: np.float32(values)})
    for i, value in enumerate(values):
        alone = in_graph(sample.process_logits, logits[i:i + 1], **{name: value})
        assert np.array_equal(found[i:i + 1], alone)


def test_penalties_may_differ_by_row(in_graph, rows):
    few = [part[:6] for part in rows]
    logits, texts, lengths = few[0], few[1].astype(np.int32), few[2].astype(np.int32)
    by_row = {'repetition_penalty': np.float32([1, 1.3, 2, 1, 0.7, 1]),
              'no_repeat_ngram_size': np.int32([0, 2, 0, 1, 3, 60])}
    found = in_graph(penalize, logits, texts, lengths, **by_row)
    for i in range(6):
        alone = in_graph(penalize, *(part[i:i + 1] for part in (logits, texts, lengths)),
                         **{name: values[i].item() for name, values in by_row.items()})
        assert np.array_equal(found[i:i + 1], alone)


def test_what_is_switched_off_adds_nothing_to_the_graph():
    with tf.Graph().as_default() as graph:
        logits, texts = tf.placeholder(tf.float32, [None, 5]), tf.placeholder(tf.int32, [None, 3])
        lengths = tf.placeholder(tf.int32, [None])
        for off in (0, [0, 0]):
            assert sample.min_p_logits(logits, off) is logits
            assert sample.ban_repeated_ngrams(logits, off, texts, lengths) is logits
        for off in (0, 1, [0, 1.]):
            assert sample.typical_p_logits(logits, off) is logits
        for off in (1, 1., [1, 1]):
            assert sample.penalize_repetition(logits, off, texts, lengths) is logits
        assert len(graph.get_operations()) == 3
