"""The graph of the transformer, held to the float64 reference and to transformers' GPT-2.

The shapes in these tests carry the letters of `model.py`: B, S, P, L, H, D, E, V.
"""
import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import model
import reference
import sample
from test_reference import huggingface_logits

NUMBERS = {'n_vocab': 257, 'n_ctx': 40, 'n_embd': 48, 'n_head': 3, 'n_layer': 3}
ODD = {'n_vocab': 11, 'n_ctx': 7, 'n_embd': 35, 'n_head': 5, 'n_layer': 2}
SMALLEST = {'n_vocab': 2, 'n_ctx': 3, 'n_embd': 4, 'n_head': 1, 'n_layer': 1}
CLOSE = {'rtol': 0, 'atol': 1e-4}


def make_hparams(numbers):
    hparams = model.default_hparams()
    hparams.override_from_dict(numbers)
    return hparams


def random_tokens(numbers, n_batch, n_seq, seed=0):
    return np.random.RandomState(seed).randint(0, numbers['n_vocab'], [n_batch, n_seq])


def build(graph, hparams, n_batch=None, n_seq=None, n_past=None):
    """Adds two calls of the model to a graph, without and with a past."""
    with graph.as_default():
        X = tf.placeholder(tf.int32, [n_batch, n_seq])
        past = tf.placeholder(tf.float32, model.past_shape(
            hparams=hparams, batch_size=n_batch, sequence=n_past))
        return X, past, model.model(hparams, X), model.model(hparams, X, past=past)


class Model:
    """A random checkpoint in the official format, restored as a script would, ready to run."""

    def __init__(self, numbers, directory, seed=1):
        self.numbers = numbers
        self.hparams = make_hparams(numbers)
        self.weights = reference.random_weights(numbers, seed)
        reference.write_checkpoint(directory, numbers, self.weights)
        self.graph = tf.Graph()
        self.nodes = build(self.graph, self.hparams)
        self.session = tf.Session(graph=self.graph)
        self.prefix = tf.train.latest_checkpoint(str(directory))
        with self.graph.as_default():
            tf.train.Saver().restore(self.session, self.prefix)

    def run(self, tokens, past=None, nodes=None):
        """Returns the logits and the present of tokens [B, S] after a past."""
        X, past_node, first, later = nodes or self.nodes
        if past is None:
            outputs, feed = first, {X: tokens}
        else:
            outputs, feed = later, {X: tokens, past_node: past}
        run = self.session.run(outputs, feed)
        assert sorted(run) == ['logits', 'present']
        return run['logits'], run['present']

    def run_in_pieces(self, tokens, sizes, nodes=None):
        """Returns the logits and the presents of all tokens, read a piece at a time."""
        logits, past, start = [], None, 0
        for size in sizes:
            piece, present = self.run(tokens[:, start:start + size], past, nodes)
            assert present.shape[-2] == size  # of this call alone
            logits.append(piece)
            past = present if past is None else np.concatenate([past, present], axis=-2)
            start += size
        assert start == tokens.shape[1]
        return np.concatenate(logits, axis=1), past

    def expected(self, tokens):
        """Returns the reference's logits [B, S, V]."""
        return np.stack([reference.forward(self.weights, self.numbers, row) for row in tokens])

    def expected_insides(self, row):
        """Returns the reference's keys and values [L, 2, H, S, D] and blocks' outputs [L, S, E]."""
        weights = {name: np.float64(w) for name, w in self.weights.items()}
        n_head = self.numbers['n_head']
        x = weights['model/wte'][row] + weights['model/wpe'][:len(row)]
        keys_values, outputs = [], []
        for layer in range(self.numbers['n_layer']):
            def part(name, layer=layer):
                return weights['model/h%d/%s' % (layer, name)]
            h = reference.layer_norm(x, part('ln_1/g'), part('ln_1/b'))
            qkv = reference.linear(h, part('attn/c_attn/w'), part('attn/c_attn/b'))
            qkv = qkv.reshape(len(row), 3, n_head, -1).transpose(1, 2, 0, 3)  # [3, H, S, D]
            keys_values.append(qkv[1:])
            x = x + reference.attention(h, part, n_head)
            x = x + reference.mlp(reference.layer_norm(x, part('ln_2/g'), part('ln_2/b')), part)
            outputs.append(x)
        return np.stack(keys_values), np.stack(outputs)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    made = Model(NUMBERS, tmp_path_factory.mktemp('tiny'))
    yield made
    made.session.close()


@pytest.fixture(scope='module', params=[ODD, SMALLEST], ids=['odd', 'smallest'])
def other_shape(request, tmp_path_factory):
    made = Model(request.param, tmp_path_factory.mktemp('other'))
    yield made
    made.session.close()


# ---- logits ------------------------------------------------------------------------------------

@pytest.mark.parametrize('n_batch', [1, 4])
@pytest.mark.parametrize('n_seq', [1, 2, 17, 40])
def test_logits_of_a_whole_prompt(tiny, n_batch, n_seq):
    tokens = random_tokens(NUMBERS, n_batch, n_seq)
    logits, _ = tiny.run(tokens)
    assert logits.dtype == np.float32 and logits.shape == (n_batch, n_seq, 257)
    np.testing.assert_allclose(logits, tiny.expected(tokens), **CLOSE)


PIECES = {
    'token by token': [1] * 40, 'in halves': [20, 20], 'all but one': [39, 1],
    'one before the rest': [1, 39], 'in many pieces': [5, 1, 1, 13, 20],
}


@pytest.mark.parametrize('n_batch', [1, 4])
@pytest.mark.parametrize('sizes', PIECES.values(), ids=PIECES)
def test_logits_through_past(tiny, n_batch, sizes):
    tokens = random_tokens(NUMBERS, n_batch, 40)
    logits, _ = tiny.run_in_pieces(tokens, sizes)
    np.testing.assert_allclose(logits, tiny.expected(tokens), **CLOSE)


@pytest.mark.parametrize('n_batch', [1, 4])
def test_logits_of_other_shapes(other_shape, n_batch):
    tokens = random_tokens(other_shape.numbers, n_batch, other_shape.numbers['n_ctx'])
    expected = other_shape.expected(tokens)
    np.testing.assert_allclose(other_shape.run(tokens)[0], expected, **CLOSE)
    sizes = [1] * tokens.shape[1]
    np.testing.assert_allclose(other_shape.run_in_pieces(tokens, sizes)[0], expected, **CLOSE)


@pytest.mark.parametrize('known', [(1, 12), (4, 12), (4, None), (None, 12)])
def test_logits_with_static_shapes(tiny, known):
    nodes = build(tiny.graph, tiny.hparams, *known, n_past=known[1])
    tokens = random_tokens(NUMBERS, known[0] or 3, 24)
    whole, present = tiny.run(tokens[:, :12], nodes=nodes)
    rest, _ = tiny.run(tokens[:, 12:], present, nodes)
    expected = tiny.expected(tokens)
    np.testing.assert_allclose(whole, expected[:, :12], **CLOSE)
    np.testing.assert_allclose(rest, expected[:, 12:], **CLOSE)


def test_a_past_of_no_positions_is_none(tiny):
    tokens = random_tokens(NUMBERS, 2, 9)
    past = np.zeros(model.past_shape(hparams=tiny.hparams, batch_size=2, sequence=0), np.float32)
    logits, present = tiny.run(tokens, past)
    np.testing.assert_allclose(logits, tiny.expected(tokens), **CLOSE)
    np.testing.assert_allclose(present, tiny.run(tokens)[1], **CLOSE)


def test_logits_equal_those_of_transformers(tiny):
    tokens = random_tokens(NUMBERS, 2, 40, seed=3)
    expected = np.stack([huggingface_logits(tiny.weights, NUMBERS, row) for row in tokens])
    np.testing.assert_allclose(tiny.run(tokens)[0], expected, **CLOSE)
    for sizes in PIECES.values():
        np.testing.assert_allclose(tiny.run_in_pieces(tokens, sizes)[0], expected, **CLOSE)


def test_ids_may_be_of_any_integer_type(tiny):
    tokens = random_tokens(NUMBERS, 2, 5)
    with tiny.graph.as_default():
        logits = model.model(tiny.hparams, tf.constant(tokens, tf.int64))['logits']
    np.testing.assert_allclose(tiny.session.run(logits), tiny.expected(tokens), **CLOSE)


# ---- present and the collection of checkpoints -------------------------------------------------

@pytest.mark.parametrize('sizes', [[40], [25, 15], [1] * 40], ids=['whole', 'pieces', 'tokens'])
def test_present_holds_keys_then_values_by_layer_and_head(tiny, sizes):
    tokens = random_tokens(NUMBERS, 2, 40)
    _, presents = tiny.run_in_pieces(tokens, sizes)
    assert presents.dtype == np.float32
    assert list(presents.shape) == model.past_shape(
        hparams=tiny.hparams, batch_size=2, sequence=40) == [2, 3, 2, 3, 40, 16]
    expected = np.stack([tiny.expected_insides(row)[0] for row in tokens])
    np.testing.assert_allclose(presents, expected, **CLOSE)


def test_past_shape_has_none_where_nothing_is_known():
    hparams = make_hparams(NUMBERS)
    assert model.past_shape(hparams=hparams) == [None, 3, 2, 3, None, 16]
    assert model.past_shape(hparams=hparams, sequence=5) == [None, 3, 2, 3, 5, 16]
    assert model.past_shape(hparams=hparams, batch_size=7) == [7, 3, 2, 3, None, 16]


def test_the_graph_knows_what_can_be_known_of_the_shapes():
    hparams = make_hparams(NUMBERS)
    known = build(tf.Graph(), hparams, n_batch=2, n_seq=5, n_past=6)
    for outputs in known[2:]:
        assert outputs['logits'].dtype == outputs['present'].dtype == tf.float32
        assert outputs['logits'].shape.as_list() == [2, 5, 257]
        assert outputs['present'].shape.as_list() == [2, 3, 2, 3, 5, 16]
    unknown = build(tf.Graph(), hparams)
    for outputs in unknown[2:]:
        assert outputs['logits'].shape.as_list()[-1] == 257
        # A loop over single tokens fixes the shape of its past with set_shape.
        outputs['present'].set_shape(model.past_shape(hparams=hparams, batch_size=1))


def test_each_call_adds_the_blocks_outputs_to_the_collection_checkpoints(tiny):
    tokens = random_tokens(NUMBERS, 2, 30)
    with tf.Graph().as_default() as graph, tf.Session() as session:
        X, _, _, _ = build(graph, tiny.hparams)
        collected = tf.get_collection('checkpoints')
        assert len(collected) == 2 * NUMBERS['n_layer']
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        for name, weight in tiny.weights.items():
            variables[name].load(weight, session)
        outputs = session.run(collected[:NUMBERS['n_layer']], {X: tokens})
    expected = np.stack([tiny.expected_insides(row)[1] for row in tokens], axis=1)  # [L, B, S, E]
    assert {output.shape[-1] for output in outputs} == {48}
    np.testing.assert_allclose(np.reshape(outputs, expected.shape), expected, **CLOSE)


# ---- variables ---------------------------------------------------------------------------------

def build_all(hparams, session):
    """Builds all there is on a model in the default graph."""
    sample.Sampler(session, hparams)
    context = tf.placeholder(tf.int32, [2, None])
    sample.sample_sequence(hparams=hparams, length=3, context=context, top_k=5, top_p=0.9)
    sample.sample_sequence(hparams=hparams, length=3, start_token=0, batch_size=2)
    model.model(hparams, context)


def test_the_variables_are_those_of_the_released_checkpoints():
    with tf.Graph().as_default(), tf.Session() as session:
        build_all(make_hparams(NUMBERS), session)
        variables = tf.global_variables()
        assert ({variable.name: variable.shape.as_list() for variable in variables}
                == {name + ':0': shape for name, shape in reference.shapes(NUMBERS).items()})
        assert len(variables) == 2 + 12 * NUMBERS['n_layer'] + 2
        assert {variable.dtype for variable in variables} == {tf.float32}  # and not float32_ref
        assert {variable.op.type for variable in variables} == {'VarHandleOp'}
        assert set(map(id, tf.trainable_variables())) == set(map(id, variables))
        assert set(map(id, tf.get_collection('trainable_variables', 'model/'))) == set(
            map(id, variables))


def test_a_saver_of_everything_reads_and_writes_a_released_checkpoint(tiny, tmp_path):
    with tf.Graph().as_default(), tf.Session() as session:
        build_all(make_hparams(NUMBERS), session)
        saver = tf.train.Saver()
        saver.restore(session, tiny.prefix)
        assert not session.run(tf.report_uninitialized_variables(tf.global_variables())).size
        saver.save(session, str(tmp_path / 'model'), global_step=1000)
    reader = tf.train.load_checkpoint(str(tmp_path / 'model-1000'))
    assert reader.get_variable_to_shape_map() == reference.shapes(NUMBERS)
    for name, weight in tiny.weights.items():
        assert np.array_equal(reader.get_tensor(name), weight), name


def test_fresh_weights_are_those_of_the_paper():
    numbers = dict(NUMBERS, n_embd=96, n_layer=4)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        model.model(make_hparams(numbers), tf.zeros([1, 1], tf.int32))
        session.run(tf.global_variables_initializer())
        weights = {v.op.name: value for v, value in
                   zip(tf.global_variables(), session.run(tf.global_variables()))}
    residual = 0.02 / math.sqrt(2 * 4)
    for name, weight in weights.items():
        if name.endswith('/b'):
            assert np.all(weight == 0), name
        elif name.endswith('/g'):
            assert np.all(weight == 1), name
        else:
            wanted = (0.01 if name == 'model/wpe' else
                      residual if name.endswith('c_proj/w') else 0.02)
            # The standard error of a deviation is 1/sqrt(2 n) of it; the smallest n is 40 x 96.
            assert weight.std() == pytest.approx(wanted, rel=0.05), name
            assert abs(weight.mean()) < 0.07 * wanted, name
            assert np.abs(weight).max() > 2.5 * wanted, name  # not cut off at two deviations
    flat = np.concatenate([weights['model/h0/attn/c_attn/w'].ravel()[:999],
                           weights['model/h1/attn/c_attn/w'].ravel()[:999]])
    assert len(set(flat.tolist())) > 1900  # each variable has numbers of its own


def test_a_second_call_shares_the_weights(tiny):
    tokens = random_tokens(NUMBERS, 2, 6)
    with tiny.graph.as_default():
        before = tf.global_variables()
        again = [model.model(tiny.hparams, tf.constant(tokens, tf.int32), reuse=reuse)['logits']
                 for reuse in (tf.AUTO_REUSE, True)]
        assert list(map(id, tf.global_variables())) == list(map(id, before))
        with pytest.raises(ValueError):
            model.model(tiny.hparams, tf.constant(tokens, tf.int32), reuse=False)
    expected = tiny.expected(tokens)
    for logits in tiny.session.run(again):
        np.testing.assert_allclose(logits, expected, **CLOSE)


def test_reuse_needs_weights_to_reuse():
    with tf.Graph().as_default(), pytest.raises(ValueError):
        model.model(make_hparams(SMALLEST), tf.zeros([1, 1], tf.int32), reuse=True)


def test_two_scopes_hold_two_models(tmp_path):
    hparams, tokens = make_hparams(ODD), random_tokens(ODD, 2, 7)
    weights = {scope: reference.random_weights(ODD, seed)
               for seed, scope in enumerate(['teacher', 'student'])}
    with tf.Graph().as_default(), tf.Session() as session:
        outputs = {scope: model.model(hparams, tf.constant(tokens, tf.int32), scope=scope)
                   for scope in weights}
        names = {variable.op.name for variable in tf.global_variables()}
        assert names == {name.replace('model', scope, 1)
                         for scope in weights for name in reference.shapes(ODD)}
        for scope in weights:
            reference.write_checkpoint(tmp_path / scope, ODD, weights[scope])
            saver = tf.train.Saver({
                variable.op.name.replace(scope, 'model', 1): variable
                for variable in tf.global_variables(scope + '/')})
            saver.restore(session, tf.train.latest_checkpoint(str(tmp_path / scope)))
        logits = {scope: session.run(outputs[scope]['logits']) for scope in weights}
    for scope in weights:
        expected = [reference.forward(weights[scope], ODD, row) for row in tokens]
        np.testing.assert_allclose(logits[scope], expected, **CLOSE)
    assert np.abs(logits['teacher'] - logits['student']).max() > 1


# ---- gradients ---------------------------------------------------------------------------------

TRAINED = {'n_vocab': 13, 'n_ctx': 8, 'n_embd': 12, 'n_head': 2, 'n_layer': 2}


def cross_entropy(weights, texts):
    """Returns the reference's mean loss, in nats, of each token of texts [B, S + 1] but the first.
    """
    losses = []
    for text in texts:
        probabilities = reference.softmax(reference.forward(weights, TRAINED, text[:-1]))
        losses.append(-np.log(probabilities[np.arange(len(text) - 1), text[1:]]))
    return np.mean(losses)


def slope(weights, name, direction, texts, distance=1e-5):
    """Returns how the loss changes as a weight moves in a direction, by central differences."""
    moved = [cross_entropy(dict(weights, **{name: weights[name] + way * distance * direction}),
                           texts) for way in (1, -1)]
    return (moved[0] - moved[1]) / (2 * distance)


def losses_of(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


@pytest.fixture(scope='module')
def gradients(tmp_path_factory):
    """The gradients of the mean loss of some texts: of the whole, and cut in two by `past`."""
    hparams = make_hparams(TRAINED)
    weights = reference.random_weights(TRAINED, seed=2)
    texts = random_tokens(TRAINED, 3, 9, seed=5)
    with tf.Graph().as_default(), tf.Session() as session:
        X, labels = tf.constant(texts[:, :-1], tf.int32), tf.constant(texts[:, 1:], tf.int32)
        whole = tf.reduce_mean(losses_of(model.model(hparams, X)['logits'], labels))
        first = model.model(hparams, X[:, :5])
        second = model.model(hparams, X[:, 5:], past=first['present'])
        cut = tf.reduce_mean(tf.concat([losses_of(first['logits'], labels[:, :5]),
                                        losses_of(second['logits'], labels[:, 5:])], axis=1))
        variables = tf.trainable_variables()
        nodes = []
        for loss in (whole, cut):
            found = tf.gradients(loss, variables)
            assert None not in found
            nodes.append((loss, [tf.convert_to_tensor(gradient) for gradient in found]))
        for variable in variables:
            variable.load(weights[variable.op.name], session)
        results = session.run(nodes)
    names = [variable.op.name for variable in variables]
    weights = {name: np.float64(weight) for name, weight in weights.items()}
    return weights, texts, [(loss, dict(zip(names, found))) for loss, found in results]


@pytest.mark.parametrize('way', [0, 1], ids=['whole', 'cut by past'])
def test_gradients_are_those_of_the_reference(gradients, way):
    weights, texts, results = gradients
    loss, found = results[way]
    assert loss == pytest.approx(cross_entropy(weights, texts), abs=1e-5)
    assert set(found) == set(weights)
    random = np.random.RandomState(0)
    for name, gradient in found.items():
        assert gradient.shape == weights[name].shape
        gradient = np.float64(gradient)
        steepness = np.linalg.norm(gradient)
        assert steepness > 1e-3, name
        # Uphill, and twice any way at all, so that no element's error can hide.
        for direction in [gradient, random.randn(*gradient.shape), random.randn(*gradient.shape)]:
            direction = direction / np.linalg.norm(direction)
            expected = slope(weights, name, direction, texts)
            assert np.sum(gradient * direction) == pytest.approx(
                expected, abs=1e-4 * steepness), name


def test_a_position_learns_nothing_from_later_ones():
    """The first logits' gradient reaches the position embeddings of the first position alone."""
    with tf.Graph().as_default(), tf.Session() as session:
        tokens = tf.constant(random_tokens(TRAINED, 2, 6), tf.int32)
        logits = model.model(make_hparams(TRAINED), tokens)['logits']
        wpe, = [v for v in tf.global_variables() if v.op.name == 'model/wpe']
        gradient = tf.convert_to_tensor(tf.gradients(logits[:, 2, 0], wpe)[0])
        weights = reference.random_weights(TRAINED, seed=2)
        for variable in tf.global_variables():
            variable.load(weights[variable.op.name], session)
        reached = np.abs(session.run(gradient)).max(axis=1) > 0
    assert reached.tolist() == [True] * 3 + [False] * 5


# ---- hyperparameters ---------------------------------------------------------------------------

def test_default_hparams_are_those_of_the_smallest_released_model():
    hparams = model.default_hparams()
    assert ((hparams.n_vocab, hparams.n_ctx, hparams.n_embd, hparams.n_head, hparams.n_layer)
            == (0, 1024, 768, 12, 12))


def test_hparams_take_on_what_a_dictionary_says():
    hparams, other = model.default_hparams(), model.default_hparams()
    hparams.override_from_dict({'n_vocab': 50257, 'n_layer': 24})
    assert (hparams.n_vocab, hparams.n_layer, hparams.n_embd) == (50257, 24, 768)
    hparams.override_from_dict({'n_layer': 36})
    assert (hparams.n_vocab, hparams.n_layer) == (50257, 36)
    assert other.n_layer == 12
