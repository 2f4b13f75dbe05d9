"""The CPU engine: the model of `model.py` run by TensorFlow Lite, which comes with TensorFlow 2.

The part of each block before its attention and the part after it are converted to a TensorFlow
Lite model each, and so is the output layer, in pieces. They hold all the weights, as float32 or as
int8, and treat every token by itself, so they take any number of tokens of any texts. Attention
has no weights: it is done here, in NumPy, where the keys and values are.

Letters in the shape comments are those of `model.py`.
"""

import ctypes
import functools
import hashlib
import math
import os
import shutil
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import checkpoint
import model
import sample

DTYPES = ('float32', 'int8')
PIECE_BYTES = 40e6  # of float32 output weights to convert at a time, which bounds the memory needed
PROMPT_TOKENS = 128  # to read at a time


# From a checkpoint to converted models

def converted_folder(directory, dtype):
    """Returns where the converted models of a model directory are, or would be.

    The name changes with the weights (the index of a checkpoint holds a checksum of each) and with
    the version of TensorFlow.
    """
    with open(checkpoint.weights_prefix(directory) + '.index', 'rb') as file:
        index = file.read()
    key = hashlib.sha256(index + tf.__version__.encode()).hexdigest()[:16]
    return os.path.join(directory, 'lite', '%s-%s' % (dtype, key))


def convert(directory, hparams, dtype):
    """Converts a model directory's weights, unless that was done before.

    Returns:
      The folder of the converted models. It is there in whole or not at all, and can be removed at
      any time.
    """
    folder = converted_folder(directory, dtype)
    if os.path.isdir(folder):
        return folder
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix='partial-', dir=parent)
    try:
        convert_parts(directory, hparams, dtype, partial)
        os.rename(partial, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name in os.listdir(parent):
        if name.startswith(dtype) and name != os.path.basename(folder):  # of other weights
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
    return folder


def convert_parts(directory, hparams, dtype, folder):
    """Writes the embeddings and all converted parts of a model into a folder."""
    reader = tf.train.load_checkpoint(checkpoint.weights_prefix(directory))
    for name in ('wte', 'wpe'):
        np.save(os.path.join(folder, name), reader.get_tensor('model/' + name))
    wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
    pieces = np.array_split(wte, math.ceil(wte.nbytes / PIECE_BYTES))
    with tqdm(total=2 * hparams.n_layer + len(pieces), unit='part', disable=None,
              desc='converting to ' + dtype) as progress:
        for name, part in parts(hparams, reader, pieces):
            with open(os.path.join(folder, name + '.tflite'), 'wb') as file:
                file.write(convert_part(hparams.n_embd, dtype, **part))
            progress.update()


def parts(hparams, reader, pieces):
    """Yields the name of each part to convert, and arguments for `convert_part`.

    Args:
      pieces: the token embeddings [V, E], cut into pieces.
    """
    names = sorted(reader.get_variable_to_shape_map())
    for layer in range(hparams.n_layer):
        scope = 'model/h%d' % layer
        weights = {name: reader.get_tensor(name) for name in names if name.startswith(scope + '/')}
        yield 'before%d' % layer, dict(build=model.before_attention, n_inputs=1, scope=scope,
                                       weights=weights)
        after = functools.partial(model.after_attention, n_layer=hparams.n_layer)
        yield 'after%d' % layer, dict(build=after, n_inputs=2, scope=scope, weights=weights)
    for number, piece in enumerate(pieces):
        weights = {'model/ln_f/' + name: reader.get_tensor('model/ln_f/' + name) for name in 'gb'}
        weights['model/wte'] = piece
        cut = model.HParams(**dict(vars(hparams), n_vocab=len(piece)))
        yield 'head%d' % number, dict(build=functools.partial(output_layer, cut), n_inputs=1,
                                      scope='model', weights=weights)


def output_layer(hparams, x):
    """The last normalization and the head, [N, E] -> [N, V]."""
    return model.head(hparams, model.norm(x, 'ln_f'))


def convert_part(n_embd, dtype, build, n_inputs, scope, weights):
    """Converts a function of n_inputs tensors [N, E] to a TensorFlow Lite model, and returns it.

    Args:
      build: the function.
      scope, weights: the variable scope it wants and the values of its variables by name.
    """
    with tf.Graph().as_default(), tf.Session() as session, model.variables(scope):
        inputs = [tf.placeholder(tf.float32, [1, n_embd], 'input%d' % i) for i in range(n_inputs)]
        output = build(*inputs)
        for variable in tf.global_variables():
            if variable.op.name in weights:
                session.run(variable.initializer,
                            {variable.initial_value: weights[variable.op.name]})
        converter = tf.lite.TFLiteConverter.from_session(session, inputs, [output])
        if dtype == 'int8':  # weights, each output channel with a scale of its own
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()


# Running converted models

class Part:
    """A converted part: takes float32 arrays [N, E], for any N, and returns one [N, ...]."""

    def __init__(self, path):
        self._interpreter = tf.lite.Interpreter(path, num_threads=processors())
        self._inputs = [details['index'] for details in sorted(
            self._interpreter.get_input_details(), key=lambda details: details['name'])]
        self._output = self._interpreter.get_output_details()[0]['index']
        self._interpreter.allocate_tensors()
        self._n = 1
        release(path)

    def __call__(self, *inputs):
        n, width = inputs[0].shape
        if n != self._n:
            for index in self._inputs:
                self._interpreter.resize_tensor_input(index, [n, width])
            self._interpreter.allocate_tensors()
            self._n = n
        for index, value in zip(self._inputs, inputs):
            self._interpreter.set_tensor(index, value)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output)


def processors():
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


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


def attention(q, k, v, mask):
    """As `model.attention`, on arrays."""
    scores = np.matmul(q * np.float32(q.shape[-1] ** -0.5), k.swapaxes(-1, -2))  # [B, H, S, T]
    if mask is not None:
        scores += mask
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.matmul(scores, v)


class Sampler:
    """Decodes a batch of texts a few tokens at a time, as `sample.Sampler` does."""

    def __init__(self, folder, hparams, *, temperature=1, top_k=0, top_p=1, stop_token=None):
        """Loads the converted models of a folder that `convert` has made."""
        self.hparams = hparams
        self.greedy = temperature == 0
        self.stop_token = stop_token

        def load(name):
            return Part(os.path.join(folder, name + '.tflite'))
        self._layers = [(load('before%d' % i), load('after%d' % i)) for i in range(hparams.n_layer)]
        n_pieces = sum(name.startswith('head') for name in os.listdir(folder))
        self._head = [load('head%d' % i) for i in range(n_pieces)]
        self._wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
        self._wpe = np.load(os.path.join(folder, 'wpe.npy'))
        self._pick = make_pick(hparams.n_vocab, temperature, top_k, top_p)

    def start(self, prompts):
        """Reads a batch of prompts, as `sample.Sampler.start`."""
        sample.check_prompts(self.hparams, prompts)
        lengths = np.array([len(prompt) for prompt in prompts])
        self._token = np.array([prompt[-1] for prompt in prompts])
        self._position = lengths - 1
        self._done = np.zeros(len(prompts), dtype=bool)
        self._cache = [(self._zeros(0), self._zeros(0)) for _ in self._layers]
        self._make_room(lengths.max())
        for row, prompt in enumerate(prompts):
            for first in range(0, len(prompt) - 1, PROMPT_TOKENS):
                tokens = np.array([prompt[first:min(first + PROMPT_TOKENS, len(prompt) - 1)]])
                positions = first + np.arange(tokens.size)[np.newaxis]
                self._step(slice(row, row + 1), tokens, positions)

    def decode(self, length, uniforms=None):
        """Continues every row, as `sample.Sampler.decode`."""
        sample.check_window(self.hparams, self._position.max() + 1, length)
        self._make_room(self._position.max() + length)
        tokens = []
        while len(tokens) < length and not (tokens and self._done.all()):
            h = self._step(slice(None), self._token[:, np.newaxis], self._position[:, np.newaxis])
            logits = np.concatenate([piece(h) for piece in self._head], axis=1)
            token = self._pick(logits, None if self.greedy else uniforms[:, len(tokens)])
            if self.stop_token is not None:
                token = np.where(self._done, self.stop_token, token)
                self._done |= token == self.stop_token
            tokens.append(token)
            self._token = token
            self._position += 1
        return np.stack(tokens, axis=1)

    def _step(self, rows, tokens, positions):
        """Reads tokens [B, S] of some rows (a slice) at positions [B, S]: [N, E], as `sample.step`.
        """
        n_batch, n_seq = tokens.shape
        n_head, n_embd = self.hparams.n_head, self.hparams.n_embd
        n_slots = positions.max() + 1
        mask = None
        if positions.min() + 1 < n_slots:
            later = np.arange(n_slots) > positions[:, :, np.newaxis]
            mask = (model.MASKED * later[:, np.newaxis]).astype(np.float32)  # [B, 1, S, T]
        row_numbers = np.arange(n_batch)[:, np.newaxis]
        x = (self._wte[tokens] + self._wpe[positions]).reshape([-1, n_embd])
        for (before, after), (keys, values) in zip(self._layers, self._cache):
            qkv = before(x).reshape([n_batch, n_seq, 3, n_head, -1])
            q = qkv[:, :, 0].swapaxes(1, 2)  # [B, H, S, D]
            keys, values = keys[rows], values[rows]
            keys[row_numbers, :, positions] = qkv[:, :, 1]
            values[row_numbers, :, positions] = qkv[:, :, 2]
            a = attention(q, keys[:, :, :n_slots], values[:, :, :n_slots], mask)
            x = after(x, a.swapaxes(1, 2).reshape([-1, n_embd]))
        return x

    def _zeros(self, n_slots):
        """Returns empty slots, float32 [B, H, T, D]."""
        width = self.hparams.n_embd // self.hparams.n_head
        return np.zeros([len(self._token), self.hparams.n_head, n_slots, width], np.float32)

    def _make_room(self, n_slots):
        """Grows the cache, if need be, to n_slots or more."""
        missing = n_slots - self._cache[0][0].shape[2]
        if missing > 0:
            missing = math.ceil(missing / sample.CACHE_SLOTS) * sample.CACHE_SLOTS
            self._cache = [tuple(np.concatenate([slots, self._zeros(missing)], axis=2)
                                 for slots in layer) for layer in self._cache]


def make_pick(n_vocab, temperature, top_k, top_p):
    """Returns `sample.pick` as a function of arrays."""
    with tf.Graph().as_default():
        logits = tf.placeholder(tf.float32, [None, n_vocab])
        uniforms = tf.placeholder(tf.float32, [None, 2 * sample.grid_side(n_vocab)])
        token = sample.pick(logits, uniforms, temperature=temperature, top_k=top_k, top_p=top_p)
        session = tf.Session()
        if temperature == 0:
            greedy = session.make_callable(token, [logits])
            return lambda logits, uniforms: greedy(logits)
        return session.make_callable(token, [logits, uniforms])
