"""Measures training, side by side with torch, and what recomputation saves.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/training.py

Speed: steps of AdamW on a batch of 1 x 512 tokens, in the shape of 124M with random weights, by
this project and by transformers on torch (eager, float32), in one process, in turn, on all cores.
It is checked that both have the same losses. Memory: by how much a process grows from before its
first step to its peak in two steps on 2 x 1,024 tokens, with and without --recompute, in processes
of their own (Linux). Medians and ratios are printed as Markdown tables.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
from engines import CORES, MODEL, ROOT, SIZES, write_official, write_transformers

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

RATE, DECAY = 1e-4, 0.01


def flags(**changes):
    """The flags of `train.py` that the training graph depends on."""
    return types.SimpleNamespace(**dict(
        dict(accumulation=1, weight_decay=DECAY, clip_norm=1.0, dropout=0, train_only='all',
             dtype='float32', recompute=False, xla=False), **changes))


def load_project(folder, **changes):
    """Returns a function that does a step on a batch int32 [B, S + 1] and returns its loss."""
    import checkpoint
    import cli
    tf = cli.import_tensorflow()
    import learning
    import train
    start = checkpoint.open_model(MODEL, folder)
    with tf.Graph().as_default():
        graph = learning.build_graph(start.hparams, flags(**changes))
        session = tf.Session()
        train.initialize(session, start, scratch=False)
    return lambda batch: train.run_step(session, graph, [(batch, 0)], RATE)


def load_torch(folder):
    """Returns the same function of transformers on torch."""
    import torch
    import transformers
    torch.set_num_threads(CORES)
    net = transformers.GPT2LMHeadModel.from_pretrained(
        os.path.join(folder, 'torch'), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0).train()
    matrices = [parameter for parameter in net.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in net.parameters() if parameter.dim() == 1]
    adamw = torch.optim.AdamW([{'params': matrices, 'weight_decay': DECAY},
                               {'params': vectors, 'weight_decay': 0.0}], lr=RATE)

    def step(batch):
        tokens = torch.from_numpy(batch.astype(np.int64))
        adamw.zero_grad()
        logits = net(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        return loss.item()
    return step


def measure_speed(folder, rounds):
    """Prints tokens per second of each, and their ratio."""
    write_transformers(folder, os.path.join(folder, 'torch'))
    steps = {'this project': load_project(folder), 'torch': load_torch(folder)}
    batches = [random_batch(1, 512, seed) for seed in range(rounds + 1)]
    times = {name: [] for name in steps}
    losses = {name: [] for name in steps}
    for batch in batches:
        for name, step in steps.items():
            began = time.perf_counter()
            losses[name].append(step(batch))
            times[name].append(time.perf_counter() - began)
    np.testing.assert_allclose(losses['this project'], losses['torch'], rtol=1e-4)
    ours, theirs = (512 / statistics.median(times[name][1:]) for name in steps)
    print('| steps on 1 x 512 tokens | tokens/s |\n|---|---|\n| this project | %.0f |\n'
          '| transformers on torch | %.0f |\n| ratio (wanted: 0.9) | %.2f |\n'
          % (ours, theirs, ours / theirs))


def random_batch(n_batch, n_seq, seed):
    """Returns int32 [B, S + 1]."""
    random = np.random.RandomState(seed)
    return random.randint(SIZES['124M']['n_vocab'], size=[n_batch, n_seq + 1]).astype(np.int32)


def resident(name):
    """Returns a figure of this process's memory, VmRSS (now) or VmHWM (peak), in MB."""
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith(name))


def print_growth(folder, recompute):
    """Prints by how many MB this process grows in two steps."""
    step = load_project(folder, recompute=recompute)
    before = resident('VmRSS')
    with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
        file.write('5')  # the peak is counted from here
    for seed in range(2):
        step(random_batch(2, 1024, seed))
    print('%.0f' % (resident('VmHWM') - before))


def measure_memory(folder):
    """Prints how much memory steps take with and without --recompute."""
    plain, recomputed = (
        float(subprocess.check_output([sys.executable, __file__, '--folder', folder,
                                       '--growth', name]).decode('utf-8').split()[-1])
        for name in ('plain', 'recompute'))
    print('| two steps on 2 x 1,024 tokens | grown by, MB |\n|---|---|\n| plain | %.0f |\n'
          '| --recompute | %.0f |\n| ratio (wanted: 0.6) | %.2f |'
          % (plain, recomputed, recomputed / plain))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='steps of each: 7')
    parser.add_argument('--folder', help='where the weights are kept from one run to the next')
    parser.add_argument('--only', choices=('speed', 'memory'))
    parser.add_argument('--growth', choices=('plain', 'recompute'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if not os.path.isdir(os.path.join(folder, MODEL)):
            write_official(folder, '124M')
        if options.growth:
            print_growth(folder, options.growth == 'recompute')
            return
        if options.only != 'memory':
            measure_speed(folder, options.rounds)
        if options.only != 'speed':
            measure_memory(folder)


if __name__ == '__main__':
    main()
