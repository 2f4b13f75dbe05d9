"""The graph decoder: the loop of `sample.py`, with the KV cache on the device between calls."""

import dataclasses
import math

import numpy as np
import tensorflow.compat.v1 as tf

import sample
from gpt2 import checkpoint, runtime
from gpt2.sampling.decoder import CACHE_POSITIONS, Decoder, Scores
from gpt2.sampling.options import SamplingOptions
from gpt2.sampling.rng import grid_side


class GraphDecoder(Decoder):
    """A Decoder whose one graph serves any options."""

    engine = 'graph'

    def __init__(self, session, model_dir, dtype='float32'):
        """Add the graph to the session's. The caller restores the weights into the session.

        `dtype` is that of the matrices and their products; all else is float32.
        """
        super().__init__(model_dir)
        self._session, self._dtype = session, dtype
        self._n_positions = 0  # that the cache has room for now
        with session.graph.as_default(), tf.variable_scope(
                tf.get_variable_scope(), custom_getter=matrices_of(dtype)):
            self._build(self.hparams)

    @classmethod
    def open(cls, model_dir, dtype='float32'):
        """Return a decoder in a graph of its own. Raises ModelError if weights cannot be read."""
        config = tf.ConfigProto()
        # On CPUs, TensorFlow's graph optimizer takes a second of the start and saves no time later.
        config.graph_options.rewrite_options.disable_meta_optimizer = not runtime.has_gpu()
        decoder = cls(tf.Session(graph=tf.Graph(), config=config), model_dir, dtype)
        with decoder._session.graph.as_default():
            checkpoint.restore(decoder._session, model_dir.path)
        return decoder

    def _build(self, hparams):
        self._prompt = tf.placeholder(tf.int32, [1, None])
        self._rows = tf.placeholder(tf.int32, [None])
        self._n = tf.placeholder(tf.int32, [])
        self._uniforms = tf.placeholder(tf.float32, [None, None, 2 * grid_side(hparams.n_vocab)])
        # In float64, a tiny number is not 0.
        self._sampling = {
            field.name: tf.placeholder(tf.int32 if field.type is int else tf.float64, [])
            for field in dataclasses.fields(SamplingOptions)}
        self._stop_token = tf.placeholder(tf.int32, [])
        self._logprobs = tf.placeholder(tf.bool, [])
        self._n_top = tf.placeholder(tf.int32, [])

        cache_shape = [None, hparams.n_head, None, hparams.n_embd // hparams.n_head]
        stored = sample.DecodeState(
            *(local_variable(dtype, [None]) for dtype in (tf.int32, tf.int32, tf.bool)),
            text=local_variable(tf.int32, [None, None]),
            cache=[tuple(local_variable(tf.float32, cache_shape) for _ in 'kv')
                   for _ in range(hparams.n_layer)])
        state = tf.nest.map_structure(lambda variable: variable.read_value(), stored)

        n_rows = tf.size(self._rows)
        self._reset = assign_all(stored, sample.DecodeState(
            *(tf.zeros([n_rows], variable.dtype) for variable in stored[:3]),
            text=tf.zeros([n_rows, self._n], tf.int32),
            cache=sample.empty_cache(hparams, n_rows, self._n)))

        n_tokens = tf.shape(self._prompt)[1]
        prefilled = sample.prefill(hparams, self._prompt, n_tokens[tf.newaxis],
                                   sample.empty_cache(hparams, 1, n_tokens))
        self._prefill = assign_all(stored, replace_rows(state, self._rows, prefilled, n_tokens - 1))

        def pad(values):  # [B, T] or [B, H, T, D]
            padding = [[0, 0], [0, self._n]]
            return tf.pad(values, padding if len(values.shape) == 2 else [[0, 0], *padding, [0, 0]])

        growing = [(variables.text, variables.cache) for variables in (stored, state)]
        self._grow = assign_all(growing[0], tf.nest.map_structure(pad, growing[1]))

        tokens, scores, state = sample.decode(
            hparams, state, self._n, lambda i: self._uniforms[:, i], stop_token=self._stop_token,
            logprobs=self._logprobs, n_top=self._n_top, **self._sampling)
        with tf.control_dependencies([assign_all(stored, state)]):
            self._decode = tf.nest.map_structure(tf.identity, (tokens, scores))

    def reset(self, n_rows):
        self._start_rows(n_rows)
        self._n_positions = self._rounded(1)
        self._require_memory(self._n_positions)
        self._run(self._reset, {self._rows: range(n_rows), self._n: self._n_positions})

    def prefill(self, rows, prompt):
        self._check_prompt(prompt)
        self._make_room(len(prompt))
        self._run(self._prefill, {self._prompt: [prompt], self._rows: rows})
        self._position[rows] = len(prompt) - 1

    def decode(self, length, options, uniforms=None, stop_token=None, logprobs=False, n_top=0):
        self._check_length(length)
        self._make_room(self._position.max() + length)
        if uniforms is None:
            width = 2 * grid_side(self.hparams.n_vocab)
            uniforms = np.full([len(self._position), length, width], 0.5, np.float32)
        tokens, scores = self._run(self._decode, {
            self._n: length, self._uniforms: uniforms, self._logprobs: logprobs,
            self._n_top: n_top if logprobs else 0,
            self._stop_token: -1 if stop_token is None else stop_token,
            **{tensor: getattr(options, name) for name, tensor in self._sampling.items()}})
        self._position += tokens.shape[1]
        return tokens, Scores(*scores) if logprobs else None

    def close(self):
        self._session.close()

    def _run(self, fetches, feeds):
        """Run the session. Raises MemoryError, and ModelError if a logit is not finite."""
        try:
            with runtime.memory_errors():
                return self._session.run(fetches, feeds)
        except tf.errors.InvalidArgumentError as error:
            if sample.NOT_FINITE not in error.message:
                raise
            raise checkpoint.non_finite_error(self.model_dir, self._dtype)

    def _make_room(self, n_positions):
        """Grow the cache, if need be, to n_positions or more. Raises MemoryError."""
        if n_positions > self._n_positions:
            n = self._rounded(n_positions)
            self._require_memory(n)
            self._run(self._grow, {self._n: n - self._n_positions})
            self._n_positions = n

    def _rounded(self, n_positions):
        """Return a size for the cache, at least n_positions, so that it seldom has to grow."""
        return min(math.ceil(n_positions / CACHE_POSITIONS) * CACHE_POSITIONS, self.hparams.n_ctx)


def matrices_of(dtype):
    """Return a custom getter of variables that gives matrices a dtype."""
    def get(getter, name, *args, **kwargs):
        if name.endswith(('/w', '/wte')):
            kwargs['dtype'] = tf.as_dtype(dtype)
        return getter(name, *args, **kwargs)
    return get


def replace_rows(state, rows, prefilled, n_read):
    """Replace rows, int32 [M], of a batch by one text. Return the new DecodeState of the batch.

    `state` is that of the batch, whose cache is written in place; `prefilled` that of the text
    alone, with n_read tokens in its cache.
    """
    n_rows = tf.size(rows)

    def replace(values, new):  # [B] and [1]
        return tf.tensor_scatter_nd_update(values, rows[:, tf.newaxis], tf.tile(new, [n_rows]))

    def replace_text(texts, new):
        padding = [[0, 0], [0, tf.shape(texts)[1] - n_read]]
        new = tf.tile(tf.pad(new[:, :n_read], padding), [n_rows, 1])
        return tf.tensor_scatter_nd_update(texts, rows[:, tf.newaxis], new)

    def replace_cache(cached, new):
        indices = sample.cache_indices(cached, tf.range(n_read)[tf.newaxis])
        return sample.write_cache(cached, tf.gather(indices, rows),
                                  tf.tile(new[:, :, :n_read], [n_rows, 1, 1, 1]))

    done = replace(tf.cast(state.done, tf.int32), tf.zeros([1], tf.int32))
    return sample.DecodeState(replace(state.token, prefilled.token),
                              replace(state.position, prefilled.position), tf.cast(done, tf.bool),
                              replace_text(state.text, prefilled.text),
                              tf.nest.map_structure(replace_cache, state.cache, prefilled.cache))


def local_variable(dtype, shape):
    """A variable that no Saver sees and no initializer need touch: it is assigned before read."""
    initial = tf.zeros([size or 0 for size in shape], dtype)
    return tf.Variable(initial, trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES],
                       validate_shape=False, shape=tf.TensorShape(shape), use_resource=True)


def assign_all(variables, values):
    """The operation that assigns a structure of values to one of variables."""
    pairs = zip(tf.nest.flatten(variables), tf.nest.flatten(values))
    return tf.group(*[variable.assign(value) for variable, value in pairs])
