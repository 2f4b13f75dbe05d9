"""Models of Hugging Face transformers: config.json, two forms of weights, two of vocabulary."""

import functools
import json
import os
import re
import types

import numpy as np

import encoder
from encoder import END_OF_TEXT
from gpt2 import checkpoint, files
from gpt2.errors import ModelError, UserError
from gpt2.formats import pytorch, safetensors
from gpt2.formats.source import Source, absent
from gpt2.model_dir import check_sizes, one_line, read_json, weight_shapes
from gpt2.options import is_unicode

CONFIG = 'config.json'
# The files of weights, in the order of preference, each with the function that reads its header.
WEIGHTS = {'model.safetensors': safetensors.read_header,
           'pytorch_model.bin': pytorch.read_header}

# The names of a model's sizes: ours, and those in config.json.
SIZES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions', 'n_embd': 'n_embd', 'n_head': 'n_head',
         'n_layer': 'n_layer'}

# What else in config.json changes what a GPT-2 computes, with the only values that our model can
# compute, which are the defaults of transformers. (`reorder_and_upcast_attn` only chooses float32
# where a model runs in float16.)
ARCHITECTURE = {'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5,
                'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
                'add_cross_attention': False, 'quantization_config': None}


def is_model(path):
    """Return whether a path is a folder with a model of transformers."""
    return not absent(path, CONFIG)


def missing_files(folder):
    """Return the files of the vocabulary that a folder lacks, in either of the two forms."""
    return absent(folder, 'tokenizer.json') and absent(folder, 'vocab.json', 'merges.txt')


# Reading

def open_source(folder, base):
    """Return the Source of a GPT-2 of transformers."""
    config_path = os.path.join(folder, CONFIG)
    config = read_json(config_path)
    hparams = parse_config(config_path, config)
    vocabulary = base.encoder if base else read_vocabulary(folder, hparams.n_vocab)
    tensors = read_headers(folder)
    check_tensors(folder, tensors, hparams, config.get('tie_word_embeddings', True))

    def read(name):
        info = tensors[tensor_name(name)]
        array = safetensors.read_array(info)
        checkpoint.check_finite(info.path, tensor_name(name), array)
        return array[np.newaxis] if name.endswith('/w') else array

    return Source(hparams, vocabulary, lambda: read)


def parse_config(path, config):
    """Return the hyperparameters in a config.json. Raises UserError if it is of another model."""
    if config.get('model_type') != 'gpt2':
        raise UserError(f'{path}: model_type is {json.dumps(config.get("model_type"))}; only gpt2 '
                        'can be converted')
    check_sizes(path, config, SIZES.values())
    supported = ARCHITECTURE
    if config.get('n_inner') is not None:
        supported = dict(supported, n_inner=4 * config['n_embd'])
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise UserError(f'{path}: {name} is {json.dumps(config[name])}; only '
                            f'{json.dumps(value)} can be converted')
    return types.SimpleNamespace(**{ours: config[theirs] for ours, theirs in SIZES.items()})


def tensor_name(name):
    """Return the name that transformers gives to one of our weights.

    >>> tensor_name('model/h0/attn/c_attn/w')
    'h.0.attn.c_attn.weight'
    """
    _, *scopes, last = re.sub(r'/h(\d+)/', r'/h/\1/', name).split('/')
    ends = {'w': ['weight'], 'g': ['weight'], 'b': ['bias']}
    return '.'.join(scopes + ends.get(last, [last, 'weight']))


def read_headers(folder):
    """Return the arrays in the files of weights of a folder, a dict name -> TensorInfo.

    The names have no prefix `transformer.`, which files of models with an output layer have.
    Raises UserError if a file is missing or damaged.
    """
    tensors = {}
    paths, read_header = weight_files(folder)
    for path in paths:
        try:
            header = read_header(path)
        except OSError as error:
            raise ModelError(one_line(error))
        for name, info in header.items():
            name = re.sub(r'^transformer\.', '', name)
            if name in tensors:
                raise UserError(f'{path}: {name} occurs twice; download it again')
            tensors[name] = info
    return tensors


def weight_files(folder):
    """Return the paths of the weights of a folder, one or the shards, and what reads a header."""
    for name, read_header in WEIGHTS.items():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return [path], read_header
        if os.path.isfile(path + '.index.json'):
            return shard_paths(folder, path + '.index.json'), read_header
    raise UserError(f'{folder} has no weights: neither {" nor ".join(WEIGHTS)}')


def shard_paths(folder, index):
    """Return the paths of the shards that an index, a JSON file in their folder, names."""
    shards = read_json(index).get('weight_map')
    if not isinstance(shards, dict) or not all(
            isinstance(name, str) and os.path.basename(name) == name and is_unicode(name)
            and '\0' not in name for name in shards.values()):
        raise UserError(f'{index} does not name the files of the weights; download it again')
    return [os.path.join(folder, name) for name in sorted(set(shards.values()))]


def check_tensors(folder, tensors, hparams, tied):
    """Raise UserError unless the arrays are the weights of the model that hparams describes.

    The output layer may be missing if it is `tied` to the token embeddings; it must equal them.
    """
    expected = {'lm_head.weight'}
    for ours, shape in weight_shapes(hparams):
        name = tensor_name(ours)
        check_tensor(folder, tensors, name, shape[-2:])
        expected.add(name)
    # Older versions of transformers also saved the causal mask of each layer.
    others = sorted(name for name in set(tensors) - expected
                    if not re.fullmatch(r'h\.\d+\.attn\.(bias|masked_bias)', name))
    if others:
        raise UserError(f'the weights in {folder} include {others[0]}, which GPT-2 does not have '
                        f'({len(others)} such names)')
    if tied and 'lm_head.weight' not in tensors:
        return
    check_tensor(folder, tensors, 'lm_head.weight', [hparams.n_vocab, hparams.n_embd])
    if not np.array_equal(*[safetensors.read_array(tensors[name]).view(np.uint32)  # NaN equals NaN
                            for name in ('lm_head.weight', 'wte.weight')]):
        raise UserError(f'the weights in {folder} have an lm_head.weight that differs from '
                        'wte.weight; only a model with one matrix for both can be converted')


def check_tensor(folder, tensors, name, shape):
    """Raise UserError unless an array exists and has this shape and a type of weights."""
    if name not in tensors:
        raise UserError(f'the weights in {folder} lack {name}, which config.json calls for; '
                        'download the model again')
    info = tensors[name]
    if info.shape != shape:
        raise UserError(f'{info.path}: {name} has shape {info.shape}, but config.json calls for '
                        f'{shape}; they belong to different models')
    if info.dtype not in safetensors.DTYPES:
        raise UserError(f'{info.path}: {name} is of type {info.dtype}; only '
                        f'{", ".join(safetensors.DTYPES)} can be converted')


# Vocabulary

def read_vocabulary(folder, n_vocab):
    """Return the Encoder of the vocabulary in a folder.

    Tokens that were added to it become ordinary ones if the model has embeddings for them. Raises
    UserError if a file is damaged, or the vocabulary is of another kind than GPT-2's.
    """
    path = os.path.join(folder, 'tokenizer.json')
    tokenizer = {} if absent(folder, 'tokenizer.json') else read_json(path)
    try:
        if absent(folder, 'vocab.json', 'merges.txt'):
            tokens, merges = parse_tokenizer(path, tokenizer)
        else:
            path = os.path.join(folder, 'vocab.json')
            tokens = encoder.read_encoder(path)
            merges = encoder.read_merges(os.path.join(folder, 'merges.txt'), tokens)
        added = {token['content']: token['id'] for token in tokenizer.get('added_tokens', ())}
        if not absent(folder, 'added_tokens.json'):
            added.update(read_json(os.path.join(folder, 'added_tokens.json')))
        symbols = encoder.bytes_to_unicode()
        for token, i in added.items():
            if token not in tokens and i < n_vocab:
                tokens[''.join(symbols[byte] for byte in token.encode('utf-8', 'replace'))] = i
        ids = list(tokens.values())
        if (END_OF_TEXT not in tokens or any(type(i) is not int for i in ids)
                or sorted(ids) != list(range(len(ids)))):
            raise other_vocabulary(path)
        return encoder.Encoder(tokens, merges)
    except (OSError, ValueError) as error:
        raise ModelError(one_line(error))
    except (TypeError, KeyError, AttributeError):  # other JSON, or a byte or merge without a token
        raise other_vocabulary(path)


def parse_tokenizer(path, tokenizer):
    """Return the tokens, a dict token -> id, and the merges, a list of pairs, of a tokenizer.json.

    Any error means that the vocabulary is of another kind.
    """
    model = tokenizer['model']
    tokens = dict(model['vocab'])
    # A merge is a pair, or in older files a text with a space in it.
    merges = [tuple(merge.split(' ') if isinstance(merge, str) else merge)
              for merge in model['merges']]
    if (model['type'] != 'BPE' or tokenizer['pre_tokenizer']['type'] != 'ByteLevel'
            or not is_unicode(''.join(tokens))
            or any(len(merge) != 2 or ' '.join(merge).split() != list(merge) for merge in merges)):
        raise other_vocabulary(path)
    return tokens, merges


def other_vocabulary(path):
    """Return the error for a vocabulary of another kind."""
    return UserError(f'{path} has no vocabulary like that of GPT-2, byte-level BPE with '
                     f'{END_OF_TEXT}; no other kind can be converted')


# Writing

def write(source, folder):
    """Write a model into a folder for transformers."""
    read = source.open_weights()
    ids = dict.fromkeys(['bos_token_id', 'eos_token_id'], source.encoder.end_of_text)
    configs = {
        'config.json': {
            'architectures': ['GPT2LMHeadModel'], 'model_type': 'gpt2',
            **{theirs: getattr(source.hparams, ours) for ours, theirs in SIZES.items()},
            **{name: value for name, value in ARCHITECTURE.items() if value is not None},
            'tie_word_embeddings': True, **ids},
        'generation_config.json': {**ids, 'pad_token_id': source.encoder.end_of_text},
        'tokenizer_config.json': {
            'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': source.hparams.n_ctx,
            'add_prefix_space': False, 'clean_up_tokenization_spaces': False,
            **dict.fromkeys(['bos_token', 'eos_token', 'unk_token'], END_OF_TEXT)}}
    for name, values in configs.items():
        files.write_json(os.path.join(folder, name), values, indent=2)
    source.write_vocabulary(folder, 'vocab.json', 'merges.txt')
    tensors = {f'transformer.{tensor_name(name)}': (shape[-2:], functools.partial(read, name))
               for name, shape in weight_shapes(source.hparams)}
    safetensors.write(os.path.join(folder, 'model.safetensors'), tensors)
