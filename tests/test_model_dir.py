"""Model directories without TensorFlow: one line says what is wrong with one."""
import dataclasses
import json
import os
import pathlib
import shutil

import pytest

import reference
from gpt2 import model_dir
from gpt2.errors import ModelError

pytestmark = pytest.mark.pure

HPARAMS = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}
WEIGHTS_FILE, INDEX = 'model.ckpt.data-00000-of-00001', 'model.ckpt.index'


def write_model(path):
    """Write a model directory whose weights have the right size, but no content."""
    path.mkdir(parents=True)
    (path / 'hparams.json').write_text(json.dumps(HPARAMS))
    reference.write_vocabulary(str(path))
    (path / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt"\n')
    (path / INDEX).write_bytes(b'index')
    size = 4 * sum(map(product, reference.shapes(HPARAMS).values()))
    (path / WEIGHTS_FILE).write_bytes(bytes(size))
    return path


def product(shape):
    return shape[0] * product(shape[1:]) if shape else 1


@pytest.fixture
def model(tmp_path):
    """A model directory to damage, in a folder with a non-ASCII name."""
    return write_model(tmp_path / 'Modelle für 模型' / 'damaged')


def open_model(path):
    return model_dir.open_model_dir(path.name, str(path.parent))


def complaint(path):
    """Return the line that says why a model directory cannot be used."""
    with pytest.raises(ModelError) as caught:
        open_model(path)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def edit(path, change):
    """Change a file: `change` is its new content, or a function from the old content to the new."""
    path.write_bytes(change if isinstance(change, bytes) else change(path.read_bytes()))


def edit_hparams(path, **numbers):
    hparams = dict(json.loads((path / 'hparams.json').read_text()), **numbers)
    (path / 'hparams.json').write_text(json.dumps(hparams))


def test_an_opened_model_directory(model):
    opened = open_model(model)
    assert (opened.name, opened.path) == (model.name, str(model))
    assert vars(opened.hparams) == HPARAMS
    assert opened.encoder.encode('Hi') == [39, 72] and opened.encoder.end_of_text == 256
    with pytest.raises(dataclasses.FrozenInstanceError):
        opened.path = 'elsewhere'


# ---- missing files -----------------------------------------------------------------------------


def test_a_missing_directory_names_the_existing_models_and_the_download(tmp_path):
    for name in ['one', 'two']:
        write_model(tmp_path / '[odd]' / name)
    (tmp_path / '[odd]' / 'no model').mkdir()
    message = complaint(tmp_path / '[odd]' / '355M')
    assert 'one, two' in message and 'no model' not in message.replace('there is no model', '')
    assert message.endswith('python3 download_model.py 355M')


def test_a_folder_without_models(tmp_path):
    message = complaint(tmp_path / '1M')
    assert message == (f'there is no model 1M in {tmp_path}, and no other; give the right '
                       '--models_dir, or download a released one with: '
                       'python3 download_model.py 124M')


def test_a_model_without_a_name(model):
    with pytest.raises(ModelError, match='there is no model'):
        model_dir.open_model_dir('', str(model))


@pytest.mark.parametrize('name', ['checkpoint', 'encoder.json', 'hparams.json', 'vocab.bpe',
                                  WEIGHTS_FILE, INDEX])
def test_a_missing_file_is_named(model, name):
    (model / name).unlink()
    message = complaint(model)
    assert str(model / name) in message and 'download' in message


@pytest.mark.parametrize('name', ['hparams.json', 'encoder.json', 'vocab.bpe', 'checkpoint',
                                  WEIGHTS_FILE])
def test_a_folder_instead_of_a_file(model, name):
    (model / name).unlink()
    (model / name).mkdir()
    assert str(model / name) in complaint(model)


def test_a_vocabulary_alone_is_enough_without_weights(model):
    for name in ['checkpoint', WEIGHTS_FILE, INDEX]:
        (model / name).unlink()
    opened = model_dir.open_model_dir(model.name, str(model.parent), weights=False)
    assert vars(opened.hparams) == HPARAMS


def test_a_path_that_tensorflow_takes_for_a_pattern(tmp_path):
    message = complaint(write_model(tmp_path / '[1]' / 'model'))
    assert 'rename' in message and str(tmp_path / '[1]') in message and 'download' not in message


# ---- hparams.json ------------------------------------------------------------------------------


@pytest.mark.parametrize('content', [
    b'', b'{', b'n_vocab = 257', b'[]', b'[257, 32, 16, 2, 2]', b'"hparams"', b'257', b'null',
    b'{"n_vocab": 257, "n_ctx": 32\x00}', b'{"n_vocab": 257,}', b'[' * 100000],
    ids=lambda content: repr(content[:40]))
def test_hparams_that_are_not_a_json_object(model, content):
    edit(model / 'hparams.json', content)
    message = complaint(model)
    assert str(model / 'hparams.json') in message and 'JSON' in message and 'download' in message


def test_hparams_that_are_not_utf8(model):
    edit(model / 'hparams.json', b'\xff\xfe{}')
    message = complaint(model)
    assert str(model / 'hparams.json') in message and 'UTF-8' in message and 'download' in message


@pytest.mark.parametrize('name', HPARAMS)
@pytest.mark.parametrize('value', [0, -1, '16', '', True, 16.0, 1.5, None, [16], {}, float('nan'),
                                   float('inf')], ids=repr)
def test_hparams_that_are_not_sizes(model, name, value):
    edit_hparams(model, **{name: value})
    message = complaint(model)
    assert str(model / 'hparams.json') in message and name in message
    assert json.dumps(value) in message


@pytest.mark.parametrize('name', HPARAMS)
def test_hparams_that_lack_one(model, name):
    numbers = dict(HPARAMS)
    del numbers[name]
    (model / 'hparams.json').write_text(json.dumps(numbers))
    message = complaint(model)
    assert str(model / 'hparams.json') in message and name in message


@pytest.mark.parametrize('n_head', [3, 5, 32])
def test_a_width_that_is_not_a_multiple_of_the_heads(model, n_head):
    edit_hparams(model, n_head=n_head)
    message = complaint(model)
    assert str(model / 'hparams.json') in message
    assert 'n_embd' in message and 'n_head' in message
    assert '16' in message and str(n_head) in message


@pytest.mark.parametrize('n_layer, n_ctx', [(3, 32), (10**7, 32), (2, 10**7)])
def test_sizes_that_the_weights_are_too_small_for(model, n_layer, n_ctx):
    edit_hparams(model, n_layer=n_layer, n_ctx=n_ctx)
    message = complaint(model)
    assert str(model / WEIGHTS_FILE) in message and 'hparams.json' in message


def test_byte_order_marks_and_other_hparams_do_no_harm(model):
    edit_hparams(model, n_head=2, dropout=0.1, name='mine', more={'a': [1]})
    for name in ['hparams.json', 'encoder.json', 'vocab.bpe']:
        edit(model / name, lambda old: b'\xef\xbb\xbf' + old.replace(b'\n', b'\r\n'))
    hparams = open_model(model).hparams
    assert (hparams.n_head, hparams.dropout, hparams.more) == (2, 0.1, {'a': [1]})


# ---- the vocabulary ----------------------------------------------------------------------------


def test_a_vocabulary_of_another_size(model):
    edit_hparams(model, n_vocab=256)
    message = complaint(model)
    assert str(model / 'encoder.json') in message and '257' in message and '256' in message


def test_a_vocabulary_without_end_of_text(model):
    edit(model / 'encoder.json', lambda old: old.replace(b'<|endoftext|>', b'the end'))
    message = complaint(model)
    assert str(model / 'encoder.json') in message and '<|endoftext|>' in message


@pytest.mark.parametrize('content', [b'', b'[]', b'{}', b'{"a": 0}', b'\xff', b'[' * 100000],
                         ids=lambda content: repr(content[:9]))
def test_a_damaged_encoder(model, content):
    edit(model / 'encoder.json', content)
    message = complaint(model)
    assert str(model / 'encoder.json') in message and 'download' in message


@pytest.mark.parametrize('content', [b'#version: 0.2\na b c\n', b'\xff', b'#version: 0.2\nq q\n'])
def test_a_damaged_list_of_merges(model, content):
    edit(model / 'vocab.bpe', content)
    message = complaint(model)
    assert str(model / 'vocab.bpe') in message and 'download' in message


# ---- the weights -------------------------------------------------------------------------------


@pytest.mark.parametrize('keep', [0, 1, 4096, -4, -1])
def test_weights_that_were_cut_short(model, keep):
    size = (model / WEIGHTS_FILE).stat().st_size
    edit(model / WEIGHTS_FILE, lambda old: old[:keep])
    message = complaint(model)
    assert str(model / WEIGHTS_FILE) in message and 'cut short' in message
    assert str(size) in message and str((model / WEIGHTS_FILE).stat().st_size) in message
    assert 'download' in message


@pytest.mark.parametrize('content', [
    b'', b'\n', b'model_checkpoint_path: ""\n', b'all_model_checkpoint_paths: "model.ckpt"\n',
    b'# model_checkpoint_path: "model.ckpt"\n', b'\xff\xfe\x00'], ids=repr)
def test_a_checkpoint_file_that_names_no_weights(model, content):
    edit(model / 'checkpoint', content)
    message = complaint(model)
    assert str(model / 'checkpoint') in message and 'download' in message


@pytest.mark.parametrize('name', ['model-1000', 'elsewhere/model.ckpt', '/nowhere/model.ckpt',
                                  'model.ckpt.index', '..'])
def test_a_checkpoint_file_that_names_missing_weights(model, name):
    edit(model / 'checkpoint', f'model_checkpoint_path: "{name}"\n'.encode())
    message = complaint(model)
    assert name in message and 'missing' in message


@pytest.mark.parametrize('content', [
    'model_checkpoint_path: "model-1000"\nall_model_checkpoint_paths: "model.ckpt"\n',
    'all_model_checkpoint_paths: "model.ckpt"\nmodel_checkpoint_path: "model-1000"',
    '\ufeffmodel_checkpoint_path:"model-1000"\r\n'], ids=repr)
def test_weights_with_another_name(model, content):
    """Training in the historic style leaves model-1000.* beside older weights."""
    edit(model / 'checkpoint', content.encode('utf-8'))
    for suffix in model_dir.SUFFIXES[:2]:
        shutil.copyfile(str(model / f'model.ckpt{suffix}'), str(model / f'model-1000{suffix}'))
    assert model_dir.weights_prefix(str(model)) == str(model / 'model-1000')
    (model / WEIGHTS_FILE).unlink()  # the others do not matter
    open_model(model)
    (model / 'model-1000.index').unlink()
    assert str(model / 'model-1000.index') in complaint(model)


def test_weights_with_an_absolute_path(model, tmp_path):
    write_model(tmp_path / 'run1')
    edit(model / 'checkpoint', f'model_checkpoint_path: "{tmp_path}/run1/model.ckpt"\n'.encode())
    (model / WEIGHTS_FILE).unlink()
    open_model(model)
    assert model_dir.weights_prefix(str(model)) == os.path.join(str(tmp_path), 'run1', 'model.ckpt')


def test_the_digest_changes_with_the_weights(model):
    """The index has a checksum of each weight."""
    before = model_dir.weights_digest(str(model))
    assert before == model_dir.weights_digest(str(model)) and len(before) == 16
    (model / INDEX).write_bytes(b'other')
    assert model_dir.weights_digest(str(model)) != before


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize('sizes, count', [
    ((50257, 1024, 768, 12, 12), 124439808), ((50257, 1024, 1600, 25, 48), 1557611200),
    (tuple(HPARAMS.values()), None), ((257, 7, 5, 5, 11), None)])
def test_shapes_and_number_of_parameters(tmp_path, sizes, count):
    values = dict(zip(HPARAMS, sizes))
    (tmp_path / 'hparams.json').write_text(json.dumps(values))
    hparams = model_dir.read_hparams(str(tmp_path / 'hparams.json'))
    shapes = dict(model_dir.weight_shapes(hparams))
    assert shapes == reference.shapes(values)
    assert model_dir.parameter_count(hparams) == sum(map(product, shapes.values()))
    assert count in (None, model_dir.parameter_count(hparams))


def test_a_model_is_found_by_its_path(unloaded, tmp_path, monkeypatch):
    """Also from another folder, where there is no folder `models`."""
    models = pathlib.Path(unloaded[-1])
    monkeypatch.chdir(tmp_path)
    for path in (models / 'tiny', os.path.relpath(str(models / 'tiny')), f'{models}/tiny/'):
        opened = model_dir.open_model_dir(str(path), 'models')
        assert (opened.name, os.path.realpath(opened.path)) == (
            'tiny', os.path.realpath(str(models / 'tiny')))
    with pytest.raises(ModelError) as error:
        model_dir.open_model_dir('tiny', 'models')
    assert str(tmp_path / 'models') in str(error.value) and '--models_dir' in str(error.value)
