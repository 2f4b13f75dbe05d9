"""GGUF files: what is written, read back by a reader in this file, by gguf, and by llama.cpp."""
import doctest
import functools
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

import convert
import encoder
import reference
from encoder import END_OF_TEXT
from gpt2.errors import UserError
from gpt2.formats import gguf
from helpers import ONE_M, file_names, limit_file_size
from model_files import as_f32, renamed, write_transformers

pure = pytest.mark.pure

HPARAMS = {'n_vocab': 257, 'n_ctx': 40, 'n_embd': 32, 'n_head': 4, 'n_layer': 2}
WEIGHTS = reference.random_weights(HPARAMS, seed=0)
NAMES = {'wte': 'token_embd', 'wpe': 'position_embd', 'ln_f': 'output_norm', 'ln_1': 'attn_norm',
         'attn/c_attn': 'attn_qkv', 'attn/c_proj': 'attn_output', 'ln_2': 'ffn_norm',
         'mlp/c_fc': 'ffn_up', 'mlp/c_proj': 'ffn_down'}
TYPES = {0: np.dtype('<f4'), 1: np.dtype('<f2'), 8: np.dtype([('d', '<f2'), ('qs', 'i1', 32)])}


@pytest.fixture
def hf(tmp_path):
    """A folder of transformers with a small model, whose rows are blocks of q8_0."""
    return write_transformers(tmp_path / 'hf', as_f32(renamed(WEIGHTS)), n_positions=40, n_embd=32,
                              n_head=4)


@pytest.fixture
def out(tmp_path):
    """The file to write. Nothing else may ever be left in the folder that it is in."""
    (tmp_path / 'output').mkdir()
    yield tmp_path / 'output' / 'new.gguf'
    assert set(file_names(tmp_path / 'output')) <= {'new.gguf'}


@pytest.fixture
def refuse(refuse):
    """Run the command in this process, where it must refuse; return (status, message)."""
    return functools.partial(refuse, convert.convert, convert.OPTIONS)


class Reader:
    """A GGUF file: `metadata`, a dict, and `tensors`, a dict, name -> array with a row a row."""

    def __init__(self, path):
        self.data, self.position = path.read_bytes(), 0
        magic, version, n_tensors, n_metadata = self.unpack('4sIQQ')
        assert (magic, version) == (b'GGUF', 3)
        self.metadata = dict((self.text(), self.value(*self.unpack('I')))
                             for _ in range(n_metadata))
        infos = [self.info() for _ in range(n_tensors)]
        self.position += -self.position % 32
        self.tensors, end = {}, 0
        for name, shape, kind, offset in infos:
            assert offset == end + -end % 32
            n_values = np.prod(shape) // (32 if kind == 8 else 1)
            end = offset + n_values * TYPES[kind].itemsize
            array = np.frombuffer(self.data, TYPES[kind], n_values, self.position + offset)
            self.tensors[name] = array.reshape([*shape[:0:-1], -1])
        assert self.position + end + -end % 32 == len(self.data)

    def unpack(self, form):
        values = struct.unpack_from('<' + form, self.data, self.position)
        self.position += struct.calcsize('<' + form)
        return values

    def text(self):
        length, = self.unpack('Q')
        return self.unpack(f'{length}s')[0].decode('utf-8')

    def value(self, kind):
        if kind == 9:
            kind, n = self.unpack('IQ')
            return [self.value(kind) for _ in range(n)]
        return self.text() if kind == 8 else self.unpack({4: 'I', 5: 'i', 6: 'f'}[kind])[0]

    def info(self):
        name, (n_dims,) = self.text(), self.unpack('I')
        return (name, self.unpack(f'{n_dims}Q'), *self.unpack('IQ'))


def theirs(weights):
    """Return weights with the names and the shapes of llama.cpp."""
    result = {}
    for name, array in weights.items():
        layer, scope, end = re.fullmatch(r'model/(h\d+/)?(.*?)(/[gbw])?', name).groups('')
        layer = layer.replace('h', 'blk.').replace('/', '.')
        name = f'{layer}{NAMES[scope]}.{"bias" if end == "/b" else "weight"}'
        result[name] = array[0].T if array.ndim == 3 else array
    return result


def dequantized(blocks):
    values = blocks['d'][..., np.newaxis].astype(np.float32) * blocks['qs']
    return values.reshape([len(blocks), -1])


# ---- the file ----------------------------------------------------------------------------------


@pure
def test_the_examples_in_the_comments():
    result = doctest.testmod(gguf)
    assert result.attempted and not result.failed


@pure
def test_float32_keeps_every_bit(hf, out):
    convert.convert(hf, out, 'gguf')
    tensors, expected = Reader(out).tensors, theirs(WEIGHTS)
    assert sorted(tensors) == sorted(expected) and len(expected) == 28
    for name, array in expected.items():
        assert tensors[name].dtype == np.float32
        assert np.array_equal(tensors[name], array), name


@pure
@pytest.mark.parametrize('dtype, kind', [('float16', np.float16), ('q8_0', TYPES[8])])
def test_matrices_are_of_the_type_and_all_else_is_float32(hf, out, dtype, kind):
    convert.convert(hf, out, 'gguf', dtype=dtype)
    tensors = Reader(out).tensors
    for name, array in theirs(WEIGHTS).items():
        if array.ndim == 1 or name == 'position_embd.weight':
            assert np.array_equal(tensors[name], array), name
        elif dtype == 'float16':
            assert tensors[name].dtype == kind
            assert np.array_equal(tensors[name], array.astype(np.float16)), name
        else:
            assert tensors[name].dtype == kind
            steps = np.repeat(np.abs(array).reshape([len(array), -1, 32]).max(2) / 127, 32, axis=1)
            assert (np.abs(dequantized(tensors[name]) - array) <= 0.6 * steps).all(), name


@pure
def test_rows_that_are_no_whole_blocks_become_float16(tmp_path, out):
    convert.convert(write_transformers(tmp_path / 'hf'), out, 'gguf', dtype='q8_0')  # 16 wide
    tensors = Reader(out).tensors
    assert {name for name, array in tensors.items() if array.dtype == TYPES[8]} == {
        'blk.0.ffn_down.weight', 'blk.1.ffn_down.weight'}
    assert tensors['token_embd.weight'].dtype == np.float16


@pure
@pytest.mark.parametrize('dtype, file_type', [('float32', 0), ('float16', 1), ('q8_0', 7)])
def test_the_metadata(hf, out, dtype, file_type):
    convert.convert(hf, out, 'gguf', dtype=dtype)
    metadata = Reader(out).metadata
    tokens = json.loads((hf / 'vocab.json').read_text())
    assert metadata.pop('tokenizer.ggml.tokens') == sorted(tokens, key=tokens.get)
    assert metadata.pop('gpt2.attention.layer_norm_epsilon') == np.float32(1e-5)
    assert metadata == {
        'general.architecture': 'gpt2', 'general.type': 'model', 'general.name': 'new',
        'general.file_type': file_type, 'general.quantization_version': 2,
        'gpt2.context_length': 40, 'gpt2.embedding_length': 32, 'gpt2.feed_forward_length': 128,
        'gpt2.block_count': 2, 'gpt2.attention.head_count': 4, 'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': 'gpt-2', 'tokenizer.ggml.merges': [],
        'tokenizer.ggml.token_type': [1] * 256 + [3],
        'tokenizer.ggml.bos_token_id': tokens[END_OF_TEXT],
        'tokenizer.ggml.eos_token_id': tokens[END_OF_TEXT]}


def test_the_vocabulary_of_the_included_model(tf, out):
    convert.convert(ONE_M, out, 'gguf')
    metadata = Reader(out).metadata
    tokens = json.loads((ONE_M / 'encoder.json').read_text())
    lines = (ONE_M / 'vocab.bpe').read_text(encoding='utf-8').split('\n')[1:-1]
    assert metadata['tokenizer.ggml.tokens'] == sorted(tokens, key=tokens.get)
    assert metadata['tokenizer.ggml.merges'] == lines and len(lines) > 700


# ---- 8-bit integers ----------------------------------------------------------------------------


def hard_values():
    """Return float32 values [64, 32] for q8_0, with halves, zeros, and sizes far apart."""
    rng = np.random.RandomState(0)
    x = rng.standard_normal([64, 32]).astype(np.float32)
    x[0] = 0
    x[1] = np.arange(32) - 15.5  # with the largest, 127, halves that are rounded away from zero
    x[1, 0] = -127
    x[2] = np.nextafter(np.float32(0.5), np.float32(0))  # just not a half
    x[2, 0] = 127
    x[3:20] *= np.float32(10) ** np.arange(-4, 6.5, 0.625).astype(np.float32)[:, np.newaxis]
    return x


@pure
def test_q8_0_is_as_in_the_reference_of_llama_cpp():
    """With its loop over the values, in float32."""
    x = hard_values()
    blocks = gguf.quantize_q8_0(x)
    assert blocks.itemsize == 34
    for row, block in zip(x, blocks):
        d = np.abs(row).max() / np.float32(127)
        inverse = np.float32(1) / d if d else np.float32(0)
        products = [float(value * inverse) for value in row]  # exact: a double holds a float32
        rounded = [int(abs(value) + 0.5) * (1 if value > 0 else -1) for value in products]
        assert block['scale'] == np.float16(d) and block['values'].tolist() == rounded


@pure
def test_q8_0_of_denormals_is_zero():
    blocks = gguf.quantize_q8_0(np.full([1, 32], 1e-44, np.float32))
    assert not blocks['scale'].any() and not blocks['values'].any()


@pure
def test_q8_0_is_as_in_the_package_of_llama_cpp():
    quants = pytest.importorskip('gguf').quants
    from gguf import GGMLQuantizationType
    x = hard_values()
    expected = quants.quantize(x, GGMLQuantizationType.Q8_0)
    assert gguf.quantize_q8_0(x).tobytes() == expected.tobytes()


# ---- beside llama.cpp --------------------------------------------------------------------------


@pure
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'q8_0'])
def test_the_package_of_llama_cpp_reads_what_is_written(hf, out, dtype):
    library = pytest.importorskip('gguf')
    convert.convert(hf, out, 'gguf', dtype=dtype)
    ours, reader = Reader(out), library.GGUFReader(str(out))
    assert {name: field.contents() for name, field in reader.fields.items()
            if not name.startswith('GGUF.')} == ours.metadata
    assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        assert tensor.data.tobytes() == ours.tensors[tensor.name].tobytes()
        assert tensor.shape.tolist() == list(theirs(WEIGHTS)[tensor.name].shape[::-1])


GENERATE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
answer = xllamacpp.Server(params).handle_completions(
    {'prompt': sys.argv[2], 'n_predict': 60, 'temperature': 0})
with open(sys.argv[3], 'w', encoding='utf-8') as file:
    file.write(answer['choices'][0]['text'])
"""


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'q8_0'])
def test_llama_cpp_generates_the_same_text(tf, saved, out, tmp_path, dtype):
    """With a prompt where no token is a near-tie: 8-bit weights make small differences."""
    pytest.importorskip('xllamacpp')
    convert.convert(ONE_M, out, 'gguf', dtype=dtype)
    prompt, vocabulary = 'What is', encoder.get_encoder('1M', str(ONE_M.parent))
    hparams = json.loads((ONE_M / 'hparams.json').read_text())
    tokens, margins = reference.greedy(saved(ONE_M), hparams, vocabulary.encode(prompt), 60)
    assert min(margins) > 0.1
    answer = tmp_path / 'answer.txt'  # beside what it logs
    subprocess.run([sys.executable, '-c', GENERATE, str(out), prompt, str(answer)], timeout=60,
                   check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert answer.read_text(encoding='utf-8') == vocabulary.decode(tokens)


# ---- the command line --------------------------------------------------------------------------


@pure
def test_a_process_needs_no_tensorflow(bare, hf, out):
    assert bare('convert.py', hf, out, '--to', 'gguf', '--dtype', 'q8_0') == (0, '', '')
    assert Reader(out).metadata['general.file_type'] == 7


@pure
@pytest.mark.parametrize('args, words', [
    (['new', '--to', 'gguf'], ['NAME.gguf', "'new'"]),
    (['new.bin', '--to', 'gguf'], ['NAME.gguf', 'new.bin']),
    (['.gguf', '--to', 'gguf'], ['NAME.gguf', "'.gguf'"]),
    (['new.gguf', '--to', 'gguf', '--dtype', 'int8'], ['--dtype', 'float32, float16, q8_0']),
    (['new', '--to', 'transformers', '--dtype', 'float16'], ['--dtype', 'gguf', 'transformers']),
], ids=str)
def test_arguments_that_cannot_be_used(refuse, monkeypatch, hf, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    status, message = refuse('hf', *args)
    assert status == 2 and all(word in message for word in words)
    assert file_names(tmp_path) == ['hf']


@pure
def test_a_file_that_exists_is_not_replaced(refuse, hf, out):
    out.write_text('mine')
    status, message = refuse(hf, out, '--to', 'gguf')
    assert status == 1 and 'exists' in message and out.read_text() == 'mine'


@pure
@pytest.mark.parametrize('dtype, largest', [('float16', 1e5), ('q8_0', 1e7)])
def test_weights_that_are_too_large_for_a_type(refuse, tmp_path, out, dtype, largest):
    weights = dict(WEIGHTS)
    weights['model/h1/mlp/c_fc/w'] = np.full([1, 32, 128], largest, np.float32)
    path = write_transformers(tmp_path / 'large', as_f32(renamed(weights)), n_positions=40,
                              n_embd=32, n_head=4)
    status, message = refuse(path, out, '--to', 'gguf', '--dtype', dtype)
    assert status == 1 and not out.exists()
    assert all(word in message for word in ['model/h1/mlp/c_fc/w', 'too large', dtype, 'float32'])
    convert.convert(path, out, 'gguf')
    assert Reader(out).tensors['blk.1.ffn_up.weight'].max() == largest


@pure
@pytest.mark.parametrize('limit', [0, 20000])
def test_a_full_disk(hf, out, limit):
    with limit_file_size(limit), pytest.raises(UserError, match='new.gguf cannot be written'):
        convert.convert(hf, out, 'gguf')
    assert not out.exists()


@pure
def test_an_interruption_leaves_nothing(monkeypatch, hf, out):
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write_tensor(*args)

    write_tensor = gguf.write_tensor
    monkeypatch.setattr(gguf, 'write_tensor', interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.convert(hf, out, 'gguf')
    assert os.listdir(str(out.parent)) == []
