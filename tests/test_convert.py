"""Conversion as its users meet it: a folder of one kind in, one of the other kind out, or one line.

What is written for transformers is read back here by a reader of the test's own, by transformers
itself where it is installed, and by convert.py.
"""
import doctest
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

import checkpoint
import cli
import convert
import encoder
import reference
import safetensors_file
from checkpoint import ModelError

SCRIPT = 'convert.py'
MODELS = pathlib.Path(__file__).resolve().parent.parent / 'models'
OFFICIAL_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
                  'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']
TRANSFORMERS_FILES = ['config.json', 'generation_config.json', 'merges.txt', 'model.safetensors',
                      'tokenizer_config.json', 'vocab.json']
DATA = 'model.ckpt.data-00000-of-00001'
END = '<|endoftext|>'
SYMBOL_IDS = {symbol: i for i, symbol in enumerate(reference.byte_symbols())}
TEXTS = ['', ' ', 'Hello world', "They'll say I'm  two   spaces\tand\n\n lines ", 'naïve Größe',
         '漢字と仮名 ไทย עברית', '👩‍🚀 ½ ²', '1234567890 3.14', '...!?--', 'a' * 300,
         '\x00\x7f\u00ad', 'end | of < text >', '\u2003em\u00a0nbsp']


# ---- files -------------------------------------------------------------------------------------


def write_safetensors(path, arrays, metadata=None):
    """Writes a safetensors file, {name: (type, array)}, in the order given."""
    header, data = {} if metadata is None else {'__metadata__': metadata}, b''
    for name, (dtype, array) in arrays.items():
        header[name] = {'dtype': dtype, 'shape': list(array.shape),
                        'data_offsets': [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode('utf-8')
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def read_safetensors(path):
    """Reads a safetensors file of float32 arrays: returns {name: array} and the metadata."""
    content = path.read_bytes()
    length, = struct.unpack('<Q', content[:8])
    header, data = json.loads(content[8:8 + length].decode('utf-8')), content[8 + length:]
    metadata = header.pop('__metadata__')
    assert all(entry['dtype'] == 'F32' for entry in header.values())
    return {name: np.frombuffer(data[slice(*entry['data_offsets'])], '<f4').reshape(entry['shape'])
            for name, entry in header.items()}, metadata


def theirs(weights, prefix='transformer.'):
    """Returns the weights by the names and in the shapes of transformers."""
    renamed = {}
    for name, array in weights.items():
        parts = name.split('/')[1:]
        if parts[0] in ('wte', 'wpe'):
            parts.append('weight')
        else:
            parts[-1] = 'bias' if parts[-1] == 'b' else 'weight'
        if parts[0][1:].isdigit():
            parts[:1] = ['h', parts[0][1:]]
        renamed[prefix + '.'.join(parts)] = array[0] if array.ndim == 3 else array
    return renamed


def as_f32(weights):
    return {name: ('F32', array) for name, array in weights.items()}


def write_transformers(path, tiny, arrays=None, **config):
    """Writes a folder of transformers, by the test's own hand."""
    path.mkdir(parents=True)
    sizes = tiny.hparams
    edit_config(path, model_type='gpt2', vocab_size=sizes['n_vocab'], n_positions=sizes['n_ctx'],
                n_embd=sizes['n_embd'], n_head=sizes['n_head'], n_layer=sizes['n_layer'], **config)
    shutil.copyfile(str(tiny.path / 'encoder.json'), str(path / 'vocab.json'))
    shutil.copyfile(str(tiny.path / 'vocab.bpe'), str(path / 'merges.txt'))
    write_safetensors(path / 'model.safetensors', arrays or as_f32(theirs(tiny.weights)))
    return path


def edit_config(path, name='config.json', **values):
    path = path / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(old, **values)))


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def same(weights, others):
    """Says whether two dicts of arrays are the same to the last bit."""
    return sorted(weights) == sorted(others) and all(
        weights[name].dtype == others[name].dtype and weights[name].shape == others[name].shape
        and weights[name].tobytes() == others[name].tobytes() for name in weights)


@pytest.fixture
def hf(tiny, tmp_path):
    """A folder of transformers with the tiny model."""
    return write_transformers(tmp_path / 'hf', tiny)


@pytest.fixture
def out(tmp_path):
    """The folder to write, in one that is empty otherwise; nothing else may ever be left there."""
    (tmp_path / 'output').mkdir()
    yield tmp_path / 'output' / 'new'
    assert set(names(tmp_path / 'output')) <= {'new'}


@pytest.fixture
def converted(tf):
    """Converts as the command does with these arguments, but in this process, which is faster."""
    def run(*args):
        flags = cli.parse(convert.convert, [str(arg) for arg in args])
        convert.convert(**dict(flag[2:].split('=', 1) for flag in flags))

    return run


@pytest.fixture
def by_command(command):
    """Converts as a process, without any message."""
    def run(*args):
        assert command(SCRIPT, *args).run() == (0, '', '')

    return run


@pytest.fixture
def complaint(tf, monkeypatch):
    """A function from SOURCE, which cannot be used, to the line that says why.

    It is refused before OUTPUT is there, and before TensorFlow is imported.
    """
    def no_tensorflow():
        raise AssertionError('TensorFlow was imported')

    def complain(source, *args):
        with monkeypatch.context() as patch, pytest.raises((cli.UserError, ModelError)) as caught:
            patch.setattr(cli, 'import_tensorflow', no_tensorflow)
            convert.open_source(str(source), *args or (None, 'models'))
        assert '\n' not in str(caught.value)
        return str(caught.value)

    return complain


def test_the_examples_in_the_comments():
    result = doctest.testmod(convert)
    assert result.attempted and not result.failed


# ---- there and back ----------------------------------------------------------------------------


def check_round_trip(converted, path, tmp_path):
    there, back = tmp_path / 'there', tmp_path / 'back'
    converted(path, there, '--to', 'transformers')
    converted(there, back, '--to', 'tensorflow')
    assert names(there) == TRANSFORMERS_FILES and names(back) == OFFICIAL_FILES
    for name in [DATA, 'encoder.json', 'vocab.bpe']:
        assert (back / name).read_bytes() == (path / name).read_bytes(), name
    hparams = [json.loads((folder / 'hparams.json').read_text()) for folder in (path, back)]
    assert hparams[0] == hparams[1]
    return there, back


def test_there_and_back(converted, saved, tiny, tmp_path):
    there, back = check_round_trip(converted, tiny.path, tmp_path)
    weights, metadata = read_safetensors(there / 'model.safetensors')
    assert same(weights, theirs(tiny.weights)) and metadata == {'format': 'pt'}
    assert list(weights) == sorted(weights)
    assert same(saved(back), tiny.weights)
    for name in ['vocab.json', 'merges.txt']:
        other = {'vocab.json': 'encoder.json', 'merges.txt': 'vocab.bpe'}[name]
        assert (there / name).read_bytes() == (tiny.path / other).read_bytes()
    # hparams.json has the form of the released ones.
    assert (back / 'hparams.json').read_text() == json.dumps(tiny.hparams, indent=2) + '\n'


def test_the_model_in_the_box_there_and_back(by_command, tmp_path):
    check_round_trip(by_command, MODELS / '1M', tmp_path)


def test_any_bits_are_kept(tf, converted, tiny, saved, tmp_path):
    """Not-a-numbers of any kind, infinities, zeros of both signs and denormals, too."""
    weights = dict(tiny.weights)
    bits = np.random.RandomState(0).randint(0, 2**32, size=weights['model/wte'].shape,
                                            dtype=np.uint64).astype(np.uint32)
    bits.flat[:6] = [0x7f800001, 0xffc01234, 0x80000000, 1, 0x7f800000, 0xff800000]
    weights['model/wte'] = bits.view(np.float32)
    reference.write_checkpoint(tmp_path / 'odd', tiny.hparams, weights)
    _, back = check_round_trip(converted, tmp_path / 'odd', tmp_path)
    assert same(saved(back), weights)


def test_sizes_that_align_with_nothing(converted, saved, tmp_path):
    hparams = {'n_vocab': 257, 'n_ctx': 7, 'n_embd': 5, 'n_head': 5, 'n_layer': 11}
    weights = reference.random_weights(hparams, seed=1)
    reference.write_checkpoint(tmp_path / 'odd', hparams, weights)
    there, back = check_round_trip(converted, tmp_path / 'odd', tmp_path)
    content = (there / 'model.safetensors').read_bytes()
    assert struct.unpack('<Q', content[:8])[0] % 8 == 0
    assert same(read_safetensors(there / 'model.safetensors')[0], theirs(weights))
    assert same(saved(back), weights)


def test_the_result_is_an_official_directory(tf, converted, hf, out):
    converted(hf, out, '--to', 'tensorflow')
    model = checkpoint.open_model(out.name, str(out.parent))
    assert vars(model.hparams) == json.loads((out / 'hparams.json').read_text())
    assert tf.train.latest_checkpoint(str(out)) == str(out / 'model.ckpt')
    with tf.Graph().as_default(), tf.Session() as session:  # and so other programs read the graph
        saver = tf.train.import_meta_graph(str(out / 'model.ckpt.meta'))
        saver.restore(session, str(out / 'model.ckpt'))
        assert {weight.op.name for weight in tf.trainable_variables()} == set(
            dict(checkpoint.weight_shapes(model.hparams)))


def test_a_model_directory_is_cleaned_of_an_optimizer(tf, converted, saved, tiny, tmp_path, out):
    """From TensorFlow to TensorFlow; hyperparameters of one's own stay."""
    write_fork(tf, tmp_path / 'run1', tiny)
    hparams = dict(tiny.hparams, note='mine')
    (tmp_path / 'run1' / 'hparams.json').write_text(json.dumps(hparams))
    converted(tmp_path / 'run1', out, '--to', 'tensorflow')
    assert same(saved(out), tiny.weights) and names(out) == OFFICIAL_FILES
    assert json.loads((out / 'hparams.json').read_text()) == hparams


def test_the_vocabulary_is_written_in_the_form_that_transformers_reads(bare, converted, tiny,
                                                                       tmp_path, out):
    """Which takes a first line for the version, and the last line for empty, come what may."""
    path = tmp_path / 'odd'
    shutil.copytree(str(MODELS / '1M'), str(path))
    merges = (path / 'vocab.bpe').read_text(encoding='utf-8')
    lines = merges.rstrip('\n').split('\n')[1:]
    (path / 'vocab.bpe').write_bytes('\r\n'.join(lines).encode('utf-8'))
    tokens = json.loads((path / 'encoder.json').read_text())
    (path / 'encoder.json').write_bytes(json.dumps(tokens, ensure_ascii=False, indent=1)
                                        .encode('utf-8-sig'))
    converted(path, out, '--to', 'transformers')
    assert (out / 'merges.txt').read_bytes() == merges.encode('utf-8')
    assert (out / 'vocab.json').read_bytes() == (MODELS / '1M' / 'encoder.json').read_bytes()


# ---- from transformers -------------------------------------------------------------------------


def test_names_without_a_prefix_masks_and_a_tied_head(converted, saved, tiny, tmp_path, out):
    """As the released models lie on the hub."""
    arrays = as_f32(theirs(tiny.weights, prefix=''))
    arrays['h.0.attn.bias'] = ('U8', np.tril(np.ones([1, 1, 32, 32], np.uint8)))
    arrays['h.1.attn.masked_bias'] = ('F32', np.float32(-1e4).reshape([]))
    arrays['lm_head.weight'] = arrays['wte.weight']
    path = write_transformers(tmp_path / 'hf', tiny, arrays, tie_word_embeddings=False)
    converted(path, out, '--to', 'tensorflow')
    assert same(saved(out), tiny.weights)


@pytest.mark.parametrize('dtype', ['F16', 'BF16'])
def test_short_floats_are_widened(converted, saved, tiny, tmp_path, out, dtype):
    arrays, expected = {}, {}
    for name, array in theirs(tiny.weights).items():
        if dtype == 'F16':
            short = array.astype(np.float16)
            wide = short.astype(np.float32)
        else:
            short = (array.view(np.uint32) >> 16).astype(np.uint16)
            wide = (array.view(np.uint32) & 0xffff0000).view(np.float32)
        arrays[name], expected[name] = (dtype, short), wide
    path = write_transformers(tmp_path / 'hf', tiny, arrays)
    converted(path, out, '--to', 'tensorflow')
    assert same(theirs(saved(out)), expected)


def test_shards(converted, saved, tiny, tmp_path, out):
    path = write_transformers(tmp_path / 'hf', tiny)
    (path / 'model.safetensors').unlink()
    arrays, weight_map = as_f32(theirs(tiny.weights)), {}
    for i in range(3):
        file = 'model-%05d-of-00003.safetensors' % (i + 1)
        part = dict(list(arrays.items())[i::3])
        write_safetensors(path / file, part, {'format': 'pt'})
        weight_map.update(dict.fromkeys(part, file))
    edit_config(path, 'model.safetensors.index.json', metadata={}, weight_map=weight_map)
    converted(path, out, '--to', 'tensorflow')
    assert same(saved(out), tiny.weights)


@pytest.mark.parametrize('old', [False, True])
def test_a_vocabulary_in_tokenizer_json_alone(converted, tmp_path, out, old):
    """As newer versions of transformers save it; in older ones, a merge is a text."""
    converted(MODELS / '1M', tmp_path / 'hf', '--to', 'transformers')
    tokens = json.loads((tmp_path / 'hf' / 'vocab.json').read_text())
    lines = (tmp_path / 'hf' / 'merges.txt').read_text(encoding='utf-8').split('\n')[1:-1]
    edit_config(tmp_path / 'hf', 'tokenizer.json', added_tokens=[{'id': 999, 'content': END}],
                pre_tokenizer={'type': 'ByteLevel'}, model={
                    'type': 'BPE', 'vocab': tokens,
                    'merges': lines if old else [line.split(' ') for line in lines]})
    for name in ['vocab.json', 'merges.txt', 'tokenizer_config.json']:
        (tmp_path / 'hf' / name).unlink()
    converted(tmp_path / 'hf', out, '--to', 'tensorflow')
    for name in checkpoint.VOCABULARY:
        assert (out / name).read_bytes() == (MODELS / '1M' / name).read_bytes()


@pytest.mark.parametrize('file', ['added_tokens.json', 'tokenizer.json'])
def test_added_tokens(converted, tiny, tmp_path, out, file):
    """Those that have embeddings become tokens; there may be more."""
    hparams = dict(tiny.hparams, n_vocab=259)
    weights = reference.random_weights(hparams, seed=2)
    path = write_transformers(tmp_path / 'hf', tiny, as_f32(theirs(weights)))
    edit_config(path, vocab_size=259)
    added = {'<pad>': 257, '<sép>': 258, '<none>': 259}
    if file == 'added_tokens.json':
        edit_config(path, file, **added)
    else:
        edit_config(path, file, added_tokens=[
            {'id': 256, 'content': END}, *[{'id': i, 'content': s} for s, i in added.items()]])
    converted(path, out, '--to', 'tensorflow')
    vocabulary = checkpoint.open_model(out.name, str(out.parent)).encoder
    assert len(vocabulary.encoder) == 259 and vocabulary.decode([257, 258]) == '<pad><sép>'


def test_a_vocabulary_of_a_base_model(converted, saved, tiny, hf, out, complaint):
    for name in ['vocab.json', 'merges.txt']:
        (hf / name).unlink()
        message = complaint(hf)
        assert name in message and '--base_model' in message
    converted(hf, out, '--to', 'tensorflow', '--base_model', 'tiny', '--models_dir',
              tiny.models_dir)
    assert same(saved(out), tiny.weights)
    assert (out / 'encoder.json').read_bytes() == (tiny.path / 'encoder.json').read_bytes()


def test_from_transformers_to_transformers_needs_no_tensorflow(bare, tiny, tmp_path, out):
    arrays = as_f32(theirs(tiny.weights, prefix=''))
    path = write_transformers(tmp_path / 'hf', tiny, arrays)
    assert bare(SCRIPT, path, out, '--to', 'transformers') == (0, '', '')
    assert same(read_safetensors(out / 'model.safetensors')[0], theirs(tiny.weights))


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize('config, words', [
    ({'model_type': 'llama'}, ['llama', 'gpt2']),
    ({'model_type': None}, ['null', 'gpt2']),
    ({'activation_function': 'relu'}, ['activation_function', 'relu', 'gelu_new']),
    ({'activation_function': 'gelu'}, ['activation_function', '"gelu"', 'gelu_new']),
    ({'activation_function': {}}, ['activation_function', '{}']),
    ({'scale_attn_by_inverse_layer_idx': True}, ['scale_attn_by_inverse_layer_idx', 'true']),
    ({'scale_attn_weights': False}, ['scale_attn_weights', 'false']),
    ({'add_cross_attention': True}, ['add_cross_attention']),
    ({'layer_norm_epsilon': 1e-6}, ['layer_norm_epsilon', '1e-06', '1e-05']),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    ({'n_inner': 32}, ['n_inner', '32', '64']),
    ({'n_layer': 3}, ['h.2.', 'config.json']),
    ({'n_layer': 10**12}, ['h.2.', 'config.json']),
    ({'n_layer': 1}, ['h.1.', 'does not have']),
    ({'n_positions': 16}, ['wpe.weight', '[32, 16]', '[16, 16]']),
    ({'n_embd': '16'}, ['n_embd', '"16"']),
    ({'n_embd': 0}, ['n_embd', '0']),
    ({'n_head': 3}, ['n_head', 'n_embd']),
    ({'vocab_size': 256}, ['256', '257', 'config.json']),
    ({'tie_word_embeddings': False}, ['lm_head.weight']),
], ids=str)
def test_a_config_that_our_model_is_not(hf, complaint, config, words):
    edit_config(hf, **config)
    message = complaint(hf)
    assert str(hf) in message and all(word in message for word in words)


def test_a_config_that_says_what_is_usual(converted, saved, tiny, tmp_path, out):
    path = write_transformers(tmp_path / 'hf', tiny, activation_function='gelu_new', n_inner=64,
                              layer_norm_epsilon=1e-05, scale_attn_weights=True, n_ctx=32,
                              reorder_and_upcast_attn=True, resid_pdrop=0.1)
    converted(path, out, '--to', 'tensorflow')
    assert same(saved(out), tiny.weights)


@pytest.mark.parametrize('name', ['model_type', 'n_embd', 'vocab_size', 'n_positions'])
def test_a_config_that_lacks_something(hf, complaint, name):
    config = json.loads((hf / 'config.json').read_text())
    del config[name]
    (hf / 'config.json').write_text(json.dumps(config))
    message = complaint(hf)
    assert str(hf / 'config.json') in message and name in message


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'"gpt2"', b'\xff', b'[' * 100000],
                         ids=lambda content: repr(content[:9]))
@pytest.mark.parametrize('name', ['config.json', 'vocab.json', 'tokenizer.json',
                                  'model.safetensors.index.json'])
def test_json_that_is_none(hf, complaint, name, content):
    if name == 'tokenizer.json':
        (hf / 'vocab.json').unlink()
    if name == 'model.safetensors.index.json':
        (hf / 'model.safetensors').unlink()
    (hf / name).write_bytes(content)
    assert str(hf / name) in complaint(hf)


@pytest.mark.parametrize('change', [
    {'model': None}, {'model': {}}, {'model': {'type': 'WordPiece', 'vocab': {}}},
    {'pre_tokenizer': {'type': 'Metaspace'}}, {'pre_tokenizer': None},
    {'model': {'type': 'BPE', 'vocab': {'a': 0}, 'merges': []}},
    {'model': {'type': 'BPE', 'vocab': [1], 'merges': [3]}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': ['a b c']}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': [['a', 'b', 'c']]}},
    {'model': {'type': 'BPE', 'vocab': {}, 'merges': [['a', ' ']]}},
    {'model': {'type': 'BPE', 'vocab': {'\ud800': 0}, 'merges': []}},
    {'model': {'type': 'BPE', 'vocab': dict(SYMBOL_IDS, x=1.0), 'merges': []}},
    {'added_tokens': [{'id': 255, 'content': END}]},
    {'added_tokens': [{'id': 3.5, 'content': END}]},
    {'added_tokens': []}, {'added_tokens': 3}, {'added_tokens': [{'id': '256', 'content': END}]},
], ids=str)
def test_a_tokenizer_of_another_kind(hf, tiny, complaint, change):
    usual = {'model': {'type': 'BPE', 'vocab': SYMBOL_IDS, 'merges': []},
             'pre_tokenizer': {'type': 'ByteLevel'}, 'added_tokens': [{'id': 256, 'content': END}]}
    edit_config(hf, 'tokenizer.json', **dict(usual, **change))
    (hf / 'vocab.json').unlink()
    message = complaint(hf)
    assert str(hf / 'tokenizer.json') in message and 'vocabulary' in message


def test_merges_of_another_vocabulary(hf, complaint):
    (hf / 'merges.txt').write_text('#version: 0.2\nq q\n')
    message = complaint(hf)
    assert str(hf / 'merges.txt') in message and 'line 2' in message


def change_arrays(name, change):
    """Returns a change of the arrays of a file: a function of an array, or None to remove it."""
    def apply(arrays):
        array = change(arrays.get(name))
        arrays = dict(arrays, **{name: array})
        return {name: array for name, array in arrays.items() if array is not None}

    return apply


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
], ids=str)
def test_weights_that_our_model_does_not_have(hf, tiny, complaint, name, change, words):
    arrays = change_arrays(name, change)(as_f32(theirs(tiny.weights)))
    write_safetensors(hf / 'model.safetensors', arrays)
    message = complaint(hf)
    assert str(hf) in message and all(word in message for word in words)


@pytest.mark.parametrize('keep', [0, 7, 8, 100, 5000, -1, -4])
def test_a_safetensors_file_cut_short(hf, complaint, keep):
    path = hf / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    message = complaint(hf)
    assert str(path) in message and 'cut short' in message
    assert str(path.stat().st_size) in message


def with_header(header):
    """Returns a file of 64 bytes of data after this header, bytes, or an object for JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode('utf-8')
    return struct.pack('<Q', len(text)) + text + bytes(64)


def entry(dtype='F32', shape=(16,), data_offsets=(0, 64)):
    return {'wte.weight': {'dtype': dtype, 'shape': shape, 'data_offsets': data_offsets}}


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
def test_a_safetensors_file_that_is_none(hf, complaint, content):
    path = hf / 'model.safetensors'
    path.write_bytes(content)
    message = complaint(hf)
    assert str(path) in message and 'damaged' in message and len(message) < 300


def test_a_header_that_points_past_the_end_is_of_a_file_cut_short(hf, complaint):
    (hf / 'model.safetensors').write_bytes(with_header(entry(shape=[17], data_offsets=[0, 68])))
    assert 'cut short' in complaint(hf)


def test_a_file_that_gets_shorter_while_it_is_read(tiny, hf):
    found = safetensors_file.read_header(str(hf / 'model.safetensors'))
    content = (hf / 'model.safetensors').read_bytes()
    (hf / 'model.safetensors').write_bytes(content[:-20])
    with pytest.raises(ModelError, match='cut short'):
        for name in found:
            safetensors_file.read_array(found[name])


@pytest.mark.parametrize('weight_map', [None, [], {'wte.weight': 3}, {'wte.weight': '../x'},
                                        {'wte.weight': '/etc/passwd'}], ids=str)
def test_an_index_that_names_no_files(hf, complaint, weight_map):
    (hf / 'model.safetensors').unlink()
    edit_config(hf, 'model.safetensors.index.json', weight_map=weight_map)
    assert str(hf / 'model.safetensors.index.json') in complaint(hf)


def test_a_missing_shard(hf, complaint):
    (hf / 'model.safetensors').unlink()
    edit_config(hf, 'model.safetensors.index.json', weight_map={'wte.weight': 'a.safetensors'})
    assert str(hf / 'a.safetensors') in complaint(hf)


def test_old_weights_of_torch(hf, complaint):
    (hf / 'model.safetensors').rename(hf / 'pytorch_model.bin')
    message = complaint(hf)
    assert 'model.safetensors' in message and 'save_pretrained' in message


@pytest.mark.parametrize('to', ['tensorflow', 'transformers'])
def test_the_command_says_so_in_one_line(refused, hf, out, to):
    for name, content in [('model.safetensors', b'{}'), ('config.json', b'{"model_type": "bert"}'),
                          ('config.json', b'[]')]:
        (hf / name).write_bytes(content)
        status, message = refused(SCRIPT, hf, out, '--to', to)
        assert status == 1 and str(hf / name) in message
        assert not out.exists()


# ---- from programs for fine-tuning -------------------------------------------------------------


def write_fork(tf, path, tiny, vocabulary=True, step=1000, weights=None, extra=None):
    """Writes a checkpoint as the fine-tuning programs leave it, an optimizer's variables in it."""
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
        for number in [step - 1, step]:  # of which the last is named
            saver.save(session, os.path.relpath(str(path / 'model')), global_step=number)
    (path / 'counter').write_text('%d\n' % step)
    if vocabulary:
        for name in ['hparams.json', *checkpoint.VOCABULARY]:
            shutil.copyfile(str(tiny.path / name), str(path / name))
    return path


def test_a_fork_with_the_vocabulary_beside(tf, by_command, saved, tiny, tmp_path, out):
    source = write_fork(tf, tmp_path / 'checkpoint' / 'run1', tiny)
    assert '"model-1000"' in (source / 'checkpoint').read_text()
    by_command(source, out, '--to', 'tensorflow')
    assert names(out) == OFFICIAL_FILES
    assert same(saved(out), tiny.weights)
    assert (out / DATA).read_bytes() == (tiny.path / DATA).read_bytes()
    by_command(str(source) + '/', tmp_path / 'hf', '--to', 'transformers')
    assert same(read_safetensors(tmp_path / 'hf' / 'model.safetensors')[0], theirs(tiny.weights))


def test_a_fork_with_a_checkpoint_alone(tf, by_command, saved, complaint, tiny, tmp_path, out):
    weights = reference.random_weights(tiny.hparams, seed=5)
    source = write_fork(tf, tmp_path / 'run1', tiny, vocabulary=False, weights=weights)
    message = complaint(source)
    assert 'hparams.json' in message and '--base_model' in message
    assert 'download_model.py' in complaint(source, '355M', str(tiny.models_dir))
    base = ['--base_model', 'tiny', '--models_dir', tiny.models_dir]
    by_command(source, out, '--to', 'tensorflow', *base)
    assert names(out) == OFFICIAL_FILES and same(saved(out), weights)
    for name in checkpoint.VOCABULARY:
        assert (out / name).read_bytes() == (tiny.path / name).read_bytes()
    by_command(source, tmp_path / 'hf', '--to', 'transformers', *base)
    assert same(read_safetensors(tmp_path / 'hf' / 'model.safetensors')[0], theirs(weights))


def test_a_base_model_needs_no_weights(tf, converted, saved, tiny, tmp_path, out):
    source = write_fork(tf, tmp_path / 'run1', tiny, vocabulary=False)
    base = tmp_path / 'models' / '124M'
    base.mkdir(parents=True)
    for name in ['hparams.json', *checkpoint.VOCABULARY]:
        shutil.copyfile(str(tiny.path / name), str(base / name))
    converted(source, out, '--to', 'tensorflow', '--base_model', '124M', '--models_dir',
              base.parent)
    assert same(saved(out), tiny.weights)


@pytest.mark.parametrize('to', ['tensorflow', 'transformers'])
def test_what_only_tensorflow_finds(tf, converted, tiny, tmp_path, out, to):
    """Another base model, another type, damage: it is told, and nothing is left."""
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
        with pytest.raises(ModelError) as caught:
            converted(path, out, '--to', to, *args)
        assert str(path) in str(caught.value) and word in str(caught.value)
        assert not out.exists()


def damaged_copy(tiny, tmp_path):
    """Returns a copy of the tiny model with a wrong bit among its last weights."""
    shutil.copytree(str(tiny.path), str(tmp_path / 'damaged'))
    content = bytearray((tmp_path / 'damaged' / DATA).read_bytes())
    content[-9] ^= 1
    (tmp_path / 'damaged' / DATA).write_bytes(bytes(content))
    return tmp_path / 'damaged'


def test_damage_that_tensorflow_finds_is_told_in_one_line(command, tiny, tmp_path, out):
    path = damaged_copy(tiny, tmp_path)
    status, stdout, stderr = command(SCRIPT, path, out, '--to', 'transformers').run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert stderr.startswith('%s: %s' % (SCRIPT, path / 'model.ckpt')) and not out.exists()


def test_a_checkpoint_without_its_weights(tf, complaint, tiny, tmp_path):
    source = write_fork(tf, tmp_path / 'run1', tiny)
    (source / 'model-1000.index').unlink()
    assert str(source / 'model-1000.index') in complaint(source)
    (source / 'checkpoint').write_text('')
    assert str(source / 'checkpoint') in complaint(source)


# ---- the command line --------------------------------------------------------------------------


def test_an_output_that_exists_is_never_touched(complaint, refused, hf, out, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('nowhere')
    for name in ['file', 'folder', 'link', 'hf', 'folder/']:
        status, message = refused(SCRIPT, hf, str(tmp_path) + '/' + name, '--to', 'tensorflow')
        assert status == 1 and name in message and 'exists' in message
    assert (tmp_path / 'file').read_text() == 'mine' and names(tmp_path / 'folder') == []


@pytest.mark.parametrize('args, words', [
    ([], ['SOURCE']), (['hf'], ['OUTPUT']), (['hf', 'new'], ['--to']),
    (['hf', 'new', '--to', 'pytorch'], ['--to', 'transformers', 'tensorflow', 'pytorch']),
    (['hf', 'new', '--to'], ['--to']), (['hf', '', '--to', 'tensorflow'], ['OUTPUT']),
    (['hf', b'\xff', '--to', 'tensorflow'], ['OUTPUT']),
    (['hf', 'new', '--to', 'tensorflow', '--base_modl', '124M'], ['--base_modl', '--base_model']),
    (['hf', 'new', '--to', 'tensorflow', '--base_model', '124M'], ['--base_model']),
    (['hf', 'new', 'tensorflow', '124M', 'models', 'more'], ['more'])], ids=str)
def test_arguments_that_cannot_be_used(refused, hf, tmp_path, args, words):
    args = [os.fsdecode(arg) if isinstance(arg, bytes) else arg for arg in args]
    status, message = refused(SCRIPT, *args, cwd=str(tmp_path))
    assert status == 2 and all(word in message for word in words)
    assert names(tmp_path) == ['hf', 'without TensorFlow']


@pytest.mark.parametrize('name', ['absent', 'file', 'empty'])
def test_a_source_that_is_no_model(complaint, tmp_path, name):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'empty').mkdir()
    message = complaint(tmp_path / name)
    assert str(tmp_path / name) in message
    assert name != 'empty' or 'config.json' in message and '`checkpoint`' in message


def test_a_path_that_tensorflow_would_misread(refused, hf, tmp_path):
    status, message = refused(SCRIPT, hf, tmp_path / 'a[1]', '--to', 'tensorflow')
    assert status == 1 and 'a[1]' in message and 'rename' in message


def test_a_folder_that_cannot_be_made(refused, hf, tmp_path):
    (tmp_path / 'file').write_text('')
    status, message = refused(SCRIPT, hf, tmp_path / 'file' / 'new', '--to', 'tensorflow')
    assert status == 1 and str(tmp_path / 'file') in message


def test_paths_as_users_give_them(command, tiny, tmp_path):
    """Relative, with a slash at the end, into a folder that is not there yet, from within."""
    assert command(SCRIPT, './', '../über/neu/', '--to', 'transformers').run(
        cwd=str(shutil.copytree(str(tiny.path), str(tmp_path / 'tiny')))) == (0, '', '')
    assert names(tmp_path / 'über') == ['neu']
    assert names(tmp_path / 'über' / 'neu') == TRANSFORMERS_FILES


def test_help(bare):
    status, stdout, stderr = bare(SCRIPT, '--help')
    assert (status, stderr) == (0, '')
    for name in ['SOURCE', 'OUTPUT', '--to', '--base_model', '--models_dir', 'src/convert.py']:
        assert name in stdout


def test_a_progress_bar_on_a_terminal(command, hf, out):
    child = command(SCRIPT, hf, out, '--to', 'transformers').spawn()
    child.expect('28/28')
    child.expect(r'\Z|$')
    child.wait()
    assert child.exitstatus == 0 and names(out) == TRANSFORMERS_FILES


# ---- interruption ------------------------------------------------------------------------------

# Imported by Python at its start: the command waits where its output would get its name.
WAIT = """
import os, sys, time
def rename(source, target, rename=os.rename):
    if '.partial-' in str(source):
        open(os.path.join(os.path.dirname(__file__), 'waiting'), 'w').close()
        time.sleep(60)
    return rename(source, target)
os.rename = rename
"""


@pytest.mark.parametrize('to', ['tensorflow', 'transformers'])
@pytest.mark.parametrize('stop', [signal.SIGINT, signal.SIGKILL])
def test_a_stop_before_the_end_leaves_no_output(command, converted, hf, tmp_path, stop, to):
    (tmp_path / 'late').mkdir()
    (tmp_path / 'late' / 'sitecustomize.py').write_text(WAIT)
    out = tmp_path / 'output' / 'new'
    process = command(SCRIPT, hf, out, '--to', to, env={'PYTHONPATH': tmp_path / 'late'}).start()
    deadline = time.time() + 100
    while not (tmp_path / 'late' / 'waiting').exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    assert len(names(out.parent)) == 1 and not out.exists()
    process.send_signal(stop)
    stdout, stderr = process.communicate(timeout=30)
    assert (stdout, stderr) == (b'', b'') and not out.exists()
    if stop == signal.SIGINT:
        assert process.returncode == 130 and names(out.parent) == []
    converted(hf, out, '--to', to)  # whatever a killed one left is not in the way
    assert names(out) == (OFFICIAL_FILES if to == 'tensorflow' else TRANSFORMERS_FILES)


@pytest.mark.parametrize('to, limit', [('transformers', 0), ('transformers', 20000),
                                       ('tensorflow', 20000), ('tensorflow', 60000)])
def test_a_full_disk(command, hf, out, to, limit):
    """Stood for by a limit to the size of files."""
    resource = pytest.importorskip('resource')
    status, stdout, stderr = command(SCRIPT, hf, out, '--to', to).run(
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert stderr.startswith(SCRIPT + ': ') and not out.exists()


def test_a_disk_that_is_full_when_tensorflow_writes(tf, tiny, tmp_path):
    hparams = checkpoint.read_hparams(str(tiny.path / 'hparams.json'))
    (tmp_path / DATA).mkdir()  # in the way
    with pytest.raises(cli.UserError, match='model.ckpt.* cannot be written'):
        convert.save_weights(str(tmp_path / 'model.ckpt'), hparams, tiny.weights)


# ---- beside transformers -----------------------------------------------------------------------


def as_hf(converted, path, tmp_path):
    converted(path, tmp_path / 'hf', '--to', 'transformers')
    return str(tmp_path / 'hf')


def our_logits(tf, path, tokens):
    """The logits of a model directory's model, as our graph computes them."""
    import model
    opened = checkpoint.open_model(path.name, str(path.parent))
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.int32, [1, None])
        logits = model.model(opened.hparams, x)['logits']
        checkpoint.restore(session, str(path))
        return session.run(logits, {x: [tokens]})[0]


def check_logits(tf, converted, path, n_vocab, n_ctx, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    net, info = transformers.AutoModelForCausalLM.from_pretrained(
        as_hf(converted, path, tmp_path), output_loading_info=True)
    assert not any(info.values()), info
    assert net.dtype == torch.float32 and net.lm_head.weight is net.transformer.wte.weight
    tokens = np.random.RandomState(0).randint(0, n_vocab, n_ctx).tolist()
    with torch.no_grad():
        logits = net.eval()(torch.tensor([tokens])).logits[0].numpy()
    expected = our_logits(tf, path, tokens)
    assert np.abs(logits - expected).max() < 1e-4


def test_transformers_computes_the_same_logits(tf, converted, tiny, tmp_path):
    check_logits(tf, converted, tiny.path, 257, 32, tmp_path)


def test_transformers_computes_the_same_logits_of_the_model_in_the_box(tf, converted, tmp_path):
    check_logits(tf, converted, MODELS / '1M', 1000, 256, tmp_path)


LOAD = """
import sys, transformers
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
net = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
ids = tokenizer('O Romeo, Romeo', return_tensors='pt')
print(repr(tokenizer.decode(net.generate(**ids, max_new_tokens=9, do_sample=False)[0])))
"""


def test_transformers_loads_it_without_a_warning(command, converted, tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    path = as_hf(converted, MODELS / '1M', tmp_path)
    env = dict(os.environ, HF_HUB_OFFLINE='1', HF_HUB_DISABLE_PROGRESS_BARS='1')
    result = subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', LOAD, path],
                            env=env, capture_output=True, timeout=120)
    stderr = result.stderr.decode('utf-8')
    assert result.returncode == 0, stderr
    assert eval(result.stdout.decode('utf-8')).startswith('O Romeo, Romeo')
    for line in stderr.splitlines():
        assert 'Loading weights' in line, stderr  # a progress bar, and nothing else


def check_tokens(path, vocabulary, texts):
    """Compares the ids that each of their tokenizers gives with ours, and the texts of ids."""
    transformers = pytest.importorskip('transformers')
    end = vocabulary.encoder[END]
    for name in ['AutoTokenizer', 'GPT2Tokenizer', 'GPT2TokenizerFast']:
        tokenizer = getattr(transformers, name).from_pretrained(path)
        assert len(tokenizer) == len(vocabulary.encoder)
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == end
        assert tokenizer(END).input_ids == [end]  # as --help says
        for text in texts:
            ids = tokenizer(text).input_ids
            assert ids == vocabulary.encode(text), text
            assert tokenizer.decode(ids) == text


def test_their_tokenizer_gives_the_same_ids(converted, tmp_path):
    pytest.importorskip('transformers')
    path = as_hf(converted, MODELS / '1M', tmp_path)
    check_tokens(path, encoder.get_encoder('1M', str(MODELS)), TEXTS)


@pytest.mark.skipif('GPT2_TEST_DATA' not in os.environ, reason='GPT2_TEST_DATA is not set')
def test_their_tokenizer_gives_the_same_ids_with_the_released_vocabulary(converted, tmp_path):
    data = pathlib.Path(os.environ['GPT2_TEST_DATA'])
    hparams = {'n_vocab': 50257, 'n_ctx': 4, 'n_embd': 4, 'n_head': 1, 'n_layer': 1}
    reference.write_checkpoint(tmp_path / 'model', hparams, reference.random_weights(hparams, 0),
                               vocabulary_dir=data / 'gpt2-vocab')
    check_round_trip(converted, tmp_path / 'model', tmp_path)
    for ours, other in [('encoder.json', 'vocab.json'), ('vocab.bpe', 'merges.txt')]:
        content = (data / 'gpt2-vocab' / ours).read_bytes()
        assert (tmp_path / 'there' / other).read_bytes() == content
    texts = [(data / name).read_text(encoding='utf-8')[:20000].replace(END, '')
             for name in ['tinyshakespeare.txt', 'wiki.test.tokens', 'lambada_test.jsonl']]
    check_tokens(str(tmp_path / 'there'), encoder.get_encoder('model', str(tmp_path)),
                 TEXTS + texts)


@pytest.mark.parametrize('options', [{}, {'max_shard_size': '50KB'}], ids=str)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_what_transformers_saves_is_read(converted, saved, tmp_path, out, dtype, options):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    path = as_hf(converted, MODELS / '1M', tmp_path)
    net = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    net.save_pretrained(str(tmp_path / 'theirs'), **options)
    transformers.AutoTokenizer.from_pretrained(path).save_pretrained(str(tmp_path / 'theirs'))
    assert ('model.safetensors' in names(tmp_path / 'theirs')) == (not options)
    converted(tmp_path / 'theirs', out, '--to', 'tensorflow')
    weights, expected = saved(out), saved(MODELS / '1M')
    if dtype == 'bfloat16':
        expected = {name: torch.from_numpy(array).bfloat16().float().numpy()
                    for name, array in expected.items()}
    assert same(weights, expected)
    for name in checkpoint.VOCABULARY:
        assert (out / name).read_bytes() == (MODELS / '1M' / name).read_bytes()


def test_the_library_of_the_format_reads_what_is_written(converted, tiny, tmp_path):
    library = pytest.importorskip('safetensors.numpy')
    path = as_hf(converted, tiny.path, tmp_path)
    weights = library.load_file(path + '/model.safetensors')
    assert same(weights, theirs(tiny.weights))
    library.save_file(weights, str(tmp_path / 'again'), metadata={'format': 'pt'})
    assert (tmp_path / 'again').read_bytes() == (tmp_path / 'hf' / 'model.safetensors').read_bytes()
