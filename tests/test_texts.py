"""Texts side by side: refilled rows, full windows, endings and scores, by both engines.

Held to the float64 reference of `reference.py`; at one batch size also to the last bit.
"""
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import checkpoint
import engine
import reference
import texts

NEAR = 1e-4
HPARAMS = {'n_vocab': 257, 'n_ctx': 24, 'n_embd': 32, 'n_head': 4, 'n_layer': 2}
WARPING = {'temperature': 0.9, 'top_k': 50, 'top_p': 0.95}
ENGINES = ['graph'] if tf.__version__.startswith('1.') else ['graph', 'lite']
PROMPTS = [np.random.RandomState(n).randint(0, 256, n).tolist()
           for n in (3, 1, 9, 2, 24, 5, 17, 9, 9, 1, 1, 13)]


class Made:
    """A small random model, and a sampler for each engine and options."""

    def __init__(self, models_dir):
        self.weights = reference.random_weights(HPARAMS, 2)
        self.weights['model/wpe'] *= 4  # so that texts do not go in circles
        reference.write_checkpoint(models_dir / 'tiny', HPARAMS, self.weights)
        self.opened = checkpoint.open_model('tiny', str(models_dir))
        self.samplers = {}

    def sampler(self, name, options=WARPING, stop_token=None, logprobs=False):
        """Returns a sampler; the same for the same arguments."""
        key = name, stop_token, logprobs, tuple(sorted(options.items()))
        if key not in self.samplers:
            with tf.Graph().as_default():
                self.samplers[key] = engine.open_sampler(
                    self.opened, name, 'float32', stop_token=stop_token, logprobs=logprobs,
                    **options)
        return self.samplers[key]

    def grow(self, name, prompts, length, batch_size=4, options=WARPING, stop_token=None,
             logprobs=False, keep=12, indices=None, **more):
        """Returns the Texts by index, and checks the order they come in."""
        sampler = self.sampler(name, options, stop_token, logprobs)
        indices = range(len(prompts)) if indices is None else indices
        done = []
        for batch in texts.grow(sampler, self.opened.encoder, zip(indices, prompts), seed=5,
                                length=length, keep=keep, batch_size=batch_size, **more):
            assert len({id(text) for text in batch}) == len(batch) > 0
            for text in batch:
                if not text.done:
                    break
                done.append(text)
        assert [text.index for text in done] == list(indices)
        return {text.index: text for text in done}

    def check(self, text, keep=12, warping=WARPING):
        """Checks each token of a text against the reference, with its window as it was then."""
        uniforms = reference.uniforms(5, text.index, len(text.tokens), 257)
        window = list(text.prompt)
        for token, u in zip(text.tokens, uniforms):
            if len(window) > HPARAMS['n_ctx']:
                window = window[-keep:]
            logits = reference.forward(self.weights, HPARAMS, window)[-1]
            wanted, gap = reference.draw(reference.warp_logits(logits, **warping), u)
            assert token == wanted or gap < NEAR
            window.append(token)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp('models'))


with_engines = pytest.mark.parametrize('name', ENGINES)


@with_engines
@pytest.mark.parametrize('keep', [1, 12, 24])
def test_past_the_window_a_text_goes_on_from_its_last_tokens(made, name, keep):
    """Each row when its own window is full, prompts of all lengths up to it."""
    found = made.grow(name, PROMPTS, 60, keep=keep)
    for text in found.values():
        assert len(text.tokens) == 60 and not text.ended
        made.check(text, keep)


@with_engines
def test_neighbours_and_rows_change_no_bit(made, name):
    """In another order, so that each text has other neighbours, in another row, at other places."""
    stop = made.grow(name, PROMPTS[:1], 9)[0].tokens[8]
    first = made.grow(name, PROMPTS, 50, fill=True, stop_token=stop, logprobs=True)
    assert len({len(text.tokens) for text in first.values()}) > 3
    for order in [range(11, -1, -1), np.random.RandomState(0).permutation(12).tolist(), [7], [4]]:
        again = made.grow(name, [PROMPTS[i] for i in order], 50, fill=True, stop_token=stop,
                          logprobs=True, indices=order)
        for index, text in again.items():
            assert text.tokens == first[index].tokens
            assert text.logprobs == first[index].logprobs  # and exactly


@with_engines
@pytest.mark.parametrize('batch_size', [1, 3, 16])
def test_the_batch_size_changes_no_text(made, name, batch_size):
    for text in made.grow(name, PROMPTS, 20, batch_size=batch_size).values():
        made.check(text)


@with_engines
@pytest.mark.parametrize('warping', [WARPING, {'temperature': 0}, {'temperature': 0.7}], ids=str)
def test_log_probabilities_are_those_of_the_reference(made, name, warping):
    """Under the model, and under what was drawn from."""
    for text in made.grow(name, PROMPTS[:4], 15, options=warping, logprobs=True).values():
        assert len(text.logprobs) == len(text.tokens) == 15
        logits = reference.forward(made.weights, HPARAMS, (text.prompt + text.tokens)[:24])
        for i, (token, scores) in enumerate(zip(text.tokens, text.logprobs)):
            if len(text.prompt) + i > 24:
                break
            row = logits[len(text.prompt) - 1 + i]
            probabilities = reference.warp(row, **warping) if warping['temperature'] else [1] * 257
            np.testing.assert_allclose(
                scores, np.log([reference.softmax(row)[token], probabilities[token]]),
                rtol=0, atol=1e-4)


def test_scores_agree_with_the_logits_of_the_model(made):
    """Of `model.model` itself, in the graph."""
    import model
    text, = made.grow('graph', PROMPTS[:1], 15, logprobs=True).values()
    with tf.Graph().as_default(), tf.Session() as session:
        tokens = tf.constant([text.prompt + text.tokens[:-1]])
        logits = model.model(made.opened.hparams, tokens)['logits'][0, len(text.prompt) - 1:]
        chosen = tf.gather_nd(tf.nn.log_softmax(logits), list(enumerate(text.tokens)))
        checkpoint.restore(session, made.opened.directory)
        np.testing.assert_allclose([score[0] for score in text.logprobs], session.run(chosen),
                                   rtol=0, atol=1e-4)


@with_engines
def test_a_text_ends_with_its_stop_token(made, name):
    whole = made.grow(name, PROMPTS, 40)
    stop = whole[2].tokens[5]
    for index, text in made.grow(name, PROMPTS, 40, stop_token=stop).items():
        tokens = whole[index].tokens
        n = tokens.index(stop) + 1 if stop in tokens else 40
        assert text.tokens == tokens[:n]
        assert text.ended == (stop in tokens)
        assert text.text == made.opened.encoder.decode(tokens[:n - text.ended])


@with_engines
def test_a_text_ends_before_what_it_is_to_stop_at(made, name):
    """Also if that begins and ends within others' tokens, and is not a single one."""
    decode = made.opened.encoder.decode
    whole = {index: decode(text.tokens) for index, text in made.grow(name, PROMPTS, 40).items()}
    ending = next(text[i:i + 2] for text in whole.values() for i in range(5, 30)
                  if text[i:i + 2].isascii())
    found = made.grow(name, PROMPTS, 40, stop_at=ending)
    assert any(text.ended for text in found.values())
    for index, text in found.items():
        assert text.ended == (ending in whole[index])
        if text.ended:
            assert text.text == whole[index].split(ending)[0]
            assert decode(text.tokens) == text.text + ending  # no token more


def shown(words, stop_at=''):
    """Returns what is taken after each of these tokens, and the Text."""
    text, taken = texts.Text(0, [0]), []
    ends = texts.Ends(len(words), None, stop_at.encode('utf-8'))
    for number in range(len(words)):
        texts.extend(text, [number], [None], words.__getitem__, ends)
        taken.append(text.take())
    return taken, text


def test_half_characters_are_held_back():
    data = '你好 🙂é!'.encode()
    taken, text = shown([data[i:i + 1] for i in range(len(data))])
    assert [piece for piece in taken if piece] == list('你好 🙂é!')
    assert ''.join(taken) == text.text and text.done and not text.ended
    taken, text = shown([b'a', b'\xf0\x9f', b'b', b'\xff', b'\xe4\xbd'])
    assert ''.join(taken) == text.text == 'a\ufffdb\ufffd\ufffd'
    assert taken[0] == 'a' and taken[1] == '' and taken[2] == '\ufffdb'


@pytest.mark.parametrize('words, stop_at, expected, ended', [
    ([b'one', b' tw', b'o st', b'op t', b'hree'], 'stop', 'one two ', True),
    ([b'aab', b'aaa', b'bc'], 'aab', '', True),
    ([b'xaa', b'aa', b'b', b'c'], 'aab', 'xaa', True),
    ([b'sto', b'sto', b'p!'], 'stop', 'sto', True),
    ([b'st', b'o'], 'stop', 'sto', False),
    ([b'\xf0\x9f', b'\x99\x82x'], '🙂', '', True),
    ([b'a' * 50, b'END', b'x'], 'aEND', 'a' * 49, True),
])
def test_texts_are_cut_exactly_at_the_ending_and_nothing_of_it_is_shown(words, stop_at, expected,
                                                                        ended):
    taken, text = shown(words, stop_at)
    assert (''.join(taken), text.text, text.ended) == (expected, expected, ended)


def test_the_first_token_is_given_at_once_and_later_ones_in_time(made):
    batches = texts.grow(made.sampler('graph'), made.opened.encoder, [(0, [3]), (1, [4])], seed=0,
                         length=20, keep=12, batch_size=2)
    assert [len(text.tokens) for text in next(batches)] == [1, 1]
    lengths = [[len(text.tokens) for text in batch] for batch in batches]
    assert lengths[-1] == [20, 20] and lengths[0] == [3, 3]


def test_texts_without_end_do_not_pile_up(made):
    """A prompt is asked for when a row is free, and not before."""
    asked = []

    def prompts():
        for index in range(1000):
            asked.append(index)
            yield index, [3]
    batches = texts.grow(made.sampler('graph'), made.opened.encoder, prompts(), seed=0, length=5,
                         keep=12, batch_size=3)
    for _, _ in zip(range(8), batches):
        pass
    assert 3 < len(asked) < 20


@pytest.mark.parametrize('name', ENGINES)
def test_500_prompts_alone_and_in_batches_of_16(name):
    models = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'models')
    opened = checkpoint.open_model('1M', models)
    random = np.random.RandomState(0)
    prompts = [random.randint(0, 999, random.randint(1, 60)).tolist() for _ in range(500)]
    with tf.Graph().as_default():
        sampler = engine.open_sampler(opened, name, 'float32', temperature=0.9)
    found = []
    for batch_size in (1, 16):
        rows = {}
        for batch in texts.grow(sampler, opened.encoder, enumerate(prompts), seed=1, length=8,
                                keep=128, batch_size=batch_size):
            rows.update((text.index, text.tokens) for text in batch if text.done)
        found.append(rows)
    assert len(found[0]) == len(found[1]) == 500
    differ = [index for index in range(500) if found[0][index] != found[1][index]]
    reader = tf.train.load_checkpoint(os.path.join(models, '1M', 'model.ckpt'))
    weights = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    for index in differ:
        alone, together = found[0][index], found[1][index]
        n = next(i for i in range(8) if alone[i] != together[i])
        logits = reference.forward(weights, vars(opened.hparams), prompts[index] + alone[:n])[-1]
        u = reference.uniforms(1, index, 8, 1000)[n]
        assert reference.draw(reference.warp_logits(logits, temperature=0.9), u)[1] < NEAR
    assert len(differ) < 3
