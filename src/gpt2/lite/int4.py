"""Rewrites a TensorFlow Lite model so that the matrices of its products have 4 bits a weight.

TensorFlow's converter makes no such models, but its interpreter runs them. Each BLOCK of weights of
an output channel shares a scale: a weight is its scale times a code, -8 to 7.

Letters in the shape comments: O and I are the channels out of and into a product, N = I / BLOCK.
"""

import numpy as np

BLOCK = 32
CHUNK = 2 ** 10  # blocks to quantize at a time, which fit the processor's cache

# Candidates for a scale, relative to the one that makes -8 the largest weight of a block. Smaller
# ones cut off large weights, larger ones let 7 be the largest.
CANDIDATES = np.linspace(0.8, 1.3, 33, dtype=np.float32)


def rewrite(data):
    """Return a TensorFlow Lite model, bytes, of one in float32, with matrices in 4 bits."""
    from tensorflow.lite.python import schema_py_generated as schema  # only TensorFlow 2 has it
    from tensorflow.lite.tools import flatbuffer_utils
    model = flatbuffer_utils.convert_bytearray_to_object(data)
    graph, = model.subgraphs
    products = [index for index, code in enumerate(model.operatorCodes)
                if code.builtinCode == schema.BuiltinOperator.FULLY_CONNECTED]
    for index in sorted({operator.inputs[1] for operator in graph.operators
                         if operator.opcodeIndex in products}):
        matrix = graph.tensors[index]
        buffer = model.buffers[matrix.buffer]
        codes, scales = quantize(np.asarray(buffer.data).view(np.float32).reshape(matrix.shape))
        buffer.data = pack(codes)
        matrix.type = schema.TensorType.INT4
        matrix.quantization = schema.QuantizationParametersT(
            detailsType=schema.QuantizationDetails.BlockwiseQuantization,
            details=schema.BlockwiseQuantizationT(add_scales(model, scales), -1, BLOCK))
    return flatbuffer_utils.convert_object_to_bytearray(model)


def add_scales(model, scales):
    """Add scales [O, N] to a model as a constant, float16; return its index."""
    from tensorflow.lite.python import schema_py_generated as schema
    data = scales.astype(np.float16).view(np.uint8).reshape(-1)
    model.buffers.append(schema.BufferT(data))
    tensors = model.subgraphs[0].tensors
    tensors.append(schema.TensorT(list(scales.shape), schema.TensorType.FLOAT16,
                                  len(model.buffers) - 1, f'scales{len(tensors)}'))
    return len(tensors) - 1


def quantize(weights):
    """Return codes int8 [O, I] and scales float32 [O, N] of weights float32 [O, I]."""
    blocks = weights.reshape([-1, BLOCK])
    codes = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float32)
    for first in range(0, len(blocks), CHUNK):
        chunk = slice(first, first + CHUNK)
        scales[chunk] = best_scales(blocks[chunk])
        codes[chunk] = encode(blocks[chunk], scales[chunk])
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
