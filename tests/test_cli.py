"""The command line in process: options, arguments, help, and what every command refuses."""
import dataclasses
import importlib
import inspect
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from typing import Optional, Sequence, Union

import numpy as np
import pytest

import generate_conditional_samples as conditional
import generate_unconditional_samples as unconditional
import interactive_conditional_samples as interactive
from gpt2 import cli, runtime
from gpt2.errors import OptionError, UsageError, UserError
from gpt2.options import PATH, SWITCH, TEXT, TEXTS, Options, choice, number, option, whole
from gpt2.sampling.options import GenerationOptions, SamplingOptions
from helpers import LONG, SRC

pytestmark = pytest.mark.pure

COMMANDS = [importlib.import_module(name) for name in (
    'generate_unconditional_samples', 'generate_conditional_samples',
    'interactive_conditional_samples', 'generate_output_dataset', 'train', 'learn_vocabulary',
    'evaluate', 'convert')]


def function_of(command):
    """Return the function of a command's module: the one that is defined there."""
    function, = [value for value in vars(command).values()
                 if inspect.isfunction(value) and value.__module__ == command.__name__]
    return function


commands = pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command.__name__)
two_commands = pytest.mark.parametrize('command', [unconditional, interactive],
                                       ids=lambda command: command.__name__)


# ---- options -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DemoOptions(Options):
    """One option of each kind."""

    source: str = option('', PATH, 'what to read')
    count: int = option(0, whole(0, 9), 'how many', alias='how_many')
    share: float = option(0.5, number('from 0 to 1', lambda value: 0 <= value <= 1), 'what share')
    letter: str = option('a', choice('a', 'b'), 'which letter')
    text: Optional[str] = option(None, TEXT, 'a text')
    size: Optional[int] = option(None, whole(1), 'how large')
    fast: bool = option(False, SWITCH, 'hurry', alias='quick')
    stop: bool = option(True, SWITCH, 'stop at the end ' * 20)
    words: Union[None, str, Sequence[str]] = option(None, TEXTS, 'texts')


@pytest.mark.parametrize('values', [
    {}, {'count': 9}, {'count': np.int64(3)}, {'share': 0}, {'share': 1}, {'share': 0.25},
    {'share': np.float32(0.5)}, {'letter': 'b'}, {'text': '漢字 🙂'}, {'text': None},
    {'size': 2**31 - 1}, {'fast': True}, {'source': ''}, {'source': SRC}], ids=str)
def test_options_accept(values):
    options = DemoOptions(**values)
    for name, value in values.items():
        assert getattr(options, name) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.count = 1


@pytest.mark.parametrize('name, value, words', [
    ('count', -1, 'whole number from 0 to 9, not -1'), ('count', 10, 'not 10'),
    ('count', 1.0, 'not 1.0'), ('count', True, 'not True'), ('count', '1', "not '1'"),
    ('count', None, 'not None'), ('size', 0, 'from 1 to 2147483647, not 0'),
    ('size', 2**31, 'not 2147483648'), ('share', 1.5, 'a number from 0 to 1, not 1.5'),
    ('share', float('nan'), 'not nan'), ('share', float('inf'), 'not inf'),
    ('share', 10**400, 'not 1000'), ('share', False, 'not False'), ('share', '1', "not '1'"),
    ('share', None, 'not None'), ('share', 1j, 'not 1j'),
    ('letter', 'c', "one of a, b, not 'c'"), ('letter', None, 'not None'), ('text', '', "not ''"),
    ('text', '\udcff', r"UTF-8, and not empty, not '\udcff'"), ('text', 'a\ud800', r'\ud800'),
    ('text', 3, 'not 3'), ('text', b'x', "not b'x'"), ('fast', 1, 'True or False, not 1'),
    ('fast', 'True', "not 'True'"), ('fast', None, 'not None'), ('source', 3, 'a path, not 3'),
    ('source', None, 'not None'), ('letter', 'x' * 10**6, "not 'xxx"), ('words', ('',), "not ''"),
    ('words', ('a', ''), "not ('a', '')")])
def test_options_refuse(name, value, words):
    with pytest.raises(OptionError) as caught:
        DemoOptions(**{name: value})
    assert str(caught.value).startswith(f'{name} must be ')
    assert words in str(caught.value) and len(str(caught.value)) < 150


def test_an_option_error_is_a_usage_error():
    assert issubclass(OptionError, UsageError)
    assert str(OptionError('top_k', 'must be 3')) == 'top_k must be 3'


def test_the_defaults_that_depend_on_the_model():
    options = GenerationOptions().fit_model(n_ctx=32, default_length=16)
    assert (options.keep, options.length) == (16, 16)
    options = GenerationOptions(keep=32, length=99).fit_model(n_ctx=32, default_length=16)
    assert (options.keep, options.length) == (32, 99)
    assert GenerationOptions().fit_model(n_ctx=1, default_length=1).keep == 1
    with pytest.raises(OptionError, match='from 1 to 32, the window of the model, not 33'):
        GenerationOptions(keep=33).fit_model(n_ctx=32, default_length=16)
    SamplingOptions(top_k=257).check_vocabulary(257)
    with pytest.raises(OptionError, match='from 0 to 257, the size of the vocabulary, not 258'):
        SamplingOptions(top_k=258).check_vocabulary(257)


def test_no_two_runs_draw_the_same_seed():
    seeds = {GenerationOptions().with_seed().seed for _ in range(20)}
    assert len(seeds) == 20
    assert GenerationOptions(seed=0).with_seed().seed == 0


# ---- arguments ---------------------------------------------------------------------------------


def demo(source, count=0, share=0.5, fast=False, *, letter='a', text=None, size=None, stop=True):
    """Print the arguments."""
    options = DemoOptions(source=source, count=count, share=share, fast=fast, letter=letter,
                          text=text, size=size, stop=stop)
    changed = {name: value for name, value in dataclasses.asdict(options).items()
               if value != DemoOptions.__dataclass_fields__[name].default}
    print(json.dumps(changed))


# Command lines, and the arguments that differ from the defaults. A list is already split.
COMMAND_LINES = [
    ('x', {'source': 'x'}),
    ('x --count 3', {'source': 'x', 'count': 3}),
    ('x --count=3', {'source': 'x', 'count': 3}),
    ('--count 3 x', {'source': 'x', 'count': 3}),
    ('x 3', {'source': 'x', 'count': 3}),
    ('x 3 0.25 True', {'source': 'x', 'count': 3, 'share': 0.25, 'fast': True}),
    ('--source x 3', {'source': 'x', 'count': 3}),
    ('x --count=5 --count 3', {'source': 'x', 'count': 3}),  # the last one holds
    ('x --how_many 3', {'source': 'x', 'count': 3}),
    ('x --how-many=3', {'source': 'x', 'count': 3}),
    ('x --count 5 --how_many=3', {'source': 'x', 'count': 3}),
    ('x --how_many=3 --count 5', {'source': 'x', 'count': 5}),
    ('x --count 007', {'source': 'x', 'count': 7}),
    ('x --count +7', {'source': 'x', 'count': 7}),
    ('x --share .25', {'source': 'x', 'share': 0.25}),
    ('x --share 25e-2', {'source': 'x', 'share': 0.25}),
    ('x --share -0', {'source': 'x', 'share': 0}),
    ('x --fast', {'source': 'x', 'fast': True}),
    ('--fast x', {'source': 'x', 'fast': True}),
    ('--quick x', {'source': 'x', 'fast': True}),
    ('x --nostop', {'source': 'x', 'stop': False}),
    ('--nostop x', {'source': 'x', 'stop': False}),
    ('--stop False x', {'source': 'x', 'stop': False}),
    ('x --stop=False', {'source': 'x', 'stop': False}),
    ('x --nostop --stop', {'source': 'x'}),
    ('x --nostop --stop True', {'source': 'x'}),
    ('x --stop --nostop', {'source': 'x', 'stop': False}),
    ('x --fast --nofast', {'source': 'x'}),
    ('x --fast --text y', {'source': 'x', 'fast': True, 'text': 'y'}),
    ('x --text -h', {'source': 'x', 'text': '-h'}),  # not the help
    ('x --text=-h', {'source': 'x', 'text': '-h'}),
    ('x --text=--help', {'source': 'x', 'text': '--help'}),
    ('x --text=--count=3', {'source': 'x', 'text': '--count=3'}),
    ('x --text a=b', {'source': 'x', 'text': 'a=b'}),
    ('x --text==b=', {'source': 'x', 'text': '=b='}),
    ('x --text -', {'source': 'x', 'text': '-'}),
    ('x --text --', {'source': 'x', 'text': '--'}),
    ('x --text=--', {'source': 'x', 'text': '--'}),
    ('x --text -1', {'source': 'x', 'text': '-1'}),
    ('-', {'source': '-'}),
    ('-3', {'source': '-3'}),
    ('- 3', {'source': '-', 'count': 3}),
    ('=3', {'source': '=3'}),
    ([''], {}),
    (['x y', '--text= z\n'], {'source': 'x y', 'text': ' z\n'}),
    (['x', '--text', '漢字 🙂'], {'source': 'x', 'text': '漢字 🙂'}),
    *[([text], {'source': text}) for text in (
        '774', '1e5', '1.0', 'a,b', '[1]', '(1,)', '{}', '{"a": 1}', "'x'", '"', 'None', 'True',
        '1_000', '0x10', '#', '\\', '~' * 3000, '(' * 300, '*', 'é', "it's", 'demo', 'fast')],
]


@pytest.mark.parametrize('arguments, expected', COMMAND_LINES,
                         ids=lambda value: str(value)[:40] if not isinstance(value, dict) else '')
def test_a_command_line(call, arguments, expected):
    argv = arguments.split() if isinstance(arguments, str) else arguments
    status, stdout, stderr = call(demo, [DemoOptions], *argv)
    assert (status, stderr) == (0, '')
    assert json.loads(stdout) == expected


# Command lines, and their errors.
WRONG_COMMAND_LINES = [
    ('', 'SOURCE is missing; see --help'),
    ('--count 3', 'SOURCE is missing; see --help'),
    ('--source', '--source needs a value; write --source=VALUE if it begins with --'),
    ('x --text --fast', '--text needs a value; write --text=VALUE if it begins with --'),
    ('x --text', '--text needs a value; write --text=VALUE if it begins with --'),
    ('x --how-many', '--how-many needs a value; write --how-many=VALUE if it begins with --'),
    ('x 3 0.5 True y', "unexpected argument 'y'; see --help"),
    ('x 3 0.5 True -1', "unexpected argument '-1'; see --help"),
    ('x 3 0.5 True y z', "unexpected argument 'y'; see --help"),
    ('x --cuont 3', 'there is no flag --cuont; did you mean --count?'),
    ('x --Count 3', 'there is no flag --Count; did you mean --count?'),
    ('x --how_man=3', 'there is no flag --how_man; did you mean --how_many?'),
    ('x --no-stop', 'there is no flag --no-stop; did you mean --stop?'),
    ('x --nostop=False', 'there is no flag --nostop; did you mean --stop?'),
    ('x --nocount', 'there is no flag --nocount; did you mean --count?'),
    ('x -count 3', 'there is no flag -count; did you mean --count?'),
    ('x ---count 3', 'there is no flag ---count; did you mean --count?'),
    ('x -c 3', 'there is no flag -c; see --help'),
    ('x -c=3', 'there is no flag -c; see --help'),
    ('x -x', 'there is no flag -x; see --help'),
    ('-h=3 x', 'there is no flag -h; see --help'),
    ('x --unheard', 'there is no flag --unheard; see --help'),
    ('x --', 'there is no flag --; see --help'),
    ('x -- --trace', 'there is no flag --; see --help'),
    ('x -- --help=3', 'there is no flag --; see --help'),
    ('x --=3', 'there is no flag --; see --help'),
    ('x --trace', 'there is no flag --trace; see --help'),
    ('x --completion', 'there is no flag --completion; see --help'),
    ('x --count -1', '--count must be a whole number from 0 to 9, not -1'),
    ('x --count=', "--count must be a whole number from 0 to 9, not ''"),
    ('x --count 1e0', "--count must be a whole number from 0 to 9, not '1e0'"),
    ('x --count 0x1', "--count must be a whole number from 0 to 9, not '0x1'"),
    ('x --count ٣', "--count must be a whole number from 0 to 9, not '٣'"),
    ('x --count 1_0', "--count must be a whole number from 0 to 9, not '1_0'"),
    ('x --count True', "--count must be a whole number from 0 to 9, not 'True'"),
    ('x --count [1]', "--count must be a whole number from 0 to 9, not '[1]'"),
    ('x --count -h', "--count must be a whole number from 0 to 9, not '-h'"),
    (['x', '--count', '3\n'], r"--count must be a whole number from 0 to 9, not '3\n'"),
    (['x', '--count=1if 1else 2'],
     "--count must be a whole number from 0 to 9, not '1if 1else 2'"),
    ('x --share nan', '--share must be a number from 0 to 1, not nan'),
    ('x --share -inf', '--share must be a number from 0 to 1, not -inf'),
    ('x --share 1e999', '--share must be a number from 0 to 1, not inf'),
    ('x --share 1j', "--share must be a number from 0 to 1, not '1j'"),
    ('x --share (1,2)', "--share must be a number from 0 to 1, not '(1,2)'"),
    ('x --letter c', "--letter must be one of a, b, not 'c'"),
    ('x --letter=', "--letter must be one of a, b, not ''"),
    ('x --text=', "--text must be a text in UTF-8, and not empty, not ''"),
    (['x', '--text', '\udcff'], r"--text must be a text in UTF-8, and not empty, not '\udcff'"),
    ('x --stop=no', "--stop must be True or False, not 'no'"),
    ('x --stop=', "--stop must be True or False, not ''"),
    ('x --stop=true', "--stop must be True or False, not 'true'"),
    ('x 1 0.5 no', "unexpected argument 'no'; see --help"),
    ('x --stop no', "unexpected argument 'no'; see --help"),
    ('x y', "unexpected argument 'y'; see --help"),
    ('x --source y', "unexpected argument 'x'; see --help"),
    (['x', '--a\nb', '1'], 'there is no flag --a b; see --help'),
]


@pytest.mark.parametrize('arguments, message', WRONG_COMMAND_LINES, ids=lambda value: str(value))
def test_a_wrong_command_line(refuse, arguments, message):
    argv = arguments.split(' ') if isinstance(arguments, str) else arguments
    assert refuse(demo, [DemoOptions], *filter(None, argv)) == (2, message)


@pytest.mark.parametrize('text', [
    '1' + '0' * 310, '0x' + '1' * 5000, '9' * 5000, '~' * 3000 + '1', '(' * 300 + '1' + ')' * 300,
    '-' * 3000 + '1', '[' * 3000, '1.' + '0' * 310, '1e' + '9' * 50, '0' * 41, "'", '\\',
    '__import__("os")', '3 if 1 else 4', '3 is 4', '{', '"""', '\x1b[2J'],
                         ids=lambda text: text[:8])
def test_numbers_are_read_as_numbers_and_no_literals(refuse, text):
    for flag in ('count', 'share', 'size'):
        status, message = refuse(demo, [DemoOptions], 'x', f'--{flag}={text}')
        assert status == 2 and message.startswith(f'--{flag} must be a ') and len(message) < 150


@pytest.mark.parametrize('arguments', [
    '--help', '-h', 'x --help', '--help x', 'x --count 3 --help', '--count --help', 'x -h',
    '-h x', '--unheard --help', 'x y z --help', '-- --help', '--fast -h', '--count abc --help'])
def test_help_wherever_it_is_asked_for(call, arguments):
    status, stdout, stderr = call(demo, [DemoOptions], *arguments.split())
    assert (status, stderr) == (0, '') and stdout.startswith('Print the arguments.\n\nSOURCE ')


def test_random_command_lines(call):
    """Whatever is in a command line, it ends with status 0, or with 2 and one line."""
    words = ['x', '-', '--', '', '-1', '3', '0.5', 'True', 'False', '=', '-h', '--help', '--fast',
             '--nofast', '--stop', '--nostop', '--stop=False', '--count', '--count=3', '--count=',
             '--text', '--text=-h', '--share', '--share=1', '-x', '--trace', '--how-many',
             '--letter=b', 'None', '(', '~', '1' * 99, "'", '\udcff', '--text=\udcff', '-s=1',
             '--separator', '--=', '---', '-=', 'é']  # no NUL: no process can have one
    shuffled = random.Random(0)
    for _ in range(20000 if LONG else 400):
        argv = [shuffled.choice(words) for _ in range(shuffled.randrange(7))]
        status, stdout, stderr = call(demo, [DemoOptions], *argv)
        if status == 0:
            assert stderr == '' and stdout.startswith(('{', 'Print the arguments.'))
        else:
            assert (status, stdout, stderr.count('\n')) == (2, '', 1), argv
            assert re.match(r'test_cli.py: (--\w+ must be |--[\w-]+ needs a value|there is no flag|'
                            r'unexpected argument|SOURCE is missing)', stderr), argv


def test_what_an_error_of_the_system_becomes(call):
    def fail(source):
        """Fail."""
        print('a line')
        raise FileNotFoundError(2, 'No such file or directory', source)

    status, _, stderr = call(fail, [DemoOptions], 'x\ny')
    assert (status, stderr) == (
        1, "test_cli.py: [Errno 2] No such file or directory: 'x\\ny'\n")


def test_an_error_shows_no_control_characters_and_is_not_long(call):
    def fail(source):
        """Fail."""
        raise UserError(source)

    status, _, stderr = call(fail, [DemoOptions], '\x1b[2J\x07\ud800\u202e ü\udcff')
    assert (status, stderr) == (1, 'test_cli.py: \\x1b[2J\\x07\\ud800\\u202e ü\udcff\n')
    status, _, stderr = call(fail, [DemoOptions], 'x' * 10**6)
    assert status == 1 and stderr.count('\n') == 1 and len(stderr) < 1100


@pytest.mark.parametrize('error, words', [
    (MemoryError(), 'too little memory'), (RuntimeError("can't start new thread"), 'threads')])
def test_what_the_machine_lacks_is_one_line(call, error, words):
    def fail():
        """Fail."""
        raise error

    status, _, stderr = call(fail, [DemoOptions])
    assert status == 1 and stderr.count('\n') == 1 and words in stderr


def test_other_errors_are_bugs_and_keep_their_traceback(call):
    def fail():
        """Fail."""
        raise RuntimeError('a bug')

    with pytest.raises(RuntimeError, match='a bug'):
        call(fail, [DemoOptions])


def test_ctrl_c_ends_a_command_without_a_word(call):
    def interrupt():
        """Interrupt."""
        print('a line')
        raise KeyboardInterrupt

    assert call(interrupt, []) == (130, 'a line\n', '')


@pytest.mark.skipif(sys.version_info < (3, 8), reason='Python 3.7 has no sys.unraisablehook')
def test_ctrl_c_within_a_destructor_is_not_lost():
    code = """
import os, signal
from gpt2 import cli

class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

def command():
    \'\'\'Delete a thing.\'\'\'
    thing = Thing()
    del thing
    while True:
        pass

cli.run(command, argv=[])
"""
    done = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(SRC)),
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b'', b'')


@pytest.mark.skipif(sys.version_info < (3, 8), reason='Python 3.7 has no sys.unraisablehook')
def test_after_ctrl_c_the_destructor_of_something_half_made_is_silent():
    code = """
from gpt2 import cli

class HalfMade:
    def __del__(self):
        raise AttributeError('it lacks a part')

half_made = HalfMade()  # which lives until Python ends

def command():
    '''Be interrupted.'''
    cli.interrupt(None, None)

cli.run(command, argv=[])
"""
    done = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(SRC)),
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b'', b'')


@pytest.mark.parametrize('error', ['KeyboardInterrupt', 'SystemError'])
def test_ctrl_c_that_a_c_function_prints_is_not_lost(error):
    code = f"""
import ctypes, time
from gpt2 import cli

@ctypes.CFUNCTYPE(None)
def callback():
    try:
        cli.interrupt(None, None)
    except KeyboardInterrupt:
        api = ctypes.pythonapi
        api.PyErr_SetString(ctypes.py_object({error}), b'from a C function')
        api.PyErr_Print()

def command():
    '''Be interrupted.'''
    callback()
    time.sleep(50)

cli.run(command, argv=[])
"""
    done = subprocess.run([sys.executable, '-c', code], env=dict(os.environ, PYTHONPATH=str(SRC)),
                          capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b'', b'')


# ---- the flags of the commands -----------------------------------------------------------------

DEFAULTS_OF_COMMANDS = {('interactive_conditional_samples', 'stop'): False}


def options_of(command):
    """Return {name: field} of a command: of the first of its classes that has the field."""
    if not hasattr(command, 'OPTIONS'):
        pytest.skip('this command is being rewritten')
    return {field.name: field for cls in reversed(command.OPTIONS)
            for field in dataclasses.fields(cls)}


@commands
def test_every_flag_has_an_option_and_its_default(command):
    options = options_of(command)
    for name, parameter in inspect.signature(function_of(command)).parameters.items():
        default = options[name].default
        default = DEFAULTS_OF_COMMANDS.get((command.__name__, name), default)
        if parameter.default is parameter.empty or default is dataclasses.MISSING:
            assert parameter.default in (parameter.empty, None)
        else:
            assert parameter.default == default and type(parameter.default) is type(default), name


@commands
def test_names_of_flags_are_unique(command):
    options = options_of(command)
    for name in inspect.signature(function_of(command)).parameters:
        same = [field for cls in command.OPTIONS for field in dataclasses.fields(cls)
                if field.name == name]
        assert same == [options[name]], name
    aliases = [field.metadata['alias'] for field in options.values() if field.metadata['alias']]
    assert len(set(aliases) | set(options)) == len(aliases) + len(options)


@commands
def test_the_help_of_a_command(call, command):
    function, options = function_of(command), options_of(command)
    status, stdout, stderr = call(function, command.OPTIONS, '--seed', 1, '--help')
    assert (status, stderr) == (0, '')
    assert stdout.startswith(inspect.getdoc(function) + '\n\n')
    assert f'python3 src/{command.__name__}.py ' in stdout
    assert command.__name__ == 'convert' or 'Ctrl-C' in stdout
    assert all(len(line) <= 100 for line in stdout.splitlines())
    flags = stdout[len(inspect.getdoc(function)) + 2:]
    paragraphs = {paragraph.split()[0]: ' '.join(paragraph.split()[1:])
                  for paragraph in re.split(r'\n(?! )', flags.rstrip('\n'))}
    parameters = inspect.signature(function).parameters.values()
    assert list(paragraphs) == [
        parameter.name.upper() if parameter.default is parameter.empty else f'--{parameter.name}'
        for parameter in parameters]
    for parameter, paragraph in zip(parameters, paragraphs.values()):
        metadata = options[parameter.name].metadata
        alias = f'; also --{metadata["alias"]}' if metadata['alias'] else ''
        default = {True: f' (default; --no{parameter.name} turns it off)', False: ''}[
            parameter.default] if isinstance(parameter.default, bool) else (
            f' (default: {parameter.default})')
        if parameter.default in (parameter.empty, None):
            default = ''
        assert paragraph == metadata['help'] + default + alias


def test_the_help_of_a_flag():
    options = {field.name: field for field in dataclasses.fields(DemoOptions)}
    lines = cli.help_text(demo, options).splitlines()
    assert lines[:6] == [
        'Print the arguments.', '', 'SOURCE    what to read',
        '--count   how many (default: 0); also --how_many',
        '--share   what share (default: 0.5)', '--fast    hurry; also --quick']
    assert lines[9].startswith('--stop    stop at the end stop at')
    assert lines[-1].startswith('          the end stop at')
    assert lines[-1].endswith('stop at the end  (default; --nostop turns it off)')


def test_the_historic_flags_and_defaults():
    """In the historic order, as they can also be given by position."""
    historic = {'model_name': '124M', 'seed': None, 'nsamples': 1, 'batch_size': 1, 'length': None,
                'temperature': 1, 'top_k': 0, 'top_p': 1, 'models_dir': 'models'}
    for command, nsamples in [(interactive, 1), (unconditional, 0), (conditional, 1)]:
        parameters = inspect.signature(function_of(command)).parameters
        assert {name: parameters[name].default for name in list(parameters)[:9]} == dict(
            historic, nsamples=nsamples)
        assert list(parameters)[:9] == list(historic)


# ---- what the sampling commands refuse ---------------------------------------------------------

# (arguments, words that the message must have)
BAD_FLAGS = [
    ('--length 0', '--length 1'),
    ('--max_new_tokens 0', '--length 1'),
    ('--length -1', '--length -1'),
    ('--length abc', "--length 'abc'"),
    ('--length 1.5', '--length 1.5'),
    ('--length=', '--length'),
    ('--length True', '--length True'),
    ('--length [3]', '--length [3]'),
    ('--keep 0', '--keep 1'),
    ('--keep 33', '--keep 32 33'),
    ('--stop_at=', '--stop_at'),
    ('--stop_at \udcff', '--stop_at UTF-8'),
    ('--stop yes', "'yes'"),
    ('--stop=1', "--stop '1'"),
    ('--batch_size 0', '--batch_size 1'),
    ('--batch_size -3', '--batch_size -3'),
    ('--batch_size two', "--batch_size 'two'"),
    ('--batch_size 2.0', '--batch_size 2.0'),
    ('--batch_size 1000000000000', '--batch_size 2147483647'),
    ('--nsamples -1', '--nsamples -1'),
    ('--nsamples many', "--nsamples 'many'"),
    ('--nsamples 1e3', '--nsamples'),
    ('--top_k -1', '--top_k -1'),
    ('--top_k 2.5', '--top_k 2.5'),
    ('--top_k 258', '--top_k 257 258'),
    ('--top_k all', "--top_k 'all'"),
    ('--top_p 1.5', '--top_p 1.5'),
    ('--top_p -1', '--top_p -1'),
    ('--top_p -0.1', '--top_p -0.1'),
    ('--top_p nan', '--top_p nan'),
    ('--top_p 1e999', '--top_p inf'),
    ('--top_p p', "--top_p 'p'"),
    ('--top_p False', '--top_p False'),
    ('--temperature nan', '--temperature nan'),
    ('--temperature NaN', '--temperature nan'),
    ('--temperature inf', '--temperature inf'),
    ('--temperature -inf', '--temperature -inf'),
    ('--temperature 1e999', '--temperature inf'),
    ('--temperature -0.5', '--temperature -0.5'),
    ('--temperature -.5', '--temperature -0.5'),
    ('--temperature=hot', "--temperature 'hot'"),
    ('--temperature (1,2)', '--temperature'),
    ('--seed -1', '--seed -1'),
    ('--seed 1.5', '--seed 1.5'),
    ('--seed abc', "--seed 'abc'"),
    ('--seed True', '--seed True'),
    ('--seed 18446744073709551616', '--seed 18446744073709551615'),
    ('--engine fast', "--engine graph lite 'fast'"),
    ('--dtype float64', "--dtype float32 bfloat16 float16 int8 int4 'float64'"),
    ('--engine graph --dtype int8', '--dtype int8 engine'),
    ('--engine graph --dtype int4', '--dtype int4 engine'),
    ('--engine', '--engine value'),
    ('--sede 3', '--sede --seed'),
    ('--temprature 1', '--temprature --temperature'),
    ('--top-q 1', '--top-q --top'),
    ('--nsample 1', '--nsample --nsamples'),
    ('--model 124M', '--model --model'),
    ('--Length 3', '--Length --length'),
    ('--max_new_token 3', '--max_new_token --max_new_tokens'),
    ('--unheard_of', '--unheard_of --help'),
    ('--noseed', '--noseed'),
    ('--trace', '--trace'),
    ('-x', '-x --help'),
    ('-n 3', '-n'),
    ('--seed', '--seed value'),
    ('--length --seed 3', '--length value'),
    ('--models_dir', '--models_dir value'),
    ('1 2 3 4 5 6 7 8 9 auto float32 extra', "'extra'"),
    ('1 2 3 4 5 6 7 8 9 auto float32 True', "'True'"),
]


@two_commands
@pytest.mark.parametrize('arguments, words', BAD_FLAGS, ids=lambda value: value)
def test_bad_flags_are_refused_in_one_line(refuse, unloaded, arguments, words, command):
    flags = [] if arguments[0] != '-' or arguments == '--models_dir' else unloaded
    status, message = refuse(function_of(command), command.OPTIONS, *flags, *arguments.split())
    assert status == 2
    for word in words.split():
        assert word in message


@pytest.mark.parametrize('command, arguments, words', [
    (interactive, '--nsamples 0', '--nsamples 1'),
    (interactive, '--logprobs', '--logprobs'),
    (unconditional, '--first_sample -1', '--first_sample'),
    (unconditional, '--logprobs', '--logprobs .jsonl'),
    (unconditional, '--logprobs --output a.txt', '--logprobs .jsonl'),
    (unconditional, '--output samples.csv', '--output .txt .jsonl samples.csv'),
    (unconditional, '--output=', '--output .txt .jsonl'),
    (unconditional, '--output .', '--output .txt .jsonl'),
    (unconditional, '--prompts a.txt', '--prompts'),
    (unconditional, '--logprobs=0 --output a.jsonl', '--logprobs 1 100 0'),
    (unconditional, '--logprobs=many', '--logprobs 1 100 many'),
    (unconditional, 'ROMEO:', 'unexpected ROMEO: --help'),
    (unconditional, '--model 1M', '--model_name'),
    (unconditional, '--stop_at=', '--stop_at'),
    (conditional, '', '--prompt missing --prompts'),
    (conditional, '--prompts', '--prompts value'),
    (conditional, '--prompts=', '--prompt missing'),
    (conditional, '--prompt=', '--prompt empty'),
    (conditional, '--prompt a --prompt=', '--prompt empty'),
    (conditional, '--prompt a --prompts b.txt', '--prompt --prompts'),
    (conditional, 'ROMEO:', 'ROMEO: --prompt'),
    (conditional, '--prompts=- --nsamples 0', '--nsamples'),
], ids=lambda value: getattr(value, '__name__', value))
def test_bad_flags_of_one_command(refuse, unloaded, tmp_path, monkeypatch, command, arguments,
                                  words):
    monkeypatch.chdir(tmp_path)
    status, message = refuse(function_of(command), command.OPTIONS, *unloaded, *arguments.split())
    assert status == 2
    for word in words.split():
        assert word in message
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('command, arguments, words', [
    (unconditional, '--output nowhere/a.txt', 'nowhere/a.txt: there is no folder'),
    (unconditional, '--output nowhere/a.jsonl', 'nowhere/a.jsonl: there is no folder'),
    (conditional, '--prompts nothing.txt', 'nothing.txt: No such file or directory'),
    (conditional, '--prompts nothing.csv', 'nothing.csv: No such file or directory'),
], ids=lambda value: getattr(value, '__name__', value))
def test_files_that_do_not_exist(refuse, unloaded, tmp_path, monkeypatch, command, arguments,
                                 words):
    monkeypatch.chdir(tmp_path)
    status, message = refuse(function_of(command), command.OPTIONS, *unloaded, *arguments.split())
    assert status == 1 and words in message


# ---- models that do not exist ------------------------------------------------------------------


@two_commands
@pytest.mark.parametrize('name', ['124M', '774', '1,2', "it's", '-', '--', '[tiny]', 'Ünï', '',
                                  '1e5', '-h', 'a\nb', '\udcff', '(' * 300],
                         ids=lambda name: ascii(name)[:20])
def test_a_model_that_does_not_exist(refuse, unloaded, command, name):
    models_dir = unloaded[-1]
    status, message = refuse(function_of(command), command.OPTIONS, '--models_dir', models_dir,
                             '--model_name', name)
    assert status == 1
    assert 'python3 download_model.py' in message
    # The only one there; `[` and `]` in the name are not read as a pattern.
    assert re.search(r'\btiny\b', message.replace(f'{models_dir}/tiny', ''))
    assert ' '.join(name.split()) in message


@pytest.mark.parametrize('name', ['124M', '355M', '774M', '1558M'])
def test_a_released_model_is_one_command_away(refuse, unloaded, name):
    _, message = refuse(unconditional.sample_model, unconditional.OPTIONS, '--models_dir',
                        unloaded[-1], '--model_name', name)
    assert message.endswith(f'python3 download_model.py {name}')


def test_a_models_dir_that_does_not_exist(refuse, tmp_path):
    status, message = refuse(unconditional.sample_model, unconditional.OPTIONS, '--models_dir',
                             tmp_path / 'nowhere')
    assert status == 1
    assert str(tmp_path / 'nowhere') in message and 'python3 download_model.py 124M' in message


# ---- Ctrl-C ------------------------------------------------------------------------------------


@pytest.mark.parametrize('error', [RuntimeError, ValueError, KeyboardInterrupt], ids=str)
def test_an_error_that_ctrl_c_became_is_ctrl_c(call, monkeypatch, error):
    """Libraries in C may raise what they like after a KeyboardInterrupt. Without one, it shows."""
    def command():
        try:
            if interrupts:
                os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise error

    for interrupts, seconds in ((False, 5), (True, 5), (True, 0), (False, 5)):
        monkeypatch.setattr(cli, 'AFTERMATH', seconds)  # 0: it came long before
        if interrupts and seconds or error is KeyboardInterrupt:
            assert call(command, ()) == (130, '', '')
        else:
            with pytest.raises(error):
                call(command, ())


# ---- runtime -----------------------------------------------------------------------------------


def test_stderr_is_silent_for_a_while(capfd):
    os.write(2, b'before\n')
    with runtime.silent_stderr():
        os.write(2, b'hidden\n')
    with pytest.raises(ValueError):
        with runtime.silent_stderr():
            os.write(2, b'hidden\n')
            raise ValueError
    os.write(2, b'after\n')
    assert capfd.readouterr().err == 'before\nafter\n'


def test_ctrl_c_ends_the_process_at_once_while_tensorflow_is_imported():
    before = signal.getsignal(signal.SIGINT)
    with runtime.default_sigint():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(ImportError):
        with runtime.default_sigint():
            raise ImportError
    assert signal.getsignal(signal.SIGINT) == before


def test_memory_is_not_asked_of_this_machine_if_a_gpu_may_have_it(monkeypatch):
    monkeypatch.setattr(runtime, 'available_memory', lambda: 10)
    monkeypatch.setattr(runtime, 'has_gpu', lambda: False)
    runtime.require_memory(10)
    with pytest.raises(MemoryError):
        runtime.require_memory(11)
    monkeypatch.setattr(runtime, 'has_gpu', lambda: True)
    runtime.require_memory(11)


def test_tensorflow_may_be_imported_in_any_thread():
    entered = []

    def enter():
        with runtime.default_sigint():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]


def test_processors_are_those_of_this_process():
    assert 1 <= runtime.processors() <= os.cpu_count()


def test_tensorflow_that_is_missing_is_reported(monkeypatch, tmp_path):
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("no such\\nthing")')
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'tensorflow']:
        monkeypatch.delitem(sys.modules, name)
    with warnings.catch_warnings(), pytest.raises(
            runtime.UserError, match='pip install -r requirements.txt'):
        runtime.import_tensorflow.__wrapped__()
