"""What the scripts share as commands: arguments, errors, interruption, and a quiet TensorFlow.

Everything here runs before TensorFlow is imported, so that a mistake is answered at once.
"""

import contextlib
import difflib
import functools
import inspect
import math
import numbers
import os
import re
import secrets
import signal
import sys
import warnings

import fire

from checkpoint import ModelError

# NumPy reads this when it is imported. Its threads go on spinning after a product, and would take
# the processors from those of the lite engine, which has threads of its own for attention.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')


class UserError(Exception):
    """Something the user can put right, in one line that says how; the command exits with 1."""


class UsageError(UserError):
    """An argument that cannot be used; the command exits with 2."""


def run(function):
    """Runs a script's function as its command line, a flag for each parameter.

    A parameter with a text as its default, or annotated with str, is a text flag: its value is
    taken as it stands. Any other value is read as a Python literal.
    """
    open_streams()
    try:
        arguments = parse(function, sys.argv[1:])
        if arguments is None:
            print(inspect.getdoc(function))
        else:
            text_flags = {name: str for name in parameters(function) if is_text(function, name)}
            fire.Fire(fire.decorators.SetParseFns(**text_flags)(function), command=arguments)
        sys.stdout.flush()
    except (UserError, ModelError) as error:
        fail(error, 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # What is still buffered must go somewhere when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader, `head` for one, has enough
            fail(error, 1)


def open_streams():
    """Makes the standard streams UTF-8, and leads those that are closed nowhere."""
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = sys.stdout or open(os.devnull, 'w')
    sys.stderr = sys.stderr or open(os.devnull, 'w')
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding='utf-8', errors='surrogateescape')


def fail(error, status):
    """Ends the command with an error, in one line on stderr."""
    line = ' '.join(str(error).split())
    print('%s: %s' % (os.path.basename(sys.argv[0]), line), file=sys.stderr)
    sys.exit(status)


# Arguments

def parameters(function):
    """Returns the parameters of a function by name."""
    return inspect.signature(function).parameters


def is_text(function, name):
    """Says whether a parameter takes its value as it stands."""
    parameter = parameters(function)[name]
    return isinstance(parameter.default, str) or parameter.annotation is str


def is_switch(function, name):
    """Says whether a parameter is a flag without a value, --name or --noname."""
    return isinstance(parameters(function)[name].default, bool)


def parse(function, argv):
    """Brings a command line into the form --name=value, which fire cannot misread.

    (fire itself would call the function before it notices a misspelt flag, and takes a bare `-`
    for a separator.)

    Returns:
      A list of arguments, or None if help is asked for.

    Raises:
      UsageError: an unknown flag, a flag without its value, or too many or too few arguments.
    """
    if '--help' in argv or '-h' in argv:
        return None
    positional = [name for name, parameter in parameters(function).items()
                  if parameter.kind is not parameter.KEYWORD_ONLY]
    values, argv = {}, list(argv)
    while argv:
        argument = argv.pop(0)
        if not re.match('--?[A-Za-z]', argument):
            if not positional:
                raise UsageError('there is one argument too many, %r; see --help' % argument)
            name, value = positional.pop(0), argument
        else:
            flag, equals, value = argument.partition('=')
            name = flag_name(function, flag)
            if is_switch(function, name):
                if equals:
                    raise UsageError('%s takes no value' % flag)
                value = str(name == flag.lstrip('-').replace('-', '_'))
            elif not equals:
                if not argv or re.match('--[A-Za-z]', argv[0]):
                    raise UsageError('%s needs a value' % flag)
                value = argv.pop(0)
            if name in positional:
                positional.remove(name)
        values[name] = value
    for name, parameter in parameters(function).items():
        if parameter.default is inspect.Parameter.empty and name not in values:
            raise UsageError('%s is missing; see --help' % name.upper())
    return ['--%s=%s' % item for item in values.items()]


def flag_name(function, flag):
    """Returns the parameter that a flag such as --top_k, --top-k or --nostop stands for."""
    name = flag.lstrip('-').replace('-', '_')
    if flag.startswith('--'):
        if name in parameters(function):
            return name
        if name.startswith('no') and name[2:] in parameters(function):
            if is_switch(function, name[2:]):
                return name[2:]
    near = difflib.get_close_matches(name, parameters(function), n=1)
    hint = 'did you mean --%s?' % near[0] if near else 'see --help'
    raise UsageError('there is no flag %s; %s' % (flag, hint))


# Values

def check_int(name, value, minimum, maximum=2**31 - 1):
    """Raises UsageError unless a flag's value is an int in a range, both ends included."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or not minimum <= value <= maximum:
        raise UsageError('--%s must be a whole number from %d to %d, not %r'
                         % (name, minimum, maximum, value))


def check_number(name, value, allowed, wanted):
    """Raises UsageError unless a flag's value is a finite number and allowed(value) holds.

    Args:
      wanted: the range in words, for the message.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not allowed(value):
        raise UsageError('--%s must be a number %s, not %r' % (name, wanted, value))


def check_sampling_flags(flags):
    """Raises UsageError unless the flags that all sampling scripts share make sense.

    Args:
      flags: an object with the flags by name, whose stop_at becomes what it is in UTF-8.
    """
    if flags.seed is not None:
        check_int('seed', flags.seed, 0, 2**64 - 1)
    check_int('batch_size', flags.batch_size, 1)
    if flags.length is not None:
        check_int('length', flags.length, 1)
    if flags.keep is not None:
        check_int('keep', flags.keep, 1)
    check_number('temperature', flags.temperature, lambda value: value >= 0, 'that is not negative')
    check_int('top_k', flags.top_k, 0)
    check_number('top_p', flags.top_p, lambda value: 0 < value <= 1, 'above 0 and at most 1')
    if flags.stop_at is not None:
        flags.stop_at = in_utf8('stop_at', flags.stop_at)
    check_engine_flags(flags.engine, flags.dtype)


def is_unicode(text):
    """Says whether a text has no lone surrogates, which no file can hold."""
    return not re.search('[\ud800-\udfff]', text)


def in_utf8(name, value):
    """Returns what a text flag says in UTF-8, as which it was not read if the locale differs.

    Raises:
      UsageError: it is empty, or not in UTF-8.
    """
    try:
        text = os.fsencode(value).decode('utf-8')
    except UnicodeError:
        text = ''
    if not text:
        raise UsageError('--%s must be a text in UTF-8, and not empty' % name)
    return text


def check_engine_flags(engine, dtype):
    """Raises UsageError unless there is such an engine, and it has weights of that type."""
    check_choice('engine', engine, ('auto', 'graph', 'lite'))
    check_choice('dtype', dtype, ('float32', 'int8'))
    if engine == 'graph' and dtype == 'int8':
        raise UsageError('--dtype int8 is for the lite engine; use --engine lite')


def check_choice(name, value, choices):
    """Raises UsageError unless a flag's value is one of the choices."""
    if value not in choices:
        raise UsageError('--%s must be one of %s, not %r' % (name, ', '.join(choices), value))


def fit_to_model(flags, hparams, default_length):
    """Fills in the defaults of --length and --keep, which depend on the model.

    Raises:
      UsageError: keep or top_k is more than the model has.
    """
    flags.length = default_length if flags.length is None else flags.length
    flags.keep = max(1, hparams.n_ctx // 2) if flags.keep is None else flags.keep
    check_int('keep', flags.keep, 1, hparams.n_ctx)
    check_int('top_k', flags.top_k, 0, hparams.n_vocab)


def choose_seed(seed):
    """Returns the seed, or draws one and tells it on stderr, so that the run can be repeated."""
    if seed is None:
        seed = secrets.randbelow(2**32)
        print('seed %d' % seed, file=sys.stderr)
    return seed


# The machine

def processors():
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


# TensorFlow

@functools.lru_cache(maxsize=None)
def import_tensorflow():
    """Imports TensorFlow, without the messages that would bury ours, and returns it.

    Raises:
      UserError: it is not installed.
    """
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    warnings.simplefilter('ignore')
    # Some of the modules swallow a KeyboardInterrupt: until they are there, Ctrl-C ends us at once.
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with silent_stderr():
            import tensorflow.compat.v1 as tf
    except ImportError as error:
        raise UserError('TensorFlow cannot be imported (%s); install it with '
                        'python3 -m pip install -r requirements.txt' % error)
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


@contextlib.contextmanager
def silent_stderr():
    """Sends stderr nowhere for a while, what libraries written in C print there included."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
