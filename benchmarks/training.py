"""Measure training side by side with torch, and what gradient checkpointing saves.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/training.py

Speed: steps of AdamW on a batch of 1 x 512 tokens, in the shape of 124M with random weights, by
this project and by transformers on torch (eager, float32), in one process, in turn, on all cores.
Both must have the same losses. Memory: by how much a process grows from before its first step to
its peak in two steps on 2 x 1,024 tokens, with and without --gradient_checkpointing, each in its
own process (Linux). Medians and ratios are printed as Markdown tables.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from engines import ROOT
from official import MODEL, SIZES, write_official
from peers import CORES, write_transformers

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

RATE, DECAY = 1e-4, 0.01


def load_project(folder, **compute):
    """Return a function that does a step on a batch int32 [B, S + 1] and returns its loss.

    Args:
      compute: of ComputeOptions.
    """
    from gpt2 import runtime
    from gpt2.model_dir import open_model_dir
    from gpt2.training.options import ComputeOptions, TrainingOptions
    tf = runtime.import_tensorflow()
    from gpt2.training import loop
    start = open_model_dir(MODEL, folder)
    options = TrainingOptions(weight_decay=DECAY).fit_model(start.hparams)
    with tf.Graph().as_default():
        graph = loop.build_graph(start.hparams, options, ComputeOptions(**compute))
        session = tf.Session()
        loop.initialize(session, start, scratch=False)
    return lambda batch: loop.run_step(session, graph, [(batch, 0)], RATE)


def load_torch(folder):
    """Return the same function for transformers on torch."""
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
    """Print tokens per second of each, and their ratio."""
    write_transformers(folder, os.path.join(folder, 'torch'))
    steps = {'this project': load_project(folder), 'torch': load_torch(folder)}
    batches = [random_batch(1, 512, seed) for seed in range(rounds + 1)]
    times = {name: [] for name in steps}
    losses = {name: [] for name in steps}
    for batch in batches:
        for name, step in steps.items():
            start = time.perf_counter()
            losses[name].append(step(batch))
            times[name].append(time.perf_counter() - start)
    np.testing.assert_allclose(losses['this project'], losses['torch'], rtol=1e-4)
    ours, theirs = (512 / statistics.median(times[name][1:]) for name in steps)
    print(f'| steps on 1 x 512 tokens | tokens/s |\n|---|---|\n| this project | {ours:.0f} |\n'
          f'| transformers on torch | {theirs:.0f} |\n'
          f'| ratio (goal: at least 0.9) | {ours / theirs:.2f} |\n')


def random_batch(n_batch, n_seq, seed):
    """Return random tokens, int32 [B, S + 1]."""
    random = np.random.RandomState(seed)
    return random.randint(SIZES['124M']['n_vocab'], size=[n_batch, n_seq + 1]).astype(np.int32)


def resident(name):
    """Return the memory of this process in MB: VmRSS (now) or VmHWM (peak)."""
    with open('/proc/self/status', encoding='utf-8') as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith(name))


def print_growth(folder, recompute):
    """Print by how many MB this process grows in two steps."""
    step = load_project(folder, recompute=recompute)
    before = resident('VmRSS')
    with open('/proc/self/clear_refs', 'w', encoding='utf-8') as file:
        file.write('5')  # the peak is counted from here
    for seed in range(2):
        step(random_batch(2, 1024, seed))
    print(f'{resident("VmHWM") - before:.0f}')


def measure_memory(folder):
    """Print how much memory steps take with and without gradient checkpointing."""
    plain, checkpointed = (
        float(subprocess.check_output([sys.executable, __file__, '--folder', folder,
                                       '--growth', name]).decode('utf-8').split()[-1])
        for name in ('plain', 'checkpointing'))
    print(f'| two steps on 2 x 1,024 tokens | growth, MB |\n|---|---|\n| plain | {plain:.0f} |\n'
          f'| --gradient_checkpointing | {checkpointed:.0f} |\n'
          f'| ratio (goal: at most 0.6) | {checkpointed / plain:.2f} |')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='steps of each: 7')
    parser.add_argument('--folder', help='where the weights are kept from one run to the next')
    parser.add_argument('--only', choices=('speed', 'memory'))
    parser.add_argument('--growth', choices=('plain', 'checkpointing'), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if not os.path.isdir(os.path.join(folder, MODEL)):
            write_official(folder, '124M')
        if options.growth:
            print_growth(folder, options.growth == 'checkpointing')
            return
        if options.only != 'memory':
            measure_speed(folder, options.rounds)
        if options.only != 'speed':
            measure_memory(folder)


if __name__ == '__main__':
    main()
