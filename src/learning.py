"""The training graph: a batch of tokens -> its loss -> gradients -> a step of the weights.

Letters in the shape comments are those of `model.py`.
"""

import collections
import zlib

import tensorflow.compat.v1 as tf

import checkpoint
import model
import optimizer

# The nodes of the graph. In: `tokens` int32 [B, S + 1]; `learning_rate`; `noise`, an int32 that
# decides what dropout drops. Out: `mean_loss`, of a batch that is learned from, and `total_loss`,
# the sum over a batch's tokens with nothing dropped, both in nats. `add` is the operation for each
# batch of a step but the last, `step` that for the last.
Graph = collections.namedtuple('Graph', 'tokens learning_rate noise add step mean_loss total_loss')


def build_graph(hparams, flags, devices=('',)):
    """Builds the training graph of a model.

    Args:
      flags: an object with accumulation, weight_decay, clip_norm, dropout, train_only, dtype,
        recompute and xla, as `train.py` has them.
      devices: names of the devices that share each batch.

    Returns:
      A Graph.
    """
    tokens = tf.placeholder(tf.int32, [None, None])
    learning_rate = tf.placeholder(tf.float32, [])
    noise = tf.placeholder_with_default(0, [])
    with model.variables():
        total = total_loss(hparams, tokens)
    weights = weights_to_train(hparams, flags.train_only)

    def learn(tokens, noise):
        """Returns a batch's mean loss and the gradient of each weight."""
        drop = dropout(flags.dropout, noise) if flags.dropout else model.unchanged
        with model.variables(custom_getter=products_in(flags.dtype)):
            loss = total_loss(hparams, tokens, drop, flags.recompute)
        loss /= tf.cast(tf.size(tokens[:, 1:]), tf.float32)
        # Dense, as a sum over the vocabulary's rows is: wte is the output layer's matrix, too.
        return [loss] + [tf.convert_to_tensor(gradient)
                         for gradient in tf.gradients(loss, weights)]

    results = []
    for number, (device, part) in enumerate(zip(devices, tf.split(tokens, len(devices)))):
        with tf.device(device):
            inputs = [part, noise + number]
            results.append(tf.xla.experimental.compile(learn, inputs) if flags.xla
                           else learn(*inputs))
    mean_loss, *gradients = map(mean, zip(*results))
    add, step = optimizer.adamw(gradients, weights, learning_rate, flags.weight_decay,
                                flags.clip_norm, flags.accumulation)
    return Graph(tokens, learning_rate, noise, add, step, mean_loss, total)


def mean(values):
    """The mean of tensors of one shape."""
    return values[0] if len(values) == 1 else tf.add_n(values) / len(values)


def total_loss(hparams, tokens, drop=model.unchanged, recompute=False):
    """The cross entropy of all tokens but each row's first, [B, S + 1], added up, in nats.

    Args:
      drop, recompute: as in `model.transformer`.
    """
    X, targets = tokens[:, :-1], tf.reshape(tokens[:, 1:], [-1])
    h = model.read_texts(hparams, X, drop, recompute)
    logits = model.head(hparams, tf.reshape(h, [-1, hparams.n_embd]))  # [N, V]
    return tf.reduce_sum(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits))


def weights_to_train(hparams, which):
    """Returns variables of the model: 'all', those of its 'blocks', or of a number of last ones."""
    weights = checkpoint.model_weights()
    if which == 'all':
        return weights
    first = 0 if which == 'blocks' else hparams.n_layer - int(which)
    scopes = tuple('model/h%d/' % layer for layer in range(first, hparams.n_layer))
    return [weight for weight in weights if weight.op.name.startswith(scopes)]


def dropout(rate, noise):
    """Returns a function that drops a share of the elements of a tensor (Srivastava et al. 2014).

    Which, depends on `noise`, an int32 scalar, and on the variable scope alone. So a block that is
    computed anew drops the same ones.
    """
    def drop(x):
        place = zlib.crc32(tf.get_variable_scope().name.encode()) % 2**31
        uniform = tf.random.stateless_uniform(tf.shape(x), tf.stack([noise, place]))
        return tf.where(uniform < rate, tf.zeros_like(x), x / (1 - rate))

    return drop


def products_in(dtype):
    """Returns a custom getter of variables that gives matrices in a type, for `model.product`."""
    def get(getter, name, *args, **kwargs):
        value = getter(name, *args, **kwargs)
        is_matrix = name.endswith(('/w', '/wte'))
        return tf.cast(value, dtype) if is_matrix and dtype != 'float32' else value

    return get
