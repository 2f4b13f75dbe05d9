"""The machine and TensorFlow: imported late, and without the messages that would bury ours."""

import contextlib
import ctypes
import functools
import math
import os
import re
import signal
import sys
import threading
import time
import warnings

from gpt2.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

TENSORFLOW_SPACE = 2.2e9  # bytes of address space; with less it may abort without a word


def processors():
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def require_memory(n_bytes):
    """Raise MemoryError if this process cannot have so many more bytes, unless a GPU may have them.

    Otherwise the system would kill it without a word, or libraries written in C++ would abort.
    """
    if n_bytes > available_memory() and not has_gpu():
        raise MemoryError(f'{n_bytes} bytes')


def available_memory():
    """Return how many more bytes this process can have, on Linux; elsewhere infinity."""
    try:
        with open('/proc/meminfo', encoding='ascii') as file:
            sizes = dict(re.findall(r'^(\w+): +(\d+) kB', file.read(), re.MULTILINE))
        return min(1024 * (int(sizes['MemAvailable']) + int(sizes['SwapFree'])), address_space())
    except (OSError, KeyError):
        return math.inf


def address_space():
    """Return how many more bytes `ulimit -v` leaves to this process, on Linux; else infinity."""
    if resource is None or resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return math.inf
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            in_use = int(file.read().split()[0]) * resource.getpagesize()
        return resource.getrlimit(resource.RLIMIT_AS)[0] - in_use
    except OSError:
        return math.inf


@functools.lru_cache(maxsize=None)
def import_tensorflow():
    """Return TensorFlow, imported without its start-up messages, or raise UserError."""
    if 'tensorflow' not in sys.modules and address_space() < TENSORFLOW_SPACE:
        raise UserError('ulimit -v leaves too little address space for TensorFlow; set it to '
                        '3000000 or more, or to unlimited')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    warnings.simplefilter('ignore')
    try:
        with default_sigint(), silent_stderr():
            import tensorflow.compat.v1 as tf
    except ImportError as error:
        raise UserError(f'TensorFlow cannot be imported ({error}); install it with '
                        'python3 -m pip install -r requirements.txt')
    tf.logging.set_verbosity(tf.logging.ERROR)
    return tf


@contextlib.contextmanager
def memory_errors():
    """Turn TensorFlow's error for a lack of memory into a MemoryError."""
    try:
        yield
    except import_tensorflow().errors.ResourceExhaustedError as error:
        raise MemoryError(error.message)


@contextlib.contextmanager
def default_sigint():
    """Let Ctrl-C end the process at once: some imports swallow a KeyboardInterrupt.

    A process that ignores Ctrl-C goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    try:
        handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # only the main thread can set this
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def blocked_sigint():
    """Let Ctrl-C wait. Processes that are started meanwhile never get it."""
    if not hasattr(signal, 'pthread_sigmask'):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def child_process(function, *args):
    """Yield a new process that calls a function of a module; it is ended when the block ends."""
    import multiprocessing  # which most commands do not need
    context = multiprocessing.get_context('spawn')  # TensorFlow does not survive a fork
    process = context.Process(target=function, args=args, daemon=True)
    with blocked_sigint():
        process.start()
    try:
        yield process
    finally:
        process.terminate()
        process.join()


def follow(parent):
    """Make this process a worker of another: Ctrl-C is for that one, and both end together."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()


def exit_with_parent(parent):
    """End this process soon after its parent, which could not end it if it was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def silent_stderr():
    """Discard what is written to stderr, also by libraries written in C."""
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def tensorflow_version():
    """Return the version of TensorFlow, if possible without importing it."""
    try:
        from importlib.metadata import version  # Python 3.8 and later
        return version('tensorflow')
    except ImportError:  # also where the package has another name, such as tensorflow-cpu
        return import_tensorflow().__version__


def is_tensorflow_1():
    """Return whether this is TensorFlow 1, whose TensorFlow Lite lacks the fast kernels."""
    return tensorflow_version().startswith('1.')


def has_gpu():
    """Return whether TensorFlow finds a GPU. It is imported only if there is a driver of one."""
    try:
        ctypes.CDLL('libcuda.so.1')  # NVIDIA's; the packages of TensorFlow support no other GPUs
    except OSError:
        return False
    return bool(import_tensorflow().config.list_physical_devices('GPU'))
