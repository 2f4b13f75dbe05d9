"""Measure how fast this project scores text, side by side with transformers.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/evaluation.py

Random weights in the shape of 124M are written in the official format and converted for
transformers. Both compute the log probability of every token of the same windows of 1,024 random
tokens, in one process, in turn, on all cores; this project also computes the rank of each token.
Their results must agree. Medians and ratios are printed as a Markdown table.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time

import numpy as np
from engines import ROOT
from official import MODEL, SIZES, write_official
from peers import CORES, write_transformers

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

WINDOW = 1024


def load_project(folder):
    """Return a function from windows [B, 1 + WINDOW] to log probabilities [B * WINDOW].

    Each window begins with <|endoftext|>.
    """
    from gpt2.evaluation.loglikelihood import Scorer
    from gpt2.model_dir import open_model_dir
    scorer = Scorer(open_model_dir(MODEL, folder))

    def run(windows):
        scores = scorer.loglikelihood_rolling(windows[:, 1:], len(windows), stride=WINDOW)
        return np.concatenate([s.logprobs for s in scores])
    return run


def load_transformers(folder):
    """Return the same function of transformers on torch."""
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
    """Return the time that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5, help='measurements of each: 5')
    options = parser.parse_args()
    end_of_text = SIZES['124M']['n_vocab'] - 1
    tokens = np.random.RandomState(0).randint(end_of_text, size=[4, 1 + WINDOW])
    tokens[:, 0] = end_of_text
    with tempfile.TemporaryDirectory() as folder:
        write_official(folder, '124M')
        write_transformers(folder, os.path.join(folder, 'torch'))
        engines = [load_project(folder), load_transformers(folder)]
        print(f'| windows of {WINDOW} tokens at a time | this project, tokens/s '
              '| transformers, tokens/s | ratio |\n| --- | --- | --- | --- |')
        for n_batch in (1, 2, 4):
            windows = tokens[:n_batch]
            ours, theirs = (engine(windows) for engine in engines)  # a first time, not measured
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
            times = [[seconds(functools.partial(engine, windows)) for engine in engines]
                     for _ in range(options.rounds)]
            ours, theirs = (windows[:, 1:].size / statistics.median(column)
                            for column in zip(*times))
            print(f'| {n_batch} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |', flush=True)


if __name__ == '__main__':
    main()
