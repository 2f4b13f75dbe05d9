"""Continuous batching, on a decoder that is a few lines long.

The texts must be those that the same model makes of each prompt alone, token by token.
"""
import itertools
import types
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

import reference
from gpt2.sampling import batching, rng
from gpt2.sampling.decoder import Decoder, Scores
from gpt2.sampling.options import GenerationOptions, SamplingOptions

pytestmark = pytest.mark.pure

N_VOCAB, N_CTX = 60, 24
PLAIN, GREEDY = SamplingOptions(), SamplingOptions(temperature=0)


def next_token(window, u):
    """The model: any change of the window or the random numbers changes the token."""
    key = [int(token) for token in window], None if u is None else np.float32(u).tolist()
    return zlib.crc32(repr(key).encode('ascii')) % N_VOCAB


class FakeDecoder(Decoder):
    """A Decoder that keeps the texts, and a log of its calls."""

    engine = 'fake'

    def __init__(self):
        super().__init__(types.SimpleNamespace(
            hparams=types.SimpleNamespace(n_vocab=N_VOCAB, n_ctx=N_CTX)))
        self.calls = []

    def reset(self, n_rows):
        self.calls.append(('reset', n_rows))
        self._start_rows(n_rows)
        self.texts, self.done = [None] * n_rows, [False] * n_rows

    def prefill(self, rows, prompt):
        self.calls.append(('prefill', rows, prompt))
        self._check_prompt(prompt)
        for row in rows:
            self.texts[row], self.done[row] = list(prompt), False
        self._position[rows] = len(prompt) - 1

    def decode(self, length, options, uniforms=None, stop_token=None, logprobs=False, n_top=0):
        self.calls.append(('decode', length))
        assert length >= 1 and (uniforms is None) == options.greedy
        assert uniforms is None or uniforms.shape == (len(self.texts), length, 16)
        self._check_length(length)
        tokens = []
        while len(tokens) < length and not (tokens and all(self.done)):
            u = [None] * len(self.texts) if uniforms is None else uniforms[:, len(tokens)]
            new = [stop_token if done else next_token(text, row)
                   for text, done, row in zip(self.texts, self.done, u)]
            for row, token in enumerate(new):
                self.texts[row].append(token)
                self.done[row] |= token == stop_token
            self._position += 1
            tokens.append(new)
        tokens = np.array(tokens, np.int32).T
        top = tokens[..., np.newaxis] + np.arange(n_top)
        scores = Scores(np.stack([tokens, -tokens], axis=-1) / 7, top, -top)
        return tokens, scores if logprobs else None

    def log(self, kind):
        """Return the arguments of all calls of a kind."""
        return [call[1:] for call in self.calls if call[0] == kind]


class FakeEncoder:
    """Every token is a letter."""

    end_of_text = N_VOCAB - 1

    def decode_bytes(self, tokens):
        return bytes(65 + token for token in tokens)


def letters(tokens):
    return FakeEncoder().decode_bytes(tokens).decode('ascii')


def alone(prompt, index, length, keep=12, seed=5, greedy=False):
    """Return what the model makes of a prompt, token by token."""
    window, tokens = list(prompt), []
    for u in reference.uniforms(seed, index, length, N_VOCAB):
        if len(window) > N_CTX:
            window = window[-keep:]
        tokens.append(next_token(window, None if greedy else u))
        window.append(tokens[-1])
    return tokens


def options(length, **changes):
    return GenerationOptions(**{'seed': 5, 'length': length, 'keep': 12, 'stop': False, **changes})


def start(prompts, generation, batch_size=4, sampling=PLAIN, decoder=None, indices=None, **more):
    """Return a FakeDecoder and the generator of its batches."""
    decoder = decoder or FakeDecoder()
    numbered = prompts if indices is None else zip(indices, prompts)
    return decoder, batching.generate(decoder, FakeEncoder(), numbered, generation, sampling,
                                      batch_size=batch_size, **more)


def run(prompts, generation, batch_size=4, **more):
    """Make all texts; return the FakeDecoder, and the finished Sequences in order."""
    indices = more.pop('indices', range(len(prompts)))
    decoder, batches = start(prompts, generation, batch_size, indices=indices, **more)
    found = list(itertools.chain.from_iterable(batching.finished(batches)))
    assert [sequence.index for sequence in found] == list(indices)
    return decoder, found


PROMPTS = [np.random.RandomState(n).randint(0, N_VOCAB - 1, n).tolist()
           for n in (3, 1, 9, 2, 24, 5, 17, 9, 9, 1, 1, 13)]


# ---- the texts ---------------------------------------------------------------------------------

@pytest.mark.parametrize('keep', [1, 12, 24])
@pytest.mark.parametrize('batch_size', [1, 3, 16])
@pytest.mark.parametrize('fill', [False, True])
def test_each_text_is_what_the_model_makes_of_its_prompt_alone(batch_size, keep, fill):
    """Past the window it continues from its last tokens, each row when its own window is full."""
    _, found = run(PROMPTS, options(60, keep=keep), batch_size, fill=fill)
    for prompt, sequence in zip(PROMPTS, found):
        assert sequence.prompt == prompt
        assert sequence.tokens == alone(prompt, sequence.index, 60, keep)
        assert sequence.text == letters(sequence.tokens)
        assert sequence.done and not sequence.ended and sequence.logprobs == []


def test_a_text_depends_on_seed_index_and_prompt_alone():
    order = np.random.RandomState(0).permutation(12).tolist()
    _, found = run([PROMPTS[index] for index in order], options(30), indices=order)
    for sequence in found:
        assert sequence.tokens == alone(PROMPTS[sequence.index], sequence.index, 30)
    seeds = [0, 1, 2**64 - 1]
    texts = [run([[3]], options(9, seed=seed), indices=[10**12])[1][0].tokens for seed in seeds]
    assert texts == [alone([3], 10**12, 9, seed=seed) for seed in seeds]


def test_greedy_texts_draw_no_random_numbers(monkeypatch):
    monkeypatch.setattr(rng, 'draw_uniforms', None)
    _, found = run(PROMPTS, options(30), sampling=GREEDY)
    for sequence in found:
        assert sequence.tokens == alone(sequence.prompt, sequence.index, 30, greedy=True)


def test_log_probabilities_stay_with_their_tokens():
    _, found = run(PROMPTS, options(40, stop=True, logprobs=True), fill=True)
    for sequence in found:
        expected = np.stack([sequence.tokens, np.negative(sequence.tokens)], axis=-1) / 7
        np.testing.assert_array_equal(sequence.logprobs, expected)


def test_no_prompts_make_no_texts():
    for fill in (False, True):
        decoder, found = run([], options(9), fill=fill)
        assert found == [] and decoder.calls == []


# ---- where a text ends -------------------------------------------------------------------------

def test_a_text_ends_with_its_stop_token():
    _, found = run(PROMPTS, options(60, stop=True))
    assert len({len(sequence.tokens) for sequence in found}) > 5
    for sequence in found:
        tokens = alone(sequence.prompt, sequence.index, 60)
        n = tokens.index(N_VOCAB - 1) + 1 if N_VOCAB - 1 in tokens else 60
        assert sequence.tokens == tokens[:n]
        assert sequence.ended == (tokens[n - 1] == N_VOCAB - 1)
        assert sequence.text == letters(tokens[:n - sequence.ended])


def test_a_text_ends_before_what_it_is_to_stop_at():
    whole = [letters(alone(prompt, index, 40)) for index, prompt in enumerate(PROMPTS)]
    stop_at = whole[2][25:27]  # not a single token, and after the window was full
    _, found = run(PROMPTS, options(40, stop_at=stop_at))
    assert any(sequence.ended for sequence in found)
    for text, sequence in zip(whole, found):
        assert sequence.ended == (stop_at in text)
        assert sequence.text == text.split(stop_at)[0]
        # The tokens include the end, and none after it.
        assert letters(sequence.tokens) == sequence.text + stop_at * sequence.ended


# ---- how the rows are used -----------------------------------------------------------------------

def test_a_finished_row_is_given_the_next_prompt_at_once():
    """So two rows need little more than half of all tokens in steps."""
    prompts = PROMPTS * 4
    decoder, found = run(prompts, options(40, stop=True), batch_size=2)
    n_tokens = sum(len(sequence.tokens) for sequence in found)
    n_steps = sum(length for length, in decoder.log('decode'))
    assert n_steps < 0.5 * n_tokens + batching.CHUNK * len(prompts) / 2
    assert decoder.log('reset')[0] == (2,)
    assert len(decoder.log('reset')) < len(prompts) / 4  # only if both rows end in one chunk


def test_a_prompt_is_asked_for_when_a_row_is_free_and_not_before():
    asked = []

    def endless():
        for index in itertools.count():
            asked.append(index)
            yield index, [3]

    _, batches = start(endless(), options(9, stop=True), batch_size=3)
    for batch in itertools.islice(batches, 12):
        assert len(asked) == batch[-1].index + 1
    assert 3 < len(asked) <= 36


@pytest.mark.parametrize('fill', [False, True])
def test_equal_prompts_are_read_once(fill):
    decoder, _ = run([[3], [4, 5], [3], [3]], options(1), batch_size=6, fill=fill)
    assert decoder.log('reset') == [(6 if fill else 4,)]
    assert decoder.log('prefill') == [([0, 2, 3], [3]), ([1], [4, 5])] + [([4, 5], [0])] * fill


def test_a_batch_has_as_many_rows_as_texts_unless_it_is_to_be_filled():
    decoder, _ = run([[3]] * 5, options(3), batch_size=3)
    assert decoder.log('reset') == [(3,), (2,)]
    decoder, _ = run([[3]] * 5, options(3), batch_size=3, fill=True)
    assert decoder.log('reset') == [(3,), (3,)]


def test_rows_without_a_text_never_limit_the_others():
    """They repeat a short text, however long the others are."""
    decoder, (sequence,) = run([[7]], options(100), batch_size=4, fill=True)
    assert sequence.tokens == alone([7], 0, 100)
    lengths = [length for length, in decoder.log('decode')]
    assert sum(lengths) == 100 and len(lengths) < 20


def test_full_windows_slide_and_no_others():
    decoder, (first, second) = run([[7], [1] * 20], options(30, keep=5), batch_size=2)
    slides = decoder.log('prefill')[2:]
    assert slides[0] == ([1], (second.prompt + second.tokens[:5])[-5:])
    assert [rows for rows, _ in slides] == [[1], [0], [1]]
    assert slides[1][1] == first.tokens[19:24]
    # A text that is finished when its window is full is not read again.
    decoder, _ = run([[7]], options(N_CTX), batch_size=1)
    assert len(decoder.log('prefill')) == 1


# ---- what is shown, and when ---------------------------------------------------------------------

@pytest.mark.parametrize('stop', [False, True])
def test_lists_have_all_texts_that_are_not_finished_and_settled(stop):
    """In the order of the prompts; a finished one appears once more, unless one before it waits."""
    _, batches = start(enumerate(PROMPTS), options(30, stop=stop), batch_size=3)
    seen, gone = [], 0
    for batch in batches:
        indices = [sequence.index for sequence in batch]
        assert indices == list(range(gone, gone + len(batch))) and batch
        seen.extend(sequence for sequence in batch if sequence not in seen)
        while gone < len(seen) and seen[gone].done:
            gone += 1
        assert all(len(sequence.tokens) > 0 for sequence in batch)
    assert [sequence.index for sequence in seen] == list(range(12)) and gone == 12


def test_finished_yields_what_leads_a_list_and_is_done():
    done, growing = types.SimpleNamespace(done=True), types.SimpleNamespace(done=False)
    batches = [[growing, done], [done, done, growing, done], [], [done]]
    assert list(batching.finished(batches)) == [[], [done, done], [], [done]]


def clock(monkeypatch, seconds_per_token, decoder):
    """Make time pass only while a decoder decodes."""
    now = [0.]
    decode = decoder.decode

    def slow(length, *args, **kwargs):
        now[0] += seconds_per_token * length
        return decode(length, *args, **kwargs)

    monkeypatch.setattr(decoder, 'decode', slow)
    monkeypatch.setattr(batching.time, 'perf_counter', lambda: now[0])


@pytest.mark.parametrize('seconds, expected', [
    (1e-6, [1, 2, 4, 8, 5]), (0.125, [1, 2, 4, 4, 4, 4, 1]), (0.25, [1] + [2] * 9 + [1]),
    (3, [1] * 20),
])
def test_the_first_token_is_shown_at_once_and_later_ones_in_time(monkeypatch, seconds, expected):
    """In half a second at most, if a token takes no longer."""
    decoder = FakeDecoder()
    clock(monkeypatch, seconds, decoder)
    _, batches = start([(0, [3]), (1, [3])], options(20), 2, decoder=decoder)
    lengths = [[len(sequence.tokens) for sequence in batch] for batch in batches]
    assert lengths == [[n, n] for n in np.cumsum(expected)]
    assert decoder.log('decode') == [(n,) for n in expected]


def test_chunks_are_short_where_a_text_may_end(monkeypatch):
    for more, most in [({'stop': True}, batching.CHUNK), ({'stop_at': '~~'}, batching.CHUNK),
                       ({}, N_CTX)]:
        decoder = FakeDecoder()
        clock(monkeypatch, 2**-30, decoder)
        run([[3]], options(200, keep=1, **more), decoder=decoder)
        steps = [length for length, in decoder.log('decode')]
        assert max(steps) <= most and (max(steps) > batching.CHUNK) == (not more)


def test_a_generator_may_be_left_midway():
    decoder, batches = start(enumerate(PROMPTS), options(30), 3)
    for _ in range(3):
        next(batches)
    batches.close()
    _, found = run(PROMPTS, options(30), decoder=decoder)
    assert [sequence.tokens for sequence in found] == [
        alone(prompt, index, 30) for index, prompt in enumerate(PROMPTS)]


def test_after_an_interruption_the_decoder_serves_again():
    """Wherever it came, in any call of the decoder."""
    n_calls = len(run(PROMPTS, options(30), batch_size=3)[0].calls)
    for number in range(0, n_calls, 3):
        decoder = FakeDecoder()
        countdown = itertools.count(number, -1)

        class Interrupting(list):
            def append(self, call, countdown=countdown):
                super().append(call)
                if next(countdown) == 0:
                    raise KeyboardInterrupt

        decoder.calls = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            run(PROMPTS, options(30), batch_size=3, decoder=decoder)
        decoder.calls = []
        _, found = run(PROMPTS[:4], options(30), batch_size=3, decoder=decoder)
        assert found[3].tokens == alone(PROMPTS[3], 3, 30)


# ---- a text piece by piece -----------------------------------------------------------------------

def streamed(words, stop_at=''):
    """Return what is streamed after each of these tokens, and the Sequence."""
    sequence, pieces = batching.Sequence(0, [0]), []
    stops = [stop.encode('utf-8') for stop in stop_at.split('|') if stop]
    criteria = batching.StopCriteria(len(words), None, stops)
    for number in range(len(words)):
        batching.extend(sequence, [number], None, words.__getitem__, criteria)
        pieces.append(sequence.stream())
    return pieces, sequence


def test_half_characters_are_held_back():
    data = '你好 🙂é!'.encode()
    pieces, sequence = streamed([data[i:i + 1] for i in range(len(data))])
    assert [piece for piece in pieces if piece] == list('你好 🙂é!')
    assert ''.join(pieces) == sequence.text and sequence.done and not sequence.ended
    pieces, sequence = streamed([b'a', b'\xf0\x9f', b'b', b'\xff', b'\xe4\xbd'])
    assert ''.join(pieces) == sequence.text == 'a\ufffdb\ufffd\ufffd'
    assert pieces[0] == 'a' and pieces[1] == '' and pieces[2] == '\ufffdb'


@pytest.mark.parametrize('words, stop_at, expected, ended', [
    ([b'one', b' tw', b'o st', b'op t', b'hree'], 'stop', 'one two ', True),
    ([b'aab', b'aaa', b'bc'], 'aab', '', True),
    ([b'xaa', b'aa', b'b', b'c'], 'aab', 'xaa', True),
    ([b'sto', b'sto', b'p!'], 'stop', 'sto', True),
    ([b'st', b'o'], 'stop', 'sto', False),
    ([b'\xf0\x9f', b'\x99\x82x'], '🙂', '', True),
    ([b'a' * 50, b'END', b'x'], 'aEND', 'a' * 49, True),
])
def test_texts_are_cut_exactly_at_the_end_and_nothing_of_it_is_shown(words, stop_at, expected,
                                                                     ended):
    pieces, sequence = streamed(words, stop_at)
    assert (''.join(pieces), sequence.text, sequence.ended) == (expected, expected, ended)


@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(strategies.lists(strategies.text('ab🙂', max_size=4), min_size=1, max_size=12),
                  strategies.integers(1, 3),
                  strategies.sampled_from(['ab', 'aab', 'b🙂', 'aba', 'ab🙂|b', 'aa|a🙂|ba']))
def test_any_text_in_any_pieces_is_shown_up_to_its_end(words, size, stop_at):
    data = ''.join(words).encode('utf-8') or b'a'
    pieces, sequence = streamed([data[i:i + size] for i in range(0, len(data), size)], stop_at)
    whole, stops = data.decode('utf-8'), stop_at.split('|')
    ends = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    assert ''.join(pieces) == sequence.text == whole[:min(ends)[1] if ends else None]
    assert sequence.ended == bool(ends) and sequence.done


@pytest.mark.parametrize('text, stop, n', [
    (b'', b'ab', 0), (b'xa', b'ab', 1), (b'ab', b'ab', 0), (b'aab', b'abc', 2), (b'a', b'a', 0),
    (b'aaa', b'aaaa', 3), (b'b', b'ab', 0),
])
def test_partial_stop_counts_what_may_become_the_end(text, stop, n):
    assert batching.partial_stop(text, [stop, b'z']) == n
