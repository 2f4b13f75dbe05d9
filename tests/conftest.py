"""What several test files share: commands run as processes, and a small model to run them on."""
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

import reference

SRC = pathlib.Path(__file__).resolve().parent.parent / 'src'

# So small that a sample takes the reference milliseconds too. A token is a byte.
TINY = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}

# A tensorflow.py that cannot be imported, and leaves a trace.
NO_TENSORFLOW = """
import os
open(os.path.join(os.path.dirname(__file__), 'imported'), 'w').close()
raise RuntimeError('TensorFlow was imported')
"""


# A shell makes what it runs in the background deaf to Ctrl-C, and our commands would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ---- commands ----------------------------------------------------------------------------------


class Command:
    """A script of src/ with its arguments, to be run in a process of its own."""

    def __init__(self, script, *args, env=None):
        """Args: env: environment variables to set; None unsets one."""
        self.arguments = [sys.executable, str(SRC / script)] + [str(arg) for arg in args]
        env = dict(os.environ, PYTHONUNBUFFERED=None, **(env or {}))  # buffered, as users have it
        self.env = {name: str(value) for name, value in env.items() if value is not None}

    def start(self, **options):
        """Returns a subprocess.Popen with all its streams in pipes."""
        streams = dict.fromkeys(['stdin', 'stdout', 'stderr'], subprocess.PIPE)
        return subprocess.Popen(self.arguments, env=self.env, **dict(streams, **options))

    def run(self, stdin='', **options):
        """Runs it to its end with this text as its stdin: returns (status, stdout, stderr)."""
        return finish(self.start(**options), stdin)

    def spawn(self):
        """Returns a pexpect.spawn: the process behind a pseudo-terminal."""
        pexpect = pytest.importorskip('pexpect')
        env = dict(self.env, TERM='xterm', INPUTRC=os.devnull)
        return pexpect.spawn(self.arguments[0], self.arguments[1:], env=env, encoding='utf-8',
                             timeout=120, dimensions=(24, 200))


def finish(process, stdin=''):
    """Waits for a Popen to end: returns (status, stdout, stderr)."""
    try:
        output = process.communicate(stdin.encode('utf-8'), timeout=120)
    finally:
        process.kill()
        process.wait()
    return (process.returncode, *[(stream or b'').decode('utf-8') for stream in output])


@pytest.fixture(scope='session')
def command():
    """Command, by way of pytest, as a conftest.py is not for importing."""
    return Command


@pytest.fixture
def bare(tmp_path):
    """Runs a command where importing TensorFlow fails: returns (status, stdout, stderr)."""
    folder = tmp_path / 'without TensorFlow'
    folder.mkdir()
    (folder / 'tensorflow.py').write_text(NO_TENSORFLOW)

    def run(script, *args, env=None, **options):
        result = Command(script, *args, env=dict(env or {}, PYTHONPATH=folder)).run(**options)
        assert not (folder / 'imported').exists(), 'TensorFlow was imported'
        return result

    return run


@pytest.fixture
def refused(bare):
    """Runs a command that must be refused in one line: returns (status, that line).

    All that is refused so is refused before TensorFlow is imported.
    """
    def run(script, *args, **options):
        status, stdout, stderr = bare(script, *args, **options)
        assert stdout == ''
        assert stderr.startswith(script + ': ')
        assert stderr.count('\n') == 1 and stderr.endswith('\n')
        return status, stderr[len(script) + 2:-1]

    return run


# ---- a model -----------------------------------------------------------------------------------


@pytest.fixture(scope='session')
def tf():
    """TensorFlow 1's interface in graph mode, as src/ uses it."""
    import cli
    tensorflow = cli.import_tensorflow()
    import model  # noqa: F401  (switches to graph mode)
    return tensorflow


@pytest.fixture
def saved(tf):
    """A function from a model directory to its weights, {name: array}, read by TensorFlow."""
    def read(path):
        import checkpoint
        reader = tf.train.load_checkpoint(checkpoint.weights_prefix(str(path)))
        return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}

    return read


@pytest.fixture
def small_disk(tmp_path):
    """A function that makes a folder on a disk of so many kilobytes, which the test may fill."""
    folders = []

    def mount(size):
        folder = tmp_path / ('disk of %d' % size)
        folder.mkdir()
        if shutil.which('mount') is None or subprocess.call(
                ['mount', '-t', 'tmpfs', '-o', 'size=%dk' % size, 'tmpfs', str(folder)],
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

    def encode(self, text):
        return [self._tokens.index(bytes([byte])) for byte in text.encode('utf-8')]

    def decode(self, tokens):
        return b''.join(self._tokens[token] for token in tokens).decode('utf-8', 'replace')

    def samples(self, indices, seed, length, prompt=None, weights=None, gap=1e-4, **options):
        """Returns the texts of these samples of a run, as the reference computes them.

        None of them may hang on a near-tie, of a smaller gap, which rounding decides otherwise.
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
    """A TinyModel, in a folder whose name wants quoting."""
    return TinyModel(tmp_path_factory.mktemp('my models'))
