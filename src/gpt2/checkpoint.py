"""The weights of a model directory, a TensorFlow V2 checkpoint: into a session and back."""

import contextlib
import glob
import os
import re

import numpy as np

from gpt2 import files, model_dir, runtime
from gpt2.errors import ModelError
from gpt2.model_dir import SUFFIXES, read_checkpoint_state


def model_weights():
    """Return the variables of the graph's model."""
    return runtime.import_tensorflow().trainable_variables('model/')


def restore(session, directory):
    """Restore the weights of the graph's model into a session. No initializer needs to run.

    They are cast to the types of the variables. Raises ModelError if the checkpoint lacks a weight,
    has it in another shape, or is damaged.
    """
    tf = runtime.import_tensorflow()
    prefix = model_dir.weights_prefix(directory)
    weights = model_weights()
    runtime.require_memory(sum(weight.shape.num_elements() * weight.dtype.size
                               for weight in weights))
    with translate_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        check_shapes(prefix, reader.get_variable_to_shape_map(),
                     {weight.op.name: weight.shape.as_list() for weight in weights})
        exact = [weight for weight in weights if weight.dtype.base_dtype == tf.float32]
        tf.train.Saver(exact).restore(session, prefix)
        for weight in set(weights) - set(exact):  # one by one, to need less memory
            session.run(weight.initializer, {weight.initial_value: reader.get_tensor(
                weight.op.name).astype(weight.dtype.as_numpy_dtype)})


def open_weights(prefix, hparams):
    """Return a function from the name of a weight to its value, a float32 array, without a graph.

    Raises ModelError as `restore`; the function, too, where it finds damage, or a value that is not
    a finite number.
    """
    tf = runtime.import_tensorflow()
    expected = dict(model_dir.weight_shapes(hparams))
    with translate_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        check_shapes(prefix, reader.get_variable_to_shape_map(), expected)
        dtypes = reader.get_variable_to_dtype_map()
    for name in expected:
        if dtypes[name] != tf.float32:
            raise ModelError(f'{prefix}.index: {name} is of type {dtypes[name].name}, but weights '
                             'must be float32')

    def read(name):
        with translate_errors(prefix):
            value = reader.get_tensor(name)
        check_finite(f'{prefix}.*', name, value)
        return value

    return read


@contextlib.contextmanager
def translate_errors(prefix):
    """Turn the errors of reading a damaged checkpoint into a ModelError."""
    tf = runtime.import_tensorflow()
    try:
        yield
    except (tf.errors.OpError, ValueError, IndexError) as error:
        raise ModelError(f'{prefix}.* are damaged ({type(error).__name__}); download the model '
                         'again')


def check_finite(path, name, weight):
    """Raise ModelError if a weight, an array, has a value that is not a finite number."""
    if not is_finite(weight):
        raise ModelError(f'{path}: {name} has values that are no finite numbers; use other '
                         'weights, or download the model again')


def is_finite(array):
    """Return whether all values of an array are finite numbers; NaN is a minimum and a maximum."""
    return bool(np.isfinite([array.min(), array.max()]).all())


def non_finite_error(opened, dtype='float32'):
    """Return the ModelError for a ModelDir whose logits are not finite; it names the place.

    `dtype` is that of the matrices.
    """
    tf = runtime.import_tensorflow()
    import model
    hparams, prefix = opened.hparams, model_dir.weights_prefix(opened.path)
    try:
        read = open_weights(prefix, hparams)
        for name, _ in model_dir.weight_shapes(hparams):
            read(name)
    except ModelError as error:
        return error
    with tf.Graph().as_default(), tf.Session() as session, model.variables():
        model.hidden_states(hparams, tf.constant([[opened.encoder.end_of_text]]))
        restore(session, opened.path)
        blocks = session.run(tf.get_collection('checkpoints'))
    places = [f'the output of block {i}' for i, h in enumerate(blocks) if not is_finite(h)]
    if not places and dtype == 'float16':
        return ModelError(f'{prefix}.*: the numbers of this model do not fit float16; use bfloat16 '
                          'or float32')
    return ModelError(f'{prefix}.*: the weights are too large: {(places + ["a logit"])[0]} is not '
                      'finite; use other weights')


def check_shapes(prefix, shapes, expected):
    """Raise ModelError unless the model's weights have the expected shapes, dicts by name."""
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ModelError(f'{prefix}.index: {name} has shape {shapes.get(name, "none")}, but '
                             f'hparams.json calls for {shape}; they belong to different models')
    # Other variables may be there (an optimizer's), but no layer that the model does not have.
    for name in sorted(shapes):
        if re.fullmatch(r'model/h\d+/ln_1/g', name) and name not in expected:
            raise ModelError(f'{prefix}.index has {name}, but hparams.json calls for no such '
                             'layer; they belong to different models')


def save(session, saver, directory, start):
    """Write the session's model as a model directory, or into one that was written before.

    `saver` is a tf.train.Saver of `model_weights()`; the sizes and the vocabulary are those of the
    ModelDir `start`. The new weights are written under a name of their own first, so `checkpoint`
    names complete weights whenever this is interrupted.
    """
    os.makedirs(directory, exist_ok=True)
    files.write_json(os.path.join(directory, 'hparams.json'), vars(start.hparams))
    for name in model_dir.VOCABULARY:
        files.copy_file(os.path.join(start.path, name), os.path.join(directory, name))
    if os.path.exists(os.path.join(directory, 'checkpoint')):
        promote(directory)
    saver.save(session, os.path.join(directory, 'saving'), write_state=False)
    for suffix in SUFFIXES:
        files.sync_file(os.path.join(directory, 'saving' + suffix))
    write_checkpoint_state(directory, 'saving')
    promote(directory)


def promote(directory):
    """Give weights that were just saved their final name, if `checkpoint` names any such."""
    if read_checkpoint_state(directory) != 'saving':
        return
    for suffix in SUFFIXES:
        files.copy_file(os.path.join(directory, 'saving' + suffix),
                        os.path.join(directory, 'model.ckpt' + suffix))
    write_checkpoint_state(directory, 'model.ckpt')
    for leftover in ('saving.*', '.*.partial'):  # the latter from processes that were killed
        for path in glob.glob(os.path.join(glob.escape(directory), leftover)):
            os.remove(path)


def write_checkpoint_state(directory, name):
    """Write the file `checkpoint` of a directory, which names its weights."""
    files.write_file(os.path.join(directory, 'checkpoint'), [
        f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'])
