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

All but attention treats each token independently, so it works on the tokens of all texts in one
row, [N, ...].
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
        """Set each named hyperparameter to the value that `values` gives it."""
        vars(self).update(values)


def default_hparams():
    """Return the shape of the smallest released model; n_vocab comes from `hparams.json`."""
    return HParams(n_vocab=0, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)


def shape_list(x):
    """Return the shape of x as a list: an int where known, else a scalar int32 tensor."""
    dynamic = tf.shape(x)
    return [dynamic[i] if size is None else size for i, size in enumerate(x.shape.as_list())]


def identity(x):
    """Return x: the dropout of a model that is not being trained."""
    return x


# The paper from the inside out: activation, normalization, linear layers, attention, blocks

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


def matmul(x, w, **options):
    """x w, computed in the type of w; float32 in and out."""
    return tf.cast(tf.matmul(tf.cast(x, w.dtype), w, **options), tf.float32)


def conv1d(x, scope, nf, *, w_init_stdev=0.02):
    """A linear layer: x w + b, [N, n_in] -> [N, nf]. (A convolution of width 1, hence the name.)"""
    with tf.variable_scope(scope):
        w = tf.get_variable('w', [1, x.shape.as_list()[-1], nf],
                            initializer=tf.random_normal_initializer(stddev=w_init_stdev))
        b = tf.get_variable('b', [nf], initializer=tf.zeros_initializer())
        return tf.nn.bias_add(matmul(x, tf.squeeze(w, axis=0)), b)


def causal_mask(n_queries, n_keys):
    """[S, T]: MASKED where a key is later than a query, else 0; the queries are the last keys."""
    query = tf.range(n_keys - n_queries, n_keys)[:, tf.newaxis]
    key = tf.range(n_keys)[tf.newaxis, :]
    return MASKED * tf.cast(key > query, tf.float32)


def split_heads(c, n_batch, n_seq, n_head):
    """[N, 3E] -> queries, keys and values, each [B, H, S, D]."""
    c = tf.reshape(c, [n_batch, n_seq, 3, n_head, c.shape.as_list()[-1] // (3 * n_head)])
    return tf.unstack(tf.transpose(c, [2, 0, 3, 1, 4]))


def merge_heads(a):
    """[B, H, S, D] -> [N, E]."""
    _, n_head, _, width = a.shape.as_list()
    return tf.reshape(tf.transpose(a, [0, 2, 1, 3]), [-1, n_head * width])


def attention(q, k, v, mask, drop=identity):
    """Scaled dot-product attention (Vaswani et al. 2017): softmax(q k^T / sqrt(D) + mask) v.

    q [B, H, S, D], k and v [B, H, T, D], mask broadcast to [B, H, S, T] -> [B, H, S, D]
    """
    q *= 1 / math.sqrt(q.shape.as_list()[-1])
    scores = tf.matmul(q, k, transpose_b=True) + mask  # [B, H, S, T]
    return tf.matmul(drop(tf.nn.softmax(scores)), v)


def attn(x, scope, n_state, *, attend, hparams, drop=identity):
    """Self-attention of several heads: x [N, E] -> [N, E].

    `attend` is a function from the queries, keys and values of these positions, [N, 3E], to what
    the heads attend to, [N, E]. It knows the keys and values of other positions.
    """
    with tf.variable_scope(scope):
        c = conv1d(x, 'c_attn', 3 * n_state)
    a = attend(c)
    with tf.variable_scope(scope):
        return drop(conv1d(a, 'c_proj', n_state, w_init_stdev=residual_stdev(hparams)))


def mlp(x, scope, n_state, *, hparams, drop=identity):
    """A perceptron with one hidden layer of n_state units: x [N, E] -> [N, E]."""
    with tf.variable_scope(scope):
        h = gelu(conv1d(x, 'c_fc', n_state))
        return drop(conv1d(h, 'c_proj', x.shape.as_list()[-1],
                           w_init_stdev=residual_stdev(hparams)))


def block(x, scope, *, attend, hparams, drop=identity):
    """One layer of the transformer: x [N, E] -> [N, E]; `attend` is as in `attn`."""
    with tf.variable_scope(scope):
        n_embd = x.shape.as_list()[-1]
        x += attn(norm(x, 'ln_1'), 'attn', n_embd, attend=attend, hparams=hparams, drop=drop)
        x += mlp(norm(x, 'ln_2'), 'mlp', 4 * n_embd, hparams=hparams, drop=drop)
        return x


def residual_stdev(hparams):
    """Standard deviation of the initial weights of the 2L layers whose output is added to x."""
    return 0.02 / math.sqrt(2 * hparams.n_layer)  # keeps the variance of x from growing


def embeddings(hparams):
    """Return the token embeddings wte [V, E] and the position embeddings wpe [n_ctx, E]."""
    wpe = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd],
                          initializer=tf.random_normal_initializer(stddev=0.01))
    wte = tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                          initializer=tf.random_normal_initializer(stddev=0.02))
    # Reading before gathering matters: a gather straight from a resource variable makes every later
    # read of it copy it whole, and lm_head reads wte at each step.
    return tf.identity(wte), tf.identity(wpe)


def transformer(hparams, X, positions, attend, drop=identity, gradient_checkpointing=False):
    """Everything but the output layer: token ids X [B, S] -> hidden states [B, S, E], normalized.

    Args:
      positions: int32 [B, S] or [S], counted from the first token of each text.
      attend: a function of a layer's number and `c`, its queries, keys and values of these
        positions [N, 3E], to what the heads attend to [N, E]. It knows those of other positions.
      drop: the dropout to train with, a function from a tensor to one of its shape.
      gradient_checkpointing: whether to keep only the input of each block in memory and compute
        the block again for its gradients (Chen et al. 2016).
    """
    n_batch, n_seq = shape_list(X)
    wte, wpe = embeddings(hparams)
    h = tf.cast(tf.gather(wte, X), tf.float32) + tf.gather(wpe, positions)  # [B, S, E]
    h = drop(tf.reshape(h, [-1, hparams.n_embd]))  # [N, E]
    scope = tf.get_variable_scope()

    def layer_block(h, layer):
        with tf.variable_scope(scope, auxiliary_name_scope=False):
            return block(h, f'h{layer}', attend=functools.partial(attend, layer), hparams=hparams,
                         drop=drop)

    for layer in range(hparams.n_layer):
        this_block = functools.partial(layer_block, layer=layer)
        h = (recompute_gradients(this_block) if gradient_checkpointing else this_block)(h)
        tf.add_to_collection('checkpoints', h)
    return tf.reshape(norm(h, 'ln_f'), [n_batch, n_seq, hparams.n_embd])


def recompute_gradients(function):
    """Return a function of one tensor that keeps nothing inside it in memory for its gradients.

    They compute it again (Chen et al. 2016). tf.recompute_grad does the same in principle, but
    saves a sixth of the memory on TensorFlow 2.21; this saves three quarters.
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


def hidden_states(hparams, X, drop=identity, gradient_checkpointing=False):
    """The transformer on whole texts, from their first tokens: X [B, S] -> [B, S, E]."""
    n_batch, n_seq = shape_list(X)
    mask = causal_mask(n_seq, n_seq)

    def attend(layer, c):
        q, k, v = split_heads(c, n_batch, n_seq, hparams.n_head)
        return merge_heads(attention(q, k, v, mask, drop))

    return transformer(hparams, X, tf.range(n_seq), attend, drop, gradient_checkpointing)


def lm_head(hparams, h):
    """The output layer: h [N, E] -> logits [N, V], with the token embeddings as its weights."""
    wte, _ = embeddings(hparams)
    return matmul(h, wte, transpose_b=True)


def variables(scope='model', reuse=tf.AUTO_REUSE, custom_getter=None):
    """The variable scope that every function above expects around it."""
    return tf.variable_scope(scope, reuse=reuse, use_resource=True, custom_getter=custom_getter)


def past_shape(*, hparams, batch_size=None, sequence=None):
    """Return the shape of `past` and `present` as a list: [B, L, 2, H, S, D]."""
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence,
            hparams.n_embd // hparams.n_head]


def model(hparams, X, past=None, scope='model', reuse=tf.AUTO_REUSE):
    """The whole model, from token ids to the logits of the token after each.

    Args:
      hparams: an object with n_vocab, n_ctx, n_embd, n_head and n_layer.
      X: int32 [B, S], ids below n_vocab, at positions P to P + S - 1; P + S <= n_ctx.
      past: None, or float32 [B, L, 2, H, P, D], the `present` of all earlier positions.

    Returns:
      A dictionary: `logits` float32 [B, S, V], and `present` float32 [B, L, 2, H, S, D], the
      keys and values of this call's positions. Each block's output joins the graph collection
      `checkpoints`, where memory-saving gradients look for it.
    """
    n_batch, n_seq = shape_list(X)
    n_past = 0 if past is None else shape_list(past)[-2]
    mask = causal_mask(n_seq, n_past + n_seq)
    presents = []

    def attend(layer, c):
        q, k, v = split_heads(c, n_batch, n_seq, hparams.n_head)
        presents.append(tf.stack([k, v], axis=1))  # [B, 2, H, S, D]
        if past is not None:
            past_k, past_v = tf.unstack(past[:, layer], axis=1)
            k, v = tf.concat([past_k, k], axis=-2), tf.concat([past_v, v], axis=-2)
        return merge_heads(attention(q, k, v, mask))

    with variables(scope, reuse):
        h = transformer(hparams, X, tf.range(n_past, n_past + n_seq), attend)
        logits = lm_head(hparams, tf.reshape(h, [-1, hparams.n_embd]))
        logits = tf.reshape(logits, [n_batch, n_seq, hparams.n_vocab])
        return {'logits': logits, 'present': tf.stack(presents, axis=1)}
