"""Measure how fast the graph decoder samples on a GPU, side by side with transformers.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/gpu.py

Random weights are written in the official format and converted for transformers. The engines take
turns, round after round, each in a process of its own; medians are printed as a Markdown table.
This project samples at temperature 1, draw included; transformers takes the likeliest token, which
is the fastest it can do. Both make exactly the tokens asked for. `--cpu` tries it without a GPU.
"""

import argparse
import collections
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from engines import ROOT, converted, generate, open_decoder
from official import SIZES, write_official
from peers import PEERS, load_transformers
from sampling import print_table

N_PROMPT, N_NEW = 32, 256
# `dtype`: of the weights; `xla`: whether TensorFlow compiles what it can; `peer`: transformers.
Engine = collections.namedtuple('Engine', 'title dtype xla peer')
ENGINES = {
    **{f'graph-{dtype}': Engine(f'graph {dtype}', dtype, False, False)
       for dtype in ('float32', 'bfloat16', 'float16')},
    **{f'xla-{dtype}': Engine(f'graph {dtype}, XLA', dtype, True, False)
       for dtype in ('float32', 'bfloat16')},
    **{f'torch-{dtype}': Engine(f'transformers {dtype}', dtype, False, True)
       for dtype in ('float32', 'bfloat16', 'float16')},
}


def time_engine(options):
    """Print the milliseconds a token, warm, and the device, as JSON."""
    engine = ENGINES[options.engine]
    if engine.peer:
        import torch
        device = 'cpu' if options.cpu else torch.cuda.get_device_name()
        run = load_transformers(options.folder, converted(options.folder, 'torch-f32'), None,
                                engine.dtype, device='cpu' if options.cpu else 'cuda')
    else:
        from gpt2 import runtime
        tf = runtime.import_tensorflow()
        gpus = tf.config.list_physical_devices('GPU')
        if not gpus and not options.cpu:
            sys.exit('TensorFlow finds no GPU; see README on GPUs, or try --cpu')
        device = gpus[0].name if gpus else 'cpu'
        run = functools.partial(generate, open_decoder(options.folder, 'graph', engine.dtype))
    prompts = [[1000 + 7 * row + i for i in range(N_PROMPT)] for row in range(options.batch_size)]
    run(prompts, N_NEW)
    began = time.perf_counter()
    tokens = run(prompts, N_NEW)
    seconds = time.perf_counter() - began
    assert tokens.shape == (options.batch_size, N_NEW)
    print(json.dumps([1000 * seconds / N_NEW, device]))


def measure(options, name, batch_size):
    """Return what `time_engine` prints, of a process; None, and say why, if it fails."""
    command = [sys.executable, os.path.abspath(__file__), '--folder', options.folder,
               '--engine', name, '--batch_size', str(batch_size), *['--cpu'] * options.cpu]
    environment = dict(os.environ, HF_HUB_OFFLINE='1')
    if ENGINES[name].xla:
        environment['TF_XLA_FLAGS'] = '--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit'
    if options.cpu:
        environment['CUDA_VISIBLE_DEVICES'] = ''
    done = subprocess.run(command, env=environment, capture_output=True, encoding='utf-8')
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if 'Error' in line] or ['failed']
        print(f'{ENGINES[name].title}, batch {batch_size}: {lines[-1]}', file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=list(SIZES), default='124M', help='of the model')
    parser.add_argument('--batch_sizes', type=int, nargs='+', default=[1, 8, 32])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--cpu', action='store_true', help='run on the CPU')
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    parser.add_argument('--engine', choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument('--batch_size', type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]
    if options.engine:
        time_engine(options)
        return
    with tempfile.TemporaryDirectory() as options.folder:
        write_official(options.folder, options.size)
        PEERS['torch-f32'].write(options.folder, converted(options.folder, 'torch-f32'))
        times, devices = collections.defaultdict(list), set()
        for _ in range(options.rounds):
            for name in ENGINES:
                for batch_size in options.batch_sizes:
                    measured = measure(options, name, batch_size)
                    if measured:
                        times[name, batch_size].append(measured[0])
                        devices.add(measured[1])
    print(f'{options.size}, random weights, {N_PROMPT} + {N_NEW} tokens, ms a token, on '
          f'{", ".join(devices)}. Medians of {options.rounds} rounds.')
    print_table(['', *(f'batch {batch_size}' for batch_size in options.batch_sizes)], [
        [engine.title, *(f'{statistics.median(times[name, batch_size]):.2f}'
                         if times[name, batch_size] else 'failed'
                         for batch_size in options.batch_sizes)]
        for name, engine in ENGINES.items()])


if __name__ == '__main__':
    main()
