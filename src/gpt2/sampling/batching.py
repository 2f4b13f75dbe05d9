"""Continuous batching: many texts made side by side, each admitted, finished and shown on its own.

`generate` keeps every row of a batch busy. When a text is finished, the next one takes its row.
When the window of a text is full, the window slides: the text continues from its last tokens, which
are read again as if it began there. What came before them is forgotten.
"""

import codecs
import collections
import functools
import itertools
import time

import numpy as np

from gpt2.options import as_tuple
from gpt2.sampling import rng

CHUNK = 16  # tokens at a time where texts may end early, so that no row is idle for longer

# What ends a text: `length` new tokens, the id `token` (or None), or one of the byte strings
# `stops`.
StopCriteria = collections.namedtuple('StopCriteria', 'length token stops')


class Sequence:
    """A text as it grows, number `index` of the run, from a prompt of ids.

    tokens: the new ids; the last of a finished text may be `<|endoftext|>`.
    logprobs: the two log probabilities of each token, if they are computed.
    top_logprobs: the likeliest tokens at its place, (id, log probability) each, if asked for.
    done, ended: whether it is finished, and whether by something other than its length.
    """

    def __init__(self, index, prompt, generator=None, done=False):
        self.index, self.prompt, self.rng = index, prompt, generator
        self.tokens, self.logprobs, self.top_logprobs, self._bytes = [], [], [], bytearray()
        self.ended, self.done = False, done
        self._n_streamed = self._n_stable = 0  # bytes that were streamed, and that may be
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    @property
    def text(self):
        """The text without its prompt and without what ended it."""
        return self._bytes.decode('utf-8', 'replace')

    @property
    def finish_reason(self):
        """Why a finished text ended: 'stop', or 'length' if it was cut."""
        return 'stop' if self.ended else 'length'

    def scores_as_lists(self):
        """Return the Scores of the tokens as lists, None if they were not computed."""
        if not self.logprobs:
            return None
        tops = [list(zip(*place)) or [(), ()] for place in self.top_logprobs]
        return [self.logprobs, [tokens for tokens, _ in tops], [values for _, values in tops]]

    def stream(self):
        """Return the text since the last call; hold back half a character or half a `stop_at`."""
        new, self._n_streamed = self._bytes[self._n_streamed:self._n_stable], self._n_stable
        return self._decoder.decode(new, self.done)

    def append(self, token, token_bytes, criteria):
        """Add a token to a text that is not finished."""
        self.tokens.append(token)
        self.ended = token == criteria.token
        if not self.ended:
            self._append_bytes(token_bytes, criteria.stops)
        self.done = self.ended or len(self.tokens) == criteria.length
        n_held = 0 if self.done else partial_stop(self._bytes, criteria.stops)
        self._n_stable = len(self._bytes) - n_held

    def _append_bytes(self, token_bytes, stops):
        old_size = len(self._bytes)
        self._bytes += token_bytes
        places = [(self._bytes.find(stop, max(0, old_size - len(stop) + 1)), stop)
                  for stop in stops]
        ends = [(place + len(stop), place) for place, stop in places if place >= 0]
        if ends:  # the stop that is complete first, however the text is cut into tokens
            self.ended = True
            del self._bytes[min(ends)[1]:]


def partial_stop(text, stops):
    """Return how many bytes at the end of a text are the beginning of one of the stops."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
               default=0)


def stop_criteria(options, encoder):
    """Return the StopCriteria of GenerationOptions."""
    return StopCriteria(options.length, encoder.end_of_text if options.stop else None,
                        [text.encode('utf-8') for text in as_tuple(options.stop_at)])


def cached_token_bytes(encoder):
    """Return a function from a token to its bytes."""
    return functools.lru_cache(maxsize=None)(lambda token: encoder.decode_bytes([token]))


def generate(decoder, encoder, prompts, options, sampling, *, batch_size, fill=False,
             chunk_seconds=0.5):
    """Continue prompts, an iterable of (index, ids), batch_size at a time.

    A text depends on the seed, its index and its prompt alone. Neither its neighbours nor its row
    change a bit of it, as long as the batch has the same size.

    Args:
      options: GenerationOptions with seed, length and keep.
      fill: whether the batch has batch_size rows even if there are fewer texts.
      chunk_seconds: about the longest time without progress; the first token is shown at once.

    Yields:
      A list of Sequences in the order of the prompts: all that were admitted, without those that
      an earlier list had as done from its beginning on.
    """
    criteria = stop_criteria(options, encoder)
    most = CHUNK if options.stop_at or options.stop else options.length
    n_top = min(options.n_top, decoder.hparams.n_vocab)
    token_bytes = cached_token_bytes(encoder)
    waiting = (Sequence(index, prompt, rng.sample_rng(options.seed, index))
               for index, prompt in prompts)
    rows, admitted, chunk = [], collections.deque(), 1
    while True:
        admitted.extend(admit(decoder, rows, waiting, batch_size, fill))
        if all(sequence.done for sequence in rows):
            return
        n = min(chunk, most, decoder.remaining.min(),
                min(options.length - len(row.tokens) for row in rows if not row.done))
        start = time.perf_counter()
        uniforms = None if sampling.greedy else draw_uniforms(rows, n, decoder.hparams.n_vocab)
        tokens, scores = decoder.decode(n, sampling, uniforms, criteria.token,
                                        logprobs=bool(options.logprobs), n_top=n_top)
        rate = tokens.shape[1] / (time.perf_counter() - start)
        chunk = max(1, min(2 * chunk, int(rate * chunk_seconds)))
        for row, sequence in enumerate(rows):
            extend(sequence, tokens[row].tolist(), scores and scores.of_row(row), token_bytes,
                   criteria)
        yield list(admitted)
        while admitted and admitted[0].done:
            admitted.popleft()
        slide_windows(decoder, rows, options.keep)


def admit(decoder, rows, waiting, batch_size, fill):
    """Give each row whose text is finished a waiting one. Return those that were admitted."""
    free = [row for row, sequence in enumerate(rows) if sequence.done]
    is_new_batch = len(free) == len(rows)
    new = list(itertools.islice(waiting, batch_size if is_new_batch else len(free)))
    if is_new_batch:
        n_rows = batch_size if fill and new else len(new)
        free, rows[:] = list(range(n_rows)), [None] * n_rows
        if new:
            decoder.reset(n_rows)
    # A row without a text repeats a short one, so that it costs little.
    idle = [Sequence(None, [0], done=True) for _ in range(len(free) - len(new))]
    rows_by_prompt = collections.OrderedDict()
    for row, sequence in zip(free, new + idle):
        rows[row] = sequence
        rows_by_prompt.setdefault(tuple(sequence.prompt), []).append(row)
    for prompt, same in rows_by_prompt.items():  # equal prompts are read once
        decoder.prefill(same, list(prompt))
    return new


def draw_uniforms(rows, n, n_vocab):
    """Return the random numbers for the rows' next n tokens, float32 [B, n, 2R]."""
    uniforms = np.full([len(rows), n, 2 * rng.grid_side(n_vocab)], 0.5, np.float32)
    active = [row for row, sequence in enumerate(rows) if not sequence.done]
    uniforms[active] = rng.draw_uniforms([rows[row].rng for row in active], n, n_vocab)
    return uniforms


def extend(sequence, tokens, scores, token_bytes, criteria):
    """Append tokens, and their Scores as lists if there are any, until a text is finished."""
    for i, token in enumerate(tokens):
        if sequence.done:
            return
        sequence.append(token, token_bytes(token), criteria)
        if scores is not None:
            sequence.logprobs.append(scores.logprobs[i])
            sequence.top_logprobs.append(list(zip(scores.top_tokens[i], scores.top_logprobs[i])))


def slide_windows(decoder, rows, keep):
    """Where the window is full, continue the text from its last `keep` tokens alone."""
    for row in np.flatnonzero(decoder.remaining == 0):
        if not rows[row].done:
            decoder.prefill([row], (rows[row].prompt + rows[row].tokens)[-keep:])


def finished(batches):
    """Yield the Sequences that `generate` has finished, in order, in lists."""
    for batch in batches:
        yield list(itertools.takewhile(lambda sequence: sequence.done, batch))
