"""Converts a model for the CPU engine: the functions of `model.py` to TensorFlow Lite models.

What lies between the attention of one block and that of the next is converted to a model each, and
so is the output layer, in pieces: so the memory needed is bounded. `lite.py` runs them.

Letters in the shape comments are those of `model.py`.
"""

import functools
import math
import os
import shutil
import tempfile

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import checkpoint
import model
from lite import converted_folder

PIECE_BYTES = 40e6  # of float32 output weights to convert at a time, which bounds the memory needed


def convert(directory, hparams, dtype):
    """Converts a model directory's weights, unless that was done before.

    Returns:
      The folder of the converted models. It is there in whole or not at all, and can be removed at
      any time.

    Raises:
      ModelError: the weights do not fit the hyperparameters, or are damaged.
      OSError: the folder cannot be written.
    """
    folder = converted_folder(directory, dtype)
    if os.path.isdir(folder):
        return folder
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix='partial-', dir=parent)
    shutil.copymode(parent, partial)  # whoever can read the model can read this, too
    try:
        convert_parts(directory, hparams, dtype, partial)
        os.rename(partial, folder)
    except OSError:
        if not os.path.isdir(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name in os.listdir(parent):
        if name.startswith(dtype) and name != os.path.basename(folder):  # of other weights
            shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
    return folder


def convert_parts(directory, hparams, dtype, folder):
    """Writes the embeddings and all converted parts of a model into a folder."""
    read = checkpoint.open_weights(checkpoint.weights_prefix(directory), hparams)
    for name in ('wte', 'wpe'):
        np.save(os.path.join(folder, name), read('model/' + name))
    wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
    pieces = np.array_split(wte, math.ceil(wte.nbytes / PIECE_BYTES))
    with tqdm(total=hparams.n_layer + 1 + len(pieces), unit='part', disable=None,
              desc='converting to ' + dtype) as progress:
        for name, part in parts(hparams, read, pieces):
            with open(os.path.join(folder, name + '.tflite'), 'wb') as file:
                file.write(convert_part(hparams.n_embd, dtype, **part))
            progress.update()


def parts(hparams, read, pieces):
    """Yields the name of each part to convert, and arguments for `convert_part`.

    Args:
      read: a function from the name of a weight to its value.
      pieces: the token embeddings [V, E], cut into pieces.
    """
    for layer in range(hparams.n_layer + 1):
        yield 'part%d' % layer, dict(build=functools.partial(part, hparams, layer),
                                     n_inputs=1 if layer == 0 else 2, value=read)
    for number, piece in enumerate(pieces):
        cut = model.HParams(**dict(vars(hparams), n_vocab=len(piece)))
        values = {'model/wte': piece, 'model/wpe': read('model/wpe')}
        yield 'head%d' % number, dict(build=functools.partial(model.head, cut), n_inputs=1,
                                      value=values.__getitem__)


def part(hparams, layer, x, a=None):
    """All between the attention of one block and that of the next, which is block `layer`.

    Args:
      layer: 0 for what comes before the first attention, n_layer for what comes after the last.
      x: the input of the block before, or of the first, [N, E].
      a: what its heads attend to, [N, E].

    Returns:
      The block's input x [N, E], and its queries, keys and values [N, 3E]; after the last block
      the input of the output layer [N, E].
    """
    if layer > 0:
        with tf.variable_scope('h%d' % (layer - 1)):
            x = model.after_attention(x, a, hparams.n_layer)
    if layer == hparams.n_layer:
        return model.norm(x, 'ln_f')
    with tf.variable_scope('h%d' % layer):
        return x, model.before_attention(x)


def convert_part(n_embd, dtype, build, n_inputs, value):
    """Converts a function of n_inputs tensors [N, E] to a TensorFlow Lite model, and returns it.

    Args:
      build: the function, which returns a tensor or several.
      value: a function from the name of a variable to its value.
    """
    with tf.Graph().as_default(), tf.Session() as session, model.variables():
        inputs = [tf.placeholder(tf.float32, [1, n_embd], 'input%d' % i) for i in range(n_inputs)]
        outputs = tf.nest.flatten(build(*inputs))
        for variable in tf.global_variables():
            session.run(variable.initializer, {variable.initial_value: value(variable.op.name)})
        converter = tf.lite.TFLiteConverter.from_session(session, inputs, outputs)
        if dtype == 'int8':  # weights, each output channel with a scale of its own
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()
