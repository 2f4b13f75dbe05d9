"""Weights of model directories: read whole or refused in one line, and written whole."""
import json
import os
import shutil

import numpy as np
import pytest

import generate_unconditional_samples as unconditional
import gpt2
import reference
from gpt2 import checkpoint, files, model_dir, runtime
from gpt2.errors import ModelError
from helpers import LONG, Command, only_long

SCRIPT = 'generate_unconditional_samples.py'
MODEL_DIR_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
                   'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']
WEIGHTS_FILE, INDEX = 'model.ckpt.data-00000-of-00001', 'model.ckpt.index'


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny model to damage, in a folder with a non-ASCII name."""
    path = tmp_path / 'Modelle für 模型' / 'damaged'
    tiny.copy(path)
    return path


def build(tf, hparams):
    """Return the graph of the model with these hyperparameters, a dict."""
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
        opened = model_dir.open_model_dir(path.name, str(path.parent))
        hparams = {name: getattr(opened.hparams, name) for name in model_dir.HPARAMS}
        with graph_of(hparams).as_default(), tf.Session() as session:
            checkpoint.restore(session, str(path))
            weights = checkpoint.model_weights()
            return dict(zip([weight.op.name for weight in weights], session.run(weights)))

    return restore


@pytest.fixture
def complaint(restored):
    """A function from a model directory that cannot be used to the line that says why."""
    def restore(path):
        with pytest.raises(ModelError) as caught:
            restored(path)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    return restore


def same(weights, others):
    """Return whether two dicts of arrays have the same values."""
    return sorted(weights) == sorted(others) and all(
        np.array_equal(weights[name], others[name]) for name in weights)


def edit(path, change):
    """Change a file: `change` is its new content, or a function from the old content to the new."""
    path.write_bytes(change if isinstance(change, bytes) else change(path.read_bytes()))


def edit_hparams(path, **numbers):
    hparams = dict(files.read_json(str(path / 'hparams.json')), **numbers)
    files.write_json(str(path / 'hparams.json'), hparams)


# ---- reading -----------------------------------------------------------------------------------


def test_the_weights_are_those_that_were_written(tiny, restored):
    weights = restored(tiny.path)
    assert same(weights, tiny.weights)
    assert all(weight.dtype == np.float32 for weight in weights.values())


def test_weights_are_read_one_at_a_time_without_a_graph(tiny, copy):
    read = checkpoint.open_weights(str(tiny.path / 'model.ckpt'),
                                   model_dir.read_hparams(str(tiny.path / 'hparams.json')))
    assert same({name: read(name) for name in tiny.weights}, tiny.weights)
    edit(copy / WEIGHTS_FILE, flipped(1000))
    read = checkpoint.open_weights(str(copy / 'model.ckpt'),
                                   model_dir.read_hparams(str(copy / 'hparams.json')))
    with pytest.raises(ModelError, match='damaged'):
        for name in tiny.weights:
            read(name)


def test_the_graph_in_the_meta_file_is_not_needed(copy, restored, tiny):
    """Only other people's tools read it."""
    (copy / 'model.ckpt.meta').unlink()
    assert same(restored(copy), tiny.weights)


@pytest.mark.parametrize('numbers', [
    {'n_ctx': 16}, {'n_ctx': 33}, {'n_ctx': 10**7}, {'n_embd': 8}, {'n_embd': 32}, {'n_layer': 1},
    {'n_layer': 3}, {'n_layer': 10**7}, {'n_embd': 8, 'n_ctx': 64, 'n_layer': 7}], ids=str)
def test_shapes_that_disagree_with_hparams(copy, complaint, numbers):
    edit_hparams(copy, **numbers)
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'hparams.json' in message


def flipped(position):
    def flip(old):
        new = bytearray(old)
        new[position] ^= 0x41
        return bytes(new)

    return flip


@pytest.mark.parametrize('place', [0, 0.1, 0.5, 0.9, 0.9999])
def test_weights_with_a_wrong_byte(copy, complaint, place):
    position = int(place * (copy / WEIGHTS_FILE).stat().st_size)
    edit(copy / WEIGHTS_FILE, flipped(position))
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'download' in message
    assert len(message) < 300


@pytest.mark.parametrize('change', [b'', b'x', lambda old: old[:-1], lambda old: old[:100],
                                    lambda old: old + b'x', lambda old: old[::-1],
                                    lambda old: bytes(len(old))],
                         ids=['empty', 'x', 'cut', 'cut to 100', 'longer', 'reversed', 'zeros'])
def test_a_damaged_index(copy, complaint, change):
    edit(copy / INDEX, change)
    message = complaint(copy)
    assert str(copy / 'model.ckpt') in message and 'download' in message
    assert len(message) < 300


def test_an_index_with_a_wrong_byte(copy, restored, tiny):
    """Whatever byte it is, the weights are right or they are refused."""
    index = (copy / INDEX).read_bytes()
    step = 3 if LONG else 23
    refusals = 0
    for position in list(range(0, len(index), step)) + [len(index) - 1]:
        edit(copy / INDEX, flipped(position)(index))
        try:
            assert same(restored(copy), tiny.weights), position
        except ModelError as error:
            assert 'download' in str(error)
            refusals += 1
    assert refusals > len(index) / step / 2


def test_weights_with_another_name_or_an_absolute_path(copy, restored, tiny, tmp_path):
    """Training in the historic style leaves model-1000.* beside older weights."""
    other = reference.random_weights(tiny.hparams, seed=1)
    reference.write_checkpoint(copy, tiny.hparams, other, prefix='model-1000')
    assert '"model-1000"' in (copy / 'checkpoint').read_text()
    assert same(restored(copy), other)
    (copy / WEIGHTS_FILE).unlink()  # the older weights do not matter
    assert same(restored(copy), other)
    for suffix in model_dir.SUFFIXES:
        shutil.move(str(copy / f'model-1000{suffix}'), str(tmp_path))
    edit(copy / 'checkpoint', f'model_checkpoint_path: "{tmp_path}/model-1000"\n'.encode())
    assert same(restored(copy), other)


def test_an_optimizers_variables_do_no_harm(tf, copy, tiny, restored):
    """Some programs write all variables of a training into a checkpoint."""
    with tf.Graph().as_default(), tf.Session() as session:
        extra = {'model/h0/attn/c_attn/w/Adam': np.ones([3]), 'model/h9/ln_1/g/Adam': np.ones([2]),
                 'beta1_power': np.float32(0.9), 'global_step': np.int64(7)}
        variables = [tf.get_variable(name, initializer=value, use_resource=True)
                     for name, value in dict(tiny.weights, **extra).items()]
        session.run(tf.variables_initializer(variables))
        tf.train.Saver(variables).save(session, str(copy / 'model.ckpt'), write_state=False)
    assert same(restored(copy), tiny.weights)


# ---- as processes ------------------------------------------------------------------------------


def test_a_script_refuses_a_damaged_model_in_one_line(refused, copy):
    edit(copy / WEIGHTS_FILE, lambda old: old[:-1])
    status, message = refused(SCRIPT, '--model_name', copy.name, '--models_dir', copy.parent)
    assert status == 1
    assert str(copy / WEIGHTS_FILE) in message and 'cut short' in message


@pytest.mark.parametrize('engine', ['graph', pytest.param('lite', marks=only_long)])
def test_a_script_reports_damage_that_tensorflow_finds_in_one_line(tf, copy, engine):
    if engine == 'lite' and runtime.is_tensorflow_1():
        pytest.skip('TensorFlow 1 has one engine')
    edit(copy / WEIGHTS_FILE, flipped(1000))
    status, stdout, stderr = Command(SCRIPT, '--model_name', copy.name, '--seed', 1,
                                     '--models_dir', copy.parent, '--engine', engine).run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert stderr.startswith(f'{SCRIPT}: {copy / "model.ckpt"}') and 'download' in stderr


# ---- writing -----------------------------------------------------------------------------------


class Writer:
    """A session with a model's weights, that can be changed and saved."""

    def __init__(self, tf, graph, source):
        self.tf, self.graph, self.source = tf, graph, source
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
    return Writer(tf, build(tf, tiny.hparams),
                  model_dir.open_model_dir(tiny.name, str(tiny.models_dir)))


def test_what_is_saved_is_an_official_directory(tf, writer, tiny, restored, tmp_path):
    weights = reference.random_weights(tiny.hparams, seed=2)
    writer.save(weights, tmp_path / 'models' / 'saved')
    os.rename(str(tmp_path / 'models'), str(tmp_path / 'moved'))  # paths in it are relative
    path = tmp_path / 'moved' / 'saved'
    assert sorted(entry.name for entry in path.iterdir()) == MODEL_DIR_FILES
    assert same(restored(path), weights)
    for name in ['encoder.json', 'vocab.bpe']:
        assert (path / name).read_bytes() == (tiny.path / name).read_bytes()
    assert json.loads((path / 'hparams.json').read_text()) == tiny.hparams
    # And the way other people's programs read it.
    assert tf.train.latest_checkpoint(str(path)) == str(path / 'model.ckpt')
    shapes = tf.train.load_checkpoint(str(path / 'model.ckpt')).get_variable_to_shape_map()
    assert shapes == reference.shapes(tiny.hparams)
    size = 4 * sum(weight.size for weight in weights.values())
    assert (path / WEIGHTS_FILE).stat().st_size == size


def test_saving_again_replaces_what_was_there(writer, tiny, restored, tmp_path):
    for seed in [3, 4]:
        weights = reference.random_weights(tiny.hparams, seed)
        writer.save(weights, tmp_path / 'saved')
        assert same(restored(tmp_path / 'saved'), weights)
        assert sorted(entry.name for entry in (tmp_path / 'saved').iterdir()) == MODEL_DIR_FILES


def test_a_restored_model_is_saved_as_it_was(tf, graph_of, tiny, restored, tmp_path):
    with graph_of(tiny.hparams).as_default(), tf.Session() as session:
        checkpoint.restore(session, str(tiny.path))
        saver = tf.train.Saver(checkpoint.model_weights())
        checkpoint.save(session, saver, str(tmp_path / 'again'),
                        model_dir.open_model_dir(tiny.name, str(tiny.models_dir)))
    assert same(restored(tmp_path / 'again'), tiny.weights)
    for name in [WEIGHTS_FILE, *model_dir.VOCABULARY]:
        assert (tmp_path / 'again' / name).read_bytes() == (tiny.path / name).read_bytes()


class Interruption(BaseException):
    """Stands for Ctrl-C, a crash or a power cut."""


class Interrupter:
    """Lets file operations happen up to a place, and interrupts there.

    A place is a number: 1 during the first operation, 2 after it, 3 during the second, and so on;
    or 'save', during TensorFlow's saving. If the interruption kills, nothing happens after it, not
    even the removal of partial files.
    """

    def __init__(self, monkeypatch, saver):
        self.place, self.done, self.kills, self.interrupted = None, 0, False, False
        for module, name in [(os, 'replace'), (os, 'rename'), (os, 'remove'), (os, 'unlink'),
                             (os, 'makedirs'), (os, 'link'), (shutil, 'move'),
                             (shutil, 'rmtree'), (shutil, 'copyfileobj')]:
            monkeypatch.setattr(module, name, self.watched(getattr(module, name), name))
        monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # takes long
        monkeypatch.setattr(saver, 'save', self.watched(saver.save, 'save'))

    def watched(self, function, name):
        def call(*args, **kwargs):
            if self.place is None:
                return function(*args, **kwargs)
            if self.interrupted and self.kills:
                raise Interruption
            self.done += 1
            if self.place in [2 * self.done - 1, name] and not self.interrupted:
                self.interrupted = True
                if name == 'save':
                    self.write_in_part(args[1])
                elif name == 'copyfileobj':
                    args[1].write(b'half')
                raise Interruption
            result = function(*args, **kwargs)
            if self.place == 2 * self.done:
                self.interrupted = True
                raise Interruption
            return result

        return call

    def write_in_part(self, prefix):
        """Write the worst that a TensorFlow that is killed while it saves may leave."""
        for suffix in ['.data-00000-of-00001', '.data-00000-of-00001.tempstate42', '.index']:
            with open(prefix + suffix, 'wb') as file:
                file.write(b'half')

    def run(self, place, function, *args):
        """Call a function and interrupt it at a place; return whether it ended before that."""
        self.place, self.done, self.interrupted = place, 0, False
        try:
            function(*args)
            return True
        except Interruption:
            return False
        finally:
            self.place = None


@pytest.fixture
def interrupter(writer, monkeypatch):
    return Interrupter(monkeypatch, writer.saver)


def check_interrupted_saves(writer, interrupter, tiny, saved, tmp_path, seconds):
    """Interrupt a save at each place, then a second save at some places; then save in peace.

    What `checkpoint` names in between must be whole: the old weights or new ones. (TensorFlow
    checks their checksums when `saved` reads them.)
    """
    weights = [reference.random_weights(tiny.hparams, seed) for seed in range(4)]
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
            there = saved(path)
            assert same(there, weights[0]) or same(there, weights[1]), first
            if second:
                interrupter.run(second, writer.save, weights[2], path)
                then = saved(path)
                assert any(same(then, those) for those in [there] + weights[1:3]), (first, second)
            writer.save(weights[3], path)
            assert same(saved(path), weights[3])
            names = sorted(entry.name for entry in path.iterdir())
            assert names == MODEL_DIR_FILES, (first, second)
    assert first > 20  # there were places to interrupt


def test_killed_saves_leave_whole_weights(writer, interrupter, tiny, saved, tmp_path):
    interrupter.kills = True
    check_interrupted_saves(writer, interrupter, tiny, saved, tmp_path, seconds=[None])


def test_saves_interrupted_once_or_twice_leave_whole_weights(writer, interrupter, tiny, saved,
                                                             tmp_path):
    """An impatient user types Ctrl-C again while training saves because of the first one."""
    check_interrupted_saves(writer, interrupter, tiny, saved, tmp_path,
                            seconds=['save', *([None, *range(2, 50, 7)] if LONG else [23])])


def test_a_first_save_that_is_interrupted_leaves_whole_weights_or_none(
        writer, interrupter, tiny, saved, tmp_path):
    weights = reference.random_weights(tiny.hparams, seed=1)
    results, place, ended = [], 0, False
    while not ended:
        place += 1
        path = tmp_path / str(place)
        ended = interrupter.run(place, writer.save, weights, path)
        try:
            assert same(saved(path), weights)
            results.append(True)
        except ModelError:
            assert not (path / 'checkpoint').exists()
            results.append(False)
    assert not results[0] and results[-1] and results == sorted(results)


# ---- values that are not finite ----------------------------------------------------------------


@pytest.fixture
def spoiled(tiny, tmp_path):
    """A function that writes the tiny model with changed weights; returns its flags."""
    def write(change):
        weights = {name: weight.copy() for name, weight in tiny.weights.items()}
        change(weights)
        reference.write_checkpoint(tmp_path / 'spoiled', tiny.hparams, weights)
        return ['--model_name', 'spoiled', '--models_dir', str(tmp_path)]

    return write


def spoil(name, value):
    def change(weights):
        weights[name].flat[7] = value
    return change


def enlarge(weights):
    for name in weights:
        if name.endswith('mlp/c_fc/w'):
            weights[name] *= np.float32(1e38)


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('change, place', [
    pytest.param(spoil('model/wte', np.nan), 'model/wte', id='NaN'),
    pytest.param(spoil('model/h1/mlp/c_proj/b', np.inf), 'model/h1/mlp/c_proj/b', id='infinity',
                 marks=only_long),
    pytest.param(spoil('model/ln_f/g', -np.inf), 'model/ln_f/g', id='-infinity', marks=only_long),
    pytest.param(enlarge, 'the output of block 0', id='overflow')])
def test_what_is_not_finite_is_refused_in_sampling(call, spoiled, engine, change, place):
    """It would look like a text: `!!!!`."""
    if runtime.is_tensorflow_1() and engine == 'lite':
        pytest.skip('the lite engine needs TensorFlow 2')
    status, stdout, stderr = call(
        unconditional.sample_model, unconditional.OPTIONS, *spoiled(change), '--nsamples', 1,
        '--length', 3, '--engine', engine)
    assert (status, stdout) == (1, '')
    message = stderr.split('\n')[-2]
    assert place in message and 'finite' in message and 'use other weights' in message


@pytest.mark.parametrize('change', [spoil('model/h0/ln_1/b', np.nan),
                                    pytest.param(enlarge, marks=only_long)])
def test_what_is_not_finite_is_refused_in_the_python_interface(spoiled, change):
    flags = spoiled(change)
    with gpt2.load(flags[1], models_dir=flags[3], engine='graph') as model:
        for use in (lambda: model.generate('One', length=2), lambda: model.logits('One'),
                    lambda: model.score('One'), lambda: list(model.stream('One', length=2))):
            with pytest.raises(ModelError, match='finite'):
                use()


def test_finite_means_every_value():
    assert checkpoint.is_finite(np.zeros([2, 3], np.float32))
    assert checkpoint.is_finite(np.float32([3.4e38, -3.4e38, 1e-45]))
    for value in (np.nan, np.inf, -np.inf):
        for place in range(6):
            array = np.zeros([2, 3], np.float32)
            array.flat[place] = value
            assert not checkpoint.is_finite(array)
