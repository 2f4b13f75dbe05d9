"""Sampling: tokens in, more tokens out.

Each new token takes one pass `forward` through the model; then `process_logits` and `sample_token`:

    logits -> repetition penalty, repeated n-grams -> / temperature
           -> top-k -> top-p -> min-p -> typical -> draw

Keys and values of earlier positions stay in a KV cache that is allocated once and written in
place. `sample_sequence` does everything in one graph.

Letters in the shape comments are those of `model.py`, but N is the number of new tokens here, and
R the side of the square grid that `gumbel_sample` lays the vocabulary out in.
"""

import collections
import math

import numpy as np
import tensorflow.compat.v1 as tf

import model

FILTERED = -1e10  # the logit of a token that is filtered out
NOT_FINITE = 'a logit is not a finite number'  # an error of the graph

# Where decoding stands: `token` int32 [B], the last of each row, which the model has not read yet;
# `position` int32 [B], its place in its text; `done` bool [B], whether it ended the text; `text`
# int32 [B, T], the ids at the positions before; and `cache`, for each layer the keys and the
# values, float32 [B, H, T, D] each.
DecodeState = collections.namedtuple('DecodeState', 'token position done text cache')


# From logits to a token. Options are numbers, scalar tensors, or one value a row, [B]. A step that
# is switched off costs nothing.

def penalize_repetition(logits, penalty, text, n_read):
    """Make the tokens of a text less likely, or above 1 likelier; [B, V] in and out.

    Positive logits of the tokens in text int32 [B, T], of which the first n_read int32 [B] count,
    are divided by the penalty, and negative ones multiplied (Keskar et al. 2019). 1 changes none.
    """
    def penalize():
        known = tf.where(tf.sequence_mask(n_read, tf.shape(text)[1]), text,
                         tf.tile(text[:, :1], [1, tf.shape(text)[1]]))
        indices = with_rows(known)
        scores = tf.gather_nd(logits, indices)  # [B, T]
        factor, divisor = row_values(penalty), reciprocal(penalty)
        scores = tf.where(scores < 0, scores * factor, scores * divisor)
        return tf.tensor_scatter_nd_update(logits, indices, scores)

    return cond(any_row(penalty, lambda p: (p < 1) | (p > 1)), penalize, lambda: logits)


def ban_repeated_ngrams(logits, size, text, n_read):
    """Filter out tokens that would repeat one of the n-grams in a text; [B, V] in and out.

    `text` and `n_read` are as in `penalize_repetition`. Size 0 keeps all logits.
    """
    def ban():
        n, end = tf.cast(column(size), tf.int32), n_read[:, tf.newaxis]
        places = tf.range(tf.shape(text)[1])

        def compare(back, same):  # the token so many places back with the text's own
            last = tf.gather_nd(text, with_rows(tf.maximum(end - back, 0)))
            return back + 1, same & (tf.equal(tf.roll(text, back, axis=1), last) | (back >= n))

        # Whether the n - 1 tokens before a place are the last ones of the text, [B, T].
        _, same = tf.while_loop(
            lambda back, _: back < tf.reduce_max(n), compare,
            [1, (n > 0) & (places >= n - 1) & (places < end)])
        n_banned = tf.scatter_nd(with_rows(text), tf.cast(same, tf.int32), tf.shape(logits))
        return mask_logits(logits, tf.equal(n_banned, 0))

    return cond(any_row(size, is_positive), ban, lambda: logits)


def top_k_logits(logits, k):
    """Keep every logit at least as large as the row's k-th largest; [B, V] in and out.

    k 0 keeps all. Raises ValueError if k is a number larger than the vocabulary.
    """
    n_vocab = logits.shape.as_list()[-1]
    if not tf.is_tensor(k) and n_vocab is not None and np.max(k) > n_vocab:
        raise ValueError(f'top_k is {np.max(k)}, but the vocabulary has {n_vocab} entries')

    def select():
        limit = row_values(k)
        limit = tf.where_v2(limit > 0, limit, math.inf)
        return mask_logits(logits, larger_ones_below(limit, logits, tf.ones_like(logits)))

    return cond(any_row(k, is_positive), select, lambda: logits)


def top_p_logits(logits, p):
    """Keep the fewest likely tokens whose probabilities reach p in sum; [B, V] in and out.

    Nucleus sampling (Holtzman et al. 2019). A token stays if and only if all probabilities
    larger than its own sum to less than p. So the token that crosses p stays, equals stay or go
    together, and at least one token always stays. p 0 and p 1 keep all logits.
    """
    def select():
        limit = tf.maximum(row_values(p), 1e-30)  # what float32 rounds to 0 keeps the likeliest
        limit = tf.where_v2(is_part(column(p)), limit, math.inf)
        probabilities = tf.nn.softmax(logits)
        return mask_logits(logits, larger_ones_below(limit, probabilities, probabilities))

    return cond(any_row(p, is_part), select, lambda: logits)


def min_p_logits(logits, p):
    """Keep the tokens at least p times as likely as the likeliest; [B, V] in and out.

    Nguyen et al. 2024. p 0 keeps all logits.
    """
    def select():
        below = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
        return mask_logits(logits, below >= tf.log(row_values(p)))

    return cond(any_row(p, is_positive), select, lambda: logits)


def typical_p_logits(logits, p):
    """Keep the most typical tokens whose probabilities reach p in sum; [B, V] in and out.

    Locally typical sampling (Meister et al. 2023): tokens are the more typical, the nearer their
    information, -log(probability), is to its mean, the entropy. Equals stay or go together. p 0 and
    p 1 keep all logits.
    """
    def select():
        limit = tf.maximum(row_values(p), 1e-30)
        limit = tf.where_v2(is_part(column(p)), limit, math.inf)
        log_probabilities = tf.nn.log_softmax(logits)
        probabilities = tf.exp(log_probabilities)
        entropy = -tf.reduce_sum(probabilities * log_probabilities, axis=-1, keepdims=True)
        typical = -tf.abs(log_probabilities + entropy)
        return mask_logits(logits, larger_ones_below(limit, typical, probabilities))

    return cond(any_row(p, is_part), select, lambda: logits)


def is_positive(value):
    """Return whether a value is above 0."""
    return value > 0


def is_part(p):
    """Return whether p is between 0 and 1, both excluded."""
    return (p > 0) & (p < 1)


def larger_ones_below(limit, values, weights):
    """Return where the weights of all strictly larger values of the row sum to less than a limit.

    limit [B, 1] or [1, 1], above 0, values and weights [B, V], all float32 -> bool [B, V]

    Exact, without sorting: as integers, the bits of floats have the same order, if the magnitude
    of a negative float is taken with its sign. The smallest value for which it is true is found
    digit by digit, from the top: weights are summed for each value of the digit, then those of all
    larger digits, and the digit is the smallest with less than the limit above it.
    """
    bits = tf.bitcast(values, tf.int32)
    keys = tf.where(bits < 0, -2**31 - bits, bits)  # [B, V]; of -0.0 it is 0, as of 0.0
    n_batch = tf.shape(values)[0]
    rows = tf.range(n_batch)
    smallest, above = tf.zeros([n_batch], tf.int32), tf.zeros([n_batch])
    for shift, n_values, lowest in ((20, 2**12, -2**11), (10, 2**10, 0), (0, 2**10, 0)):
        prefix = tf.bitwise.right_shift(keys, shift)  # the sign stays
        digits = prefix - lowest if lowest else tf.bitwise.bitwise_and(prefix, n_values - 1)
        counted = weights
        if not lowest:  # only the values that agree with the digits found so far
            agree = tf.equal(tf.bitwise.right_shift(keys, shift + 10),
                             tf.bitwise.right_shift(smallest, shift + 10)[:, tf.newaxis])
            counted = tf.where(agree, weights, tf.zeros_like(weights))
        sums = tf.unsorted_segment_sum(counted, digits + rows[:, tf.newaxis] * n_values,
                                       n_batch * n_values)
        larger = above[:, tf.newaxis] + tf.cumsum(
            tf.reshape(sums, [n_batch, n_values]), axis=-1, exclusive=True, reverse=True)
        digit = tf.argmax(tf.cast(larger < limit, tf.int32), axis=-1, output_type=tf.int32)
        smallest += (digit + lowest) * 2**shift
        above = tf.gather_nd(larger, tf.stack([rows, digit], axis=-1))
    return keys >= smallest[:, tf.newaxis]


def mask_logits(logits, kept):
    """Set the logits where `kept` is false to FILTERED; [B, V] in and out."""
    return tf.where(kept, logits, tf.fill(tf.shape(logits), FILTERED))


def process_logits(logits, temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1):
    """Return the logits that `sample_token` draws from; [B, V] in and out.

    At temperature 0 the likeliest token stays the likeliest; the rest means nothing.
    """
    def process():
        # What float32 rounds to 0 takes the likeliest.
        scaled = (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) * reciprocal(temperature)
        kept = top_p_logits(top_k_logits(scaled, top_k), top_p)
        return typical_p_logits(min_p_logits(kept, min_p), typical_p)

    return cond(any_row(temperature, is_positive), process, lambda: logits)


def sample_token(processed, uniforms, temperature=1):
    """Choose the next token of each row, [B, V] -> int32 [B]; temperature 0 takes the likeliest.

    `processed` comes from `process_logits`. The uniforms, float32 [B, 2R] as in `gumbel_sample`,
    are not used at temperature 0.
    """
    likeliest = tf.argmax(processed, axis=-1, output_type=tf.int32)
    return cond(any_row(temperature, is_positive), lambda: where_positive(
        temperature, gumbel_sample(processed, uniforms), likeliest), lambda: likeliest)


def gumbel_sample(logits, uniforms):
    """Draw one token of each row with the probabilities softmax(logits), [B, V] -> int32 [B].

    By the Gumbel-max trick: the argmax of logits + Gumbel noise is a draw from their softmax.
    With the vocabulary in a grid of R rows, a row is drawn from the rows' total weights first,
    then a column within it, which takes 2R random numbers, not V: the uniforms, float32 [B, 2R],
    between 0 and 1, both excluded. No sum over the vocabulary is compared with a random number, so
    rounding almost never changes a token.
    """
    n_vocab = logits.shape.as_list()[-1]
    side = grid_side(n_vocab)
    padding = [[0, 0], [0, side * side - n_vocab]]
    grid = tf.reshape(tf.pad(logits, padding, constant_values=FILTERED), [-1, side, side])
    gumbel = -tf.log(-tf.log(uniforms))
    row_scores = tf.reduce_logsumexp(grid, axis=-1) + gumbel[:, :side]  # [B, R]
    row = tf.argmax(row_scores, axis=-1, output_type=tf.int32)
    in_row = tf.gather_nd(grid, tf.stack([tf.range(tf.size(row)), row], axis=-1))  # [B, R]
    column = tf.argmax(in_row + gumbel[:, side:], axis=-1, output_type=tf.int32)
    return row * side + column


def token_logprobs(logits, processed, token, temperature=1):
    """Return the log probabilities of sampled tokens, int32 [B] -> float32 [B, 2].

    First under the model itself, by its logits, then under the distribution that `sample_token`
    drew from, by the processed ones. (At temperature 0 there was no choice: the second is 0.)
    """
    def log_probability(logits):  # in float64, so that rounding hides which row it was computed in
        logits = tf.cast(logits, tf.float64)
        chosen = tf.gather_nd(logits, tf.stack([tf.range(tf.size(token)), token], axis=-1))
        return tf.cast(chosen - tf.reduce_logsumexp(logits, axis=-1), tf.float32)

    own = log_probability(logits)
    zeros = tf.zeros_like(own)
    return tf.stack([own, cond(any_row(temperature, is_positive), lambda: where_positive(
        temperature, log_probability(processed), zeros), lambda: zeros)], axis=-1)


def top_logprobs(logits, n):
    """Return the n likeliest tokens and their log probabilities: [B, V] -> [B, n] twice.

    int32 and float32. n may be a scalar tensor. Of equals, the lowest ids come first.
    """
    def choose():
        top, tokens = tf.math.top_k(logits, n)
        return tokens, top - tf.reduce_logsumexp(logits, axis=-1, keepdims=True)

    shape = [tf.shape(logits)[0], n]
    return cond(n > 0, choose, lambda: (tf.zeros(shape, tf.int32), tf.zeros(shape)))


def grid_side(n_vocab):
    """Return R, the side of the smallest square that holds the vocabulary."""
    return math.ceil(math.sqrt(n_vocab))


def column(option):
    """Return an option as a column, [B, 1] or [1, 1], of the type it has."""
    return tf.reshape(option if tf.is_tensor(option) else np.asarray(option), [-1, 1])


def row_values(option):
    """Return an option as a float32 column, [B, 1] or [1, 1]. It rounds tiny numbers to 0."""
    return tf.cast(column(option), tf.float32)


def reciprocal(option):
    """Return 1 / option, the option at least 1e-30, as a float32 column.

    TensorFlow turns a division by a number into a product with its reciprocal; done so here, a
    tensor gives the same bits. In float32 the last bit would depend on how many there are.
    """
    value = tf.cast(tf.maximum(row_values(option), 1e-30), tf.float64)
    return tf.cast(tf.reciprocal(value), tf.float32)


def with_rows(ids):
    """Return [row, id] for each id in [B, N], an index into [B, V]: int32 [B, N, 2]."""
    rows = tf.range(tf.shape(ids)[0])[:, tf.newaxis]
    return tf.stack([tf.broadcast_to(rows, tf.shape(ids)), ids], axis=-1)


def any_row(option, condition):
    """Return whether a condition holds in any row: a bool if the option is no tensor."""
    if tf.is_tensor(option):
        return tf.reduce_any(condition(option))
    return bool(np.any(condition(np.asarray(option))))


def where_positive(temperature, drawn, greedy):
    """Return `drawn` in rows of temperature above 0, else `greedy`; [B] each."""
    if not tf.is_tensor(temperature) and np.ndim(temperature) == 0:
        return drawn  # all rows alike: the caller has asked
    return tf.where_v2(column(temperature)[:, 0] > 0, drawn, greedy)


def cond(predicate, true_fn, false_fn):
    """tf.cond, decided when the graph is built if the predicate is known then."""
    if tf.is_tensor(predicate):
        return tf.cond(predicate, true_fn, false_fn)
    return true_fn() if predicate else false_fn()


# From tokens to logits, with a KV cache

def empty_cache(hparams, batch_size, n_positions):
    """Return a cache of zeros for `n_positions`, in memory that is shared with nothing else."""
    # tf.zeros may return one shared constant, and writing in place would change it everywhere.
    shape = [batch_size, hparams.n_head, n_positions, hparams.n_embd // hparams.n_head]
    return [tuple(tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True) for _ in 'kv')
            for _ in range(hparams.n_layer)]


def cache_indices(cached, positions):
    """Positions [B, S] or [1, S] -> indices [B, H, S] in cached [B, H, T, D] as [B H T, D]."""
    n_batch, n_head, n_positions, _ = model.shape_list(cached)
    first = tf.reshape(tf.range(n_batch * n_head) * n_positions, [n_batch, n_head, 1])
    return first + positions[:, tf.newaxis, :]


def write_cache(cached, indices, vectors):
    """Write vectors [B, H, S, D] into cached [B, H, T, D], in place; read only the result."""
    shape = model.shape_list(cached)
    written = tf.raw_ops.InplaceUpdate(x=tf.reshape(cached, [-1, shape[-1]]),
                                       i=tf.reshape(indices, [-1]),
                                       v=tf.reshape(vectors, [-1, shape[-1]]))
    return tf.reshape(written, shape)


def forward(hparams, tokens, positions, cache):
    """Read tokens int32 [B, S], the next ones of each row, at positions int32 [B, S].

    Returns the hidden states, float32 [B, S, E] (`model.lm_head` makes logits of them), and the
    cache with the keys and values of these tokens. A row attends to its own earlier positions only:
    cache positions after a query get weight exactly zero, whatever they hold. As the cache is
    written in place, a later call must depend on the output of this one, as the next token does.
    """
    n_batch, n_seq = model.shape_list(tokens)
    cached = cache[0][0]
    indices = cache_indices(cached, positions)
    later = tf.range(model.shape_list(cached)[2]) > positions[:, :, tf.newaxis]  # [B, S, T]
    mask = model.MASKED * tf.cast(later[:, tf.newaxis], tf.float32)  # [B, 1, S, T]
    written = []

    def attend(layer, c):
        q, k, v = model.split_heads(c, n_batch, n_seq, hparams.n_head)
        keys, values = cache[layer]
        written.append((write_cache(keys, indices, k), write_cache(values, indices, v)))
        return model.merge_heads(model.attention(q, *written[-1], mask))

    with model.variables():
        return model.transformer(hparams, tokens, positions, attend), written


def prefill(hparams, tokens, lengths, cache):
    """Read all but the last of each row's first tokens; return the DecodeState to decode from.

    `tokens` int32 [B, S] holds each row's text, padded with any token; the `lengths` of the texts
    are int32 [B], 1 to S.
    """
    n_batch, n_seq = model.shape_list(tokens)
    positions = tf.tile(tf.range(n_seq - 1)[tf.newaxis], [n_batch, 1])
    _, cache = forward(hparams, tokens[:, :-1], positions, cache)
    last = tf.gather_nd(tokens, tf.stack([tf.range(n_batch), lengths - 1], axis=-1))
    n_left = model.shape_list(cache[0][0])[2] - (n_seq - 1)
    text = tf.pad(tokens[:, :-1], [[0, 0], [0, n_left]])
    return DecodeState(last, lengths - 1, tf.fill([n_batch], False), text, cache)


def decode(hparams, state, length, uniforms, stop_token=None, logprobs=False, n_top=0,
           temperature=1, repetition_penalty=1, no_repeat_ngram_size=0, **filters):
    """Decode `length` tokens from a DecodeState, or fewer (but at least one) if all rows are done.

    Args:
      length: int32 scalar, at least 1.
      uniforms: a function from the number of a step, counted from 0, to what `sample_token` takes.
      stop_token: a row is done once it has produced this token, and then repeats it.
      logprobs: whether to compute `token_logprobs`; a bool or a scalar tensor.
      n_top: how many of the likeliest tokens to compute `top_logprobs` of, at each of the new ones;
        an int or a scalar tensor.
      repetition_penalty, no_repeat_ngram_size: as in `penalize_repetition` and
        `ban_repeated_ngrams`, of the text that the model has read, its prompt included.
      temperature, filters: the options of `process_logits`.

    Returns:
      The tokens, int32 [B, N], N <= length; a tuple of their log probabilities, float32 [B, N, 2],
      zeros if not asked for, the likeliest tokens, int32 [B, N, n_top], and those' log
      probabilities, float32 alike; and the DecodeState after them.
    """
    def step(i, tokens, scores, state):
        h, cache = forward(hparams, state.token[:, tf.newaxis], state.position[:, tf.newaxis],
                           state.cache)
        with model.variables():
            logits = check_finite(model.lm_head(hparams, h[:, 0]))
        text = tf.tensor_scatter_nd_update(
            state.text, with_rows(state.position[:, tf.newaxis])[:, 0], state.token)
        penalized = penalize_repetition(logits, repetition_penalty, text, state.position + 1)
        penalized = ban_repeated_ngrams(penalized, no_repeat_ngram_size, text, state.position + 1)
        processed = process_logits(penalized, temperature, **filters)
        token = sample_token(processed, uniforms(i), temperature)
        score = cond(logprobs, lambda: token_logprobs(logits, processed, token, temperature),
                     lambda: tf.zeros([tf.size(token), 2]))
        score = (score, *top_logprobs(logits, n_top))
        done = state.done
        if stop_token is not None:
            token = tf.where(done, tf.fill(tf.shape(token), stop_token), token)
            done = tf.logical_or(done, tf.equal(token, stop_token))
        return (i + 1, tokens.write(i, token),
                tuple(array.write(i, value) for array, value in zip(scores, score)),
                DecodeState(token, state.position + 1, done, text, cache))

    def array(dtype, shape):
        return tf.TensorArray(dtype, size=length, element_shape=state.token.shape.as_list() + shape)

    n_new, tokens, scores, state = tf.while_loop(
        lambda i, tokens, scores, state: tf.equal(i, 0) | (i < length) & ~tf.reduce_all(state.done),
        step, (0, array(tf.int32, []),
               (array(tf.float32, [2]), array(tf.int32, [None]), array(tf.float32, [None])), state))
    new = tf.range(n_new)
    scores = tuple(tf.transpose(score.gather(new), [1, 0, 2]) for score in scores)
    return tf.transpose(tokens.gather(new)), scores, state


def check_finite(logits):
    """Return logits; a run raises InvalidArgumentError if one of them is not a finite number."""
    # Their sum is not finite either, and is checked faster.
    check = tf.debugging.check_numerics(tf.reduce_sum(logits), NOT_FINITE)
    with tf.control_dependencies([check]):
        return tf.identity(logits)


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None,
                    temperature=1, top_k=0, top_p=1, uniforms=None, stop_token=None, **sampling):
    """Build the graph of a batch of texts, each continued by `length` tokens.

    Args:
      hparams: of the model, as in `model.model`.
      length: an int >= 1, the number of new tokens; context length + length - 1 <= n_ctx.
      start_token: an id to start every row from, with batch_size, or
      context: int32 [B, P], the texts to continue.
      temperature, top_k, top_p: numbers, scalar tensors, or one value a row. Temperature 0 takes
        the likeliest token; top_k 0, and top_p 0 or 1, choose among all tokens.
      uniforms: float32 [B, length, 2R], between 0 and 1; drawn in the graph if None.
      stop_token: fill a row with this id once it has produced it, and end when all rows have.
      sampling: min_p, typical_p, repetition_penalty and no_repeat_ngram_size, likewise.

    Returns:
      int32 [B, P + length], context included; with start_token, P is 1.

    Raises ValueError if not exactly one of start_token and context is given, top_k is larger than
    the vocabulary, or the texts are known to go beyond n_ctx.
    """
    if (start_token is None) == (context is None):
        raise ValueError('give either start_token or context')
    if context is None:
        context = tf.fill([batch_size, 1], start_token)
    n_batch, n_context = model.shape_list(context)
    if isinstance(n_context, int) and n_context + length - 1 > hparams.n_ctx:
        raise ValueError(f'{n_context} tokens and {length} new ones do not fit the window of '
                         f'{hparams.n_ctx}')

    def step_uniforms(i):
        if uniforms is not None:
            return uniforms[:, i]
        raw = tf.random_uniform([n_batch, 2 * grid_side(hparams.n_vocab)], maxval=2**23,
                                dtype=tf.int32)
        return (tf.cast(raw, tf.float32) + 0.5) * 2**-23

    cache = empty_cache(hparams, n_batch, n_context - 1 + length)
    state = prefill(hparams, context, tf.fill([n_batch], n_context), cache)
    tokens, _, _ = decode(hparams, state, length, step_uniforms, stop_token=stop_token,
                          temperature=temperature, top_k=top_k, top_p=top_p, **sampling)
    missing = length - tf.shape(tokens)[1]
    tokens = tf.pad(tokens, [[0, 0], [0, missing]], constant_values=stop_token or 0)
    return tf.concat([context, tokens], axis=1)
