"""TensorFlow Lite models that are converted once, then filled with the weights of each block.

TensorFlow's converter takes seconds for a block, and all blocks are alike. So it converts a block
of random numbers, by which its variables are found again among the constants of the result.
Matrices may have 8 or 4 bits a weight; the converter makes none with blocks of 4 bits, but the
interpreter runs them.

Letters in the shape comments: O and I are the channels out of and into a product, N = I / BLOCK.
"""

import numpy as np
import tensorflow.compat.v1 as tf

import model
from gpt2.lite import int4

try:
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils
except ImportError:  # TensorFlow 1, which the lite engine does not run on
    pass

FINGERPRINT = 4  # numbers that tell one constant from another


class Template:
    """A function as a TensorFlow Lite model, with a place for the value of each variable."""

    def __init__(self, n_embd, dtype, build, n_inputs):
        """Convert a function `build` of n_inputs tensors [N, E], with matrices of a dtype."""
        data, values = convert(n_embd, build, n_inputs)
        self._model, self._dtype = flatbuffer_utils.convert_bytearray_to_object(data), dtype
        graph, = self._model.subgraphs
        self._constants = find_constants(self._model, values)
        self._matrices = set()
        for operator in graph.operators:
            if isinstance(operator.builtinOptions, schema.FullyConnectedOptionsT):
                operator.builtinOptions.asymmetricQuantizeInputs = dtype == 'int8'
                self._matrices.add(operator.inputs[1])

    def fill(self, read):
        """Return the model, bytes, with the value read(name) of each variable."""
        for index, (name, transposed) in self._constants.items():
            value = read(name)
            if transposed:
                value = value[0].T  # [O, I]
            value = np.ascontiguousarray(value)
            if index in self._matrices and self._dtype == 'int8':
                write_int8(self._model, index, value)
            elif index in self._matrices and self._dtype == 'int4':
                write_int4(self._model, index, value)
            else:
                write(self._model, index, value)
        return flatbuffer_utils.convert_object_to_bytearray(self._model)


def convert(n_embd, build, n_inputs):
    """Convert a function `build` of n_inputs tensors [N, E], whose variables are random numbers.

    Returns:
      A TensorFlow Lite model, bytes, and the values of the variables by name.
    """
    random, values = np.random.RandomState(0), {}
    with tf.Graph().as_default(), tf.Session() as session, model.variables():
        inputs = [tf.placeholder(tf.float32, [1, n_embd], f'input{i}') for i in range(n_inputs)]
        outputs = tf.nest.flatten(build(*inputs))
        for variable in tf.global_variables():
            value = random.random_sample(variable.shape.as_list()).astype(np.float32)
            session.run(variable.initializer, {variable.initial_value: value})
            values[variable.op.name] = value
        converter = tf.lite.TFLiteConverter.from_session(session, inputs, outputs)
        return converter.convert(), values


def find_constants(lite_model, values):
    """Find the variables among the constants of a TensorFlow Lite model.

    Args: values: of the variables by name, random numbers.

    Returns:
      A dict: index of a tensor -> name of its variable, and whether it is transposed.

    Raises RuntimeError if there is another large constant, which was computed of some.
    """
    known = {}
    for name, value in values.items():
        known[fingerprint(value)] = name, False
        if value.ndim == 3:  # [1, I, O], as model.conv1d has it
            known[fingerprint(value[0].T)] = name, True
    found = {}
    for index, tensor in enumerate(lite_model.subgraphs[0].tensors):
        data = lite_model.buffers[tensor.buffer].data
        if data is None or tensor.type != schema.TensorType.FLOAT32:
            continue
        constant = np.asarray(data).view(np.float32)
        if constant.size > 1:  # else it is a number in a formula
            if fingerprint(constant) not in known:
                raise RuntimeError(f'{tensor.name.decode()} of the converted model is no variable')
            found[index] = known[fingerprint(constant)]
    return found


def fingerprint(array):
    """Return what tells a large array of random numbers from others."""
    return array.size, array.ravel()[:FINGERPRINT].tobytes()


def write(lite_model, index, value):
    """Write the value of a constant, a tensor of a TensorFlow Lite model."""
    buffer = lite_model.buffers[lite_model.subgraphs[0].tensors[index].buffer]
    buffer.data = value.view(np.uint8).reshape(-1)


def write_int8(lite_model, index, weights):
    """Write a matrix float32 [O, I] in int8, with a scale for each output channel."""
    scales = np.maximum(np.abs(weights).max(axis=1) / 127, np.finfo(np.float32).tiny)
    write(lite_model, index, np.rint(weights / scales[:, np.newaxis]).astype(np.int8))
    matrix = lite_model.subgraphs[0].tensors[index]
    matrix.type = schema.TensorType.INT8
    matrix.quantization = schema.QuantizationParametersT(
        scale=scales, zeroPoint=np.zeros(len(scales), np.int64), quantizedDimension=0)


def write_int4(lite_model, index, weights):
    """Write a matrix float32 [O, I] in 4 bits, with a scale for each block."""
    codes, scales = int4.quantize(weights)
    write(lite_model, index, int4.pack(codes))
    tensors = lite_model.subgraphs[0].tensors
    matrix = tensors[index]
    if matrix.type != schema.TensorType.INT4:
        matrix.type = schema.TensorType.INT4
        matrix.quantization = schema.QuantizationParametersT(
            detailsType=schema.QuantizationDetails.BlockwiseQuantization,
            details=schema.BlockwiseQuantizationT(len(tensors), -1, int4.BLOCK))
        lite_model.buffers.append(schema.BufferT())
        tensors.append(schema.TensorT(list(scales.shape), schema.TensorType.FLOAT16,
                                      len(lite_model.buffers) - 1, f'scales{len(tensors)}'))
    write(lite_model, matrix.quantization.details.scales, scales.astype(np.float16))
