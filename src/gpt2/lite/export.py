"""Exports a model for the lite engine: the functions of `model.py` become TensorFlow Lite models.

What lies between the attention of one block and that of the next becomes a subgraph of its own, and
so does the output layer, in slices, which bounds the memory needed. `interpreter.py` runs them.

Letters in the shape comments are those of `model.py`.
"""

import functools
import math
import os

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

import model
from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.lite import int4
from gpt2.model_dir import weights_prefix

SLICE_BYTES = 40e6  # of float32 output weights to convert at a time


def export(model_dir, dtype, folder):
    """Write the embeddings and all subgraphs of a ModelDir into a folder.

    `dtype` is that of the weights, 'float32', 'int8' or 'int4'. Raises ModelError if they are
    damaged, and UserError if they are not wide enough for blocks of int4.
    """
    hparams = model_dir.hparams
    if dtype == 'int4' and hparams.n_embd % int4.BLOCK:
        raise UserError(f'int4 needs a width, n_embd, that is a multiple of {int4.BLOCK}, and this '
                        f'model has {hparams.n_embd}; use int8')
    read = checkpoint.open_weights(weights_prefix(model_dir.path), hparams)
    for name in ('wte', 'wpe'):
        np.save(os.path.join(folder, name), read(f'model/{name}'))
    wte = np.load(os.path.join(folder, 'wte.npy'), mmap_mode='r')
    slices = np.array_split(wte, math.ceil(wte.nbytes / SLICE_BYTES))
    with tqdm(total=hparams.n_layer + 1 + len(slices), unit='part', disable=None,
              desc=f'converting to {dtype}') as progress:
        for name, subgraph in subgraphs(hparams, read, slices):
            # The output layer, which chooses the token, is never coarser than int8.
            subgraph_dtype = 'int8' if dtype == 'int4' and name.startswith('head') else dtype
            with open(os.path.join(folder, f'{name}.tflite'), 'wb') as file:
                file.write(convert(hparams.n_embd, subgraph_dtype, **subgraph))
            progress.update()


def subgraphs(hparams, read, slices):
    """Yield the name of each subgraph, and arguments for `convert`.

    `read` is a function from the name of a weight to its value; `slices` are the token embeddings
    [V, E], cut into slices.
    """
    for layer in range(hparams.n_layer + 1):
        yield f'part{layer}', {'build': functools.partial(between_attentions, hparams, layer),
                               'n_inputs': 1 if layer == 0 else 2, 'read': read}
    for i, wte in enumerate(slices):
        sliced = model.HParams(**{**vars(hparams), 'n_vocab': len(wte)})
        weights = {'model/wte': wte, 'model/wpe': read('model/wpe')}
        yield f'head{i}', {'build': functools.partial(model.lm_head, sliced), 'n_inputs': 1,
                           'read': weights.__getitem__}


def between_attentions(hparams, layer, x, a=None):
    """All between the attention of one block and that of the next, which is block `layer`.

    From the input x of the block before (or of the first) and what its heads attend to, a, [N, E]
    each, to the block's input x [N, E] and its queries, keys and values [N, 3E]; after the last
    block to the normalized hidden states [N, E].
    """
    queries_keys_values = []

    def capture(c):
        queries_keys_values.append(c)
        return c[:, :hparams.n_embd]  # leads to nothing that is exported

    if layer > 0:
        x = model.block(x, f'h{layer - 1}', attend=lambda c: a, hparams=hparams)
    if layer == hparams.n_layer:
        return model.norm(x, 'ln_f')
    model.block(x, f'h{layer}', attend=capture, hparams=hparams)
    return [x] + queries_keys_values


def convert(n_embd, dtype, build, n_inputs, read):
    """Convert a function `build` of n_inputs tensors [N, E] to a TensorFlow Lite model, in bytes.

    `read` is a function from the name of a variable to its value.
    """
    with tf.Graph().as_default(), tf.Session() as session, model.variables():
        inputs = [tf.placeholder(tf.float32, [1, n_embd], f'input{i}') for i in range(n_inputs)]
        outputs = tf.nest.flatten(build(*inputs))
        for variable in tf.global_variables():
            session.run(variable.initializer, {variable.initial_value: read(variable.op.name)})
        converter = tf.lite.TFLiteConverter.from_session(session, inputs, outputs)
        if dtype == 'int8':  # of the weights; each output channel has a scale of its own
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        data = converter.convert()
        return int4.rewrite(data) if dtype == 'int4' else data
