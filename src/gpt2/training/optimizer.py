"""Optimizers as TensorFlow graphs: gradients of batches, averaged and clipped, change weights.

AdamW: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", in the form of
torch.optim's AdamW: epsilon is added after the bias correction. (tf.train.AdamOptimizer adds it
before, which lengthens the first steps of weights with small gradients.)

Adafactor: Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
algorithms 4 and 5 with the clipping and the decay of section 9, but with the learning rate as it is
given, and with the weight decay of AdamW.
"""

import tensorflow.compat.v1 as tf

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # of AdamW
BETA_2_POWER, EPSILON_1, CLIP_RMS = -0.8, 1e-30, 1.0  # of Adafactor


def state_variable(name, shape, dtype=tf.float32):
    """Return a variable that starts at zero and is kept from step to step."""
    return tf.get_variable(f'optimizer/{name}', shape, dtype, tf.zeros_initializer(),
                           trainable=False, use_resource=True)


def slot_variable(weight, kind, shape=None):
    """Return a state variable for a weight, of its shape if no other is given."""
    return state_variable(f'{weight.op.name}/{kind}',
                          weight.shape.as_list() if shape is None else shape)


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
        updates = [apply_adamw(weight, gradient, rate, epsilon, learning_rate * weight_decay)
                   for weight, gradient in zip(weights, gradients)]
        return tf.group(*updates, steps.assign(t))


def apply_adamw(weight, gradient, rate, epsilon, decay):
    """Return the operation that applies AdamW to a weight; rate and epsilon are bias corrected."""
    with tf.control_dependencies(decayed(weight, decay)):
        return tf.raw_ops.ResourceApplyAdam(
            var=weight.handle, m=slot_variable(weight, 'm').handle,
            v=slot_variable(weight, 'v').handle,
            beta1_power=0.0, beta2_power=0.0,  # their corrections are in rate and epsilon
            lr=rate, beta1=BETA_1, beta2=BETA_2, epsilon=epsilon, grad=gradient)


def decayed(weight, decay):
    """Return the operations, one or none, that decay a weight: biases and gains do not decay."""
    return [weight.assign_sub(decay * weight)] if is_matrix(weight) else []


def is_matrix(weight):
    """Return whether a weight is a matrix, [n_in, n_out] or [1, n_in, n_out]."""
    return weight.op.name.endswith(('/w', '/wte', '/wpe'))


def adafactor(gradients, weights, learning_rate, weight_decay):
    """Return the operation that updates the weights once all gradients, a list, are computed."""
    steps = state_variable('steps', [], tf.float64)
    t = steps + 1
    share = tf.cast(t ** BETA_2_POWER, tf.float32)  # of the new in a moving average, 1 - beta_2
    done = gradients + [share]
    for weight, gradient in zip(weights, gradients):
        # One after the other, so that only one weight at a time has intermediate results in memory.
        with tf.control_dependencies(done):
            done = [apply_adafactor(weight, gradient, learning_rate, share,
                                    learning_rate * weight_decay)]
    with tf.control_dependencies(done):
        return steps.assign(t).op


def apply_adafactor(weight, gradient, learning_rate, share, decay):
    """Return the operation that applies Adafactor to a weight."""
    step = gradient * inverse_root(weight, tf.square(gradient) + EPSILON_1, share)
    rms = tf.sqrt(tf.reduce_mean(tf.square(step)))
    with tf.control_dependencies([rms] + decayed(weight, decay)):
        return weight.assign_sub(learning_rate / tf.maximum(1.0, rms / CLIP_RMS) * step).op


def inverse_root(weight, square, share):
    """Return 1 / sqrt of the second moments of a gradient, from its squares.

    Of a matrix only the moving averages of rows R and columns C are kept, and R C / mean(R) stands
    for its second moments.
    """
    if not is_matrix(weight):
        return tf.math.rsqrt(average(slot_variable(weight, 'v'), square, share))
    shape = weight.shape.as_list()
    rows = average(slot_variable(weight, 'rows', shape[:-1] + [1]),
                   tf.reduce_mean(square, axis=-1, keepdims=True), share)
    columns = average(slot_variable(weight, 'columns', shape[:-2] + [1] + shape[-1:]),
                      tf.reduce_mean(square, axis=-2, keepdims=True), share)
    return tf.math.rsqrt(rows / tf.reduce_mean(rows)) * tf.math.rsqrt(columns)


def average(slot, value, share):
    """Add a share of a new value to a moving average; return the average."""
    return slot.assign_add(share * (value - slot))
