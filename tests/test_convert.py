"""Conversion as users meet it: a model changes its format, or one line says why it cannot.

What is written for transformers is read back by a reader in this file, by transformers itself where
it is installed, and by convert.py.
"""
import collections
import contextlib
import doctest
import functools
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import pytest

import convert
import encoder
import reference
from encoder import END_OF_TEXT
from gpt2 import checkpoint, model_dir, runtime
from gpt2.errors import ModelError, UserError
from gpt2.formats import conversion, safetensors, tensorflow, transformers
from helpers import (
    DATA,
    ONE_M,
    Command,
    contents,
    file_names,
    limit_file_size,
    needs_data,
    only_long,
)
from model_files import (
    HPARAMS,
    TORCH,
    VOCABULARY,
    WEIGHTS,
    as_f32,
    edit_json,
    push,
    push_tensor,
    read_safetensors,
    renamed,
    torch_pickle,
    write_archive,
    write_safetensors,
    write_torch,
    write_transformers,
)

pure = pytest.mark.pure

SCRIPT = 'convert.py'
WEIGHTS_FILE = 'model.ckpt.data-00000-of-00001'
MODEL_DIR_FILES = ['checkpoint', 'encoder.json', 'hparams.json', WEIGHTS_FILE, 'model.ckpt.index',
                   'model.ckpt.meta', 'vocab.bpe']
TRANSFORMERS_FILES = ['config.json', 'generation_config.json', 'merges.txt', 'model.safetensors',
                      'tokenizer_config.json', 'vocab.json']
BYTE_TOKENS = {symbol: i for i, symbol in enumerate(reference.byte_symbols())}
TEXTS = ['', ' ', 'Hello world', "They'll say I'm  two   spaces\tand\n\n lines ", 'naïve Größe',
         '漢字と仮名 ไทย עברית', '👩‍🚀 ½ ²', '1234567890 3.14', '...!?--', 'a' * 300,
         '\x00\x7f\u00ad', 'end | of < text >', '\u2003em\u00a0nbsp']


# ---- files -------------------------------------------------------------------------------------


def copy_files(names, source, target):
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(str(source / name), str(target / name))


def same(weights, others):
    """Return whether two dicts of arrays are equal in every bit."""
    return sorted(weights) == sorted(others) and all(
        weights[name].dtype == others[name].dtype and weights[name].shape == others[name].shape
        and weights[name].tobytes() == others[name].tobytes() for name in weights)


@pytest.fixture
def hf(tmp_path):
    """A folder of transformers with a small model."""
    return write_transformers(tmp_path / 'hf')


@pytest.fixture
def out(tmp_path):
    """The folder to write. Nothing else may ever be left in the folder that it is in."""
    (tmp_path / 'output').mkdir()
    yield tmp_path / 'output' / 'new'
    assert set(file_names(tmp_path / 'output')) <= {'new'}


@pytest.fixture
def call_convert(call):
    """Run the command in this process; return (status, stdout, stderr)."""
    return functools.partial(call, convert.convert, convert.OPTIONS)


@pytest.fixture
def refuse(refuse):
    """Run the command in this process, where it must refuse; return (status, message)."""
    return functools.partial(refuse, convert.convert, convert.OPTIONS)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Let every import of TensorFlow fail the test."""
    def import_tensorflow():
        raise AssertionError('TensorFlow was imported')

    monkeypatch.setattr(runtime, 'import_tensorflow', import_tensorflow)


@pytest.fixture
def complaint(no_tensorflow):
    """A function from a SOURCE that is refused, without TensorFlow, to the line that says why."""
    def open_source(source, base_model=None, models_dir='models'):
        with pytest.raises(UserError) as caught:
            conversion.open_source(str(source), base_model, models_dir)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    return open_source


@pure
def test_the_examples_in_the_comments():
    result = doctest.testmod(transformers)
    assert result.attempted and not result.failed


@pure
@pytest.mark.parametrize('module', conversion.FORMATS.values(), ids=conversion.FORMATS)
def test_each_format_has_the_functions_of_a_format(module):
    names = ['is_model', 'missing_files', 'open_source', 'write']
    assert all(f'    {name}(' in conversion.__doc__ for name in names)
    assert all(callable(getattr(module, name)) for name in names)


# ---- there and back ----------------------------------------------------------------------------


def check_round_trip(path, tmp_path):
    there, back = tmp_path / 'there', tmp_path / 'back'
    convert.convert(path, there, 'transformers')
    convert.convert(there, back, 'tensorflow')
    assert file_names(there) == TRANSFORMERS_FILES and file_names(back) == MODEL_DIR_FILES
    for name in [WEIGHTS_FILE, *VOCABULARY]:
        assert (back / name).read_bytes() == (path / name).read_bytes(), name
    for ours, theirs in VOCABULARY.items():
        assert (there / theirs).read_bytes() == (path / ours).read_bytes()
    hparams = [json.loads((folder / 'hparams.json').read_text()) for folder in (path, back)]
    assert hparams[0] == hparams[1]
    return there, back


def test_there_and_back(saved, tiny, tmp_path):
    there, back = check_round_trip(tiny.path, tmp_path)
    weights, metadata = read_safetensors(there / 'model.safetensors')
    assert same(weights, renamed(tiny.weights)) and metadata == {'format': 'pt'}
    assert list(weights) == sorted(weights)
    assert same(saved(back), tiny.weights)
    # hparams.json looks like the released ones.
    assert (back / 'hparams.json').read_text() == json.dumps(tiny.hparams, indent=2) + '\n'


@only_long
def test_the_included_model_there_and_back_also_as_a_process(tf, tmp_path):
    there, back = check_round_trip(ONE_M, tmp_path)
    args = [there, tmp_path / 'process', '--to', 'tensorflow']
    assert Command(SCRIPT, *args).run() == (0, '', '')
    written, expected = contents(tmp_path / 'process'), contents(back)
    assert written.pop('model.ckpt.meta') and expected.pop('model.ckpt.meta')
    assert written == expected


def test_all_bits_are_kept(tf, tiny, saved, tmp_path):
    """Also those of zeros of both signs and denormals."""
    weights = dict(tiny.weights)
    bits = np.random.RandomState(0).randint(0, 2**32, size=weights['model/wte'].shape,
                                            dtype=np.uint64).astype(np.uint32)
    bits.flat[:5] = [0, 0x80000000, 1, 0x7f7fffff, 0xff7fffff]
    bits[bits & 0x7f800000 == 0x7f800000] = 0x80000001  # neither infinities nor NaN
    weights['model/wte'] = bits.view(np.float32)
    reference.write_checkpoint(tmp_path / 'odd', tiny.hparams, weights)
    _, back = check_round_trip(tmp_path / 'odd', tmp_path)
    assert same(saved(back), weights)


def test_sizes_that_align_with_nothing(saved, tmp_path):
    hparams = {'n_vocab': 257, 'n_ctx': 7, 'n_embd': 5, 'n_head': 5, 'n_layer': 11}
    weights = reference.random_weights(hparams, seed=1)
    reference.write_checkpoint(tmp_path / 'odd', hparams, weights)
    there, back = check_round_trip(tmp_path / 'odd', tmp_path)
    content = (there / 'model.safetensors').read_bytes()
    assert struct.unpack('<Q', content[:8])[0] % 8 == 0
    assert same(read_safetensors(there / 'model.safetensors')[0], renamed(weights))
    assert same(saved(back), weights)


def test_the_result_is_an_official_model_directory(tf, hf, out):
    convert.convert(hf, out, 'tensorflow')
    model = model_dir.open_model_dir(out.name, str(out.parent))
    assert vars(model.hparams) == json.loads((out / 'hparams.json').read_text())
    assert tf.train.latest_checkpoint(str(out)) == str(out / 'model.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:  # as other programs do
        saver = tf.train.import_meta_graph(str(out / 'model.ckpt.meta'))
        saver.restore(session, str(out / 'model.ckpt'))
        assert {weight.op.name for weight in tf.trainable_variables()} == set(WEIGHTS)


def test_both_formats_open_as_the_same_source(hf, tiny):
    for path in [hf, tiny.path]:
        source = conversion.open_source(str(path), None, 'models')
        read, expected = source.open_weights(), reference.shapes(HPARAMS)
        assert vars(source.hparams) == HPARAMS
        assert {name: list(read(name).shape) for name in expected} == expected
        assert {read(name).dtype for name in expected} == {np.dtype(np.float32)}
        assert source.encoder.encode('Hi') == [39, 72]


def test_tensorflow_to_tensorflow_removes_the_optimizer(tf, saved, tiny, tmp_path, out):
    """Other values in hparams.json stay."""
    write_fork(tf, tmp_path / 'run1', tiny)
    hparams = dict(tiny.hparams, note='mine')
    (tmp_path / 'run1' / 'hparams.json').write_text(json.dumps(hparams))
    convert.convert(tmp_path / 'run1', out, 'tensorflow')
    assert same(saved(out), tiny.weights) and file_names(out) == MODEL_DIR_FILES
    assert json.loads((out / 'hparams.json').read_text()) == hparams


def test_the_vocabulary_is_written_as_transformers_reads_it(tf, tmp_path, out):
    """It drops the first line of the merges, for the version, and the last, for empty."""
    path = tmp_path / 'odd'
    copy_files(file_names(ONE_M) if not (ONE_M / 'lite').exists() else MODEL_DIR_FILES, ONE_M, path)
    merges = (path / 'vocab.bpe').read_text(encoding='utf-8')
    lines = merges.rstrip('\n').split('\n')[1:]
    (path / 'vocab.bpe').write_bytes('\r\n'.join(lines).encode('utf-8'))
    tokens = json.loads((path / 'encoder.json').read_text())
    (path / 'encoder.json').write_bytes(json.dumps(tokens, ensure_ascii=False, indent=1)
                                        .encode('utf-8-sig'))
    convert.convert(path, out, 'transformers')
    assert (out / 'merges.txt').read_bytes() == merges.encode('utf-8')
    assert (out / 'vocab.json').read_bytes() == (ONE_M / 'encoder.json').read_bytes()


# ---- from transformers -------------------------------------------------------------------------

# These are converted to transformers again, as the encoder and the weights do not depend on the
# format that is written.


def reread(path, out):
    """Convert a folder of transformers into another; return the weights that are written."""
    convert.convert(path, out, 'transformers')
    return read_safetensors(out / 'model.safetensors')[0]


@pure
def test_names_without_a_prefix_causal_masks_and_a_tied_output_layer(no_tensorflow, tmp_path, out):
    """As the released models on the hub."""
    arrays = as_f32(renamed(WEIGHTS, prefix=''))
    arrays['h.0.attn.bias'] = ('U8', np.tril(np.ones([1, 1, 32, 32], np.uint8)))
    arrays['h.1.attn.masked_bias'] = ('F32', np.float32(-1e4).reshape([]))
    arrays['lm_head.weight'] = arrays['wte.weight']
    path = write_transformers(tmp_path / 'hf', arrays, tie_word_embeddings=False)
    assert same(reread(path, out), renamed(WEIGHTS))


@pure
@pytest.mark.parametrize('dtype', ['F16', 'BF16'])
def test_short_floats_become_float32(no_tensorflow, tmp_path, out, dtype):
    arrays, expected = {}, {}
    for name, array in renamed(WEIGHTS).items():
        if dtype == 'F16':
            short = array.astype(np.float16)
            wide = short.astype(np.float32)
        else:
            short = (array.view(np.uint32) >> 16).astype(np.uint16)
            wide = (array.view(np.uint32) & 0xffff0000).view(np.float32)
        arrays[name], expected[name] = (dtype, short), wide
    assert same(reread(write_transformers(tmp_path / 'hf', arrays), out), expected)


@pure
def test_shards(no_tensorflow, hf, out):
    (hf / 'model.safetensors').unlink()
    arrays, weight_map = as_f32(renamed(WEIGHTS)), {}
    for i in range(3):
        file = f'model-{i + 1:05}-of-00003.safetensors'
        part = dict(list(arrays.items())[i::3])
        write_safetensors(hf / file, part, {'format': 'pt'})
        weight_map.update(dict.fromkeys(part, file))
    edit_json(hf / 'model.safetensors.index.json', metadata={}, weight_map=weight_map)
    assert same(reread(hf, out), renamed(WEIGHTS))


def one_m_as_hf(tmp_path):
    convert.convert(ONE_M, tmp_path / 'hf', 'transformers')
    return tmp_path / 'hf'


@pytest.mark.parametrize('old', [False, True])
def test_a_vocabulary_in_tokenizer_json_alone(tf, tmp_path, out, old):
    """As newer versions of transformers save it; in older files, a merge is one text."""
    hf = one_m_as_hf(tmp_path)
    tokens = json.loads((hf / 'vocab.json').read_text())
    lines = (hf / 'merges.txt').read_text(encoding='utf-8').split('\n')[1:-1]
    edit_json(hf / 'tokenizer.json', added_tokens=[{'id': 999, 'content': END_OF_TEXT}],
              pre_tokenizer={'type': 'ByteLevel'}, model={
                  'type': 'BPE', 'vocab': tokens,
                  'merges': lines if old else [line.split(' ') for line in lines]})
    for name in ['vocab.json', 'merges.txt', 'tokenizer_config.json']:
        (hf / name).unlink()
    reread(hf, out)
    for ours, theirs in VOCABULARY.items():
        assert (out / theirs).read_bytes() == (ONE_M / ours).read_bytes()


@pure
@pytest.mark.parametrize('file', ['added_tokens.json', 'tokenizer.json'])
def test_added_tokens(no_tensorflow, tmp_path, file):
    """Those that have embeddings become tokens; there may be more."""
    weights = reference.random_weights(dict(HPARAMS, n_vocab=259), seed=2)
    path = write_transformers(tmp_path / 'hf', as_f32(renamed(weights)))
    edit_json(path / 'config.json', vocab_size=259)
    added = {'<pad>': 257, '<sép>': 258, '<none>': 259}
    if file == 'added_tokens.json':
        edit_json(path / file, **added)
    else:
        edit_json(path / file, added_tokens=[
            {'id': 256, 'content': END_OF_TEXT},
            *[{'id': i, 'content': text} for text, i in added.items()]])
    vocabulary = conversion.open_source(str(path), None, 'models').encoder
    assert len(vocabulary.encoder) == 259 and vocabulary.decode([257, 258]) == '<pad><sép>'


def test_a_vocabulary_of_a_base_model(tiny, hf, out, complaint):
    for name in ['vocab.json', 'merges.txt']:
        (hf / name).unlink()
        message = complaint(hf)
        assert name in message and '--base_model' in message
    convert.convert(hf, out, 'transformers', base_model='tiny', models_dir=str(tiny.models_dir))
    assert same(read_safetensors(out / 'model.safetensors')[0], renamed(WEIGHTS))
    assert (out / 'vocab.json').read_bytes() == (tiny.path / 'encoder.json').read_bytes()


@pure
def test_a_config_with_the_usual_values(no_tensorflow, tmp_path, out):
    path = write_transformers(tmp_path / 'hf', activation_function='gelu_new', n_inner=64,
                              layer_norm_epsilon=1e-05, scale_attn_weights=True, n_ctx=32,
                              reorder_and_upcast_attn=True, resid_pdrop=0.1)
    assert same(reread(path, out), renamed(WEIGHTS))


@pure
def test_transformers_to_transformers_as_a_process_needs_no_tensorflow(bare, hf, out):
    assert bare(SCRIPT, hf, out, '--to', 'transformers') == (0, '', '')
    assert same(read_safetensors(out / 'model.safetensors')[0], renamed(WEIGHTS))


# ---- models of transformers that are refused ---------------------------------------------------


@pure
@pytest.mark.parametrize('config, words', [
    ({'model_type': 'llama'}, ['llama', 'gpt2']),
    ({'model_type': None}, ['null', 'gpt2']),
    ({'activation_function': 'relu'}, ['activation_function', 'relu', 'gelu_new']),
    ({'activation_function': 'gelu'}, ['activation_function', '"gelu"', 'gelu_new']),
    ({'activation_function': {}}, ['activation_function', '{}']),
    ({'activation_function': None}, ['activation_function', 'null']),
    ({'scale_attn_by_inverse_layer_idx': True}, ['scale_attn_by_inverse_layer_idx', 'true']),
    ({'scale_attn_weights': False}, ['scale_attn_weights', 'false']),
    ({'add_cross_attention': True}, ['add_cross_attention']),
    ({'layer_norm_epsilon': 1e-6}, ['layer_norm_epsilon', '1e-06', '1e-05']),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    ({'n_inner': 32}, ['n_inner', '32', '64']),
    ({'n_layer': 3}, ['h.2.', 'config.json']),
    ({'n_layer': 10**7}, ['h.2.', 'config.json']),
    ({'n_layer': 1}, ['h.1.', 'does not have']),
    ({'n_positions': 16}, ['wpe.weight', '[32, 16]', '[16, 16]']),
    ({'n_embd': '16'}, ['n_embd', '"16"']),
    ({'n_embd': 0}, ['n_embd', '0']),
    ({'n_head': 3}, ['n_head', 'n_embd']),
    ({'vocab_size': 256}, ['256', '257', 'config.json']),
    ({'tie_word_embeddings': False}, ['lm_head.weight']),
], ids=str)
def test_a_config_of_another_model(hf, complaint, config, words):
    edit_json(hf / 'config.json', **config)
    message = complaint(hf)
    assert str(hf) in message and all(word in message for word in words)


@pure
@pytest.mark.parametrize('name', ['model_type', 'n_embd', 'vocab_size', 'n_positions'])
def test_a_config_that_lacks_a_value(hf, complaint, name):
    config = json.loads((hf / 'config.json').read_text())
    del config[name]
    (hf / 'config.json').write_text(json.dumps(config))
    message = complaint(hf)
    assert str(hf / 'config.json') in message and name in message


@pure
@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'"gpt2"', b'\xff', b'[' * 100000],
                         ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize('name', ['config.json', 'vocab.json', 'tokenizer.json',
                                  'added_tokens.json', 'model.safetensors.index.json'])
def test_files_that_are_not_json_objects(hf, complaint, name, content):
    if name == 'tokenizer.json':
        (hf / 'vocab.json').unlink()
    if name == 'model.safetensors.index.json':
        (hf / 'model.safetensors').unlink()
    (hf / name).write_bytes(content)
    assert str(hf / name) in complaint(hf)


@pure
@pytest.mark.parametrize('change', [
    {'model': None}, {'model': {}}, {'model': {'type': 'WordPiece', 'vocab': {}}},
    {'model': {'type': 'WordPiece', 'vocab': BYTE_TOKENS, 'merges': []}},
    {'pre_tokenizer': {'type': 'Metaspace'}}, {'pre_tokenizer': None},
    {'model': {'type': 'BPE', 'vocab': {'a': 0}, 'merges': []}},
    {'model': {'type': 'BPE', 'vocab': [1], 'merges': [3]}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': ['a b c']}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': [['a', 'b', 'c']]}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': [['a', ' ']]}},
    {'model': {'type': 'BPE', 'vocab': {'\ud800': 0}, 'merges': []}},
    {'model': {'type': 'BPE', 'vocab': dict(BYTE_TOKENS, x=1.0), 'merges': []}},
    {'model': {'type': 'BPE', 'vocab': BYTE_TOKENS, 'merges': ['q q']}},
    {'added_tokens': [{'id': 255, 'content': END_OF_TEXT}]},
    {'added_tokens': [{'id': 3.5, 'content': END_OF_TEXT}]},
    {'added_tokens': []}, {'added_tokens': 3},
    {'added_tokens': [{'id': '256', 'content': END_OF_TEXT}]},
], ids=str)
def test_a_tokenizer_of_another_kind(hf, complaint, change):
    usual = {'model': {'type': 'BPE', 'vocab': BYTE_TOKENS, 'merges': []},
             'pre_tokenizer': {'type': 'ByteLevel'},
             'added_tokens': [{'id': 256, 'content': END_OF_TEXT}]}
    edit_json(hf / 'tokenizer.json', **dict(usual, **change))
    (hf / 'vocab.json').unlink()
    message = complaint(hf)
    assert str(hf / 'tokenizer.json') in message and 'vocabulary' in message


@pure
def test_a_vocabulary_without_end_of_text(hf, complaint):
    (hf / 'vocab.json').write_text(json.dumps(dict(BYTE_TOKENS, end=256)))
    message = complaint(hf)
    assert str(hf / 'vocab.json') in message and END_OF_TEXT in message


@pure
def test_merges_of_another_vocabulary(hf, complaint):
    (hf / 'merges.txt').write_text('#version: 0.2\nq q\n')
    message = complaint(hf)
    assert str(hf / 'merges.txt') in message and 'line 2' in message


@pure
@pytest.mark.parametrize('name, change, words', [
    ('transformer.wte.weight', lambda old: None, ['lack wte.weight']),
    ('transformer.h.1.mlp.c_fc.bias', lambda old: None, ['lack h.1.mlp.c_fc.bias']),
    ('transformer.h.0.attn.c_attn.weight', lambda old: (old[0], old[1].T),
     ['h.0.attn.c_attn.weight', '[48, 16]', '[16, 48]']),
    ('transformer.ln_f.bias', lambda old: (old[0], old[1][None]), ['ln_f.bias', '[1, 16]']),
    ('transformer.ln_f.bias', lambda old: ('F64', old[1].astype(np.float64)), ['ln_f.bias', 'F64']),
    ('transformer.ln_f.bias', lambda old: ('I32', old[1]), ['ln_f.bias', 'I32']),
    ('wte.weight', lambda old: ('F32', np.ones([257, 16], np.float32)), ['wte.weight', 'twice']),
    ('score.weight', lambda old: ('F32', np.ones([2, 16], np.float32)), ['score.weight']),
    ('transformer.h.2.ln_1.bias', lambda old: ('F32', np.ones([16], np.float32)),
     ['h.2.ln_1.bias']),
    ('lm_head.weight', lambda old: ('F32', np.ones([257, 16], np.float32)),
     ['lm_head.weight', 'differs']),
    ('lm_head.weight', lambda old: ('F32', np.ones([16], np.float32)), ['lm_head.weight', '[16]']),
])
def test_weights_of_another_model(hf, complaint, name, change, words):
    arrays = as_f32(renamed(WEIGHTS))
    arrays[name] = change(arrays.get(name))
    write_safetensors(hf / 'model.safetensors',
                      {name: array for name, array in arrays.items() if array is not None})
    message = complaint(hf)
    assert str(hf) in message and all(word in message for word in words)


@pure
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_not_converted(hf, call_convert, no_tensorflow, out, value):
    arrays = as_f32(renamed(WEIGHTS))
    arrays['transformer.wte.weight'] = ('F32', np.full([257, 16], value, np.float32))
    arrays['lm_head.weight'] = arrays['transformer.wte.weight']  # equal, also as NaN
    write_safetensors(hf / 'model.safetensors', arrays)
    status, stdout, stderr = call_convert(hf, out, '--to', 'transformers')
    assert (status, stdout) == (1, '')
    assert 'wte.weight' in stderr and 'finite' in stderr and str(hf) in stderr


def test_checkpoints_that_are_not_finite_are_not_converted(tiny, call_convert, tmp_path, out):
    weights = dict(tiny.weights)
    weights['model/h1/attn/c_attn/b'] = weights['model/h1/attn/c_attn/b'] * np.float32(np.nan)
    reference.write_checkpoint(tmp_path / 'odd', tiny.hparams, weights)
    status, _, stderr = call_convert(tmp_path / 'odd', out, '--to', 'tensorflow')
    assert status == 1 and 'model/h1/attn/c_attn/b' in stderr and 'finite' in stderr


@pure
@pytest.mark.parametrize('name', ['\ud800.safetensors', 'a\0b', '../x', '', 5])
def test_names_of_shards_that_cannot_be(hf, complaint, name):
    (hf / 'model.safetensors').unlink()
    index = hf / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'wte.weight': name}}))
    assert str(index) in complaint(hf) or name == ''


@pure
@pytest.mark.parametrize('keep', [0, 7, 8, 100, 5000, -1, -4])
def test_a_safetensors_file_that_was_cut_short(hf, complaint, keep):
    path = hf / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    message = complaint(hf)
    assert str(path) in message and 'cut short' in message
    assert str(path.stat().st_size) in message


def with_header(header):
    """Return a file of 64 bytes of data after this header: bytes, or an object for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode('utf-8')
    return struct.pack('<Q', len(text)) + text + bytes(64)


def entry(dtype='F32', shape=(16,), data_offsets=(0, 64)):
    return {'wte.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': data_offsets}}


@pure
@pytest.mark.parametrize('content', [
    with_header(b''), with_header(b'{'), with_header(b'[]'), with_header(b'3'),
    with_header(b'"x"'), with_header(b'{}'), with_header(b'{"\xff": 1}'),
    with_header(b'[' * 100000), with_header({'wte.weight': None}), with_header({'wte.weight': {}}),
    with_header(entry(shape=None)), with_header(entry(shape=[-16])), with_header(entry(shape='x')),
    with_header(entry(shape=[16.0])), with_header(entry(shape=[True] * 4)),
    with_header(entry(shape=[10**30])), with_header(entry(shape=[15])),
    with_header(entry(dtype=[])), with_header(entry(data_offsets=[0])),
    with_header(entry(data_offsets=[64, 0])), with_header(entry(data_offsets=[-4, 60])),
    with_header(entry(data_offsets=['0', '64'])), with_header(entry(data_offsets=7)),
    with_header(entry(shape=[15], data_offsets=[4, 64])),
    with_header(entry(shape=[15], data_offsets=[0, 60])),
    with_header(dict(entry(), x=entry()['wte.weight'])),
    b'\xff' * 64, b'PK\x03\x04 and a pickle, as torch.save writes', b'version https://git-lfs',
], ids=lambda content: repr(content[8:50]))
def test_a_file_that_is_not_safetensors(hf, complaint, content):
    path = hf / 'model.safetensors'
    path.write_bytes(content)
    message = complaint(hf)
    assert str(path) in message and 'damaged' in message and len(message) < 300


@pure
def test_a_header_that_points_beyond_the_end_of_the_file(hf, complaint):
    (hf / 'model.safetensors').write_bytes(with_header(entry(shape=[17], data_offsets=[0, 68])))
    assert 'cut short' in complaint(hf)


@pure
def test_a_file_that_gets_shorter_while_it_is_read(hf, out):
    path = hf / 'model.safetensors'
    tensors = safetensors.read_header(str(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ModelError, match='cut short'):
        for info in tensors.values():
            safetensors.read_array(info)


@pure
@pytest.mark.parametrize('weight_map', [None, [], {'wte.weight': 3}, {'wte.weight': '../x'},
                                        {'wte.weight': '/etc/passwd'}], ids=str)
def test_an_index_that_does_not_name_files(hf, complaint, weight_map):
    (hf / 'model.safetensors').unlink()
    edit_json(hf / 'model.safetensors.index.json', weight_map=weight_map)
    assert str(hf / 'model.safetensors.index.json') in complaint(hf)


@pure
def test_a_missing_shard(hf, complaint):
    (hf / 'model.safetensors').unlink()
    edit_json(hf / 'model.safetensors.index.json', weight_map={'wte.weight': 'a.safetensors'})
    assert str(hf / 'a.safetensors') in complaint(hf)


@pure
def test_a_folder_without_weights(hf, complaint):
    (hf / 'model.safetensors').unlink()
    message = complaint(hf)
    assert 'model.safetensors' in message and 'pytorch_model.bin' in message


@pure
@pytest.mark.parametrize('to', ['tensorflow', 'transformers'])
def test_the_command_refuses_them_in_one_line(refuse, hf, out, to):
    for name, content in [('model.safetensors', b'{}'), ('config.json', b'{"model_type": "bert"}'),
                          ('config.json', b'[]')]:
        (hf / name).write_bytes(content)
        status, message = refuse(hf, out, '--to', to)
        assert status == 1 and str(hf / name) in message
        assert not out.exists()


# ---- weights that torch.save wrote -------------------------------------------------------------

@pytest.fixture
def hf_bin(hf):
    """A folder of transformers, whose weights are still to be written to the path that this is."""
    (hf / 'model.safetensors').unlink()
    return hf / 'pytorch_model.bin'


@pure
@pytest.mark.parametrize('dtype', TORCH)
@pytest.mark.parametrize('in_one', [False, True])
def test_pytorch_model_bin(no_tensorflow, hf_bin, out, dtype, in_one):
    arrays = as_f32(renamed(WEIGHTS))
    if dtype == 'F16':
        arrays = {name: (dtype, array.astype('<f2')) for name, (_, array) in arrays.items()}
    elif dtype == 'BF16':
        arrays = {name: (dtype, (array.view('<u4') >> 16).astype('<u2'))
                  for name, (_, array) in arrays.items()}
    arrays['lm_head.weight'] = arrays['transformer.wte.weight']
    if not in_one:
        arrays['transformer.h.0.attn.bias'] = ('BoolStorage', np.ones([1, 1, 32, 32], bool))
        arrays['transformer.h.0.attn.masked_bias'] = ('F32', np.float32(-1e4).reshape([]))
    write_torch(hf_bin, arrays, in_one)
    expected = {name: array.astype('<f4') if dtype != 'BF16' else
                (array.astype('<u4') << 16).view('<f4') for name, (_, array) in arrays.items()
                if name != 'lm_head.weight' and '.attn.bias' not in name and 'masked' not in name}
    assert same(reread(hf_bin.parent, out), expected)


@pure
def test_shards_of_pytorch_model_bin(no_tensorflow, hf_bin, out):
    arrays, weight_map = as_f32(renamed(WEIGHTS, prefix='')), {}
    for i in range(2):
        file = f'pytorch_model-{i + 1:05}-of-00002.bin'
        part = dict(list(arrays.items())[i::2])
        write_torch(hf_bin.parent / file, part)
        weight_map.update(dict.fromkeys(part, file))
    edit_json(hf_bin.parent / 'pytorch_model.bin.index.json', metadata={}, weight_map=weight_map)
    assert same(reread(hf_bin.parent, out), renamed(WEIGHTS))


@pure
def test_safetensors_are_preferred_to_pytorch_model_bin(no_tensorflow, hf, out):
    (hf / 'pytorch_model.bin').write_bytes(b'not read')
    assert same(reread(hf, out), renamed(WEIGHTS))


@pure
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_what_torch_saves_can_be_read(no_tensorflow, hf_bin, out, dtype):
    """Also weights that share a storage, or lie in a part of one."""
    torch = pytest.importorskip('torch')
    state = collections.OrderedDict(
        (name, torch.from_numpy(array.copy()).to(getattr(torch, dtype)))
        for name, array in renamed(WEIGHTS).items())
    expected = {name: tensor.float().numpy() for name, tensor in state.items()}
    state['lm_head.weight'] = state['transformer.wte.weight']
    together = torch.stack([state[f'transformer.ln_f.{end}'] for end in ('bias', 'weight')])
    state['transformer.ln_f.bias'], state['transformer.ln_f.weight'] = together
    state['transformer.h.0.attn.bias'] = torch.ones(1, 1, 32, 32, dtype=torch.uint8).tril()
    state._metadata = collections.OrderedDict({'': {'version': 1}})  # as of a module
    torch.save(state, str(hf_bin))
    assert same(reread(hf_bin.parent, out), expected)


@pure
def test_the_format_of_old_torch(hf_bin, complaint):
    torch = pytest.importorskip('torch')
    torch.save({'wte.weight': torch.ones(2)}, str(hf_bin), _use_new_zipfile_serialization=False)
    message = complaint(hf_bin.parent)
    assert str(hf_bin) in message and 'torch before 1.6' in message and 'save_pre' in message


NESTED = b')' + b'\x85' * 200000  # a tuple in a tuple in a tuple; Python cannot hash it
SHARED = b')' + b'q\x00h\x00\x86' * 99  # a pair of pairs of pairs, 2**99 of them
CALL = b'(' + push('touch called') + b'tR'


@pure
@pytest.mark.parametrize('pickle, word', [
    (b'', 'malformed'), (b'\x80\x02.', 'malformed'), (b'garbage', 'malformed'), (b'}', 'malformed'),
    (b'\x80\x02cposix\nsystem\n' + CALL + b'.', 'posix.system'),
    (b'\x80\x02cbuiltins\neval\n' + CALL + b'.', 'builtins.eval'),
    (b'\x80\x02cpytorch\nos.system\n' + CALL + b'.', 'pytorch.os.system'),
    (b'(' + push('touch called') + b'ios\nsystem\n.', 'INST'),
    (b'(cos\nsystem\n' + CALL[1:-2] + b'o.', 'os.system'),
    (b'\x80\x04\x8c\x02os\x8c\x06system\x93' + CALL + b'.', 'SHORT_BINUNICODE'),
    (push('os') + push('system') + b'\x93' + CALL + b'.', 'STACK_GLOBAL'),
    (b'\x82\x01.', 'EXT1'), (b'ccollections\nOrderedDict\n)\x81.', 'NEWOBJ'),
    (b'ctorch\nload\n(X\x01\x00\x00\x00xtR.', 'torch.load'),
    (b'ccollections\nOrderedDict\n(((KKtttR.', 'calls'), (push('os') + CALL + b'.', 'calls'),
    (b'K\x01.', 'something else'), (b')R.', 'malformed'), (b'h\x07.', 'malformed'),
    (push(1) + b'Q.', 'malformed'), (b'}K\x01K\x02s.', 'key'), (b'}N', 'malformed'),
    (torch_pickle(push('a'), push(1)), 'a is not a tensor'),
    (torch_pickle(push('a') + push('b')), 'a is not a tensor'),
    (torch_pickle(NESTED, push(1)), 'key'), (torch_pickle(SHARED, push(1)), 'key'),
    (torch_pickle(push('a'), SHARED), 'a is not'), (SHARED + b')R.', 'calls'),
    (b'(' + push('storage') + push('x') + SHARED + push('cpu') + push(0) + b'tQ.', 'malformed'),
    (b')r\xff\xff\xff\x7f0.', 'POP'), (b'\x8e' + b'\xff' * 7 + b'\x7f', 'malformed'),
    (b'X\xff\xff\xff\x7fabc', 'malformed'), (b'X\x01\x00\x00\x00\xff.', 'malformed'),
    (b'I' + b'9' * 3000 + b'\n.', 'INT'), (b'N' * 500001, 'malformed'),
], ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value)
def test_hostile_pickles(monkeypatch, hf_bin, complaint, pickle, word):
    monkeypatch.chdir(hf_bin.parent)
    before = file_names(hf_bin.parent)
    write_archive(hf_bin, pickle, {'0': bytes(64)})
    message = complaint(hf_bin.parent)
    assert str(hf_bin) in message and word in message and len(message) < 400
    assert file_names(hf_bin.parent) == sorted([*before, 'pytorch_model.bin'])


@pure
@pytest.mark.parametrize('values, word', [
    ({'key': '1'}, 'data/1 is missing'), ({'key': '../data.pkl'}, 'data/../data.pkl is missing'),
    ({'key': '/etc/passwd'}, 'data//etc/passwd is missing'), ({'key': '\ud800'}, 'is missing'),
    ({'key': 0}, 'malformed'), ({'offset': 1}, 'beyond'), ({'offset': -1}, 'malformed'),
    ({'shape': (17,)}, 'beyond'), ({'shape': (2**64,)}, 'beyond'), ({'shape': (-16,)}, 'malformed'),
    ({'shape': (2**2000,) * 300, 'strides': (1,) * 300}, 'beyond'),
    ({'shape': ('16',)}, 'malformed'), ({'shape': 16}, 'malformed'),
    ({'shape': (4, 4)}, 'malformed'), ({'shape': (4, 4), 'strides': (1, 4)}, 'contiguous'),
    ({'strides': (0,)}, 'contiguous'), ({'strides': (-1,)}, 'malformed'),
    ({'offset': 16, 'shape': (), 'strides': ()}, 'beyond'), ({'storage': 'Tensor'}, 'torch.Tensor'),
    ({'storage': 'LongStorage', 'shape': (65,)}, 'beyond'),
], ids=str)
def test_tensors_that_are_not_where_they_should_be(hf_bin, complaint, values, word):
    write_archive(hf_bin, torch_pickle(push('wte.weight'), push_tensor(**values)), {'0': bytes(64)})
    message = complaint(hf_bin.parent)
    assert str(hf_bin) in message and word in message


@pure
def test_archives_that_torch_did_not_write(hf_bin, complaint):
    pickle, storages = torch_pickle(push('wte.weight') + push_tensor()), {'0': bytes(64)}

    def check(word):
        message = complaint(hf_bin.parent)
        assert str(hf_bin) in message and word in message

    for content in [b'', b'x' * 1000, b'PK\x03\x04' + bytes(100), b'{"format": "safetensors"}']:
        hf_bin.write_bytes(content)
        check('archive')
    write_archive(hf_bin, pickle, storages, compression=zipfile.ZIP_DEFLATED)
    check('archive')
    write_archive(hf_bin, pickle, storages, root='')
    check('data.pkl')
    for root, word in [('other/', 'several'), ('pytorch_model/', 'archive')]:
        write_archive(hf_bin, pickle, storages)
        with zipfile.ZipFile(str(hf_bin), 'a') as archive, warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of a name that occurs twice
            archive.writestr(f'{root}data.pkl', pickle)
        check(word)
    write_archive(hf_bin, pickle, storages)
    hf_bin.write_bytes(hf_bin.read_bytes().replace(b'littleP', b'big___P'))
    check('big-endian')


@pure
def test_damage_anywhere_in_pytorch_model_bin(no_tensorflow, hf_bin):
    write_torch(hf_bin, as_f32(renamed(WEIGHTS)))
    content, rng = hf_bin.read_bytes(), random.Random(0)
    text_ends = content.index(b'data/0')
    refused = 0
    for i in range(100):
        damaged, place = bytearray(content), rng.randrange([text_ends, len(content)][i % 2])
        if i % 5:
            damaged[place] ^= rng.randrange(1, 256)
        else:
            del damaged[place:]
        hf_bin.write_bytes(bytes(damaged))
        try:
            read = conversion.open_source(str(hf_bin.parent), None, 'models').open_weights()
            assert read('model/ln_f/b').shape == (16,)
        except UserError as error:
            assert '\n' not in str(error)
            refused += 1
    assert 50 < refused < 100


# ---- from programs for fine-tuning -------------------------------------------------------------


def write_fork(tf, path, tiny, vocabulary=True, step=1000, weights=None, extra=None):
    """Write a checkpoint like those of fine-tuning programs, with an optimizer's variables."""
    path.mkdir(parents=True)
    extra = {'beta1_power': np.float32(0.9), 'beta2_power': np.float32(0.999),
             'model/wte/Adam': np.ones_like(tiny.weights['model/wte']),
             'model/h0/ln_1/g/Adam_1': np.ones([16], np.float32),
             'model/h0/attn/c_attn/w/Adam': np.ones([1, 16, 48], np.float32),
             'global_step': np.int64(7), **(extra or {})}
    with tf.Graph().as_default(), tf.Session() as session:
        variables = [tf.get_variable(name, initializer=value) for name, value in
                     dict(weights or tiny.weights, **extra).items()]
        session.run(tf.variables_initializer(variables))
        saver = tf.train.Saver(variables)
        for number in [step - 1, step]:  # `checkpoint` names the last one
            saver.save(session, os.path.relpath(str(path / 'model')), global_step=number)
    (path / 'counter').write_text(f'{step}\n')
    if vocabulary:
        copy_files(['hparams.json', *VOCABULARY], tiny.path, path)
    return path


def test_a_fork_with_its_vocabulary(tf, saved, tiny, tmp_path, out):
    source = write_fork(tf, tmp_path / 'checkpoint' / 'run1', tiny)
    assert '"model-1000"' in (source / 'checkpoint').read_text()
    convert.convert(source, out, 'tensorflow')
    assert file_names(out) == MODEL_DIR_FILES
    assert same(saved(out), tiny.weights)
    assert (out / WEIGHTS_FILE).read_bytes() == (tiny.path / WEIGHTS_FILE).read_bytes()
    convert.convert(str(source) + '/', tmp_path / 'hf', 'transformers')
    assert same(read_safetensors(tmp_path / 'hf' / 'model.safetensors')[0], renamed(tiny.weights))


def test_the_prefix_of_a_checkpoint(tf, monkeypatch, tiny, tmp_path):
    """Its weights are taken, whichever `checkpoint` names, and without that file."""
    source, weights = tmp_path / 'run1', reference.random_weights(tiny.hparams, seed=6)
    reference.write_checkpoint(source, tiny.hparams, weights, prefix='model-1000')
    reference.write_checkpoint(source, tiny.hparams, tiny.weights, prefix='model-2000')

    def read(path, *base):
        read = conversion.open_source(path, *(base or [None, 'models'])).open_weights()
        return {name: read(name) for name in weights}

    assert same(read(f'{source}'), tiny.weights)
    assert same(read(f'{source}/model-1000'), weights)
    for name in ['checkpoint', 'hparams.json', *VOCABULARY]:
        (source / name).unlink()
    (source / 'model-2000').mkdir()  # not the folder of a model
    monkeypatch.chdir(source)
    assert same(read('model-1000', 'tiny', str(tiny.models_dir)), weights)


def test_prefixes_that_are_refused(tiny, complaint, tmp_path):
    source = tmp_path / 'run1'
    copy_files(['model.ckpt.index', 'hparams.json', *VOCABULARY], tiny.path, source)
    assert f'{source}/model.ckpt.data-00000-of-00001 is missing' in complaint(source / 'model.ckpt')
    assert f'no {source}/model.index' in complaint(source / 'model')
    copy_files(MODEL_DIR_FILES, tiny.path, tmp_path / 'run[2]')
    assert 'rename' in complaint(tmp_path / 'run[2]' / 'model.ckpt')
    (source / 'hparams.json').unlink()
    assert '--base_model' in complaint(source / 'model.ckpt')


def test_a_fork_without_its_vocabulary(tf, saved, call_convert, tiny, tmp_path, out):
    weights = reference.random_weights(tiny.hparams, seed=5)
    source = write_fork(tf, tmp_path / 'run1', tiny, vocabulary=False, weights=weights)
    base = ['--base_model', 'tiny', '--models_dir', tiny.models_dir]
    assert call_convert(source, out, '--to', 'tensorflow', *base)[:2] == (0, '')
    assert file_names(out) == MODEL_DIR_FILES and same(saved(out), weights)
    for name in VOCABULARY:
        assert (out / name).read_bytes() == (tiny.path / name).read_bytes()
    assert call_convert(source, tmp_path / 'hf', '--to', 'transformers', *base)[:2] == (0, '')
    assert same(read_safetensors(tmp_path / 'hf' / 'model.safetensors')[0], renamed(weights))


def test_a_fork_needs_a_base_model_that_exists(tiny, complaint, tmp_path):
    copy_files(['checkpoint', 'model.ckpt.index', WEIGHTS_FILE], tiny.path, tmp_path / 'run1')
    message = complaint(tmp_path / 'run1')
    assert 'hparams.json' in message and '--base_model' in message
    assert 'download_model.py' in complaint(tmp_path / 'run1', '355M', str(tiny.models_dir))


def test_hyperparameters_beside_a_checkpoint_count_more_than_those_of_the_base_model(
        saved, refuse, tiny, tmp_path, out):
    """The weights have the same shapes with any number of heads."""
    source = tmp_path / 'run1'
    copy_files(['checkpoint', 'model.ckpt.index', WEIGHTS_FILE, 'hparams.json'], tiny.path, source)
    edit_json(source / 'hparams.json', n_head=4)
    convert.convert(source, out, 'tensorflow', 'tiny', str(tiny.models_dir))
    assert json.loads((out / 'hparams.json').read_text()) == dict(tiny.hparams, n_head=4)
    assert same(saved(out), tiny.weights)
    edit_json(source / 'hparams.json', n_vocab=256)
    status, message = refuse(source, tmp_path / 'more', '--to', 'tensorflow', '--base_model',
                             'tiny', '--models_dir', tiny.models_dir)
    assert status == 1 and all(word in message for word in [str(source), '257', '256'])


def test_a_base_model_needs_no_weights(tf, saved, tiny, tmp_path, out):
    source = write_fork(tf, tmp_path / 'run1', tiny, vocabulary=False)
    copy_files(['hparams.json', *VOCABULARY], tiny.path, tmp_path / 'models' / '124M')
    convert.convert(source, out, 'tensorflow', '124M', str(tmp_path / 'models'))
    assert same(saved(out), tiny.weights)


def damaged_copy(tiny, tmp_path):
    """Return a copy of the tiny model with a wrong bit in its last weights."""
    copy_files(MODEL_DIR_FILES, tiny.path, tmp_path / 'damaged')
    content = bytearray((tmp_path / 'damaged' / WEIGHTS_FILE).read_bytes())
    content[-9] ^= 1
    (tmp_path / 'damaged' / WEIGHTS_FILE).write_bytes(bytes(content))
    return tmp_path / 'damaged'


@pytest.mark.parametrize('to', ['tensorflow', 'transformers'])
def test_what_only_tensorflow_finds(tf, call_convert, capfd, tiny, tmp_path, out, to):
    """Another base model, another type, damage: one line, without messages of TensorFlow."""
    other = dict(tiny.hparams, n_embd=8)
    reference.write_checkpoint(tmp_path / 'models' / 'other', other,
                               reference.random_weights(other, seed=0))
    source = write_fork(tf, tmp_path / 'run1', tiny, vocabulary=False)
    integer = write_fork(tf, tmp_path / 'run2', tiny, extra={
        'model/ln_f/g': np.ones([16], np.int64)})
    damaged = damaged_copy(tiny, tmp_path)
    base = ['--base_model', 'other', '--models_dir', tmp_path / 'models']
    for path, args, word in [(source, base, 'different models'), (integer, [], 'int64'),
                             (damaged, [], 'damaged')]:
        status, stdout, stderr = call_convert(path, out, '--to', to, *args)
        assert (status, stdout, stderr.count('\n')) == (1, '', 1)
        assert str(path) in stderr and word in stderr
        assert not out.exists()
    assert capfd.readouterr() == ('', '')


def test_a_checkpoint_without_its_weights(tiny, complaint, tmp_path):
    source = tmp_path / 'run1'
    copy_files(['checkpoint', 'hparams.json', *VOCABULARY], tiny.path, source)
    assert str(source / 'model.ckpt.index') in complaint(source)
    (source / 'checkpoint').write_text('')
    assert str(source / 'checkpoint') in complaint(source)


# ---- the command line --------------------------------------------------------------------------


@pure
def test_an_output_that_exists_is_never_touched(refuse, hf, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('nowhere')
    for name in ['file', 'folder', 'link', 'hf', 'folder/']:
        status, message = refuse(hf, f'{tmp_path}/{name}', '--to', 'tensorflow')
        assert status == 1 and name.rstrip('/') in message and 'exists' in message
    assert (tmp_path / 'file').read_text() == 'mine' and file_names(tmp_path / 'folder') == []


@pure
@pytest.mark.parametrize('args, words', [
    ([], ['SOURCE']), (['hf'], ['OUTPUT']), (['hf', 'new'], ['--to', 'tensorflow, transformers']),
    (['hf', 'new', '--to', 'pytorch'], ['--to', 'transformers', 'tensorflow', 'pytorch']),
    (['hf', 'new', '--to'], ['--to']), (['hf', '', '--to', 'tensorflow'], ['OUTPUT']),
    (['hf', os.fsdecode(b'\xff'), '--to', 'tensorflow'], ['OUTPUT']),
    (['hf', 'new', '--to', 'tensorflow', '--base_modl', '124M'], ['--base_modl', '--base_model']),
    (['hf', 'new', '--to', 'tensorflow', '--base_model', '124M'], ['--base_model']),
    (['hf', 'new', 'tensorflow', '124M', 'models', 'more'], ['more'])], ids=str)
def test_arguments_that_cannot_be_used(refuse, monkeypatch, hf, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    status, message = refuse(*args)
    assert status == 2 and all(word in message for word in words)
    assert file_names(tmp_path) == ['hf']


@pure
@pytest.mark.parametrize('name', ['absent', 'file', 'empty'])
def test_a_source_that_is_not_a_model(complaint, tmp_path, name):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'empty').mkdir()
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert name != 'empty' or 'config.json' in message and '`checkpoint`' in message


@pure
def test_a_path_that_tensorflow_would_misread(refuse, hf, tmp_path):
    status, message = refuse(hf, tmp_path / 'a[1]', '--to', 'tensorflow')
    assert status == 1 and str(tmp_path / 'a[1]') in message and 'rename' in message
    convert.convert(hf, tmp_path / 'a[1]', 'transformers')
    assert file_names(tmp_path / 'a[1]') == TRANSFORMERS_FILES


@pure
def test_an_output_that_cannot_be_written(refuse, hf, tmp_path):
    (tmp_path / 'file').write_text('')
    for output in ['file/new', 'file/folder/new']:
        status, message = refuse(hf, tmp_path / output, '--to', 'transformers')
        assert status == 1 and str(tmp_path / output) in message


@pytest.mark.parametrize('kind', [pytest.param('hf', marks=pure), 'tiny'])
def test_relative_paths_with_a_slash_at_their_end(request, monkeypatch, tmp_path, kind):
    """The output goes into a new folder, outside the folder that is converted."""
    source = request.getfixturevalue(kind)
    shutil.copytree(str(getattr(source, 'path', source)), str(tmp_path / 'model'))
    monkeypatch.chdir(tmp_path / 'model')
    convert.convert('./', '../über/neu/', 'transformers')
    assert file_names(tmp_path / 'über') == ['neu']
    assert file_names(tmp_path / 'über' / 'neu') == TRANSFORMERS_FILES


@pure
def test_the_help_of_the_process(bare):
    status, stdout, stderr = bare(SCRIPT, '--help')
    assert (status, stderr) == (0, '')
    for name in ['SOURCE', 'OUTPUT', '--to', '--base_model', '--models_dir', 'src/convert.py']:
        assert name in stdout


@pure
def test_a_progress_bar_on_a_terminal(hf, out):
    child = Command(SCRIPT, hf, out, '--to', 'transformers').spawn()
    child.expect('28/28')
    child.expect(r'\Z|$')
    child.wait()
    assert child.exitstatus == 0 and file_names(out) == TRANSFORMERS_FILES


# ---- interruption ------------------------------------------------------------------------------

# Python imports this at its start. Then the command waits before OUTPUT gets its name.
WAIT = """
import os, time
def rename(source, target, rename=os.rename):
    if os.path.isdir(source):
        open(os.path.join(os.path.dirname(__file__), 'waiting'), 'w').close()
        time.sleep(60)
    return rename(source, target)
os.rename = rename
"""


@pytest.mark.parametrize('stop, to', [
    pytest.param('SIGINT', 'transformers', marks=pure),
    pytest.param('SIGKILL', 'transformers', marks=[pure, only_long]),
    pytest.param('SIGINT', 'tensorflow', marks=only_long),
    pytest.param('SIGKILL', 'tensorflow', marks=only_long)])
def test_a_process_stopped_before_its_end_leaves_no_output(hf, tmp_path, stop, to):
    (tmp_path / 'late').mkdir()
    (tmp_path / 'late' / 'sitecustomize.py').write_text(WAIT)
    out = tmp_path / 'output' / 'new'
    process = Command(SCRIPT, hf, out, '--to', to, env={'PYTHONPATH': tmp_path / 'late'}).start()
    deadline = time.time() + 100
    while not (tmp_path / 'late' / 'waiting').exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    assert len(file_names(out.parent)) == 1 and not out.exists()
    process.send_signal(getattr(signal, stop))
    stdout, stderr = process.communicate(timeout=30)
    assert (stdout, stderr) == (b'', b'') and not out.exists()
    if stop == 'SIGINT':
        assert process.returncode == 130 and file_names(out.parent) == []
    convert.convert(hf, out, to)  # what a killed process left does no harm
    assert file_names(out) == files_of(to)


def check_interruptions(monkeypatch, hf, out, to, modules_and_names):
    """Interrupt a conversion at each call of these functions: all or nothing may be there."""
    calls = 0

    def interrupted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call

    for module, name in modules_and_names:
        monkeypatch.setattr(module, name, interrupted(getattr(module, name)))
    stop_at, ended = 0, False
    while not ended:
        stop_at, calls = stop_at + 1, 0
        try:
            convert.convert(hf, out, to)
            ended = True
        except KeyboardInterrupt:
            assert file_names(out.parent) == ([] if not out.exists() else ['new']), stop_at
            if out.exists():
                assert file_names(out) == files_of(to)
                shutil.rmtree(str(out))
    assert stop_at > 10 and file_names(out) == files_of(to)


def files_of(to):
    return MODEL_DIR_FILES if to == 'tensorflow' else TRANSFORMERS_FILES


@pure
def test_interruptions_while_a_folder_of_transformers_is_written(monkeypatch, hf, out):
    check_interruptions(monkeypatch, hf, out, 'transformers', [
        (os, 'rename'), (os, 'replace'), (os, 'fsync'), (os, 'mkdir'), (safetensors, 'read_array')])


def test_interruptions_while_a_model_directory_is_written(tf, monkeypatch, hf, out):
    check_interruptions(monkeypatch, hf, out, 'tensorflow', [
        (os, 'rename'), (os, 'replace'), (os, 'mkdir'), (tensorflow, 'map_weights'),
        (tensorflow, 'save_weights'), (checkpoint, 'write_checkpoint_state')])


@pytest.mark.parametrize('to, limit', [
    pytest.param('transformers', 0, marks=pure), pytest.param('transformers', 20000, marks=pure),
    ('tensorflow', 20000), ('tensorflow', 60000)])
def test_a_full_disk(request, hf, out, to, limit):
    if to == 'tensorflow':
        request.getfixturevalue('tf')
    with limit_file_size(limit), pytest.raises(UserError, match='new.* cannot be written'):
        convert.convert(hf, out, to)
    assert not out.exists()


@pure
def test_a_full_disk_in_a_process(hf, out):
    process = Command(SCRIPT, hf, out, '--to', 'transformers').start
    with limit_file_size(20000):  # the process inherits the limit
        started = process()
    stdout, stderr = started.communicate(timeout=60)
    assert (started.returncode, stdout, stderr.count(b'\n')) == (1, b'', 1)
    assert stderr.startswith(b'convert.py: ') and str(out).encode() in stderr and not out.exists()


def test_a_disk_that_is_full_when_tensorflow_writes(tf, tiny, tmp_path):
    hparams = model_dir.read_hparams(str(tiny.path / 'hparams.json'))
    (tmp_path / WEIGHTS_FILE).mkdir()  # in the way
    with pytest.raises(OSError, match='model.ckpt'):
        tensorflow.save_weights(str(tmp_path / 'model.ckpt'), hparams, tiny.weights)


# ---- memory ------------------------------------------------------------------------------------


def anonymous_memory(pid):
    """Return the memory of a process that is no mapped file, in bytes; 0 once it has ended."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f'/proc/{pid}/status').read_text().splitlines():
            if line.startswith('RssAnon:'):
                return 1024 * int(line.split()[1])
    return 0


def peak_memory(process):
    """Return the largest memory of a process until it ends well, without mapped files."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_memory(process.pid))
        time.sleep(0.01)
    assert process.communicate() == (b'', b'') and process.returncode == 0
    return peak


@only_long
@needs_data
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs /proc')
def test_weights_are_not_all_in_memory_at_once(tf, tmp_path):
    """In the shape of 124M: 498 MB of weights, the largest 154 MB."""
    hparams = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}
    reference.write_checkpoint(tmp_path / 'model', hparams, reference.random_weights(hparams, 0),
                               vocabulary_dir=pathlib.Path(DATA) / 'gpt2-vocab')
    importing = subprocess.Popen([sys.executable, '-c', 'import tensorflow.compat.v1'],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    baseline = 0
    while importing.poll() is None:
        baseline = max(baseline, anonymous_memory(importing.pid))
        time.sleep(0.01)
    for source, output, to in [('model', 'hf', 'transformers'), ('hf', 'back', 'tensorflow')]:
        command = Command(SCRIPT, tmp_path / source, tmp_path / output, '--to', to)
        peak = peak_memory(command.start())
        assert 0 < baseline and peak < baseline + 400e6, (to, baseline, peak)
    assert same_file(tmp_path / 'model' / WEIGHTS_FILE, tmp_path / 'back' / WEIGHTS_FILE)


def same_file(path, other):
    return path.read_bytes() == other.read_bytes()


# ---- beside transformers -----------------------------------------------------------------------


def as_hf(path, tmp_path):
    convert.convert(path, tmp_path / 'hf', 'transformers')
    return str(tmp_path / 'hf')


def our_logits(tf, path, tokens):
    """Return the logits of a model directory's model, as our graph computes them."""
    import model
    opened = model_dir.open_model_dir(path.name, str(path.parent))
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.int32, [1, None])
        logits = model.model(opened.hparams, x)['logits']
        checkpoint.restore(session, str(path))
        return session.run(logits, {x: [tokens]})[0]


def check_logits(tf, path, n_vocab, n_ctx, tmp_path):
    torch = pytest.importorskip('torch')
    peer = pytest.importorskip('transformers')
    net, info = peer.AutoModelForCausalLM.from_pretrained(as_hf(path, tmp_path),
                                                          output_loading_info=True)
    assert not any(info.values()), info
    assert net.dtype == torch.float32 and net.lm_head.weight is net.transformer.wte.weight
    tokens = np.random.RandomState(0).randint(0, n_vocab, n_ctx).tolist()
    with torch.no_grad():
        logits = net.eval()(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(logits - our_logits(tf, path, tokens)).max() < 1e-4


def test_transformers_computes_the_same_logits(tf, tiny, tmp_path):
    check_logits(tf, tiny.path, 257, 32, tmp_path)


def test_transformers_computes_the_same_logits_of_the_included_model(tf, tmp_path):
    check_logits(tf, ONE_M, 1000, 256, tmp_path)


LOAD = """
import sys, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
net = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer('O Romeo, Romeo', return_tensors='pt')
print(repr(tokenizer.decode(net.generate(**ids, max_new_tokens=9, do_sample=False)[0])))
"""


def test_transformers_loads_it_without_a_warning(tf, tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
    result = subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', LOAD,
                             as_hf(ONE_M, tmp_path)], env=env, capture_output=True, timeout=120)
    stderr = result.stderr.decode('utf-8')
    assert result.returncode == 0, stderr
    assert eval(result.stdout.decode('utf-8')).startswith('O Romeo, Romeo')
    for line in stderr.splitlines():
        assert 'Loading weights' in line, stderr  # a progress bar, and nothing else


def check_tokens(path, vocabulary, texts):
    """Compare the ids that each tokenizer of transformers gives with ours, and the texts of ids."""
    peer = pytest.importorskip('transformers')
    for name in ['AutoTokenizer', 'GPT2Tokenizer', 'GPT2TokenizerFast']:
        tokenizer = getattr(peer, name).from_pretrained(path)
        assert len(tokenizer) == len(vocabulary.encoder)
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == vocabulary.end_of_text
        assert tokenizer(END_OF_TEXT).input_ids == [vocabulary.end_of_text]  # as the help says
        for text in texts:
            ids = tokenizer(text).input_ids
            assert ids == vocabulary.encode(text), text
            assert tokenizer.decode(ids) == text


def test_their_tokenizer_gives_the_same_ids(tf, tmp_path):
    pytest.importorskip('transformers')
    check_tokens(as_hf(ONE_M, tmp_path), encoder.get_encoder('1M', str(ONE_M.parent)), TEXTS)


@needs_data
def test_their_tokenizer_gives_the_same_ids_with_the_released_vocabulary(tf, tmp_path):
    data = pathlib.Path(DATA)
    hparams = {'n_vocab': 50257, 'n_ctx': 4, 'n_embd': 4, 'n_head': 1, 'n_layer': 1}
    reference.write_checkpoint(tmp_path / 'model', hparams, reference.random_weights(hparams, 0),
                               vocabulary_dir=data / 'gpt2-vocab')
    there, _ = check_round_trip(tmp_path / 'model', tmp_path)
    for ours, theirs in VOCABULARY.items():
        assert same_file(there / theirs, data / 'gpt2-vocab' / ours)
    texts = [(data / name).read_text(encoding='utf-8')[:20000].replace(END_OF_TEXT, '')
             for name in ['tinyshakespeare.txt', 'wiki.test.tokens', 'lambada_test.jsonl']]
    check_tokens(str(there), encoder.get_encoder('model', str(tmp_path)), TEXTS + texts)


@pytest.mark.parametrize('options', [{}, {'max_shard_size': '50KB'}], ids=str)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_transformers_saves_can_be_read(saved, tmp_path, out, dtype, options):
    torch = pytest.importorskip('torch')
    peer = pytest.importorskip('transformers')
    path = as_hf(ONE_M, tmp_path)
    net = peer.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    net.save_pretrained(str(tmp_path / 'theirs'), **options)
    peer.AutoTokenizer.from_pretrained(path).save_pretrained(str(tmp_path / 'theirs'))
    assert ('model.safetensors' in file_names(tmp_path / 'theirs')) == (not options)
    convert.convert(tmp_path / 'theirs', out, 'tensorflow')
    weights, expected = saved(out), saved(ONE_M)
    if dtype == 'bfloat16':
        expected = {name: torch.from_numpy(array).bfloat16().float().numpy()
                    for name, array in expected.items()}
    assert same(weights, expected)
    for name in VOCABULARY:
        assert same_file(out / name, ONE_M / name)


@pure
def test_the_library_of_the_format_reads_what_is_written(hf, tmp_path):
    library = pytest.importorskip('safetensors.numpy')
    written = pathlib.Path(as_hf(hf, tmp_path / 'output')) / 'model.safetensors'
    weights = library.load_file(str(written))
    assert same(weights, renamed(WEIGHTS))
    library.save_file(weights, str(tmp_path / 'again'), metadata={'format': 'pt'})
    assert same_file(tmp_path / 'again', written)
