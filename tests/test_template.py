"""TensorFlow Lite models that are filled with values: that they compute with them, in any dtype."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import model

if tf.__version__.startswith('1.'):
    pytest.skip('the lite engine needs TensorFlow 2', allow_module_level=True)

from gpt2.lite import int4, template  # noqa: E402
from gpt2.lite.interpreter import Subgraph  # noqa: E402

N_IN, N_OUT = 128, 96


def product(x):
    return model.norm(model.conv1d(x, 'c', N_OUT), 'ln')


def random_values(seed):
    random = np.random.RandomState(seed)
    values = {'model/c/w': random.randn(1, N_IN, N_OUT) / 50, 'model/c/b': random.randn(N_OUT),
              'model/ln/g': random.randn(N_OUT), 'model/ln/b': random.randn(N_OUT)}
    return {name: value.astype(np.float32) for name, value in values.items()}


def rounded(weights, dtype):
    """Return the weights [O, I] that a dtype has for those of float32."""
    if dtype == 'int8':
        scales = np.abs(weights).max(axis=1, keepdims=True) / 127
        return np.rint(weights / scales) * scales
    if dtype == 'int4':
        codes, scales = int4.quantize(np.ascontiguousarray(weights))
        return codes * np.repeat(scales, int4.BLOCK, axis=1)
    return weights


def expected(values, x, dtype):
    """Compute `product` of x in float64."""
    c = x @ np.float64(rounded(values['model/c/w'][0].T, dtype)).T + values['model/c/b']
    c -= c.mean(axis=-1, keepdims=True)
    c /= np.sqrt(np.square(c).mean(axis=-1, keepdims=True) + 1e-5)
    return c * values['model/ln/g'] + values['model/ln/b']


@pytest.mark.parametrize('dtype, bound', [('float32', 1e-4), ('int8', 0.05), ('int4', 0.05)])
def test_a_template_takes_one_set_of_values_after_another(tmp_path, dtype, bound):
    """The kernels of few bits round their inputs to 8 bits, so the results are only near."""
    one = template.Template(N_IN, dtype, product, 1)
    x = np.random.RandomState(0).randn(5, N_IN).astype(np.float32)
    for seed in (1, 2, 1):
        values = random_values(seed)
        path = tmp_path / f'{seed}.tflite'
        path.write_bytes(one.fill(values.__getitem__))
        found, = Subgraph(str(path))(x)
        assert np.abs(found - expected(values, x, dtype)).max() < bound
        if dtype != 'float32':
            assert np.abs(found - expected(values, x, 'float32')).max() > 1e-4


def test_values_that_round_to_nothing(tmp_path):
    """A channel of zeros has a scale all the same."""
    values = random_values(3)
    values['model/c/w'][0, :, 7] = 0
    x = np.random.RandomState(0).randn(2, N_IN).astype(np.float32)
    for dtype in ('int8', 'int4'):
        path = tmp_path / f'{dtype}.tflite'
        path.write_bytes(template.Template(N_IN, dtype, product, 1).fill(values.__getitem__))
        found, = Subgraph(str(path))(x)
        assert np.isfinite(found).all()


def test_a_constant_that_is_computed_of_a_variable_is_refused():
    def build(x):
        return x * (2 * tf.get_variable('v', [N_IN], tf.float32, tf.zeros_initializer()))

    with pytest.raises(RuntimeError, match='is no variable'):
        template.Template(N_IN, 'float32', build, 1)
