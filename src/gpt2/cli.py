"""The command line of the scripts: flags, help, errors and exit statuses.

Python Fire assigns the arguments to the parameters of a function. The function only records them;
the command itself runs once all of them are known to be good.
"""

import _signal as early  # what `signal` is made of, without its imports

if early.getsignal(early.SIGINT) is early.default_int_handler:
    # Ctrl-C ends the process at once, until `run` begins: the imports would print a traceback.
    early.signal(early.SIGINT, early.SIG_DFL)

import _thread
import dataclasses
import difflib
import functools
import inspect
import os
import re
import signal
import sys
import textwrap
import threading
import time

import fire

from gpt2.errors import OptionError, UsageError, UserError

LONGEST_LINE = 1000  # characters of an error, which may quote a file
AFTERMATH = 5  # seconds after Ctrl-C in which an error may come from it

interrupts = []  # when Ctrl-C has come since `run` began, in seconds


def run(command, *option_classes, argv=None):
    """Run a script's function as its command line, with a flag for each parameter.

    The docstring of `command` begins the help. For each parameter one of the Options classes has a
    field of that name, which gives the type and the help of the flag. If `argv` is None, it is that
    of the process.

    Exit statuses: 0; 1 after a UserError or an OSError; 2 after a UsageError; 130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = {field.name: field for option_class in reversed(option_classes)
               for field in dataclasses.fields(option_class)}
    # TensorFlow 2 then leaves Keras out, a fifth of its start, which no command uses.
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')
    open_streams()
    try:
        catch_sigint(True)
        arguments = parse(command, options, argv)
        if arguments is None:
            print(help_text(command, options))
        else:
            command(**arguments)
        sys.stdout.flush()
    except OptionError as error:
        fail(f'--{error}', 2)
    except UserError as error:
        fail(error, 2 if isinstance(error, UsageError) else 1)
    except MemoryError:
        hint = 'try a smaller --batch_size, or' if 'batch_size' in options else 'try to'
        fail(f'there is too little memory; {hint} close other programs', 1)
    except OSError as error:
        # What is still buffered must go somewhere when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # `head`, for one, closes the pipe early
            fail(error, 1)
    except BaseException as error:
        # TensorFlow may make an error of its own of a KeyboardInterrupt that comes while it works.
        if isinstance(error, KeyboardInterrupt) or was_interrupted():
            catch_sigint(False)
            if sys.stderr.isatty():
                print(file=sys.stderr)
            sys.exit(130)
        if isinstance(error, RuntimeError) and 'new thread' in str(error):
            fail('no more threads can be started; close other programs, or raise ulimit -u', 1)
        raise
    finally:
        catch_sigint(False)


def interrupt(number, frame):
    """Raise KeyboardInterrupt for Ctrl-C, and note that."""
    interrupts.append(time.monotonic())
    raise KeyboardInterrupt


def was_interrupted():
    """Return whether Ctrl-C has just come. After an earlier one, an interactive command goes on."""
    return any(time.monotonic() - moment < AFTERMATH for moment in interrupts)


def catch_sigint(catch):
    """Let Ctrl-C raise KeyboardInterrupt, or else end the process at once, without a traceback.

    A process that ignores Ctrl-C, as nohup starts it, goes on ignoring it.
    """
    if catch:
        interrupts.clear()
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler, interrupt):
        signal.signal(signal.SIGINT, interrupt if catch else signal.SIG_DFL)
    # Where it cannot be raised, in a destructor say, Python would print it (from 3.8); so does
    # TensorFlow, in some of its types. After Ctrl-C the destructors of what is half made may fail.
    catch = catch or was_interrupted()
    sys.unraisablehook = show_unraisable if catch else getattr(sys, '__unraisablehook__', None)
    sys.excepthook = show_error if catch else sys.__excepthook__


def show_unraisable(unraisable):
    """Show an exception that could not be raised, unless Ctrl-C is its cause."""
    if not raised_again(unraisable.exc_type):
        sys.__unraisablehook__(unraisable)


def show_error(error_type, error, traceback):
    """Show an exception that TensorFlow does not raise, unless Ctrl-C is its cause."""
    if not raised_again(error_type):
        sys.__excepthook__(error_type, error, traceback)


def raised_again(error_type):
    """Return whether Ctrl-C is the cause of an error; if so, raise KeyboardInterrupt soon."""
    if not issubclass(error_type, KeyboardInterrupt) and not was_interrupted():
        return False
    if signal.getsignal(signal.SIGINT) is interrupt:  # else the process is ending already
        threading.Timer(0.01, raise_sigint).start()  # at once, it would come in here
    return True


def raise_sigint():
    """Let the main thread receive Ctrl-C, also while it waits for something."""
    if hasattr(signal, 'pthread_kill'):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


def open_streams():
    """Make the standard streams UTF-8; replace those that are closed."""
    sys.stdin = sys.stdin or open(os.devnull)
    sys.stdout = sys.stdout or open(os.devnull, 'w')
    sys.stderr = sys.stderr or open(os.devnull, 'w')
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding='utf-8', errors='surrogateescape')


def fail(error, status):
    """Exit with an error, in one line on stderr."""
    line = f'{os.path.basename(sys.argv[0])}: {" ".join(str(error).split())}'
    if len(line) > LONGEST_LINE:
        line = f'{line[:LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2:]}'
    print(printable(line), file=sys.stderr)
    sys.exit(status)


def printable(line):
    """Return a line with escapes instead of what a terminal would act on; bytes of names stay."""
    return ''.join(char if char.isprintable() or '\udc80' <= char <= '\udcff' else
                   char.encode('unicode_escape').decode('ascii') for char in line)


def parse(command, options, argv):
    """Return the arguments of a command line by name, or None if it asks for help.

    Raises UsageError for an unknown flag, a missing value, or too many or too few arguments.
    """
    parameters = inspect.signature(command).parameters
    if '--help' in argv:
        return None
    argv = join_values(parameters, options, argv)
    if '-h' in argv:
        return None
    texts, left_over = record(parameters, argv)
    left_over = join_left_over(parameters, options, texts, left_over)
    kinds = {name: options[name].metadata['kind'] for name in parameters}
    values = {name: kinds[name].parse(text) for name, text in texts.items()}
    left_over += [texts[name] for name, value in values.items()
                  if parameters[name].default is not inspect.Parameter.empty
                  and not kinds[name].accepts(value) and f'--{name}={texts[name]}' not in argv]
    if left_over:
        hint = 'did you mean --prompt?' if 'prompt' in parameters else 'see --help'
        raise UsageError(f'unexpected argument {left_over[0]!r}; {hint}')
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in texts:
            raise UsageError(f'{name.upper()} is missing; see --help')
    return values


def join_values(parameters, options, argv):
    """Return the arguments with each flag in the form --name=value, which Fire cannot misread.

    The values of a flag that may be repeated are joined by NULs, which no argument can have.
    """
    names = {flag: name for name in parameters
             for flag in (name, options[name].metadata['alias']) if flag}
    kinds = {name: options[name].metadata['kind'] for name in parameters}
    switches = {name for name, kind in kinds.items() if kind.accepts(True)}
    lists = {name for name, kind in kinds.items() if kind.accepts(['a text'])}
    places = {}  # of the flags that may be repeated, in `joined`
    turned_off = {f'--no{name}': f'--{name}=False' for name in switches}
    joined, rest = [], [turned_off.get(argument, argument) for argument in argv]
    while rest:
        argument = rest.pop(0)
        if re.match('--|-[A-Za-z]', argument) and argument != '-h':
            flag, equals, value = argument.partition('=')
            name = find_name(names, flag)
            if not equals and name in switches and not (
                    rest and kinds[name].accepts(kinds[name].parse(rest[0]))):
                value = 'True'
            elif not equals:
                if not rest or re.match('--[A-Za-z]', rest[0]):
                    raise UsageError(f'{flag} needs a value; write {flag}=VALUE if it begins '
                                     'with --')
                value = rest.pop(0)
            argument = f'--{name}={value}'
            if name in places:
                joined[places[name]] += f'\0{value}'
                continue
            if name in lists:
                places[name] = len(joined)
        joined.append(argument)
    return joined


def join_left_over(parameters, options, texts, left_over):
    """Add arguments to the last one given by position, if it takes several; return the others."""
    *_, last = [name for name, parameter in parameters.items()
                if parameter.kind is not parameter.KEYWORD_ONLY] or [None]
    if last not in texts or not options[last].metadata['kind'].accepts(['a text']):
        return left_over
    texts[last] = '\0'.join([texts[last], *left_over])
    return []


def find_name(names, flag):
    """Return the parameter of a flag as it is written, such as --top-k. Raises UsageError."""
    name = flag.strip('-').replace('-', '_')
    if re.match('--[^-]', flag) and name in names:
        return names[name]
    near = ([known for known in names if re.match('--.', flag) and known.startswith(name)]
            or difflib.get_close_matches(name, names, n=1))
    hint = f'did you mean --{near[0]}?' if near else 'see --help'
    raise UsageError(f'there is no flag {flag}; {hint}')


def record(parameters, argv):
    """Let Fire assign arguments to parameters; return their texts by name, and what is left over.

    All values stay texts: Fire's own parser would evaluate them as Python literals.
    """
    signature = inspect.Signature(
        [parameter.replace(default=None) for parameter in parameters.values()])
    texts, left_over = {}, []

    @fire.decorators.SetParseFn(str)
    def take(*values, **flags):
        bound = signature.bind(*values, **flags).arguments
        texts.update((name, text) for name, text in bound.items() if text is not None)
        return take_rest

    @fire.decorators.SetParseFn(str)
    def take_rest(*values):
        left_over.extend(values)

    take.__signature__ = signature
    fire.Fire(take, command=[*argv, '--', '--separator=\0'])  # a bare - is an ordinary value
    return texts, left_over


def help_text(command, options):
    """Return the help of a command: its docstring, and a paragraph for each flag."""
    rows = [help_row(parameter, options[name])
            for name, parameter in inspect.signature(command).parameters.items()]
    width = max(len(name) for name, _ in rows) + 2
    wrap = functools.partial(textwrap.fill, width=100, subsequent_indent=' ' * width)
    return '\n'.join([inspect.getdoc(command), ''] + [wrap(f'{name:{width}}{text}')
                                                      for name, text in rows])


def help_row(parameter, field):
    """Return a flag, NAME if it is required, else --name, and its help with default and alias."""
    name, default = parameter.name, parameter.default
    text, alias = field.metadata['help'], field.metadata['alias']
    if default is True:
        text += f' (default; --no{name} turns it off)'
    elif default is not False and default not in (parameter.empty, None):
        text += f' (default: {default})'
    flag = name.upper() if default is parameter.empty else f'--{name}'
    return flag, text + (f'; also --{alias}' if alias else '')
