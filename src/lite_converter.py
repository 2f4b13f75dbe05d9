"""Converts a model for the CPU engine: the functions of `model.py` to TensorFlow Lite models.

The part of each block before its attention and the part after it are converted to a model each,
and so is the output layer, in pieces: so the memory needed is bounded. `lite.py` runs them.

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
    """
    folder = converted_folder(directory, dtype)
    if os.path.isdir(folder):
        return folder
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix='partial-', dir=parent)
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
    reader = tf.train.load_checkpoint(checkpoint.weights_prefix(directory))
    for name in ('wte', 'wpe'):
        np.save(os.path.join(folder, name), reader.get_tensor('model/' + name))
    wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
    pieces = np.array_split(wte, math.ceil(wte.nbytes / PIECE_BYTES))
    with tqdm(total=2 * hparams.n_layer + len(pieces), unit='part', disable=None,
              desc='converting to ' + dtype) as progress:
        for name, part in parts(hparams, reader, pieces):
            with open(os.path.join(folder, name + '.tflite'), 'wb') as file:
                file.write(convert_part(hparams.n_embd, dtype, **part))
            progress.update()


def parts(hparams, reader, pieces):
    """Yields the name of each part to convert, and arguments for `convert_part`.

    Args:
      pieces: the token embeddings [V, E], cut into pieces.
    """
    names = sorted(reader.get_variable_to_shape_map())
    for layer in range(hparams.n_layer):
        scope = 'model/h%d' % layer
        weights = {name: reader.get_tensor(name) for name in names if name.startswith(scope + '/')}
        yield 'before%d' % layer, dict(build=model.before_attention, n_inputs=1, scope=scope,
                                       weights=weights)
        after = functools.partial(model.after_attention, n_layer=hparams.n_layer)
        yield 'after%d' % layer, dict(build=after, n_inputs=2, scope=scope, weights=weights)
    for number, piece in enumerate(pieces):
        weights = {'model/ln_f/' + name: reader.get_tensor('model/ln_f/' + name) for name in 'gb'}
        weights['model/wte'] = piece
        cut = model.HParams(**dict(vars(hparams), n_vocab=len(piece)))
        yield 'head%d' % number, dict(build=functools.partial(output_layer, cut), n_inputs=1,
                                      scope='model', weights=weights)


def output_layer(hparams, x):
    """The last normalization and the head, [N, E] -> [N, V]."""
    return model.head(hparams, model.norm(x, 'ln_f'))


def convert_part(n_embd, dtype, build, n_inputs, scope, weights):
    """Converts a function of n_inputs tensors [N, E] to a TensorFlow Lite model, and returns it.

    Args:
      build: the function.
      scope, weights: the variable scope it wants and the values of its variables by name.
    """
    with tf.Graph().as_default(), tf.Session() as session, model.variables(scope):
        inputs = [tf.placeholder(tf.float32, [1, n_embd], 'input%d' % i) for i in range(n_inputs)]
        output = build(*inputs)
        for variable in tf.global_variables():
            if variable.op.name in weights:
                session.run(variable.initializer,
                            {variable.initial_value: weights[variable.op.name]})
        converter = tf.lite.TFLiteConverter.from_session(session, inputs, [output])
        if dtype == 'int8':  # weights, each output channel with a scale of its own
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        return converter.convert()
