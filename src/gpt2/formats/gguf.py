"""GGUF files, which llama.cpp reads: the sizes of a model, its vocabulary and its weights in one.

The format, as its authors describe it (github.com/ggml-org/ggml, docs/gguf.md), little-endian:

    header        `GGUF`, the version, 3, and the numbers of tensors and of metadata
    metadata      of each its key, type and value
    tensor infos  of each tensor its name, its shape, the fastest dimension first, its type, and its
                  offset from the start of the data
    data          the tensors, each at a multiple of 32 bytes

Names, keys and numbers of types are those by which llama.cpp knows a model of `gpt2`.
"""

import collections
import os
import re
import struct

import numpy as np
from tqdm import tqdm

from encoder import END_OF_TEXT
from gpt2 import files
from gpt2.errors import UserError
from gpt2.model_dir import weight_shapes

VERSION = 3
ALIGNMENT = 32  # bytes
CHUNK = 1024    # rows of a tensor that are converted at once

# Types of metadata.
UINT32, INT32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9

# Types of tokens.
NORMAL, CONTROL = 1, 3

# Types of tensors: the number of one in `tensor infos`, the number of a file that is mostly of this
# type, and the values and bytes of a block.
Type = collections.namedtuple('Type', 'number file_type block_values block_bytes')
TYPES = {'float32': Type(0, 0, 1, 4), 'float16': Type(1, 1, 1, 2), 'q8_0': Type(8, 7, 32, 34)}

# Of q8_0, a scale for 32 integers.
Q8_0_BLOCK = np.dtype([('scale', '<f2'), ('values', 'i1', 32)])
SMALLEST_SCALE = np.finfo(np.float32).tiny  # with a finite inverse

# The names of our weights and theirs.
NAMES = {'wte': 'token_embd', 'wpe': 'position_embd', 'ln_f': 'output_norm', 'ln_1': 'attn_norm',
         'attn/c_attn': 'attn_qkv', 'attn/c_proj': 'attn_output', 'ln_2': 'ffn_norm',
         'mlp/c_fc': 'ffn_up', 'mlp/c_proj': 'ffn_down'}

# One of our weights in the file: our name and theirs, its shape and its type there.
Tensor = collections.namedtuple('Tensor', 'source name shape dtype')


def write(source, path, dtype):
    """Write a model as a GGUF file, with matrices of a type of TYPES.

    Raises OSError if the file cannot be written, and UserError if a weight is too large for the
    type.
    """
    read = source.open_weights()
    tensors = list_tensors(source.hparams, dtype)
    name = os.path.splitext(os.path.basename(path))[0]
    with files.new_file(path) as file:
        file.write(encode_header(metadata(source, name, dtype), tensors))
        for tensor in tqdm(tensors, unit='weight', disable=None):
            align(file)
            write_tensor(file, tensor, read(tensor.source))
        align(file)


def align(file):
    """Write zeros until the next multiple of the alignment."""
    file.write(bytes(-file.tell() % ALIGNMENT))


def metadata(source, name, dtype):
    """Return the metadata of a model, a dict, key -> value of a type of `encode_value`."""
    hparams, vocabulary = source.hparams, source.encoder
    tokens = sorted(vocabulary.encoder, key=vocabulary.encoder.get)
    end_of_text = vocabulary.end_of_text
    return {
        'general.architecture': 'gpt2',
        'general.type': 'model',
        'general.name': name,
        'general.file_type': TYPES[dtype].file_type,
        'general.quantization_version': 2,  # of the layout of q8_0
        'gpt2.context_length': hparams.n_ctx,
        'gpt2.embedding_length': hparams.n_embd,
        'gpt2.feed_forward_length': 4 * hparams.n_embd,
        'gpt2.block_count': hparams.n_layer,
        'gpt2.attention.head_count': hparams.n_head,
        'gpt2.attention.layer_norm_epsilon': 1e-5,
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'gpt-2',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': np.array([CONTROL if token == END_OF_TEXT else NORMAL
                                               for token in tokens], np.int32),
        'tokenizer.ggml.merges': [' '.join(pair) for pair in sorted(
            vocabulary.bpe_ranks, key=vocabulary.bpe_ranks.get)],
        'tokenizer.ggml.bos_token_id': end_of_text,
        'tokenizer.ggml.eos_token_id': end_of_text,
    }


# Tensors

def list_tensors(hparams, dtype):
    """Return the Tensors of a file, in their order.

    As in llama.cpp's files, vectors and position embeddings stay float32, and a matrix whose rows
    are no whole blocks becomes float16. There is no output layer: llama.cpp takes the embeddings.
    """
    tensors = []
    for source, shape in weight_shapes(hparams):
        kind = dtype
        if len(shape) == 1 or source == 'model/wpe':
            kind = 'float32'
        shape = shape[:0:-1] if source.endswith('/w') else shape  # [1, in, out] -> [out, in]
        if shape[-1] % TYPES[kind].block_values:
            kind = 'float16'
        tensors.append(Tensor(source, tensor_name(source), shape, kind))
    return tensors


def tensor_name(name):
    """Return the name that llama.cpp gives to one of our weights.

    >>> tensor_name('model/h0/attn/c_attn/w')
    'blk.0.attn_qkv.weight'
    """
    layer, scope, last = re.fullmatch(r'model/(?:h(\d+)/)?(.+?)(?:/([gbw]))?', name).groups()
    parts = [] if layer is None else ['blk', layer]
    return '.'.join([*parts, NAMES[scope], 'bias' if last == 'b' else 'weight'])


def byte_size(tensor):
    """Return how many bytes a Tensor takes."""
    kind = TYPES[tensor.dtype]
    return int(np.prod(tensor.shape, dtype=np.int64)) // kind.block_values * kind.block_bytes


def write_tensor(file, tensor, array):
    """Write an array of ours into an open file as a Tensor."""
    if tensor.source.endswith('/w'):
        array = array[0].T
    for begin in range(0, len(array), CHUNK):
        with np.errstate(over='ignore'):  # is checked
            data = encode_values(array[begin:begin + CHUNK], tensor.dtype)
        scales = data['scale'] if tensor.dtype == 'q8_0' else data
        if not np.isfinite(scales).all():
            raise UserError(f'{tensor.source} has values that are too large for {tensor.dtype}; '
                            'use float32')
        file.write(np.ascontiguousarray(data).data)


def encode_values(array, dtype):
    """Return float32 values as an array of a type of TYPES."""
    if dtype == 'q8_0':
        return quantize_q8_0(array)
    return array.astype('<f2' if dtype == 'float16' else '<f4')


def quantize_q8_0(array):
    """Return float32 values as blocks of q8_0: a scale, max|x| / 127, and integers x / scale.

    They are the bits of llama.cpp's quantize_row_q8_0_ref: the inverse of the scale is that of its
    float32 value, and halves are rounded away from zero. Blocks of nothing but denormals become
    zeros.
    """
    x = np.reshape(array, [-1, 32])
    scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    x = x * np.divide(1, scales, out=np.zeros_like(scales), where=scales >= SMALLEST_SCALE)
    whole = np.trunc(x)
    blocks = np.empty(len(x), Q8_0_BLOCK)
    blocks['scale'] = scales[:, 0]
    blocks['values'] = whole + np.trunc(2 * (x - whole))
    return blocks


# Encoding

def encode_header(values, tensors):
    """Return the bytes before the data: header, metadata (a dict) and tensor infos."""
    parts = [struct.pack('<4sIQQ', b'GGUF', VERSION, len(tensors), len(values))]
    for key, value in values.items():
        parts += [encode_text(key), encode_value(value)]
    offset = 0
    for tensor in tensors:
        n = len(tensor.shape)
        parts += [encode_text(tensor.name), struct.pack(
            f'<I{n}QIQ', n, *reversed(tensor.shape), TYPES[tensor.dtype].number, offset)]
        offset += byte_size(tensor)
        offset += -offset % ALIGNMENT
    return b''.join(parts)


def encode_value(value):
    """Return the type and the bytes of an int, float, text, list of texts, or int32 array."""
    if isinstance(value, int):
        return struct.pack('<II', UINT32, value)
    if isinstance(value, float):
        return struct.pack('<If', FLOAT32, value)
    if isinstance(value, str):
        return struct.pack('<I', STRING) + encode_text(value)
    if isinstance(value, list):
        texts = b''.join(map(encode_text, value))
        return struct.pack('<IIQ', ARRAY, STRING, len(value)) + texts
    return struct.pack('<IIQ', ARRAY, INT32, len(value)) + value.astype('<i4').tobytes()


def encode_text(text):
    """Return the length of a text and its UTF-8 bytes."""
    data = text.encode('utf-8', 'replace')  # lone surrogates, as our Encoder
    return struct.pack('<Q', len(data)) + data
