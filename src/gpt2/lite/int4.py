"""4 bits a weight: each BLOCK of the weights of an output channel shares a scale.

A weight is its scale times a code, -8 to 7.

Letters in the shape comments: O and I are the channels out of and into a product, N = I / BLOCK.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gpt2 import runtime

BLOCK = 32
CHUNK = 2 ** 13  # blocks that a thread quantizes at a time, which fit its cache

# Candidates for a scale, relative to the one that makes -8 the largest weight of a block. Smaller
# ones cut off large weights, larger ones let 7 be the largest.
CANDIDATES = np.linspace(0.8, 1.3, 33, dtype=np.float32)


def quantize(weights):
    """Return codes int8 [O, I] and scales float32 [O, N] of weights float32 [O, I]."""
    blocks = weights.reshape([-1, BLOCK])
    codes = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float32)

    def quantize_chunk(first):
        chunk = slice(first, first + CHUNK)
        scales[chunk] = best_scales(blocks[chunk])
        codes[chunk] = encode(blocks[chunk], scales[chunk])
    with ThreadPoolExecutor(runtime.processors()) as threads:
        list(threads.map(quantize_chunk, range(0, len(blocks), CHUNK)))
    return codes.reshape(weights.shape), scales.reshape([len(weights), -1])


def best_scales(blocks):
    """Return the scales [n] of the smallest squared errors of blocks [n, BLOCK].

    They are the best of the candidates, or then, for the same codes, the ones of least squares.
    """
    largest = np.abs(blocks).max(axis=-1)
    scales = as_bfloat16(largest / 8)
    errors = squared_errors(blocks, scales)

    def consider(candidates):
        candidates = as_bfloat16(candidates)
        new = squared_errors(blocks, candidates)
        better = new < errors
        errors[better], scales[better] = new[better], candidates[better]

    for candidate in CANDIDATES:
        consider(largest / 8 * candidate)
    for _ in range(3):  # new scales lead to new codes
        codes = encode(blocks, scales)
        consider(dot(codes, blocks) / np.maximum(dot(codes, codes), 1))
    return scales


def as_bfloat16(scales):
    """Round scales, float32, to bfloat16, in which the kernels read them; none becomes 0."""
    bits = np.maximum(scales, 2 ** -14).astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xffff0000).astype(np.uint32).view(np.float32)


def squared_errors(blocks, scales):
    """Return the squared errors [n] of blocks [n, BLOCK] with scales [n]."""
    errors = encode(blocks, scales)
    errors *= scales[:, np.newaxis]
    errors -= blocks
    return dot(errors, errors)


def encode(blocks, scales):
    """Return the codes, whole float32 numbers, of blocks [n, BLOCK] with scales [n]."""
    codes = blocks * (1 / scales)[:, np.newaxis]
    return np.clip(np.rint(codes, out=codes), -8, 7, out=codes)


def dot(a, b):
    """Return the products of the rows of two arrays [n, BLOCK]: [n]."""
    return np.einsum('ij,ij->i', a, b)


def pack(codes):
    """Return codes int8 [O, I] as bytes, two in each, the first in the lower half."""
    low, high = codes.reshape([-1, 2]).T.view(np.uint8) & 15
    return low | high << 4
