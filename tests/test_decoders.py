"""The contract of `Decoder`, checked on each decoder, and that all of them make the same texts.

Tokens are held to the float64 reference. They may differ from its tokens only at a near-tie, where
the two best scores lie within NEAR.
"""
import itertools
import os
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import model
import reference
import small_model
from gpt2 import checkpoint
from gpt2.errors import ModelError
from gpt2.model_dir import open_model_dir
from gpt2.sampling import batching, decoder, graph
from gpt2.sampling.engines import open_decoder
from gpt2.sampling.graph import GraphDecoder
from gpt2.sampling.options import GenerationOptions, SamplingOptions
from gpt2.sampling.rng import draw_uniforms, sample_rng
from helpers import LONG, ONE_M, only_long
from small_model import HPARAMS, NEAR, PROMPTS, SmallModel, filters, force, uniforms

IS_TF1 = tf.__version__.startswith('1.')
ENGINES = ['graph'] if IS_TF1 else ['graph', 'lite']
GREEDY, PLAIN = SamplingOptions(temperature=0), SamplingOptions()
WARPING = {'temperature': 0.9, 'top_k': 50, 'top_p': 0.95, 'min_p': 0.001, 'typical_p': 0.98,
           'repetition_penalty': 1.3, 'no_repeat_ngram_size': 2}
WARPED = SamplingOptions(**WARPING)
CACHE_POSITIONS = 16  # instead of 128, so that the cache grows several times within 64


@pytest.fixture(scope='module', autouse=True)
def small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, 'CACHE_POSITIONS', CACHE_POSITIONS)
        if not IS_TF1:
            import gpt2.lite.decoder
            patch.setattr(gpt2.lite.decoder, 'CACHE_POSITIONS', CACHE_POSITIONS)
        yield


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """The small model, and its directory as `opened`."""
    made = SmallModel()
    made.opened = made.write(tmp_path_factory.mktemp('models') / 'small')
    return made


@pytest.fixture(scope='module')
def decoders(small):
    made = {engine: open_decoder(small.opened, engine) for engine in ENGINES}
    yield made
    for one in made.values():
        one.close()


@pytest.fixture(params=ENGINES)
def either(request, decoders):
    """Each decoder in turn."""
    return decoders[request.param]


def start(one, prompts):
    """Start a batch of prompts on a decoder."""
    one.reset(len(prompts))
    for row, prompt in enumerate(prompts):
        one.prefill([row], prompt)


def decode(one, prompts, numbers, options=WARPED, chunks=None, **more):
    """Start a batch and decode it in chunks; return the tokens [B, N]."""
    start(one, prompts)
    pieces, first = [], 0
    for chunk in chunks or [numbers.shape[1]]:
        pieces.append(one.decode(chunk, options, numbers[:, first:first + chunk], **more)[0])
        first += chunk
    return np.concatenate(pieces, axis=1)


@pytest.fixture(scope='module')
def expected(small):
    """The reference's samples 0 to 6 of seed 5 after the prompts: 24 tokens, and their gaps."""
    return [reference.sample(small.weights, HPARAMS, prompt, 24, 5, index, **WARPING)
            for index, prompt in enumerate(PROMPTS)]


def check_text(tokens, expected):
    """Check a text against one of `expected`, which it may leave at a near-tie alone."""
    wanted, gaps = expected
    assert len(tokens) == len(wanted)
    n = next((i for i, gap in enumerate(gaps) if gap < NEAR), len(gaps))
    assert n > 5 and list(tokens[:n]) == list(wanted[:n])


# ---- a row's tokens depend on its own prompt, random numbers and options alone -------------------

@pytest.mark.parametrize('n_batch', [1, 2, 3, 7])
def test_a_text_is_the_same_at_any_batch_size(either, expected, n_batch):
    """And beside any other prompts, longer and shorter ones."""
    for first in range(0, 7, n_batch):
        indices = range(first, min(first + n_batch, 7))
        tokens = decode(either, PROMPTS[first:first + n_batch], uniforms(5, indices, 24))
        for index, row in zip(indices, tokens):
            check_text(row, expected[index])


def test_a_text_is_the_same_in_any_row(either, expected):
    for order in [[4, 0, 6, 1], [1, 6, 0, 4], [2, 2, 2]]:
        tokens = decode(either, [PROMPTS[index] for index in order], uniforms(5, order, 24))
        for index, row in zip(order, tokens):
            check_text(row, expected[index])


@pytest.mark.parametrize('chunks', [[1] * 24, [7, 7, 7, 3], [24], [2, 1, 20, 1]], ids=str)
def test_a_text_is_the_same_in_chunks_of_any_size(either, expected, chunks):
    tokens = decode(either, PROMPTS, uniforms(5, range(7), 24), chunks=chunks)
    for row, text in zip(tokens, expected):
        check_text(row, text)


def test_neighbours_rows_and_chunks_change_no_bit_in_a_batch_of_one_size(either):
    """Not even of the log probabilities."""
    def scores_by_text(order, chunks):
        numbers = uniforms(5, order, 24)
        either.reset(4)
        for row, index in enumerate(order):
            either.prefill([row], PROMPTS[index])
        pieces, start = [], 0
        for chunk in chunks:
            pieces.append(either.decode(chunk, WARPED, numbers[:, start:start + chunk],
                                        logprobs=True)[1])
            start += chunk
        return dict(zip(order, np.concatenate([piece.logprobs for piece in pieces], axis=1)))

    first = scores_by_text([4, 0, 6, 1], [24])
    for order, chunks in [([1, 6, 0, 4], [24]), ([0, 2, 3, 4], [24]), ([4, 0, 6, 1], [5, 1, 18])]:
        for index, scores in scores_by_text(order, chunks).items():
            assert index not in first or np.array_equal(scores, first[index])


def test_options_may_change_from_call_to_call(small, either):
    numbers = uniforms(3, range(2), 40)
    settings = [{}, {'temperature': 0}, WARPING, {'top_k': 5}, {'top_p': 0.5}, {'top_p': 0},
                {'temperature': 0.5, 'top_k': 1000}, {'top_p': 1e-50}]
    either.reset(2)
    either.prefill([0, 1], PROMPTS[0])
    texts = [PROMPTS[0], PROMPTS[0]]
    for i, options in enumerate(settings):
        new, _ = either.decode(5, SamplingOptions(**options), numbers[:, 5 * i:5 * i + 5])
        for row in range(2):
            small.check(texts[row], new[row], numbers[row, 5 * i:],
                        **{**options, 'top_p': options.get('top_p') or 1})
        texts = [text + tokens.tolist() for text, tokens in zip(texts, new)]


@pytest.mark.parametrize('options, stored', small_model.STORED, ids=['plain', 'warped'])
def test_decoders_make_the_stored_texts(either, options, stored):
    numbers = uniforms(18, range(3), 36)
    options = SamplingOptions(**options)
    assert decode(either, small_model.STORED_PROMPTS, numbers, options).tolist() == stored
    for index, prompt in enumerate(small_model.STORED_PROMPTS):
        alone = decode(either, [prompt], numbers[index:index + 1], options)
        assert alone.tolist() == [stored[index]]


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has one engine')
@pytest.mark.parametrize('options', [
    {}, {'temperature': 0}, {'temperature': 0.7, 'top_k': 20}, {'top_p': 0.8}], ids=str)
def test_both_decoders_make_the_same_texts(decoders, options):
    numbers = uniforms(11, range(7), 36)
    graph_tokens, lite_tokens = (
        decode(one, PROMPTS, numbers, SamplingOptions(**options)) for one in decoders.values())
    assert graph_tokens.tolist() == lite_tokens.tolist()


def test_random_numbers_decide_the_text(either):
    names = [(0, 0), (0, 1), (1, 0), (2**64 - 1, 10**12)]
    numbers = np.concatenate([draw_uniforms([sample_rng(*name)], 12, 1000) for name in names])
    tokens = decode(either, [[3]] * 4, numbers)
    assert len({tuple(row) for row in tokens.tolist()}) == 4


def test_the_likeliest_tokens_need_no_random_numbers(small, either):
    tokens, margins = reference.greedy(small.weights, HPARAMS, [7, 8], 36)
    assert min(margins) > NEAR and len(set(tokens)) > 4
    either.reset(2)
    either.prefill([1, 0], [7, 8])
    found, _ = either.decode(36, GREEDY)
    assert found.tolist() == [tokens] * 2


# ---- what decode returns -------------------------------------------------------------------------

def test_tokens_and_scores_have_their_types_and_shapes(either):
    numbers = uniforms(0, range(3), 5)
    either.reset(3)
    either.prefill([0, 1, 2], [1, 2])
    tokens, scores = either.decode(3, PLAIN, numbers[:, :3], logprobs=True)
    assert (tokens.dtype, tokens.shape) == (np.int32, (3, 3))
    assert (scores.logprobs.dtype, scores.logprobs.shape) == (np.float32, (3, 3, 2))
    assert scores.top_tokens.shape == scores.top_logprobs.shape == (3, 3, 0)
    tokens, scores = either.decode(2, PLAIN, numbers[:, 3:])
    assert (tokens.dtype, tokens.shape) == (np.int32, (3, 2)) and scores is None


@pytest.mark.parametrize('options', [WARPING, {'temperature': 0}, {'temperature': 0.7}], ids=str)
def test_log_probabilities_are_those_of_the_reference(small, either, options):
    """Under the model, and under the distribution that the token was drawn from."""
    prompts, numbers = PROMPTS[:4], uniforms(5, range(4), 15)
    either.reset(4)
    for row, prompt in enumerate(prompts):
        either.prefill([row], prompt)
    tokens, scores = either.decode(15, SamplingOptions(**options), numbers, logprobs=True)
    for prompt, text, pairs in zip(prompts, tokens.tolist(), scores.logprobs):
        logits = small.logits(prompt + text)[len(prompt) - 1:-1]
        penalized = small.penalized(prompt + text, len(prompt), options)
        for token, row, changed, pair in zip(text, logits, penalized, pairs):
            drawn = (reference.warp(changed, **filters(options)) if options['temperature']
                     else np.ones(1000))
            np.testing.assert_allclose(
                pair, np.log([reference.softmax(row)[token], drawn[token]]), rtol=0, atol=1e-4)


def test_log_probabilities_agree_with_the_logits_of_the_model(small, decoders):
    """With `model.model` itself, in a graph."""
    one, numbers = decoders['graph'], uniforms(5, [0], 15)
    one.reset(1)
    one.prefill([0], PROMPTS[0])
    tokens, scores = one.decode(15, PLAIN, numbers, logprobs=True)
    text = tokens[0].tolist()
    with tf.Graph().as_default(), tf.Session() as session:
        logits = model.model(small.hparams, tf.constant([PROMPTS[0] + text[:-1]]))['logits'][0, 2:]
        chosen = tf.gather_nd(tf.nn.log_softmax(logits), list(enumerate(text)))
        checkpoint.restore(session, small.opened.path)
        np.testing.assert_allclose(scores.logprobs[0, :, 0], session.run(chosen), rtol=0, atol=1e-4)


# ---- rows that are done --------------------------------------------------------------------------

def ending_at(steps, stop_token, n=20):
    """Return random numbers [B, n, 2R] that draw the stop token in each row at one of these steps.
    """
    numbers = uniforms(0, range(len(steps)), n)
    for row, step in enumerate(steps):
        if step is not None:
            numbers[row, step] = force(numbers[row, step], stop_token)
    return numbers


@pytest.mark.parametrize('stop_token', [0, 999])  # the id 0 is no less an id
@pytest.mark.parametrize('chunks', [[20], [1] * 20, [7, 7, 6]], ids=str)
@pytest.mark.parametrize('steps', [[2, 7, None], [19, 0, 5]], ids=str)
def test_a_done_row_repeats_the_stop_token(small, either, steps, chunks, stop_token):
    numbers = ending_at(steps, stop_token)
    tokens = decode(either, [[3]] * 3, numbers, PLAIN, chunks, stop_token=stop_token).tolist()
    for row, text in enumerate(tokens):
        n = 20 if steps[row] is None else steps[row] + 1
        small.check([3], text[:n], numbers[row])
        assert stop_token not in text[:n - 1]
        assert text[n - 1:] == [stop_token] * (21 - n) or steps[row] is None


def test_decode_ends_when_all_rows_are_done(either):
    """It takes no random numbers for more, and no room in the window."""
    numbers = ending_at([4, 11, 6], 0)
    tokens = decode(either, [[3]] * 3, numbers, PLAIN, stop_token=0)
    assert tokens.shape == (3, 12) and (tokens[:, -1] == 0).all()
    assert either.remaining.tolist() == [64 - 12] * 3
    # In the chunk that ends the last row, and at least one token in any other.
    assert decode(either, [[3]] * 3, numbers, PLAIN, [8, 12], stop_token=0).shape == (3, 12)
    again, scores = either.decode(9, PLAIN, numbers[:, :9], stop_token=0, logprobs=True)
    assert again.tolist() == [[0]] * 3 and scores.logprobs.shape == (3, 1, 2)
    assert either.remaining.tolist() == [64 - 13] * 3


def test_without_a_stop_token_no_row_is_done(either):
    numbers = ending_at([1, 2], 0)
    tokens = decode(either, [[3]] * 2, numbers, PLAIN)
    assert tokens.shape == (2, 20) and tokens[0, 1] == tokens[1, 2] == 0
    assert (tokens != 0).sum() == 38


def test_prefill_makes_a_done_row_a_new_one(small, either):
    numbers = ending_at([1, 1], 0)
    assert decode(either, [[3], [4, 5]], numbers, PLAIN, stop_token=0).shape == (2, 2)
    either.prefill([1], PROMPTS[2])
    fresh = uniforms(1, range(2), 9)
    tokens, _ = either.decode(9, PLAIN, fresh, stop_token=0)
    assert tokens[0].tolist() == [0] * 9
    small.check(PROMPTS[2], tokens[1], fresh[1])


# ---- prefill -------------------------------------------------------------------------------------

def test_prefill_replaces_some_rows_while_the_others_continue(small, either, expected):
    """With longer and shorter texts, in several rows, and more than once."""
    numbers = uniforms(5, range(7), 24)
    either.reset(4)
    either.prefill([2, 0, 3], PROMPTS[3])
    either.prefill([1], PROMPTS[1])
    first, _ = either.decode(6, WARPED, numbers[[3, 1, 3, 3], :6])
    long = np.random.RandomState(3).randint(0, 1000, 40).tolist()
    either.prefill([0, 3], long)
    other = uniforms(9, range(4), 9)
    second, _ = either.decode(9, WARPED, np.stack([other[0], *numbers[[1, 3], 6:15], other[3]]))
    either.prefill([3], PROMPTS[5])
    third, _ = either.decode(9, WARPED, np.stack(
        [other[1], *numbers[[1, 3], 15:24], numbers[5, :9]]))
    check_text(np.concatenate([first[1], second[1], third[1]]), expected[1])
    check_text(np.concatenate([first[2], second[2], third[2]]), expected[3])
    small.check(long, second[0].tolist() + third[0].tolist(),
                np.concatenate([other[0], other[1]]), **WARPING)
    small.check(long, second[3], other[3], **WARPING)
    small.check(PROMPTS[5], third[3], numbers[5], **WARPING)


@pytest.mark.parametrize('prompt', [[], [1000], [-1], [3, 1000], [5, -1, 5], [1] * 65], ids=str)
def test_a_prompt_that_cannot_be_read_is_refused(either, expected, prompt):
    """In one line, and nothing has changed."""
    numbers = uniforms(5, [0], 24)
    either.reset(1)
    either.prefill([0], PROMPTS[0])
    first, _ = either.decode(4, WARPED, numbers[:, :4])
    with pytest.raises(ValueError, match='^a prompt has .*$') as error:
        either.prefill([0], prompt)
    assert '\n' not in str(error.value)
    rest, _ = either.decode(20, WARPED, numbers[:, 4:])
    check_text(np.concatenate([first[0], rest[0]]), expected[0])


# ---- the window and the cache --------------------------------------------------------------------

def test_remaining_counts_what_fits_the_window(either):
    either.reset(3)
    for row, n in enumerate([1, 10, 64]):
        either.prefill([row], [5] * n)
    assert either.remaining.tolist() == [64, 55, 1]
    either.decode(1, GREEDY)
    assert either.remaining.tolist() == [63, 54, 0]
    either.prefill([2], [5, 6])
    assert either.remaining.tolist() == [63, 54, 63]
    either.decode(5, GREEDY)
    assert either.remaining.tolist() == [58, 49, 58]


@pytest.mark.parametrize('chunk', [3, 30, 50])
def test_the_cache_grows_as_the_text_does(small, either, chunk):
    """Up to the end of the window, beside a text that starts with its first token."""
    prompts = [np.random.RandomState(0).randint(0, 1000, 15).tolist(), [9]]
    numbers = uniforms(8, range(2), 50)
    chunks = [chunk] * (50 // chunk) + ([50 % chunk] if 50 % chunk else [])
    tokens = decode(either, prompts, numbers, chunks=chunks)
    for row in range(2):
        small.check(prompts[row], tokens[row], numbers[row], **WARPING)
    assert either.remaining.tolist() == [0, 14]
    with pytest.raises(ValueError):
        either.decode(1, WARPED, numbers[:, :1])


def test_a_prompt_may_fill_the_window(small, either):
    prompt = np.random.RandomState(0).randint(0, 1000, 64).tolist()
    tokens = decode(either, [prompt, [5]], np.zeros([2, 1, 64]), GREEDY)
    small.check(prompt, tokens[0], [None], temperature=0)
    small.check([5], tokens[1], [None], temperature=0)


def test_what_goes_beyond_the_window_is_refused_and_changes_nothing(small, either):
    prompts = [np.random.RandomState(0).randint(0, 1000, n).tolist() for n in (50, 3)]
    numbers = uniforms(0, range(2), 15)
    first = decode(either, prompts, numbers[:, :5])
    with pytest.raises(ValueError, match='11 more tokens do not fit the window of 64: 10 remain'):
        either.decode(11, WARPED, uniforms(0, range(2), 11))
    rest, _ = either.decode(10, WARPED, numbers[:, 5:])
    for prompt, row, u in zip(prompts, np.concatenate([first, rest], axis=1), numbers):
        small.check(prompt, row, u, **WARPING)


# ---- one decoder for many batches ----------------------------------------------------------------

def test_reset_starts_over_and_leaves_nothing_behind(either, expected):
    """After a longer and wider batch, one that was left midway, and one that was done."""
    long = np.random.RandomState(3).randint(0, 1000, 50).tolist()
    decode(either, [long] * 4, uniforms(1, range(4), 15))
    for indices in [[0], [4, 2, 1], [5], list(range(7)), [3, 6]]:
        tokens = decode(either, [PROMPTS[index] for index in indices], uniforms(5, indices, 24))
        for index, row in zip(indices, tokens):
            check_text(row, expected[index])
        either.reset(2)
        either.prefill([1], long)
        decode(either, [[3]] * 3, ending_at([0, 1, 0], 0), PLAIN, stop_token=0)


@pytest.mark.parametrize('engine', ENGINES)
def test_two_decoders_do_not_disturb_each_other(small, decoders, engine):
    """The second is opened while the first is in use, of the graph even in the same session."""
    first, numbers = decoders[engine], uniforms(5, [2], 24)
    first.reset(1)
    first.prefill([0], PROMPTS[2])
    begun, _ = first.decode(10, WARPED, numbers[:, :10])
    second = (GraphDecoder(first._session, small.opened) if engine == 'graph' else
              open_decoder(small.opened, 'lite'))
    second.reset(3)
    second.prefill([0, 1, 2], PROMPTS[4])
    second.decode(5, GREEDY)
    if engine == 'lite':
        second.close()
    rest, _ = first.decode(14, WARPED, numbers[:, 10:])
    small.check(PROMPTS[2], np.concatenate([begun[0], rest[0]]), numbers[0], **WARPING)


@pytest.mark.parametrize('engine', ENGINES)
def test_attributes(decoders, engine):
    one = decoders[engine]
    assert isinstance(one, decoder.Decoder)
    assert one.engine == engine and vars(one.hparams) == HPARAMS


# ---- continuous batching on real decoders --------------------------------------------------------

def generate(one, prompts, indices=None, **options):
    """Continue prompts of the small model by batching; return the finished Sequences by index."""
    more = {name: options.pop(name) for name in ('batch_size', 'fill') if name in options}
    options = GenerationOptions(seed=5, **{'keep': 32, 'stop': False, **options})
    indices = range(len(prompts)) if indices is None else indices
    batches = batching.generate(one, small_model.LetterEncoder(), zip(indices, prompts), options,
                                WARPED, **{'batch_size': 4, **more})
    found = list(itertools.chain.from_iterable(batching.finished(batches)))
    assert [sequence.index for sequence in found] == list(indices)
    return {sequence.index: sequence for sequence in found}


@pytest.mark.parametrize('keep, length', [(1, 70), (32, 70), (64, 9)])
def test_past_the_window_a_text_continues_from_its_last_tokens(small, either, keep, length):
    """Each row when its own window is full, prompts of all lengths up to it."""
    prompts = [np.random.RandomState(n).randint(0, 1000, n).tolist() for n in (3, 60, 64, 1)]
    for sequence in generate(either, prompts, length=length, keep=keep).values():
        assert len(sequence.tokens) == length and not sequence.ended
        numbers = uniforms(5, [sequence.index], length)[0]
        window, n = list(sequence.prompt), 0
        while n < length:  # a window at a time
            new = sequence.tokens[n:n + 65 - len(window)]
            small.check(window, new, numbers[n:], **WARPING)
            window, n = (window + new)[-keep:], n + len(new)


def test_rows_that_change_hands_change_no_bit(either):
    """In another order, so that each text has other neighbours, in another row, at other times."""
    prompts = [*PROMPTS, [9], [9]]
    options = {'fill': True, 'logprobs': True, 'length': 70, 'keep': 20, 'stop_at': 'z'}
    first = generate(either, prompts, **options)
    assert len({len(sequence.tokens) for sequence in first.values()}) > 3
    for order in [range(8, -1, -1), np.random.RandomState(0).permutation(9).tolist(), [7]]:
        again = generate(either, [prompts[index] for index in order], order, **options)
        for index, sequence in again.items():
            assert sequence.tokens == first[index].tokens
            assert sequence.logprobs == first[index].logprobs  # and exactly


# ---- the model that comes with the project -------------------------------------------------------

@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """The model in models/, copied so that nothing is converted there, and its decoders."""
    folder = tmp_path_factory.mktemp('copied') / '1M'
    folder.mkdir()
    for path in ONE_M.iterdir():
        if path.is_file():
            os.symlink(path, folder / path.name)
    opened = open_model_dir('1M', str(folder.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, 'CACHE_POSITIONS', decoder.CACHE_POSITIONS)
        made = {engine: open_decoder(opened, engine) for engine in ENGINES}
        yield types.SimpleNamespace(opened=opened, decoders=made)
    for one in made.values():
        one.close()


@pytest.fixture(scope='module')
def released_logits(released):
    """A function from ids to the float64 logits after the last, by the reference."""
    reader = tf.train.load_checkpoint(os.path.join(released.opened.path, 'model.ckpt'))
    weights = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}
    return lambda tokens: reference.forward(weights, vars(released.opened.hparams), tokens)[-1]


@only_long
@pytest.mark.parametrize('engine', ENGINES)
def test_prompts_alone_and_in_batches_of_16(released, released_logits, engine):
    n = 500 if LONG else 30
    random = np.random.RandomState(0)
    prompts = [random.randint(0, 999, random.randint(1, 60)).tolist() for _ in range(n)]
    options = GenerationOptions(seed=1, length=8, keep=128)
    found = []
    for batch_size in (1, 16):
        batches = batching.generate(
            released.decoders[engine], released.opened.encoder, enumerate(prompts), options,
            SamplingOptions(temperature=0.9), batch_size=batch_size)
        found.append([sequence.tokens for done in batching.finished(batches) for sequence in done])
    assert len(found[0]) == len(found[1]) == n
    differ = [index for index in range(n) if found[0][index] != found[1][index]]
    for index in differ:
        alone, together = found[0][index], found[1][index]
        step = next(i for i in range(8) if alone[i] != together[i])
        logits = released_logits(prompts[index] + alone[:step])
        u = reference.uniforms(1, index, 8, 1000)[step]
        assert reference.draw(reference.warp_logits(logits, temperature=0.9), u)[1] < NEAR
    assert len(differ) < 3


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has one engine')
def test_both_decoders_make_the_same_texts_of_the_model_in_the_project(released):
    """Over more positions than the cache has at first."""
    n = 200 if LONG else 140
    assert n > decoder.CACHE_POSITIONS
    start = [released.opened.encoder.end_of_text]
    numbers = uniforms(11, range(4), n)
    graph_tokens, lite_tokens = (
        decode(one, [start] * 4, numbers, PLAIN) for one in released.decoders.values())
    assert graph_tokens.tolist() == lite_tokens.tolist()
    alone = decode(released.decoders['lite'], [start], numbers[:1], PLAIN)
    assert alone[0].tolist() == lite_tokens[0].tolist()


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has one engine')
@pytest.mark.parametrize('dtype, bound', [('int8', 0.01), ('int4', 0.05)])
def test_few_bits_stay_close_to_float32(released, dtype, bound):
    """Mean KL divergence of the next tokens along a text of the model, and its loss."""
    exact, close = released.decoders['lite'], open_decoder(released.opened, 'lite', dtype)
    text = [released.opened.encoder.end_of_text]
    text += decode(exact, [text], uniforms(11, [0], 200), PLAIN)[0].tolist()

    def log_probabilities(one):
        one.reset(1)
        one._make_room(200)
        hidden = one._forward(np.array([text[:-1]]), np.array([0]), one._cache)
        logits = np.float64(one._logits(*hidden))
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    exact, close = map(log_probabilities, (exact, close))
    divergence = (np.exp(exact) * (exact - close)).sum(axis=1).mean()
    assert 0 < divergence < bound
    chosen = np.arange(200), text[1:]
    assert abs(exact[chosen].mean() - close[chosen].mean()) < bound


@pytest.mark.parametrize('dtype, bound', [('bfloat16', 2e-2), ('float16', 3e-3)])
def test_matrices_in_two_bytes(released, released_logits, dtype, bound):
    """A greedy text of 64 tokens, and all log probabilities along it, by the graph."""
    close, n_vocab = open_decoder(released.opened, 'graph', dtype), released.opened.hparams.n_vocab
    prompt = released.opened.encoder.encode('First Citizen:')
    start(close, [prompt])
    tokens, scores = close.decode(64, GREEDY, logprobs=True, n_top=n_vocab)
    weights = close._session.graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES)
    assert {weight.dtype.base_dtype.name for weight in weights} == {'float32', dtype}
    for step, token in enumerate(tokens[0]):
        exact = np.log(reference.softmax(released_logits(prompt + tokens[0, :step].tolist())))
        found = np.zeros(n_vocab)
        found[scores.top_tokens[0, step]] = scores.top_logprobs[0, step]
        error = np.abs(found - exact).max()
        assert error < bound * np.abs(exact).max()
        assert token == exact.argmax() or exact.max() - exact[token] < 2 * error
    close.close()


def test_numbers_that_do_not_fit_float16(tmp_path):
    large = SmallModel()
    large.weights['model/h0/mlp/c_fc/w'] *= np.float32(1e7)
    opened = large.write(tmp_path / 'large')
    close, narrow = (open_decoder(opened, 'graph', dtype) for dtype in ('bfloat16', 'float16'))
    start(close, [[1]])
    close.decode(1, GREEDY)
    start(narrow, [[1]])
    with pytest.raises(ModelError, match='use bfloat16 or float32'):
        narrow.decode(1, GREEDY)
