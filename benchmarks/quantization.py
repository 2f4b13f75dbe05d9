"""Measure how far weights of few bits move a model's predictions.

    GPT2_TEST_DATA=FOLDER python3 benchmarks/quantization.py [--models_dir DIR --model_name NAME]

First on random weights in the shape of 124M: the lite engine in float32 samples texts, then reads
them in float32, int8 and int4, and the distributions of each next token are compared. Then on a
trained model, models/1M if none is named: the errors of its weights, beside those of llama.cpp's
formats if gguf is installed, and its perplexity on the last tenth of FOLDER/tinyshakespeare.txt.
Results are printed as Markdown tables.
"""

import argparse
import contextlib
import functools
import math
import os
import sys
import tempfile
from unittest import mock

import numpy as np
from engines import ROOT, generate, start_batch
from official import MODEL, write_official
from sampling import print_table

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

FEW_BITS = ('int8', 'int4')


def lite_logits(model_dir, dtype, texts):
    """Return the logits after each token of texts, int [B, S] -> float32 [B, S, V].

    The decoder works as always, but its choice of each token is replaced by the text's.
    """
    from gpt2.sampling.engines import open_decoder
    from gpt2.sampling.options import SamplingOptions
    decoder = open_decoder(model_dir, 'lite', dtype)
    n_text = texts.shape[1]
    result = []

    def sample_token(logits, uniforms, options):
        result.append(np.array(logits))
        return texts[:, len(result) % n_text]

    start_batch(decoder, texts[:, :1].tolist())
    with mock.patch('gpt2.lite.logits.sample_token', sample_token):
        decoder.decode(n_text, SamplingOptions(temperature=0))
    return np.stack(result, axis=1)


def graph_logits(model_dir, texts):
    """Return the same of the graph engine."""
    from gpt2.evaluation.loglikelihood import Scorer
    scorer = Scorer(model_dir)
    return np.stack([scorer.logits(text) for text in texts])


def log_softmax(logits):
    """Return the logarithms of the probabilities, float64."""
    logits = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def compare_random(folder):
    """Print how the distributions in few bits differ from those in float32, on random weights."""
    from gpt2.model_dir import open_model_dir
    from gpt2.sampling.engines import open_decoder
    model_dir = open_model_dir(MODEL, folder)
    prompts = [[1000 * row] for row in range(16)]
    texts = np.concatenate([prompts, generate(open_decoder(model_dir, 'lite'), prompts, 127)],
                           axis=1)
    print(f'Random weights in the shape of 124M, {texts.size} places of texts sampled from them: '
          'against float32, lite engine')
    exact = lite_logits(model_dir, 'float32', texts)
    print_table(['dtype', 'KL divergence, mean', 'largest', 'entropy of float32, mean',
                 'same likeliest token'],
                [[dtype, *compare(exact, lite_logits(model_dir, dtype, texts))]
                 for dtype in FEW_BITS])


def compare(exact_logits, rounded_logits):
    """Return how distributions differ: figures of logits [B, S, V] twice."""
    divergences, agreements, entropies = [], [], []
    for pair in zip(exact_logits, rounded_logits):  # text by text
        exact, rounded = map(log_softmax, pair)
        divergences.extend((np.exp(exact) * (exact - rounded)).sum(axis=-1))
        agreements.extend(exact.argmax(axis=-1) == rounded.argmax(axis=-1))
        entropies.extend(-(np.exp(exact) * exact).sum(axis=-1))
    return [f'{np.mean(divergences):.2g} nats', f'{np.max(divergences):.2g} nats',
            f'{np.mean(entropies):.2f} nats', f'{np.mean(agreements):.1%}']


def compare_weights(model_dir):
    """Print the errors of the matrices between attentions, in int4 and in llama.cpp's formats."""
    from gpt2 import checkpoint
    from gpt2.lite import int4
    from gpt2.model_dir import weights_prefix
    read = checkpoint.open_weights(weights_prefix(model_dir.path), model_dir.hparams)
    matrices = [np.ascontiguousarray(read(f'model/h{layer}/{name}/w')[0].T)
                for layer in range(model_dir.hparams.n_layer)
                for name in ('attn/c_attn', 'attn/c_proj', 'mlp/c_fc', 'mlp/c_proj')]

    def in_int4(matrix):
        codes, scales = int4.quantize(matrix)
        return codes * np.repeat(scales, int4.BLOCK, axis=1)

    formats = {'int4': in_int4}
    with contextlib.suppress(ImportError):
        import gguf
        for name in ('Q4_0', 'Q8_0'):
            kind = gguf.GGMLQuantizationType[name]
            formats[f'llama.cpp {name.lower()}'] = lambda matrix, kind=kind: gguf.quants.dequantize(
                gguf.quants.quantize(matrix, kind), kind)
    print(f'\nThe matrices of {model_dir.name}: error relative to the weights')
    size = sum(np.square(matrix, dtype=np.float64).sum() for matrix in matrices)
    print_table(['format', 'root mean square'], [
        [title, '{:.4%}'.format(math.sqrt(sum(
            np.square(decoded(matrix) - matrix, dtype=np.float64).sum() for matrix in matrices)
            / size))] for title, decoded in formats.items()])


def compare_perplexity(model_dir, path):
    """Print the perplexity of a model on its validation text."""
    from gpt2.training.data import open_training_data
    n_ctx = model_dir.hparams.n_ctx
    data = open_training_data(path, model_dir, n_ctx, 0.1)
    tokens = data.validation.astype(np.int32)
    tokens_a_byte = (len(tokens) - 1) / data.validation_bytes
    n_texts = (len(tokens) - 1) // n_ctx
    inputs, targets = (tokens[i:i + n_texts * n_ctx].reshape([n_texts, n_ctx]) for i in (0, 1))
    losses = {}
    engines = {'graph, float32': graph_logits, **{
        f'lite, {dtype}': functools.partial(lite_logits, dtype=dtype)
        for dtype in ('float32', *FEW_BITS)}}
    for title, logits in engines.items():
        found = np.take_along_axis(log_softmax(logits(model_dir, texts=inputs)),
                                   targets[..., np.newaxis], axis=-1)
        losses[title] = -found.mean()
    print(f'\n{model_dir.name}, {targets.size} tokens of its validation text, in windows of '
          f'{n_ctx}')
    print_table(['engine', 'nats a token', 'bits a byte', 'perplexity', 'its change'], [
        [title, f'{nats:.4f}', f'{nats * tokens_a_byte / math.log(2):.4f}', f'{math.exp(nats):.4f}',
         f'{math.expm1(nats - losses["graph, float32"]):+.3%}'] for title, nats in losses.items()])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=os.environ.get('GPT2_TEST_DATA'),
                        help='the folder; by default GPT2_TEST_DATA')
    parser.add_argument('--models_dir', default=os.path.join(ROOT, 'models'))
    parser.add_argument('--model_name', default='1M')
    options = parser.parse_args()
    if not options.data:
        parser.error('name the folder of tinyshakespeare.txt with --data')
    from gpt2 import runtime
    from gpt2.model_dir import open_model_dir
    runtime.import_tensorflow()  # before the lite engine, which would load a part of it on its own
    with tempfile.TemporaryDirectory() as folder:
        write_official(folder, '124M')
        compare_random(folder)
    model_dir = open_model_dir(options.model_name, options.models_dir)
    compare_weights(model_dir)
    compare_perplexity(model_dir, os.path.join(options.data, 'tinyshakespeare.txt'))


if __name__ == '__main__':
    main()
