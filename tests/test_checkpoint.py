"""Model directories: what is wrong with one is told in a line, and what is written is whole."""
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as real_tf

import checkpoint
import reference

IS_TF1 = real_tf.__version__.startswith('1.')
SCRIPT = 'generate_unconditional_samples.py'
OFFICIAL_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
                  'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']
DATA, INDEX = 'model.ckpt.data-00000-of-00001', 'model.ckpt.index'
LONG = os.environ.get('GPT2_TEST_LONG') == '1'


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny model to do damage to, in a folder with a non-ASCII name."""
    path = tmp_path / 'Modelle für 模型' / 'damaged'
    shutil.copytree(str(tiny.path), str(path))
    return path


def build(tf, hparams):
    """Returns the graph of the model with these hyperparameters, a dict."""
    import model
    numbers = model.default_hparams()
    numbers.override_from_dict(hparams)
    graph = tf.Graph()
    with graph.as_default():
        model.model(numbers, tf.placeholder(tf.int32, [None, None]))
    return graph


@pytest.fixture(scope='module')
def graph_of(tf):
    """A function from hyperparameters, a dict, to the graph of their model, built once."""
    built = {}

    def graph_of(hparams):
        key = tuple(sorted(hparams.items()))
        if key not in built:
            built[key] = build(tf, hparams)
        return built[key]

    return graph_of


@pytest.fixture
def restored(tf, graph_of):
    """A function from a model directory to its weights, {name: array}, as a script gets them."""
    def restore(path):
        opened = checkpoint.open_model(path.name, str(path.parent))
        hparams = {name: getattr(opened.hparams, name) for name in checkpoint.HPARAMS}
        with graph_of(hparams).as_default(), tf.Session() as session:
            checkpoint.restore(session, str(path))
            weights = checkpoint.model_weights()
            return dict(zip([weight.op.name for weight in weights], session.run(weights)))

    return restore


@pytest.fixture
def complaint(restored):
    """A function from a model directory that cannot be used to the line that says why."""
    def complain(path):
        with pytest.raises(checkpoint.ModelError) as caught:
            restored(path)
        message = str(caught.value)
        assert '\n' not in message
        return message

    return complain


def same(weights, others):
    """Says whether two dicts of arrays are the same to the last bit."""
    return sorted(weights) == sorted(others) and all(
        np.array_equal(weights[name], others[name]) for name in weights)


def edit(path, change):
    """Changes a file: `change` is its new content, or a function from the old to the new."""
    old = path.read_bytes() if path.exists() else b''
    path.write_bytes(change if isinstance(change, bytes) else change(old))


def edit_hparams(path, **numbers):
    hparams = dict(json.loads((path / 'hparams.json').read_text()), **numbers)
    (path / 'hparams.json').write_text(json.dumps(hparams))


# ---- what is missing ---------------------------------------------------------------------------


def test_a_missing_directory_names_the_models_there_and_the_download(tiny, complaint, tmp_path):
    shutil.copytree(str(tiny.path), str(tmp_path / '[odd]' / 'one'))
    shutil.copytree(str(tiny.path), str(tmp_path / '[odd]' / 'two'))
    (tmp_path / '[odd]' / 'no model').mkdir()
    message = complaint(tmp_path / '[odd]' / '355M')
    assert 'one, two' in message and 'no model' not in message.replace('there is no model', '')
    assert message.endswith('python3 download_model.py 355M')


@pytest.mark.parametrize('name', OFFICIAL_FILES)
def test_a_missing_file_is_named(copy, complaint, restored, tiny, name):
    (copy / name).unlink()
    if name == 'model.ckpt.meta':  # only other people's tools read it
        assert same(restored(copy), tiny.weights)
    else:
        message = complaint(copy)
        assert str(copy / name) in message and 'download' in message


@pytest.mark.parametrize('name', ['hparams.json', 'encoder.json', 'checkpoint', DATA])
def test_a_folder_in_the_place_of_a_file(copy, complaint, name):
    (copy / name).unlink()
    (copy / name).mkdir()
    assert str(copy / name) in complaint(copy)


# ---- hparams.json ------------------------------------------------------------------------------


@pytest.mark.parametrize('content', [
    b'', b'{', b'n_vocab = 257', b'[]', b'[257, 32, 16, 2, 2]', b'"hparams"', b'257', b'null',
    b'\xff\xfe{}', b'{"n_vocab": 257, "n_ctx": 32\x00}', b'{"n_vocab": 257,}', b'[' * 100000],
    ids=lambda content: repr(content[:40]))
def test_hparams_that_are_no_json_object(copy, complaint, content):
    edit(copy / 'hparams.json', content)
    message = complaint(copy)
    assert str(copy / 'hparams.json') in message and 'JSON' in message and 'download' in message


@pytest.mark.parametrize('name', ['n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer'])
@pytest.mark.parametrize('value', [0, -1, '16', '', True, 16.0, 1.5, None, [16], {}, float('nan'),
                                   float('inf')], ids=repr)
def test_hparams_that_are_no_sizes(copy, complaint, name, value):
    edit_hparams(copy, **{name: value})
    message = complaint(copy)
    assert str(copy / 'hparams.json') in message and name in message
    assert json.dumps(value) in message


@pytest.mark.parametrize('name', ['n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer'])
def test_hparams_that_lack_one(copy, complaint, tiny, name):
    numbers = dict(tiny.hparams)
    del numbers[name]
    (copy / 'hparams.json').write_text(json.dumps(numbers))
    message = complaint(copy)
    assert str(copy / 'hparams.json') in message and name in message


@pytest.mark.parametrize('n_head', [3, 5, 32])
def test_a_width_that_the_heads_do_not_divide(copy, complaint, n_head):
    edit_hparams(copy, n_head=n_head)
    message = complaint(copy)
    assert str(copy / 'hparams.json') in message
    assert 'n_embd' in message and 'n_head' in message
    assert '16' in message and str(n_head) in message


@pytest.mark.parametrize('numbers', [
    {'n_ctx': 16}, {'n_ctx': 33}, {'n_ctx': 10**9}, {'n_embd': 8}, {'n_embd': 32}, {'n_layer': 1},
    {'n_layer': 3}, {'n_layer': 10**12}, {'n_embd': 8, 'n_ctx': 64, 'n_layer': 7}], ids=str)
def test_shapes_that_disagree_with_hparams(copy, complaint, numbers):
    edit_hparams(copy, **numbers)
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'hparams.json' in message


def test_a_vocabulary_of_another_size(copy, complaint):
    edit_hparams(copy, n_vocab=256)
    message = complaint(copy)
    assert str(copy / 'encoder.json') in message and '257' in message and '256' in message


def test_a_vocabulary_without_end_of_text(copy, complaint):
    edit(copy / 'encoder.json', lambda old: old.replace(b'<|endoftext|>', b'the end'))
    message = complaint(copy)
    assert str(copy / 'encoder.json') in message and '<|endoftext|>' in message


@pytest.mark.parametrize('content', [b'', b'[]', b'{"a": 0}', b'\xff', b'[' * 100000],
                         ids=lambda content: repr(content[:9]))
def test_a_damaged_encoder(copy, complaint, content):
    edit(copy / 'encoder.json', content)
    message = complaint(copy)
    assert str(copy / 'encoder.json') in message and 'download' in message


def test_a_damaged_merge_list(copy, complaint):
    edit(copy / 'vocab.bpe', b'#version: 0.2\na b c\n')
    message = complaint(copy)
    assert str(copy / 'vocab.bpe') in message and 'download' in message


def test_byte_order_marks_and_further_hparams_do_no_harm(copy, restored, tiny):
    edit_hparams(copy, n_head=2, dropout=0.1, name='mine', more={'a': [1]})
    for name in ['hparams.json', 'encoder.json', 'vocab.bpe']:
        edit(copy / name, lambda old: b'\xef\xbb\xbf' + old.replace(b'\n', b'\r\n'))
    assert same(restored(copy), tiny.weights)
    hparams = checkpoint.open_model(copy.name, str(copy.parent)).hparams
    assert (hparams.dropout, hparams.more) == (0.1, {'a': [1]})


# ---- the weights -------------------------------------------------------------------------------


def test_the_weights_are_the_numbers_that_were_written(tiny, restored):
    weights = restored(tiny.path)
    assert same(weights, tiny.weights)
    assert all(weight.dtype == np.float32 for weight in weights.values())


@pytest.mark.parametrize('keep', [0, 1, 4096, -4, -1])
def test_a_data_file_cut_short(copy, complaint, keep):
    size = (copy / DATA).stat().st_size
    edit(copy / DATA, lambda old: old[:keep])
    message = complaint(copy)
    assert str(copy / DATA) in message and 'cut short' in message and 'download' in message
    assert str(size) in message and str((copy / DATA).stat().st_size) in message


def flipped(position):
    def flip(old):
        new = bytearray(old)
        new[position] ^= 0x41
        return bytes(new)

    return flip


@pytest.mark.parametrize('place', [0, 0.1, 0.5, 0.9, 0.9999])
def test_a_data_file_with_a_wrong_byte(copy, complaint, place):
    position = int(place * (copy / DATA).stat().st_size)
    edit(copy / DATA, flipped(position))
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'download' in message
    assert len(message) < 300


@pytest.mark.parametrize('change', [b'', b'x', lambda old: old[:-1], lambda old: old[:100],
                                    lambda old: old + b'x', lambda old: old[::-1],
                                    lambda old: bytes(len(old))],
                         ids=['empty', 'x', 'cut', 'cut to 100', 'longer', 'reversed', 'zeros'])
def test_an_index_that_is_none(copy, complaint, change):
    edit(copy / INDEX, change)
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'download' in message
    assert len(message) < 300


def test_an_index_with_a_wrong_byte(copy, complaint, restored, tiny):
    """Whatever byte it is, the weights are the right ones or refused."""
    index = (copy / INDEX).read_bytes()
    step = 1 if LONG else 23
    refusals = 0
    for position in list(range(0, len(index), step)) + [len(index) - 1]:
        edit(copy / INDEX, flipped(position)(index))
        try:
            assert same(restored(copy), tiny.weights), position
        except checkpoint.ModelError as error:
            assert 'download' in str(error)
            refusals += 1
    assert refusals > len(index) / step / 2


@pytest.mark.parametrize('content', [
    b'', b'\n', b'model_checkpoint_path: ""\n', b'all_model_checkpoint_paths: "model.ckpt"\n',
    b'# model_checkpoint_path: "model.ckpt"\n', b'\xff\xfe\x00'], ids=repr)
def test_a_state_file_that_names_nothing(copy, complaint, content):
    edit(copy / 'checkpoint', content)
    message = complaint(copy)
    assert str(copy / 'checkpoint') in message and 'download' in message


@pytest.mark.parametrize('name', ['model-1000', 'elsewhere/model.ckpt', '/nowhere/model.ckpt',
                                  'model.ckpt.index', '..'])
def test_a_state_file_that_names_missing_weights(copy, complaint, name):
    edit(copy / 'checkpoint', ('model_checkpoint_path: "%s"\n' % name).encode())
    message = complaint(copy)
    assert name in message and 'missing' in message


@pytest.mark.parametrize('content', [
    'model_checkpoint_path: "model-1000"\nall_model_checkpoint_paths: "model.ckpt"\n',
    'all_model_checkpoint_paths: "model.ckpt"\nmodel_checkpoint_path: "model-1000"',
    '\ufeffmodel_checkpoint_path:"model-1000"\r\n'], ids=repr)
def test_weights_of_another_name(copy, restored, complaint, tiny, content):
    """As training in the historic style leaves them: model-1000.* beside older weights."""
    other = reference.random_weights(tiny.hparams, seed=1)
    reference.write_checkpoint(copy, tiny.hparams, other, prefix='model-1000')
    edit(copy / 'checkpoint', content.encode('utf-8'))
    assert same(restored(copy), other)
    (copy / DATA).unlink()  # the others do not matter
    assert same(restored(copy), other)
    (copy / 'model-1000.index').unlink()
    assert str(copy / 'model-1000.index') in complaint(copy)


def test_a_state_file_with_an_absolute_path(copy, restored, tiny, tmp_path):
    other = reference.random_weights(tiny.hparams, seed=1)
    reference.write_checkpoint(tmp_path / 'run1', tiny.hparams, other, prefix='model-7')
    edit(copy / 'checkpoint', ('model_checkpoint_path: "%s"\n' % (tmp_path / 'run1' / 'model-7'))
         .encode('utf-8'))
    assert same(restored(copy), other)


def test_an_optimizers_variables_do_no_harm(tf, copy, tiny, restored):
    """A checkpoint of all variables of a training, as some programs write."""
    with tf.Graph().as_default(), tf.Session() as session:
        extra = {'model/h0/attn/c_attn/w/Adam': np.ones([3]), 'model/h9/ln_1/g/Adam': np.ones([2]),
                 'beta1_power': np.float32(0.9), 'global_step': np.int64(7)}
        variables = [tf.get_variable(name, initializer=value, use_resource=True)
                     for name, value in dict(tiny.weights, **extra).items()]
        session.run(tf.variables_initializer(variables))
        tf.train.Saver(variables).save(session, str(copy / 'model.ckpt'), write_state=False)
    assert same(restored(copy), tiny.weights)


def test_a_path_that_tensorflow_cannot_read_is_not_called_damaged(tiny, restored, tmp_path):
    """TensorFlow reads the path of weights as a pattern."""
    shutil.copytree(str(tiny.path), str(tmp_path / '[1]' / 'tiny'))
    try:
        assert same(restored(tmp_path / '[1]' / 'tiny'), tiny.weights)
    except checkpoint.ModelError as error:
        assert 'damaged' not in str(error) and 'download' not in str(error)


# ---- as processes ------------------------------------------------------------------------------


@pytest.mark.parametrize('name, change, words', [
    ('hparams.json', b'[]', ['hparams.json', 'object']),
    ('hparams.json', lambda old: old.replace(b'16', b'15'), ['hparams.json', 'n_embd', 'n_head']),
    ('encoder.json', b'{}', ['encoder.json']),
    ('vocab.bpe', b'\xff', ['vocab.bpe']),
    ('checkpoint', b'', ['checkpoint']),
    (DATA, lambda old: old[:-1], [DATA, 'cut short'])], ids=str)
def test_the_scripts_say_so_in_one_line(refused, copy, name, change, words):
    edit(copy / name, change)
    status, message = refused(SCRIPT, '--model_name', copy.name, '--models_dir', copy.parent)
    assert status == 1
    assert str(copy) in message and all(word in message for word in words)


@pytest.mark.parametrize('engine', ['graph', pytest.param('lite', marks=pytest.mark.skipif(
    IS_TF1, reason='TensorFlow 1 has one engine'))])
def test_damage_that_tensorflow_finds_is_told_in_one_line(command, copy, engine):
    edit(copy / DATA, flipped(1000))
    status, stdout, stderr = command(SCRIPT, '--model_name', copy.name, '--seed', 1,
                                     '--models_dir', copy.parent, '--engine', engine).run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert stderr.startswith(SCRIPT + ': ' + str(copy / 'model.ckpt')) and 'download' in stderr


# ---- to files ----------------------------------------------------------------------------------


class Writer:
    """A session with a model's weights, that can be changed and saved."""

    def __init__(self, tf, graph, source):
        self.tf, self.graph, self.source = tf, graph, str(source)
        self.session = tf.Session(graph=graph)
        with graph.as_default():
            self.weights = checkpoint.model_weights()
            self.saver = tf.train.Saver(self.weights, max_to_keep=None)
            self.values = {weight.op.name: tf.placeholder(tf.float32, weight.shape)
                           for weight in self.weights}
            self.assign = tf.group(*[weight.assign(self.values[weight.op.name])
                                     for weight in self.weights])

    def save(self, weights, path):
        with self.graph.as_default():
            self.session.run(self.assign, {self.values[name]: weights[name] for name in weights})
            checkpoint.save(self.session, self.saver, str(path), self.source)


@pytest.fixture(scope='module')
def writer(tf, tiny):
    return Writer(tf, build(tf, tiny.hparams), tiny.path)


def test_what_is_saved_is_an_official_directory(tf, writer, tiny, restored, tmp_path):
    weights = reference.random_weights(tiny.hparams, seed=2)
    writer.save(weights, tmp_path / 'models' / 'saved')
    os.rename(str(tmp_path / 'models'), str(tmp_path / 'moved'))  # paths in it are relative
    path = tmp_path / 'moved' / 'saved'
    assert sorted(entry.name for entry in path.iterdir()) == OFFICIAL_FILES
    assert same(restored(path), weights)
    for name in ['hparams.json', 'encoder.json', 'vocab.bpe']:
        assert (path / name).read_bytes() == (tiny.path / name).read_bytes()
    # And the way other people's programs read it.
    assert tf.train.latest_checkpoint(str(path)) == str(path / 'model.ckpt')
    shapes = tf.train.load_checkpoint(str(path / 'model.ckpt')).get_variable_to_shape_map()
    assert shapes == reference.shapes(tiny.hparams)
    assert (path / DATA).stat().st_size == 4 * sum(weight.size for weight in weights.values())


def test_saving_again_replaces_what_was_there(writer, tiny, restored, tmp_path):
    for seed in [3, 4]:
        weights = reference.random_weights(tiny.hparams, seed)
        writer.save(weights, tmp_path / 'saved')
        assert same(restored(tmp_path / 'saved'), weights)
        assert sorted(entry.name for entry in (tmp_path / 'saved').iterdir()) == OFFICIAL_FILES


def test_a_restored_model_is_saved_as_it_was(tf, graph_of, tiny, restored, tmp_path):
    with graph_of(tiny.hparams).as_default(), tf.Session() as session:
        checkpoint.restore(session, str(tiny.path))
        saver = tf.train.Saver(checkpoint.model_weights())
        checkpoint.save(session, saver, str(tmp_path / 'again'), str(tiny.path))
    assert same(restored(tmp_path / 'again'), tiny.weights)
    assert (tmp_path / 'again' / DATA).read_bytes() == (tiny.path / DATA).read_bytes()


class Interruption(BaseException):
    """Stands for Ctrl-C, a crash or a power failure."""


class Interrupter:
    """Lets file operations happen up to a place and interrupts there.

    A place is a number, 1 in the midst of the first operation, 2 after it, 3 in the midst of the
    second, and so on; or 'save', in the midst of TensorFlow's saving.
    """

    def __init__(self, monkeypatch, saver):
        self.place, self.done = None, 0
        for module, name in [(os, 'replace'), (os, 'rename'), (os, 'remove'), (os, 'unlink'),
                             (os, 'makedirs'), (os, 'link'), (shutil, 'move'), (shutil, 'rmtree'),
                             (shutil, 'copy'), (shutil, 'copyfile'), (shutil, 'copy2')]:
            monkeypatch.setattr(module, name, self.watched(getattr(module, name), name))
        monkeypatch.setattr(saver, 'save', self.watched(saver.save, 'save'))

    def watched(self, function, name):
        def call(*args, **kwargs):
            if self.place is None:
                return function(*args, **kwargs)
            self.done += 1
            if self.place in [2 * self.done - 1, name]:
                if name == 'save':
                    self.write_in_part(args[1])
                elif name.startswith('copy'):
                    with open(str(args[1]), 'wb') as file:
                        file.write(b'half')
                raise Interruption
            result = function(*args, **kwargs)
            if self.place == 2 * self.done:
                raise Interruption
            return result

        return call

    def write_in_part(self, prefix):
        """What a TensorFlow that is killed while it saves may leave, at the worst."""
        for ending in ['.data-00000-of-00001', '.data-00000-of-00001.tempstate42', '.index']:
            with open(prefix + ending, 'wb') as file:
                file.write(b'half')

    def run(self, place, function, *args):
        """Calls a function, interrupted at that place: says whether it came to the end before."""
        self.place, self.done = place, 0
        try:
            function(*args)
            return True
        except Interruption:
            return False
        finally:
            self.place = None


@pytest.fixture
def named(tf):
    """A function from a directory to the weights that its state file names, read by TensorFlow.

    TensorFlow checks their sums, so they are whole if nothing is raised.
    """
    def read(path):
        reader = tf.train.load_checkpoint(checkpoint.weights_prefix(str(path)))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    return read


def check_interrupted_saves(writer, tiny, named, tmp_path, monkeypatch, seconds):
    """Interrupts a save at each place, then another one at some places, and then saves in peace.

    Whatever `checkpoint` names in between must be whole: the weights of before, or new ones.
    """
    weights = [reference.random_weights(tiny.hparams, seed) for seed in range(4)]
    interrupter = Interrupter(monkeypatch, writer.saver)
    path = tmp_path / 'saved'
    writer.save(weights[0], path)
    shutil.copytree(str(path), str(tmp_path / 'before'))
    first, ended = 0, False
    while not ended:
        first += 1
        for second in seconds:
            shutil.rmtree(str(path))
            shutil.copytree(str(tmp_path / 'before'), str(path))
            ended = interrupter.run(first, writer.save, weights[1], path)
            there = named(path)
            assert same(there, weights[0]) or same(there, weights[1]), first
            if second:
                interrupter.run(second, writer.save, weights[2], path)
                then = named(path)
                assert any(same(then, those) for those in [there] + weights[1:3]), (first, second)
            writer.save(weights[3], path)
            assert same(named(path), weights[3])
            assert sorted(entry.name for entry in path.iterdir()) == OFFICIAL_FILES, (first, second)
    assert first > 20  # there were places to interrupt


def test_interrupted_saves_leave_whole_weights(writer, tiny, named, tmp_path, monkeypatch):
    check_interrupted_saves(writer, tiny, named, tmp_path, monkeypatch, seconds=[None])


def test_saves_interrupted_twice_leave_whole_weights(writer, tiny, named, tmp_path, monkeypatch):
    """As by an impatient user, who types Ctrl-C again while the first one makes training save."""
    check_interrupted_saves(writer, tiny, named, tmp_path, monkeypatch,
                            seconds=['save', *(range(2, 50, 7) if LONG else [23])])


def test_a_first_save_that_is_interrupted_leaves_whole_weights_or_none(
        writer, tiny, named, tmp_path, monkeypatch):
    weights = reference.random_weights(tiny.hparams, seed=1)
    interrupter = Interrupter(monkeypatch, writer.saver)
    results, place, ended = [], 0, False
    while not ended:
        place += 1
        path = tmp_path / str(place)
        ended = interrupter.run(place, writer.save, weights, path)
        try:
            assert same(named(path), weights)
            results.append(True)
        except checkpoint.ModelError:
            assert not (path / 'checkpoint').exists()
            results.append(False)
    assert not results[0] and results[-1] and results == sorted(results)
