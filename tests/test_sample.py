"""Sampling, held to the float64 reference: which tokens may come, which one is drawn, whole texts.

A token may differ from the reference's only where the reference calls it a near-tie: its two best
scores lie within NEAR.
"""
import math

import hypothesis
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import strategies

import generation
import model
import reference
import sample
from test_reference import chi_square, chi_square_bound

NEAR = 1e-4
INF = math.inf


class Functions:
    """Runs functions of `sample` on arrays; each is built into the graph once."""

    def __init__(self):
        self.graph = tf.Graph()
        self.session = tf.Session(graph=self.graph)
        self.built = {}

    def __call__(self, function, *arrays, **options):
        """Runs function(*arrays, **options), of arrays whose first size the graph leaves open."""
        arrays = [np.asarray(array, np.float32) for array in arrays]
        shapes = [(None,) + array.shape[1:] for array in arrays]
        key = (function, tuple(shapes), tuple(sorted(options.items())))
        if key not in self.built:
            with self.graph.as_default():
                inputs = [tf.placeholder(tf.float32, shape) for shape in shapes]
                self.built[key] = inputs, function(*inputs, **options)
        inputs, output = self.built[key]
        return self.session.run(output, dict(zip(inputs, arrays)))


@pytest.fixture(scope='module')
def run():
    functions = Functions()
    yield functions
    functions.session.close()


# ---- top-k -------------------------------------------------------------------------------------

def dropped_where_not(kept, logits):
    return np.where(kept, np.float32(logits), np.float32(-1e10))


def check_top_k(run, logits, k):
    kept = np.stack([reference.top_k_keep(row, k) for row in np.float32(logits)])
    result = run(sample.top_k_logits, logits, k=k)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, dropped_where_not(kept, logits))


TIES = [
    [2., 3., -1., 2., -5.], [0., 0., 0., 0., 0.], [1., 1., 1., 2., 2.], [-1., -2., -3., -4., -5.],
    [5., 5., 5., 5., -INF], [1., -INF, -INF, -INF, -INF], [3., -1e10, -1e10, 2., -1e10],
    [1e4, 0., -1e4, 1e-30, -0.],
]


@pytest.mark.parametrize('k', [0, 1, 2, 3, 4, 5])
def test_top_k_of_rows_with_ties(run, k):
    check_top_k(run, TIES, k)
    for row in TIES:
        check_top_k(run, [row], k)


@pytest.mark.parametrize('k', [1, 7, 40, 999, 1000])
def test_top_k_of_random_rows(run, k):
    random = np.random.RandomState(k)
    for logits in [random.randn(1, 1000), random.randn(5, 1000) * 20,
                   np.round(random.randn(5, 1000) * 3)]:
        check_top_k(run, logits, k)


def test_top_k_of_the_released_vocabulary(run):
    logits = np.random.RandomState(0).randn(2, 50257) * 3
    check_top_k(run, logits, k=40)


@pytest.mark.parametrize('k', [6, 50257])
def test_top_k_beyond_the_vocabulary(k):
    with tf.Graph().as_default(), pytest.raises(ValueError, match='%d.*5' % k):
        sample.top_k_logits(tf.zeros([2, 5]), k)


def test_switched_off_top_k_and_top_p_add_nothing():
    with tf.Graph().as_default() as graph:
        logits = tf.placeholder(tf.float32, [None, 5])
        assert sample.top_k_logits(logits, 0) is logits
        assert sample.top_p_logits(logits, 1) is logits
        assert sample.top_p_logits(logits, 1.0) is logits
        assert len(graph.get_operations()) == 1


# ---- top-p -------------------------------------------------------------------------------------

def top_p_bounds(logits, p):
    """Marks the tokens that rounding to float32 must leave in, and those that it may, bool [V].

    All that rounding can do: a sum moves by 1e-5, and neighbours closer than 1e-5 of their
    probability fall together. Logits that are equal, though, have equal probabilities.
    """
    logits = np.asarray(logits, np.float64)
    probabilities = reference.softmax(logits)
    must, may = [], []
    for own, logit in zip(probabilities, logits):
        larger = logits > logit
        almost = (logits != logit) & (probabilities > own * (1 - 1e-5))
        surely = larger & (probabilities > own * (1 + 1e-5))
        must.append(probabilities[larger | almost].sum() < p - 1e-5)
        may.append(probabilities[surely].sum() < p + 1e-5)
    most = logits == np.max(logits)
    return np.array(must) | most, np.array(may) | most


def check_top_p(run, logits, p):
    """Checks rows of logits and returns how many tokens were too close to call."""
    logits = np.float32(logits)
    result = run(sample.top_p_logits, logits, p=p)
    assert result.dtype == np.float32 and result.shape == logits.shape
    doubtful = 0
    for row, warped in zip(logits, result):
        must, may = top_p_bounds(row, p)
        wanted = reference.top_p_keep(row, p)
        kept = np.where(must == may, wanted, warped == row)
        np.testing.assert_array_equal(warped, dropped_where_not(kept, row))
        doubtful += np.sum(must != may)
        if np.array_equal(warped == row, wanted):
            np.testing.assert_allclose(
                reference.softmax(np.float64(warped)),
                reference.softmax(np.where(wanted, row, -np.inf)), rtol=0, atol=1e-6)
    return doubtful


BY_HAND = np.log([0.2, 0.4, 0.15, 0.2, 0.05]) + 7


@pytest.mark.parametrize('p, kept', [
    (1e-9, [0, 1, 0, 0, 0]),  # one token always stays
    (0.39, [0, 1, 0, 0, 0]),
    (0.41, [1, 1, 0, 1, 0]),  # the token that crosses p stays, and so does its equal
    (0.79, [1, 1, 0, 1, 0]),
    (0.81, [1, 1, 1, 1, 0]),
    (0.951, [1, 1, 1, 1, 1]),
])
def test_top_p_by_hand(run, p, kept):
    """In a batch of rows that keep different numbers of tokens, and alone."""
    logits = np.stack([BY_HAND, BY_HAND[::-1], np.zeros(5), [99., 0., 0., 0., 0.]])
    expected = np.array([kept, kept[::-1], [1] * 5, [1, 0, 0, 0, 0]], bool)
    result = run(sample.top_p_logits, logits, p=p)
    np.testing.assert_array_equal(result, dropped_where_not(expected, logits))
    alone = run(sample.top_p_logits, [BY_HAND], p=p)
    np.testing.assert_array_equal(alone, dropped_where_not(expected[:1], [BY_HAND]))


@pytest.mark.parametrize('p', [1e-9, 0.5, 0.999])
def test_top_p_of_rows_with_ties(run, p):
    assert check_top_p(run, TIES, p) == 0
    for row in TIES:
        check_top_p(run, [row], p)


def test_top_p_at_the_very_edge(run):
    """Where the float32 sums are exact: p is just reached by the first token, or just not."""
    logits = np.float32([[1., 0.]])
    first = run(tf.nn.softmax, logits)[0, 0]
    for p, kept in [(first, [True, False]), (np.nextafter(first, np.float32(1)), [True, True])]:
        result = run(sample.top_p_logits, logits, p=float(p))
        np.testing.assert_array_equal(result, dropped_where_not(kept, logits))
    # All mass is in what is not dropped, for any p.
    logits = np.array([[0., 0., -INF, -INF], [0., -INF, -INF, -INF], [0., 0., 0., 0.]])
    for p in [0.25, 0.5, 0.75, 1 - 2.**-20]:
        result = run(sample.top_p_logits, logits, p=p)
        np.testing.assert_array_equal(result, dropped_where_not(np.isfinite(logits), logits))


@pytest.mark.parametrize('p', [1e-30, 1e-40, 1e-50, 1e-300])
def test_top_p_keeps_the_likeliest_however_small_p_is(run, p):
    """Also where float32 cannot hold p."""
    logits = np.array([[0., 3., 1., 2.], [5., 0., 5., -INF]])
    result = run(sample.top_p_logits, logits, p=p)
    kept = [[False, True, False, False], [True, False, True, False]]
    np.testing.assert_array_equal(result, dropped_where_not(kept, logits))


@pytest.mark.parametrize('p', [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('spread', [0.1, 3, 30], ids=['flat', 'usual', 'peaked'])
def test_top_p_of_random_rows(run, p, spread):
    random = np.random.RandomState(0)
    doubtful = check_top_p(run, random.randn(5, 1000) * spread, p)
    doubtful += check_top_p(run, random.randn(1, 1000) * spread, p)
    doubtful += check_top_p(run, np.round(random.randn(5, 1000) * spread, 1), p)
    assert doubtful < 40  # of 11,000


def test_top_p_of_the_released_vocabulary(run):
    logits = np.float32(np.random.RandomState(0).randn(2, 50257) * 3)
    kept = run(sample.top_p_logits, logits, p=0.9) == logits
    for row, marks in zip(logits, kept):
        wanted = reference.top_p_keep(row, 0.9)
        assert 1000 < np.sum(wanted) < 40000
        assert np.sum(wanted != marks) <= 2  # a token here has some 1e-5 of the mass


SETTINGS = hypothesis.settings(deadline=None, derandomize=True, max_examples=150)
LOGIT = (strategies.floats(-40, 40, width=32, allow_subnormal=False)  # TensorFlow takes those for 0
         | strategies.floats(-2**30, 100, width=32, allow_subnormal=False)
         | strategies.sampled_from([0., 1., 1.5, -2., -1e10, -INF]))
ROWS = strategies.lists(strategies.lists(LOGIT, min_size=9, max_size=9), min_size=1, max_size=5)


def rows_with_a_likeliest(rows):
    """Gives rows of nothing but dropped tokens one that is not."""
    return [row if max(row) > -1e9 else [0.] + row[1:] for row in rows]


@SETTINGS
@hypothesis.given(ROWS, strategies.sampled_from([1, 2, 5, 8, 9]))
def test_top_k_of_any_rows(run, rows, k):
    check_top_k(run, rows, k)


@SETTINGS
@hypothesis.given(ROWS, strategies.sampled_from([1e-9, 0.3, 0.9, 0.9999]))
def test_top_p_of_any_rows(run, rows, p):
    check_top_p(run, rows_with_a_likeliest(rows), p)


@SETTINGS
@hypothesis.given(ROWS, strategies.sampled_from([(2, 0.5), (5, 0.9), (9, 0.3)]))
def test_top_k_before_top_p(run, rows, options):
    k, p = options
    rows = np.float32(rows_with_a_likeliest(rows))
    cut = run(sample.top_k_logits, rows, k=k)
    result = run(sample.top_p_logits, cut, p=p)
    for row, warped in zip(rows, result):
        by_k = reference.top_k_keep(row, k)
        must, may = top_p_bounds(np.where(by_k, row, -np.inf), p)
        kept = warped > -1e9
        assert np.all(kept >= (by_k & must & (row > -1e9))) and np.all(kept <= (by_k & may))


# ---- the draw ----------------------------------------------------------------------------------

def uniforms_of(seed, index, n, n_vocab):
    """Returns float32 [n, 2R], for n draws."""
    return generation.random_uniforms([generation.random_stream(seed, index)], n, n_vocab)[0]


def check_tokens(tokens, kept_logits, uniforms):
    """Checks drawn tokens against the reference and returns how many near-ties fell otherwise."""
    assert tokens.dtype == np.int32 and tokens.shape == (len(uniforms),)
    differ = 0
    for token, logits, u in zip(tokens, kept_logits, uniforms):
        wanted, gap = reference.draw(logits, u)
        if token != wanted:
            assert gap < NEAR
            differ += 1
    return differ


@pytest.mark.parametrize('n_vocab, n', [
    (1, 20), (2, 300), (4, 300), (5, 300), (9, 300), (257, 1500), (1000, 1500), (50257, 30),
])
def test_draw_equals_the_reference(run, n_vocab, n):
    random = np.random.RandomState(n_vocab)
    spread = random.choice([0., 0.3, 3., 50.], size=[n, 1])  # flat to peaked
    logits = np.float32(random.randn(n, n_vocab) * spread)
    logits -= logits.max(axis=1, keepdims=True)
    dropped = random.rand(n, n_vocab) < random.choice([0, 0.5, 0.99], size=[n, 1])
    dropped[np.arange(n), random.randint(n_vocab, size=n)] = False
    kept = np.where(dropped, -np.inf, logits)
    uniforms = uniforms_of(0, 0, n, n_vocab)
    differ = check_tokens(run(sample.draw, kept, uniforms), kept, uniforms)
    marked = np.where(dropped, -1e10, logits)  # as top-k and top-p do it
    differ += check_tokens(run(sample.draw, marked, uniforms), kept, uniforms)
    assert differ <= 2


def test_draw_with_extreme_uniforms(run):
    least, most = 2.**-24, 1 - 2.**-24
    random = np.random.RandomState(0)
    logits = np.float32(random.randn(2000, 30) * 3)
    uniforms = np.float32(random.choice([least, 3 * least, 0.5, 1 - 3 * least, most],
                                        size=[2000, 12]))
    # Ties of the noise make no near-ties here, as no two logits are alike.
    assert check_tokens(run(sample.draw, logits, uniforms), logits, uniforms) <= 2


def test_draw_takes_the_lowest_index_among_equals(run):
    uniforms = np.full([1, 6], 0.5)
    for kept, token in [([1] * 7, 0), ([0, 1, 1, 0, 0, 0, 0], 1), ([0, 0, 0, 0, 0, 1, 1], 5)]:
        logits = np.where(kept, 0, -np.inf)
        assert run(sample.draw, [logits], uniforms) == [token]
        assert reference.draw(logits, uniforms[0])[0] == token


@pytest.mark.parametrize('n_vocab', [1, 5, 17, 257])
def test_draw_never_leaves_the_vocabulary_nor_what_was_kept(run, n_vocab):
    uniforms = uniforms_of(1, 0, 500, n_vocab)
    tokens = run(sample.draw, np.zeros([500, n_vocab]), uniforms)
    assert tokens.min() >= 0 and tokens.max() < n_vocab
    last = np.full([500, n_vocab], -1e10)
    last[:, -1] = 0
    assert (run(sample.draw, last, uniforms) == n_vocab - 1).all()


WARPINGS = [
    {}, {'temperature': 0.7}, {'temperature': 1.5, 'top_k': 40}, {'top_p': 0.9},
    {'temperature': 0.9, 'top_k': 50, 'top_p': 0.8}, {'top_k': 1}, {'top_p': 1e-6},
    {'temperature': 1e-6}, {'temperature': 1e-30}, {'temperature': 1e6}, {'temperature': 1e30},
]


@pytest.mark.parametrize('warping', WARPINGS, ids=str)
def test_pick_equals_the_reference(run, warping):
    """Also the order of the steps: any other gives other sets."""
    random = np.random.RandomState(0)
    logits = np.float32(random.randn(400, 257) * 3 + random.randn(400, 1) * 100)
    uniforms = uniforms_of(0, 1, 400, 257)
    kept = [reference.warp_logits(row, **warping) for row in logits]
    assert check_tokens(run(sample.pick, logits, uniforms, **warping), kept, uniforms) <= 2


def test_pick_at_temperature_0_takes_the_likeliest_and_the_first_of_equals(run):
    logits = np.random.RandomState(0).randn(300, 257)
    logits[100:, [7, 30]] = 9
    uniforms = uniforms_of(0, 0, 300, 257)
    for options in [{}, {'top_k': 3}, {'top_p': 0.5}]:
        tokens = run(sample.pick, logits, uniforms, temperature=0, **options)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == [reference.best_and_gap(row)[0] for row in np.float32(logits)]


def test_pick_at_a_tiny_temperature_chooses_among_equals_alone(run):
    logits = np.random.RandomState(0).randn(300, 257)
    logits[:, [7, 30]] = 9
    tokens = run(sample.pick, logits, uniforms_of(0, 0, 300, 257), temperature=1e-6)
    counts = np.bincount(tokens, minlength=257)
    assert counts[7] + counts[30] == 300 and min(counts[7], counts[30]) > 100


@pytest.mark.parametrize('temperature', [1e-37, 1e-40, 1e-45, 1e-50, 1e-300])
def test_pick_at_a_temperature_that_float32_cannot_hold(run, temperature):
    logits = np.random.RandomState(0).randn(20, 257)
    uniforms = uniforms_of(0, 0, 20, 257)
    tokens = run(sample.pick, logits, uniforms, temperature=temperature)
    assert tokens.tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize('warping', [
    {}, {'temperature': 0.7, 'top_k': 10}, {'temperature': 1.4, 'top_p': 0.8},
    {'temperature': 1.2, 'top_k': 20, 'top_p': 0.9},
], ids=str)
def test_frequencies_of_picks_are_the_exact_probabilities(run, warping):
    n, logits = 20000, np.float32(np.random.RandomState(0).randn(40))
    tokens = run(sample.pick, np.tile(logits, [n, 1]), uniforms_of(2, 0, n, 40), **warping)
    counts = np.bincount(tokens, minlength=40)
    probabilities = reference.warp(logits, **warping)
    bound = chi_square_bound(np.count_nonzero(probabilities) - 1)
    assert chi_square(counts, probabilities) < bound
    # The bound has teeth: probabilities flattened a little are told apart.
    kept = reference.warp_logits(logits, **warping)
    assert chi_square(counts, reference.softmax(kept * 0.85)) > bound


# ---- randomness --------------------------------------------------------------------------------

@pytest.mark.parametrize('n_vocab', [1, 2, 257, 1000, 50257])
@pytest.mark.parametrize('chunks', [[12], [1] * 12, [5, 0, 7]], ids=str)
def test_uniforms_are_those_of_the_reference(n_vocab, chunks):
    names = [(0, 0), (7, 3), (2**70, 2**40)]
    streams = [generation.random_stream(seed, index) for seed, index in names]
    found = [generation.random_uniforms(streams, chunk, n_vocab) for chunk in chunks]
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    expected = [reference.uniforms(seed, index, 12, n_vocab) for seed, index in names]
    assert np.array_equal(np.concatenate(found, axis=1), expected)  # float64, and exactly


@pytest.mark.parametrize('n_vocab, side', [
    (1, 1), (2, 2), (4, 2), (5, 3), (257, 17), (50257, 225), (50625, 225), (50626, 226),
])
def test_grid_side(n_vocab, side):
    assert generation.grid_side(n_vocab) == side == reference.side(n_vocab)


# ---- whole texts -------------------------------------------------------------------------------

class Bed:
    """A random model in a graph and a session, for any number of samplers.

    Position embeddings `positions` times as large as usual keep greedy texts from going in circles.
    """

    def __init__(self, numbers, directory, seed, positions=1):
        self.numbers, self.n_vocab = numbers, numbers['n_vocab']
        self.hparams = model.default_hparams()
        self.hparams.override_from_dict(numbers)
        self.weights = reference.random_weights(numbers, seed)
        self.weights['model/wpe'] *= positions
        reference.write_checkpoint(directory, numbers, self.weights)
        self.graph = tf.Graph()
        self.session = tf.Session(graph=self.graph)
        with self.graph.as_default():
            model.model(self.hparams, tf.zeros([1, 1], tf.int32))
            saver = tf.train.Saver()
            saver.restore(self.session, tf.train.latest_checkpoint(str(directory)))
        self.samplers = {}

    def sampler(self, **options):
        """Returns the Sampler of these options; one serves all tests."""
        key = tuple(sorted(options.items()))
        if key not in self.samplers:
            with self.graph.as_default():
                self.samplers[key] = sample.Sampler(self.session, self.hparams, **options)
        return self.samplers[key]

    def generate(self, sampler, prompts, indices, seed, length):
        """Returns the new tokens of each prompt as lists."""
        chunks = generation.generate(sampler, prompts, indices, seed=seed, length=length)
        return np.concatenate(list(chunks), axis=1).tolist()

    def check_text(self, prompt, tokens, seed, index, **warping):
        """Checks each new token: it must be the reference's choice after the text before it.

        That is the reference's text then, one token after the other.
        """
        text = list(prompt) + list(tokens)
        logits = reference.forward(self.weights, self.numbers, text[:-1])[len(prompt) - 1:]
        uniforms = reference.uniforms(seed, index, len(tokens), self.n_vocab)
        differ = 0
        for token, row, u in zip(tokens, logits, uniforms):
            if warping.get('temperature') == 0:
                wanted, gap = reference.best_and_gap(row)
            else:
                wanted, gap = reference.draw(reference.warp_logits(row, **warping), u)
            if token != wanted:
                assert gap < NEAR
                differ += 1
        assert differ <= 1
        assert len(tokens) < 10 or len(set(tokens)) > 4  # and not a few tokens over and over


def check_same_text(tokens, expected, gaps):
    """Checks a text against the reference's, which it may leave at a near-tie alone."""
    assert len(tokens) == len(expected)
    sure = next((i for i, gap in enumerate(gaps) if gap < NEAR), len(gaps))
    assert list(tokens[:sure]) == list(expected[:sure])


NUMBERS = {'n_vocab': 257, 'n_ctx': 300, 'n_embd': 32, 'n_head': 4, 'n_layer': 2}
WARPING = {'temperature': 0.9, 'top_k': 50, 'top_p': 0.95}
# Seven prompts of different lengths, from one token on.
PROMPTS = [np.random.RandomState(n).randint(0, 257, n).tolist() for n in (3, 1, 9, 2, 30, 5, 17)]


@pytest.fixture(scope='module')
def bed(tmp_path_factory):
    made = Bed(NUMBERS, tmp_path_factory.mktemp('bed'), seed=2, positions=4)
    yield made
    made.session.close()


@pytest.fixture(scope='module')
def expected(bed):
    """The reference's samples 0 to 6 of seed 5 after the prompts: 24 tokens, and their gaps."""
    return [reference.sample(bed.weights, NUMBERS, prompt, 24, 5, i, **WARPING)
            for i, prompt in enumerate(PROMPTS)]


# ---- sample_sequence ---------------------------------------------------------------------------

def test_greedy_texts_are_those_of_the_reference(bed):
    tokens, margins = reference.greedy(bed.weights, NUMBERS, PROMPTS[0], 64)
    assert min(margins) > NEAR and len(set(tokens)) > 15
    with bed.graph.as_default():
        context = tf.constant([PROMPTS[0]], tf.int32)
        texts = [sample.sample_sequence(hparams=bed.hparams, length=64, context=context, **options)
                 for options in ({'temperature': 0}, {'top_k': 1})]
    for text in bed.session.run(texts):
        assert text.dtype == np.int32
        assert text.tolist() == [PROMPTS[0] + tokens]
    # A Sampler needs no randomness for it.
    sampler = bed.sampler(temperature=0)
    sampler.start([PROMPTS[0], PROMPTS[4]])
    assert sampler.decode(64)[0].tolist() == tokens
    assert bed.generate(sampler, [PROMPTS[0]], [0], seed=0, length=64) == [tokens]


@pytest.mark.parametrize('warping', [{}, WARPING], ids=str)
def test_sample_sequence_continues_a_context(bed, warping):
    """In one graph: contexts of any length and number, each row with its own randomness."""
    with bed.graph.as_default():
        context = tf.placeholder(tf.int32, [None, None])
        uniforms = tf.placeholder(tf.float32, [None, None, 34])
        texts = sample.sample_sequence(hparams=bed.hparams, length=24, context=context,
                                       uniforms=uniforms, **warping)
    for n_context, n_batch in [(1, 1), (2, 5), (40, 3)]:
        contexts = np.random.RandomState(1).randint(0, 257, [n_batch, n_context]).tolist()
        streams = [generation.random_stream(9, i) for i in range(n_batch)]
        found = bed.session.run(texts, {context: contexts,
                                        uniforms: generation.random_uniforms(streams, 24, 257)})
        assert found.shape == (n_batch, n_context + 24) and found.dtype == np.int32
        assert found[:, :n_context].tolist() == contexts
        for i, text in enumerate(found.tolist()):
            bed.check_text(text[:n_context], text[n_context:], 9, i, **warping)


def test_sample_sequence_equals_the_reference_and_the_sampler(bed, expected):
    prompt, (tokens, gaps) = PROMPTS[2], expected[2]
    with bed.graph.as_default():
        texts = sample.sample_sequence(
            hparams=bed.hparams, length=24, context=tf.constant([prompt], tf.int32), batch_size=1,
            uniforms=tf.constant(
                generation.random_uniforms([generation.random_stream(5, 2)], 24, 257)),
            **WARPING)
        assert texts.dtype == tf.int32
    text, = bed.session.run(texts).tolist()
    assert text[:9] == prompt
    check_same_text(text[9:], tokens, gaps)
    sampled, = bed.generate(bed.sampler(**WARPING), [prompt], [2], seed=5, length=24)
    check_same_text(sampled, tokens, gaps)


def test_sample_sequence_from_a_start_token(bed):
    streams = [generation.random_stream(6, i) for i in range(3)]
    with bed.graph.as_default():
        texts = sample.sample_sequence(
            hparams=bed.hparams, length=10, start_token=256, batch_size=3,
            uniforms=tf.constant(generation.random_uniforms(streams, 10, 257)))
    found = bed.session.run(texts)
    assert found.shape == (3, 11) and (found[:, 0] == 256).all()
    for i, text in enumerate(found.tolist()):
        bed.check_text([256], text[1:], 6, i)


def test_sample_sequence_of_a_single_token(bed):
    with bed.graph.as_default():
        texts = sample.sample_sequence(hparams=bed.hparams, length=1, temperature=0,
                                       context=tf.constant([PROMPTS[0]] * 2, tf.int32))
    token = int(reference.forward(bed.weights, NUMBERS, PROMPTS[0])[-1].argmax())
    assert bed.session.run(texts).tolist() == [PROMPTS[0] + [token]] * 2


def test_sample_sequence_takes_either_a_start_token_or_a_context(bed):
    with bed.graph.as_default():
        context = tf.constant([[1, 2]], tf.int32)
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=2)
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=2, batch_size=1)
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=2, batch_size=1, context=context,
                                   start_token=0)
        with pytest.raises(ValueError):  # token 0 is a token too
            sample.sample_sequence(hparams=bed.hparams, length=2, context=context, start_token=0)
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=2, context=context, top_k=258)


def test_sample_sequence_fills_the_window_and_no_more(bed):
    context = np.tile(np.arange(290) % 257, [2, 1])
    with bed.graph.as_default():
        known, unknown = tf.constant(context, tf.int32), tf.placeholder(tf.int32, [2, None])
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=12, context=known)
        with pytest.raises(ValueError):
            sample.sample_sequence(hparams=bed.hparams, length=301, start_token=0, batch_size=1)
        texts = sample.sample_sequence(hparams=bed.hparams, length=11, context=unknown,
                                       temperature=0)
    found = bed.session.run(texts, {unknown: context})
    assert found.shape == (2, 301)
    bed.check_text(context[0].tolist(), found[0, 290:].tolist(), 0, 0, temperature=0)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        bed.session.run(texts, {unknown: np.zeros([2, 291], np.int32)})


def test_randomness_drawn_in_the_graph(bed):
    """Pairs of successive tokens of 3,000 rows, twice, against the exact probabilities."""
    n = 3000
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        texts = sample.sample_sequence(hparams=bed.hparams, length=2, start_token=3, batch_size=n,
                                       temperature=1.5, top_k=3)
        for variable in tf.global_variables():
            variable.load(bed.weights[variable.op.name], session)
        runs = [session.run(texts) for _ in range(2)]
    assert not np.array_equal(runs[0], runs[1])

    first = reference.warp(reference.forward(bed.weights, NUMBERS, [3])[-1], 1.5, 3)
    pairs = np.zeros([257, 257])
    for token in np.flatnonzero(first):
        logits = reference.forward(bed.weights, NUMBERS, [3, token])[-1]
        pairs[token] = first[token] * reference.warp(logits, 1.5, 3)
    for found in runs:
        counts = np.zeros([257, 257])
        np.add.at(counts, (found[:, 1], found[:, 2]), 1)
        assert chi_square(counts, pairs) < chi_square_bound(8)
        # No row is like its neighbours more often than chance has it, nor like itself in the
        # other run.
        same = np.mean(found[1:, 1] == found[:-1, 1])
        assert abs(same - np.sum(first**2)) < 5 * math.sqrt(0.25 / n)
    same = np.mean(runs[0][:, 1] == runs[1][:, 1])
    assert abs(same - np.sum(first**2)) < 5 * math.sqrt(0.25 / n)


# ---- ending early ------------------------------------------------------------------------------

STOPPING = {'temperature': 0.5, 'top_k': 3}


@pytest.fixture(scope='module')
def stops(bed):
    """Three samples of seed 0 after token 3, and two ids: one ends all of them, one only some."""
    plain = [reference.sample(bed.weights, NUMBERS, [3], 40, 0, i, **STOPPING) for i in range(3)]
    assert min(min(gaps) for _, gaps in plain) > NEAR
    ends = {token: [row.index(token) + 1 if token in row else 41 for row, _ in plain]
            for row, _ in plain for token in row}
    for_all = min(ends, key=lambda token: max(ends[token]) + (min(ends[token]) < 2) * 99)
    for_some = next(token for token in sorted(ends)
                    if max(ends[token]) == 41 and 2 < min(ends[token]) < 30)
    assert len(set(ends[for_all])) > 1 and max(ends[for_all]) < 40
    return for_all, for_some


@pytest.fixture(scope='module')
def ended(bed, stops):
    """The reference's samples with either end, and sample_sequence's nodes for them."""
    wanted = {stop: [reference.sample(bed.weights, NUMBERS, [3], 40, 0, i, end=stop, **STOPPING)[0]
                     for i in range(3)] for stop in stops}
    with bed.graph.as_default():
        uniforms = tf.placeholder(tf.float32, [3, None, 34])
        texts = {stop: sample.sample_sequence(
            hparams=bed.hparams, length=40, start_token=3, batch_size=3, uniforms=uniforms,
            stop_token=stop, **STOPPING) for stop in stops}
    return wanted, uniforms, texts


def steps_to_end(rows, stop):
    """Returns the number of tokens until all rows have ended."""
    return max(row.index(stop) + 1 if stop in row else len(row) for row in rows)


def three_uniforms(length):
    streams = [generation.random_stream(0, i) for i in range(3)]
    return generation.random_uniforms(streams, length, 257)


def test_rows_that_ended_are_filled(bed, stops, ended):
    wanted, uniforms, texts = ended
    for stop in stops:
        found = bed.session.run(texts[stop], {uniforms: three_uniforms(40)})
        assert found.tolist() == [[3] + row for row in wanted[stop]]


def test_the_graph_stops_when_all_rows_have_ended(bed, stops, ended):
    """No step is made after the last row's end: there is no randomness for one."""
    wanted, uniforms, texts = ended
    stop = stops[0]
    numbers = three_uniforms(steps_to_end(wanted[stop], stop))
    assert numbers.shape[1] < 40
    found = bed.session.run(texts[stop], {uniforms: numbers})
    assert found.tolist() == [[3] + row for row in wanted[stop]]
    with pytest.raises(tf.errors.InvalidArgumentError):
        bed.session.run(texts[stop], {uniforms: numbers[:, :-1]})


def test_rows_that_ended_in_an_earlier_chunk_are_filled(bed, stops, ended):
    numbers = three_uniforms(40)
    for stop in stops:
        sampler, wanted = bed.sampler(stop_token=stop, **STOPPING), ended[0][stop]
        last = steps_to_end(wanted, stop)
        assert (last < 40) == (stop == stops[0])
        for chunk in [40, 1, 7]:
            sampler.start([[3]] * 3)
            pieces = [sampler.decode(min(chunk, 40 - start), numbers[:, start:start + chunk])
                      for start in range(0, last, chunk)]
            # And no more than that: it ends as soon as all rows have.
            assert np.concatenate(pieces, axis=1).tolist() == [row[:last] for row in wanted]


def test_generate_ends_when_all_rows_have_ended(bed, stops, ended):
    stop = stops[0]
    sampler, wanted = bed.sampler(stop_token=stop, **STOPPING), ended[0][stop]
    last = steps_to_end(wanted, stop)
    assert bed.generate(sampler, [[3]] * 3, range(3), 0, 40) == [row[:last] for row in wanted]
    # A neighbour that goes on does not change what a row is, nor does one that is done.
    for i in range(3):
        alone, = bed.generate(sampler, [[3]], [i], 0, 40)
        assert alone == wanted[i][:wanted[i].index(stop) + 1]


def test_what_was_not_decoded_uses_up_no_window(bed, stops):
    sampler = bed.sampler(stop_token=stops[0], **STOPPING)
    numbers = three_uniforms(250)
    sampler.start([[3]] * 3)
    assert sampler.decode(250, numbers).shape[1] < 40
    again = sampler.decode(250, numbers)
    assert again.shape[1] >= 1 and (again == stops[0]).all()


def test_token_0_can_end_a_text(bed):
    """The id is 0, not false."""
    stop = 0
    logits = np.full([1, 257], -5.)
    logits[0, stop] = 5
    assert reference.draw(logits[0], np.full(34, 0.5))[0] == stop
    weights = dict(bed.weights)
    # A last normalization that gives every position the same output, which token 0 is like most.
    weights['model/ln_f/g'] = np.zeros(32, np.float32)
    weights['model/ln_f/b'] = np.ones(32, np.float32)
    weights['model/wte'] = np.float32(np.where(np.arange(257) == stop, 1, -1)[:, None]
                                      * np.ones([1, 32]))
    with tf.Graph().as_default(), tf.Session() as session:
        texts = sample.sample_sequence(hparams=bed.hparams, length=5, start_token=3, batch_size=2,
                                       stop_token=stop, temperature=0)
        sampler = sample.Sampler(session, bed.hparams, temperature=0, stop_token=stop)
        for variable in tf.global_variables():
            variable.load(weights[variable.op.name], session)
        assert session.run(texts).tolist() == [[3] + [0] * 5] * 2
        sampler.start([[3]] * 2)
        assert sampler.decode(5).tolist() == [[0]] * 2


# ---- Sampler and generate ----------------------------------------------------------------------

@pytest.mark.parametrize('n_batch', [1, 2, 3, 7])
def test_a_sample_is_the_same_at_any_batch_size(bed, expected, n_batch):
    """And next to any other prompts, longer and shorter ones."""
    sampler = bed.sampler(**WARPING)
    for first in range(0, 7, n_batch):
        indices = range(first, min(first + n_batch, 7))
        rows = bed.generate(sampler, PROMPTS[first:first + n_batch], indices, seed=5, length=24)
        assert len(rows) == len(indices)
        for i, row in zip(indices, rows):
            check_same_text(row, *expected[i])


@pytest.mark.parametrize('chunks', [[1] * 24, [7, 7, 7, 3], [24], [2, 1, 20, 1]], ids=str)
def test_a_sample_is_the_same_in_chunks_of_any_size(bed, expected, chunks):
    sampler = bed.sampler(**WARPING)
    streams = [generation.random_stream(5, i) for i in range(7)]
    sampler.start(PROMPTS)
    pieces = [sampler.decode(chunk, generation.random_uniforms(streams, chunk, 257))
              for chunk in chunks]
    assert [piece.shape for piece in pieces] == [(7, chunk) for chunk in chunks]
    assert {piece.dtype for piece in pieces} == {np.dtype(np.int32)}
    for row, (tokens, gaps) in zip(np.concatenate(pieces, axis=1), expected):
        check_same_text(row, tokens, gaps)


def test_the_order_of_the_rows_does_not_matter(bed, expected):
    order = [4, 0, 6, 1]
    rows = bed.generate(bed.sampler(**WARPING), [PROMPTS[i] for i in order], order, seed=5,
                        length=24)
    for i, row in zip(order, rows):
        check_same_text(row, *expected[i])


def test_seed_and_index_decide_the_text(bed):
    sampler = bed.sampler(**WARPING)
    found = {name: bed.generate(sampler, [[3]], [name[1]], seed=name[0], length=12)[0]
             for name in [(0, 0), (0, 1), (1, 0), (2**70, 10**12)]}
    assert len({tuple(row) for row in found.values()}) == 4
    for (seed, index), row in found.items():
        bed.check_text([3], row, seed, index, **WARPING)


def test_generate_gives_one_token_first_and_then_all_the_others(bed):
    chunks = list(generation.generate(bed.sampler(**WARPING), [[3], [4, 5]], [0, 1], seed=0,
                                      length=50))
    assert chunks[0].shape == (2, 1)
    assert {chunk.shape[0] for chunk in chunks} == {2}
    assert sum(chunk.shape[1] for chunk in chunks) == 50
    assert list(generation.generate(bed.sampler(**WARPING), [[3]], [0], seed=0, length=0)) == []


def test_generate_serves_other_engines():
    """Anything will do that has hparams, greedy, stop_token, start and decode."""
    class Counter:
        hparams = model.HParams(n_vocab=5)
        greedy = False
        stop_token = 20

        def start(self, prompts):
            self.last = np.array([prompt[-1] for prompt in prompts])

        def decode(self, length, uniforms):
            assert uniforms.shape == (2, length, 6)
            found.append(uniforms)
            tokens = np.minimum(self.last[:, np.newaxis] + np.arange(1, length + 1), 20)
            self.last = tokens[:, -1]
            return tokens

    found = []
    chunks = list(generation.generate(Counter(), [[9], [7, 5]], [3, 0], seed=2, length=50))
    rows = np.concatenate(chunks, axis=1).tolist()
    assert rows[0][:11] == list(range(10, 21)) and rows[1][:15] == list(range(6, 21))
    assert 15 <= len(rows[0]) < 50  # no chunk after that which ended the last row
    taken = np.concatenate(found, axis=1)
    for row, index in zip(taken, [3, 0]):
        assert np.array_equal(row, reference.uniforms(2, index, taken.shape[1], 5))


@pytest.mark.parametrize('chunk', [3, 50, 200])
def test_the_cache_grows_as_the_text_does(bed, chunk):
    """From 101 tokens to the end of the window, over two multiples of CACHE_SLOTS at least.

    Next to a text that starts with its first token, and whose cache is mostly empty.
    """
    assert 101 < generation.CACHE_SLOTS and 2 * generation.CACHE_SLOTS < 300
    prompts = [np.random.RandomState(0).randint(0, 257, 101).tolist(), [9]]
    streams = [generation.random_stream(8, i) for i in range(2)]
    sampler = bed.sampler(**WARPING)
    sampler.start(prompts)
    pieces, left = [], 200
    while left:
        n = min(chunk, left)
        pieces.append(sampler.decode(n, generation.random_uniforms(streams, n, 257)))
        left -= n
    tokens = np.concatenate(pieces, axis=1).tolist()
    for i in range(2):
        bed.check_text(prompts[i], tokens[i], 8, i, **WARPING)
    with pytest.raises(ValueError):
        sampler.decode(1, generation.random_uniforms(streams, 1, 257))


def test_a_prompt_may_fill_the_window(bed):
    sampler = bed.sampler(temperature=0)
    prompt = np.random.RandomState(0).randint(0, 257, 300).tolist()
    sampler.start([prompt, [5]])
    tokens = sampler.decode(1)
    bed.check_text(prompt, tokens[0].tolist(), 0, 0, temperature=0)
    bed.check_text([5], tokens[1].tolist(), 0, 0, temperature=0)
    with pytest.raises(ValueError):
        sampler.decode(1)


def test_one_sampler_serves_batches_of_all_sizes(bed, expected):
    """And a long text leaves nothing behind for the short ones after it."""
    sampler = bed.sampler(**WARPING)
    long = np.random.RandomState(3).randint(0, 257, 280).tolist()
    bed.generate(sampler, [long] * 4, range(4), seed=1, length=15)
    for indices in [[0], [4, 2, 1], [5], list(range(7)), [3, 6]]:
        rows = bed.generate(sampler, [PROMPTS[i] for i in indices], indices, seed=5, length=24)
        for i, row in zip(indices, rows):
            check_same_text(row, *expected[i])


def test_two_samplers_do_not_disturb_each_other(bed, expected):
    first, second = bed.sampler(**WARPING), bed.sampler(temperature=0)
    stream = generation.random_stream(5, 2)
    first.start([PROMPTS[2]])
    pieces = [first.decode(10, generation.random_uniforms([stream], 10, 257))]
    second.start([PROMPTS[4]] * 3)
    second.decode(5)
    pieces.append(first.decode(14, generation.random_uniforms([stream], 14, 257)))
    check_same_text(np.concatenate(pieces, axis=1)[0], *expected[2])


@pytest.mark.parametrize('prompts', [
    [[]], [[1, 2], []], [[257]], [[-1]], [[1, 2], [3, 257]], [[5, -1, 5]], [[1] * 301],
    [[1], [1] * 301],
], ids=lambda prompts: 'lengths %s' % [len(prompt) for prompt in prompts])
def test_the_host_checks_prompts(bed, prompts):
    sampler = bed.sampler(temperature=0)
    with pytest.raises(ValueError) as error:
        sampler.start(prompts)
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError):
        next(generation.generate(sampler, prompts, range(len(prompts)), seed=0, length=1))


def test_the_host_checks_the_window(bed):
    """What would not fit is refused whole, and the text goes on where it was."""
    sampler = bed.sampler(temperature=0)
    prompts = [np.random.RandomState(0).randint(0, 257, n).tolist() for n in (250, 3)]
    sampler.start(prompts)
    pieces = [sampler.decode(20)]
    with pytest.raises(ValueError, match='300'):
        sampler.decode(32)
    pieces.append(sampler.decode(31))
    tokens = np.concatenate(pieces, axis=1).tolist()
    for prompt, row in zip(prompts, tokens):
        bed.check_text(prompt, row, 0, 0, temperature=0)


@pytest.mark.parametrize('slots', [24, 60])
def test_slots_after_a_position_have_no_effect_whatever_they_hold(bed, slots):
    """Rows at positions of their own, in a cache full of large numbers."""
    random = np.random.RandomState(0)
    texts = random.randint(0, 257, [3, 20])
    lengths = np.array([1, 8, 20])  # what comes after these in `texts` is no part of the text
    following = random.randint(0, 257, [3, 4])
    with bed.graph.as_default():
        cache = [tuple(tf.random_uniform([3, 4, slots, 8], -1e4, 1e4) for _ in 'kv')
                 for _ in range(2)]
        positions = tf.constant(np.tile(np.arange(20), [3, 1]), tf.int32)
        whole, cache = sample.step(bed.hparams, tf.constant(texts, tf.int32), positions, cache)
        with model.variables():
            whole = model.head(bed.hparams, tf.reshape(whole, [-1, 32]))
        positions = tf.constant(lengths[:, np.newaxis] + np.arange(4), tf.int32)
        with tf.control_dependencies([whole]):  # or it might write where the first has yet to read
            more, _ = sample.step(bed.hparams, tf.constant(following, tf.int32), positions, cache)
        with model.variables():
            more = model.head(bed.hparams, tf.reshape(more, [-1, 32]))
    whole, more = [logits.reshape([3, -1, 257]) for logits in bed.session.run([whole, more])]
    for i in range(3):
        logits = reference.forward(bed.weights, NUMBERS, texts[i])
        np.testing.assert_allclose(whole[i], logits, rtol=0, atol=1e-4)
        text = texts[i, :lengths[i]].tolist() + following[i].tolist()
        logits = reference.forward(bed.weights, NUMBERS, text)[lengths[i]:]
        np.testing.assert_allclose(more[i], logits, rtol=0, atol=1e-4)


# ---- stored texts ------------------------------------------------------------------------------

THOUSAND = {'n_vocab': 1000, 'n_ctx': 64, 'n_embd': 64, 'n_head': 4, 'n_layer': 2}
STORED_PROMPTS = [[1, 2, 3], [999], [500, 0, 500, 0, 7]]
# Samples 0, 1 and 2 of seed 18 after these prompts, made once by reference.sample in float64 from
# reference.random_weights(THOUSAND, 4): neither TensorFlow nor anything in src had a part in them.
# No choice among them is a near-tie: the closest gap is 0.0088.
STORED = [
    ({}, [
        [772, 283, 816, 800, 903, 908, 602, 610, 533, 769, 816, 721, 815, 872, 340, 682, 128, 471,
         283, 283, 231, 715, 26, 119, 119, 119, 119, 682, 726, 57, 244, 244, 244, 357, 977, 487],
        [82, 487, 410, 488, 283, 756, 323, 427, 136, 410, 557, 62, 871, 965, 663, 602, 906, 952,
         97, 636, 427, 657, 244, 323, 427, 427, 980, 427, 427, 257, 496, 244, 996, 144, 721, 309],
        [96, 261, 512, 17, 17, 471, 471, 196, 471, 464, 471, 706, 321, 875, 519, 400, 873, 965,
         965, 61, 487, 425, 487, 425, 119, 781, 981, 129, 512, 298, 170, 519, 519, 463, 766, 487],
    ]),
    ({'temperature': 1.1, 'top_k': 300, 'top_p': 0.9}, [
        [772, 283, 816, 17, 904, 906, 602, 610, 522, 782, 425, 711, 811, 871, 427, 682, 142, 471,
         276, 357, 231, 715, 26, 119, 487, 107, 231, 231, 231, 57, 202, 244, 244, 357, 977, 487],
        [88, 511, 415, 487, 871, 767, 731, 487, 950, 400, 557, 62, 965, 965, 641, 720, 914, 943,
         98, 72, 427, 823, 234, 323, 427, 976, 965, 116, 129, 529, 496, 816, 427, 129, 721, 301],
        [119, 517, 757, 981, 231, 471, 471, 196, 471, 463, 471, 713, 345, 895, 103, 410, 893, 685,
         471, 524, 235, 425, 487, 427, 493, 493, 988, 610, 512, 202, 173, 520, 782, 231, 754,
         244],
    ]),
]
WITH_STORED = pytest.mark.parametrize('warping, stored', STORED, ids=['plain', 'warped'])


@pytest.fixture(scope='module')
def thousand(tmp_path_factory):
    made = Bed(THOUSAND, tmp_path_factory.mktemp('thousand'), seed=4)
    yield made
    made.session.close()


@WITH_STORED
def test_stored_texts_are_the_references(thousand, warping, stored):
    for i, prompt in enumerate(STORED_PROMPTS):
        tokens, gaps = reference.sample(thousand.weights, THOUSAND, prompt, 12, 18, i, **warping)
        assert tokens == stored[i][:12] and min(gaps) > 0.008
        thousand.check_text(prompt, stored[i], 18, i, **warping)


@WITH_STORED
def test_samplers_make_the_stored_texts(thousand, warping, stored):
    sampler = thousand.sampler(**warping)
    together = thousand.generate(sampler, STORED_PROMPTS, range(3), seed=18, length=36)
    assert together == stored
    alone = [thousand.generate(sampler, [prompt], [i], seed=18, length=36)[0]
             for i, prompt in enumerate(STORED_PROMPTS)]
    assert alone == stored


@WITH_STORED
def test_sample_sequence_makes_the_stored_texts(thousand, warping, stored):
    with thousand.graph.as_default():
        context = tf.placeholder(tf.int32, [1, None])
        uniforms = tf.placeholder(tf.float32, [1, None, 64])
        texts = sample.sample_sequence(hparams=thousand.hparams, length=36, context=context,
                                       uniforms=uniforms, **warping)
    for i, prompt in enumerate(STORED_PROMPTS):
        numbers = generation.random_uniforms([generation.random_stream(18, i)], 36, 1000)
        text, = thousand.session.run(texts, {context: [prompt], uniforms: numbers})
        assert text.tolist() == prompt + stored[i]
