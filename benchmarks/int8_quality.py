"""Measures how far int8 weights move a model's predictions.

    GPT2_TEST_DATA=FOLDER python3 benchmarks/int8_quality.py

First on random weights in the shape of 124M: the lite engine in float32 samples texts, then reads
them again in int8, and at every place the two distributions of the next token are compared. Then on
models/1M: the perplexity of its held-out text, the last tenth of FOLDER/tinyshakespeare.txt, by the
graph and by the lite engine in both dtypes. Results are printed as Markdown tables.
"""

import argparse
import math
import os
import sys
import tempfile

import numpy as np
from engines import MODEL, ROOT, write_official

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]


def lite_logits(opened, dtype, texts):
    """Returns the logits after each token of texts, int [B, S] -> float32 [B, S, V].

    The engine decodes as always, but its choice of each token is replaced by the text's.
    """
    import lite
    import lite_converter
    folder = lite_converter.convert(opened.directory, opened.hparams, dtype)
    sampler = lite.Sampler(folder, opened.hparams, temperature=0)
    n_text = texts.shape[1]
    result = []

    def pick(logits, uniforms):
        result.append(np.array(logits))
        return texts[:, len(result) % n_text]
    sampler._pick = pick
    sampler.start(texts[:, :1].tolist())
    sampler.decode(n_text)
    return np.stack(result, axis=1)


def graph_logits(opened, texts):
    """Does as lite_logits, with the graph engine."""
    import checkpoint
    import cli
    tf = cli.import_tensorflow()
    import model
    with tf.Graph().as_default(), tf.Session() as session:
        tokens = tf.placeholder(tf.int32, [1, None])
        logits = model.model(opened.hparams, tokens)['logits'][0]
        checkpoint.restore(session, opened.directory)
        return np.stack([session.run(logits, {tokens: [text]}) for text in texts])


def log_softmax(logits):
    """Returns the logarithms of the probabilities, float64."""
    logits = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def sample_texts(opened, n_texts, n_tokens):
    """Returns texts sampled by the lite engine in float32, int [B, S]."""
    import generation
    import lite
    import lite_converter
    folder = lite_converter.convert(opened.directory, opened.hparams, 'float32')
    sampler = lite.Sampler(folder, opened.hparams)
    prompts = [[1000 * row] for row in range(n_texts)]
    chunks = generation.generate(sampler, prompts, range(n_texts), seed=0, length=n_tokens - 1)
    return np.concatenate([prompts, *chunks], axis=1)


def compare_random(folder):
    """Prints how the distributions in int8 differ from those in float32, random weights."""
    import checkpoint
    opened = checkpoint.open_model(MODEL, folder)
    texts = sample_texts(opened, n_texts=16, n_tokens=128)
    divergences, agreements, entropies = [], [], []
    logits = [lite_logits(opened, dtype, texts) for dtype in ('float32', 'int8')]
    for exact, rounded in (map(log_softmax, pair) for pair in zip(*logits)):  # text by text
        divergences.extend((np.exp(exact) * (exact - rounded)).sum(axis=-1))
        agreements.extend(exact.argmax(axis=-1) == rounded.argmax(axis=-1))
        entropies.extend(-(np.exp(exact) * exact).sum(axis=-1))
    print('Random weights in the shape of 124M, %d places of texts sampled from them: int8 against '
          'float32, lite engine\n' % texts.size)
    print_table(['KL divergence, mean', 'largest', 'entropy of float32, mean',
                 'same likeliest token'],
                [['%.2g nats' % np.mean(divergences), '%.2g nats' % np.max(divergences),
                  '%.2f nats' % np.mean(entropies), '%.1f %%' % (100 * np.mean(agreements))]])


def compare_perplexity(models_dir, path):
    """Prints the perplexity of models/1M on its held-out text."""
    import checkpoint
    import dataset
    opened = checkpoint.open_model('1M', models_dir)
    lengths = dataset.byte_lengths(opened.encoder)
    _, tokens = dataset.split(dataset.open_dataset(path, opened).tokens, lengths, 0.1)
    n_bytes = lengths[tokens].sum()
    tokens = tokens.astype(np.int32)
    n_text = opened.hparams.n_ctx
    n_texts = (len(tokens) - 1) // n_text
    inputs, targets = (tokens[i:i + n_texts * n_text].reshape([n_texts, n_text]) for i in (0, 1))
    losses = {}
    for title, logits in [('graph, float32', graph_logits(opened, inputs)),
                          ('lite, float32', lite_logits(opened, 'float32', inputs)),
                          ('lite, int8', lite_logits(opened, 'int8', inputs))]:
        found = np.take_along_axis(log_softmax(logits), targets[..., np.newaxis], axis=-1)
        losses[title] = -found.mean()
    print('\nmodels/1M, %d tokens of its held-out text, in stretches of %d\n'
          % (targets.size, n_text))
    print_table(['engine', 'nats a token', 'bits a byte', 'perplexity', 'its change'], [
        [title, '%.4f' % nats, '%.4f' % (nats * len(tokens) / n_bytes / math.log(2)),
         '%.4f' % math.exp(nats), '%+.3f %%' % (100 * math.expm1(nats - losses['graph, float32']))]
        for title, nats in losses.items()])


def print_table(header, rows):
    """Prints a table in Markdown."""
    for cells in [header, ['---'] * len(header)] + rows:
        print('| %s |' % ' | '.join(cells))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=os.environ.get('GPT2_TEST_DATA'),
                        help='the folder; GPT2_TEST_DATA if not given')
    options = parser.parse_args()
    if not options.data:
        parser.error('name the folder of tinyshakespeare.txt with --data')
    import cli
    cli.import_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        write_official(folder, '124M')
        compare_random(folder)
    compare_perplexity(os.path.join(ROOT, 'models'),
                       os.path.join(options.data, 'tinyshakespeare.txt'))


if __name__ == '__main__':
    main()
