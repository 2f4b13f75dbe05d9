"""Safetensors files, from files and back: named arrays, of which one at a time is in memory.

The format, as its authors describe it (github.com/huggingface/safetensors, "Format"):

    8 bytes    the length of the header, a little-endian integer
    header     {"a name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    data       the arrays, little-endian, row by row, one after the other without a gap

The header is JSON in UTF-8 and may end in spaces, which align the data. Offsets count from where
the data begin. The name `__metadata__` holds no array but texts by name.
"""

import collections
import functools
import json
import operator
import os
import struct

import numpy as np

from checkpoint import ModelError

# Where an array is: its file, its type as the format names it, its shape, and the place of its
# bytes in the file.
Entry = collections.namedtuple('Entry', 'path dtype shape begin end')

# The types of weights, and how NumPy reads them; it has no bfloat16.
TYPES = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype('<u2')}

LONGEST_HEADER = 100 * 10**6  # what the authors' library reads


def read_header(path):
    """Reads what arrays are in a file: returns a dict, name -> Entry.

    Raises:
      OSError: the file cannot be read.
      ModelError: it is cut short, or its header is malformed.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(8)
        if len(start) < 8:
            raise cut_short(path)
        length, = struct.unpack('<Q', start)
        if length > LONGEST_HEADER:
            raise damaged(path, 'it begins with no length of a header')
        if 8 + length > size:
            raise cut_short(path)
        header = file.read(length)
    try:
        header = json.loads(header.decode('utf-8'))
        header.pop('__metadata__', None)
        entries = {name: parse_entry(path, 8 + length, values) for name, values in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise damaged(path, 'its header is malformed')
    check_layout(path, 8 + length, size, entries)
    return entries


def parse_entry(path, base, values):
    """Returns the Entry that a header has as a dict; whatever error there is, it is malformed.

    Args:
      base: where the data begin in the file.
    """
    dtype, shape, (begin, end) = values['dtype'], values['shape'], values['data_offsets']
    if any(type(number) is not int or number < 0 for number in [*shape, begin, end]) or begin > end:
        raise ValueError
    if dtype in TYPES and end - begin != element_count(shape) * TYPES[dtype].itemsize:
        raise ValueError
    return Entry(path, dtype, shape, base + begin, base + end)


def check_layout(path, base, size, entries):
    """Raises ModelError unless the arrays fill the file from `base` to its end, without a gap."""
    end = base
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise damaged(path, '%s is not where the array before it ends' % name)
        end = entry.end
    if end > size:
        raise cut_short(path)
    if end < size:
        raise damaged(path, 'it has %d bytes more than its header tells of' % (size - end))


def damaged(path, problem):
    """Returns the error that a file which is not in the format is told with."""
    return ModelError('%s is damaged: %s; download it again' % (path, problem))


def cut_short(path):
    """Returns the error that a file which ends too early is told with."""
    return ModelError('%s was cut short after %d bytes; download it again'
                      % (path, os.path.getsize(path)))


def element_count(shape):
    """Returns the number of elements of an array, of any size without overflow."""
    return functools.reduce(operator.mul, shape, 1)


def read_array(entry):
    """Returns an array as float32; widening float16 and bfloat16 keeps every value.

    Raises:
      ModelError: the file has become shorter.
    """
    with open(entry.path, 'rb') as file:
        file.seek(entry.begin)
        array = np.fromfile(file, TYPES[entry.dtype], element_count(entry.shape))
    if array.size < element_count(entry.shape):
        raise cut_short(entry.path)
    if entry.dtype == 'BF16':  # the upper half of a float32
        array = array.astype('<u4')
        array <<= 16
        array = array.view('<f4')
    return array.astype(np.float32, copy=False).reshape(entry.shape)


def write(path, shapes, arrays, metadata):
    """Writes a file of float32 arrays.

    Args:
      shapes: dict, name -> shape, a list.
      arrays: the arrays, in the order of their sorted names; an iterable, read one by one.
      metadata: dict, text -> text.
    """
    header, end = {'__metadata__': metadata}, 0
    for name in sorted(shapes):
        begin, end = end, end + 4 * element_count(shapes[name])
        header[name] = {'dtype': 'F32', 'shape': shapes[name], 'data_offsets': [begin, end]}
    header = json.dumps(header, separators=(',', ':')).encode('utf-8')
    header += b' ' * (-len(header) % 8)
    with open(path, 'wb') as file:
        file.write(struct.pack('<Q', len(header)) + header)
        for array in arrays:
            file.write(np.ascontiguousarray(array, '<f4').data)
