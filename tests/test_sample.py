"""From logits to tokens and texts, held to the float64 reference.

A token may differ from the reference's only at a near-tie, where the two best scores lie within
NEAR. The shapes carry the letters of `sample.py`: B, N, R, V.
"""
import itertools
import math

import hypothesis
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import strategies

import model
import reference
import sample
import small_model
from gpt2.sampling import rng
from helpers import LONG, chi_square, chi_square_bound
from small_model import HPARAMS, NEAR, PROMPTS, WARPING, SmallModel, choose, force, uniforms

INF = math.inf


class Functions:
    """Runs functions of `sample` on arrays; the graph of each is built once."""

    def __init__(self):
        self.graph = tf.Graph()
        self.session = tf.Session(graph=self.graph)
        self.built = {}

    def __call__(self, function, *arrays, **options):
        """Run function(*arrays, **options), of float32 arrays [B, ...].

        Options that are arrays are fed, scalars as well as values a row. Others become constants.
        """
        arrays = [np.asarray(array, np.float32) for array in arrays]
        fed = {name: value for name, value in options.items() if isinstance(value, np.ndarray)}
        constant = {name: options[name] for name in options if name not in fed}
        key = (function, tuple(array.shape[1:] for array in arrays),
               tuple((name, value.dtype, value.ndim) for name, value in sorted(fed.items())),
               repr(sorted(constant.items())))
        if key not in self.built:
            with self.graph.as_default():
                inputs = [tf.placeholder(tf.float32, (None,) + array.shape[1:]) for array in arrays]
                settings = {name: tf.placeholder(value.dtype, [None] * value.ndim)
                            for name, value in fed.items()}
                outputs = function(*inputs, **settings, **constant)
                self.built[key] = inputs, settings, outputs
        inputs, settings, outputs = self.built[key]
        return self.session.run(outputs, {**dict(zip(inputs, arrays)),
                                          **{settings[name]: fed[name] for name in fed}})


@pytest.fixture(scope='module')
def run():
    functions = Functions()
    yield functions
    functions.session.close()


def filtered_where_not(kept, logits):
    return np.where(kept, np.float32(logits), np.float32(-1e10))


# ---- top-k -------------------------------------------------------------------------------------

def check_top_k(run, logits, k):
    """Check rows of logits, each with its own k or all with the same."""
    ks = np.broadcast_to(k, [len(logits)])
    kept = np.stack([reference.top_k_keep(row, k) for row, k in zip(np.float32(logits), ks)])
    result = run(sample.top_k_logits, logits, k=np.array(k))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, filtered_where_not(kept, logits))


TIES = [
    [2., 3., -1., 2., -5.], [0., 0., 0., 0., 0.], [1., 1., 1., 2., 2.], [-1., -2., -3., -4., -5.],
    [5., 5., 5., 5., -INF], [1., -INF, -INF, -INF, -INF], [3., -1e10, -1e10, 2., -1e10],
    [1e4, 0., -1e4, 1e-30, -0.], [-0., 0., -1., -0., 0.], [3e38, -3e38, 1e-45, -1e-45, 0.],
    [-1.5, -1.5, -2., -2., -INF], [-1e10, -1e10, -2e10, -3e10, -3e38],
]


@pytest.mark.parametrize('k', [0, 1, 2, 3, 4, 5])
def test_top_k_of_rows_with_ties(run, k):
    check_top_k(run, TIES, k)
    for row in TIES:
        check_top_k(run, [row], k)
    if k in (0, 2):  # as a number too
        np.testing.assert_array_equal(run(sample.top_k_logits, TIES, k=k),
                                      run(sample.top_k_logits, TIES, k=np.array(k)))


def test_top_k_may_differ_by_row(run):
    for first in range(6):
        check_top_k(run, TIES, [(first + row) % 6 for row in range(len(TIES))])


def test_equal_zeros_of_either_sign_stay_together(run):
    """Also where TensorFlow knows all of the shape, and simplifies more."""
    with tf.Graph().as_default(), tf.Session() as session:
        logits = tf.placeholder(tf.float32, [1, 4])
        kept = session.run(sample.top_k_logits(logits, 1), {logits: [[0., -0., -1., -2.]]})
    np.testing.assert_array_equal(kept, [[0., 0., -1e10, -1e10]])


@pytest.mark.parametrize('k', [1, 7, 40, 999, 1000])
def test_top_k_of_random_rows(run, k):
    random = np.random.RandomState(k)
    for logits in [random.randn(1, 1000), random.randn(5, 1000) * 20,
                   np.round(random.randn(5, 1000) * 3)]:
        check_top_k(run, logits, k)


def test_top_k_of_the_released_vocabulary(run):
    logits = np.random.RandomState(0).randn(3, 50257) * 3
    logits[1] = 2.5
    check_top_k(run, logits, k=[40, 40, 50257])


@pytest.mark.parametrize('k', [6, 50257, [0, 6], np.array([6, 1])], ids=str)
def test_top_k_beyond_the_vocabulary(k):
    with tf.Graph().as_default(), pytest.raises(ValueError, match=f'{np.max(k)}.*5'):
        sample.top_k_logits(tf.zeros([2, 5]), k)


# ---- top-p -------------------------------------------------------------------------------------

def top_p_bounds(logits, p):
    """Mark the tokens that rounding to float32 must leave in, and those that it may, bool [V].

    All that rounding can do: a sum moves by 1e-5, and neighbours closer than 1e-5 of their
    probability fall together. Logits that are equal, though, have equal probabilities.
    """
    logits = np.asarray(logits, np.float64)
    if p == 1:
        return np.full(logits.shape, True), np.full(logits.shape, True)
    probabilities = reference.softmax(logits)
    values, which, counts = np.unique(logits, return_inverse=True, return_counts=True)
    own = np.array([probabilities[which.reshape(-1) == i][0] for i in range(len(values))])
    masses = own * counts
    must, may = [], []
    for i, probability in enumerate(own):
        larger = np.arange(len(values)) > i
        almost = (np.arange(len(values)) != i) & (own > probability * (1 - 1e-5))
        surely = larger & (own > probability * (1 + 1e-5))
        must.append(masses[larger | almost].sum() < p - 1e-5)
        may.append(masses[surely].sum() < p + 1e-5)
    most = logits == np.max(logits)
    which = which.reshape(-1)
    return np.array(must)[which] | most, np.array(may)[which] | most


def check_top_p(run, logits, p):
    """Check rows of logits, each with its own p or all with the same.

    Returns how many tokens were too close to call.
    """
    logits = np.float32(logits)
    result = run(sample.top_p_logits, logits, p=np.array(p, np.float64))
    assert result.dtype == np.float32 and result.shape == logits.shape
    doubtful = 0
    for row, found, row_p in zip(logits, result, np.broadcast_to(p, [len(logits)])):
        must, may = top_p_bounds(row, row_p)
        wanted = reference.top_p_keep(row, row_p)
        kept = np.where(must == may, wanted, found == row)
        np.testing.assert_array_equal(found, filtered_where_not(kept, row))
        doubtful += np.sum(must != may)
        if np.array_equal(found == row, wanted):
            np.testing.assert_allclose(
                reference.softmax(np.float64(found)),
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
    result = run(sample.top_p_logits, logits, p=np.array(p))
    np.testing.assert_array_equal(result, filtered_where_not(expected, logits))
    alone = run(sample.top_p_logits, [BY_HAND], p=p if p == 0.41 else np.array(p))
    np.testing.assert_array_equal(alone, filtered_where_not(expected[:1], [BY_HAND]))


@pytest.mark.parametrize('p', [0, 0., 1, 1., [0, 1.], np.array(0.), np.array([0., 1.])], ids=str)
def test_top_p_of_0_or_1_keeps_everything(run, p):
    """0 is the default of the best-known forks."""
    logits = np.stack([BY_HAND, [9., -INF, -0., 0., 1.]])
    np.testing.assert_array_equal(run(sample.top_p_logits, logits, p=p), np.float32(logits))


SOFT_TIES = [row for row in TIES if max(row) > -1e9]


@pytest.mark.parametrize('p', [1e-9, 0.5, 0.999])
def test_top_p_of_rows_with_ties(run, p):
    assert check_top_p(run, SOFT_TIES, p) == 0
    for row in SOFT_TIES:
        check_top_p(run, [row], p)


def test_top_p_may_differ_by_row(run):
    logits = np.random.RandomState(3).randn(40, 30) * 3
    ps = np.random.RandomState(4).choice([1e-9, 0.3, 0.9, 0.999, 1.], 40)
    assert check_top_p(run, logits, ps) < 5


def test_top_p_at_the_very_edge(run):
    """Where the float32 sums are exact: p is just reached by the first token, or just not."""
    logits = np.float32([[1., 0.]])
    first = run(tf.nn.softmax, logits)[0, 0]
    for p, kept in [(first, [True, False]), (np.nextafter(first, np.float32(1)), [True, True])]:
        result = run(sample.top_p_logits, logits, p=np.array(p))
        np.testing.assert_array_equal(result, filtered_where_not(kept, logits))
    # All the probability lies in what is not filtered out, for any p.
    logits = np.array([[0., 0., -INF, -INF], [0., -INF, -INF, -INF], [0., 0., 0., 0.]])
    for p in [0.25, 0.5, 0.75, 1 - 2.**-20]:
        result = run(sample.top_p_logits, logits, p=np.array(p))
        np.testing.assert_array_equal(result, filtered_where_not(np.isfinite(logits), logits))


@pytest.mark.parametrize('p', [1e-30, 1e-40, 1e-50, 1e-300])
def test_top_p_keeps_the_likeliest_however_small_p_is(run, p):
    """Also where float32 cannot hold p: it must not turn into 0, which would mean off."""
    logits = np.array([[0., 3., 1., 2.], [5., 0., 5., -INF]])
    kept = [[False, True, False, False], [True, False, True, False]]
    for form in [np.array(p), np.array([p, p])] + ([p, [p, p]] if p == 1e-50 else []):
        result = run(sample.top_p_logits, logits, p=form)
        np.testing.assert_array_equal(result, filtered_where_not(kept, logits))


@pytest.mark.parametrize('p', [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('spread', [0.1, 3, 30], ids=['flat', 'usual', 'peaked'])
def test_top_p_of_random_rows(run, p, spread):
    random = np.random.RandomState(0)
    logits = np.concatenate([random.randn(2, 1000), np.round(random.randn(2, 1000), 1)]) * spread
    assert check_top_p(run, logits, p) + check_top_p(run, logits[:1], p) < 20  # of 5,000


def test_top_p_of_the_released_vocabulary(run):
    logits = np.float32(np.random.RandomState(0).randn(2, 50257) * 3)
    kept = run(sample.top_p_logits, logits, p=np.array(0.9)) == logits
    for row, marks in zip(logits, kept):
        wanted = reference.top_p_keep(row, 0.9)
        assert 1000 < np.sum(wanted) < 40000
        assert np.sum(wanted != marks) <= 2  # a token here has some 1e-5 of the probability


SETTINGS = hypothesis.settings(deadline=None, derandomize=True, max_examples=150 if LONG else 40)
# TensorFlow's arithmetic takes subnormal numbers for 0. Top-k does none, and tells them apart.
LOGIT = (strategies.floats(-40, 40, width=32, allow_subnormal=False)
         | strategies.floats(-2**30, 100, width=32, allow_subnormal=False)
         | strategies.sampled_from([0., -0., 1., 1.5, -2., -1e10, -INF]))
ANY_LOGIT = LOGIT | strategies.floats(allow_nan=False, width=32)
FIVE_KS = strategies.lists(strategies.integers(0, 9), min_size=5, max_size=5)
FIVE_PS = strategies.lists(strategies.sampled_from([1e-9, 0.3, 0.9, 0.9999, 1.]), min_size=5,
                           max_size=5)


def five_rows(logit):
    return strategies.lists(strategies.lists(logit, min_size=9, max_size=9), min_size=5, max_size=5)


def rows_with_a_likeliest(rows):
    """Give rows of nothing but filtered tokens one that is not."""
    return [row if max(row) > -1e9 else [0.] + row[1:] for row in rows]


@SETTINGS
@hypothesis.given(five_rows(ANY_LOGIT), FIVE_KS)
def test_top_k_of_any_rows(run, rows, ks):
    check_top_k(run, rows, ks)


@SETTINGS
@hypothesis.given(five_rows(LOGIT), FIVE_PS)
def test_top_p_of_any_rows(run, rows, ps):
    check_top_p(run, rows_with_a_likeliest(rows), ps)


@SETTINGS
@hypothesis.given(five_rows(LOGIT), FIVE_KS, FIVE_PS)
def test_top_k_before_top_p(run, rows, ks, ps):
    rows = np.float32(rows_with_a_likeliest(rows))
    result = run(top_k_then_top_p, rows, k=np.array(ks), p=np.array(ps))
    for row, found, k, p in zip(rows, result, ks, ps):
        by_k = reference.top_k_keep(row, k)
        must, may = top_p_bounds(np.where(by_k, row, -np.inf), p)
        kept = found > -1e9
        assert np.all(kept >= (by_k & must & (row > -1e9))) and np.all(kept <= (by_k & may))


def top_k_then_top_p(logits, k, p):
    return sample.top_p_logits(sample.top_k_logits(logits, k), p)


# ---- the selection by digits that serves both ----------------------------------------------------

def neighbours(value, steps):
    """Return the float32 that is so many floats after a value."""
    return (np.float32(value).view(np.int32) + np.int32(steps)).view(np.float32)


ADVERSARIAL = np.array(
    # Values that differ in the last digit, in the one before, and at their borders.
    [neighbours(value, sign * steps) for value in (1, -1, 1e-30, -1e-30, 3e38, -3e38, 0.1)
     for steps in (0, 1, 2**10 - 1, 2**10, 2**19, 2**20, 2**20 + 1) for sign in (1, -1)
     if np.isfinite(neighbours(value, sign * steps))]
    + [0., -0., INF, -INF, 1e-45, -1e-45, 1.1754944e-38, -1.1754944e-38], np.float32)


@pytest.mark.parametrize('values', [
    ADVERSARIAL[np.random.RandomState(0).randint(len(ADVERSARIAL), size=[20, 80])],
    np.float32(np.random.RandomState(1).randn(20, 300)),
    np.float32(np.round(np.random.RandomState(2).randn(20, 300), 1)),
    np.random.RandomState(3).randint(0, 255, [20, 4 * 99]).astype(np.uint8).view(np.float32),
], ids=['adversarial', 'random', 'ties', 'random bits'])
def test_larger_ones_below_is_exact(run, values):
    """Held to its definition, with weights whose float32 sums are exact."""
    random = np.random.RandomState(0)
    values = np.where(np.isnan(values), np.float32(0), values)
    weights = np.float32(random.randint(0, 4, values.shape))
    weights[0] = 1
    limits = np.float32(random.choice([0.5, 1, 2, 9, 50.5, 1e4, INF], [len(values), 1]))
    found = run(sample.larger_ones_below, limits, values, weights)
    for row, weight, limit, kept in zip(values, weights, limits, found):
        larger = row[:, np.newaxis] < row  # NumPy compares bits that TensorFlow would flush to 0
        assert np.array_equal(kept, (larger * weight).sum(axis=1) < limit)


# ---- the draw ----------------------------------------------------------------------------------

def check_tokens(tokens, kept_logits, uniforms):
    """Check drawn tokens against the reference; return how many near-ties fell otherwise."""
    assert tokens.dtype == np.int32 and tokens.shape == (len(uniforms),)
    differ = 0
    for token, logits, u in zip(tokens, kept_logits, uniforms):
        wanted, gap = reference.draw(logits, u)
        assert token == wanted or gap < NEAR
        differ += token != wanted
    return differ


@pytest.mark.parametrize('n_vocab, n', [
    (1, 20), (2, 300), (4, 300), (5, 300), (9, 300), (257, 300), (1000, 300), (50257, 10),
])
def test_draws_are_those_of_the_reference(run, n_vocab, n):
    random = np.random.RandomState(n_vocab)
    spread = random.choice([0., 0.3, 3., 50.], size=[n, 1])  # flat to peaked
    logits = np.float32(random.randn(n, n_vocab) * spread)
    logits -= logits.max(axis=1, keepdims=True)
    filtered = random.rand(n, n_vocab) < random.choice([0, 0.5, 0.99], size=[n, 1])
    filtered[np.arange(n), random.randint(n_vocab, size=n)] = False
    kept = np.where(filtered, -np.inf, logits)
    u = uniforms(0, [0], n, n_vocab)[0]
    differ = check_tokens(run(sample.gumbel_sample, kept, u), kept, u)
    marked = np.where(filtered, -1e10, logits)  # as top-k and top-p do it
    differ += check_tokens(run(sample.gumbel_sample, marked, u), kept, u)
    assert differ <= 2


def test_draws_with_extreme_random_numbers(run):
    least, most = 2.**-24, 1 - 2.**-24
    random = np.random.RandomState(0)
    logits = np.float32(random.randn(1000, 30) * 3)
    u = np.float32(random.choice([least, 3 * least, 0.5, 1 - 3 * least, most], size=[1000, 12]))
    # Ties of the noise make no near-ties here, as no two logits are alike.
    assert check_tokens(run(sample.gumbel_sample, logits, u), logits, u) <= 2


def test_a_draw_takes_the_lowest_id_among_equals(run):
    u = np.full([1, 6], 0.5)
    for kept, token in [([1] * 7, 0), ([0, 1, 1, 0, 0, 0, 0], 1), ([0, 0, 0, 0, 0, 1, 1], 5)]:
        logits = np.where(kept, 0, -np.inf)
        assert run(sample.gumbel_sample, [logits], u) == [token]
        assert reference.draw(logits, u[0])[0] == token


@pytest.mark.parametrize('n_vocab', [1, 5, 17, 257])
def test_a_draw_never_leaves_the_vocabulary_nor_what_was_kept(run, n_vocab):
    u = uniforms(1, [0], 500, n_vocab)[0]
    tokens = run(sample.gumbel_sample, np.zeros([500, n_vocab]), u)
    assert tokens.min() >= 0 and tokens.max() < n_vocab
    last = np.full([500, n_vocab], -1e10)
    last[:, -1] = 0
    assert (run(sample.gumbel_sample, last, u) == n_vocab - 1).all()


# ---- random numbers ----------------------------------------------------------------------------

@pytest.mark.parametrize('n_vocab', [1, 2, 257, 1000, 50257])
@pytest.mark.parametrize('chunks', [[12], [1] * 12, [5, 0, 7]], ids=str)
def test_random_numbers_are_those_of_the_reference(n_vocab, chunks):
    names = [(0, 0), (7, 3), (2**70, 2**40)]
    generators = [rng.sample_rng(seed, index) for seed, index in names]
    found = [rng.draw_uniforms(generators, chunk, n_vocab) for chunk in chunks]
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    expected = [reference.uniforms(seed, index, 12, n_vocab) for seed, index in names]
    assert np.array_equal(np.concatenate(found, axis=1), expected)  # float64, and exactly


@pytest.mark.parametrize('n_vocab, side', [
    (1, 1), (2, 2), (4, 2), (5, 3), (257, 17), (50257, 225), (50625, 225), (50626, 226),
])
def test_the_grid_has_one_size_everywhere(n_vocab, side):
    assert sample.grid_side(n_vocab) == rng.grid_side(n_vocab) == reference.side(n_vocab) == side


# ---- temperature, top-k and top-p, in every form -------------------------------------------------

def choose_tokens(logits, u, temperature=1, **filters):
    """Return the logits to draw from, and the tokens."""
    processed = sample.process_logits(logits, temperature, **filters)
    return processed, sample.sample_token(processed, u, temperature)


def choose_and_score(logits, u, temperature=1, **filters):
    """Return the logits to draw from, the tokens, and their log probabilities."""
    processed, token = choose_tokens(logits, u, temperature, **filters)
    return processed, token, sample.token_logprobs(logits, processed, token, temperature)


SETTINGS_OF_ROWS = [
    # Every mix of on and off, and extremes.
    *itertools.product([0, 1, 0.7], [0, 20], [0, 1, 0.8]),
    (1.5, 40, 1), (1, 1, 1), (1, 257, 1), (1, 257, 1e-6), (0.9, 50, 0.95), (1, 0, 1e-50),
    (1, 0, 1 - 1e-9), (1e-6, 0, 1), (1e-30, 0, 1), (1e-50, 0, 1), (1e6, 0, 1), (1e30, 9, 1),
]
AS_NUMBERS = [(1, 0, 1), (0.7, 20, 1), (1, 0, 1e-50)]
SCORED_AS_NUMBERS = [(0, 20, 0.8), (0.9, 50, 0.95)]
NAMES = ['temperature', 'top_k', 'top_p']


@pytest.fixture(scope='module')
def rows():
    """Logits [B, V] and random numbers, many rows of each setting, and the options a row, [B]."""
    n, random = 12 * len(SETTINGS_OF_ROWS), np.random.RandomState(0)
    logits = np.float32(random.randn(n, 257) * 3 + random.randn(n, 1) * 100)
    logits[1::7] = np.round(logits[1::7])  # ties
    options = dict(zip(NAMES, map(np.array, zip(*SETTINGS_OF_ROWS * 12))))
    return logits, uniforms(0, [1], n, 257)[0], options


@pytest.fixture(scope='module')
def by_row(run, rows):
    """What `choose_and_score` makes of them, with one value a row fed."""
    logits, u, options = rows
    return run(choose_and_score, logits, u, **options)


def test_each_row_has_its_own_options(rows, by_row):
    """Held to the reference, also for the order of the steps: any other gives other sets."""
    logits, u, options = rows
    processed, tokens, logprobs = by_row
    assert tokens.dtype == np.int32
    differ = 0
    for row, values in enumerate(zip(*options.values())):
        temperature, k, p = values[0], int(values[1]), values[2] or 1
        wanted, gap = choose(logits[row], u[row], temperature=temperature, top_k=k, top_p=p)
        assert tokens[row] == wanted or gap < NEAR
        differ += tokens[row] != wanted
        own = np.log(reference.softmax(np.float64(logits[row])))
        np.testing.assert_allclose(logprobs[row, 0], own[tokens[row]], rtol=1e-5, atol=1e-4)
        if temperature == 0:
            assert logprobs[row, 1] == 0
        elif 1e-6 < temperature < 1e6 and tokens[row] == wanted:
            drawn = reference.warp(logits[row], temperature, k, p)
            np.testing.assert_allclose(logprobs[row, 1], np.log(drawn[wanted]), atol=1e-4)
            n_doubtful = 257 if 1 - 1e-6 < p < 1 else 2  # p is 1 in float32
            assert np.sum((processed[row] > -1e9) != (drawn > 0)) <= n_doubtful
    assert differ <= 3


@pytest.mark.parametrize('setting', SETTINGS_OF_ROWS, ids=str)
def test_a_number_a_scalar_tensor_and_a_row_give_the_same_bits(run, rows, by_row, setting):
    logits, u, options = rows
    these = np.all([options[name] == value for name, value in zip(NAMES, setting)], axis=0)
    assert these.sum() >= 12
    numbers = dict(zip(NAMES, setting))
    scalars = {name: np.array(numbers[name], options[name].dtype) for name in NAMES}
    forms = [(choose_and_score, scalars)]
    if setting in SCORED_AS_NUMBERS or LONG:  # each takes a graph of its own
        forms.append((choose_and_score, numbers))
    elif setting in AS_NUMBERS:
        forms.append((choose_tokens, numbers))
    drawn = slice(setting[0] == 0, None)  # at temperature 0, nothing is drawn from the logits
    for function, alone in forms:
        results = run(function, logits[these], u[these], **alone)
        for found, expected in zip(results[drawn], by_row[drawn]):
            assert np.array_equal(found, expected[these])


def test_a_list_an_array_and_a_constant_tensor_give_the_same_bits(rows, by_row):
    logits, u, options = rows
    with tf.Graph().as_default(), tf.Session() as session:
        found = session.run([choose_tokens(
            tf.constant(logits), tf.constant(u),
            **{name: form(values) for name, values in options.items()})
            for form in (np.ndarray.tolist, np.asarray, tf.constant)])
    for outputs in found:
        for output, expected in zip(outputs, by_row):
            assert np.array_equal(output, expected)


def test_a_mix_of_forms_gives_the_same_bits(run, rows, by_row):
    logits, u, options = rows
    these = (options['temperature'] == 0.7) & (options['top_p'] == 0.8)
    mixed = {'temperature': 0.7, 'top_k': options['top_k'][these], 'top_p': np.array(0.8)}
    for found, expected in zip(run(choose_tokens, logits[these], u[these], **mixed), by_row):
        assert np.array_equal(found, expected[these])


def operations(**options):
    """Return the types of the operations that choosing a token takes in a graph."""
    with tf.Graph().as_default() as graph:
        logits = tf.placeholder(tf.float32, [None, 30])
        choose_and_score(logits, tf.placeholder(tf.float32, [None, 12]), **options)
        return [operation.type for operation in graph.get_operations()]


def test_a_number_that_switches_a_step_off_adds_nothing_to_the_graph():
    with tf.Graph().as_default() as graph:
        logits = tf.placeholder(tf.float32, [None, 5])
        for k in (0, [0, 0], np.zeros(2, int)):
            assert sample.top_k_logits(logits, k) is logits
        for p in (0, 1, 0., 1., [0, 1], np.ones(2)):
            assert sample.top_p_logits(logits, p) is logits
        assert len(graph.get_operations()) == 1
    plain = operations()
    for off in [{'top_k': 0}, {'top_p': 0}, {'top_p': 1}, {'temperature': 1.0, 'top_p': 1.0}]:
        assert operations(**off) == plain
    greedy = operations(temperature=0)
    assert greedy == operations(temperature=0, top_k=3, top_p=0.5)
    assert 'PadV2' in plain and 'PadV2' not in greedy  # which lays out the grid of the draw
    for numbers in [{}, {'temperature': 0.7, 'top_k': 3, 'top_p': 0.5}, {'temperature': 0}]:
        # Nothing is decided when the graph runs.
        assert not {'Switch', 'If', 'StatelessIf'} & set(operations(**numbers))


def test_a_tensor_that_switches_a_step_off_executes_nothing_of_it():
    with tf.Graph().as_default(), tf.Session() as session:
        logits = tf.constant(np.random.RandomState(0).randn(3, 30).astype(np.float32))
        options = {'temperature': tf.placeholder(tf.float32, [None]),
                   'top_k': tf.placeholder(tf.int32, []), 'top_p': tf.placeholder(tf.float32, [])}
        _, token = choose_tokens(logits, tf.fill([3, 12], 0.5), **options)

        def executed(*values):
            """Return how often the selection by digits, softmax and the draw were executed."""
            metadata = tf.RunMetadata()
            session.run(token, dict(zip(options.values(), values)), run_metadata=metadata,
                        options=tf.RunOptions(trace_level=tf.RunOptions.FULL_TRACE))
            labels = [node.timeline_label for device in metadata.step_stats.dev_stats
                      for node in device.node_stats]
            return [sum(kind in label for label in labels)
                    for kind in ('= UnsortedSegmentSum(', 'Softmax(', '= Log(')]

        n_digits = 3
        assert executed([1, 1, 2], 0, 1) == executed([1, 1, 2], 0, 0) == [0, 0, 1]
        assert executed([1, 0, 2], 5, 1) == [n_digits, 0, 1]
        assert executed([1, 1, 2], 0, 0.5) == [n_digits, 1, 1]
        assert executed([1, 1, 2], 5, 0.5) == [2 * n_digits, 1, 1]
        assert executed([0, 0, 0], 5, 0.5) == [0, 0, 0]


def test_temperature_0_takes_the_likeliest_and_the_first_of_equals(run):
    logits = np.random.RandomState(0).randn(300, 257)
    logits[100:, [7, 30]] = 9
    u = uniforms(0, [0], 300, 257)[0]
    expected = [reference.best_and_gap(row)[0] for row in np.float32(logits)]
    for temperature in [0, np.array(0), np.zeros(300)]:
        _, tokens = run(choose_tokens, logits, u, temperature=temperature, top_k=3)
        assert tokens.dtype == np.int32
        assert tokens.tolist() == expected


def test_a_tiny_temperature_chooses_among_equals_alone(run):
    logits = np.random.RandomState(0).randn(300, 257)
    logits[:, [7, 30]] = 9
    u = uniforms(0, [0], 300, 257)[0]
    _, tokens = run(choose_tokens, logits, u, temperature=np.array(1e-6))
    counts = np.bincount(tokens, minlength=257)
    assert counts[7] + counts[30] == 300 and min(counts[7], counts[30]) > 100


@pytest.mark.parametrize('temperature', [1e-37, 1e-40, 1e-45, 1e-50, 1e-300])
def test_a_temperature_that_float32_cannot_hold(run, temperature):
    logits = np.random.RandomState(0).randn(20, 257)
    u = uniforms(0, [0], 20, 257)[0]
    number = [temperature] if temperature == 1e-50 else []
    for form in [np.array(temperature), np.full(20, temperature), *number]:
        _, tokens = run(choose_tokens, logits, u, temperature=form)
        assert tokens.tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize('warping', [
    {}, {'temperature': 0.7, 'top_k': 10}, {'temperature': 1.4, 'top_p': 0.8},
    {'temperature': 1.2, 'top_k': 20, 'top_p': 0.9},
], ids=str)
def test_frequencies_of_tokens_are_the_exact_probabilities(run, warping):
    n, logits = 20000 if LONG else 6000, np.float32(np.random.RandomState(0).randn(40))
    options = {name: np.array(value) for name, value in
               {'temperature': 1., 'top_k': 0, 'top_p': 1., **warping}.items()}
    tokens = np.concatenate([
        run(choose_tokens, np.tile(logits, [len(u), 1]), u, **options)[1]
        for u in np.split(uniforms(2, [0], n, 40)[0], 10)])
    counts = np.bincount(tokens, minlength=40)
    probabilities = reference.warp(logits, **warping)
    bound = chi_square_bound(np.count_nonzero(probabilities) - 1)
    assert chi_square(counts, probabilities) < bound
    # The bound has teeth: it notices probabilities that are a little flatter.
    kept = reference.warp_logits(logits, **warping)
    assert chi_square(counts, reference.softmax(kept * 0.75)) > bound


# ---- sample_sequence -----------------------------------------------------------------------------

@pytest.fixture(scope='module')
def small():
    """The small model, with a graph and a session."""
    made = SmallModel()
    made.graph = tf.Graph()
    made.session = tf.Session(graph=made.graph)
    with made.graph.as_default():
        model.model(made.hparams, tf.zeros([1, 1], tf.int32))
    made.load(made.session)
    yield made
    made.session.close()


@pytest.fixture(scope='module')
def serve(small):
    """A function that continues contexts by 36 tokens: one graph, as a server has it."""
    with small.graph.as_default():
        context = tf.placeholder(tf.int32, [None, None])
        u = tf.placeholder(tf.float32, [None, None, 64])
        options = {'temperature': tf.placeholder(tf.float32, []),
                   'top_k': tf.placeholder(tf.int32, []), 'top_p': tf.placeholder(tf.float32, [])}
        texts = sample.sample_sequence(hparams=small.hparams, length=36, context=context,
                                       uniforms=u, **options)

    def run(contexts, numbers, temperature=1, top_k=0, top_p=1):
        found = small.session.run(texts, {
            context: contexts, u: numbers, options['temperature']: temperature,
            options['top_k']: top_k, options['top_p']: top_p})
        assert found.dtype == np.int32
        assert found.shape == (len(contexts), len(contexts[0]) + 36)
        assert found[:, :-36].tolist() == [list(context) for context in contexts]
        return found[:, -36:].tolist()

    return run


@pytest.mark.parametrize('options', [
    {}, WARPING, {'top_p': 0}, {'temperature': 0}, {'top_k': 1000, 'temperature': 0.5},
    {'top_k': 7}, {'top_p': 0.7}], ids=str)
def test_one_graph_serves_any_options(small, serve, options):
    """And contexts of any length and number, each row with its own randomness."""
    checked = {**options, 'top_p': options.get('top_p') or 1}
    for n_context, n_batch in [(1, 1), (2, 3), (29, 2)]:
        contexts = np.random.RandomState(1).randint(0, 1000, [n_batch, n_context]).tolist()
        numbers = uniforms(9, range(n_batch), 36)
        for row, tokens in enumerate(serve(contexts, numbers, **options)):
            small.check(contexts[row], tokens, numbers[row], **checked)


def test_greedy_texts_are_those_of_the_reference(small, serve):
    tokens, margins = reference.greedy(small.weights, HPARAMS, [7, 8], 36)
    assert min(margins) > NEAR and len(set(tokens)) > 4
    unused = np.full([1, 36, 64], 0.5)
    assert serve([[7, 8]], unused, temperature=0) == [tokens]
    assert serve([[7, 8]], unused, top_k=1) == [tokens]


def test_numbers_make_the_same_texts_as_tensors(small, serve):
    numbers = uniforms(5, [2, 3], 36)
    context = [PROMPTS[2], PROMPTS[2]]
    with small.graph.as_default():
        texts = sample.sample_sequence(
            hparams=small.hparams, length=36, context=tf.constant(context, tf.int32), batch_size=2,
            uniforms=tf.constant(numbers), **WARPING)
        assert texts.dtype == tf.int32 and texts.shape.as_list() == [2, None]
    found = small.session.run(texts)
    assert found[:, :9].tolist() == context
    assert found[:, 9:].tolist() == serve(context, numbers, **WARPING)


def test_sample_sequence_from_a_start_token_with_options_a_row(small, serve):
    """A list, an array and a tensor: the texts are those that numbers make of the row alone."""
    numbers = uniforms(6, range(4), 10)
    values = {'temperature': [1, 0, 0.7, 1.2], 'top_k': [0, 3, 40, 1], 'top_p': [0.9, 1, 0, 0.5]}
    with small.graph.as_default():
        top_p = tf.placeholder(tf.float32, [None])
        texts = sample.sample_sequence(
            hparams=small.hparams, length=10, start_token=999, batch_size=4,
            uniforms=tf.constant(numbers), temperature=values['temperature'],
            top_k=np.array(values['top_k']), top_p=top_p)
    found = small.session.run(texts, {top_p: values['top_p']})
    assert found.shape == (4, 11) and (found[:, 0] == 999).all()
    for row in range(4):
        options = {name: value[row] for name, value in values.items()}
        small.check([999], found[row, 1:], numbers[row],
                    **{**options, 'top_p': options['top_p'] or 1})
        padded = np.concatenate([numbers, np.full([4, 26, 64], 0.5)], axis=1)
        same_batch = serve([[999]] * 4, padded, **options)
        assert same_batch[row][:10] == found[row, 1:].tolist()


def test_sample_sequence_of_a_single_token(small):
    with small.graph.as_default():
        texts = sample.sample_sequence(hparams=small.hparams, length=1, temperature=0,
                                       context=tf.constant([PROMPTS[0]] * 2, tf.int32))
    token = int(small.logits(PROMPTS[0])[-1].argmax())
    assert small.session.run(texts).tolist() == [PROMPTS[0] + [token]] * 2


def test_sample_sequence_takes_either_a_start_token_or_a_context(small):
    with small.graph.as_default():
        context = tf.constant([[1, 2]], tf.int32)
        for wrong in [{}, {'batch_size': 1}, {'context': context, 'start_token': 0},  # 0 is an id
                      {'batch_size': 1, 'context': context, 'start_token': 5}]:
            with pytest.raises(ValueError, match='start_token or context'):
                sample.sample_sequence(hparams=small.hparams, length=2, **wrong)
        with pytest.raises(ValueError, match='1001'):
            sample.sample_sequence(hparams=small.hparams, length=2, context=context, top_k=1001)


def test_sample_sequence_fills_the_window_and_no_more(small):
    context = np.tile(np.random.RandomState(0).randint(0, 1000, 54), [2, 1])
    with small.graph.as_default():
        known, unknown = tf.constant(context, tf.int32), tf.placeholder(tf.int32, [2, None])
        with pytest.raises(ValueError, match='64'):
            sample.sample_sequence(hparams=small.hparams, length=12, context=known)
        with pytest.raises(ValueError, match='64'):
            sample.sample_sequence(hparams=small.hparams, length=65, start_token=0, batch_size=1)
        texts = sample.sample_sequence(hparams=small.hparams, length=11, context=unknown,
                                       temperature=0)
    found = small.session.run(texts, {unknown: context})
    assert found.shape == (2, 65)
    small.check(context[0].tolist(), found[0, 54:].tolist(), [None] * 11, temperature=0)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        small.session.run(texts, {unknown: np.zeros([2, 55], np.int32)})


def test_randomness_drawn_in_the_graph():
    """Pairs of successive tokens of 3,000 rows, twice, against the exact probabilities."""
    n, sizes = 3000, {'n_vocab': 17, 'n_ctx': 4, 'n_embd': 8, 'n_head': 2, 'n_layer': 1}
    weights = reference.random_weights(sizes, 2)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        texts = sample.sample_sequence(hparams=model.HParams(**sizes), length=2, start_token=3,
                                       batch_size=n, temperature=1.5, top_k=3)
        for variable in tf.global_variables():
            variable.load(weights[variable.op.name], session)
        runs = [session.run(texts) for _ in range(2)]
    assert not np.array_equal(runs[0], runs[1])

    first = reference.warp(reference.forward(weights, sizes, [3])[-1], 1.5, 3)
    pairs = np.zeros([17, 17])
    for token in np.flatnonzero(first):
        logits = reference.forward(weights, sizes, [3, token])[-1]
        pairs[token] = first[token] * reference.warp(logits, 1.5, 3)
    for found in runs:
        counts = np.zeros([17, 17])
        np.add.at(counts, (found[:, 1], found[:, 2]), 1)
        assert chi_square(counts, pairs) < chi_square_bound(8)
        # A row equals its neighbour, or itself in the other run, as often as chance has it.
        same = np.mean(found[1:, 1] == found[:-1, 1])
        assert abs(same - np.sum(first**2)) < 5 * math.sqrt(0.25 / n)
    same = np.mean(runs[0][:, 1] == runs[1][:, 1])
    assert abs(same - np.sum(first**2)) < 5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize('options, stored', small_model.STORED, ids=['plain', 'warped'])
def test_sample_sequence_makes_the_stored_texts(serve, options, stored):
    for index, prompt in enumerate(small_model.STORED_PROMPTS):
        assert serve([prompt], uniforms(18, [index], 36), **options) == [stored[index]]


@pytest.mark.parametrize('options, stored', small_model.STORED, ids=['plain', 'warped'])
def test_the_stored_texts_are_those_of_the_reference(small, options, stored):
    for index, prompt in enumerate(small_model.STORED_PROMPTS):
        tokens, gaps = reference.sample(small.weights, HPARAMS, prompt, 12, 18, index, **options)
        assert tokens == stored[index][:12] and min(gaps) > 0.008
        small.check_sample(prompt, stored[index], 18, index, **options)


# ---- ending early ------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def stopping(small):
    """sample_sequence with the stop token 0, an id that is false, fed with random numbers."""
    with small.graph.as_default():
        u = tf.placeholder(tf.float32, [None, None, 64])
        texts = sample.sample_sequence(
            hparams=small.hparams, length=20, start_token=3, batch_size=3, uniforms=u, stop_token=0)
    return lambda numbers: small.session.run(texts, {u: numbers})[:, 1:].tolist()


def ending_at(steps):
    """Return random numbers [B, 20, 2R] that draw token 0 in each row at one of these steps."""
    numbers = uniforms(0, range(len(steps)), 20)
    for row, step in enumerate(steps):
        if step is not None:
            numbers[row, step] = force(numbers[row, step], 0)
    return numbers


@pytest.mark.parametrize('steps', [[2, 7, None], [4, 11, 6], [0, 0, 0], [19, 0, 3]], ids=str)
def test_rows_that_ended_are_filled(small, stopping, steps):
    numbers = ending_at(steps)
    for row, tokens in enumerate(stopping(numbers)):
        n = 20 if steps[row] is None else steps[row] + 1
        small.check([3], tokens[:n], numbers[row])
        assert tokens[n:] == [0] * (20 - n)
        assert 0 not in tokens[:n - 1] and (tokens[n - 1] == 0 or steps[row] is None)


def test_the_graph_stops_when_all_rows_have_ended(stopping):
    """No step is made after the last row's end: there is no randomness for one."""
    numbers = ending_at([4, 11, 6])
    assert stopping(numbers[:, :12]) == stopping(numbers)
    with pytest.raises(tf.errors.InvalidArgumentError):
        stopping(numbers[:, :11])


# ---- the KV cache ------------------------------------------------------------------------------

@pytest.mark.parametrize('n_positions', [24, 60])
def test_cache_positions_after_a_token_have_no_effect_whatever_they_hold(cached, n_positions):
    """Rows at different positions, in a cache full of large numbers."""
    small, run = cached
    random = np.random.RandomState(0)
    texts, following = random.randint(0, 1000, [3, 20]), random.randint(0, 1000, [3, 4])
    lengths = np.array([1, 8, 20])  # what comes after these in `texts` is no part of the text
    whole, more = run(n_positions, texts, lengths, following)
    for row in range(3):
        logits = small.logits(texts[row])
        np.testing.assert_allclose(whole[row], logits, rtol=0, atol=1e-4)
        text = texts[row, :lengths[row]].tolist() + following[row].tolist()
        logits = small.logits(text)[lengths[row]:]
        np.testing.assert_allclose(more[row], logits, rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def cached(small):
    """A function that reads texts, and then tokens that continue their first parts."""
    with small.graph.as_default():
        n_positions = tf.placeholder(tf.int32, [])
        texts, following = (tf.placeholder(tf.int32, [3, n]) for n in (20, 4))
        lengths = tf.placeholder(tf.int32, [3])
        cache = [tuple(tf.random_uniform([3, 4, n_positions, 16], -1e4, 1e4) for _ in 'kv')
                 for _ in range(2)]

        def logits_of(h):
            with model.variables():
                logits = model.lm_head(small.hparams, tf.reshape(h, [-1, 64]))
            return tf.reshape(logits, [3, -1, 1000])

        positions = tf.tile(tf.range(20)[tf.newaxis], [3, 1])
        h, cache = sample.forward(small.hparams, texts, positions, cache)
        whole = logits_of(h)
        with tf.control_dependencies([whole]):  # or it might write where the first has yet to read
            h, _ = sample.forward(small.hparams, following,
                                  lengths[:, tf.newaxis] + tf.range(4), cache)
        more = logits_of(h)

    def run(*values):
        return small.session.run(
            [whole, more], dict(zip([n_positions, texts, lengths, following], values)))

    return small, run
