"""Scoring: how probable a model finds each token of a text, and how it ranks it among all tokens.

    tokens -> windows -> batches of windows -> log probability and rank of each token

The hidden states of a batch of windows are computed at once, but the output layer only where a
token is to be scored, a few hundred places at a time: no more than that of the [B, S, V] logits
ever exists, and two or three numbers a token leave the graph.

Letters in the shape comments are those of `model.py`, and M is the number of tokens scored by a
call.
"""

import collections

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import checkpoint
import model

PLACES = 256  # of which logits exist at the same time: 51 MB with the vocabulary of GPT-2

# A stretch of a text that the model reads at once. It reads tokens[start:end] and predicts
# tokens[start + 1:end + 1], of which those from tokens[first] on are scored.
Window = collections.namedtuple('Window', 'start end first')

# The scores of n tokens: `log_probs` float32 [n], natural logarithms; `ranks` int32 [n], 1 for the
# likeliest; `filtered_ranks` int32 [n], the same among the tokens that may be chosen.
Scores = collections.namedtuple('Scores', 'log_probs ranks filtered_ranks')


def windows(n_tokens, n_ctx, stride, first=1):
    """Returns the Windows that score tokens `first` to n_tokens - 1 of a text, each exactly once.

    The first window scores all that it predicts. Each further one begins `stride` tokens later
    and scores the tokens that no window before has reached: `stride` of them, or what is left at
    the end. So a token beyond the first window has more than n_ctx - stride tokens before it.

    Args:
      stride: 1 to n_ctx.
      first: at least 1; what lies before is context alone.
    """
    result = []
    start = 0
    while first < n_tokens:
        end = min(start + n_ctx, n_tokens - 1)
        if first <= end:
            result.append(Window(start, end, first))
            first = end + 1
        start += stride
    return result


def batches(jobs, n_tokens):
    """Yields lists of jobs, pairs of a text's number and a Window, that take n_tokens together.

    Windows of like length share a batch. The longest come first: if memory is too small for one,
    that shows at once.
    """
    jobs = sorted(jobs, key=lambda job: job[1].start - job[1].end)
    while jobs:
        longest = jobs[0][1].end - jobs[0][1].start
        n = max(1, n_tokens // longest)
        yield jobs[:n]
        jobs = jobs[n:]


class Scorer:
    """The graph that scores tokens, and the session it runs in."""

    def __init__(self, opened, allowed=None):
        """Builds the graph and restores the weights.

        Args:
          opened: a checkpoint.Model.
          allowed: bool [V], the tokens that count for `filtered_ranks`; all of them if None.

        Raises:
          ModelError: the weights cannot be read.
        """
        hparams = opened.hparams
        self.n_ctx = hparams.n_ctx
        with tf.Graph().as_default():
            self._tokens = tf.placeholder(tf.int32, [None, None])  # [B, S]
            self._places = tf.placeholder(tf.int32, [None])  # [M], numbers of places in [B, S]
            self._targets = tf.placeholder(tf.int32, [None])  # [M]
            self._scores = score(hparams, self._tokens, self._places, self._targets, allowed)
            self._session = tf.Session()
            checkpoint.restore(self._session, opened.directory)

    def score(self, texts, batch_size, stride, firsts=None):
        """Scores the tokens of texts, with a progress bar on stderr if that is a terminal.

        Args:
          texts: lists of token ids, each with a token to start from, which is not scored.
          batch_size: windows of n_ctx tokens, or as much of shorter ones, to read at a time.
          stride: by which windows of a text longer than the model's move, 1 to n_ctx.
          firsts: the first token to score of each text, ints >= 1; 1 of each if None.

        Returns:
          Scores of each text, of its tokens from the first to score to the last.
        """
        firsts = firsts or [1] * len(texts)
        jobs = [(i, window) for i, (text, first) in enumerate(zip(texts, firsts))
                for window in windows(len(text), self.n_ctx, stride, first)]
        results = [Scores(*(np.zeros(max(len(text) - first, 0), kind)
                            for kind in (np.float32, np.int32, np.int32)))
                   for text, first in zip(texts, firsts)]
        total = sum(window.end - window.start for _, window in jobs)
        with tqdm(total=total, unit='token', unit_scale=True, leave=False,
                  disable=None) as progress:
            for batch in batches(jobs, batch_size * self.n_ctx):
                scores = self._run([(texts[i], window) for i, window in batch])
                for i, window in batch:
                    n = window.end + 1 - window.first
                    at = window.first - firsts[i]
                    for result, values in zip(results[i], scores):
                        result[at:at + n] = values[:n]
                    scores = [values[n:] for values in scores]
                    progress.update(window.end - window.start)
        return results

    def _run(self, batch):
        """Scores one batch of pairs of a text and a Window: returns Scores [M], row after row."""
        width = max(window.end - window.start for _, window in batch)
        tokens = np.zeros([len(batch), width], np.int32)  # no token sees what fills up its row
        places, targets = [], []
        for row, (text, window) in enumerate(batch):
            tokens[row, :window.end - window.start] = text[window.start:window.end]
            before = row * width - window.start - 1  # the place that predicts the text's token 0
            places.append(np.arange(before + window.first, before + window.end + 1))
            targets.append(text[window.first:window.end + 1])
        return self._session.run(self._scores, {self._tokens: tokens,
                                                self._places: np.concatenate(places),
                                                self._targets: np.concatenate(targets)})


def score(hparams, tokens, places, targets, allowed=None):
    """The graph that scores one batch.

    Args:
      tokens: int32 [B, S], a window in each row, from its first position on.
      places: int32 [M], numbers of places in [B, S], row after row, whose next token is scored.
      targets: int32 [M], these next tokens.
      allowed: bool [V], as in `Scorer`.

    Returns:
      Scores, each [M]. A rank is 1 + the number of tokens with a strictly larger logit, so equals
      share the better rank. A filtered rank counts the allowed among these.
    """
    n_places = tf.size(places)
    with model.variables():
        h = model.read_texts(hparams, tokens)
        h = tf.gather(tf.reshape(h, [-1, hparams.n_embd]), places)  # [M, E]
        wte, _ = model.embeddings(hparams)

    def score_some(begin, log_probs, ranks, filtered_ranks):
        end = tf.minimum(begin + PLACES, n_places)
        target = targets[begin:end]
        logits = tf.matmul(h[begin:end], wte, transpose_b=True)  # [m, V]
        target_logits = tf.gather_nd(logits, tf.stack([tf.range(end - begin), target], axis=-1))
        larger = logits > target_logits[:, tf.newaxis]
        rank = 1 + tf.reduce_sum(tf.cast(larger, tf.int32), axis=-1)
        filtered = rank
        if allowed is not None:
            filtered = 1 + tf.reduce_sum(tf.cast(larger & allowed, tf.int32), axis=-1)
        i = begin // PLACES
        return (end, log_probs.write(i, target_logits - tf.reduce_logsumexp(logits, axis=-1)),
                ranks.write(i, rank), filtered_ranks.write(i, filtered))

    n_parts = (n_places + PLACES - 1) // PLACES
    arrays = [tf.TensorArray(dtype, n_parts, infer_shape=False, element_shape=[None])
              for dtype in (tf.float32, tf.int32, tf.int32)]
    _, *arrays = tf.while_loop(lambda begin, *_: begin < n_places, score_some, (0, *arrays),
                               parallel_iterations=1, back_prop=False)
    return Scores(*(array.concat() for array in arrays))
