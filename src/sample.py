"""Sampling: tokens in, more tokens out.

Each new token takes one `step` through the model and one `pick` from its logits:

    logits -> / temperature -> top-k -> top-p -> draw

Keys and values of earlier positions stay in a cache that is made once and written in place, one
slot a token. `sample_sequence` does everything in one graph; a `Sampler` keeps the cache on the
device between session calls, so that a program can show, save or interrupt texts as they grow.

Letters in the shape comments are those of `model.py`, but N is the number of new tokens here, and R
the side of the square grid that `draw` lays the vocabulary out in.
"""

import collections
import math

import numpy as np
import tensorflow.compat.v1 as tf

import model
from generation import CACHE_SLOTS, check_prompts, check_window, grid_side, rows_by_prompt

DROPPED = -1e10  # the logit of a token that top-k or top-p left out

# Where decoding stands: `token` int32 [B], the last of each row, which the model has not read yet;
# `position` int32 [B], its place in its text; `done` bool [B], whether it ended the text; and
# `cache`, for each layer the keys and the values, float32 [B, H, T, D] each.
State = collections.namedtuple('State', 'token position done cache')


# From logits to a token

def top_k_logits(logits, k):
    """Keeps every logit at least as large as the row's k-th largest; [B, V] in and out.

    Raises:
      ValueError: k is larger than the vocabulary.
    """
    if k == 0:
        return logits
    n_vocab = logits.shape.as_list()[-1]
    if n_vocab is not None and k > n_vocab:
        raise ValueError('top_k is %d, but the vocabulary has %d entries' % (k, n_vocab))
    smallest = tf.nn.top_k(logits, k).values[:, -1:]  # [B, 1]
    return keep(logits, logits >= smallest)


def top_p_logits(logits, p):
    """Keeps the fewest likely tokens whose probabilities reach p in sum; [B, V] in and out.

    Nucleus sampling (Holtzman et al. 2019). A token stays if and only if all probabilities
    larger than its own sum to less than p. So the token that crosses p stays, equals stay or go
    together, and at least one token always stays.
    """
    if p >= 1:
        return logits
    p = max(p, 1e-30)  # what float32 rounds to 0 keeps the likeliest, too
    probabilities = tf.nn.softmax(logits)  # [B, V]
    # The smallest probability that stays is found without sorting the vocabulary, exactly: floats
    # that are not negative compare as their bits do. Its 30 bits (those of 1.0 are no more) are
    # found 10 at a time, from the top: the probabilities are added up for each value of the digit,
    # then those of all larger values, and the digit is the smallest that has less than p above it.
    bits = tf.bitcast(probabilities, tf.int32)  # [B, V]
    n_batch, base = tf.shape(logits)[0], 2**10
    rows = tf.range(n_batch)
    smallest, above = tf.zeros([n_batch], tf.int32), tf.zeros([n_batch])
    for shift in (20, 10, 0):
        digits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, shift), base - 1)
        alike = tf.equal(tf.bitwise.right_shift(bits, shift + 10),
                         tf.bitwise.right_shift(smallest, shift + 10)[:, tf.newaxis])
        mass = tf.unsorted_segment_sum(
            tf.where(alike, probabilities, tf.zeros_like(probabilities)),
            digits + rows[:, tf.newaxis] * base, n_batch * base)
        larger = above[:, tf.newaxis] + tf.cumsum(
            tf.reshape(mass, [n_batch, base]), axis=-1, exclusive=True, reverse=True)
        digit = tf.argmax(tf.cast(larger < p, tf.int32), axis=-1, output_type=tf.int32)  # the first
        smallest += digit * 2**shift
        above = tf.gather_nd(larger, tf.stack([rows, digit], axis=-1))
    return keep(logits, bits >= smallest[:, tf.newaxis])


def keep(logits, kept):
    """Sets the logits where `kept` is false to DROPPED; [B, V] in and out."""
    return tf.where(kept, logits, tf.fill(tf.shape(logits), DROPPED))


def draw(logits, uniforms):
    """Draws one token of each row with the probabilities softmax(logits), [B, V] -> int32 [B].

    By the Gumbel-max trick: the argmax of logits + Gumbel noise is a draw from their softmax.
    With the vocabulary in a grid of R rows, a row is drawn from the rows' total weights first,
    then a column within it, which takes 2R random numbers, not V. No sum over the vocabulary is
    compared with a random number, so rounding almost never changes a token.

    Args:
      uniforms: float32 [B, 2R], between 0 and 1, neither included.
    """
    n_vocab = logits.shape.as_list()[-1]
    side = grid_side(n_vocab)
    padding = [[0, 0], [0, side * side - n_vocab]]
    grid = tf.reshape(tf.pad(logits, padding, constant_values=DROPPED), [-1, side, side])
    gumbel = -tf.log(-tf.log(uniforms))
    row_scores = tf.reduce_logsumexp(grid, axis=-1) + gumbel[:, :side]  # [B, R]
    row = tf.argmax(row_scores, axis=-1, output_type=tf.int32)
    in_row = tf.gather_nd(grid, tf.stack([tf.range(tf.size(row)), row], axis=-1))  # [B, R]
    column = tf.argmax(in_row + gumbel[:, side:], axis=-1, output_type=tf.int32)
    return row * side + column


def pick(logits, uniforms, temperature=1, top_k=0, top_p=1):
    """Chooses the next token of each row, [B, V] -> int32 [B]; temperature 0 takes the likeliest.

    Args:
      uniforms: float32 [B, 2R] as in `draw`; not used at temperature 0.
    """
    if temperature == 0:
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    return draw(warp(logits, temperature, top_k, top_p), uniforms)


def warp(logits, temperature, top_k, top_p):
    """The logits that a token is drawn from, temperature above 0; [B, V] in and out."""
    temperature = max(temperature, 1e-30)  # what float32 rounds to 0 means the likeliest, too
    logits = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) / temperature
    return top_p_logits(top_k_logits(logits, top_k), top_p)


def score(logits, token, temperature=1, top_k=0, top_p=1):
    """The logarithms of the probabilities of tokens that were picked, float32 [B, 2].

    First under the model itself, then under the distribution that `pick` drew from. (At
    temperature 0 it had no choice: the second is 0.)

    Args:
      token: int32 [B].
    """
    def log_probability(logits):  # so exactly that rounding hides on what row it was computed
        logits = tf.cast(logits, tf.float64)
        chosen = tf.gather_nd(logits, tf.stack([tf.range(tf.size(token)), token], axis=-1))
        return tf.cast(chosen - tf.reduce_logsumexp(logits, axis=-1), tf.float32)

    own = log_probability(logits)
    if temperature == 0:
        return tf.stack([own, tf.zeros_like(own)], axis=-1)
    return tf.stack([own, log_probability(warp(logits, temperature, top_k, top_p))], axis=-1)


# From tokens to logits, with a cache

def empty_cache(hparams, batch_size, slots):
    """Returns a cache of zeros for `slots` positions, in memory that is shared with nothing else.

    (Zeros from tf.zeros may be one constant for all, and `write` would write into it.)
    """
    shape = [batch_size, hparams.n_head, slots, hparams.n_embd // hparams.n_head]
    return [tuple(tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True) for _ in 'kv')
            for _ in range(hparams.n_layer)]


def slot_numbers(slots, positions):
    """Numbers the vectors in slots [B, H, T, D] that belong to positions [B, S]: [B, H, S].

    (B may be 1 in positions, for all rows.)
    """
    n_batch, n_head, n_slots, _ = model.shape_list(slots)
    first = tf.reshape(tf.range(n_batch * n_head) * n_slots, [n_batch, n_head, 1])
    return first + positions[:, tf.newaxis, :]


def write(slots, numbers, vectors):
    """Writes vectors [B, H, S, D] into slots [B, H, T, D] at those numbers, in place.

    Returns the slots as they are now; whoever reads them must read what this returns.
    """
    shape = model.shape_list(slots)
    written = tf.raw_ops.InplaceUpdate(x=tf.reshape(slots, [-1, shape[-1]]),
                                       i=tf.reshape(numbers, [-1]),
                                       v=tf.reshape(vectors, [-1, shape[-1]]))
    return tf.reshape(written, shape)


def step(hparams, tokens, positions, cache):
    """Reads tokens int32 [B, S], the next ones of each row, at positions int32 [B, S].

    A row sees its own earlier positions alone: slots after a position get weight exactly zero,
    whatever they hold. As the cache is written in place, a later step on it must depend on this
    one's output, as the next token does.

    Returns:
      The output of the last block, normalized, float32 [B, S, E] (`model.head` makes logits of
      it), and the cache with these tokens' keys and values written into it.
    """
    slots = cache[0][0]
    numbers = slot_numbers(slots, positions)
    later = tf.range(model.shape_list(slots)[2]) > positions[:, :, tf.newaxis]  # [B, S, T]
    mask = model.MASKED * tf.cast(later[:, tf.newaxis], tf.float32)  # [B, 1, S, T]
    written = []

    def attend(layer, q, k, v):
        keys, values = cache[layer]
        written.append((write(keys, numbers, k), write(values, numbers, v)))
        return model.attention(q, *written[-1], mask)

    with model.variables():
        return model.transformer(hparams, tokens, positions, attend), written


def prefill(hparams, tokens, lengths, cache):
    """Reads all but the last of each row's first tokens; the last is for `decode` to start from.

    Args:
      tokens: int32 [B, S], each row's text followed by any token to fill the row.
      lengths: int32 [B], the lengths of the texts, 1 to S.

    Returns:
      The State to decode from.
    """
    n_batch, n_seq = model.shape_list(tokens)
    positions = tf.tile(tf.range(n_seq - 1)[tf.newaxis], [n_batch, 1])
    _, cache = step(hparams, tokens[:, :-1], positions, cache)
    last = tf.gather_nd(tokens, tf.stack([tf.range(n_batch), lengths - 1], axis=-1))
    return State(token=last, position=lengths - 1, done=tf.fill([n_batch], False), cache=cache)


def decode(hparams, state, length, noise, stop_token=None, logprobs=False, **pick_options):
    """Decodes `length` tokens from a State, or fewer (but one at least) if all rows are done.

    Args:
      length: int32 scalar, at least 1.
      noise: a function from the number of a step, counted from 0, to its uniforms for `pick`.
      stop_token: a row is done once it has produced this token, and goes on repeating it.
      logprobs: whether to `score` the tokens.
      pick_options: temperature, top_k and top_p.

    Returns:
      The tokens, int32 [B, N], N <= length; their scores, float32 [B, N, 2], or None; and the State
      after them.
    """
    def advance(i, made, state):
        h, cache = step(hparams, state.token[:, tf.newaxis], state.position[:, tf.newaxis],
                        state.cache)
        with model.variables():
            logits = model.head(hparams, h[:, 0])
        token = pick(logits, noise(i), **pick_options)
        scores = [score(logits, token, **pick_options)] if logprobs else []
        done = state.done
        if stop_token is not None:
            token = tf.where(done, tf.fill(tf.shape(token), stop_token), token)
            done = tf.logical_or(done, tf.equal(token, stop_token))
        made = [array.write(i, new) for array, new in zip(made, [token] + scores)]
        return i + 1, made, State(token, state.position + 1, done, cache)

    n_batch = state.token.shape.as_list()
    made = [tf.TensorArray(tf.int32, size=length, element_shape=n_batch)]
    if logprobs:
        made.append(tf.TensorArray(tf.float32, size=length, element_shape=n_batch + [2]))
    n_new, made, state = tf.while_loop(
        lambda i, made, state: tf.equal(i, 0) | (i < length) & ~tf.reduce_all(state.done),
        advance, (0, made, state))
    tokens, *scores = [array.gather(tf.range(n_new)) for array in made]
    return tf.transpose(tokens), tf.transpose(scores[0], [1, 0, 2]) if logprobs else None, state


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None,
                    temperature=1, top_k=0, top_p=1, uniforms=None, stop_token=None):
    """The graph of a batch of texts, each continued by `length` tokens.

    Args:
      hparams: of the model, as in `model.model`.
      length: an int >= 1, the number of new tokens; context length + length - 1 <= n_ctx.
      start_token: an id to start every row from, with batch_size, or
      context: int32 [B, P], the texts to continue.
      temperature, top_k, top_p: how to pick a token; 0, 0 and 1 take the likeliest one.
      uniforms: float32 [B, length, 2R], as from `random_uniforms`; drawn in the graph if None.
      stop_token: fill a row with this id once it has produced it, and end when all rows have.

    Returns:
      int32 [B, P + length], context included; with start_token, P is 1.

    Raises:
      ValueError: not exactly one of start_token and context is given, top_k is larger than the
        vocabulary, or the texts are known to go beyond n_ctx.
    """
    if (start_token is None) == (context is None):
        raise ValueError('give either start_token or context')
    if context is None:
        context = tf.fill([batch_size, 1], start_token)
    n_batch, n_context = model.shape_list(context)
    if isinstance(n_context, int):
        check_window(hparams, n_context, length)

    def noise(i):
        if uniforms is not None:
            return uniforms[:, i]
        raw = tf.random_uniform([n_batch, 2 * grid_side(hparams.n_vocab)], maxval=2**23,
                                dtype=tf.int32)
        return (tf.cast(raw, tf.float32) + 0.5) * 2**-23

    cache = empty_cache(hparams, n_batch, n_context - 1 + length)
    state = prefill(hparams, context, tf.fill([n_batch], n_context), cache)
    tokens, _, _ = decode(hparams, state, length, noise, stop_token=stop_token,
                       temperature=temperature, top_k=top_k, top_p=top_p)
    missing = length - tf.shape(tokens)[1]
    tokens = tf.pad(tokens, [[0, 0], [0, missing]], constant_values=stop_token or 0)
    return tf.concat([context, tokens], axis=1)


# Decoding in chunks

class Sampler:
    """Decodes a batch of texts a few tokens at a time; the cache stays on the device between.

    One Sampler serves any number of batches of any size, one after another:

        sampler.start(prompts)
        tokens = sampler.decode(n, uniforms)
        sampler.read([row], prompt)  # gives a row another text; the others go on
    """

    engine = 'graph'

    def __init__(self, session, hparams, *, temperature=1, top_k=0, top_p=1, stop_token=None,
                 logprobs=False):
        """Builds the graph, whose weights the caller restores into `session`.

        Args:
          logprobs: whether `decode` leaves the `score` of its tokens in `logprobs`.
          The others are as in `sample_sequence`.
        """
        self.hparams = hparams
        self.greedy = temperature == 0
        self.stop_token = stop_token
        self.logprobs = None
        self._session = session
        self._slots = 0  # of the cache now
        self._position = None  # of each row's next token to read, int [B]

        self._tokens = tf.placeholder(tf.int32, [1, None])
        self._rows = tf.placeholder(tf.int32, [None])
        self._n = tf.placeholder(tf.int32, [])
        self._uniforms = tf.placeholder(tf.float32, [None, None, 2 * grid_side(hparams.n_vocab)])

        width = hparams.n_embd // hparams.n_head
        cache_shape = [None, hparams.n_head, None, width]
        stored = State(
            *(local_variable(dtype, [None]) for dtype in (tf.int32, tf.int32, tf.bool)),
            cache=[tuple(local_variable(tf.float32, cache_shape) for _ in 'kv')
                   for _ in range(hparams.n_layer)])
        state = tf.nest.map_structure(lambda variable: variable.read_value(), stored)

        n_batch = tf.size(self._rows)
        self._start = store(stored, State(
            *(tf.zeros([n_batch], variable.dtype) for variable in stored[:3]),
            cache=empty_cache(hparams, n_batch, self._n)))

        n_tokens = tf.shape(self._tokens)[1]
        text = prefill(hparams, self._tokens, n_tokens[tf.newaxis],
                       empty_cache(hparams, 1, n_tokens))
        self._read = store(stored, replace_rows(state, self._rows, text, n_tokens - 1))

        more = [[0, 0], [0, 0], [0, self._n], [0, 0]]
        self._grow = store(stored.cache, tf.nest.map_structure(
            lambda slots: tf.pad(slots, more), state.cache))

        tokens, scores, state = decode(
            hparams, state, self._n, lambda i: self._uniforms[:, i], stop_token=stop_token,
            logprobs=logprobs, temperature=temperature, top_k=top_k, top_p=top_p)
        with tf.control_dependencies([store(stored, state)]):
            made = [tokens, scores] if logprobs else [tokens]
            self._decode = [tf.identity(value) for value in made]

    @property
    def room(self):
        """How many tokens each row can still be continued by, int [B]."""
        return self.hparams.n_ctx - self._position

    def start(self, prompts):
        """Reads a batch of prompts, lists of ids of any lengths; equal ones are read once.

        Raises:
          ValueError: a prompt is empty, longer than the window, or has an id beyond the
            vocabulary.
        """
        check_prompts(self.hparams, prompts)
        self._position = np.zeros(len(prompts), dtype=int)
        self._slots = self._slots_for(max(map(len, prompts)))
        self._session.run(self._start, {self._rows: range(len(prompts)), self._n: self._slots})
        for prompt, rows in rows_by_prompt(prompts):
            self.read(rows, prompt)

    def read(self, rows, prompt):
        """Reads a prompt, a list of ids, into rows of the batch, a list of their numbers.

        What these rows were does not matter any more, and the others do not change.

        Raises:
          ValueError: as `start`.
        """
        check_prompts(self.hparams, [prompt])
        self._make_room(len(prompt))
        self._session.run(self._read, {self._tokens: [prompt], self._rows: rows})
        self._position[rows] = len(prompt) - 1

    def decode(self, length, uniforms=None):
        """Continues every row by `length` tokens, or fewer (but one at least) if all are done.

        With the option logprobs, their scores are in `logprobs` then, float32 [B, N, 2].

        Args:
          uniforms: float32 [B, length, 2R] from `random_uniforms`; may be None at temperature 0.

        Returns:
          int32 [B, N], N <= length.

        Raises:
          ValueError: the longest row would go beyond the window.
        """
        check_window(self.hparams, self._position.max() + 1, length)
        self._make_room(self._position.max() + length)
        feed = {self._n: length}
        if not self.greedy:
            feed[self._uniforms] = uniforms
        tokens, *scores = self._session.run(self._decode, feed)
        self.logprobs = scores[0] if scores else None
        self._position += tokens.shape[1]
        return tokens

    def _make_room(self, n_slots):
        """Grows the cache, if need be, to n_slots or more."""
        if n_slots > self._slots:
            slots = self._slots_for(n_slots)
            self._session.run(self._grow, {self._n: slots - self._slots})
            self._slots = slots

    def _slots_for(self, n):
        """Returns a number of slots, at least n, that spares growing the cache for a while."""
        return min(math.ceil(n / CACHE_SLOTS) * CACHE_SLOTS, self.hparams.n_ctx)


def replace_rows(state, rows, text, n_read):
    """Puts a text in the place of some rows of a batch.

    Args:
      state: the State of the batch; its cache is written in place.
      rows: int32 [R], their numbers.
      text: the State of the text alone.
      n_read: how many of its tokens are in its cache.

    Returns:
      The State of the batch then.
    """
    n_rows = tf.size(rows)

    def replace(values, new):  # [B] and [1]
        return tf.tensor_scatter_nd_update(values, rows[:, tf.newaxis], tf.tile(new, [n_rows]))

    def replace_slots(slots, new):
        numbers = tf.gather(slot_numbers(slots, tf.range(n_read)[tf.newaxis]), rows)
        return write(slots, numbers, tf.tile(new[:, :, :n_read], [n_rows, 1, 1, 1]))

    return State(replace(state.token, text.token), replace(state.position, text.position),
                 tf.cast(replace(tf.cast(state.done, tf.int32), tf.zeros([1], tf.int32)), tf.bool),
                 tf.nest.map_structure(replace_slots, state.cache, text.cache))


def local_variable(dtype, shape):
    """A variable that no Saver sees and no initializer need touch: it is stored to before read."""
    initial = tf.zeros([size or 0 for size in shape], dtype)
    return tf.Variable(initial, trainable=False, collections=[tf.GraphKeys.LOCAL_VARIABLES],
                       validate_shape=False, shape=tf.TensorShape(shape), use_resource=True)


def store(variables, values):
    """The operation that assigns a structure of values to one of variables."""
    pairs = zip(tf.nest.flatten(variables), tf.nest.flatten(values))
    return tf.group(*[variable.assign(value) for variable, value in pairs])
