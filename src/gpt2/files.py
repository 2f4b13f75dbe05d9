"""Files that are there in whole or not at all, locks, and JSON.

A file is written under a new, unguessable name beside its target, then renamed: a crash leaves the
old file or the new one, never half of one. No symbolic link is followed on the way.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time

from gpt2.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


PARTIAL = re.compile(r'\.[0-9a-f]{16}\.partial')  # names of what is not yet complete
LEFTOVER_SECONDS = 60  # age of a partial file whose process may be taken for dead


@contextlib.contextmanager
def new_file(path, mode=0o666):
    """Yield a binary file that becomes the file at `path` when the block ends without an error.

    The umask takes some of the permissions `mode` away. Raises OSError if it cannot be written.
    """
    partial = partial_name(path)
    file = open(partial, 'xb', opener=functools.partial(os.open, mode=mode))
    try:
        with file:
            lock(file)  # so that nobody takes it for a leftover
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise
    sync_folder(os.path.dirname(path))


def partial_name(path):
    """Return a new name beside a path, which nobody can guess."""
    folder = os.path.dirname(path)
    remove_leftovers(folder)
    return os.path.join(folder, f'.{secrets.token_hex(8)}.partial')


@functools.lru_cache(maxsize=None)  # once in a process
def remove_leftovers(folder):
    """Remove partial files and folders of processes that were killed from a folder."""
    names = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder or '.')
    for name in filter(PARTIAL.fullmatch, names):
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError), locked(path) as status:
            if status and status.st_uid == os.getuid() and (
                    time.time() - status.st_mtime > LEFTOVER_SECONDS):
                (shutil.rmtree if stat.S_ISDIR(status.st_mode) else os.remove)(path)


@contextlib.contextmanager
def locked(path, wait=False):
    """Lock a file or folder; yield its status, None where the system has no locks.

    Raises OSError if it cannot be opened, or is locked by another process and not to be waited for.
    """
    if not fcntl:
        yield None
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        yield os.fstat(descriptor) if lock(descriptor, wait) else None
    finally:
        os.close(descriptor)


def sync_folder(folder):
    """Make sure that the names in a folder survive a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder or '.', os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path):
    """Make sure that the data of a file survive a power cut."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


def write_file(path, parts, mode=0o666):
    """Write a UTF-8 text file from an iterable of its parts, see `new_file`."""
    with new_file(path, mode) as file:
        for part in parts:
            file.write(part.encode('utf-8'))


def write_json(path, value, **options):
    """Write a value as a JSON file, see `new_file`; `options` are those of json.dumps."""
    write_file(path, [json.dumps(value, **options), '\n'])


def copy_file(source, target):
    """Copy a file with its permissions, see `new_file`."""
    with open(source, 'rb') as file:
        with new_file(target, stat.S_IMODE(os.fstat(file.fileno()).st_mode)) as copy:
            shutil.copyfileobj(file, copy)


@contextlib.contextmanager
def new_folder(path):
    """Yield a folder that becomes the folder at `path` when the block ends without an error.

    Its files are synchronized to the disk before it gets its name. Raises OSError if it cannot be
    written, or another folder with files is there meanwhile.
    """
    partial = partial_name(path)
    os.mkdir(partial)
    try:
        with locked(partial):  # so that nobody takes it for a leftover
            yield partial
            for name in os.listdir(partial):
                sync_file(os.path.join(partial, name))
            sync_folder(partial)
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(os.path.dirname(path))


def open_regular(path, flags, follow_links=False):
    """Open a file with the flags of os.open, never waiting for a pipe; return its descriptor.

    Raises OSError if it is not a regular file, or a link that is not to be followed.
    """
    flags |= getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_BINARY', 0)
    if not follow_links:
        flags |= getattr(os, 'O_NOFOLLOW', 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, 'it is not a regular file', path)
    return descriptor


def check_writable(folder):
    """Raise OSError unless files can be written into a folder."""
    tempfile.TemporaryFile(dir=folder or '.').close()


def cache_path():
    """Return where the user's own folder for what can be made again is, or would be.

    It is gpt2 in $XDG_CACHE_HOME, or else in ~/.cache. Raises OSError if it is another user's.
    """
    caches = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = os.path.join(caches, 'gpt2')
    if fcntl and os.path.exists(folder) and os.stat(folder).st_uid != os.getuid():
        raise OSError(0, 'it belongs to another user', folder)
    return folder


def cache_folder():
    """Return the `cache_path`, created for this user alone if it is missing. Raises OSError."""
    os.makedirs(cache_path(), mode=0o700, exist_ok=True)
    return cache_path()


def add_to_hash(total, file):
    """Add what an open binary file has to a hash of hashlib, without reading it all at once."""
    for data in iter(lambda: file.read(2**20), b''):
        total.update(data)


def lock(file, wait=False):
    """Lock an open file or a descriptor until it is closed; return False if there are no locks.

    Raises BlockingIOError if another process has it locked, unless it is to be waited for.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return fcntl is not None
    except BlockingIOError:
        raise
    except OSError:  # this file system has no locks
        return False


def parse_object(line, *fields):
    """Return the JSON object in UTF-8 bytes or a text. Its values of these fields must be texts.

    Raises ValueError if it is not JSON, not an object, or lacks a field; the message says which.
    """
    try:
        value = json.loads(line.decode('utf-8-sig') if isinstance(line, bytes) else line)
    except UnicodeDecodeError:
        raise ValueError('it is not UTF-8')
    except (ValueError, RecursionError):
        raise ValueError('it is not JSON')
    if not isinstance(value, dict):
        raise ValueError('it is not a JSON object')
    for field in fields:
        if not isinstance(value.get(field), str):
            raise ValueError(f'it has no text as its "{field}"')
    return value


def read_json(path):
    """Return the JSON object in a file. Raises OSError, or ValueError as `parse_object`."""
    with open(open_regular(path, os.O_RDONLY, follow_links=True), 'rb') as file:
        return parse_object(file.read())


def read_bytes(path):
    """Return the bytes of a file that the user named, or a pipe. Raises UserError."""
    def opener(path, flags):  # does not wait for a pipe that nobody writes to
        return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))

    try:
        with open(path, 'rb', opener=opener) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISFIFO(mode):
                os.set_blocking(file.fileno(), True)
            elif not stat.S_ISREG(mode):
                raise OSError(0, 'it is neither a file nor a pipe', path)
            return file.read()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}')
