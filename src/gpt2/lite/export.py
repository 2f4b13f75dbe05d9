"""Exports a model for the lite engine: the functions of `model.py` become TensorFlow Lite models.

What lies between the attention of one block and that of the next becomes a subgraph of its own, and
so does the output layer, in slices, which bounds the memory needed. `interpreter.py` runs them.

Letters in the shape comments are those of `model.py`.
"""

import collections
import functools
import math
import os
import re

import numpy as np
from tqdm import tqdm

import model
from gpt2 import checkpoint
from gpt2.errors import UserError
from gpt2.lite import int4
from gpt2.lite.template import Template
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
    templates = {}
    with tqdm(total=hparams.n_layer + 1 + len(slices), unit='part', disable=None,
              desc=f'converting to {dtype}') as progress:
        for part in subgraphs(hparams, dtype, read, slices):
            if part.kind not in templates:
                templates[part.kind] = Template(hparams.n_embd, part.dtype, part.build,
                                                part.n_inputs)
            with open(os.path.join(folder, f'{part.name}.tflite'), 'wb') as file:
                file.write(templates[part.kind].fill(part.read))
            progress.update()


# A subgraph: its name; its kind, which is that of others who differ in values alone; the dtype of
# its matrices; a function of n_inputs tensors [N, E] that builds it; and one from the names of that
# function's variables to their values.
Part = collections.namedtuple('Part', 'name kind dtype build n_inputs read')


def subgraphs(hparams, dtype, read, slices):
    """Yield each Part of a model.

    `read` is a function from the name of a weight to its value; `slices` are the token embeddings
    [V, E], cut into slices.
    """
    for layer in range(hparams.n_layer + 1):
        kind = layer if layer in (0, hparams.n_layer) else 1
        yield Part(f'part{layer}', kind, dtype,
                   functools.partial(between_attentions, hparams, kind), 1 if layer == 0 else 2,
                   functools.partial(read_later, read, layer - kind))
    # The output layer, which chooses the token, is never coarser than int8.
    head_dtype = 'int8' if dtype == 'int4' else dtype
    for i, wte in enumerate(slices):
        sliced = model.HParams(**{**vars(hparams), 'n_vocab': len(wte)})
        weights = {'model/wte': wte, 'model/wpe': read('model/wpe')}
        yield Part(f'head{i}', ('head', len(wte)), head_dtype,
                   functools.partial(model.lm_head, sliced), 1, weights.__getitem__)


def read_later(read, n, name):
    """Read a weight of that name, but of the block n blocks later."""
    return read(re.sub(r'/h(\d+)/', lambda match: f'/h{int(match.group(1)) + n}/', name))


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
