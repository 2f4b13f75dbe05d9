"""AdamW as a TensorFlow graph: gradients of several batches, averaged and clipped, change weights.

Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", in the form of torch.optim's
AdamW: epsilon is added after the bias correction. (tf.train.AdamOptimizer adds it before, which
lengthens the first steps of weights with small gradients.)
"""

import tensorflow.compat.v1 as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


def state_variable(name, shape, dtype=tf.float32):
    """Return a variable that starts at zero and is kept from step to step."""
    return tf.get_variable(f'optimizer/{name}', shape, dtype, tf.zeros_initializer(),
                           trainable=False, use_resource=True)


def slot_variable(weight, kind):
    """Return a state variable of the shape of a weight."""
    return state_variable(f'{weight.op.name}/{kind}', weight.shape.as_list())


def accumulate(gradients, weights, n):
    """Average the gradients of n batches.

    Returns the operation to run for each batch but the last, the mean gradients, to compute for
    the last batch, and the operations that reset the sums, to run with it.
    """
    if n == 1:
        return tf.no_op(), gradients, []
    sums = [slot_variable(weight, 'sum') for weight in weights]
    add = tf.group(*[total.assign_add(gradient) for total, gradient in zip(sums, gradients)])
    gradients = [(total + gradient) / n for total, gradient in zip(sums, gradients)]
    with tf.control_dependencies(gradients):
        return add, gradients, [total.assign(tf.zeros_like(total)) for total in sums]


def clip(gradients, norm):
    """Scale gradients so that their global norm is at most `norm`, as torch's clip_grad_norm_."""
    scale = tf.minimum(1.0, norm / (tf.global_norm(gradients) + 1e-6))
    return [gradient * scale for gradient in gradients]


def adamw(gradients, weights, learning_rate, weight_decay):
    """Return the operation that updates the weights once all gradients, a list, are computed."""
    steps = state_variable('steps', [], tf.float64)
    t = steps + 1  # float64, as in torch: 1 - 0.999**t loses digits in float32
    correction_1 = 1 - BETA_1 ** t
    correction_2 = tf.sqrt(1 - BETA_2 ** t)
    # m / correction_1 / (sqrt(v) / correction_2 + epsilon), with both corrections taken out of it.
    rate = learning_rate * tf.cast(correction_2 / correction_1, tf.float32)
    epsilon = tf.cast(EPSILON * correction_2, tf.float32)
    with tf.control_dependencies(gradients + [rate, epsilon]):
        updates = [update(weight, gradient, rate, epsilon, learning_rate * weight_decay)
                   for weight, gradient in zip(weights, gradients)]
        return tf.group(*updates, steps.assign(t))


def update(weight, gradient, rate, epsilon, decay):
    """Return the operation that applies AdamW to a weight; rate and epsilon are bias corrected."""
    is_matrix = weight.op.name.endswith(('/w', '/wte', '/wpe'))  # biases and gains do not decay
    decays = [weight.assign_sub(decay * weight)] if is_matrix else []
    with tf.control_dependencies(decays):
        return tf.raw_ops.ResourceApplyAdam(
            var=weight.handle, m=slot_variable(weight, 'm').handle,
            v=slot_variable(weight, 'v').handle,
            beta1_power=0.0, beta2_power=0.0,  # their corrections are in rate and epsilon
            lr=rate, beta1=BETA_1, beta2=BETA_2, epsilon=epsilon, grad=gradient)
