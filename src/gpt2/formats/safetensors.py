"""Safetensors files: named arrays, of which one at a time is in memory.

The format, as its authors describe it (github.com/huggingface/safetensors, "Format"):

    8 bytes    the length of the header, a little-endian integer
    header     {"a name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    data       the arrays, little-endian, row by row, one after the other without gaps

The header is JSON in UTF-8; spaces at its end may align the data. Offsets count from the start of
the data. `__metadata__` is not an array but an object of texts.
"""

import collections
import functools
import json
import operator
import os

import numpy as np
from tqdm import tqdm

from gpt2 import files
from gpt2.errors import ModelError

# Where an array is: its file, its type as the format names it, its shape, and the positions in the
# file where its bytes begin and end.
TensorInfo = collections.namedtuple('TensorInfo', 'path dtype shape begin end')

# The types of weights, and how NumPy reads them; it has no bfloat16.
DTYPES = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype('<u2')}

MAX_HEADER_SIZE = 100 * 10**6  # bytes, as in the authors' library


def read_header(path):
    """Return the arrays of a file, a dict name -> TensorInfo.

    Raises OSError if the file cannot be read, and ModelError if it is cut short or malformed.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if length > MAX_HEADER_SIZE:
            raise damaged(path, 'it does not begin with the length of a header')
        header = file.read(length)
    end = 8 + length
    if size < end:
        raise damaged(path, f'cut short after {size} bytes')
    try:
        tensors = {name: parse_info(path, end, info)
                   for name, info in files.parse_object(header).items() if name != '__metadata__'}
    except (ValueError, TypeError, KeyError):
        raise damaged(path, 'its header is malformed')
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != end:
            raise damaged(path, f'{name} does not begin where the array before it ends')
        end = info.end
    if size < end:
        raise damaged(path, f'cut short after {size} bytes')
    if size > end:
        raise damaged(path, f'it has {size - end} bytes after the last array')
    return tensors


def parse_info(path, base, info):
    """Return the TensorInfo of an array, with `base` the position of the data in the file.

    Any error means that the header is malformed.
    """
    dtype, shape, (begin, end) = info['dtype'], info['shape'], info['data_offsets']
    if any(type(n) is not int or n < 0 for n in [*shape, begin, end]) or begin > end:
        raise ValueError('a size or an offset is wrong')
    if dtype in DTYPES:
        # The numbers may be of any size; NumPy's would overflow.
        size = functools.reduce(operator.mul, shape, DTYPES[dtype].itemsize)
        if size != end - begin:
            raise ValueError('the shape and the offsets disagree')
    return TensorInfo(path, dtype, shape, base + begin, base + end)


def damaged(path, problem):
    """Return the error for a file that is malformed or ends too early."""
    return ModelError(f'{path} is damaged ({problem}); download it again')


def read_array(info):
    """Return an array as float32, which holds every value of float16 and bfloat16.

    Raises ModelError if the file has become shorter.
    """
    with open(info.path, 'rb') as file:
        file.seek(info.begin)
        data = file.read(info.end - info.begin)
    if len(data) < info.end - info.begin:
        raise damaged(info.path, 'cut short while it was read')
    array = np.frombuffer(data, DTYPES[info.dtype])
    if info.dtype == 'BF16':  # the upper half of a float32
        array = array.astype('<u4')
        array <<= 16
        array = array.view('<f4')
    return array.astype(np.float32, copy=False).reshape(info.shape)


def write(path, tensors):
    """Write float32 arrays, a dict, name -> shape (a list) and function that returns the array."""
    tensors = dict(sorted(tensors.items()))
    header, end = {'__metadata__': {'format': 'pt'}}, 0  # transformers asks for the format
    for name, (shape, _) in tensors.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        header[name] = {'dtype': 'F32', 'shape': shape, 'data_offsets': [begin, end]}
    header = json.dumps(header, separators=(',', ':')).encode('utf-8')
    header += b' ' * (-len(header) % 8)
    with open(path, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header)
        for _, read in tqdm(tensors.values(), unit='weight', disable=None):
            file.write(np.ascontiguousarray(read(), '<f4').data)
