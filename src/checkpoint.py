"""A model directory, models/<name>: hyperparameters, vocabulary and weights, from files and back.

    hparams.json                         the numbers that fix the model's shape
    encoder.json, vocab.bpe              its vocabulary
    checkpoint                           which weights to take: `model.ckpt` of the released models
    model.ckpt.{index,data-*,meta}       the weights, a TensorFlow V2 checkpoint
"""

import collections
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import types

import encoder

try:
    import fcntl  # locks, where there are any
except ImportError:
    fcntl = None

# TensorFlow is imported where it is needed: all that can be found out without it, is.

HPARAMS = ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')
END_OF_TEXT = '<|endoftext|>'  # the token between documents
ENDINGS = ('.index', '.data-00000-of-00001', '.meta')  # of the files of a checkpoint
VOCABULARY = ('encoder.json', 'vocab.bpe')
RELEASED = ('124M', '355M', '774M', '1558M')

# An opened model: its directory, its hyperparameters, and its Encoder.
Model = collections.namedtuple('Model', 'directory hparams encoder')


class ModelError(Exception):
    """A model directory that cannot be used; one line that says which file, and what to do."""


# From files

def open_model(model_name, models_dir, weights=True):
    """Opens a model directory and checks all that can be checked without TensorFlow.

    Args:
      weights: whether there must be weights too.

    Returns:
      A Model.

    Raises:
      ModelError: the directory or a file is missing, or a file is not what it should be.
    """
    directory = os.path.join(models_dir, model_name)
    if not model_name or not os.path.isdir(directory):
        raise ModelError(no_model(model_name, models_dir))
    check_path(directory)
    hparams = read_hparams(os.path.join(directory, 'hparams.json'))
    try:
        vocabulary = encoder.get_encoder(model_name, models_dir)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(one_line(error))
    if END_OF_TEXT not in vocabulary.encoder:
        raise ModelError('%s lacks %s; download the model again'
                         % (os.path.join(directory, 'encoder.json'), END_OF_TEXT))
    if len(vocabulary.encoder) != hparams.n_vocab:
        raise ModelError('%s has %d entries, but n_vocab in hparams.json is %d: they belong to '
                         'different models' % (os.path.join(directory, 'encoder.json'),
                                               len(vocabulary.encoder), hparams.n_vocab))
    if weights:
        check_weights_size(weights_prefix(directory), hparams)
    return Model(directory, hparams, vocabulary)


def check_path(path):
    """Raises ModelError if TensorFlow would take a path for a pattern."""
    if re.search(r'[][*?\\]', path):
        raise ModelError('TensorFlow reads no files from a path with one of [ ] * ? \\ in it: '
                         'rename %s' % path)


def no_model(model_name, models_dir):
    """Says that a model is not there, which ones are, and how to get one."""
    names = sorted(os.path.basename(os.path.dirname(path)) for path in
                   glob.glob(os.path.join(glob.escape(models_dir), '*', 'checkpoint')))
    return ('there is no model %s in %s, only: %s; download a released one with: '
            'python3 download_model.py %s'
            % (model_name, models_dir, ', '.join(names) or 'none',
               model_name if model_name in RELEASED else RELEASED[0]))


def one_line(error):
    """Returns the message of an error as one line."""
    if isinstance(error, OSError) and error.filename:
        return '%s: %s; download the model again' % (error.filename, error.strerror)
    return ' '.join(str(error).split())


def read_hparams(path):
    """Returns the hyperparameters in a file, an object with an int of each name.

    Raises:
      ModelError: the file is missing or malformed, or its numbers make no model.
    """
    hparams = read_object(path)
    check_sizes(path, hparams, HPARAMS)
    return types.SimpleNamespace(**hparams)


def read_object(path):
    """Returns the JSON object in a file, a dict.

    Raises:
      ModelError: the file is missing or malformed.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            values = json.load(file)
    except OSError as error:
        raise ModelError(one_line(error))
    except (ValueError, RecursionError):
        raise ModelError('%s is not JSON; download the model again' % path)
    if not isinstance(values, dict):
        raise ModelError('%s is not a JSON object; download the model again' % path)
    return values


def check_sizes(path, values, names):
    """Raises ModelError unless a file's values of these names are the sizes of a model.

    Two of the names are n_embd and n_head.
    """
    for name in names:
        if name not in values:
            raise ModelError('%s lacks %s; download the model again' % (path, name))
        if type(values[name]) is not int or values[name] < 1:
            raise ModelError('%s: %s must be a whole number above 0, not %s; correct the file'
                             % (path, name, json.dumps(values[name])))
    if values['n_embd'] % values['n_head']:
        raise ModelError('%s: n_embd, %d, must be a multiple of n_head, %d; correct the file'
                         % (path, values['n_embd'], values['n_head']))


def weights_prefix(directory):
    """Returns the path of the weights, without its endings, that the state file names.

    Raises:
      ModelError: the state file is missing or names nothing, or the weights are missing.
    """
    try:
        prefix = os.path.join(directory, read_state(directory))
    except OSError as error:
        raise ModelError(one_line(error))
    for ending in ENDINGS[:2]:
        if not os.path.isfile(prefix + ending):
            raise ModelError('%s%s is missing; download the model again' % (prefix, ending))
    return prefix


def weights_digest(directory):
    """Returns a checksum of the weights: of their index, which holds a checksum of each."""
    with open(weights_prefix(directory) + '.index', 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()[:16]


def read_state(directory):
    """Returns the name of the weights that the state file of a model directory gives."""
    path = os.path.join(directory, 'checkpoint')
    with open(path, encoding='utf-8-sig', errors='replace') as file:
        named = re.search(r'^\s*model_checkpoint_path\s*:\s*"(.+)"', file.read(), re.MULTILINE)
    if not named:
        raise ModelError('%s names no weights; download the model again' % path)
    return named.group(1)


def weight_shapes(hparams):
    """Yields the name and the shape, a list, of each weight of a model, those of a layer together.

    One at a time, so that an absurd number of layers can be refused at the first that is missing.
    """
    width = hparams.n_embd
    yield 'model/wte', [hparams.n_vocab, width]
    yield 'model/wpe', [hparams.n_ctx, width]
    for layer in range(hparams.n_layer):
        for name, n_in, n_out in (('attn/c_attn', width, 3 * width), ('attn/c_proj', width, width),
                                  ('mlp/c_fc', width, 4 * width), ('mlp/c_proj', 4 * width, width)):
            yield 'model/h%d/%s/w' % (layer, name), [1, n_in, n_out]
            yield 'model/h%d/%s/b' % (layer, name), [n_out]
        for name in ('ln_1/g', 'ln_1/b', 'ln_2/g', 'ln_2/b'):
            yield 'model/h%d/%s' % (layer, name), [width]
    yield 'model/ln_f/g', [width]
    yield 'model/ln_f/b', [width]


def parameter_count(hparams):
    """Returns the number of weights of a model.

    The sum of: embeddings (V + n_ctx) E; per layer, matrices of 3 E^2, E^2, 4 E^2 and 4 E^2, their
    biases of 3E, E, 4E and E, and two normalizations of 2E; and the last normalization, 2E.
    """
    width = hparams.n_embd
    per_layer = 12 * width ** 2 + 13 * width
    return (hparams.n_vocab + hparams.n_ctx + 2) * width + hparams.n_layer * per_layer


def check_weights_size(prefix, hparams):
    """Raises ModelError if the weights file is too small for the model that hparams describes."""
    path = prefix + '.data-00000-of-00001'
    size, wanted = os.path.getsize(path), 4 * parameter_count(hparams)
    if size < wanted:
        raise ModelError('%s has %d bytes, but the model in hparams.json takes %d: the file was '
                         'cut short, or belongs to another model; download the model again'
                         % (path, size, wanted))


def restore(session, directory):
    """Restores the weights of the graph's model into a session, with no initializer run.

    Raises:
      ModelError: the checkpoint lacks a weight, has it in another shape, or is damaged.
    """
    import tensorflow.compat.v1 as tf
    prefix = weights_prefix(directory)
    weights = model_weights()
    with told_if_damaged(prefix):
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        check_shapes(prefix, shapes, {weight.op.name: weight.shape.as_list() for weight in weights})
        tf.train.Saver(weights).restore(session, prefix)


def open_weights(prefix, hparams):
    """Opens the weights of a checkpoint to be read one at a time, without a graph.

    Returns:
      A function from the name of a weight to its value, a float32 array.

    Raises:
      ModelError: as restore() does; the function, too, where it finds damage.
    """
    import tensorflow.compat.v1 as tf
    wanted = dict(weight_shapes(hparams))
    with told_if_damaged(prefix):
        reader = tf.train.load_checkpoint(prefix)
        check_shapes(prefix, reader.get_variable_to_shape_map(), wanted)
        types = reader.get_variable_to_dtype_map()
    for name in wanted:
        if types[name] != tf.float32:
            raise ModelError('%s.index: %s is of type %s, but weights must be float32'
                             % (prefix, name, types[name].name))

    def read(name):
        with told_if_damaged(prefix):
            return reader.get_tensor(name)

    return read


@contextlib.contextmanager
def told_if_damaged(prefix):
    """Turns the errors of reading a damaged checkpoint into a ModelError."""
    import tensorflow.compat.v1 as tf
    try:
        yield
    except (tf.errors.OpError, ValueError, IndexError) as error:
        raise ModelError('%s.* are damaged (%s); download the model again'
                         % (prefix, type(error).__name__))


def check_shapes(prefix, shapes, wanted):
    """Raises ModelError unless the model's weights have these shapes, both dicts by name.

    Others may be there (an optimizer's, say), but no layer that the model does not have.
    """
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            raise ModelError('%s.index: %s has shape %s, but hparams.json calls for %s; they '
                             'belong to different models'
                             % (prefix, name, shapes.get(name, 'none'), shape))
    for name in sorted(shapes):
        if re.fullmatch(r'model/h\d+/ln_1/g', name) and name not in wanted:
            raise ModelError('%s.index has %s, but hparams.json calls for no such layer; they '
                             'belong to different models' % (prefix, name))


def model_weights():
    """Returns the variables of the graph's model."""
    import tensorflow.compat.v1 as tf
    return tf.trainable_variables('model/')


# To files

def save(session, saver, directory, source):
    """Writes the session's model as a model directory, or into one it wrote before.

    Whatever interrupts it, `checkpoint` names weights that are whole: the new ones are written
    under a name of their own first.

    Args:
      saver: a tf.train.Saver of `model_weights()`.
      source: the directory that hparams.json and the vocabulary are copied from.
    """
    os.makedirs(directory, exist_ok=True)
    for name in ('hparams.json',) + VOCABULARY:
        replace_file(os.path.join(source, name), os.path.join(directory, name))
    if os.path.exists(os.path.join(directory, 'checkpoint')):
        settle(directory)
    saver.save(session, os.path.join(directory, 'saving'), write_state=False)
    write_state(directory, 'saving')
    settle(directory)


def settle(directory):
    """Gives new weights, if the state file names any, their final name."""
    if read_state(directory) != 'saving':
        return
    for ending in ENDINGS:
        replace_file(os.path.join(directory, 'saving' + ending),
                     os.path.join(directory, 'model.ckpt' + ending))
    write_state(directory, 'model.ckpt')
    for path in glob.glob(os.path.join(glob.escape(directory), 'saving.*')):
        os.remove(path)


def replace_file(source, target):
    """Copies a file to its place so that it is never there in part."""
    partial = target + '.partial'
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def write_file(path, parts):
    """Writes a text file from its parts; it is there in whole or not at all, also after a crash."""
    partial = path + '.partial'
    try:
        with open(partial, 'w', encoding='utf-8') as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def lock(file):
    """Locks an open file until it is closed. Returns whether no other process has it locked."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        """This disk knows no locks."""
    return True


def write_state(directory, name):
    """Makes the state file of a model directory name its weights."""
    write_file(os.path.join(directory, 'checkpoint'), [
        'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % (name, name)])
