"""The CPU engine: the model of `model.py` run by TensorFlow Lite, which comes with TensorFlow 2.

`lite_converter.py` has made TensorFlow Lite models of what lies between the attention of one block
and that of the next, and of the output layer. They hold all the weights, as float32 or as int8, and
treat every token by itself, so they take any number of tokens of any texts. Attention has no
weights: it is done here, in NumPy, where the keys and values are; and so is the choice of the next
token.

TensorFlow itself is not imported: that takes longer than a short text does.

Letters in the shape comments are those of `model.py`.
"""

import ctypes
import functools
import glob
import hashlib
import importlib.util
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import checkpoint
import cli
import generation

DTYPES = ('float32', 'int8')
PROMPT_TOKENS = 256  # to read at a time
THREAD_SCORES = 2 ** 16  # of attention, that are worth a thread
FORMAT = 2  # of the converted models: a new one where lite_converter.py makes others


# Converted models

def tensorflow_version():
    """Returns the version of TensorFlow, if possible without importing it."""
    try:
        from importlib.metadata import version  # from Python 3.8 on
        return version('tensorflow')
    except ImportError:  # or a package of another name, such as tensorflow-cpu
        return cli.import_tensorflow().__version__


def converted_folder(directory, dtype):
    """Returns where the converted models of a model directory are, or would be.

    The name changes with the weights and hyperparameters, the version of TensorFlow, the format.
    """
    hparams = checkpoint.read_object(os.path.join(directory, 'hparams.json'))
    key = hashlib.sha256(repr([checkpoint.weights_digest(directory), sorted(hparams.items()),
                               tensorflow_version(), FORMAT]).encode('utf-8')).hexdigest()
    return os.path.join(directory, 'lite', '%s-%s' % (dtype, key[:16]))


@functools.lru_cache(maxsize=None)
def interpreter_library():
    """Loads the library of TensorFlow Lite's interpreter, without the rest of TensorFlow.

    From TensorFlow 2.20 on it stands alone inside the tensorflow package: loading it takes a
    fiftieth of a second and 16 MB, importing TensorFlow seconds and more than 500 MB.

    Raises:
      ImportError: it is not there.
    """
    package = os.path.dirname(importlib.util.find_spec('tensorflow').origin)
    name = '_pywrap_tensorflow_interpreter_wrapper'
    for path in glob.glob(os.path.join(glob.escape(package), 'lite', 'python', name + '.*')):
        spec = importlib.util.spec_from_file_location(name, path)
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        return library
    raise ImportError(name)


def open_interpreter(path):
    """Returns the interpreter of a TensorFlow Lite model, with XNNPACK's kernels."""
    try:
        if 'tensorflow' in sys.modules:  # it has loaded the library, which must not be there twice
            raise ImportError
        resolver, preserve_all, no_delegates, newest_kernels = 1, False, False, False  # defaults
        return interpreter_library().CreateWrapperFromFile(
            path, resolver, [], [], preserve_all, no_delegates, cli.processors(), newest_kernels)
    except (ImportError, TypeError):  # another TensorFlow has it elsewhere, or calls it otherwise
        lite = cli.import_tensorflow().lite
        return lite.Interpreter(path, num_threads=cli.processors())._interpreter


class Part:
    """A converted part: takes float32 arrays [N, E], for any N, and returns arrays [N, ...].

    What it returns lies in memory of its own, which the next call writes into.
    """

    def __init__(self, path):
        self._interpreter = open_interpreter(path)
        self._make_room(1)
        release(path)

    def __call__(self, *inputs):
        if len(inputs[0]) != len(self._inputs[0]):
            self._make_room(len(inputs[0]))
        for array, value in zip(self._inputs, inputs):
            array[...] = value
        self._interpreter.Invoke()
        return self._outputs

    def _make_room(self, n):
        """Makes the arrays that are its inputs and outputs, of n tokens."""
        self._inputs = [()]  # of no size, so that it is done again if it is interrupted
        part = self._interpreter
        inputs = sorted(part.InputIndices().tolist(), key=lambda index: part.TensorName(index, 0))
        for index in inputs:
            shape = [n, part.TensorSize(index, 0)[1]]
            part.ResizeInputTensor(index, np.array(shape, np.int32), False)
        part.AllocateTensors()
        self._outputs = [part.tensor(part, index, 0) for index in part.OutputIndices().tolist()]
        self._inputs = [part.tensor(part, index, 0) for index in inputs]


def release(path):
    """Lets go of the memory of a file that is mapped into this process.

    The kernels have packed the weights for themselves, and never read the file's own again. (If
    they did, the system would read them from the file anew.) For Linux; elsewhere nothing is done.
    """
    if not os.path.exists('/proc/self/maps'):
        return
    with open('/proc/self/maps', encoding='utf-8') as file:
        for line in file:
            if line.rstrip('\n').endswith(path):
                start, end = (int(address, 16) for address in line.split()[0].split('-'))
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)


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


def attend(qkv, slots, out, groups, mask, heads):
    """Does what some heads do in a block: they keep new keys and values, and attend to all.

    Args:
      qkv: queries, keys and values of this call, [3, B, H, S, D].
      slots: of the block, which are written to, [2, B, H, T, D].
      out: what is attended to, which is written to, [B, S, H, D].
      groups: a slice of rows, and the positions where their S tokens begin and end, of each group.
      heads: a slice.
    """
    for rows, first, end in groups:
        slots[:, rows, heads, first:end] = qkv[1:, rows, heads]
        keys, values = slots[:, rows, heads, :end]
        out[rows, :, heads] = attention(qkv[0, rows, heads], keys, values, mask).swapaxes(1, 2)


def shares(n_head, n_scores):
    """Cuts the heads of a block, with so many scores in all, into a slice for each thread."""
    n = max(1, min(cli.processors(), n_head, n_scores // THREAD_SCORES))
    bounds = [n_head * i // n for i in range(n + 1)]
    return [slice(first, end) for first, end in zip(bounds, bounds[1:])]


class Sampler:
    """Decodes a batch of texts a few tokens at a time, as `sample.Sampler` does."""

    engine = 'lite'

    def __init__(self, folder, hparams, *, temperature=1, top_k=0, top_p=1, stop_token=None,
                 logprobs=False):
        """Loads the converted models of a folder that `convert` has made."""
        self.hparams = hparams
        self.greedy = temperature == 0
        self.stop_token = stop_token
        self.logprobs = None

        def load(name):
            return Part(os.path.join(folder, name + '.tflite'))
        *self._parts, self._last = [load('part%d' % i) for i in range(hparams.n_layer + 1)]
        n_pieces = sum(name.startswith('head') for name in os.listdir(folder))
        self._head = [load('head%d' % i) for i in range(n_pieces)]
        self._wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
        self._wpe = np.load(os.path.join(folder, 'wpe.npy'))
        self._threads = ThreadPoolExecutor(cli.processors())
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        self._pick = functools.partial(pick, **options)
        self._score = functools.partial(score, **options) if logprobs else None

    @property
    def room(self):
        """How many tokens each row can still be continued by, int [B]."""
        return self.hparams.n_ctx - self._position

    def start(self, prompts):
        """Reads a batch of prompts, as `sample.Sampler.start`."""
        generation.check_prompts(self.hparams, prompts)
        self._token = np.zeros(len(prompts), dtype=int)
        self._position = np.zeros(len(prompts), dtype=int)
        self._done = np.zeros(len(prompts), dtype=bool)
        self._cache = [self._slots(0) for _ in self._parts]
        self._make_room(max(map(len, prompts)))
        for prompt, rows in generation.rows_by_prompt(prompts):
            self.read(rows, prompt)

    def read(self, rows, prompt):
        """Reads a prompt into some rows, as `sample.Sampler.read`."""
        generation.check_prompts(self.hparams, [prompt])
        n_read, row = len(prompt) - 1, rows[0]
        self._make_room(n_read)
        cache = [slots[:, row:row + 1] for slots in self._cache]
        for first in range(0, n_read, PROMPT_TOKENS):
            tokens = np.array([prompt[first:min(first + PROMPT_TOKENS, n_read)]])
            self._step(tokens, np.array([first]), cache)
        for slots in self._cache:
            slots[:, rows[1:], :, :n_read] = slots[:, row:row + 1, :, :n_read]
        self._token[rows] = prompt[-1]
        self._position[rows] = n_read
        self._done[rows] = False

    def decode(self, length, uniforms=None):
        """Continues every row, as `sample.Sampler.decode`."""
        generation.check_window(self.hparams, self._position.max() + 1, length)
        self._make_room(self._position.max() + length)
        tokens, scores = [], []
        while len(tokens) < length and not (tokens and self._done.all()):
            x, a = self._step(self._token[:, np.newaxis], self._position, self._cache)
            logits = self._logits(x, a)
            token = self._pick(logits, None if self.greedy else uniforms[:, len(tokens)])
            if self._score:
                scores.append(self._score(logits, token))
            if self.stop_token is not None:
                token = np.where(self._done, self.stop_token, token)
                self._done |= token == self.stop_token
            tokens.append(token)
            self._token = token
            self._position += 1
        self.logprobs = np.stack(scores, axis=1) if scores else None
        return np.stack(tokens, axis=1)

    def _step(self, tokens, firsts, cache):
        """Reads tokens int [B, S], the next ones of each row, at positions from firsts int [B] on.

        Args:
          cache: the slots of each layer, which are written to.

        Returns:
          The input of the last block and what its heads attend to, [N, E] each.
        """
        n_batch, n_seq = tokens.shape
        n_embd, n_head = self.hparams.n_embd, self.hparams.n_head
        positions = firsts[:, np.newaxis] + np.arange(n_seq)
        mask = causal_mask(positions[0]) if n_seq > 1 else None
        # Rows of different lengths attend one by one: to no more than their own slots, and with
        # results that do not depend, in any bit, on how long the others are.
        n_group = n_batch if (firsts == firsts[0]).all() else 1
        groups = [(slice(row, row + n_group), firsts[row], firsts[row] + n_seq)
                  for row in range(0, n_batch, n_group)]
        heads = shares(n_head, n_batch * n_head * n_seq * (firsts.max() + n_seq))
        map_heads = map if len(heads) == 1 else self._threads.map

        x, a = (self._wte[tokens] + self._wpe[positions]).reshape([-1, n_embd]), None
        attended = np.empty([n_batch, n_seq, n_head, n_embd // n_head], np.float32)
        for part, slots in zip(self._parts, cache):
            x, qkv = part(x, a)
            qkv = qkv.reshape([n_batch, n_seq, 3, n_head, -1]).transpose([2, 0, 3, 1, 4])
            list(map_heads(functools.partial(attend, qkv, slots, attended, groups, mask), heads))
            a = attended.reshape([-1, n_embd])
        return x, a

    def _logits(self, x, a):
        """Does what comes after the last block's attention: [N, E] each -> [N, V]."""
        h, = self._last(x, a)
        return np.concatenate([logits for piece in self._head for logits in piece(h)], axis=1)

    def _slots(self, n):
        """Returns empty slots for the keys and values of a layer, float32 [2, B, H, T, D]."""
        width = self.hparams.n_embd // self.hparams.n_head
        return np.zeros([2, len(self._token), self.hparams.n_head, n, width], np.float32)

    def _make_room(self, n):
        """Grows the cache, if need be, to n slots or more."""
        missing = n - self._cache[0].shape[-2]
        if missing > 0:
            more = self._slots(math.ceil(missing / generation.CACHE_SLOTS) * generation.CACHE_SLOTS)
            for layer, slots in enumerate(self._cache):  # one after another, to need less memory
                self._cache[layer] = np.concatenate([slots, more], axis=-2)


def pick(logits, uniforms, temperature, top_k, top_p):
    """As `sample.pick`, on arrays: float32 [B, V] -> int [B]."""
    if temperature == 0:
        return logits.argmax(axis=-1)
    return draw(warp(logits, temperature, top_k, top_p), uniforms)


def warp(logits, temperature, top_k, top_p):
    """The weights that a token is drawn with, temperature above 0: float32 [B, V] -> [B, R^2].

    Weights, the probabilities before they are made to sum to 1, stand in for logits: those of
    tokens that are left out are 0, and so are those that fill up the square.
    """
    n_batch, n_vocab = logits.shape
    square = np.zeros([n_batch, generation.grid_side(n_vocab) ** 2], np.float32)
    weights = square[:, :n_vocab]  # a view: all is done in place, as memory costs more than sums
    np.subtract(logits, logits.max(axis=-1, keepdims=True), out=weights)
    weights /= np.float32(max(temperature, 1e-30))
    np.exp(weights, out=weights)
    for row in weights:
        if top_k > 0:
            row *= row >= kth_largest(row, top_k)
        if top_p < 1:
            row *= row >= smallest_of_nucleus(row, top_p)
    return square


def score(logits, token, temperature, top_k, top_p):
    """As `sample.score`, on arrays: float32 [B, V], int [B] -> float32 [B, 2]."""
    chosen = np.arange(len(token)), token
    own = logits[chosen] - logits.max(axis=-1)
    own -= np.log(warp(logits, 1, 0, 1).sum(axis=-1))
    if temperature == 0:
        return np.stack([own, np.zeros_like(own)], axis=-1)
    weights = warp(logits, temperature, top_k, top_p)
    return np.stack([own, np.log(weights[chosen] / weights.sum(axis=-1))], axis=-1)


def kth_largest(weights, k):
    """Returns the k-th largest of weights [V].

    Cut into groups, k of them have a largest member that reaches the k-th largest of those, so the
    one looked for does, too: this leaves out most of the vocabulary before anything is sorted.
    """
    size = max(1, min(256, len(weights) // k))
    largest = weights[:len(weights) // size * size].reshape([-1, size]).max(axis=-1)
    candidates = weights[weights >= np.partition(largest, -k)[-k]]
    return np.partition(candidates, -k)[-k]


def smallest_of_nucleus(weights, p):
    """Returns the smallest weight that top-p keeps, of weights float32 [V].

    Only the few weights near it are sorted: floats that are not negative compare as their bits do,
    so sums over those that begin with the same bits tell where it is.
    """
    bits = weights.view(np.int32) >> 19
    # In the types that bincount works with: its own casts take five times as long.
    mass = np.bincount(bits.astype(np.intp), weights.astype(np.float64))
    larger = mass[::-1].cumsum()[::-1] - mass
    wanted = p * mass.sum()
    group = np.argmax(larger < wanted)  # the first: of the smallest weights
    near = np.sort(weights[bits == group])[::-1]
    n_kept = np.count_nonzero(larger[group] + near.cumsum(dtype=np.float64) - near < wanted)
    return near[max(n_kept, 1) - 1]


def draw(weights, uniforms):
    """As `sample.draw`, from the tokens' weights: float32 [B, R^2] -> int [B]."""
    n_batch, side = len(weights), uniforms.shape[-1] // 2
    grid = weights.reshape([n_batch, side, side])
    gumbel = -np.log(-np.log(uniforms))
    with np.errstate(divide='ignore'):  # the logarithm of 0 is never the largest
        row = (np.log(grid.sum(axis=-1)) + gumbel[:, :side]).argmax(axis=-1)
        in_row = np.log(grid[np.arange(n_batch), row])  # [B, R]
    column = (in_row + gumbel[:, side:]).argmax(axis=-1)
    return row * side + column
