"""Texts that are made side by side, each started, ended and shown by itself.

`grow` keeps every row of a batch busy: when a text is done, the next one takes its row; when the
window of one is full, its most recent part is read again, and it goes on from there. This is an
approximation: what the model no longer sees, it forgets, and the positions start anew.
"""

import codecs
import collections
import functools
import itertools
import time

import numpy as np

import generation

CHUNK = 16  # tokens at a time where texts may end early, so that a row is not idle for longer

# When a text is done: after `length` new tokens, with the token `stop_token` (or None), or with the
# bytes `stop_at` in what it says (b'' for none).
Ends = collections.namedtuple('Ends', 'length stop_token stop_at')


class Text:
    """A sample as it grows.

    index: its number in the run.
    prompt: the ids that it continues.
    stream: its random numbers.
    tokens: the ids made so far; what ended it is the last.
    logprobs: the `sample.score` of each, if the Sampler gives them.
    ended: whether it has ended by itself; done: that, or it has its full length.
    """

    def __init__(self, index, prompt, stream=None, done=False):
        self.index, self.prompt, self.stream = index, prompt, stream
        self.tokens, self.logprobs = [], []
        self.ended, self.done = False, done
        self._bytes = bytearray()
        self._taken = self._sure = 0  # how many of the bytes were taken, and how many could be
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    @property
    def text(self):
        """What it says, without `<|endoftext|>` or whatever else ended it."""
        return self._bytes.decode('utf-8', 'replace')

    def take(self):
        """Returns what it says beyond what was taken before.

        Half a character is held back, and so is what may turn out to be part of the ending.
        """
        new, self._taken = self._bytes[self._taken:self._sure], self._sure
        return self._decoder.decode(new, self.done)

    def add(self, token, token_bytes, ends):
        """Adds a token to a text that is not done."""
        self.tokens.append(token)
        if token == ends.stop_token:
            self.ended = True
        else:
            first = max(0, len(self._bytes) - len(ends.stop_at) + 1)
            self._bytes += token_bytes
            end = self._bytes.find(ends.stop_at, first) if ends.stop_at else -1
            if end >= 0:
                self.ended = True
                del self._bytes[end:]
        self.done = self.ended or len(self.tokens) == ends.length
        self._sure = len(self._bytes)
        if ends.stop_at and not self.done:
            self._sure -= overlap(self._bytes, ends.stop_at)


def overlap(text, ending):
    """Returns how many bytes at the end of a text are the beginning of the ending."""
    return next((n for n in range(len(ending) - 1, 0, -1) if text.endswith(ending[:n])), 0)


def grow(sampler, encoder, prompts, *, seed, length, keep, batch_size, stop_at='', fill=False,
         chunk_seconds=0.5):
    """Makes a text of each prompt, batch_size at a time.

    A text depends on the seed, its index and its prompt alone. Neither its neighbours nor its row
    change it in any bit, as long as the batch has the same size.

    Args:
      sampler: of an engine. A text ends with its stop_token, if it has one.
      prompts: an iterable of (index, ids).
      seed: of the run, an int >= 0.
      length: new tokens of a text that does not end by itself.
      keep: how many of its last tokens a text goes on from when its window is full, 1 to n_ctx.
      stop_at: a text ends before these characters, if it is not ''.
      fill: whether the batch has batch_size rows even if there are fewer texts to make.
      chunk_seconds: how long it takes, about and at most, until there is more of the texts. The
        first token comes as soon as it is made.

    Yields:
      A list of Texts in the order of the prompts: all that were begun and had not been in the list
      as done before.
    """
    ends = Ends(length, sampler.stop_token, stop_at.encode('utf-8'))

    @functools.lru_cache(maxsize=None)  # decoding costs more than it seems, token by token
    def token_bytes(token):
        return encoder.decode_bytes([token])

    most = CHUNK if stop_at or sampler.stop_token is not None else length
    texts = (Text(index, prompt, generation.random_stream(seed, index))
             for index, prompt in prompts)
    rows, begun, chunk = [], collections.deque(), 1
    while True:
        begun.extend(refill(sampler, rows, texts, batch_size, fill))
        if all(text.done for text in rows):
            return
        n = min(chunk, most, sampler.room.min(),
                min(length - len(text.tokens) for text in rows if not text.done))
        began = time.perf_counter()
        tokens = sampler.decode(n, None if sampler.greedy else uniforms(sampler, rows, n))
        rate = tokens.shape[1] / (time.perf_counter() - began)
        chunk = max(1, min(2 * chunk, int(rate * chunk_seconds)))
        scores = np.full(tokens.shape, None) if sampler.logprobs is None else sampler.logprobs
        for text, *new in zip(rows, tokens.tolist(), scores.tolist()):
            extend(text, *new, token_bytes, ends)
        yield list(begun)
        while begun and begun[0].done:
            begun.popleft()
        reread(sampler, rows, keep)


def refill(sampler, rows, texts, batch_size, fill):
    """Gives each row whose text is done the next one. Returns those that were begun."""
    free = [row for row, text in enumerate(rows) if text.done]
    anew = len(free) == len(rows)
    new = list(itertools.islice(texts, batch_size if anew else len(free)))
    idle = [Text(None, [0], done=True)]
    if anew and new:
        rows[:] = new + idle * (batch_size - len(new) if fill else 0)
        sampler.start([text.prompt for text in rows])
    elif not anew:
        given = new + idle * (len(free) - len(new))
        for row, text in zip(free, given):
            rows[row] = text
        for prompt, numbers in generation.rows_by_prompt([text.prompt for text in given]):
            sampler.read([free[number] for number in numbers], prompt)
    return new


def uniforms(sampler, rows, n):
    """Returns the random numbers of the rows' next n tokens, float32 [B, n, 2R]."""
    n_vocab = sampler.hparams.n_vocab
    numbers = np.full([len(rows), n, 2 * generation.grid_side(n_vocab)], 0.5, np.float32)
    growing = [row for row, text in enumerate(rows) if not text.done]
    numbers[growing] = generation.random_uniforms([rows[row].stream for row in growing], n, n_vocab)
    return numbers


def extend(text, tokens, scores, token_bytes, ends):
    """Adds tokens, and their scores if there are any, to a text until it is done.

    Args:
      token_bytes: a function from a token to its bytes.
    """
    for token, score in zip(tokens, scores):
        if text.done:
            return
        text.add(token, token_bytes(token), ends)
        if score is not None:
            text.logprobs.append(score)


def reread(sampler, rows, keep):
    """Makes room where the window is full: the text goes on from its last tokens alone."""
    for row in np.flatnonzero(sampler.room == 0):
        if not rows[row].done:
            sampler.read([row], (rows[row].prompt + rows[row].tokens)[-keep:])
