"""Matrices in 4 bits: their codes and scales."""
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import reference
from gpt2.errors import UserError
from gpt2.lite import converted
from gpt2.model_dir import open_model_dir

if tf.__version__.startswith('1.'):
    pytest.skip('the lite engine needs TensorFlow 2', allow_module_level=True)

from gpt2.lite import int4  # noqa: E402

N_IN, N_OUT = 128, 96


@pytest.fixture(scope='module')
def weights():
    """Weights float32 [O, I] of different sizes, with a block of zeros and one of tiny ones."""
    random = np.random.RandomState(0)
    weights = random.randn(N_OUT, N_IN) * random.lognormal(size=[N_OUT, 1]) / 50
    weights[3, :32] = 0
    weights[4, 32:64] *= 1e-9
    return weights.astype(np.float32)


def decoded(codes, scales):
    """Return the weights float64 [O, I] that codes and scales stand for."""
    return codes * np.repeat(np.float64(scales), int4.BLOCK, axis=1)


def root_mean_square(values):
    return np.sqrt(np.square(values, dtype=np.float64).mean())


def q4_0(weights):
    """Return weights [O, I] as llama.cpp's q4_0 would have them: the largest of each 32 is -8."""
    blocks = np.float64(weights).reshape([-1, 32])
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, np.newaxis], axis=1)
    scales = np.float16(largest / -8).astype(np.float64)
    with np.errstate(divide='ignore', invalid='ignore'):
        codes = np.where(scales != 0, np.clip(np.floor(blocks / scales + 8.5), 0, 15) - 8, 0)
    return (codes * scales).reshape(weights.shape)


def test_each_block_has_a_scale_and_whole_codes(weights):
    codes, scales = int4.quantize(weights)
    assert codes.dtype == np.int8 and (codes.min(), codes.max()) == (-8, 7)
    assert scales.shape == (N_OUT, N_IN / 32) and scales.min() > 0
    assert not (scales.view(np.uint32) & 0xffff).any()  # bfloat16
    assert np.array_equal(scales, scales.astype(np.float16))
    steps = (weights - decoded(codes, scales)) / np.repeat(scales, 32, axis=1)
    cut = (codes == 7) | (codes == -8)
    assert np.abs(steps[~cut]).max() <= 0.5001
    assert not codes[3, :32].any() and not codes[4, 32:64].any()


def test_weights_are_at_least_as_exact_as_in_q4_0():
    weights = np.random.RandomState(1).randn(500, 768).astype(np.float32) / 50
    error = root_mean_square(decoded(*int4.quantize(weights)) - weights)
    assert error <= root_mean_square(q4_0(weights) - weights) < root_mean_square(weights) / 10


def test_no_other_scale_is_much_better(weights):
    """Of all bfloat16 around the largest weight / 8."""
    codes, scales = int4.quantize(weights)
    error = np.square(weights - decoded(codes, scales)).reshape([-1, 32]).sum(axis=1)
    blocks = np.float64(weights).reshape([-1, 32])
    best = np.full(len(blocks), np.inf)
    for factor in np.arange(0.7, 1.6, 2**-9):
        tried = np.abs(blocks).max(axis=1, keepdims=True) / 8 * factor
        tried = np.maximum(tried, 2**-14)
        rounded = np.clip(np.rint(blocks / tried), -8, 7) * tried
        best = np.minimum(best, np.square(rounded - blocks).sum(axis=1))
    assert error.sum() <= 1.02 * best.sum()


def test_two_codes_are_packed_in_a_byte():
    packed = int4.pack(np.array([[1, -1, 7, -8]], np.int8))
    assert packed.dtype == np.uint8 and packed.tolist() == [0xf1, 0x87]


def test_a_width_without_blocks_is_refused(tmp_path):
    reference.write_checkpoint(tmp_path / 'tiny', {
        'n_vocab': 257, 'n_ctx': 8, 'n_embd': 48, 'n_head': 3, 'n_layer': 1},
        reference.random_weights({'n_vocab': 257, 'n_ctx': 8, 'n_embd': 48, 'n_head': 3,
                                  'n_layer': 1}, 0))
    opened = open_model_dir('tiny', str(tmp_path))
    with pytest.raises(UserError, match='multiple of 32, and this model has 48; use int8'):
        converted.find_or_convert(opened, 'int4')
    assert os.listdir(os.path.join(opened.path, 'lite')) == []
