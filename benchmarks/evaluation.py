"""Measures how fast this project scores text, side by side with transformers.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/evaluation.py

Random weights in the shape of 124M are written in the official format and converted for
transformers. Both compute the log probability of every token of the same windows of 1,024 random
tokens, in one process, in turn, on all cores; this project computes the rank of each token
besides. It is checked that they agree. Medians and ratios are printed as a Markdown table.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time

import numpy as np
from engines import CORES, MODEL, ROOT, SIZES, write_official, write_transformers

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

WINDOW = 1024


def load_project(folder):
    """Returns a function from a batch of windows [B, 1 + WINDOW] to log probabilities, flat."""
    import checkpoint
    import cli
    cli.import_tensorflow()
    import score
    scorer = score.Scorer(checkpoint.open_model(MODEL, folder))

    def run(windows):
        scores = scorer.score(list(windows), batch_size=len(windows), stride=WINDOW)
        return np.concatenate([s.log_probs for s in scores])
    return run


def load_transformers(folder):
    """Returns the same function of transformers on torch."""
    import torch
    import transformers
    torch.set_num_threads(CORES)
    net = transformers.GPT2LMHeadModel.from_pretrained(os.path.join(folder, 'torch')).eval()

    def run(windows):
        tokens = torch.tensor(windows)
        with torch.inference_mode():
            logits = net(tokens[:, :-1]).logits
            return -torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction='none').numpy()
    return run


def seconds(function):
    """Returns the time that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='measurements of each: 5')
    options = parser.parse_args()
    tokens = np.random.RandomState(0).randint(SIZES['124M']['n_vocab'], size=[4, 1 + WINDOW])
    with tempfile.TemporaryDirectory() as folder:
        write_official(folder, '124M')
        write_transformers(folder, os.path.join(folder, 'torch'))
        engines = [load_project(folder), load_transformers(folder)]
        print('| windows of %d tokens at a time | this project, tokens/s | transformers, tokens/s '
              '| ratio |\n| --- | --- | --- | --- |' % WINDOW)
        for n_batch in (1, 2, 4):
            windows = tokens[:n_batch]
            ours, theirs = (engine(windows) for engine in engines)  # a first time, not measured
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
            times = [[seconds(functools.partial(engine, windows)) for engine in engines]
                     for _ in range(options.rounds)]
            ours, theirs = (windows[:, 1:].size / statistics.median(column)
                            for column in zip(*times))
            print('| %d | %.0f | %.0f | %.2f |' % (n_batch, ours, theirs, ours / theirs),
                  flush=True)


if __name__ == '__main__':
    main()
