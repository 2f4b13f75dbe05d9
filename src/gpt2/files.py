"""Files that are there in whole or not at all, locks, and JSON.

A file is written under a new, unguessable name beside its target, then renamed: a crash leaves the
old file or the new one, never half of one. No symbolic link is followed on the way.
"""

import contextlib
import functools
import json
import os
import secrets
import shutil
import stat

from gpt2.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextlib.contextmanager
def new_file(path, mode=0o666):
    """Yield a binary file that becomes the file at `path` when the block ends without an error.

    The umask takes some of the permissions `mode` away. Raises OSError if it cannot be written.
    """
    partial = partial_name(path)
    file = open(partial, 'xb', opener=functools.partial(os.open, mode=mode))
    try:
        with file:
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
    return os.path.join(os.path.dirname(path), f'.{secrets.token_hex(8)}.partial')


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


def lock(file):
    """Lock an open file until it is closed; return False if another process has it locked."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        return True


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
    with open(path, 'rb') as file:
        return parse_object(file.read())


def read_bytes(path):
    """Return the bytes of a file that the user named. Raises UserError if it cannot be read."""
    try:
        with open(path, 'rb') as file:
            return file.read()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}')
