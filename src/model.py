"""The GPT-2 transformer as a TensorFlow graph: tokens in, logits out, nothing else.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3: the
decoder of Vaswani et al. 2017 with layer normalization moved to the input of each sub-block and
one more after the last block.

Letters in the shape comments, here and in the modules that build on this one:

    B  batch: texts side by side           V  vocabulary size, n_vocab
    S  sequence: positions of this call    E  width of the model, n_embd
    P  past: positions of earlier calls    H  attention heads, n_head
    T  positions attended to, P + S        D  width of a head, E / H
    L  layers, n_layer                     N  tokens of this call, B x S

All but attention treats every token by itself, so it works on the tokens of all texts in one row,
[N, ...].
"""

import functools
import math
import types

import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()  # graph mode on TensorFlow 2 too; changes nothing on TensorFlow 1.15

MASKED = -1e10  # so far below any score that softmax turns it into exactly zero


class HParams(types.SimpleNamespace):
    """The numbers that fix the shape of a model, by the names `hparams.json` gives them."""

    def override_from_dict(self, values):
        """Sets each named hyperparameter to the value that `values` gives it."""
        vars(self).update(values)


def default_hparams():
    """Returns the shape of the smallest released model; n_vocab comes from `hparams.json`."""
    return HParams(n_vocab=0, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)


def shape_list(x):
    """Returns the shape of x as a list: an int where known, else a scalar int32 tensor."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]


def unchanged(x):
    """The dropout of a model that is not being trained."""
    return x


def gelu(x):
    """Gaussian error linear unit in its tanh form (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def norm(x, scope):
    """Layer normalization (Ba et al. 2016): g x + b, x of mean 0 and variance 1, last axis."""
    with tf.variable_scope(scope):
        width = x.shape[-1]
        g = tf.get_variable('g', [width], initializer=tf.ones_initializer())
        b = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
        mean, variance = tf.nn.moments(x, axes=[-1], keep_dims=True)
        return tf.nn.batch_normalization(x, mean, variance, b, g, 1e-5)


def product(x, w, **options):
    """x w, of matrices, in the type of w; float32 in and out."""
    return tf.cast(tf.matmul(tf.cast(x, w.dtype), w, **options), tf.float32)


def dense(x, n_out, scope, stddev=0.02):
    """x w + b, [N, n_in] -> [N, n_out]."""
    with tf.variable_scope(scope):
        n_in = x.shape.as_list()[-1]
        w = tf.get_variable('w', [1, n_in, n_out],
                            initializer=tf.random_normal_initializer(stddev=stddev))
        b = tf.get_variable('b', [n_out], initializer=tf.zeros_initializer())
        return tf.nn.bias_add(product(x, tf.squeeze(w, axis=0)), b)


def causal_mask(n_queries, n_keys):
    """[S, T]: 0 where a query may look, MASKED where the key lies in its future.

    The queries are the last n_queries of n_keys positions.
    """
    query = tf.range(n_keys - n_queries, n_keys)[:, tf.newaxis]
    key = tf.range(n_keys)[tf.newaxis, :]
    return MASKED * tf.cast(key > query, tf.float32)


def attention(q, k, v, mask, drop=unchanged):
    """Scaled dot-product attention (Vaswani et al. 2017): softmax(q k^T / sqrt(D) + mask) v.

    q [B, H, S, D], k and v [B, H, T, D], mask broadcast to [B, H, S, T] -> [B, H, S, D]
    """
    q *= 1 / math.sqrt(q.shape.as_list()[-1])
    scores = tf.matmul(q, k, transpose_b=True) + mask  # [B, H, S, T]
    return tf.matmul(drop(tf.nn.softmax(scores)), v)


def split_heads(x, n_batch, n_seq, n_head):
    """[N, 3E] -> queries, keys and values, each [B, H, S, D]."""
    x = tf.reshape(x, [n_batch, n_seq, 3, n_head, x.shape.as_list()[-1] // (3 * n_head)])
    return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))


def merge_heads(x, n_embd):
    """[B, H, S, D] -> [N, E]."""
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [-1, n_embd])


def before_attention(x):
    """The part of a block before its attention: x [N, E] -> queries, keys, values [N, 3E]."""
    h = norm(x, 'ln_1')
    with tf.variable_scope('attn'):
        return dense(h, 3 * x.shape.as_list()[-1], 'c_attn')


def after_attention(x, a, n_layer, drop=unchanged):
    """The part of a block after its attention: its input x and the heads' a [N, E] -> [N, E].

    The attention's projection, then a perceptron of two layers, are added to x, each by way of
    `drop` as in `transformer`.
    """
    n_embd = x.shape.as_list()[-1]
    # 2L projections are added up from the first block to the last: a smaller start for each keeps
    # the variance of the sum from growing with the depth.
    stddev = 0.02 / math.sqrt(2 * n_layer)
    with tf.variable_scope('attn'):
        x += drop(dense(a, n_embd, 'c_proj', stddev))
    h = norm(x, 'ln_2')
    with tf.variable_scope('mlp'):
        h = gelu(dense(h, 4 * n_embd, 'c_fc'))
        return x + drop(dense(h, n_embd, 'c_proj', stddev))


def embeddings(hparams):
    """Returns the token embeddings wte [V, E] and the position embeddings wpe [n_ctx, E]."""
    wpe = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd],
                          initializer=tf.random_normal_initializer(stddev=0.01))
    wte = tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                          initializer=tf.random_normal_initializer(stddev=0.02))
    # Reading before gathering matters: a gather straight from a resource variable makes every later
    # read of it copy it whole, and the head reads wte at each step.
    return tf.identity(wte), tf.identity(wpe)


def recomputed(function):
    """Returns a function of one tensor that keeps nothing inside it in memory for gradients.

    For them it is computed anew (Chen et al. 2016). Why not tf.recompute_grad: on TensorFlow 2.21
    it saves a sixth of the memory, this three quarters.
    """
    @tf.custom_gradient
    def compute(x):
        def gradient(dy, variables=None):
            with tf.control_dependencies([dy]):  # not before its gradient is there
                again = tf.identity(x)
                y = function(again)
            dx, *dw = tf.gradients(y, [again] + variables, dy)
            with tf.control_dependencies(dw):  # what is inside is not needed any more
                return tf.identity(dx), dw
        return function(x), gradient

    return compute


def transformer(hparams, X, positions, attend, drop=unchanged, recompute=False):
    """Everything but the output layer: token ids X [B, S] -> [B, S, E], normalized.

    Args:
      positions: int32 [B, S] or [S], counted from the first token of each text.
      attend: a function of a layer's number and its queries, keys and values of these positions,
        [B, H, S, D] each, which returns what the heads attend to, [B, H, S, D]. Whoever builds
        the graph decides with it which other keys and values there are and where they live.
      drop: the dropout to train with, a function of a tensor that returns one of its shape.
      recompute: whether gradients compute each block anew, in place of keeping all that is inside
        it in memory until then (Chen et al. 2016).
    """
    n_batch, n_seq = shape_list(X)
    wte, wpe = embeddings(hparams)
    h = tf.cast(tf.gather(wte, X), tf.float32) + tf.gather(wpe, positions)  # [B, S, E]
    h = drop(tf.reshape(h, [-1, hparams.n_embd]))  # [N, E]
    scope = tf.get_variable_scope()

    def block(h, layer):
        with tf.variable_scope(scope, auxiliary_name_scope=False), \
                tf.variable_scope('h%d' % layer):
            qkv = split_heads(before_attention(h), n_batch, n_seq, hparams.n_head)
            a = merge_heads(attend(layer, *qkv), hparams.n_embd)
            return after_attention(h, a, hparams.n_layer, drop)

    for layer in range(hparams.n_layer):
        this_block = functools.partial(block, layer=layer)
        h = (recomputed(this_block) if recompute else this_block)(h)
        tf.add_to_collection('checkpoints', h)
    return tf.reshape(norm(h, 'ln_f'), [n_batch, n_seq, hparams.n_embd])


def read_texts(hparams, X, drop=unchanged, recompute=False):
    """The transformer on whole texts, from their first tokens on: X [B, S] -> [B, S, E].

    Args:
      drop, recompute: as in `transformer`.
    """
    n_seq = shape_list(X)[1]
    mask = causal_mask(n_seq, n_seq)

    def attend(layer, q, k, v):
        return attention(q, k, v, mask, drop)

    return transformer(hparams, X, tf.range(n_seq), attend, drop, recompute)


def head(hparams, h):
    """The output layer: h [N, E] -> logits [N, V], with the token embeddings as its weights."""
    wte, _ = embeddings(hparams)
    return product(h, wte, transpose_b=True)


def variables(scope='model', reuse=tf.AUTO_REUSE, custom_getter=None):
    """The variable scope that every function above wants around it."""
    return tf.variable_scope(scope, reuse=reuse, use_resource=True, custom_getter=custom_getter)


def past_shape(*, hparams, batch_size=None, sequence=None):
    """Returns the shape of `past` and `present` as a list: [B, L, 2, H, S, D]."""
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence,
            hparams.n_embd // hparams.n_head]


def model(hparams, X, past=None, scope='model', reuse=tf.AUTO_REUSE):
    """The whole model, from token ids to the logits of the token after each.

    Args:
      hparams: an object with n_vocab, n_ctx, n_embd, n_head and n_layer.
      X: int32 [B, S], ids below n_vocab, at positions P to P + S - 1; P + S <= n_ctx.
      past: None, or float32 [B, L, 2, H, P, D], the `present` of all earlier positions.
      scope, reuse: of the variables.

    Returns:
      A dictionary: `logits` float32 [B, S, V], and `present` float32 [B, L, 2, H, S, D], the
      keys and values of this call's positions. Each block's output joins the graph collection
      `checkpoints`, where memory-saving gradients look for it.
    """
    n_batch, n_seq = shape_list(X)
    n_past = 0 if past is None else shape_list(past)[-2]
    mask = causal_mask(n_seq, n_past + n_seq)
    presents = []

    def attend(layer, q, k, v):
        presents.append(tf.stack([k, v], axis=1))  # [B, 2, H, S, D]
        if past is not None:
            past_k, past_v = tf.unstack(past[:, layer], axis=1)
            k, v = tf.concat([past_k, k], axis=-2), tf.concat([past_v, v], axis=-2)
        return attention(q, k, v, mask)

    with variables(scope, reuse):
        h = transformer(hparams, X, tf.range(n_past, n_past + n_seq), attend)
        logits = head(hparams, tf.reshape(h, [-1, hparams.n_embd]))
        logits = tf.reshape(logits, [n_batch, n_seq, hparams.n_vocab])
        return {'logits': logits, 'present': tf.stack(presents, axis=1)}
