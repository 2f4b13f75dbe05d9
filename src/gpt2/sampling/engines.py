"""Which engine runs a model. TensorFlow is imported only where it is needed."""

import os

from gpt2 import runtime
from gpt2.errors import UserError
from gpt2.lite import converted
from gpt2.model_dir import parameter_count
from gpt2.sampling.options import DTYPES, EngineOptions

LARGE = 10**8  # parameters of a model that takes long enough for a hint
CONVERTED_A_SECOND = 10**7  # parameters, about


def open_decoder(model_dir, engine='auto', dtype='float32'):
    """Return a Decoder of a ModelDir.

    Args:
      engine: 'graph'; 'lite', which converts the weights first if need be; or 'auto': 'lite' if
        float32 weights are converted and there is no GPU, or if dtype is 'int8' or 'int4', else
        'graph'.
      dtype: of the weights, one of `options.DTYPES`.

    Raises UserError if the lite engine is asked for on TensorFlow 1, or the converted weights
    cannot be written, and ModelError if the weights cannot be read.
    """
    if choose_engine(model_dir, engine, dtype) == 'graph':
        runtime.import_tensorflow()
        from gpt2.sampling.graph import GraphDecoder
        return GraphDecoder.open(model_dir, dtype)
    if runtime.is_tensorflow_1():
        raise UserError('the lite engine needs TensorFlow 2, and this is '
                        f'{runtime.tensorflow_version()}; use --engine graph and --dtype float32')
    from gpt2.lite.decoder import LiteDecoder
    folder = converted.find_or_convert(model_dir, dtype)
    with runtime.silent_stderr():  # TensorFlow Lite prints a line for each of its models
        return LiteDecoder(folder, model_dir)


def choose_engine(model_dir, engine, dtype):
    """Return the engine that `open_decoder` takes, 'graph' or 'lite'."""
    if engine != 'auto':
        return engine
    return 'lite' if prefers_lite(model_dir, dtype) else 'graph'


def prefers_lite(model_dir, dtype):
    """Return whether 'auto' means the lite engine."""
    return DTYPES[dtype] == 'lite' or DTYPES[dtype] is None and (
        not runtime.is_tensorflow_1()
        and any(map(os.path.isdir, converted.converted_folders(model_dir.path, dtype)))
        and not runtime.has_gpu())


def lite_hint(model_dir, options):
    """Return a line about the lite engine if it is faster than what EngineOptions lead to.

    None if it is not, if the user has chosen the engine, or if the model is small.
    """
    n_parameters = parameter_count(model_dir.hparams)
    if (options != EngineOptions() or n_parameters < LARGE or runtime.is_tensorflow_1()
            or choose_engine(model_dir, options.engine, options.dtype) == 'lite'
            or runtime.has_gpu()):
        return None
    return ('On a CPU, --engine lite starts in a fraction of the time and makes the same texts '
            'faster. Its first run converts the weights, in about '
            f'{n_parameters / CONVERTED_A_SECOND:.0f} s.')
