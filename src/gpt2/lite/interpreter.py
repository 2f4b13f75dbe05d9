"""TensorFlow Lite's interpreter, loaded without the rest of TensorFlow where that is possible."""

import ctypes
import functools
import glob
import importlib.util
import os
import sys

import numpy as np

from gpt2 import runtime


class Subgraph:
    """An exported subgraph: takes float32 arrays [N, E], for any N, and returns arrays [N, ...].

    The results lie in its own memory, which the next call overwrites.
    """

    def __init__(self, path):
        self._interpreter = open_interpreter(path)
        self._resize(1)
        unmap(path)

    def __call__(self, *inputs):
        if len(inputs[0]) != len(self._inputs[0]):
            self._resize(len(inputs[0]))
        for array, value in zip(self._inputs, inputs):
            array[...] = value
        self._interpreter.Invoke()
        return self._outputs

    def _resize(self, n):
        """Allocate the inputs and outputs for n tokens."""
        self._inputs = [()]  # of no size, so that it is done again if it is interrupted
        interpreter = self._interpreter
        inputs = sorted(interpreter.InputIndices().tolist(),
                        key=lambda index: interpreter.TensorName(index, 0))
        for index in inputs:
            shape = [n, interpreter.TensorSize(index, 0)[1]]
            interpreter.ResizeInputTensor(index, np.array(shape, np.int32), False)
        interpreter.AllocateTensors()

        def view(index):
            return interpreter.tensor(interpreter, index, 0)
        self._outputs = [view(index) for index in interpreter.OutputIndices().tolist()]
        self._inputs = [view(index) for index in inputs]


@functools.lru_cache(maxsize=None)
def interpreter_library():
    """Load the library of the interpreter, without the rest of TensorFlow.

    From TensorFlow 2.20 it stands alone inside the tensorflow package: loading it takes 20 ms and
    16 MB, importing TensorFlow takes seconds and more than 500 MB.

    Raises ImportError if the library is not there.
    """
    package = os.path.dirname(importlib.util.find_spec('tensorflow').origin)
    name = '_pywrap_tensorflow_interpreter_wrapper'
    for path in glob.glob(os.path.join(glob.escape(package), 'lite', 'python', name + '.*')):
        spec = importlib.util.spec_from_file_location(name, path)
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
        # TensorFlow, imported later, must take this one: loading it twice would end the process.
        sys.modules[f'tensorflow.lite.python.{name}'] = library
        return library
    raise ImportError(name)


def open_interpreter(path):
    """Return the interpreter of a TensorFlow Lite model, with XNNPACK's kernels."""
    n_threads = runtime.processors()
    if 'tensorflow' not in sys.modules:  # else the library is loaded already; twice is an error
        resolver, preserve_all, no_delegates, newest_kernels = 1, False, False, False  # defaults
        try:
            return interpreter_library().CreateWrapperFromFile(
                path, resolver, [], [], preserve_all, no_delegates, n_threads, newest_kernels)
        except (ImportError, TypeError):  # this TensorFlow has it elsewhere, or calls it otherwise
            pass
    lite = runtime.import_tensorflow().lite
    return lite.Interpreter(path, num_threads=n_threads)._interpreter


def unmap(path):
    """Release the memory of a file that is mapped into this process, on Linux.

    The kernels have packed the weights for themselves and never read the file's own again. (If
    they did, the system would read the file again.)
    """
    if not os.path.exists('/proc/self/maps'):
        return
    with open('/proc/self/maps', encoding='utf-8') as file:
        for line in file:
            if line.rstrip('\n').endswith(path):
                start, end = (int(address, 16) for address in line.split()[0].split('-'))
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)
