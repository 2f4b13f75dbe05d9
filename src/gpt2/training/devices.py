"""What computes a training step: GPUs or processors, and what they are capable of."""

import re

import tensorflow.compat.v1 as tf

from gpt2.errors import UserError


def choose_devices(options, compute, n_hosts=1):
    """Return the names of the devices to share a batch, with those of other hosts.

    Raises UserError if they do not suffice.
    """
    gpus = tf.config.experimental.list_physical_devices('GPU')
    n = compute.devices or len(gpus) or 1
    if gpus and n > len(gpus):
        raise UserError(f'there are {len(gpus)} GPUs, not {n}; give a smaller --devices')
    options.check_devices(n, n_hosts)
    is_tensorflow_1 = tf.__version__.startswith('1.')
    if compute.xla and is_tensorflow_1:
        raise UserError(f'--xla needs TensorFlow 2, and this is {tf.__version__}; leave it out')
    if options.dtype == 'bfloat16' and (is_tensorflow_1 or not has_bfloat16(gpus)):
        raise UserError('--dtype bfloat16 needs TensorFlow 2 and a GPU or processor that computes '
                        'in it, which this machine lacks; leave it out')
    return [f'/{"gpu" if gpus else "cpu"}:{number}' for number in range(n)]


def has_bfloat16(gpus):
    """Return whether GPUs, or without any this processor, have matrix products in bfloat16."""
    if gpus:
        return all(tf.config.experimental.get_device_details(gpu).get('compute_capability', (0,))
                   >= (8, 0) for gpu in gpus)  # NVIDIA's since Ampere
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return re.search(r'\b(avx512_bf16|amx_bf16)\b', file.read()) is not None
    except OSError:
        return False
