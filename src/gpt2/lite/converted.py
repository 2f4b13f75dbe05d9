"""The folder of a model's converted weights, lite/<dtype>-<key> in its own folder. No TensorFlow.

Where that folder cannot be written, the converted weights are in the user's cache folder. Damaged
files would crash the interpreter, so a manifest has their sizes and checksums.
"""

import contextlib
import hashlib
import os
import shutil

from gpt2 import files, model_dir, runtime

FORMAT = 4  # of the converted models: increase it when export.py makes other ones
MANIFEST = 'manifest.json'


def converted_folders(path, dtype):
    """Return where the converted weights of the model directory at `path` may be, best first.

    The key changes with the weights, the sizes, the version of TensorFlow and the format.
    """
    hparams = model_dir.read_json(os.path.join(path, 'hparams.json'))
    key = hashlib.sha256(repr([model_dir.weights_digest(path), sorted(hparams.items()),
                               runtime.tensorflow_version(), FORMAT]).encode('utf-8')).hexdigest()
    name, folders = os.path.join('lite', f'{dtype}-{key[:16]}'), [path]
    with contextlib.suppress(OSError):  # the cache folder may be somebody else's
        folders.append(files.cache_path())
    return [os.path.join(folder, name) for folder in folders]


def find(path, dtype):
    """Return the folder of the intact converted weights of a model directory; None if missing."""
    return next(filter(is_intact, converted_folders(path, dtype)), None)


def find_or_convert(opened, dtype):
    """Return the folder of a ModelDir's converted weights; convert them first if need be.

    Raises ModelError if the weights cannot be read, and OSError if no folder can be written.
    """
    folder = find(opened.path, dtype)
    if folder is None:
        folder = writable(*converted_folders(opened.path, dtype))
        convert(opened, dtype, folder)
    return folder


def convert(opened, dtype, folder):
    """Convert the weights of a ModelDir into a folder, which is complete or not there.

    Folders of other weights of the model are removed. Raises ModelError if the weights are damaged,
    and OSError if the folder cannot be written.
    """
    runtime.import_tensorflow()
    from gpt2.lite import export
    try:
        with files.new_folder(folder) as partial:
            export.export(opened, dtype, partial)
            write_manifest(partial, {name: checksum(partial, name) for name in os.listdir(partial)})
    except OSError:
        if not os.path.isdir(folder):  # else another process was faster
            raise
    parent, kept = os.path.split(folder)
    for other in os.listdir(parent) if parent == os.path.join(opened.path, 'lite') else ():
        if other.startswith(dtype) and other != kept:
            shutil.rmtree(os.path.join(parent, other), ignore_errors=True)


def writable(folder, *others):
    """Return the first of the folders that can be written, without what is there.

    The folders above it are made. Raises OSError if that fails for all.
    """
    parent = os.path.dirname(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        files.check_writable(parent)
    except OSError:
        if not others:
            raise
        files.cache_folder()
        return writable(*others)
    if not is_intact(folder):  # another process may just have made it
        shutil.rmtree(folder, ignore_errors=True)
    return folder


def write_manifest(folder, checksums):
    """Record the checksums of the files in a folder, a dict by name, and their present states."""
    files.write_json(os.path.join(folder, MANIFEST), {
        'sha256': checksums, 'state': {name: state(folder, name) for name in checksums}})


def is_intact(folder):
    """Return whether all files in a folder of converted weights are as they were written.

    They are read only if something has changed them, or copied them, since that was last seen.
    """
    try:
        manifest = files.read_json(os.path.join(folder, MANIFEST))
        checksums, states = manifest['sha256'], manifest['state']
        names = {name for name in os.listdir(folder) if not files.PARTIAL.fullmatch(name)}
        if names != {MANIFEST, *checksums}:
            return False
        changed = [name for name in checksums if states[name] != state(folder, name)]
        if any(checksums[name] != checksum(folder, name) for name in changed):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if changed:
        with contextlib.suppress(OSError):
            write_manifest(folder, checksums)
    return True


def state(folder, name):
    """Return what changes whenever a file is written to, a list of ints."""
    status = os.lstat(os.path.join(folder, name))
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def checksum(folder, name):
    """Return the SHA-256 of a file, in hexadecimal digits."""
    total = hashlib.sha256()
    with open(os.path.join(folder, name), 'rb') as file:
        files.add_to_hash(total, file)
    return total.hexdigest()
