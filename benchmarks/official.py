"""The model that the benchmarks measure: random weights of any released size, as released."""

import json
import os

MODEL = 'official'  # its name in the working folder


def shape(n_layer, n_head, n_embd):
    """Return the sizes of a released model."""
    return {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': n_embd, 'n_head': n_head,
            'n_layer': n_layer}


SIZES = {'124M': shape(12, 12, 768), '355M': shape(24, 16, 1024), '774M': shape(36, 20, 1280),
         '1558M': shape(48, 25, 1600)}


def write_official(folder, size):
    """Write a model with random weights in the official format."""
    import encoder
    import reference
    directory = os.path.join(folder, MODEL)
    reference.write_checkpoint(directory, SIZES[size], reference.random_weights(SIZES[size], 0))
    # An invented vocabulary: every byte, and 50,000 pairs of bytes.
    symbols = list(encoder.bytes_to_unicode().values())
    merges = [(first, second) for second in symbols for first in symbols][:50000]
    tokens = symbols + [first + second for first, second in merges] + ['<|endoftext|>']
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n' + ''.join(f'{first} {second}\n' for first, second in merges))


def official_weights(folder):
    """Yield the name of each weight and its value."""
    import tensorflow.compat.v1 as tf
    reader = tf.train.load_checkpoint(os.path.join(folder, MODEL, 'model.ckpt'))
    for name in sorted(reader.get_variable_to_shape_map()):
        yield name, reader.get_tensor(name)


def read_json(folder, name):
    """Return the contents of a JSON file of the official model."""
    with open(os.path.join(folder, MODEL, name), encoding='utf-8') as file:
        return json.load(file)


def read_tokens(folder):
    """Return the tokens of the vocabulary, by id."""
    vocabulary = read_json(folder, 'encoder.json')
    return sorted(vocabulary, key=vocabulary.get)
