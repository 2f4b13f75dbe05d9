"""Chooses what runs a model: the graph of `sample.py`, or the CPU engine of `lite.py`.

TensorFlow is imported only where it is needed: to run the graph, and to convert.
"""

import ctypes
import os

import checkpoint
import cli
import lite
from cli import UserError, silent_stderr


def open_sampler(opened, engine, dtype, **options):
    """Returns a Sampler of a model, ready to start.

    Args:
      opened: a checkpoint.Model.
      engine: 'graph'; 'lite', for which the weights are converted if they are not yet; or 'auto',
        which is 'lite' if float32 weights are converted and there is no GPU, or if dtype is 'int8'.
      dtype: of the weights, 'float32' or 'int8'; the latter for the lite engine alone.
      options: temperature, top_k, top_p and stop_token, as in `sample.Sampler`.

    Raises:
      UserError: the lite engine is asked for on TensorFlow 1, or the weights cannot be written.
      ModelError: the weights cannot be read.
    """
    if engine == 'graph' or engine == 'auto' and not suits_lite(opened, dtype):
        tf = cli.import_tensorflow()
        import sample
        session = tf.Session()
        sampler = sample.Sampler(session, opened.hparams, **options)
        checkpoint.restore(session, opened.directory)
        return sampler
    if is_tensorflow_1():
        raise UserError('the lite engine needs TensorFlow 2, and this is %s; use --engine graph '
                        'and --dtype float32' % lite.tensorflow_version())
    folder = lite.converted_folder(opened.directory, dtype)
    if not os.path.isdir(folder):
        cli.import_tensorflow()
        import lite_converter
        lite_converter.convert(opened.directory, opened.hparams, dtype)
    with silent_stderr():  # TensorFlow Lite tells of each of its models
        return lite.Sampler(folder, opened.hparams, **options)


def is_tensorflow_1():
    """Says whether this is TensorFlow 1, whose TensorFlow Lite lacks the fast kernels."""
    return lite.tensorflow_version().startswith('1.')


def suits_lite(opened, dtype):
    """Says whether the lite engine is what a user who did not name an engine wants."""
    if dtype == 'int8':
        return True
    return (not is_tensorflow_1() and os.path.isdir(lite.converted_folder(opened.directory, dtype))
            and not has_gpu())


def has_gpu():
    """Says whether TensorFlow finds a GPU; it is asked only where there is a driver of one."""
    try:
        ctypes.CDLL('libcuda.so.1')  # NVIDIA's; TensorFlow's own packages know no other GPUs
    except OSError:
        return False
    return bool(cli.import_tensorflow().config.list_physical_devices('GPU'))
