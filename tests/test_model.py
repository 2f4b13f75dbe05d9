"""The graph of the transformer, held to the float64 reference and to transformers' GPT-2.

The shapes in these tests carry the letters of `model.py`: B, S, P, L, H, D, E, V.
"""
import math
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import model
import reference
import sample
from gpt2.sampling.graph import GraphDecoder
from helpers import huggingface_logits, only_long

SMALL = {'n_vocab': 257, 'n_ctx': 40, 'n_embd': 48, 'n_head': 4, 'n_layer': 3}
ODD = {'n_vocab': 11, 'n_ctx': 7, 'n_embd': 35, 'n_head': 5, 'n_layer': 2}
SMALLEST = {'n_vocab': 2, 'n_ctx': 3, 'n_embd': 4, 'n_head': 1, 'n_layer': 1}
CLOSE = {'rtol': 0, 'atol': 1e-4}


def make_hparams(dimensions):
    hparams = model.default_hparams()
    hparams.override_from_dict(dimensions)
    return hparams


def random_tokens(dimensions, n_batch, n_seq, seed=0):
    return np.random.RandomState(seed).randint(0, dimensions['n_vocab'], [n_batch, n_seq])


def build(graph, hparams, n_batch=None, n_seq=None, n_past=None):
    """Add two calls of the model to a graph, without and with a past."""
    with graph.as_default():
        X = tf.placeholder(tf.int32, [n_batch, n_seq])
        past = tf.placeholder(tf.float32, model.past_shape(
            hparams=hparams, batch_size=n_batch, sequence=n_past))
        return X, past, model.model(hparams, X), model.model(hparams, X, past=past)


class Model:
    """A random checkpoint in the official format, restored as a script would, ready to run."""

    def __init__(self, dimensions, directory, seed=1):
        self.dimensions = dimensions
        self.hparams = make_hparams(dimensions)
        self.weights = reference.random_weights(dimensions, seed)
        reference.write_checkpoint(directory, dimensions, self.weights)
        self.graph = tf.Graph()
        self.nodes = build(self.graph, self.hparams)
        self.block_outputs = self.graph.get_collection('checkpoints')
        self.session = tf.Session(graph=self.graph)
        self.prefix = tf.train.latest_checkpoint(str(directory))
        with self.graph.as_default():
            tf.train.Saver().restore(self.session, self.prefix)

    def run(self, tokens, past=None, nodes=None):
        """Return the logits and the present of tokens [B, S] after a past."""
        X, past_node, first, later = nodes or self.nodes
        if past is None:
            outputs, feed = first, {X: tokens}
        else:
            outputs, feed = later, {X: tokens, past_node: past}
        run = self.session.run(outputs, feed)
        assert sorted(run) == ['logits', 'present']
        return run['logits'], run['present']

    def run_in_pieces(self, tokens, sizes, nodes=None):
        """Return the logits and the presents of all tokens, read a piece at a time."""
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
        """Return the reference's logits [B, S, V]."""
        return np.stack([reference.forward(self.weights, self.dimensions, row) for row in tokens])

    def expected_insides(self, row):
        """Return the reference's keys and values [L, 2, H, S, D] and blocks' outputs [L, S, E]."""
        weights = {name: np.float64(w) for name, w in self.weights.items()}
        n_head = self.dimensions['n_head']
        x = weights['model/wte'][row] + weights['model/wpe'][:len(row)]
        keys_values, outputs = [], []
        for layer in range(self.dimensions['n_layer']):
            def part(name, layer=layer):
                return weights[f'model/h{layer}/{name}']
            h = reference.layer_norm(x, part('ln_1/g'), part('ln_1/b'))
            qkv = reference.linear(h, part('attn/c_attn/w'), part('attn/c_attn/b'))
            qkv = qkv.reshape(len(row), 3, n_head, -1).transpose(1, 2, 0, 3)  # [3, H, S, D]
            keys_values.append(qkv[1:])
            x = x + reference.attention(h, part, n_head)
            x = x + reference.mlp(reference.layer_norm(x, part('ln_2/g'), part('ln_2/b')), part)
            outputs.append(x)
        return np.stack(keys_values), np.stack(outputs)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    made = Model(SMALL, tmp_path_factory.mktemp('small'))
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
def test_logits_of_a_whole_prompt(small, n_batch, n_seq):
    tokens = random_tokens(SMALL, n_batch, n_seq)
    logits, _ = small.run(tokens)
    assert logits.dtype == np.float32 and logits.shape == (n_batch, n_seq, 257)
    np.testing.assert_allclose(logits, small.expected(tokens), **CLOSE)


PIECES = {
    'token by token': [1] * 40, 'in halves': [20, 20], 'all but one': [39, 1],
    'one before the rest': [1, 39], 'in many pieces': [5, 1, 1, 13, 20],
}


@pytest.mark.parametrize('n_batch', [1, 4])
@pytest.mark.parametrize('sizes', PIECES.values(), ids=PIECES)
def test_logits_through_past(small, n_batch, sizes):
    tokens = random_tokens(SMALL, n_batch, 40)
    logits, _ = small.run_in_pieces(tokens, sizes)
    np.testing.assert_allclose(logits, small.expected(tokens), **CLOSE)


@pytest.mark.parametrize('n_batch', [1, 4])
def test_logits_of_other_shapes(other_shape, n_batch):
    tokens = random_tokens(other_shape.dimensions, n_batch, other_shape.dimensions['n_ctx'])
    expected = other_shape.expected(tokens)
    np.testing.assert_allclose(other_shape.run(tokens)[0], expected, **CLOSE)
    sizes = [1] * tokens.shape[1]
    np.testing.assert_allclose(other_shape.run_in_pieces(tokens, sizes)[0], expected, **CLOSE)


@pytest.mark.parametrize('known', [(1, 12), (4, None), (None, 12)])
def test_logits_with_static_shapes(small, known):
    nodes = build(small.graph, small.hparams, *known, n_past=known[1])
    tokens = random_tokens(SMALL, known[0] or 3, 24)
    whole, present = small.run(tokens[:, :12], nodes=nodes)
    rest, _ = small.run(tokens[:, 12:], present, nodes)
    expected = small.expected(tokens)
    np.testing.assert_allclose(whole, expected[:, :12], **CLOSE)
    np.testing.assert_allclose(rest, expected[:, 12:], **CLOSE)


def test_a_past_of_no_positions_is_none(small):
    tokens = random_tokens(SMALL, 2, 9)
    past = np.zeros(model.past_shape(hparams=small.hparams, batch_size=2, sequence=0), np.float32)
    logits, present = small.run(tokens, past)
    np.testing.assert_allclose(logits, small.expected(tokens), **CLOSE)
    np.testing.assert_allclose(present, small.run(tokens)[1], **CLOSE)


@only_long  # the reference is held to transformers in test_reference.py
def test_logits_equal_those_of_transformers(small):
    tokens = random_tokens(SMALL, 2, 40, seed=3)
    expected = np.stack([huggingface_logits(small.weights, SMALL, row) for row in tokens])
    np.testing.assert_allclose(small.run(tokens)[0], expected, **CLOSE)
    for sizes in PIECES.values():
        np.testing.assert_allclose(small.run_in_pieces(tokens, sizes)[0], expected, **CLOSE)


def test_ids_may_be_of_any_integer_type(small):
    tokens = random_tokens(SMALL, 2, 5)
    with small.graph.as_default():
        logits = model.model(small.hparams, tf.constant(tokens, tf.int64))['logits']
    np.testing.assert_allclose(small.session.run(logits), small.expected(tokens), **CLOSE)


# ---- the parts, by their historic names ---------------------------------------------------------

def insides(hparams, x, text, n_batch, n_seq):
    """Return the parts of the model by name, those of block 0 on x [N, E].

    `doubled`: attn and mlp with a dropout that doubles.
    """
    n_embd, n_head = hparams.n_embd, hparams.n_head
    mask = model.causal_mask(n_seq, n_seq)

    def attend(c):
        q, k, v = model.split_heads(c, n_batch, n_seq, n_head)
        return model.merge_heads(model.attention(q, k, v, mask))

    def double(x):
        return 2 * x

    with model.variables():
        outer = {'block': model.block(x, 'h0', attend=attend, hparams=hparams),
                 'hidden': model.hidden_states(hparams, text), 'logits': model.lm_head(hparams, x)}
        with tf.variable_scope('h0'):
            return {
                **outer,
                'norm': model.norm(x, 'ln_1'),
                'attn': model.attn(x, 'attn', n_embd, attend=attend, hparams=hparams),
                'mlp': model.mlp(x, 'mlp', 4 * n_embd, hparams=hparams),
                'conv1d': model.conv1d(x, 'mlp/c_fc', 4 * n_embd),
                'heads': model.split_heads(tf.concat([x, 10 * x, 100 * x], axis=1), n_batch, n_seq,
                                           n_head),
                'merged': model.merge_heads(model.split_heads(
                    tf.concat([x, x, x], axis=1), n_batch, n_seq, n_head)[1]),
                'doubled': [
                    model.attn(x, 'attn', n_embd, attend=attend, hparams=hparams, drop=double),
                    model.mlp(x, 'mlp', 4 * n_embd, hparams=hparams, drop=double)],
            }


@pytest.fixture(scope='module')
def parts(small):
    """Inputs x [B, S, E] and ids [B, S], what each part makes of them, the weights in float64."""
    x = np.float32(np.random.RandomState(0).randn(2, 9, 48))
    text = random_tokens(SMALL, 2, 9)
    with small.graph.as_default():
        nodes = insides(small.hparams, tf.constant(x.reshape(18, 48)), tf.constant(text), 2, 9)
        found = small.session.run(nodes)
    weights = {name: np.float64(weight) for name, weight in small.weights.items()}
    return np.float64(x), text, found, weights


def test_the_parts_are_those_of_the_reference(parts):
    x, _, found, weights = parts

    def part(name):
        return weights[f'model/h0/{name}']

    def norm(x, name):
        return reference.layer_norm(x, part(f'{name}/g'), part(f'{name}/b'))

    def attn(x):  # one text after the other
        return np.stack([reference.attention(row, part, SMALL['n_head']) for row in x])

    after_attn = x + attn(norm(x, 'ln_1'))
    expected = {
        'norm': norm(x, 'ln_1'),
        'attn': attn(x),
        'mlp': reference.mlp(x, part),
        'block': after_attn + reference.mlp(norm(after_attn, 'ln_2'), part),
        'conv1d': reference.linear(x, part('mlp/c_fc/w'), part('mlp/c_fc/b')),
        'logits': x @ weights['model/wte'].T,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.reshape(18, -1), err_msg=name, **CLOSE)


def test_heads_are_split_and_merged(parts):
    x, _, found, _ = parts
    heads = x.reshape(2, 9, 4, 12).transpose(0, 2, 1, 3)  # [B, H, S, D]
    for factor, head in zip([1, 10, 100], found['heads']):
        np.testing.assert_allclose(head, factor * heads, rtol=1e-6)
    np.testing.assert_array_equal(found['merged'], x.reshape(18, 48))


def test_dropout_takes_what_attn_and_mlp_add_to_the_text(parts):
    _, _, found, _ = parts
    np.testing.assert_allclose(found['doubled'][0], 2 * found['attn'], **CLOSE)
    np.testing.assert_allclose(found['doubled'][1], 2 * found['mlp'], **CLOSE)


def test_the_output_layer_makes_logits_of_hidden_states(parts, small):
    _, text, found, weights = parts
    assert found['hidden'].shape == (2, 9, 48)
    np.testing.assert_allclose(found['hidden'] @ weights['model/wte'].T, small.expected(text),
                               **CLOSE)


def test_gelu_is_that_of_the_reference():
    x = np.float32(np.concatenate([np.linspace(-10, 10, 999), [-1e10, -1e4, 0, 1e4, 1e10]]))
    with tf.Graph().as_default(), tf.Session() as session:
        found = session.run(model.gelu(tf.constant(x)))
    np.testing.assert_allclose(found, reference.gelu(np.float64(x)), rtol=1e-6, atol=1e-6)


def test_a_causal_mask_hides_the_future_alone():
    for n_queries, n_keys in [(1, 1), (3, 3), (1, 4), (2, 5)]:
        with tf.Graph().as_default(), tf.Session() as session:
            mask = session.run(model.causal_mask(n_queries, n_keys))
        future = np.triu(np.ones([n_queries, n_keys]), 1 + n_keys - n_queries)
        np.testing.assert_array_equal(mask, np.where(future, model.MASKED, 0))


def test_shape_list_has_numbers_where_they_are_known():
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None, 3, None])
        shape = model.shape_list(x)
        assert shape[1] == 3 and isinstance(shape[1], int)
        assert shape[0].dtype == shape[2].dtype == tf.int32
        assert session.run([shape[0], shape[2]], {x: np.zeros([2, 3, 5])}) == [2, 5]


# ---- present and the collection of checkpoints -------------------------------------------------

@pytest.mark.parametrize('sizes', [[40], [25, 15], [1] * 40], ids=['whole', 'pieces', 'tokens'])
def test_present_holds_keys_then_values_by_layer_and_head(small, sizes):
    tokens = random_tokens(SMALL, 2, 40)
    _, presents = small.run_in_pieces(tokens, sizes)
    assert presents.dtype == np.float32
    assert list(presents.shape) == model.past_shape(
        hparams=small.hparams, batch_size=2, sequence=40) == [2, 3, 2, 4, 40, 12]
    expected = np.stack([small.expected_insides(row)[0] for row in tokens])
    np.testing.assert_allclose(presents, expected, **CLOSE)


def test_past_shape_has_none_where_nothing_is_known():
    hparams = make_hparams(SMALL)
    assert model.past_shape(hparams=hparams) == [None, 3, 2, 4, None, 12]
    assert model.past_shape(hparams=hparams, sequence=5) == [None, 3, 2, 4, 5, 12]
    assert model.past_shape(hparams=hparams, batch_size=7) == [7, 3, 2, 4, None, 12]


def test_the_graph_knows_what_can_be_known_of_the_shapes(small):
    hparams = make_hparams(dict(SMALL, n_layer=1))
    known = build(tf.Graph(), hparams, n_batch=2, n_seq=5, n_past=6)
    for outputs in known[2:]:
        assert outputs['logits'].dtype == outputs['present'].dtype == tf.float32
        assert outputs['logits'].shape.as_list() == [2, 5, 257]
        assert outputs['present'].shape.as_list() == [2, 1, 2, 4, 5, 12]
    for outputs in small.nodes[2:]:
        assert outputs['logits'].shape.as_list()[-1] == 257
        # A loop over single tokens fixes the shape of its past with set_shape.
        with small.graph.as_default():
            tf.identity(outputs['present']).set_shape(
                model.past_shape(hparams=small.hparams, batch_size=1))


def test_each_call_adds_the_blocks_outputs_to_the_collection_checkpoints(small):
    tokens = random_tokens(SMALL, 2, 30)
    assert len(small.block_outputs) == 2 * SMALL['n_layer']
    outputs = small.session.run(small.block_outputs[:SMALL['n_layer']], {small.nodes[0]: tokens})
    expected = np.stack([small.expected_insides(row)[1] for row in tokens], axis=1)  # [L, B, S, E]
    assert {output.shape[-1] for output in outputs} == {48}
    np.testing.assert_allclose(np.reshape(outputs, expected.shape), expected, **CLOSE)


# ---- variables ---------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def everything():
    """A graph with all that is built on a model, and its session."""
    with tf.Graph().as_default() as graph, tf.Session() as session:
        hparams = make_hparams(ODD)
        GraphDecoder(session, types.SimpleNamespace(hparams=hparams))
        context = tf.placeholder(tf.int32, [2, None])
        sample.sample_sequence(hparams=hparams, length=3, context=context, top_k=5, top_p=0.9,
                               temperature=tf.placeholder(tf.float32, []))
        model.model(hparams, context)
        yield graph, session


def test_the_variables_are_those_of_the_released_checkpoints(everything):
    graph, _ = everything
    with graph.as_default():
        variables = tf.global_variables()
        assert ({variable.name: variable.shape.as_list() for variable in variables}
                == {f'{name}:0': shape for name, shape in reference.shapes(ODD).items()})
        assert len(variables) == 2 + 12 * ODD['n_layer'] + 2
        assert {variable.dtype for variable in variables} == {tf.float32}  # and not float32_ref
        assert {variable.op.type for variable in variables} == {'VarHandleOp'}
        assert set(map(id, tf.trainable_variables())) == set(map(id, variables))
        assert set(map(id, tf.get_collection('trainable_variables', 'model/'))) == set(
            map(id, variables))


def test_a_saver_of_everything_reads_and_writes_a_released_checkpoint(everything, tmp_path):
    graph, session = everything
    weights = reference.random_weights(ODD, 1)
    reference.write_checkpoint(tmp_path / 'released', ODD, weights)
    with graph.as_default():
        saver = tf.train.Saver()
        saver.restore(session, tf.train.latest_checkpoint(str(tmp_path / 'released')))
        assert not session.run(tf.report_uninitialized_variables(tf.global_variables())).size
        saver.save(session, str(tmp_path / 'model'), global_step=1000)
    reader = tf.train.load_checkpoint(str(tmp_path / 'model-1000'))
    assert reader.get_variable_to_shape_map() == reference.shapes(ODD)
    for name, weight in weights.items():
        assert np.array_equal(reader.get_tensor(name), weight), name


def test_fresh_weights_are_those_of_the_paper():
    dimensions = dict(SMALL, n_embd=96, n_layer=4)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(1)
        model.model(make_hparams(dimensions), tf.zeros([1, 1], tf.int32))
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
    assert len(set(flat.tolist())) > 1900  # each variable has its own random numbers


def test_a_second_call_shares_the_weights(small):
    tokens = random_tokens(SMALL, 2, 6)
    with small.graph.as_default():
        before = tf.global_variables()
        again = [model.model(small.hparams, tf.constant(tokens, tf.int32), reuse=reuse)['logits']
                 for reuse in (tf.AUTO_REUSE, True)]
        assert list(map(id, tf.global_variables())) == list(map(id, before))
        with pytest.raises(ValueError):
            model.model(small.hparams, tf.constant(tokens, tf.int32), reuse=False)
    expected = small.expected(tokens)
    for logits in small.session.run(again):
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
    """Return the reference's mean loss in nats a token of texts [B, S + 1], without the first."""
    losses = []
    for text in texts:
        probabilities = reference.softmax(reference.forward(weights, TRAINED, text[:-1]))
        losses.append(-np.log(probabilities[np.arange(len(text) - 1), text[1:]]))
    return np.mean(losses)


def slope(weights, name, direction, texts, distance=1e-5):
    """Return how the loss changes as a weight moves in a direction, by central differences."""
    moved = [cross_entropy(dict(weights, **{name: weights[name] + way * distance * direction}),
                           texts) for way in (1, -1)]
    return (moved[0] - moved[1]) / (2 * distance)


def losses_of(logits, labels):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)


@pytest.fixture(scope='module')
def gradients(tmp_path_factory):
    """The gradients of the mean loss of some texts: of the whole, and cut in two by `past`.

    And the gradient of the third logits with regard to wpe.
    """
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
        wpe, = [variable for variable in variables if variable.op.name == 'model/wpe']
        reached = session.run(tf.convert_to_tensor(tf.gradients(
            model.model(hparams, X)['logits'][:, 2, 0], wpe)[0]))
    names = [variable.op.name for variable in variables]
    weights = {name: np.float64(weight) for name, weight in weights.items()}
    return weights, texts, [(loss, dict(zip(names, found))) for loss, found in results], reached


@pytest.mark.parametrize('way', [0, 1], ids=['whole', 'cut by past'])
def test_gradients_are_those_of_the_reference(gradients, way):
    weights, texts, results, _ = gradients
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


def test_a_position_learns_nothing_from_later_ones(gradients):
    """The gradient of the third logits reaches the first three position embeddings alone."""
    reached = np.abs(gradients[-1]).max(axis=1) > 0
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
