"""The training graph: a batch of tokens -> its loss -> gradients -> an update of the weights.

Letters in the shape comments are those of `model.py`.
"""

import collections
import zlib

import tensorflow.compat.v1 as tf

import model
from gpt2 import checkpoint
from gpt2.training import optimizer

# The nodes of the graph. In: `tokens` int32 [B, S + 1]; `learning_rate` float32; `dropout_seed`
# int32, which decides what a batch drops. Out, in nats: `mean_loss` of a batch to learn from;
# `total_loss`, the sum over the tokens of a batch without dropout. Operations: `add` for each batch
# of a step but the last, `update` for the last.
TrainingGraph = collections.namedtuple(
    'TrainingGraph', 'tokens learning_rate dropout_seed add update mean_loss total_loss')


def build_graph(hparams, options, compute, devices=('',), average=None, first_device=0):
    """Build the TrainingGraph of TrainingOptions and ComputeOptions; devices share each batch.

    Where other hosts have a share in it, `average` is a function from gradients to their means over
    all hosts, and `first_device` the number of devices that come before these.
    """
    tokens = tf.placeholder(tf.int32, [None, None])
    learning_rate = tf.placeholder(tf.float32, [])
    dropout_seed = tf.placeholder_with_default(0, [])
    with model.variables():
        validation_loss = total_loss(hparams, tokens)
    weights = weights_to_train(hparams, options.train_only)

    def loss_and_gradients(tokens, dropout_seed):
        drop = dropout(options.dropout, dropout_seed) if options.dropout else model.identity
        with model.variables(custom_getter=cast_matrices(options.dtype)):
            loss = total_loss(hparams, tokens, drop, compute.recompute)
        loss /= tf.cast(tf.size(tokens[:, 1:]), tf.float32)
        # Dense: wte is the matrix of the output layer, too, so all of its rows have gradients.
        return [loss] + [tf.convert_to_tensor(value) for value in tf.gradients(loss, weights)]

    results = []
    for number, (device, part) in enumerate(
            zip(devices, tf.split(tokens, len(devices))), start=first_device):
        with tf.device(device):
            inputs = [part, dropout_seed + number]
            results.append(tf.xla.experimental.compile(loss_and_gradients, inputs) if compute.xla
                           else loss_and_gradients(*inputs))
    mean_loss, *gradients = [values[0] if len(values) == 1 else tf.add_n(values) / len(values)
                             for values in zip(*results)]
    add, gradients, reset = optimizer.accumulate(gradients, weights, options.accumulation)
    gradients = average(gradients) if average else gradients
    gradients = optimizer.clip(gradients, options.clip_norm)
    apply = {'adamw': optimizer.adamw, 'adafactor': optimizer.adafactor}[options.optimizer]
    update = apply(gradients, weights, learning_rate, options.weight_decay)
    return TrainingGraph(tokens, learning_rate, dropout_seed, add, tf.group(update, *reset),
                         mean_loss, validation_loss)


def total_loss(hparams, tokens, drop=model.identity, gradient_checkpointing=False):
    """Return the sum of the cross entropies, in nats, of tokens [B, S + 1] but each row's first."""
    X, targets = tokens[:, :-1], tf.reshape(tokens[:, 1:], [-1])
    h = model.hidden_states(hparams, X, drop, gradient_checkpointing)
    logits = model.lm_head(hparams, tf.reshape(h, [-1, hparams.n_embd]))  # [N, V]
    return tf.reduce_sum(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits))


def weights_to_train(hparams, which):
    """Return variables of the model: 'all', those of its 'blocks', or of a number of last ones."""
    weights = checkpoint.model_weights()
    if which == 'all':
        return weights
    first = 0 if which == 'blocks' else hparams.n_layer - int(which)
    scopes = tuple(f'model/h{layer}/' for layer in range(first, hparams.n_layer))
    return [weight for weight in weights if weight.op.name.startswith(scopes)]


def dropout(rate, seed):
    """Return a function that drops a share of the elements of a tensor (Srivastava et al. 2014).

    The seed, an int32 scalar, and the variable scope alone decide which, so a block that is
    computed a second time drops the same ones.
    """
    def drop(x):
        scope = zlib.crc32(tf.get_variable_scope().name.encode()) % 2**31
        uniform = tf.random.stateless_uniform(tf.shape(x), tf.stack([seed, scope]))
        return tf.where(uniform < rate, tf.zeros_like(x), x / (1 - rate))
    return drop


def cast_matrices(dtype):
    """Return a custom getter of variables that casts matrices to the compute dtype."""
    def get(getter, name, *args, **kwargs):
        value = getter(name, *args, **kwargs)
        is_matrix = name.endswith(('/w', '/wte'))
        return tf.cast(value, dtype) if is_matrix and dtype != 'float32' else value
    return get
