"""AdamW as a TensorFlow graph: gradients of several batches, clipped, move the weights.

Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", in the form of torch.optim's
AdamW: epsilon is added after the bias correction. (tf.train.AdamOptimizer adds it before, which
lengthens the first steps of weights with small gradients.)
"""

import re

import tensorflow.compat.v1 as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def is_decayed(weight):
    """Says whether weight decay acts on a variable: on matrices, not on biases and gains."""
    return re.search(r'/(w|wte|wpe)$', weight.op.name) is not None


def state(name, shape, dtype=tf.float32):
    """Returns a variable of zeros that a step leaves for the next one."""
    return tf.get_variable('optimizer/' + name, shape, dtype, tf.zeros_initializer(),
                           trainable=False, use_resource=True)


def beside(weight, kind):
    """Returns such a variable of the shape of a weight."""
    return state('%s/%s' % (weight.op.name, kind), weight.shape.as_list())


def clip(gradients, norm):
    """Scales gradients so that their global norm is at most `norm`, as torch's clip_grad_norm_."""
    scale = tf.minimum(1.0, norm / (tf.global_norm(gradients) + 1e-6))
    return [gradient * scale for gradient in gradients]


def adamw(loss, weights, learning_rate, weight_decay, clip_norm, accumulation):
    """Builds the two halves of a step over `accumulation` batches.

    Args:
      loss: float32 scalar, the mean loss of one batch.
      weights: the variables to train.
      learning_rate: float32 scalar.
      clip_norm: the largest global norm of the mean gradient; None does not clip.

    Returns:
      The operation for every batch of a step but the last, which adds up gradients (None if
      accumulation is 1), and the operation for the last, which moves the weights.
    """
    # Dense, as a sum over the vocabulary's rows is: wte is the output layer's matrix, too.
    gradients = [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, weights)]
    add = None
    reset = []
    if accumulation > 1:
        sums = [beside(weight, 'sum') for weight in weights]
        add = tf.group(*[total.assign_add(gradient) for total, gradient in zip(sums, gradients)])
        gradients = [(total + gradient) / accumulation
                     for total, gradient in zip(sums, gradients)]
        with tf.control_dependencies(gradients):
            reset = [total.assign(tf.zeros_like(total)) for total in sums]
    if clip_norm is not None:
        gradients = clip(gradients, clip_norm)

    steps = state('steps', [], tf.float64)
    # In float64, as torch has it: 1 - 0.999**t loses digits in float32.
    t = steps + 1
    correction_1 = tf.cast(1 - BETA_1 ** t, tf.float32)
    correction_2 = tf.cast(tf.sqrt(1 - BETA_2 ** t), tf.float32)
    with tf.control_dependencies(gradients + [correction_1, correction_2]):
        updates = [move(*pair, learning_rate, weight_decay, correction_1, correction_2)
                   for pair in zip(weights, gradients)] + reset
        return add, tf.group(*updates, steps.assign(t))


def move(weight, gradient, learning_rate, weight_decay, correction_1, correction_2):
    """The operation that moves one weight against its gradient."""
    m, v = beside(weight, 'm'), beside(weight, 'v')
    new_m = BETA_1 * m + (1 - BETA_1) * gradient
    new_v = BETA_2 * v + (1 - BETA_2) * tf.square(gradient)
    move = new_m / correction_1 / (tf.sqrt(new_v) / correction_2 + EPSILON)
    if is_decayed(weight):
        move += weight_decay * weight
    with tf.control_dependencies([move]):
        return tf.group(m.assign(new_m), v.assign(new_v), weight.assign_sub(learning_rate * move))
