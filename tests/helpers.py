"""What several test files share and that needs no fixture: paths, commands, statistics, peers."""
import contextlib
import io
import math
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import pytest

SRC = pathlib.Path(__file__).resolve().parent.parent / 'src'
ONE_M = SRC.parent / 'models' / '1M'
DATA = os.environ.get('GPT2_TEST_DATA')  # folder with the released vocabulary and real texts
LONG = os.environ.get('GPT2_TEST_LONG') == '1'

needs_data = pytest.mark.skipif(not DATA, reason='needs real texts: set GPT2_TEST_DATA')
only_long = pytest.mark.skipif(not LONG, reason='takes long: set GPT2_TEST_LONG=1')


# ---- commands ----------------------------------------------------------------------------------


class Command:
    """A script of src/ with its arguments, to be run in its own process."""

    def __init__(self, script, *args, env=None):
        """Args: env: environment variables to set; None unsets one."""
        self.arguments = [sys.executable, str(SRC / script), *map(str, args)]
        env = dict(os.environ, PYTHONUNBUFFERED=None, **(env or {}))  # buffered, as for users
        self.env = {name: str(value) for name, value in env.items() if value is not None}

    def start(self, **options):
        """Return a subprocess.Popen with all its streams in pipes."""
        streams = dict.fromkeys(['stdin', 'stdout', 'stderr'], subprocess.PIPE)
        return subprocess.Popen(self.arguments, env=self.env, **dict(streams, **options))

    def run(self, stdin='', **options):
        """Run the command to its end with this text as stdin; return (status, stdout, stderr)."""
        return finish(self.start(**options), stdin)

    def spawn(self):
        """Return a pexpect.spawn: the process behind a pseudo-terminal."""
        pexpect = pytest.importorskip('pexpect')
        env = dict(self.env, TERM='xterm', INPUTRC=os.devnull)
        return pexpect.spawn(self.arguments[0], self.arguments[1:], env=env, encoding='utf-8',
                             timeout=120, dimensions=(24, 200))


class Terminal(io.TextIOWrapper):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def call(function, option_classes, *argv, stdin='', terminal=False):
    """Run a command's function in this process: return (status, stdout, stderr).

    call(train.train, train.OPTIONS, 'text.txt', '--steps', 10, stdin='')

    Only what Python writes is returned: what libraries written in C write is for `Command`.
    With terminal=True, stdout claims to be a terminal.
    """
    from gpt2 import cli
    stdin = stdin if isinstance(stdin, bytes) else stdin.encode('utf-8')
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, \
            contextlib.ExitStack() as patches:
        def patch(name, value):
            patches.enter_context(mock.patch.object(sys, name, value))
        patch('argv', [f'{function.__module__}.py'])
        patch('stdin', io.TextIOWrapper(io.BytesIO(stdin)))
        for name, file, kind in [('stdout', stdout, Terminal if terminal else io.TextIOWrapper),
                                 ('stderr', stderr, io.TextIOWrapper)]:
            patch(name, kind(open(os.dup(file.fileno()), 'wb')))
        status = 0
        try:
            cli.run(function, *option_classes, argv=[str(argument) for argument in argv])
        except SystemExit as error:
            status = error.code
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # as it is in tests
        sys.stdout.flush()
        sys.stderr.flush()
        return (status, *[read_all(file) for file in (stdout, stderr)])


def read_all(file):
    """Return the UTF-8 text of an open binary file."""
    file.seek(0)
    return file.read().decode('utf-8', 'surrogateescape')


def finish(process, stdin=''):
    """Wait for a Popen to end; return (status, stdout, stderr)."""
    try:
        output = process.communicate(stdin.encode('utf-8'), timeout=120)
    finally:
        process.kill()
        process.wait()
    return (process.returncode, *[(stream or b'').decode('utf-8') for stream in output])


def numbered(texts, first=1):
    """Return texts in the output format of the commands: each below a line with its number."""
    return ''.join('=' * 40 + f' SAMPLE {number} ' + '=' * 40 + '\n' + text + '\n'
                   for number, text in enumerate(texts, first))


def contents(folder):
    """Return the files of a folder: name -> bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def file_names(path):
    """Return the names of what is in a folder, sorted."""
    return sorted(entry.name for entry in path.iterdir())


@contextlib.contextmanager
def limit_file_size(limit):
    """Let writes beyond this size fail, as on a full disk."""
    resource = pytest.importorskip('resource')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


# ---- statistics --------------------------------------------------------------------------------


def chi_square(counts, probabilities):
    """Return Pearson's statistic over the possible outcomes; the others must not occur."""
    counts, probabilities = np.ravel(counts), np.ravel(probabilities)
    assert not counts[probabilities == 0].any()
    expected = counts.sum() * probabilities[probabilities > 0]
    assert expected.min() > 5
    return float(np.sum((counts[probabilities > 0] - expected)**2 / expected))


def chi_square_bound(freedom, z=3.719):
    """Return the quantile of chi-square at the normal quantile z, by default 0.9999.

    Wilson and Hilferty, "The distribution of chi-square", PNAS 17 (1931): the cube root of
    chi-square / freedom is nearly normal, with mean 1 - a and variance a for a = 2 / (9 freedom).
    This far out it is slightly too large for few degrees of freedom, by 1 % at 5.
    """
    a = 2 / (9 * freedom)
    return freedom * (1 - a + z * math.sqrt(a))**3


def log_softmax(logits):
    """Return the log probabilities of logits [n_vocab]."""
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


# ---- peers -------------------------------------------------------------------------------------


def huggingface_logits(weights, hparams, tokens):
    """Return the float64 logits [tokens, n_vocab] of transformers' GPT-2 with these weights."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(
        vocab_size=hparams['n_vocab'], n_positions=hparams['n_ctx'], n_embd=hparams['n_embd'],
        n_head=hparams['n_head'], n_layer=hparams['n_layer'], bos_token_id=0, eos_token_id=0)
    assert config.activation_function == 'gelu_new' and config.layer_norm_epsilon == 1e-5
    state = {}
    for name, w in weights.items():
        parts = name.split('/')[1:]
        if parts[0] in ('wte', 'wpe'):
            parts.append('weight')
        else:
            parts[-1] = {'g': 'weight', 'b': 'bias', 'w': 'weight'}[parts[-1]]
        if parts[0][1:].isdigit():
            parts[:1] = ['h', parts[0][1:]]
        w = np.asarray(w, np.float64)
        state['.'.join(['transformer'] + parts)] = torch.tensor(w[0] if w.ndim == 3 else w)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ['lm_head.weight'] and not missing.unexpected_keys
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0].numpy()
