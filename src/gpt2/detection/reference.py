"""References: the statistics of human and synthetic texts, stored to compare other texts with.

A reference is an .npz file of NumPy, uncompressed, with these arrays:

    model, weights      the name of the model that read the texts, and the checksum of its weights
    statistics          the names of the STATISTICS, [S]
    lengths             how many tokens of the texts were read, int64 [K], ascending
    human, synthetic    the statistics, float64 [K, N, S] and [K, M, S]; NaN where a text is shorter
"""

import io
import re
import struct
import zipfile

import numpy as np

from gpt2 import files
from gpt2.detection.comparison import FEWEST_TEXTS, fixed_length
from gpt2.detection.statistics import STATISTICS, statistics_table
from gpt2.errors import UserError
from gpt2.options import LARGEST_INT

FIELDS = ('model', 'weights', 'statistics', 'lengths', 'human', 'synthetic')
NAMES = [statistic.name for statistic in STATISTICS]
# The header of an .npy file as NumPy writes those of our arrays. NumPy itself would read it as a
# Python expression, and arrays of objects if it were told to.
HEADER = re.compile(r"\{'descr': '(<f8|<i8|<U\d{1,4})', 'fortran_order': False, "
                    r"'shape': \(([\d, ]{0,40})\), \} *\n")
MAGIC = b'\x93NUMPY\1\0'
# What zipfile and NumPy raise when they read a damaged file.
DAMAGE = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
          ValueError, struct.error, zipfile.BadZipFile)


def is_reference(path):
    """Return whether an output is to be a reference, by its name; None is not."""
    return bool(path) and path.endswith('.npz')


def write_reference(path, result, texts, lengths, curve):
    """Write a reference of human and synthetic Texts with these lengths, [N] and [M].

    `result` names the model and its weights; `curve` has the lengths to cut to. See `new_file`.
    """
    human, synthetic = (
        [statistics_table([text.scores for text in side], fixed_length(n_tokens, length))
         for length in curve] for side, n_tokens in zip(texts, lengths))
    with files.new_file(path) as file:
        np.savez(file, model=result['model'], weights=result['weights'], statistics=NAMES,
                 lengths=np.array(curve, np.int64), human=human, synthetic=synthetic)


def read_reference(path, weights):
    """Return a reference as a dict of its arrays, for a model whose weights have this checksum.

    Nothing in the file is run. Raises UserError if it is missing, damaged, or of other weights.
    """
    data = files.read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            arrays = {name: read_array(archive, f'{name}.npy') for name in FIELDS}
        check_arrays(arrays)
    except DAMAGE:
        raise UserError(f'{path} is no reference, or is damaged; write one with: python3 '
                        'src/evaluate.py detect --human FILE --synthetic FILE --output '
                        'reference.npz')
    if arrays['weights'] != weights:
        raise UserError(f'{path} was made with other weights, of the model {arrays["model"]}; name '
                        'that model, or make a reference with this one')
    return arrays


def read_array(archive, name):
    """Return the array in a member of a ZIP archive. Raises one of DAMAGE."""
    # Stored as it is, a member takes no more memory than the file.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError('compressed')
    data = archive.read(name)
    start = len(MAGIC) + 2 + int.from_bytes(data[len(MAGIC):len(MAGIC) + 2], 'little')
    header = HEADER.fullmatch(data[len(MAGIC) + 2:start].decode('ascii'))
    if not data.startswith(MAGIC) or not header:
        raise ValueError('not an array of ours')
    shape = [int(size) for size in header.group(2).split(',') if size.strip()]
    return np.frombuffer(data[start:], header.group(1)).reshape(shape)


def check_arrays(arrays):
    """Raise ValueError unless the arrays have the types, shapes and ranges of a reference."""
    lengths = arrays['lengths']
    is_sound = (
        all(arrays[name].dtype.kind == 'U' for name in ('model', 'weights', 'statistics'))
        and arrays['model'].shape == arrays['weights'].shape == ()
        and all(arrays[name].item() for name in ('model', 'weights'))  # fails if it is no text
        and arrays['statistics'].tolist() == NAMES
        and lengths.dtype == np.int64 and lengths.ndim == 1 and len(lengths) > 0
        and 1 <= lengths[0] and lengths[-1] <= LARGEST_INT and (np.diff(lengths) > 0).all()
        and all(is_sound_side(arrays[name], len(lengths)) for name in ('human', 'synthetic')))
    if not is_sound:
        raise ValueError('not the arrays of a reference')


def is_sound_side(values, n_lengths):
    """Return whether the statistics of a side are float64 [n_lengths, N, S] and within range."""
    if values.dtype != np.float64 or values.ndim != 3 or (
            values.shape[::2] != (n_lengths, len(NAMES))):
        return False
    is_missing = np.isnan(values)
    used = [row[~missing[:, 0]] for row, missing in zip(values, is_missing)]
    return (is_missing.all(axis=2) == is_missing.any(axis=2)).all() and all(
        len(rows) >= FEWEST_TEXTS and np.isfinite(rows).all() and all(
            (statistic.low <= column).all() and (column <= statistic.high).all()
            for statistic, column in zip(STATISTICS, rows.T)) for rows in used)


def comparisons(reference, text):
    """Return how a Text compares with a reference, as a dict that JSON can hold.

    `n_compared`: how many of its first tokens are compared with as many of the reference's texts,
    None if it is too short; and for each of the STATISTICS, in `statistics`, its `value`, and how
    many of the human and the synthetic texts have that value or one further on the synthetic side.
    """
    fitting = np.flatnonzero(reference['lengths'] <= len(text.tokens))
    if not len(fitting):
        return {'n_compared': None, 'statistics': {}}
    k = fitting[-1]
    n_compared = int(reference['lengths'][k])
    values = statistics_table([text.scores], [n_compared])[0]
    return {'n_compared': n_compared,
            'statistics': {statistic.name: beyond(
                statistic.sign, float(value), reference['human'][k, :, i],
                reference['synthetic'][k, :, i])
                for i, (statistic, value) in enumerate(zip(STATISTICS, values))}}


def beyond(sign, value, human, synthetic):
    """Return how many human and synthetic values, with NaNs among them, a value does not exceed."""
    result = {'value': value}
    for name, others in (('human', human), ('synthetic', synthetic)):
        others = others[~np.isnan(others)]
        count = int(np.sum(sign * others >= sign * value))
        result.update({f'{name}_beyond': count, f'{name}_texts': len(others)})
    return dict(result, false_positive_rate=result['human_beyond'] / result['human_texts'],
                true_positive_rate=result['synthetic_beyond'] / result['synthetic_texts'])
