"""Fixtures: commands run as processes or in this process, and a small model to run them on."""
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import types

import pytest

import gpt2.cli  # noqa: F401
import helpers
import reference
from helpers import Command

# So small that a sample takes the reference milliseconds too. A token is a byte.
TINY = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}

# A tensorflow.py that cannot be imported, and leaves a trace.
NO_TENSORFLOW = """
import os
open(os.path.join(os.path.dirname(__file__), 'imported'), 'w').close()
raise RuntimeError('TensorFlow was imported')
"""


# A shell makes background processes ignore Ctrl-C, and our commands would inherit that; and
# gpt2.cli, imported, lets Ctrl-C end a process at once.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # as the commands do; TensorFlow starts faster


# ---- commands ----------------------------------------------------------------------------------


@pytest.fixture
def command():
    """Command: a script of src/ as a process."""
    return Command


@pytest.fixture
def call():
    """Run a command's function in this process, see helpers.call: (status, stdout, stderr)."""
    return helpers.call


def one_line(script, result):
    """Return (status, the one line on stderr without the script's name) of a refused command."""
    status, stdout, stderr = result
    assert stdout == ''
    assert stderr.startswith(f'{script}: '), stderr
    assert stderr.count('\n') == 1 and stderr.endswith('\n'), stderr
    return status, stderr[len(script) + 2:-1]


@pytest.fixture
def refuse(call, monkeypatch):
    """As `call`, where the command must refuse: return (status, its one line without the name).

    It must not ask for TensorFlow before: that it is not imported is checked with `refused`.
    """
    from gpt2 import runtime

    def run(function, option_classes, *argv, **options):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, 'import_tensorflow', lambda: pytest.fail('TensorFlow'))
            result = call(function, option_classes, *argv, **options)
        return one_line(f'{function.__module__}.py', result)

    return run


@pytest.fixture
def bare(tmp_path):
    """Run a command where importing TensorFlow fails: return (status, stdout, stderr)."""
    folder = tmp_path / 'without TensorFlow'
    folder.mkdir(exist_ok=True)
    (folder / 'tensorflow.py').write_text(NO_TENSORFLOW)

    def run(script, *args, env=None, **options):
        result = Command(script, *args, env=dict(env or {}, PYTHONPATH=folder)).run(**options)
        assert not (folder / 'imported').exists(), 'TensorFlow was imported'
        return result

    return run


@pytest.fixture
def refused(bare):
    """Run a command that must be refused in one line, as a process: return (status, that line).

    All that is refused so is refused before TensorFlow is imported.
    """
    def run(script, *args, **options):
        return one_line(script, bare(script, *args, **options))

    return run


@pytest.fixture(scope='session', autouse=True)
def cache_folder(tmp_path_factory):
    """Keep the user's own cache folder out of the tests."""
    os.environ['XDG_CACHE_HOME'] = str(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def port():
    """A port that nobody uses."""
    with socket.socket() as free:
        free.bind(('', 0))
        return free.getsockname()[1]


# ---- a model -----------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def tf():
    """TensorFlow 1's interface in graph mode, as src/ uses it."""
    from gpt2 import runtime
    tensorflow = runtime.import_tensorflow()
    import model  # noqa: F401  (switches to graph mode)
    return tensorflow


@pytest.fixture
def saved(tf):
    """A function from a model directory to its weights, {name: array}, read by TensorFlow."""
    def read(path):
        from gpt2 import model_dir
        reader = tf.train.load_checkpoint(model_dir.weights_prefix(str(path)))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    return read


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder on a disk of so many kilobytes, which the test may fill."""
    folders = []

    def mount(size):
        folder = tmp_path / (f'disk of {size}')
        folder.mkdir()
        if shutil.which('mount') is None or subprocess.call(
                ['mount', '-t', 'tmpfs', '-o', f'size={size}k', 'tmpfs', str(folder)],
                stderr=subprocess.DEVNULL):
            pytest.skip('nothing can be mounted here')
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.check_call(['umount', str(folder)])


class TinyModel:
    """A model directory in the official format with random weights, and what it should say."""

    def __init__(self, models_dir):
        self.name, self.models_dir, self.path = 'tiny', models_dir, models_dir / 'tiny'
        self.flags = ['--model_name', self.name, '--models_dir', str(models_dir)]
        self.hparams, self.weights = TINY, reference.random_weights(TINY, seed=0)
        reference.write_checkpoint(self.path, self.hparams, self.weights)
        symbols = reference.byte_symbols()
        printable = [byte for byte in range(256) if chr(byte) in symbols]
        order = printable + [byte for byte in range(256) if byte not in printable]
        self._tokens = [bytes([byte]) for byte in order] + [b'<|endoftext|>']

    def copy(self, path):
        """Copy the model directory, without the weights that other tests have converted in it."""
        shutil.copytree(str(self.path), str(path), ignore=shutil.ignore_patterns('lite'))

    def encode(self, text):
        return [self._tokens.index(bytes([byte])) for byte in text.encode('utf-8')]

    def decode(self, tokens):
        return b''.join(self._tokens[token] for token in tokens).decode('utf-8', 'replace')

    def samples(self, indices, seed, length, prompt=None, weights=None, gap=1e-4, **options):
        """Return the texts of these samples of a run, as the reference computes them.

        No token may be a near-tie, of a smaller gap, where float32 may choose another one.
        """
        tokens = [self.hparams['n_vocab'] - 1] if prompt is None else self.encode(prompt)
        texts = []
        for index in indices:
            new, gaps = reference.sample(weights or self.weights, self.hparams, tokens, length,
                                         seed, index, **options)
            assert min(gaps) > gap, 'choose another seed'
            texts.append(self.decode(new))
        return texts


@pytest.fixture(scope='session')
def tiny(tf, tmp_path_factory):
    """A TinyModel, in a folder whose name needs quotes."""
    return TinyModel(tmp_path_factory.mktemp('my models'))


@pytest.fixture(scope='session')
def unloaded(tmp_path_factory):
    """Flags for a model like `tiny` that can be opened, but whose weights are zeros: no weights.

    Making it needs no TensorFlow.
    """
    from gpt2 import model_dir
    folder = tmp_path_factory.mktemp('models') / 'tiny'
    folder.mkdir()
    (folder / 'hparams.json').write_text(json.dumps(TINY))
    reference.write_vocabulary(str(folder))
    (folder / 'checkpoint').write_text('model_checkpoint_path: "model.ckpt"\n')
    (folder / 'model.ckpt.index').write_bytes(b'')
    size = 4 * model_dir.parameter_count(types.SimpleNamespace(**TINY))
    (folder / 'model.ckpt.data-00000-of-00001').write_bytes(bytes(size))
    return ['--model_name', 'tiny', '--models_dir', str(folder.parent)]


# ---- samples -----------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def graph_decoders(tf):
    """A function like `open_decoder` that opens the graph decoder of a model only once."""
    from gpt2.sampling import engines
    opened = {}

    def open_decoder(model_dir, engine, dtype):
        if engine != 'graph':
            return engines.open_decoder(model_dir, engine, dtype)
        if model_dir.path not in opened:
            opened[model_dir.path] = engines.open_decoder(model_dir, engine, dtype)
        return opened[model_dir.path]

    return open_decoder


@pytest.fixture
def sample(call, tiny, graph_decoders, monkeypatch):
    """Run a sampling command's function on the tiny model in this process: return what it prints.

    sample(unconditional.sample_model, '--nsamples', 7)

    Its seed is 4, its length 12, its batch size 3, unless other flags say otherwise. The model's
    graph is built only once, so a model directory must not change while a test runs.
    """
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)
    flags = [*tiny.flags, '--engine', 'graph', '--seed', 4, '--length', 12, '--batch_size', 3]

    def sample(function, *argv, status=0, **options):
        option_classes = sys.modules[function.__module__].OPTIONS
        found, stdout, stderr = call(function, option_classes, *flags, *argv, **options)
        assert found == status, stderr
        return stdout, stderr

    return sample


@pytest.fixture
def sample_error(sample):
    """As `sample`, where the command must refuse with status 1: return its one line."""
    def run(function, *argv):
        script = f'{function.__module__}.py'
        return one_line(script, (1, *sample(function, *argv, status=1)))[1]

    return run


# ---- peers -------------------------------------------------------------------------------------


@pytest.fixture
def one_torch_thread():
    """Let torch compute in one thread: more wait for TensorFlow's, ten times as long."""
    torch = pytest.importorskip('torch')
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


# ---- interruptions -----------------------------------------------------------------------------


@pytest.fixture
def at_each_line():
    """A function that calls a function, and `action(n)` before its n-th line in some modules."""
    def run(modules, function, action):
        paths, n_lines = {module.__file__ for module in modules}, itertools.count(1)

        def trace(frame, event, arg):
            if frame.f_code.co_filename not in paths:
                return None
            if event == 'line':
                action(next(n_lines))
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            return function()
        finally:
            sys.settrace(before)

    return run


@pytest.fixture
def interrupt_at(at_each_line):
    """A function that calls a function, with Ctrl-C before its n-th line in some modules.

    It returns whether the function had so many lines. Numbers count from 1.
    """
    def run(n, modules, function):
        def interrupt(line):
            if line == n:
                raise KeyboardInterrupt
        try:
            at_each_line(modules, function, interrupt)
        except KeyboardInterrupt:
            return True
        return False

    return run
