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


def adamw(gradients, weights, learning_rate, weight_decay, clip_norm, accumulation):
    """Builds the two halves of a step over `accumulation` batches.

    Args:
      gradients: of the mean loss of one batch, one of each weight, float32.
      weights: the variables to train.
      learning_rate: float32 scalar.
      clip_norm: the largest global norm of the mean gradient; a longer one is shortened.

    Returns:
      The operation for every batch of a step but the last, which adds up gradients, and the
      operation for the last, which moves the weights.
    """
    add = tf.no_op()
    reset = []
    if accumulation > 1:
        sums = [beside(weight, 'sum') for weight in weights]
        add = tf.group(*[total.assign_add(gradient) for total, gradient in zip(sums, gradients)])
        gradients = [(total + gradient) / accumulation
                     for total, gradient in zip(sums, gradients)]
        with tf.control_dependencies(gradients):
            reset = [total.assign(tf.zeros_like(total)) for total in sums]
    gradients = clip(gradients, clip_norm)

    steps = state('steps', [], tf.float64)
    # In float64, as torch has it: 1 - 0.999**t loses digits in float32.
    t = steps + 1
    correction_1 = 1 - BETA_1 ** t
    correction_2 = tf.sqrt(1 - BETA_2 ** t)
    # m / correction_1 / (sqrt(v) / correction_2 + epsilon), with both corrections taken out of it.
    rate = learning_rate * tf.cast(correction_2 / correction_1, tf.float32)
    epsilon = tf.cast(EPSILON * correction_2, tf.float32)
    with tf.control_dependencies(gradients + [rate, epsilon]):
        updates = [move(*pair, rate, epsilon, learning_rate * weight_decay)
                   for pair in zip(weights, gradients)]
        return add, tf.group(*updates, *reset, steps.assign(t))


def move(weight, gradient, rate, epsilon, decay):
    """The operation that moves one weight against its gradient: Adam, in one pass over all.

    Args:
      rate, epsilon: float32 scalars, bias corrected.
      decay: float32 scalar, the share of a matrix that is taken away first.
    """
    decays = [weight.assign_sub(decay * weight)] if is_decayed(weight) else []
    with tf.control_dependencies(decays):
        return tf.raw_ops.ResourceApplyAdam(
            var=weight.handle, m=beside(weight, 'm').handle, v=beside(weight, 'v').handle,
            beta1_power=0.0, beta2_power=0.0,  # their corrections are in rate and epsilon
            lr=rate, beta1=BETA_1, beta2=BETA_2, epsilon=epsilon, grad=gradient)
