"""Weights that torch.save wrote, pytorch_model.bin: read without torch, and without unpickling.

Such a file is a zip archive that is not compressed:

    NAME/data.pkl     a pickle: a dict of tensors, each of which lies somewhere in a storage
    NAME/data/KEY     a storage: the elements of one tensor or more
    NAME/byteorder    `little`; older files lack it and are little-endian, too

A pickle is a program for a stack machine, which may call any function of Python. The machine here
knows the few instructions that torch.save writes for a dict of tensors, and calls nothing that the
pickle names. A `pickle.Unpickler` with a `find_class` of its own would not be enough: where a key
of a dict is a tuple in a tuple, and so on, 150,000 deep, Python crashes when it hashes the key.
"""

import collections
import os
import pickletools
import struct
import zipfile

from gpt2.errors import UserError
from gpt2.formats.safetensors import DTYPES, TensorInfo, damaged

OLD_FORMAT = bytes.fromhex('80028a0a6cfc9c46f9206aa85019')  # what files of torch < 1.6 begin with
LOCAL_HEADER = struct.Struct('<4s22xHH')  # of a zip entry: signature, lengths of name and extra
MAX_PICKLE_SIZE = 5 * 10**5  # bytes; that of 1558M has 84,000

# Names in a pickle, as pickletools gives them.
DICT = 'collections OrderedDict'
TENSOR = 'torch._utils _rebuild_tensor_v2'
STORAGES = {'torch FloatStorage': 'F32', 'torch HalfStorage': 'F16',
            'torch BFloat16Storage': 'BF16'}
# Causal masks, which are not weights, are of other types.
OTHER_STORAGES = {f'torch {kind}Storage': kind for kind in (
    'Bool', 'Byte', 'Char', 'Short', 'Int', 'Long', 'Double')}

# Instructions that push their argument, and those that push a constant.
ARGUMENTS = {'BINUNICODE', 'BININT', 'BININT1', 'BININT2', 'LONG1'}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False, 'EMPTY_TUPLE': ()}

# The type of a storage, and the positions in the file where it begins and ends.
Storage = collections.namedtuple('Storage', 'dtype begin end')


class PickleError(Exception):
    """What a pickle has that no pickle of a dict of tensors has."""


def read_header(path):
    """Return the tensors of a file, a dict name -> TensorInfo.

    Raises OSError if it cannot be opened, ModelError if it is damaged, and UserError if it has the
    old format, or anything but tensors.
    """
    pickle, storages = read_archive(path)
    try:
        return read_tensors(path, pickle, storages)
    except Exception as error:  # of any kind: nobody knows what is in the file
        problem = str(error)[:100] if isinstance(error, PickleError) else 'its pickle is malformed'
        raise UserError(f'{path} is not a dict of tensors as torch.save writes it: {problem}; get '
                        'the weights as model.safetensors')


def read_archive(path):
    """Return the pickle of a file, bytes, and where its storages are, a dict, key -> begin and end.

    Raises errors as `read_header` does.
    """
    with open(path, 'rb') as file:
        if file.read(len(OLD_FORMAT)) == OLD_FORMAT:
            raise UserError(f'{path} is in the old format, of torch before 1.6; load the model '
                            'with transformers and save it with save_pretrained')
        entries = read_entries(path, file)
        roots = [name[:-len('data.pkl')] for name in entries if name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise damaged(path, 'it is an archive without data.pkl, or with several')
        root, = roots
        byteorder = read_entry(file, entries.get(root + 'byteorder', (0, 0)))
        pickle = read_entry(file, entries[root + 'data.pkl'])
    if byteorder not in (b'', b'little'):
        raise UserError(f'{path} is from a big-endian machine; save it again on another')
    return pickle, {name[len(root + 'data/'):]: entry for name, entry in entries.items()
                    if name.startswith(root + 'data/')}


def read_entries(path, file):
    """Return where the entries of an archive are, a dict, name -> positions of begin and end."""
    entries, size = {}, os.fstat(file.fileno()).st_size
    try:
        for info in zipfile.ZipFile(file).infolist():
            file.seek(info.header_offset)
            signature, *lengths = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            begin = info.header_offset + LOCAL_HEADER.size + sum(lengths)
            end = begin + info.file_size
            if (signature != b'PK\x03\x04' or info.compress_type != zipfile.ZIP_STORED
                    or info.filename in entries or end > size):
                raise ValueError('an entry is malformed')
            entries[info.filename] = begin, end
    except Exception:  # of any kind: zipfile trusts a file's numbers
        raise damaged(path, 'it is not a whole archive as torch.save writes it')
    return entries


def read_entry(file, entry):
    """Return the bytes of an entry, as many of them as a pickle may have."""
    begin, end = entry
    file.seek(begin)
    return file.read(min(end - begin, MAX_PICKLE_SIZE))


def read_tensors(path, pickle, storages):
    """Return the tensors of a pickle, a dict name -> TensorInfo.

    `storages` is what `read_archive` returns. Raises PickleError if the pickle has anything else,
    and other errors if it is malformed.
    """
    tensors = run_pickle(path, pickle, storages)
    if not isinstance(tensors, dict):
        raise PickleError('it has something else')
    for name, tensor in tensors.items():
        if not isinstance(tensor, TensorInfo):
            raise PickleError(f'{name} is not a tensor')
    return tensors


def run_pickle(path, pickle, storages):
    """Return the object that a pickle makes. Raises errors as `read_tensors` does."""
    stack, marks, memo = [], [], {}

    def pop_from(start):
        values = stack[start:]
        del stack[start:]
        return values

    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == 'EMPTY_DICT':
            stack.append({})
        elif name == 'MARK':
            marks.append(len(stack))
        elif name == 'TUPLE':
            stack.append(tuple(pop_from(marks.pop())))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            stack.append(tuple(pop_from(-int(name[-1]))))
        elif name == 'SETITEM':
            set_items(pop_from(-2), stack[-1])
        elif name == 'SETITEMS':
            set_items(pop_from(marks.pop()), stack[-1])
        elif name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif name == 'GLOBAL':
            stack.append(check_global(argument))
        elif name == 'BINPERSID':
            stack.append(find_storage(stack.pop(), storages))
        elif name == 'REDUCE':
            stack.append(call(path, *pop_from(-2)))
        elif name == 'BUILD':
            stack.pop()  # attributes of an OrderedDict: the versions of the modules
        elif name == 'STOP':
            return stack.pop()
        elif name != 'PROTO':
            raise PickleError(f'its pickle has the instruction {name}')


def set_items(items, target):
    """Add a list of keys and values, by turns, to a dict."""
    for key, value in zip(items[::2], items[1::2]):
        if not isinstance(key, str):
            raise PickleError('a key is not a text')
        target[key] = value


def check_global(name):
    """Return the name of a class or function. Raises PickleError unless tensors need it."""
    if name not in (DICT, TENSOR, *STORAGES, *OTHER_STORAGES):
        raise PickleError(f'its pickle names {name.replace(" ", ".")}')
    return name


def call(path, name, arguments):
    """Return the empty dict, or the TensorInfo, that a call in a pickle makes."""
    if name == DICT and not arguments:
        return {}
    if name != TENSOR:
        raise PickleError('its pickle calls something else than what makes tensors')
    return find_tensor(path, *arguments)


def find_storage(persistent_id, storages):
    """Return the Storage of a persistent id: 'storage', type, key, device, number of elements."""
    kind, key = persistent_id[1:3]
    if not isinstance(kind, str) or not isinstance(key, str):  # before a hash or a message of it
        raise PickleError('the place of a storage is malformed')
    if key not in storages:
        raise PickleError(f'the storage data/{key} is missing')
    return Storage(STORAGES.get(kind) or OTHER_STORAGES[kind], *storages[key])


def find_tensor(path, storage, offset, shape, strides, *_):
    """Return the TensorInfo of a tensor, with its offset and strides in elements of a Storage.

    Raises PickleError unless its elements lie in the storage row by row.
    """
    numbers = [offset, *shape, *strides]
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
        raise PickleError('the sizes of a tensor are malformed')
    itemsize = DTYPES[storage.dtype].itemsize if storage.dtype in DTYPES else 1
    begin, size = storage.begin + offset * itemsize, itemsize
    for length, stride in zip(reversed(shape), reversed(strides)):
        if size > storage.end:
            break  # numbers may be of any size, and their product endless
        if length != 1 and stride * itemsize != size:
            raise PickleError('a tensor is not contiguous')
        size *= length
    if begin + size > storage.end:
        raise PickleError('a tensor reaches beyond its storage')
    return TensorInfo(path, storage.dtype, list(shape), begin, begin + size)
