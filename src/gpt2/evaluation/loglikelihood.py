"""Log likelihoods: how probable a model finds each token of a text, and how it ranks it.

    tokens -> windows -> batches of windows -> log probability and rank of each token

Letters in the shape comments are those of `model.py`; M is the number of tokens that are scored.
"""

import collections
import dataclasses
import functools
import itertools
import math
from typing import List, Optional, Sequence

import numpy as np
from tqdm import tqdm

from gpt2 import checkpoint, runtime
from gpt2.errors import OptionError
from gpt2.options import whole

LOGITS_CHUNK = 256  # positions whose logits exist at once: 51 MB with the vocabulary of GPT-2

# A part of a text that the model reads at once. It reads tokens[start:end] and predicts
# tokens[start + 1:end + 1], of which those from tokens[first] on are scored.
Window = collections.namedtuple('Window', 'start end first')

# The scores of n tokens: `logprobs` float32 [n], natural logarithms; `ranks` int32 [n], 1 for the
# likeliest; `filtered_ranks` int32 [n], the same among the allowed tokens. Of a Scorer with a
# `top`, also the model's expectation at each place: its `entropies` float32 [n], in nats, its
# likeliest tokens, `top_tokens` int32 [n, top] with their `top_logprobs` float32 [n, top], and
# `variances` float32 [n], in square nats, of the log probability of a token that the model draws.
Scores = collections.namedtuple(
    'Scores', 'logprobs ranks filtered_ranks entropies top_tokens top_logprobs variances',
    defaults=[(), (), (), ()])


@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows that are read at once.

    index: a number that no other batch of a Scorer has.
    tokens: int32 [B, S], a window in each row, padded at its end.
    positions: whole numbers [M] into B x S; what follows there is scored.
    targets: int32 [M], the tokens that follow there.
    scores: once it is done, a list with those parts of the targets' Scores that are computed.
    """

    index: int
    tokens: np.ndarray
    positions: Sequence[int]
    targets: np.ndarray
    scores: Optional[List[np.ndarray]] = None

    @property
    def done(self):
        """Whether it has been scored."""
        return self.scores is not None


def zero_scores(n, top):
    """Return the Scores of n tokens, all of them zeros, as those of a Scorer with this `top`."""
    floats, ints = np.zeros(n, np.float32), np.zeros(n, np.int32)
    scores = Scores(floats, ints, ints.copy())
    return scores if top is None else scores._replace(
        entropies=floats.copy(), top_tokens=np.zeros([n, top], np.int32),
        top_logprobs=np.zeros([n, top], np.float32), variances=floats.copy())


def total_logprob(scores):
    """Return the log probability of all tokens together, in nats."""
    return float(scores.logprobs.sum(dtype=np.float64))


def exp(nats):
    """Return e to the power of a number; None if that is too large for a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return None


def rolling_windows(n_tokens, n_ctx, stride, first):
    """Yield the Windows that score tokens `first` (1 or more) to n_tokens - 1, each exactly once.

    The first window scores all that it predicts from `first` on. Each further one begins `stride`
    tokens later, 1 to n_ctx, and scores those that no earlier one has: `stride` of them, or what is
    left. So a token beyond the first window has more than n_ctx - stride tokens before it.
    """
    for start in range(0, n_tokens, stride):
        end = min(start + n_ctx, n_tokens - 1)
        if first <= end:
            yield Window(start, end, first)
            first = end + 1


def check_stride(stride, n_ctx):
    """Raise OptionError if a stride does not suit a model with a window of n_ctx tokens."""
    kind = whole(1, n_ctx)
    if not kind.accepts(stride):
        raise OptionError('stride', f'must be {kind.wanted}, the window of the model, not {stride}')


def batches(windows, n_tokens):
    """Yield lists of windows of similar length that have up to n_tokens together."""
    # The longest come first: if there is too little memory for one, that shows at once.
    windows = sorted(windows, key=lambda window: window.start - window.end)
    while windows:
        n = max(1, n_tokens // (windows[0].end - windows[0].start))
        yield windows[:n]
        windows = windows[n:]


def scored_places(windows):
    """Return the places in the text of the tokens that windows score, window by window."""
    return [i for _, end, first in windows for i in range(first, end + 1)]


def as_batch(index, windows, text):
    """Return windows, the longest one first, of a text, int32 [n], as the Batch of an index."""
    width = windows[0].end - windows[0].start
    tokens = np.zeros([len(windows), width], np.int32)  # padded; no token sees padding
    positions = []
    for row, (start, end, first) in enumerate(windows):
        tokens[row, :end - start] = text[start:end]
        positions.extend(row * width + i - start - 1 for i in range(first, end + 1))
    return Batch(index, tokens, positions, text[scored_places(windows)])


class Scorer:
    """Scores texts by a model. It holds a graph and a session until `close()`."""

    def __init__(self, model_dir, allowed=None, top=None, progress=False, score_batches=None):
        """Load the model, unless others score. Raises ModelError if its weights cannot be read.

        Only the `allowed` tokens, bool [V], count for `filtered_ranks`; None allows all. With a
        `top`, 0 to V, the Scores have entropies, variances and that many of the likeliest tokens.
        `progress` shows a progress bar on stderr if that is a terminal. `score_batches`, a function
        from Batches to an iterator over them in their order, done, lets others score.
        """
        self.n_ctx, self._top = model_dir.hparams.n_ctx, top
        self._end_of_text = model_dir.encoder.end_of_text
        self._hide_progress = None if progress else True  # None: tqdm hides it off a terminal
        self._indices = itertools.count()
        self._graph = None if score_batches else BatchScorer(model_dir, allowed, top)
        self._score_batches = score_batches or functools.partial(map, self._graph.score)

    def close(self):
        """Free the session. The Scorer cannot be used any more."""
        if self._graph:
            self._graph.close()

    def logits(self, tokens):
        """Return the logits of what follows each of S tokens, 1 to n_ctx: float32 [S, V]."""
        return self._graph.logits(tokens)

    def loglikelihood_rolling(self, texts, batch_size=1, stride=32):
        """Return the Scores of whole texts, lists of token ids; otherwise see `loglikelihood`."""
        return self.loglikelihood([([], text) for text in texts], batch_size, stride)

    def loglikelihood(self, pairs, batch_size=1, stride=32):
        """Return the Scores of each target after its context; both are lists of token ids.

        <|endoftext|> stands before each context. If context and target are longer than the window
        of the model, the beginning is left out; a target that is itself longer is read in windows.
        Windows advance by `stride` tokens, 1 to n_ctx. `batch_size` windows of n_ctx tokens, or as
        many tokens in shorter ones, are read at a time.
        """
        check_stride(stride, self.n_ctx)
        text, ends, windows = [], [], []  # all in one text; where each pair ends in it
        for context, target in pairs:
            pair = [self._end_of_text, *context, *target][-1 - max(self.n_ctx, len(target)):]
            windows += [Window(*(len(text) + index for index in window)) for window in
                        rolling_windows(len(pair), self.n_ctx, stride, len(pair) - len(target))]
            text += pair
            ends.append(len(text))
        scores = self._score_windows(np.array(text, np.int32), windows, batch_size * self.n_ctx)
        return [Scores(*(values[end - len(target):end] for values in scores))
                for end, (_, target) in zip(ends, pairs)]

    def _score_windows(self, text, windows, batch_tokens):
        """Return the Scores of all tokens of a text, int32 [n]; zeros of those in no window."""
        scores, groups = zero_scores(len(text), self._top), list(batches(windows, batch_tokens))
        with tqdm(total=sum(end - start for start, end, _ in windows), unit='token',
                  unit_scale=True, leave=False, disable=self._hide_progress) as progress:
            done = self._score_batches(
                as_batch(next(self._indices), group, text) for group in groups)
            for batch, group in zip(done, groups):
                places = scored_places(group)
                for values, new in zip(scores, batch.scores):
                    values[places] = new
                progress.update(sum(end - start for start, end, _ in group))
        return scores


class BatchScorer:
    """The model in a graph, with a session, that scores Batches."""

    def __init__(self, model_dir, allowed, top):
        """Build the graph and restore the weights. Arguments and errors as those of a Scorer."""
        tf = runtime.import_tensorflow()
        import model
        self._model_dir, hparams = model_dir, model_dir.hparams
        with tf.Graph().as_default(), model.variables():
            self._tokens = tf.placeholder(tf.int32, [None, None])  # [B, S], a window in each row
            self._positions = tf.placeholder(tf.int32, [None])  # [M], indices into B x S
            self._targets = tf.placeholder(tf.int32, [None])  # [M], the tokens that follow
            h = tf.reshape(model.hidden_states(hparams, self._tokens), [-1, hparams.n_embd])
            self._hidden = tf.gather(h, self._positions)  # [M, E]
            self._logits = model.lm_head(hparams, self._hidden)  # [M, V]
            self._scores = token_scores(self._logits, self._targets, allowed)
            if top is not None:
                self._scores += expectations(self._logits, top)
            self._session = tf.Session()
            checkpoint.restore(self._session, model_dir.path)

    def close(self):
        """Free the session."""
        self._session.close()

    def logits(self, tokens):
        """Return the logits of what follows each of S tokens, 1 to n_ctx: float32 [S, V]."""
        return self._check_finite(self._session.run(
            self._logits, {self._tokens: [tokens], self._positions: range(len(tokens))}))

    def score(self, batch):
        """Return a Batch with its scores, computing logits of a LOGITS_CHUNK at a time.

        Raises MemoryError, or ModelError if weights are not finite.
        """
        run, chunks = self._session.run, range(0, len(batch.targets), LOGITS_CHUNK)
        (n_rows, width), hparams = batch.tokens.shape, self._model_dir.hparams
        # At the same time at least: queries, keys and values, and the scores of attention.
        runtime.require_memory(4 * n_rows * width * (
            3 * hparams.n_embd + hparams.n_head * width))
        with runtime.memory_errors():
            hidden = run(self._hidden, {self._tokens: batch.tokens,
                                        self._positions: batch.positions})
            scores = [run(self._scores, {self._hidden: hidden[i:i + LOGITS_CHUNK],
                                         self._targets: batch.targets[i:i + LOGITS_CHUNK]})
                      for i in chunks]
        logprobs, *others = [np.concatenate(values) for values in zip(*scores)]
        return dataclasses.replace(batch, scores=[self._check_finite(logprobs), *others])

    def _check_finite(self, values):
        """Return an array of float32. Raises ModelError unless all of it are finite numbers."""
        if not np.isfinite(values).all():
            raise checkpoint.non_finite_error(self._model_dir)
        return values


def token_scores(logits, targets, allowed):
    """Return the log probabilities float32 [M], ranks and filtered ranks int32 [M] of targets [M].

    A rank is 1 + the number of tokens with a strictly larger logit [M, V], so tokens with equal
    logits share the better rank. A filtered rank counts only the allowed [V] among those tokens.
    """
    tf = runtime.import_tensorflow()
    target_logits = tf.gather_nd(logits, tf.stack([tf.range(tf.size(targets)), targets], axis=-1))
    larger = logits > target_logits[:, tf.newaxis]  # [M, V]
    ranks = [1 + tf.reduce_sum(tf.cast(counted, tf.int32), axis=-1)
             for counted in (larger, larger if allowed is None else larger & allowed)]
    return [target_logits - tf.reduce_logsumexp(logits, axis=-1), *ranks]


def expectations(logits, top):
    """Return the entropies, likeliest tokens and variances of distributions with logits [M, V].

    The entropies, in nats, are float32 [M]: H = -sum(p log p) (Shannon 1948). The tokens are int32
    [M, top], the lowest ids first among equals; their log probabilities float32 [M, top]. The
    variances are those of log p under p, float32 [M]: sum(p (log p + H)^2).
    """
    tf = runtime.import_tensorflow()
    logprobs = tf.nn.log_softmax(logits)
    p = tf.exp(logprobs)
    entropies = -tf.reduce_sum(p * logprobs, axis=-1)
    variances = tf.reduce_sum(p * tf.square(logprobs + entropies[:, tf.newaxis]), axis=-1)
    top_logprobs, top_tokens = tf.math.top_k(logprobs, top)
    return [entropies, top_tokens, top_logprobs, variances]
