"""Measure sampling for real work: into files, with continuous batching, past the window, streamed.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/files.py                # models/1M
    python3 benchmarks/files.py --size 124M    # random weights in that shape

What is compared is measured in turn, round after round, in one process; medians and their ratios
are printed as Markdown tables. `--only` measures some rows, `--engines` some engines.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time

from engines import ROOT, generate
from official import MODEL, SIZES, write_official

sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]

# What the project set out to reach: a ratio of at most this.
LIMITS = {'file': 1.05, 'refill': 0.7, 'window': 1.2, 'first': 2}


def clock(function):
    """Return the seconds that a call of a function takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turn(first, second, rounds):
    """Return the median seconds that two functions take, measured in turn."""
    times = [(clock(first), clock(second)) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times)]


def open_run(model_dir, length, stop_at=None):
    """Return the Run of samples with seed 1 that do not stop at <|endoftext|>."""
    from gpt2.sampling.options import EngineOptions, GenerationOptions, SamplingOptions
    from gpt2.sampling.run import Run
    generation = GenerationOptions(seed=1, length=length, stop=False, stop_at=stop_at)
    return Run(model_dir, EngineOptions(), SamplingOptions(),
               generation.fit_model(model_dir.hparams.n_ctx, length))


# The rows: each returns two times that are compared, and a title

def measure_file(model_dir, decoder, options):
    """Sample into a file, against the bare loop; batch 32."""
    from gpt2.sampling import batching, output, progress
    length, n = options.length, 2 * 32
    run = open_run(model_dir, length)
    start = [model_dir.encoder.end_of_text]

    def bare():
        for _ in range(0, n, 32):
            generate(decoder, [start] * 32, length)

    def file():
        content = output.Content(model_dir.encoder)
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(output.JsonLines(
                os.path.join(folder, 'samples.jsonl'), 0, content)) as target:
            target.begin({**run.settings(32), 'seed': 1})
            batches = run.generate(decoder, ((i, start) for i in range(n)), 32, fill=True)
            for samples in batching.finished(progress.with_progress(batches, n, length)):
                target.write(samples)
            target.flush()

    bare()
    return in_turn(file, bare, options.rounds), f's for {n} x {length} tokens'


def measure_refill(model_dir, decoder, options):
    """Make 500 documents of very different lengths by continuous batching, against batches."""
    import numpy as np
    random = np.random.RandomState(0)
    prompts = [(i, [int(random.randint(model_dir.hparams.n_vocab))]) for i in range(500)]
    run = open_run(model_dir, options.longest, options.stop_at)
    lengths = []

    def make(prompts):
        for batch in run.generate(decoder, prompts, 16):
            lengths.extend(len(sequence.tokens) for sequence in batch if sequence.done)

    def continuous():
        make(prompts)

    def batch_by_batch():
        for first in range(0, 500, 16):
            make(prompts[first:first + 16])

    times = in_turn(continuous, batch_by_batch, 1 if options.size else options.rounds)
    return times, (f's for 500 documents of {min(lengths)} to {max(lengths)} tokens, median '
                   f'{statistics.median(lengths):.0f}, batch 16')


def measure_window(model_dir, decoder, options):
    """Make one text of 5,000 tokens: its last 1,000 against its first."""
    from gpt2.sampling import batching
    run = open_run(model_dir, 5000)
    marks = {}
    began = time.perf_counter()
    for sequence, in batching.generate(decoder, model_dir.encoder, [(0, [0])], run.generation,
                                       run.sampling, batch_size=1, chunk_seconds=0.2):
        marks[len(sequence.tokens)] = time.perf_counter() - began

    def at(n):  # between the ends of chunks, by proportion
        before, after = max(m for m in marks if m <= n), min(m for m in marks if m >= n)
        share = 0 if before == after else (n - before) / (after - before)
        return marks[before] + share * (marks[after] - marks[before])

    times = [at(5000) - at(4000), at(1000) - marks[1]]
    return times, 's for tokens 4,001 to 5,000, against 1 to 1,000'


def measure_first(model_dir, decoder, options):
    """From a prompt of 100 tokens to the first token, against reading the prompt."""
    run = open_run(model_dir, 50)
    prompt = list(range(100))

    def first():
        next(run.generate(decoder, [(0, prompt)], 1))

    def prefill():
        decoder.reset(1)
        decoder.prefill([0], prompt + [0])

    first()
    return in_turn(first, prefill, 7), 's to the first token, against reading the prompt of 100'


MEASURES = {'file': measure_file, 'refill': measure_refill, 'window': measure_window,
            'first': measure_first}


def parse():
    """Return the options of the command line, and the sizes of the texts to make."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=SIZES, help='random weights in this shape, not models/1M')
    parser.add_argument('--folder', help='where those are kept from one run to the next')
    parser.add_argument('--only', default=','.join(MEASURES), metavar='ROW[,ROW]',
                        help=f'these rows: {", ".join(MEASURES)}')
    parser.add_argument('--engines', default='graph,lite', help='graph,lite')
    parser.add_argument('--rounds', type=int, default=3)
    parser.set_defaults(length=256, longest=500, stop_at='\n\n')
    options = parser.parse_args()
    if options.size:
        options.length, options.longest, options.stop_at = 48, 128, 'a'
    return options


def open_model(options, temporary):
    """Return the ModelDir to measure."""
    from gpt2.model_dir import open_model_dir
    if not options.size:
        return open_model_dir('1M', os.path.join(ROOT, 'models'))
    folder = options.folder or temporary
    if not os.path.isdir(os.path.join(folder, MODEL)):
        write_official(folder, options.size)
    return open_model_dir(MODEL, folder)


def main():
    options = parse()
    from gpt2.sampling.engines import open_decoder
    with tempfile.TemporaryDirectory() as temporary:
        model_dir = open_model(options, temporary)
        print(f'| {options.size or "1M"}, two medians and their ratio | engine | | against | ratio '
              '| wanted |')
        print('|---|---|---|---|---|---|')
        for engine in options.engines.split(','):
            decoder = open_decoder(model_dir, engine)
            for row in options.only.split(','):
                (ours, against), title = MEASURES[row](model_dir, decoder, options)
                print(f'| {row}, {title} | {engine} | {ours:.3g} | {against:.3g} '
                      f'| {ours / against:.2f} | {LIMITS[row]:.2f} |', flush=True)


if __name__ == '__main__':
    main()
