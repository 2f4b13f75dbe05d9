"""The interface of a decoder. `sampling/graph.py` and `lite/decoder.py` implement it.

A third engine is another subclass, a branch in `sampling/engines.py`, and a value of EngineOptions.
"""

import abc
import collections

import numpy as np

from gpt2 import runtime

CACHE_POSITIONS = 128  # a KV cache grows by so many positions: growing copies it


class Scores(collections.namedtuple('Scores', 'logprobs top_tokens top_logprobs')):
    """How likely tokens were, natural logarithms.

    logprobs: of the tokens under the model, and under the distribution that they were drawn from,
      float32 [B, N, 2].
    top_tokens, top_logprobs: the likeliest tokens under the model at each place, int32 [B, N, n],
      and their log probabilities, float32 [B, N, n].
    """

    def of_row(self, row):
        """Return the Scores of a row as lists."""
        return Scores(*(values[row].tolist() for values in self))


class Decoder(abc.ABC):
    """Continues a batch of texts a few tokens at a time; keys and values stay in its KV cache.

        decoder.reset(2)                      # two rows
        decoder.prefill([0, 1], prompt)       # the same prompt in both
        tokens, _ = decoder.decode(8, options, uniforms)
        decoder.prefill([1], another)         # row 1 gets another text, row 0 continues
        tokens, _ = decoder.decode(8, options, uniforms)

    What holds for every decoder:

    - A row's tokens depend on its own prompt, uniforms and options alone: not on its neighbours,
      on its row, or on how its tokens are divided into calls of `decode`.
    - Every row must have been prefilled before `decode`.
    - An error or Ctrl-C between two calls leaves it usable: `reset` starts over.
    """

    engine = None  # its name, 'graph' or 'lite'

    def __init__(self, model_dir):
        self.model_dir, self.hparams = model_dir, model_dir.hparams
        self._position = None  # of the next token that each row reads, int [B]

    @abc.abstractmethod
    def reset(self, n_rows):
        """Start a batch of rows without texts. What was in the cache is lost."""

    @abc.abstractmethod
    def prefill(self, rows, prompt):
        """Replace what some rows of the batch hold by a prompt, a list of token ids.

        Raises ValueError if the prompt is empty, longer than the window, or has an unknown id.
        """

    @abc.abstractmethod
    def decode(self, length, options, uniforms=None, stop_token=None, logprobs=False, n_top=0):
        """Continue every row by `length` tokens, or fewer (but at least one) if all are done.

        Args:
          options: SamplingOptions.
          uniforms: float32 [B, length, 2R] from `rng.draw_uniforms`; None at temperature 0.
          stop_token: a row is done once it has produced this id, and then repeats it.
          logprobs: whether to return Scores.
          n_top: how many likeliest tokens these have, at most n_vocab.

        Returns:
          The tokens, int32 [B, N], N <= length; and their Scores, or None without logprobs.

        Raises ValueError if a row would go beyond the window, and ModelError if a logit is not a
        finite number.
        """

    @property
    def remaining(self):
        """How many more tokens fit each row's window, int [B]."""
        return self.hparams.n_ctx - self._position

    def close(self):  # noqa: B027 (not every decoder has something to release)
        """Release what the decoder holds."""

    def _check_prompt(self, prompt):
        """Raise ValueError unless `prefill` can read a prompt."""
        n_vocab, n_ctx = self.hparams.n_vocab, self.hparams.n_ctx
        if not prompt:
            raise ValueError('a prompt has no tokens')
        if len(prompt) > n_ctx:
            raise ValueError(f'a prompt has {len(prompt)} tokens, but the window has {n_ctx}')
        if not 0 <= min(prompt) <= max(prompt) < n_vocab:
            raise ValueError(f'a prompt has an id that is not in 0 to {n_vocab - 1}')

    def _check_length(self, length):
        """Raise ValueError if `decode` would go beyond the window."""
        if length > self.remaining.min():
            raise ValueError(f'{length} more tokens do not fit the window of {self.hparams.n_ctx}: '
                             f'{self.remaining.min()} remain')

    def _start_rows(self, n_rows):
        self._position = np.zeros(n_rows, dtype=int)

    def _require_memory(self, n_positions):
        """Raise MemoryError if there is too little for a cache of so many positions."""
        runtime.require_memory(8 * self.hparams.n_layer * self.hparams.n_embd * n_positions
                               * len(self._position))
