"""Models of TensorFlow: model directories, and the checkpoints of fine-tuning programs."""

import os
import tempfile

import numpy as np
from tqdm import tqdm

from gpt2 import checkpoint, files, model_dir, runtime
from gpt2.formats.source import Source, absent

ALIGNMENT = 64  # bytes; TensorFlow copies an array unless it begins at a multiple of this


def is_model(path):
    """Return whether a path is a folder with a checkpoint, or the prefix of one."""
    return is_prefix(path) or not absent(path, 'checkpoint')


def is_prefix(path):
    """Return whether a path is that of a checkpoint, without the suffixes of its files."""
    return os.path.isfile(path + '.index') and not os.path.isdir(path)


def model_folder(path):
    """Return the folder of a model whose path is that folder, or a prefix in it."""
    return os.path.dirname(path) if is_prefix(path) else path


def missing_files(path):
    """Return the files of a model directory that a model lacks, apart from the weights."""
    return absent(model_folder(path), 'hparams.json', *model_dir.VOCABULARY)


def open_source(path, base):
    """Return the Source of a model directory, or of a checkpoint and its base model."""
    folder = model_folder(path)
    if base is None:
        parent, name = os.path.split(os.path.normpath(folder))
        base = model_dir.open_model_dir(name, parent, weights=False)
    hparams = base.hparams
    if not absent(folder, 'hparams.json'):
        hparams = model_dir.read_hparams(os.path.join(folder, 'hparams.json'))
    model_dir.check_path(path)
    prefix = weights_prefix(path)
    model_dir.check_weights_size(prefix, hparams)
    return Source(hparams, base.encoder, lambda: checkpoint.open_weights(prefix, hparams))


def weights_prefix(path):
    """Return the prefix of a model's weights. Raises ModelError if a file of theirs is missing."""
    if not is_prefix(path):
        return model_dir.weights_prefix(path)
    model_dir.check_weights_exist(path)
    return path


def write(source, folder):
    """Write a model into a folder as a model directory."""
    read = source.open_weights()
    files.write_json(os.path.join(folder, 'hparams.json'), vars(source.hparams), indent=2)
    source.write_vocabulary(folder, *model_dir.VOCABULARY)
    with tempfile.TemporaryFile(dir=folder) as file:
        weights = map_weights(source.hparams, read, file)
        save_weights(os.path.join(folder, 'model.ckpt'), source.hparams, weights)
    checkpoint.write_checkpoint_state(folder, 'model.ckpt')


def map_weights(hparams, read, file):
    """Copy the weights of a model into a file; return them mapped, a dict name -> float32 array.

    One operation writes a checkpoint, with all weights as its inputs: mapped into memory, they
    need not fit in it.
    """
    shapes, begins = dict(model_dir.weight_shapes(hparams)), {}
    for name in tqdm(shapes, unit='weight', disable=None):
        file.write(bytes(-file.tell() % ALIGNMENT))
        begins[name] = file.tell() // 4
        file.write(np.ascontiguousarray(read(name), np.float32).data)
    file.flush()
    flat = np.memmap(file, np.float32, 'r')
    return {name: flat[begins[name]:][:np.prod(shape)].reshape(shape)
            for name, shape in shapes.items()}


def save_weights(prefix, hparams, weights):
    """Write weights, a dict name -> array, as a checkpoint with its graph. Raises OSError."""
    tf = runtime.import_tensorflow()
    import model
    graph, config = tf.Graph(), tf.ConfigProto(device_count={'GPU': 0})
    with graph.as_default(), tf.Session(config=config) as session:
        model.model(hparams, tf.placeholder(tf.int32, [None, None]))
        saver = tf.train.Saver(checkpoint.model_weights())
        try:
            saver.export_meta_graph(prefix + '.meta')
            # The Saver would save variables; its operation also saves arrays that are fed.
            names = sorted(weights)
            values = [tf.placeholder(tf.float32, weights[name].shape) for name in names]
            save = tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names,
                                     shape_and_slices=[''] * len(names), tensors=values)
            session.run(save, dict(zip(values, [weights[name] for name in names])))
        except tf.errors.OpError as error:
            raise OSError(error.message)
