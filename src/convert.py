"""Converts models to and from transformers: python3 src/convert.py SOURCE OUTPUT --to FORMAT.

See --help.
"""

import collections
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import tempfile
import types

import numpy as np
from tqdm import tqdm

import checkpoint
import cli
import encoder
import safetensors_file
from checkpoint import END_OF_TEXT

# A model to convert: its hyperparameters, an object; its vocabulary, a dict token -> id and a list
# of merges; and `open`, a function that opens its weights and returns a function from the name of
# one, as in a TensorFlow checkpoint, to its value, float32.
Source = collections.namedtuple('Source', 'hparams tokens merges open')

# Our names of the sizes of a model, and those in the config.json of transformers.
CONFIG_NAMES = {'n_vocab': 'vocab_size', 'n_ctx': 'n_positions', 'n_embd': 'n_embd',
                'n_head': 'n_head', 'n_layer': 'n_layer'}

# What else in config.json changes what a GPT-2 computes, and the values that our model stands for,
# which are the defaults of transformers. (`reorder_and_upcast_attn` does not: it chooses float32
# where a model runs in float16.)
OPTIONS = {'activation_function': 'gelu_new', 'layer_norm_epsilon': 1e-5,
           'scale_attn_weights': True, 'scale_attn_by_inverse_layer_idx': False,
           'add_cross_attention': False, 'quantization_config': None}


def convert(source: str, output: str, to: str = None, base_model: str = None, models_dir='models'):
    """Converts a model: to Hugging Face's transformers, from there, and from fine-tuning programs.

    python3 src/convert.py models/124M 124M-transformers --to transformers
    python3 src/convert.py DOWNLOADED models/mine --to tensorflow
    python3 src/convert.py checkpoint/run1 models/mine --to tensorflow --base_model 124M

    SOURCE         a folder, of one of these kinds, which is told by its files:
                   - a model directory, as in models/;
                   - a GPT-2 of transformers: config.json, model.safetensors (or its shards and
                     their index) in float32, float16 or bfloat16, and vocab.json with merges.txt,
                     or tokenizer.json;
                   - a checkpoint of a fine-tuning program in TensorFlow: `checkpoint` and
                     model-1000.*, with or without the model's hparams.json, encoder.json and
                     vocab.bpe beside. What an optimizer keeps there is left out
    OUTPUT         the folder to write; there must be none of that name yet
    --to           transformers; or tensorflow, a model directory for the scripts here
    --base_model   the model that SOURCE was fine-tuned from, to take what SOURCE lacks from: the
                   vocabulary, and with a checkpoint alone the hyperparameters, too
    --models_dir   where the base model is: models

    The weights stay what they are, bit for bit; float16 and bfloat16 become float32. One thing
    differs: the tokenizer of transformers reads a literal <|endoftext|> as the token between
    documents, while ours reads it as ordinary text.
    """
    if to is None:
        raise cli.UsageError('--to is missing: give --to transformers, or --to tensorflow')
    cli.check_choice('to', to, ('transformers', 'tensorflow'))
    output = check_output(output, to)
    opened = open_source(source, base_model, models_dir)
    make_parent(output)
    if to == 'tensorflow':
        cli.import_tensorflow()
    read = opened.open()
    write = write_transformers if to == 'transformers' else write_tensorflow
    with new_directory(output) as directory:
        write(opened, read, directory)


# The folder that is written

def check_output(output, to):
    """Returns the path of the folder to write, without a slash at its end.

    Raises:
      UsageError: there cannot be such a folder.
      UserError: it is there already, or (ModelError) TensorFlow cannot read such a path.
    """
    if not output or not cli.is_unicode(output):
        raise cli.UsageError('OUTPUT must be the name of a folder, not %r' % output)
    if os.path.lexists(output):
        raise cli.UserError('%s exists already; give another OUTPUT, or remove it' % output)
    output = os.path.normpath(output)
    if to == 'tensorflow':
        checkpoint.check_path(output)
    return output


def make_parent(output):
    """Makes the folder that OUTPUT is to be in; UserError if nothing can be written there."""
    parent = os.path.dirname(output) or '.'
    try:
        os.makedirs(parent, exist_ok=True)
    except OSError as error:
        raise cli.UserError('%s cannot be made: %s' % (parent, error.strerror))
    if not os.access(parent, os.W_OK):
        raise cli.UserError('%s cannot be written to' % parent)


@contextlib.contextmanager
def new_directory(path):
    """Makes a directory that gets its name when all is in it, and is removed if that fails."""
    partial = '%s.partial-%s' % (path, secrets.token_hex(4))
    os.mkdir(partial)
    try:
        yield partial
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_text(directory, name, text):
    """Writes a text file into a directory, UTF-8 with newlines as they are."""
    with open(os.path.join(directory, name), 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)


def write_vocabulary(directory, source, tokens_name, merges_name):
    """Writes the two files of a vocabulary, which have the same content in both formats."""
    write_text(directory, tokens_name, json.dumps(source.tokens))
    write_text(directory, merges_name,
               '\n'.join(['#version: 0.2', *map(' '.join, source.merges), '']))


# Where a model comes from

def open_source(directory, base_model, models_dir):
    """Opens the model in SOURCE and checks all that can be checked without TensorFlow.

    Returns:
      A Source.

    Raises:
      UserError, ModelError: it is no model, lacks something, or is not what our model can be.
    """
    if not os.path.isdir(directory):
        raise cli.UserError('%s is not a folder; SOURCE must be the folder of a model' % directory)
    if os.path.isfile(os.path.join(directory, 'checkpoint')):
        return open_tensorflow(directory, base_model, models_dir)
    if os.path.isfile(os.path.join(directory, 'config.json')):
        return open_transformers(directory, base_model, models_dir)
    raise cli.UserError('%s holds no model: neither a file `checkpoint`, as TensorFlow writes, nor '
                        'config.json, as transformers does' % directory)


def open_tensorflow(directory, base_model, models_dir):
    """Returns the Source of a model directory, or of a checkpoint and its base model."""
    lacking = missing(directory, 'hparams.json', *checkpoint.VOCABULARY)
    check_base_model(directory, base_model, lacking)
    if lacking:
        model = checkpoint.open_model(base_model, models_dir, weights=False)
    else:
        models_dir, name = os.path.split(os.path.normpath(directory))
        model = checkpoint.open_model(name, models_dir, weights=False)
    checkpoint.check_path(directory)
    prefix = checkpoint.weights_prefix(directory)
    checkpoint.check_weights_size(prefix, model.hparams)

    def open_weights():
        cli.import_tensorflow()
        return checkpoint.open_weights(prefix, model.hparams)

    return Source(model.hparams, model.encoder.encoder, read_merges(model), open_weights)


def read_merges(model):
    """Returns the merges of the vocabulary of a checkpoint.Model, a list of pairs of tokens."""
    return encoder.read_merges(os.path.join(model.directory, 'vocab.bpe'), model.encoder.encoder)


def missing(directory, *names):
    """Returns those of these names that are no file in a directory."""
    return [name for name in names if not os.path.isfile(os.path.join(directory, name))]


def check_base_model(directory, base_model, lacking):
    """Raises an error unless there is a base model if, and only if, files are lacking."""
    if lacking and not base_model:
        raise cli.UserError('%s lacks %s; name the model that it was fine-tuned from, for instance '
                            '--base_model 124M' % (directory, ', '.join(lacking)))
    if base_model and not lacking:
        raise cli.UsageError('%s has hyperparameters and a vocabulary of its own; leave out '
                             '--base_model' % directory)


# From transformers

def open_transformers(directory, base_model, models_dir):
    """Returns the Source of a GPT-2 of transformers."""
    config_path = os.path.join(directory, 'config.json')
    config = checkpoint.read_object(config_path)
    hparams = read_config(config_path, config)
    lacking = missing(directory, 'vocab.json', 'merges.txt')
    if not missing(directory, 'tokenizer.json'):
        lacking = []
    check_base_model(directory, base_model, lacking)
    if lacking:
        model = checkpoint.open_model(base_model, models_dir, weights=False)
        tokens, merges = model.encoder.encoder, read_merges(model)
    else:
        tokens, merges = read_vocabulary(directory, hparams.n_vocab)
    if len(tokens) != hparams.n_vocab:
        raise cli.UserError('the vocabulary has %d tokens, but vocab_size in %s is %d; they must '
                            'agree' % (len(tokens), config_path, hparams.n_vocab))
    entries = read_entries(directory)
    check_entries(directory, entries, hparams, config.get('tie_word_embeddings', True))

    def read(name):
        array = safetensors_file.read_array(entries[transformers_name(name)])
        return array[np.newaxis] if name.endswith('/w') else array

    return Source(hparams, tokens, merges, lambda: read)


def read_config(path, config):
    """Returns the hyperparameters in the config.json of transformers.

    Raises:
      UserError, ModelError: it is not of a GPT-2, or one that computes something else than ours.
    """
    if config.get('model_type') != 'gpt2':
        raise cli.UserError('%s: model_type is %s; only gpt2 can be converted'
                            % (path, json.dumps(config.get('model_type'))))
    checkpoint.check_sizes(path, config, CONFIG_NAMES.values())
    hparams = {ours: config[theirs] for ours, theirs in CONFIG_NAMES.items()}
    for name, usual in OPTIONS.items():
        if config.get(name, usual) != usual:
            raise cli.UserError('%s: %s is %s, but the model here has only %s'
                                % (path, name, json.dumps(config[name]), json.dumps(usual)))
    if config.get('n_inner') not in (None, 4 * config['n_embd']):
        raise cli.UserError('%s: n_inner is %s, but the model here has only 4 n_embd, %d'
                            % (path, json.dumps(config['n_inner']), 4 * config['n_embd']))
    return types.SimpleNamespace(**hparams)


def transformers_name(name):
    """Returns the name that transformers gives one of our weights.

    >>> transformers_name('model/h0/attn/c_attn/w')
    'h.0.attn.c_attn.weight'
    """
    _, *scopes, last = re.sub(r'/h(\d+)/', r'/h/\1/', name).split('/')
    ends = {'w': ['weight'], 'g': ['weight'], 'b': ['bias']}
    return '.'.join(scopes + ends.get(last, [last, 'weight']))


def read_entries(directory):
    """Returns where the arrays of a model of transformers are, Entry by name without a prefix.

    The prefix `transformer.` is there in files of models that have an output layer.

    Raises:
      UserError, ModelError: a file is missing or damaged.
    """
    entries = {}
    for path in weight_files(directory):
        try:
            header = safetensors_file.read_header(path)
        except OSError as error:
            raise checkpoint.ModelError(checkpoint.one_line(error))
        for name, entry in header.items():
            name = re.sub(r'^transformer\.', '', name)
            if name in entries:
                raise cli.UserError('%s: %s is there twice; download it again' % (path, name))
            entries[name] = entry
    return entries


def weight_files(directory):
    """Returns the paths of the safetensors files of a model of transformers, one or its shards."""
    if not missing(directory, 'model.safetensors'):
        return [os.path.join(directory, 'model.safetensors')]
    index = os.path.join(directory, 'model.safetensors.index.json')
    if not os.path.isfile(index):
        raise cli.UserError('%s has no model.safetensors; if it has pytorch_model.bin, let '
                            'transformers write it anew by save_pretrained' % directory)
    shards = checkpoint.read_object(index).get('weight_map')
    if not isinstance(shards, dict) or not all(
            isinstance(name, str) and os.path.basename(name) == name for name in shards.values()):
        raise cli.UserError('%s names no files of weights; download it again' % index)
    return [os.path.join(directory, name) for name in sorted(set(shards.values()))]


def check_entries(directory, entries, hparams, tied):
    """Raises UserError unless the arrays are the weights of the model that hparams describes.

    Args:
      tied: whether the output layer shares the token embeddings, if it is not among the arrays.
    """
    wanted = set()
    for name, shape in checkpoint.weight_shapes(hparams):
        name = transformers_name(name)
        check_entry(directory, name, entries.get(name), shape[-2:])
        wanted.add(name)
    # Older versions of transformers also stored the causal mask of each layer.
    others = sorted(name for name in set(entries) - wanted - {'lm_head.weight'}
                    if not re.fullmatch(r'h\.\d+\.attn\.(bias|masked_bias)', name))
    if others:
        raise cli.UserError('the weights in %s have %s, which GPT-2 does not have (%d such in all)'
                            % (directory, others[0], len(others)))
    if not tied or 'lm_head.weight' in entries:
        check_head(directory, entries, hparams)


def check_entry(directory, name, entry, shape):
    """Raises UserError unless a weight is there, of a type of weights and of this shape."""
    if entry is None:
        raise cli.UserError('the weights in %s lack %s, which config.json calls for; download the '
                            'model again' % (directory, name))
    if entry.shape != shape:
        raise cli.UserError('%s: %s has shape %s, but config.json calls for %s; they belong to '
                            'different models' % (entry.path, name, entry.shape, shape))
    if entry.dtype not in safetensors_file.TYPES:
        raise cli.UserError('%s: %s is of type %s; only %s can be converted'
                            % (entry.path, name, entry.dtype, ', '.join(safetensors_file.TYPES)))


def check_head(directory, entries, hparams):
    """Raises UserError unless the output layer is there and equals the token embeddings."""
    head, embeddings = entries.get('lm_head.weight'), entries['wte.weight']
    check_entry(directory, 'lm_head.weight', head, [hparams.n_vocab, hparams.n_embd])
    if not np.array_equal(*[safetensors_file.read_array(entry).view(np.uint32)
                            for entry in (head, embeddings)]):
        raise cli.UserError('%s: lm_head.weight differs from wte.weight, but the model here has '
                            'one matrix for both' % head.path)


def read_vocabulary(directory, n_vocab):
    """Reads the vocabulary of a model of transformers: returns a dict token -> id, and the merges.

    Tokens that were added to it are tokens like the others if the model has embeddings for them.

    Raises:
      UserError, ModelError: a file is damaged, or has another kind of vocabulary than GPT-2.
    """
    path = os.path.join(directory, 'tokenizer.json')
    tokenizer = {} if missing(directory, 'tokenizer.json') else checkpoint.read_object(path)
    try:
        if missing(directory, 'vocab.json', 'merges.txt'):
            tokens, merges = parse_tokenizer(tokenizer)
        else:
            path = os.path.join(directory, 'vocab.json')
            tokens = encoder.read_encoder(path)
            merges = encoder.read_merges(os.path.join(directory, 'merges.txt'), tokens)
        added = {token['content']: token['id'] for token in tokenizer.get('added_tokens', ())}
        if not missing(directory, 'added_tokens.json'):
            added.update(checkpoint.read_object(os.path.join(directory, 'added_tokens.json')))
        for token, i in added.items():
            if token not in tokens and i < n_vocab:
                tokens[in_symbols(token)] = i
        encoder.Encoder(tokens, merges)  # an error if a byte or a merge has no token
        ids = list(tokens.values())
        if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise KeyError
        if END_OF_TEXT not in tokens:
            raise KeyError
    except (OSError, ValueError) as error:
        raise checkpoint.ModelError(checkpoint.one_line(error))
    except (TypeError, KeyError, AttributeError):
        raise cli.UserError('%s holds no vocabulary of the kind that GPT-2 has, byte-level BPE '
                            'with %s' % (path, END_OF_TEXT))
    return tokens, merges


def in_symbols(token):
    """Returns a text in the symbols that encoder.json writes its bytes with."""
    symbols = encoder.byte_symbols()
    return ''.join(symbols[byte] for byte in token.encode('utf-8', 'replace'))


def parse_tokenizer(tokenizer):
    """Returns the vocabulary in tokenizer.json, a dict token -> id, and its merges.

    If it is of another kind, there is some error.
    """
    model = tokenizer['model']
    if model['type'] != 'BPE' or tokenizer['pre_tokenizer']['type'] != 'ByteLevel':
        raise KeyError
    # A merge is a pair, or in older files a text with a space in it.
    merges = [tuple(merge.split(' ') if isinstance(merge, str) else merge)
              for merge in model['merges']]
    if any(len(merge) != 2 or ' '.join(merge).split() != list(merge) for merge in merges):
        raise KeyError  # a line of vocab.bpe has two tokens with a space between
    if not cli.is_unicode(''.join(model['vocab'])):
        raise KeyError
    return dict(model['vocab']), merges


# To transformers

def write_transformers(source, read, directory):
    """Writes a model into a directory for transformers.

    Args:
      source: a Source.
      read: what its `open` returned.
    """
    end = source.tokens[END_OF_TEXT]
    write_json = functools.partial(write_object, directory)
    write_json('config.json', {
        'architectures': ['GPT2LMHeadModel'], 'model_type': 'gpt2',
        **{theirs: getattr(source.hparams, ours) for ours, theirs in CONFIG_NAMES.items()},
        **{name: value for name, value in OPTIONS.items() if value is not None},
        'tie_word_embeddings': True, 'bos_token_id': end, 'eos_token_id': end})
    write_json('generation_config.json',
               {'bos_token_id': end, 'eos_token_id': end, 'pad_token_id': end})
    write_json('tokenizer_config.json', {
        'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': source.hparams.n_ctx,
        'add_prefix_space': False, 'clean_up_tokenization_spaces': False,
        'bos_token': END_OF_TEXT, 'eos_token': END_OF_TEXT, 'unk_token': END_OF_TEXT})
    write_vocabulary(directory, source, 'vocab.json', 'merges.txt')

    names, shapes = {}, {}
    for ours, shape in checkpoint.weight_shapes(source.hparams):
        theirs = 'transformer.' + transformers_name(ours)
        names[theirs], shapes[theirs] = ours, shape[-2:]
    arrays = (read(names[name]) for name in watched(sorted(names)))
    safetensors_file.write(os.path.join(directory, 'model.safetensors'), shapes, arrays,
                           {'format': 'pt'})


def write_object(directory, name, values):
    """Writes a dict as a JSON file into a directory."""
    write_text(directory, name, json.dumps(values, indent=2) + '\n')


def watched(names):
    """Yields the names of weights with a progress bar."""
    return tqdm(names, unit='weight', disable=None)


# To TensorFlow

def write_tensorflow(source, read, directory):
    """Writes a model into a directory in the official format.

    Args:
      source: a Source.
      read: what its `open` returned.
    """
    write_object(directory, 'hparams.json', vars(source.hparams))
    write_vocabulary(directory, source, *checkpoint.VOCABULARY)
    with tempfile.TemporaryFile(dir=directory) as file:
        save_weights(os.path.join(directory, 'model.ckpt'), source.hparams,
                     stage(source.hparams, read, file))
    checkpoint.write_state(directory, 'model.ckpt')


def stage(hparams, read, file):
    """Copies the weights of a model into a file, one at a time, and maps it.

    A checkpoint is written in a single operation, which has all weights as its inputs: in a file,
    they need not be in memory.

    Returns:
      A dict, name -> float32 array. TensorFlow takes them as they lie, as each is aligned.
    """
    shapes = dict(checkpoint.weight_shapes(hparams))
    starts = {}
    for name in watched(list(shapes)):
        file.write(bytes(-file.tell() % 64))
        starts[name] = file.tell() // 4
        file.write(np.ascontiguousarray(read(name), np.float32).data)
    file.flush()
    flat = np.memmap(file, np.float32, mode='r')
    return {name: flat[starts[name]:][:safetensors_file.element_count(shape)].reshape(shape)
            for name, shape in shapes.items()}


def save_weights(prefix, hparams, weights):
    """Writes a TensorFlow V2 checkpoint of weights, and beside it the graph of their model.

    Args:
      prefix: its path without the endings of its files.
      weights: dict, name -> float32 array.
    """
    tf = cli.import_tensorflow()
    import model
    graph, config = tf.Graph(), tf.ConfigProto(device_count={'GPU': 0})
    with graph.as_default(), tf.Session(config=config) as session:
        model.model(hparams, tf.placeholder(tf.int32, [None, None]))
        saver = tf.train.Saver(checkpoint.model_weights())
        try:
            saver.export_meta_graph(prefix + '.meta')
            # The Saver would save variables; the same operation saves what is fed.
            names = sorted(weights)
            values = [tf.placeholder(tf.float32, weights[name].shape) for name in names]
            save = tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names,
                                     shape_and_slices=[''] * len(names), tensors=values)
            session.run(save, dict(zip(values, [weights[name] for name in names])))
        except tf.errors.OpError as error:
            raise cli.UserError('%s.* cannot be written: %s' % (prefix, error.message))


if __name__ == '__main__':
    cli.run(convert)
