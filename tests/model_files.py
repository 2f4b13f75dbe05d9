"""Writers of small models in the formats of others, without the code under test."""
import json
import struct
import zipfile

import numpy as np

import reference

VOCABULARY = {'encoder.json': 'vocab.json', 'vocab.bpe': 'merges.txt'}  # ours: theirs
HPARAMS = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}
WEIGHTS = reference.random_weights(HPARAMS, seed=0)

# ---- transformers ------------------------------------------------------------------------------


def write_safetensors(path, arrays, metadata=None):
    """Write a safetensors file, {name: (type, array)}, in the given order."""
    header, data = {} if metadata is None else {'__metadata__': metadata}, b''
    for name, (dtype, array) in arrays.items():
        header[name] = {'dtype': dtype, 'shape': list(array.shape),
                        'data_offsets': [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode('utf-8')
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def read_safetensors(path):
    """Read a safetensors file of float32 arrays; return {name: array} and the metadata."""
    content = path.read_bytes()
    length, = struct.unpack('<Q', content[:8])
    header, data = json.loads(content[8:8 + length].decode('utf-8')), content[8 + length:]
    metadata = header.pop('__metadata__')
    assert all(entry['dtype'] == 'F32' for entry in header.values())
    return {name: np.frombuffer(data[slice(*entry['data_offsets'])], '<f4').reshape(entry['shape'])
            for name, entry in header.items()}, metadata


def renamed(weights, prefix='transformer.'):
    """Return weights with the names and the shapes of transformers."""
    result = {}
    for name, array in weights.items():
        parts = name.split('/')[1:]
        if parts[0] in ('wte', 'wpe'):
            parts.append('weight')
        else:
            parts[-1] = 'bias' if parts[-1] == 'b' else 'weight'
        if parts[0][1:].isdigit():
            parts[:1] = ['h', parts[0][1:]]
        result[prefix + '.'.join(parts)] = array[0] if array.ndim == 3 else array
    return result


def as_f32(weights):
    return {name: ('F32', array) for name, array in weights.items()}


def write_transformers(path, arrays=None, **config):
    """Write a folder of transformers, without the code under test."""
    path.mkdir(parents=True)
    sizes = {'vocab_size': 257, 'n_positions': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}
    edit_json(path / 'config.json', model_type='gpt2', **dict(sizes, **config))
    reference.write_vocabulary(str(path))
    for ours, theirs in VOCABULARY.items():
        (path / ours).rename(path / theirs)
    write_safetensors(path / 'model.safetensors', arrays or as_f32(renamed(WEIGHTS)))
    return path


def edit_json(path, **values):
    """Set values of a JSON file, which is created if there is none."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(old, **values)))


# ---- what torch.save writes --------------------------------------------------------------------

TORCH = {'F32': 'FloatStorage', 'F16': 'HalfStorage', 'BF16': 'BFloat16Storage'}
ORDERED_DICT = b'ccollections\nOrderedDict\n)R'


def push(value):
    """Return the instructions of a pickle that push a text, an integer or a tuple of those."""
    if isinstance(value, tuple):
        return b'(' + b''.join(map(push, value)) + b't'
    if isinstance(value, str):
        data = value.encode('utf-8', 'surrogatepass')
        return b'X' + struct.pack('<I', len(data)) + data
    data = value.to_bytes(value.bit_length() // 8 + 1, 'little', signed=True)
    return b'\x8a' + bytes([len(data)]) + data


def push_tensor(key='0', offset=0, shape=(16,), strides=(1,), storage='FloatStorage'):
    """Return the instructions that make a tensor, as torch.save writes them."""
    return (b'ctorch._utils\n_rebuild_tensor_v2\n((' + push('storage')
            + f'ctorch\n{storage}\n'.encode('ascii') + push(key) + push('cpu') + push(0) + b'tQ'
            + push(offset) + push(shape) + push(strides) + b'\x89' + ORDERED_DICT + b'tR')


def torch_pickle(*items):
    """Return a pickle of a dict with these items, each the instructions for key and value."""
    return b'\x80\x02' + ORDERED_DICT + b'(' + b''.join(items) + b'u.'


def write_archive(path, pickle, storages, root='pytorch_model/', **options):
    with zipfile.ZipFile(str(path), 'w', **options) as archive:
        archive.writestr(f'{root}data.pkl', pickle)
        archive.writestr(f'{root}byteorder', 'little')
        for key, data in storages.items():
            archive.writestr(f'{root}data/{key}', data)


def write_torch(path, arrays, in_one=False):
    """Write {name: (type, array)} as torch.save does, with a storage each, or one for all."""
    items, storages, end = [], {}, 0
    for i, (name, (dtype, array)) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        items.append(push(name) + push_tensor('0' if in_one else str(i), end if in_one else 0,
                                              array.shape, strides, TORCH.get(dtype, dtype)))
        storages[str(i)] = array.tobytes()
        end += array.size
    if in_one:
        storages = {'0': b''.join(storages.values())}
    write_archive(path, torch_pickle(*items), storages)
