"""A model directory, models/<name>, as far as it can be read without TensorFlow.

    hparams.json                         the sizes of the model
    encoder.json, vocab.bpe              its vocabulary
    checkpoint                           the name of its weights; in released models `model.ckpt`
    model.ckpt.{index,data-*,meta}       its weights, a TensorFlow V2 checkpoint
"""

import dataclasses
import glob
import hashlib
import json
import os
import re
import types

import encoder
from gpt2 import files
from gpt2.errors import ModelError
from gpt2.options import PATH, Options, option

HPARAMS = ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')
VOCABULARY = ('encoder.json', 'vocab.bpe')
SUFFIXES = ('.index', '.data-00000-of-00001', '.meta')  # of the files of a checkpoint
RELEASED = ('124M', '355M', '774M', '1558M')
LARGEST_SIZE = 10**7  # of any size of a model; larger numbers are damage


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
    """Which model to open."""

    model_name: str = option('124M', PATH, 'a folder of MODELS_DIR')
    models_dir: str = option('models', PATH, 'the folder of the models')


@dataclasses.dataclass(frozen=True)
class ModelDir:
    """An opened model directory: its name and path, its sizes (an object), and its Encoder."""

    name: str
    path: str
    hparams: types.SimpleNamespace
    encoder: encoder.Encoder


def open_model_dir(model_name, models_dir, weights=True):
    """Open a model directory and check all that can be checked without TensorFlow.

    The name may also be the path of a model directory elsewhere. Raises ModelError if a file is
    missing or malformed. It may lack weights if `weights` is False.
    """
    path = os.path.join(models_dir, model_name)
    is_elsewhere = os.path.isabs(model_name) or not os.path.isdir(path)
    if is_elsewhere and os.path.isfile(os.path.join(model_name, 'hparams.json')):
        models_dir, model_name = os.path.split(os.path.abspath(model_name))
        path = os.path.join(models_dir, model_name)
    if not model_name or not os.path.isdir(path):
        raise ModelError(missing_model(model_name, models_dir))
    check_path(path)
    hparams = read_hparams(os.path.join(path, 'hparams.json'))
    vocabulary = os.path.join(path, 'encoder.json')
    try:
        text_encoder = encoder.get_encoder(model_name, models_dir)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(one_line(error))
    if encoder.END_OF_TEXT not in text_encoder.encoder:
        raise ModelError(f'{vocabulary} lacks {encoder.END_OF_TEXT}; download the model again')
    if len(text_encoder.encoder) != hparams.n_vocab:
        raise ModelError(f'{vocabulary} has {len(text_encoder.encoder)} entries, but n_vocab in '
                         f'hparams.json is {hparams.n_vocab}: they belong to different models')
    if weights:
        check_weights_size(weights_prefix(path), hparams)
    return ModelDir(model_name, path, hparams, text_encoder)


def check_path(path):
    """Raise ModelError if TensorFlow would take a path for a pattern."""
    if re.search(r'[][*?\\]', path):
        raise ModelError('TensorFlow reads no files from a path with one of [ ] * ? \\ in it: '
                         f'rename {path}')


def missing_model(model_name, models_dir):
    """Return the message that a model is missing, with the models that exist."""
    names = sorted(os.path.basename(os.path.dirname(path)) for path in
                   glob.glob(os.path.join(glob.escape(models_dir), '*', 'checkpoint')))
    known = f'only: {", ".join(names)}' if names else 'and no other; give the right --models_dir'
    return (f'there is no model {model_name} in {os.path.abspath(models_dir)}, {known}'
            f'{";" if names else ", or"} download a released one with: python3 download_model.py '
            f'{model_name if model_name in RELEASED else RELEASED[0]}')


def one_line(error):
    """Return the message of an error while reading a model, as one line."""
    if isinstance(error, OSError) and error.filename:
        return f'{error.filename}: {error.strerror}; download the model again'
    return ' '.join(str(error).split())


def read_hparams(path):
    """Return the sizes in an hparams.json, an object with an int of each. Raises ModelError."""
    hparams = read_json(path)
    check_sizes(path, hparams, HPARAMS)
    return types.SimpleNamespace(**hparams)


def read_json(path):
    """Return the JSON object in a file of a model. Raises ModelError."""
    try:
        return files.read_json(path)
    except OSError as error:
        raise ModelError(one_line(error))
    except ValueError as error:
        raise ModelError(f'{path}: {error}; download the model again')


def check_sizes(path, values, names):
    """Raise ModelError unless `values` of `names` (n_embd and n_head among them) make a model."""
    for name in names:
        if name not in values:
            raise ModelError(f'{path} lacks {name}; download the model again')
        if type(values[name]) is not int or not 1 <= values[name] <= LARGEST_SIZE:
            raise ModelError(f'{path}: {name} must be a whole number from 1 to {LARGEST_SIZE}, not '
                             f'{json.dumps(values[name])[:40]}; correct the file')
    if values['n_embd'] % values['n_head']:
        raise ModelError(f'{path}: n_embd, {values["n_embd"]}, must be a multiple of n_head, '
                         f'{values["n_head"]}; correct the file')


def weight_shapes(hparams):
    """Yield the name and the shape, a list, of each weight of a model, layer by layer.

    A generator, so that an absurd number of layers is refused at the first that is missing.
    """
    width = hparams.n_embd
    yield 'model/wte', [hparams.n_vocab, width]
    yield 'model/wpe', [hparams.n_ctx, width]
    for layer in range(hparams.n_layer):
        for name, n_in, n_out in (('attn/c_attn', width, 3 * width), ('attn/c_proj', width, width),
                                  ('mlp/c_fc', width, 4 * width), ('mlp/c_proj', 4 * width, width)):
            yield f'model/h{layer}/{name}/w', [1, n_in, n_out]
            yield f'model/h{layer}/{name}/b', [n_out]
        for name in ('ln_1/g', 'ln_1/b', 'ln_2/g', 'ln_2/b'):
            yield f'model/h{layer}/{name}', [width]
    yield 'model/ln_f/g', [width]
    yield 'model/ln_f/b', [width]


def parameter_count(hparams):
    """Return the number of parameters of a model.

    The sum of: embeddings (V + n_ctx) E; per layer, matrices of 3 E^2, E^2, 4 E^2 and 4 E^2, their
    biases of 3E, E, 4E and E, and two normalizations of 2E; and the last normalization, 2E.
    """
    width = hparams.n_embd
    per_layer = 12 * width ** 2 + 13 * width
    return (hparams.n_vocab + hparams.n_ctx + 2) * width + hparams.n_layer * per_layer


def read_checkpoint_state(directory):
    """Return the name of the weights that `checkpoint` gives. Raises OSError or ModelError."""
    path = os.path.join(directory, 'checkpoint')
    with open(path, encoding='utf-8-sig', errors='replace') as file:
        named = re.search(r'^\s*model_checkpoint_path\s*:\s*"(.+)"', file.read(), re.MULTILINE)
    if not named:
        raise ModelError(f'{path} names no weights; download the model again')
    return named.group(1)


def weights_prefix(directory):
    """Return the path of a model's weights without suffix. Raises ModelError if one is missing."""
    try:
        prefix = os.path.join(directory, read_checkpoint_state(directory))
    except OSError as error:
        raise ModelError(one_line(error))
    check_weights_exist(prefix)
    return prefix


def check_weights_exist(prefix):
    """Raise ModelError unless the files of a checkpoint that have its weights exist."""
    for suffix in SUFFIXES[:2]:
        if not os.path.isfile(prefix + suffix):
            raise ModelError(f'{prefix}{suffix} is missing; download the model again')


def weights_digest(directory):
    """Return a checksum of a model's weights: of their index, which has a checksum of each."""
    return hashlib.sha256(files.read_bytes(weights_prefix(directory) + '.index')).hexdigest()[:16]


def check_weights_size(prefix, hparams):
    """Raise ModelError if the file of the weights is too small for a model of these sizes."""
    path = prefix + '.data-00000-of-00001'
    size, needed = os.path.getsize(path), 4 * parameter_count(hparams)
    if size < needed:
        raise ModelError(f'{path} has {size} bytes, but the model in hparams.json takes {needed}: '
                         'the file was cut short, or belongs to another model; download the model '
                         'again')
