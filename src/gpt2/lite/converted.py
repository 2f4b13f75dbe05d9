"""The folder of a model's converted weights, models/<name>/lite/<dtype>-<key>. No TensorFlow."""

import hashlib
import os

from gpt2 import model_dir, runtime

FORMAT = 2  # of the converted models: increase it when export.py makes other ones


def converted_folder(path, dtype):
    """Return where the converted weights of the model directory at `path` are, or would be.

    The key changes with the weights, the sizes, the version of TensorFlow and the format.
    """
    hparams = model_dir.read_json(os.path.join(path, 'hparams.json'))
    key = hashlib.sha256(repr([model_dir.weights_digest(path), sorted(hparams.items()),
                               runtime.tensorflow_version(), FORMAT]).encode('utf-8')).hexdigest()
    return os.path.join(path, 'lite', f'{dtype}-{key[:16]}')


def find_or_convert(opened, dtype):
    """Return the folder of a ModelDir's converted weights; convert them first if need be.

    Raises ModelError if the weights cannot be read, and OSError if the folder cannot be written.
    """
    folder = converted_folder(opened.path, dtype)
    if not os.path.isdir(folder):
        runtime.import_tensorflow()
        from gpt2.lite import export
        export.export(opened, dtype, folder)
    return folder
