"""Test reference.py, the oracle, against transformers, known answers and cases worked by hand.

What must be the same under every NumPy or needs TensorFlow is not marked pure.
"""
import json
import math
import os
import shutil

import numpy as np
import pytest

import reference
from helpers import chi_square, chi_square_bound, huggingface_logits

pure = pytest.mark.pure

TINY = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 32, 'n_head': 4, 'n_layer': 3}
INF = math.inf


@pytest.fixture(scope='module')
def weights():
    return reference.random_weights(TINY, seed=0)


# ---- weights -----------------------------------------------------------------------------------


@pure
@pytest.mark.parametrize('layers, heads, width, parameters', [
    (12, 12, 768, 124439808),
    (24, 16, 1024, 354823168),
    (36, 20, 1280, 774030080),
    (48, 25, 1600, 1557611200),
])
def test_shapes_add_up_to_the_released_sizes(layers, heads, width, parameters):
    hparams = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': width, 'n_head': heads,
               'n_layer': layers}
    shapes = reference.shapes(hparams).values()
    assert sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes) == parameters


def test_random_weights_are_reproducible_and_well_scaled(weights):
    assert {name: list(w.shape) for name, w in weights.items()} == reference.shapes(TINY)
    assert all(w.dtype == np.float32 for w in weights.values())
    again, other = reference.random_weights(TINY, 0), reference.random_weights(TINY, 1)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert not any(np.array_equal(weights[name], other[name]) for name in weights)
    # The first values under seed 0, stored: every NumPy must agree.
    assert weights['model/wpe'][0, :3].tolist() == [
        -0.09147361665964127, -0.22231465578079224, -0.2993665635585785]
    logits = reference.forward(weights, TINY, range(32))
    assert 1 < logits.std() < 3 and np.abs(logits).max() < 15


@pure
def test_every_variable_moves_the_logits(weights):
    tokens = np.arange(32) * 7 % 257
    logits = reference.forward(weights, TINY, tokens)
    for name, w in weights.items():
        plain = np.full_like(w, 1 if name.endswith('/g') else 0)
        without = reference.forward(dict(weights, **{name: plain}), TINY, tokens)
        assert np.abs(without - logits).max() > 0.1, name


# ---- the transformer ---------------------------------------------------------------------------


@pure
@pytest.mark.parametrize('changes', [
    {}, {'n_head': 1, 'n_layer': 1}, {'n_embd': 48, 'n_head': 3, 'n_vocab': 50},
])
def test_logits_equal_those_of_transformers(changes):
    hparams = dict(TINY, **changes)
    weights = reference.random_weights(hparams, seed=1)
    tokens = np.random.RandomState(0).randint(0, hparams['n_vocab'], 32).tolist()
    logits = reference.forward(weights, hparams, tokens)
    expected = huggingface_logits(weights, hparams, tokens)
    assert logits.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9)


def test_logits_equal_stored_ones():
    """The same comparison without torch: float64 logits of transformers, stored."""
    hparams = {'n_vocab': 3, 'n_ctx': 4, 'n_embd': 4, 'n_head': 2, 'n_layer': 2}
    weights = {}
    for i, (name, shape) in enumerate(reference.shapes(hparams).items()):
        wave = 0.6 * np.sin(0.7 * np.arange(np.prod(shape)) + i)
        weights[name] = wave.reshape(shape) + name.endswith('/g')
    np.testing.assert_allclose(reference.forward(weights, hparams, [2, 0, 1, 1]), [
        [0.769607940998, -0.964838089012, 1.048576064193],
        [1.613409758028, -0.791084233485, -0.122655281747],
        [0.068560765117, -0.491660613465, 0.85794646295],
        [1.547828510958, -0.710899297054, -0.208178111658],
    ], rtol=0, atol=1e-9)


@pure
def test_a_position_depends_only_on_those_before_it(weights):
    tokens = [5, 6, 7, 8, 9]
    logits = reference.forward(weights, TINY, tokens)
    np.testing.assert_allclose(
        reference.forward(weights, TINY, tokens[:3]), logits[:3], rtol=0, atol=1e-12)
    changed = reference.forward(weights, TINY, [5, 6, 100, 8, 9])
    np.testing.assert_allclose(changed[:2], logits[:2], rtol=0, atol=1e-12)
    assert np.abs(changed[2:] - logits[2:]).max(axis=-1).min() > 0.1


@pure
@pytest.mark.parametrize('tokens', [[], [257], [-1], [0] * 33, [[1, 2]]])
def test_forward_refuses_what_the_model_cannot_take(weights, tokens):
    with pytest.raises(ValueError):
        reference.forward(weights, TINY, tokens)


# ---- which tokens may come next ----------------------------------------------------------------


@pure
@pytest.mark.parametrize('k, kept', [
    (0, [1, 1, 1, 1, 1]),
    (1, [0, 1, 0, 0, 0]),
    (2, [1, 1, 0, 1, 0]),  # the second largest occurs twice: both stay
    (3, [1, 1, 0, 1, 0]),
    (4, [1, 1, 1, 1, 0]),
    (5, [1, 1, 1, 1, 1]),
])
def test_top_k_by_hand(k, kept):
    assert reference.top_k_keep([2., 3., -1., 2., -5.], k).tolist() == [bool(x) for x in kept]


@pure
@pytest.mark.parametrize('k', [-1, 6])
def test_top_k_refuses_values_out_of_range(k):
    with pytest.raises(ValueError):
        reference.top_k_keep(np.zeros(5), k)


@pure
@pytest.mark.parametrize('p, kept', [
    (0.01, [0, 1, 0, 0, 0]),   # one token always stays
    (0.39, [0, 1, 0, 0, 0]),
    (0.41, [1, 1, 0, 1, 0]),   # the token that crosses p stays, and so does its twin
    (0.79, [1, 1, 0, 1, 0]),
    (0.81, [1, 1, 1, 1, 0]),
    (0.949, [1, 1, 1, 1, 0]),
    (0.951, [1, 1, 1, 1, 1]),
    (1, [1, 1, 1, 1, 1]),
])
def test_top_p_by_hand(p, kept):
    logits = np.log([0.2, 0.4, 0.15, 0.2, 0.05]) + 7
    assert reference.top_p_keep(logits, p).tolist() == [bool(x) for x in kept]


@pure
def test_top_p_at_the_exact_threshold():
    logits = [1., 0.]
    p = reference.softmax(np.array(logits))[0]
    assert reference.top_p_keep(logits, p).tolist() == [True, False]  # p is reached by the first
    assert reference.top_p_keep(logits, np.nextafter(p, 1)).tolist() == [True, True]


@pure
@pytest.mark.parametrize('p', [0.01, 0.5, 0.999, 1])
def test_top_p_keeps_equal_tokens_together(p):
    assert reference.top_p_keep(np.zeros(8), p).all()
    kept = reference.top_p_keep([0., 0., -INF, -INF], p)
    assert kept.tolist() == [True, True, p == 1, p == 1]


@pure
@pytest.mark.parametrize('p', [0, -0.1, 1.1])
def test_top_p_refuses_values_out_of_range(p):
    with pytest.raises(ValueError):
        reference.top_p_keep(np.zeros(5), p)


@pure
def test_top_p_follows_its_definition():
    rng = np.random.RandomState(0)
    for _ in range(200):
        logits = np.round(rng.randn(30) * 3, rng.randint(0, 3))  # ties are frequent
        probabilities = reference.softmax(logits)
        p = rng.uniform(0.01, 0.99)
        kept = [sum(q for q in probabilities if q > own) < p for own in probabilities]
        assert reference.top_p_keep(logits, p).tolist() == kept
        mass = probabilities[kept].sum()
        least = probabilities[kept].min()
        assert mass >= p > mass - probabilities[probabilities == least].sum()  # no smaller set does


@pure
def test_warp_by_hand():
    logits = np.log([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(reference.warp(logits), [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(  # halving the temperature squares the odds
        reference.warp(logits, temperature=0.5), np.array([1, 4, 9, 16]) / 30)
    np.testing.assert_allclose(reference.warp(logits, top_k=2), [0, 0, 3 / 7, 4 / 7])
    np.testing.assert_allclose(reference.warp(logits, top_p=0.6), [0, 0, 3 / 7, 4 / 7])
    # top-p counts the mass of what top-k kept: 4/7 is below 0.6, but above 0.55.
    np.testing.assert_allclose(reference.warp(logits, top_k=2, top_p=0.6), [0, 0, 3 / 7, 4 / 7])
    np.testing.assert_allclose(reference.warp(logits, top_k=2, top_p=0.55), [0, 0, 0, 1])
    # Temperature comes first: 16/30 is above 0.5, and 0.4 is not.
    np.testing.assert_allclose(reference.warp(logits, 0.5, top_p=0.5), [0, 0, 0, 1])


@pure
def test_warp_at_extreme_temperatures():
    assert reference.warp([1., 3., 3., 2.], temperature=0).tolist() == [0, 1, 0, 0]
    assert reference.warp([1e4, 0.], temperature=1e-6).tolist() == [1, 0]
    np.testing.assert_allclose(reference.warp([5., 1.], temperature=1e9), [0.5, 0.5])
    with pytest.raises(ValueError):
        reference.warp([1., 2.], temperature=-1)


# ---- the draw ----------------------------------------------------------------------------------


def test_uniforms_are_those_of_philox():
    # Random123's known answer for philox4x64-10 with counter and key 0; NumPy counts up first.
    known = [0x16554d9eca36314c, 0xdb20fe9d672d0fdc, 0xd7e772cee186176b, 0x7e68b68aec7ba23b]
    assert np.random.Philox(key=0, counter=2**256 - 1).random_raw(4).tolist() == known
    # Raw numbers of seed 3, index 5, stored: every NumPy from 1.17 must agree.
    raw = [0x3ed344a72463a8e0, 0xfaa5eb17dc8f643f, 0x2f89b5f22dc44291, 0x10664758598bc128]
    expected = [[(2 * (r >> 41) + 1) / 2**24 for r in raw]]
    assert reference.uniforms(3, 5, 1, n_vocab=4).tolist() == expected


@pytest.mark.parametrize('n_vocab, width', [(1, 2), (4, 4), (5, 6), (257, 34), (50257, 450)])
def test_uniforms_are_exact_in_float32_and_strictly_between_0_and_1(n_vocab, width):
    u = reference.uniforms(0, 0, 100, n_vocab)
    assert u.shape == (100, width) and u.dtype == np.float64
    assert u.min() > 0 and u.max() < 1
    assert np.array_equal(u.astype(np.float32).astype(np.float64), u)
    # The extremes themselves: all 23 bits clear, all set.
    for bits in [0, 2**23 - 1]:
        extreme = np.float32((bits + 0.5) * 2**-23)
        assert 0 < extreme < 1 and float(extreme) == (bits + 0.5) * 2**-23


def test_uniforms_depend_only_on_seed_index_and_position():
    long = reference.uniforms(7, 1, 20, 257)
    assert np.array_equal(reference.uniforms(7, 1, 6, 257), long[:6])
    others = [reference.uniforms(s, i, 20, 257) for s, i in [(7, 0), (7, 2), (1, 7), (8, 1)]]
    for one in others:
        assert not np.any(one == long) or np.mean(one == long) < 0.01
    assert len({row.tobytes() for u in others + [long] for row in u}) == 100
    assert abs(long.mean() - 0.5) < 0.05
    assert reference.uniforms(2**70, 2**40, 1, 257).shape == (1, 34)
    assert reference.uniforms(7, 1, 0, 257).shape == (0, 34)


@pure
def test_draw_by_hand():
    # [[0, dropped], [dropped, 0]]: the rows tie, so the larger uniform wins; one column remains.
    logits = [0., -INF, -INF, 0.]
    gumbel = [-math.log(-math.log(u)) for u in (0.9, 0.1)]
    token, gap = reference.draw(logits, [0.9, 0.1, 0.5, 0.5])
    assert token == 0 and gap == pytest.approx(gumbel[0] - gumbel[1])
    token, gap = reference.draw(logits, [0.1, 0.9, 0.99, 0.01])
    assert token == 3 and gap == pytest.approx(gumbel[0] - gumbel[1])
    # All four are equal: the row is drawn, then the column; the smaller gap counts.
    token, gap = reference.draw(np.zeros(4), [0.1, 0.9, 0.5, 0.4])
    assert token == 2
    assert gap == pytest.approx(math.log(math.log(0.4) / math.log(0.5)))
    # Equal scores: the lowest index wins, with no gap.
    assert reference.draw(np.zeros(4), [0.5] * 4) == (0, 0)
    # A row counts with its total weight: 3 to 1 makes up for log 3 of Gumbel noise.
    logits = np.log([1.5, 1.5, 1., 1e-30])
    u = math.exp(-math.exp(-1.))  # Gumbel 1
    for noise, row in [(1 + math.log(3) - 0.01, 0), (1 + math.log(3) + 0.01, 1)]:
        token, gap = reference.draw(logits, [u, math.exp(-math.exp(-noise)), 0.5, 0.4])
        assert token // 2 == row and gap == pytest.approx(0.01)


@pure
def test_draw_with_one_token_left_has_no_rival():
    for token in range(5):
        logits = np.where(np.arange(5) == token, -3., -INF)
        assert reference.draw(logits, reference.uniforms(0, 0, 1, 5)[0]) == (token, INF)
    assert reference.draw([0.], [0.5, 0.5]) == (0, INF)


@pure
def test_draw_far_below_the_best():
    logits = np.array([0., 0., -2000., -2001.])
    token, gap = reference.draw(logits, [0.5, 0.5, 0.9, 0.1])
    assert token == 0 and 0 < gap < 4
    token, gap = reference.draw([0., -INF, -2000., -INF], [0.5, 0.5, 0.9, 0.1])
    assert token == 0 and gap == pytest.approx(2000)


@pure
@pytest.mark.parametrize('logits, u', [([-INF] * 4, [0.5] * 4), ([0.] * 4, [0.5] * 6)])
def test_draw_refuses_no_finite_logit_and_too_many_uniforms(logits, u):
    with pytest.raises(ValueError):
        reference.draw(logits, u)


@pure
def test_chi_square_bound_agrees_with_the_tables():
    for freedom, table in [(5, 20.515), (10, 29.588), (30, 59.703), (100, 149.449)]:
        assert chi_square_bound(freedom, z=3.0902) == pytest.approx(table, rel=0.015)


LOGITS = np.array([0.5, -1., 2., 0., 1.5, 0.5, -0.5, -9., 1., 0.2, 1.2])  # in a 4 x 4 table


@pure
@pytest.mark.parametrize('warping', [
    {'top_k': 10}, {'temperature': 0.7, 'top_k': 8}, {'top_p': 0.8},
    {'temperature': 1.3, 'top_k': 7, 'top_p': 0.9},
])
def test_draw_has_the_exact_probabilities(warping):
    probabilities = reference.warp(LOGITS, **warping)
    kept = reference.warp_logits(LOGITS, **warping)
    n = 6000
    tokens = [reference.draw(kept, u)[0] for u in reference.uniforms(1, 0, n, len(LOGITS))]
    counts = np.bincount(tokens, minlength=len(LOGITS))
    bound = chi_square_bound(np.count_nonzero(probabilities) - 1)
    assert chi_square(counts, probabilities) < bound
    # The test has power: slightly flatter probabilities exceed the bound.
    assert chi_square(counts, reference.softmax(kept * 0.8)) > bound


@pure
@pytest.mark.parametrize('across', ['steps', 'indices', 'seeds'])
def test_neighbouring_draws_are_independent(across):
    kept = reference.warp_logits(LOGITS, top_k=4)
    probabilities = reference.softmax(kept)
    n = 3000
    if across == 'steps':
        u = reference.uniforms(1, 0, n, len(LOGITS))
    elif across == 'indices':
        u = [reference.uniforms(1, i, 1, len(LOGITS))[0] for i in range(n)]
    else:
        u = [reference.uniforms(s, 0, 1, len(LOGITS))[0] for s in range(n)]
    tokens = [reference.draw(kept, row)[0] for row in u]
    pairs = np.zeros([len(LOGITS)] * 2)
    np.add.at(pairs, (tokens[0::2], tokens[1::2]), 1)
    assert chi_square(pairs, np.outer(probabilities, probabilities)) < chi_square_bound(15)


# ---- generation --------------------------------------------------------------------------------


@pure
def test_greedy_takes_the_best(weights):
    tokens, margins = reference.greedy(weights, TINY, [1, 2, 3], 6)
    logits = reference.forward(weights, TINY, [1, 2, 3] + tokens)
    assert tokens == np.argmax(logits[2:-1], axis=-1).tolist()
    best = np.sort(logits[2:-1], axis=-1)
    np.testing.assert_allclose(margins, best[:, -1] - best[:, -2], rtol=0, atol=1e-10)
    assert len(set(tokens)) > 1
    assert reference.sample(weights, TINY, [1, 2, 3], 6, 0, 0, temperature=0) == (tokens, margins)
    assert reference.sample(weights, TINY, [1, 2, 3], 6, 0, 0, top_k=1)[0] == tokens
    assert reference.sample(weights, TINY, [1, 2, 3], 6, 0, 0, top_p=1e-9)[0] == tokens


@pure
def test_sample_uses_one_row_of_uniforms_per_token(weights):
    warping = {'temperature': 0.9, 'top_k': 50, 'top_p': 0.9}
    tokens, gaps = reference.sample(weights, TINY, [9], 8, 4, 2, **warping)
    text = [9]
    for u, token, gap in zip(reference.uniforms(4, 2, 8, 257), tokens, gaps):
        logits = reference.forward(weights, TINY, text)[-1]
        assert reference.draw(reference.warp_logits(logits, **warping), u) == (token, gap)
        text.append(token)
    assert len(set(tokens)) > 1
    shorter = reference.sample(weights, TINY, [9], 3, 4, 2, **warping)
    assert shorter == (tokens[:3], gaps[:3])
    assert reference.sample(weights, TINY, [9], 8, 4, 3, **warping)[0] != tokens
    assert reference.sample(weights, TINY, [9], 8, 5, 2, **warping)[0] != tokens


@pure
def test_sample_fills_up_after_the_end(weights):
    tokens, gaps = reference.sample(weights, TINY, [9], 8, 4, 2)
    end = tokens[2]
    stop = tokens.index(end) + 1
    ended = reference.sample(weights, TINY, [9], 8, 4, 2, end=end)
    assert ended == (tokens[:stop] + [end] * (8 - stop), gaps[:stop] + [INF] * (8 - stop))


@pure
def test_the_last_token_needs_no_position_in_the_window(weights):
    prompt = [1] * 30
    assert len(reference.greedy(weights, TINY, prompt, 3)[0]) == 3
    assert len(reference.sample(weights, TINY, prompt, 3, 0, 0)[0]) == 3
    with pytest.raises(ValueError):
        reference.greedy(weights, TINY, prompt, 4)
    with pytest.raises(ValueError):
        reference.sample(weights, TINY, prompt, 4, 0, 0)


# ---- model directories -------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['model.ckpt', 'model-1000'])
def test_checkpoint_round_trip(tmp_path, weights, prefix):
    tf = pytest.importorskip('tensorflow.compat.v1')
    environment, verbosity = dict(os.environ), tf.logging.get_verbosity()
    operations = len(tf.get_default_graph().get_operations())
    reference.write_checkpoint(tmp_path / 'written', TINY, weights, prefix=prefix)
    assert dict(os.environ) == environment and tf.logging.get_verbosity() == verbosity
    assert len(tf.get_default_graph().get_operations()) == operations

    directory = tmp_path / 'moved'  # relative paths: a model directory may be moved
    shutil.move(str(tmp_path / 'written'), str(directory))
    assert {path.name for path in directory.iterdir()} == {
        'checkpoint', 'encoder.json', 'hparams.json', 'vocab.bpe',
        prefix + '.data-00000-of-00001', prefix + '.index', prefix + '.meta'}
    assert json.loads((directory / 'hparams.json').read_text()) == TINY
    assert tf.train.latest_checkpoint(str(directory)) == str(directory / prefix)
    size = (directory / (prefix + '.data-00000-of-00001')).stat().st_size
    assert size == 4 * sum(w.size for w in weights.values())

    reader = tf.train.load_checkpoint(str(directory))
    assert reader.get_variable_to_shape_map() == reference.shapes(TINY)
    for name, w in weights.items():
        read = reader.get_tensor(name)
        assert read.dtype == np.float32 and np.array_equal(read, w), name

    with tf.Graph().as_default() as graph:
        tf.train.import_meta_graph(str(directory / (prefix + '.meta')))
        handles = {op.name for op in graph.get_operations() if op.type == 'VarHandleOp'}
        assert handles == set(weights)


@pure
def test_the_tiny_vocabulary_has_the_order_of_the_released_one(tmp_path):
    reference.write_vocabulary(str(tmp_path))
    encoder = json.loads((tmp_path / 'encoder.json').read_text())
    assert sorted(encoder.values()) == list(range(257))
    released = {'!': 0, '~': 93, '\u00a1': 94, '\u00ff': 187, '\u0100': 188, '\u010a': 198,
                '\u0120': 220, '\u0143': 255}
    assert {symbol: encoder[symbol] for symbol in released} == released
    assert encoder['<|endoftext|>'] == 256
    assert (tmp_path / 'vocab.bpe').read_text() == '#version: 0.2\n'


def test_a_vocabulary_is_copied_or_left_out(tmp_path):
    pytest.importorskip('tensorflow.compat.v1')
    hparams = {'n_vocab': 7, 'n_ctx': 4, 'n_embd': 4, 'n_head': 2, 'n_layer': 1}
    weights = reference.random_weights(hparams, 0)
    reference.write_checkpoint(str(tmp_path / 'bare'), hparams, weights)
    assert not (tmp_path / 'bare' / 'encoder.json').exists()
    assert not (tmp_path / 'bare' / 'vocab.bpe').exists()
    source = tmp_path / 'source'
    source.mkdir()
    (source / 'encoder.json').write_bytes(b'{"a": 0}')
    (source / 'vocab.bpe').write_bytes(b'#version: 0.2\na b\n')
    reference.write_checkpoint(tmp_path / 'copied', hparams, weights, vocabulary_dir=source)
    for name in ['encoder.json', 'vocab.bpe']:
        assert (tmp_path / 'copied' / name).read_bytes() == (source / name).read_bytes()
