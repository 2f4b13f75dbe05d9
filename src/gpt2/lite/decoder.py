"""The lite decoder: the model of `model.py` on CPUs by TensorFlow Lite, a part of TensorFlow 2.

The subgraphs between attentions hold all weights, as float32 or int8. They treat each token
independently, so they take any number of tokens of any texts. Attention has no weights: it is done
here, in NumPy, where the KV cache is; and so is the choice of the next token.

TensorFlow itself is not imported: that takes longer than a short text does.

Letters in the shape comments are those of `model.py`.
"""

import functools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt2 import checkpoint, runtime
from gpt2.lite import logits as lite_logits
from gpt2.lite.interpreter import Subgraph
from gpt2.sampling.decoder import CACHE_POSITIONS, Decoder, Scores

PROMPT_TOKENS = 256  # of a prompt to read at a time
THREAD_SCORES = 2 ** 12  # scores of attention that are worth a thread


class LiteDecoder(Decoder):
    """A Decoder on exported subgraphs."""

    engine = 'lite'

    def __init__(self, folder, model_dir):
        """Load the subgraphs of a folder that `export` has written."""
        super().__init__(model_dir)
        hparams = self.hparams
        runtime.require_memory(sum(entry.stat().st_size for entry in os.scandir(folder)
                                   if entry.name.endswith('.tflite')))

        def load(name):
            return Subgraph(os.path.join(folder, f'{name}.tflite'))
        *self._blocks, self._last = [load(f'part{i}') for i in range(hparams.n_layer + 1)]
        n_slices = sum(name.startswith('head') for name in os.listdir(folder))
        self._lm_head = [load(f'head{i}') for i in range(n_slices)]
        self._wte = RowReader(os.path.join(folder, 'wte.npy'))
        self._wpe = np.load(os.path.join(folder, 'wpe.npy'))
        self._threads = ThreadPoolExecutor(runtime.processors())

    def reset(self, n_rows):
        self._start_rows(n_rows)
        self._require_memory(CACHE_POSITIONS)
        self._token = np.zeros(n_rows, dtype=int)
        self._done = np.zeros(n_rows, dtype=bool)
        self._texts = [[] for _ in range(n_rows)]
        self._cache = [self._empty_cache(0) for _ in self._blocks]

    def prefill(self, rows, prompt):
        self._check_prompt(prompt)
        n_read, row = len(prompt) - 1, rows[0]
        self._make_room(n_read)
        cache = [cached[:, row:row + 1] for cached in self._cache]
        for first in range(0, n_read, PROMPT_TOKENS):
            tokens = np.array([prompt[first:min(first + PROMPT_TOKENS, n_read)]])
            self._forward(tokens, np.array([first]), cache)
        for cached in self._cache:
            cached[:, rows[1:], :, :n_read] = cached[:, row:row + 1, :, :n_read]
        for row in rows:
            self._texts[row] = list(prompt)
        self._token[rows] = prompt[-1]
        self._position[rows] = n_read
        self._done[rows] = False

    def decode(self, length, options, uniforms=None, stop_token=None, logprobs=False, n_top=0):
        self._check_length(length)
        self._make_room(self._position.max() + length)
        tokens, scores = [], []
        while len(tokens) < length and not (tokens and self._done.all()):
            x, a = self._forward(self._token[:, np.newaxis], self._position, self._cache)
            logits = self._logits(x, a)
            if not np.isfinite(logits.sum()):
                raise checkpoint.non_finite_error(self.model_dir)
            processed = lite_logits.process_logits(
                lite_logits.penalize(logits, self._texts, options), options)
            token = lite_logits.sample_token(
                processed, None if options.greedy else uniforms[:, len(tokens)], options)
            if logprobs:
                scores.append((lite_logits.token_logprobs(logits, processed, token, options),
                               *lite_logits.top_logprobs(logits, n_top)))
            if stop_token is not None:
                token = np.where(self._done, stop_token, token)
                self._done |= token == stop_token
            for text, new in zip(self._texts, token.tolist()):
                text.append(new)
            tokens.append(token)
            self._token = token
            self._position += 1
        return (np.stack(tokens, axis=1).astype(np.int32),
                Scores(*(np.stack(values, axis=1) for values in zip(*scores))) if scores else None)

    def close(self):
        self._threads.shutdown()
        self._wte.close()

    def _forward(self, tokens, firsts, cache):
        """Read tokens int [B, S] at positions from firsts int [B]; write to the cache.

        Returns the input of the last block and what its heads attend to, [N, E] each.
        """
        n_batch, n_seq = tokens.shape
        n_embd, n_head = self.hparams.n_embd, self.hparams.n_head
        positions = firsts[:, np.newaxis] + np.arange(n_seq)
        mask = causal_mask(positions[0]) if n_seq > 1 else None
        # Rows of different lengths attend one by one: to no more than their own positions, and with
        # results that do not depend, in any bit, on how long the others are.
        n_group = n_batch if (firsts == firsts[0]).all() else 1
        groups = [(slice(row, row + n_group), firsts[row], firsts[row] + n_seq)
                  for row in range(0, n_batch, n_group)]
        heads = head_slices(n_head, n_batch * n_head * n_seq * (firsts.max() + n_seq))

        wte = self._wte.read(tokens.ravel()).reshape([n_batch, n_seq, n_embd])
        x, a = (wte + self._wpe[positions]).reshape([-1, n_embd]), None
        attended = np.empty([n_batch, n_seq, n_head, n_embd // n_head], np.float32)
        for block, cached in zip(self._blocks, cache):
            x, c = block(x, a)
            qkv = c.reshape([n_batch, n_seq, 3, n_head, -1]).transpose([2, 0, 3, 1, 4])
            self._run(functools.partial(attend, qkv, cached, attended, groups, mask), heads)
            a = attended.reshape([-1, n_embd])
        return x, a

    def _run(self, function, args):
        """Call a function with each of the args: here with the first, in threads with others."""
        others = [self._threads.submit(function, arg) for arg in args[1:]]
        function(args[0])
        for other in others:
            other.result()

    def _logits(self, x, a):
        """Compute what follows the last block's attention: [N, E] each -> [N, V]."""
        h, = self._last(x, a)
        return np.concatenate([logits for part in self._lm_head for logits in part(h)], axis=1)

    def _empty_cache(self, n):
        """Return an empty cache of a layer for n positions, float32 [2, B, H, T, D]."""
        width = self.hparams.n_embd // self.hparams.n_head
        return np.zeros([2, len(self._token), self.hparams.n_head, n, width], np.float32)

    def _make_room(self, n):
        """Grow the cache, if need be, to n positions or more."""
        missing = n - self._cache[0].shape[-2]
        if missing > 0:
            n_more = math.ceil(missing / CACHE_POSITIONS) * CACHE_POSITIONS
            self._require_memory(n_more)
            more = self._empty_cache(n_more)
            for layer, cached in enumerate(self._cache):  # one after another, to need less memory
                self._cache[layer] = np.concatenate([cached, more], axis=-2)


class RowReader:
    """Reads rows of a large matrix in a file of NumPy's.

    Mapped into memory, the file would count as memory of this process, of which each row that is
    read takes up to 2 MB.
    """

    def __init__(self, path):
        array = np.load(path, mmap_mode='r')
        self._start, self._width, self._dtype = array.offset, array.shape[1], array.dtype
        self._file = open(path, 'rb', buffering=0)

    def read(self, indices):
        """Return the rows of these indices, int [n]."""
        rows = np.empty([len(indices), self._width], self._dtype)
        for row, index in zip(rows, indices.tolist()):
            self._file.seek(self._start + index * row.nbytes)
            self._file.readinto(row)
        return rows

    def close(self):
        """Close the file."""
        self._file.close()


def causal_mask(positions):
    """As `model.causal_mask`, of queries at these positions [S]: [S, T]."""
    later = np.arange(positions[-1] + 1) > positions[:, np.newaxis]
    return np.where(later, np.float32(-np.inf), np.float32(0))


def attention(q, k, v, mask):
    """As `model.attention`, on arrays."""
    scores = np.matmul(q * np.float32(q.shape[-1] ** -0.5), k.swapaxes(-1, -2))  # [B, H, S, T]
    if mask is not None:
        scores += mask
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.matmul(scores, v)


def attend(qkv, cached, out, groups, mask, heads):
    """Do the attention of a slice of heads of a block: cache new keys and values, attend to all.

    From qkv [3, B, H, S, D] of this call and the cached keys and values [2, B, H, T, D], which are
    written to, into `out` [B, S, H, D]. `groups` has a slice of rows, and the positions where
    their S tokens begin and end, for each group.
    """
    for rows, first, end in groups:
        cached[:, rows, heads, first:end] = qkv[1:, rows, heads]
        keys, values = cached[:, rows, heads, :end]
        out[rows, :, heads] = attention(qkv[0, rows, heads], keys, values, mask).swapaxes(1, 2)


def head_slices(n_head, n_scores):
    """Divide the heads of a block, with n_scores in all, into a slice for each thread."""
    n = max(1, min(runtime.processors(), n_head, n_scores // THREAD_SCORES))
    bounds = [n_head * i // n for i in range(n + 1)]
    return [slice(first, end) for first, end in zip(bounds, bounds[1:])]
