"""Measure how fast this project samples, side by side with what else people would use.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/sampling.py

Random weights are written in the official format and converted for each peer that is installed.
After a check that all float32 engines give the same greedy tokens, the engines take turns, round
after round, each in processes of its own and on all cores; medians and their ratios are printed as
Markdown tables. `--full` measures all rows and engines, `--only` some rows, `--size` another model.

This project samples at temperature 1, draw included, in chunks as its commands do. The peers take
the likeliest token, which is the fastest they can do. All make exactly the tokens asked for.
"""

import argparse
import collections
import contextlib
import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from engines import (
    ENGINES,
    LITE,
    PROJECT,
    ROOT,
    converted,
    is_converted,
    is_installed,
    load,
    open_decoder,
    start_batch,
)
from official import MODEL, SIZES, write_official
from peers import CORES, PEERS

NEAR_TIE = 1e-3  # engines may choose differently between logits as close as this


# The rows

# A text: `batch` prompts of `prompt` tokens are continued by `new` tokens each.
Text = collections.namedtuple('Text', 'title batch prompt new')

TEXTS = {
    'short': Text('batch 1, 32 + 128 tokens, ms a token', 1, 32, 128),
    'long': Text('batch 1, 32 + 960 tokens, ms a token', 1, 32, 960),
    'batch8': Text('batch 8, 32 + 256 tokens, ms a token', 8, 32, 256),
    'long8': Text('batch 8, 32 + 960 tokens, ms a token', 8, 32, 960),
    'batch32': Text('batch 32, 32 + 128 tokens, ms a token', 32, 32, 128),
    'long32': Text('batch 32, 32 + 960 tokens, ms a token', 32, 32, 960),
    'prompt32': Text('prompt of 32 tokens, ms', 1, 32, 1),
    'prompt512': Text('prompt of 512 tokens, ms', 1, 512, 1),
    'prompt1000': Text('prompt of 1,000 tokens, ms', 1, 1000, 1),
}
FILTERS = {'top-k': {'top_k': 40}, 'top-p': {'top_p': 0.9}}
STARTS = {'start': ('process start to 40 tokens, s', 40),
          'first': ('process start to the first token, s', 1)}
TITLES = {
    **{row: text.title for row, text in TEXTS.items()},
    'top-k': 'batch 1, added by top-k 40, %',
    'top-p': 'batch 1, added by top-p 0.9, %',
    'top-k8': 'batch 8, added by top-k 40, %',
    'top-p8': 'batch 8, added by top-p 0.9, %',
    **{row: title for row, (title, _) in STARTS.items()},
    'memory': 'peak memory, batch 1, 32 + 128 tokens, MB',
    'convert': 'converting the weights (once), s',
    'convert-memory': 'converting the weights (once), peak memory, MB',
}

# What the project set out to reach on two cores: an engine's row is at most `limit` times that of
# another engine, of reading all weights once ('floor'), of the memory of TensorFlow and 1.35 times
# the weights and 250 MB ('allowed'), or of 1 (None).
Goal = collections.namedtuple('Goal', 'size row engine against limit')

GOALS = [Goal('124M', *goal) for goal in [
    ('short', 'lite-f32', 'torch-f32', 0.5),
    ('short', 'lite-f32', 'floor', 1.15),
    ('long', 'lite-f32', 'ct2-f32', 1.05),
    ('batch8', 'lite-f32', 'ct2-f32', 0.75),
    ('batch32', 'lite-f32', 'ct2-f32', 0.75),
    ('prompt512', 'lite-f32', 'torch-f32', 0.9),
    ('short', 'lite-int8', 'ct2-int8', 0.5),
    ('short', 'lite-int8', 'llama-q8', 0.95),
    ('long', 'lite-int8', 'ct2-int8', 0.6),
    ('batch8', 'lite-int8', 'ct2-int8', 0.45),
    ('short', 'lite-int4', 'lite-int8', 0.65),
    ('short', 'lite-int4', 'llama-q4', 1.0),
    ('long', 'lite-int4', 'lite-int8', 0.75),
    ('batch8', 'lite-int4', 'llama-q4', 0.9),
    ('start', 'lite-int4', 'lite-int8', 1.0),
    ('memory', 'lite-int4', 'lite-int8', 0.75),
    ('short', 'graph-bf16', 'openvino-bf16', 1.0),
    ('short', 'graph', 'keras-f32', 1.0),
    *((row, f'lite-{bits}', f'openvino-{bits}', 1.0)
      for row in ('short', 'long', 'batch8', 'batch32', 'prompt512', 'prompt1000')
      for bits in ('f32', 'int8', 'int4')),
]] + [Goal('124M', row, engine, against, limit) for row, against, limit in [
    ('start', 'torch-f32', 0.55),
    ('memory', 'allowed', 1),
    ('convert', None, 30),
    ('convert-memory', None, 2000),
    ('top-k', None, 5),
    ('top-p', None, 10),
    ('top-k8', None, 5),
    ('top-p8', None, 10),
] for engine in LITE] + [Goal(*goal) for goal in [
    ('774M', 'memory', 'lite-f32', 'allowed', 1),
    ('774M', 'memory', 'lite-int8', 'allowed', 1),
    ('1558M', 'memory', 'lite-f32', None, 20000),
    ('1558M', 'memory', 'lite-int8', None, 6000),
    ('1558M', 'convert-memory', 'lite-f32', None, 20000),
    ('1558M', 'convert-memory', 'lite-int8', None, 6000),
    ('1558M', 'memory', 'lite-int4', None, 1600),
    ('1558M', 'convert', 'lite-int4', None, 300),
    ('1558M', 'convert-memory', 'lite-int4', None, 6000),
    ('1558M', 'short', 'lite-int4', 'lite-int8', 0.65),
    ('1558M', 'short', 'lite-int4', 'llama-q4', 1.0),
]]


def can_measure(row, engine):
    """Return whether an engine has this row."""
    if row.startswith('convert'):
        return engine in LITE
    if row.startswith('top-'):
        return engine in PROJECT
    return True


# Workers: each runs in a process of its own and returns its measurements by row

def make_prompts(batch, length):
    """Return prompts that differ from each other, lists of ids."""
    return [[(7919 * (i + 1) + 104729 * row) % 50000 for i in range(length)]
            for row in range(batch)]


def memory(what):
    """Return the resident memory of this process in MB, at its peak (VmHWM) or now (VmRSS)."""
    # The peak of getrusage would include that of the parent process.
    with open('/proc/self/status', encoding='ascii') as file:
        return int(re.search(what + r':\s*(\d+) kB', file.read()).group(1)) * 1024 / 1e6


def time_texts(folder, name, rows):
    """Milliseconds a token, prompt included, when warm; short texts are repeated for a second."""
    generate = load(folder, name)
    results = {}
    for row in rows:
        _, batch, n_prompt, n_new = TEXTS[row]
        prompts = make_prompts(batch, n_prompt)
        # KerasHub compiles its loop for each number of tokens.
        generate(prompts, n_new if name == 'keras-f32' else min(n_new, 8))
        times = []
        while sum(times) < 1:
            began = time.perf_counter()
            tokens = generate(prompts, n_new)
            times.append(time.perf_counter() - began)
            assert tokens.shape == (batch, n_new), tokens.shape
        results[row] = 1000 * statistics.median(times) / n_new
    return results


def time_filters(folder, name, rows):
    """What top-k and top-p add to a step, in percent.

    The settings take turns, 16 steps each, always at the same place of the same texts.
    """
    from gpt2.sampling import rng
    from gpt2.sampling.options import SamplingOptions
    decoder = open_decoder(folder, **ENGINES[name].load.keywords)
    settings = {key: SamplingOptions(**options)
                for key, options in [('plain', {}), *FILTERS.items()]}
    results = {}
    for batch, suffix in [(1, ''), (8, '8')]:
        if not any(key + suffix in rows for key in FILTERS):
            continue
        rngs = [rng.sample_rng(0, row) for row in range(batch)]
        uniforms = rng.draw_uniforms(rngs, 16, decoder.hparams.n_vocab)
        times = collections.defaultdict(list)
        for _ in range(7):
            for key, sampling in settings.items():
                start_batch(decoder, make_prompts(batch, 32))
                began = time.perf_counter()
                decoder.decode(16, sampling, uniforms)
                times[key].append(time.perf_counter() - began)
        for key in FILTERS:  # the first turn warms up
            added = [t / plain - 1 for t, plain in zip(times[key][1:], times['plain'][1:])]
            results[key + suffix] = 100 * statistics.median(added)
    return results


def measure_memory(folder, name, rows):
    """Peak memory of a process that does no more than continue one text."""
    generate = load(folder, name)
    generate(make_prompts(1, 32), 128)
    return {'memory': memory('VmHWM')}


def measure_import(folder, name, rows):
    """Memory that TensorFlow alone takes."""
    from gpt2 import runtime
    runtime.import_tensorflow()
    return {'import': memory('VmRSS')}


def measure_bandwidth(folder, name, rows):
    """The rate at which all cores together read memory, in GB/s: the best of ten."""
    from concurrent.futures import ThreadPoolExecutor
    os.environ['OPENBLAS_NUM_THREADS'] = '1'  # a thread of ours for each core
    import numpy as np
    parts = [np.ones(2**28 // CORES, np.float32) for _ in range(CORES)]
    n_bytes = sum(part.nbytes for part in parts)

    def seconds(pool):
        began = time.perf_counter()
        list(pool.map(lambda part: np.dot(part, part), parts))
        return time.perf_counter() - began
    with ThreadPoolExecutor(CORES) as pool:
        return {'bandwidth': n_bytes / min(seconds(pool) for _ in range(10)) / 1e9}


def start(folder, name, rows):
    """All that a peer does; the parent measures the time from process start to end."""
    row, = rows
    load(folder, name)(make_prompts(1, 20), STARTS[row][1])
    return {}


def convert(folder, name, rows):
    """Time and memory to convert the weights for the lite engine, also if that was done before."""
    import shutil

    from gpt2 import runtime
    from gpt2.lite import converted
    from gpt2.model_dir import open_model_dir
    runtime.import_tensorflow()
    model_dir = open_model_dir(MODEL, folder)
    dtype = ENGINES[name].load.keywords['dtype']
    shutil.rmtree(converted.converted_folders(model_dir.path, dtype)[0], ignore_errors=True)
    began = time.perf_counter()
    converted.find_or_convert(model_dir, dtype)
    return {'convert': time.perf_counter() - began, 'convert-memory': memory('VmHWM')}


def greedy(folder, name, rows):
    """The likeliest tokens after some prompts."""
    return {'greedy': load(folder, name, temperature=0)(make_prompts(16, 32), 24).tolist()}


def margin(folder, name, rows):
    """The distance of the two best logits after a text, whose ids are given as `rows`."""
    from gpt2.evaluation.loglikelihood import Scorer
    from gpt2.model_dir import open_model_dir
    logits = Scorer(open_model_dir(MODEL, folder)).logits([int(row) for row in rows])[-1]
    second, first = sorted(logits.tolist())[-2:]
    return {'margin': first - second}


def prepare(folder, name, rows):
    """Write the official model, or convert it for an engine."""
    if name in SIZES:
        write_official(folder, name)
    else:
        ENGINES[name].write(folder, converted(folder, name))
    return {}


WORKERS = {worker.__name__: worker for worker in (
    time_texts, time_filters, measure_memory, measure_import, measure_bandwidth, start, convert,
    greedy, margin, prepare)}


# The parent

def run(command, stdin=''):
    """Run a command and return its output and the seconds it took; exit if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, input=stdin.encode(), capture_output=True,
                          env=dict(os.environ, CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1'))
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f'{" ".join(command)}\n{done.stderr.decode(errors="replace")[-3000:]}')
    return done.stdout.decode(), seconds


def work(options, worker, name='', rows=()):
    """Run a worker in a process of its own and return its results."""
    return json.loads(run(worker_command(options, worker, name, rows))[0].splitlines()[-1])


def worker_command(options, worker, name, rows):
    """Return the command that runs a worker."""
    return [sys.executable, os.path.abspath(__file__), '--worker', worker, '--engines', name,
            '--only', ','.join(rows), '--folder', options.folder]


def time_start(options, name, row):
    """Return the seconds from the start of a process to its end, after a few new tokens.

    This project runs its command for prompts, from text to text. The peers are given ids.
    """
    if name in PEERS:
        return run(worker_command(options, 'start', name, [row]))[1]
    keywords = ENGINES[name].load.keywords
    script = os.path.join(ROOT, 'src', 'interactive_conditional_samples.py')
    return run([sys.executable, script, '--models_dir', options.folder, '--model_name', MODEL,
                '--length', str(STARTS[row][1]), '--engine', keywords['engine'],
                '--dtype', keywords['dtype']], stdin='a b c d e f g h i j k l m n o p q r s t\n')[1]


def report(text):
    """Print the progress of the work on stderr."""
    print(text, file=sys.stderr, flush=True)


def prepare_all(options, cells):
    """Write the model for every engine that will run, unless an earlier run kept it.

    Returns:
      The results of converting for the lite engine, which is repeated if it is to be measured.
    """
    results = {}
    if not os.path.exists(os.path.join(options.folder, MODEL, 'vocab.bpe')):
        report(f'writing random weights, {options.size}')
        work(options, 'prepare', options.size)
    for name in sorted({name for _, name in cells if name in LITE or name in PEERS}):
        wanted = {cell for cell in cells if cell[1] == name and cell[0].startswith('convert')}
        if wanted or not is_converted(options.folder, name):
            report(f'preparing the model for {ENGINES[name].title}')
            measured = work(options, 'convert' if name in LITE else 'prepare', name)
            results.update({cell: measured[cell[0]] for cell in wanted})
    return results


def check_greedy(options, names):
    """Exit if float32 engines differ by more than a near-tie can explain."""
    texts = {name: work(options, 'greedy', name)['greedy'] for name in names}
    prompts, expected = make_prompts(16, 32), texts['graph']
    for name in names:
        for row, (tokens, others) in enumerate(zip(expected, texts[name])):
            same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1],
                                                zip(tokens, others))))
            if same == len(tokens):
                continue
            text = map(str, prompts[row] + tokens[:same])
            apart = work(options, 'margin', 'graph', text)['margin']
            report(f'{ENGINES[name].title} differs from the graph at token {same + 1} of text '
                   f'{row + 1}, where the two best logits are {apart:.1e} apart')
            if apart > NEAR_TIE:
                sys.exit('That is no near-tie: nothing was measured.')
    report(f'same greedy tokens: {", ".join(ENGINES[name].title for name in names)}')


def measure(options, cells):
    """Measure all cells, (row, engine), round after round, and return their medians."""
    results = collections.defaultdict(list)
    for n in range(options.rounds):
        results['bandwidth', None].append(work(options, 'measure_bandwidth')['bandwidth'])
        if any(row == 'memory' for row, _ in cells):
            results['import', None].append(work(options, 'measure_import')['import'])
        for name in list(ENGINES)[::-1 if n % 2 else 1]:  # so that none is always the first
            rows = [row for row in TITLES
                    if (row, name) in cells and not row.startswith('convert')]
            measured = measure_engine(options, name, rows)
            for row, value in measured.items():
                results[row, name].append(value)
            if measured:
                values = ', '.join(f'{row} {value:.4g}' for row, value in measured.items())
                report(f'round {n + 1}, {ENGINES[name].title}: {values}')
    return {cell: statistics.median(values) for cell, values in results.items()}


def measure_engine(options, name, rows):
    """Return one measurement of each of an engine's rows."""
    measured = {}
    for worker, chosen in [('time_texts', lambda row: row in TEXTS),
                           ('time_filters', lambda row: row.startswith('top-')),
                           ('measure_memory', lambda row: row == 'memory')]:
        its_rows = [row for row in rows if chosen(row)]
        if its_rows:
            measured.update(work(options, worker, name, its_rows))
    for row in STARTS:
        if row in rows:
            measured[row] = time_start(options, name, row)
    return {row: measured[row] for row in rows}


# Results

def weights_bytes(options, name):
    """Return the size of the weights in an engine's dtype."""
    import types

    from gpt2.model_dir import parameter_count
    return parameter_count(types.SimpleNamespace(**SIZES[options.size])) * ENGINES[name].bytes


def yardstick(options, results, row, name, against):
    """Return what an engine's row is compared with, or None if that was not measured."""
    if against is None:
        return 1
    if against == 'floor':  # ms to read the weights once
        return weights_bytes(options, name) / results['bandwidth', None] / 1e6
    if against == 'allowed':
        return results['import', None] + 1.35 * weights_bytes(options, name) / 1e6 + 250
    return results.get((row, against))


def print_table(header, rows):
    """Print a table in Markdown."""
    print()
    for cells in [header, ['---'] * len(header)] + rows:
        print(f'| {" | ".join(cells)} |')


def number(value):
    """Return a measurement as text, with three significant digits; None is empty."""
    if value is None:
        return ''
    return f'{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}'


def print_results(options, results):
    """Print the medians and their ratios."""
    names = [name for name in ENGINES if any(cell[1] == name for cell in results)]
    rows = [row for row in TITLES if any(cell[0] == row for cell in results)]
    print(f'\n{options.size} on {CORES} cores ({processor()}): memory is read at '
          f'{results["bandwidth", None]:.1f} GB/s. Medians of {options.rounds} rounds.')
    if ('import', None) in results:
        print(f'TensorFlow alone takes {results["import", None]:.0f} MB.')
    table = [[TITLES[row]] + [number(results.get((row, name))) for name in names] for row in rows]
    table += [[TITLES[row].replace('ms a token', 'tokens/s')]
              + [number(1000 * TEXTS[row].batch / results[row, name])
                 if (row, name) in results else '' for name in names]
              for row in rows if options.full and row in TEXTS and TEXTS[row].new > 1]
    table.append(['reading the weights once, ms']
                 + [number(yardstick(options, results, None, name, 'floor')) for name in names])
    print_table([options.size] + [ENGINES[name].title for name in names], table)
    print_ratios(options, results, [row for row in rows if row in TEXTS or row in STARTS])
    print_goals(options, results)


def print_ratios(options, results, rows):
    """Print this project's times over those of the best peer, and of the floor."""
    table = []
    for row, name in itertools.product(rows, PROJECT):
        if (row, name) not in results:
            continue
        table.append([TITLES[row].rpartition(',')[0], ENGINES[name].title,
                      ratio_to_best_peer(options, results, row, name),
                      ratio(options, results, row, name, 'floor')
                      if row in TEXTS and TEXTS[row].new > 1 else ''])
    if table:
        print_table(['time', 'of', 'relative to the best peer of as many bits',
                     'relative to reading the weights once'], table)


def ratio(options, results, row, name, against):
    """Return an engine's row over what it is compared with, as text; empty if not measured."""
    other = yardstick(options, results, row, name, against)
    return f'{results[row, name] / other:.2f}' if other else ''


def ratio_to_best_peer(options, results, row, name):
    """Return an engine's row over that of the best peer of as many bits a weight, as text."""
    def power(engine):
        return round(math.log2(ENGINES[engine].bytes))
    peers = {peer: results[row, peer] for peer in PEERS
             if (row, peer) in results and power(peer) == power(name)}
    if not peers:
        return ''
    best = min(peers, key=peers.get)
    return f'{ratio(options, results, row, name, best)} x {PEERS[best].title}'


def print_goals(options, results):
    """Print every measured ratio that the project set itself a limit for."""
    table = []
    titles = {'floor': 'reading the weights once', None: '',
              'allowed': 'TensorFlow + 1.35 x weights + 250 MB',
              **{name: engine.title for name, engine in ENGINES.items()}}
    for size, row, name, against, limit in GOALS:
        if size != options.size or (row, name) not in results:
            continue
        other = yardstick(options, results, row, name, against)
        if not other:
            continue
        value = results[row, name] / other
        table.append([TITLES[row], titles[name], titles[against], number(value), number(limit),
                      'yes' if value <= limit else '**no**'])
    if table:
        print_table(['goal', 'of', 'relative to', 'measured', 'at most', 'met'], table)


def processor():
    """Return the name of the processor."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        names = re.findall(r'model name\s*:\s*(.+)', file.read())
    return names[0] if names else 'unknown processor'


def plot(options, results):
    """Draw the times of all texts as a PNG: a panel a row, a bar an engine, a line the floor."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    rows = [row for row in TEXTS if any(cell[0] == row for cell in results)]
    engines = [[name for name in ENGINES if (row, name) in results][::-1] for row in rows]
    heights = [0.2 * len(names) + 0.5 for names in engines]  # in inches
    figure, panels = plt.subplots(len(rows), 1, figsize=(8, sum(heights)), squeeze=False,
                                  constrained_layout=True, height_ratios=heights)
    for row, names, panel in zip(rows, engines, panels[:, 0]):
        bars = panel.barh([ENGINES[name].title for name in names],
                          [results[row, name] for name in names],
                          color=['tab:orange' if name in PROJECT else 'tab:gray' for name in names])
        panel.bar_label(bars, fmt='%.1f', padding=3)
        if TEXTS[row].new > 1:
            for i, name in enumerate(names):
                panel.plot([yardstick(options, results, row, name, 'floor')] * 2,
                           [i - 0.4, i + 0.4], color='black')
        panel.set_title(f'{options.size}, {TITLES[row]}', fontsize=10)
        panel.spines[['top', 'right']].set_visible(False)
        panel.margins(x=0.1)
    figure.supxlabel('shorter is better; black: reading the weights once at '
                     f'{results["bandwidth", None]:.0f} GB/s', fontsize=9)
    figure.savefig(options.plot, dpi=150)


def choose_cells(options):
    """Return the pairs of row and engine to measure."""
    names = list(filter(is_installed, ENGINES))
    if options.full or options.only or options.engines:
        cells = [cell for cell in itertools.product(TITLES, names) if can_measure(*cell)]
    else:
        goals = [goal for goal in GOALS if goal.size == options.size]
        cells = [(goal.row, name) for goal in goals for name in (goal.engine, goal.against)
                 if name in names]
    return {(row, name) for row, name in cells if (not options.only or row in options.only)
            and (not options.engines or name in options.engines)}


def parse(argv):
    """Return the options of the command line."""
    def names(text):
        return [name for name in text.split(',') if name]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', choices=list(SIZES), default='124M', help='of the model')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--full', action='store_true', help='all rows, all engines: hours')
    parser.add_argument('--only', type=names, default=[], metavar='ROW[,ROW]',
                        help=f'these rows, for all engines: {", ".join(TITLES)}')
    parser.add_argument('--engines', type=names, default=[], metavar='NAME[,NAME]',
                        help=f'these engines alone: {", ".join(ENGINES)}')
    parser.add_argument('--folder', help='where the models are written, and kept for the next run '
                                         'of the same size; a temporary one if not given')
    parser.add_argument('--plot', metavar='FILE', help='draw the times, as a PNG')
    parser.add_argument('--worker', choices=list(WORKERS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not options.worker:
        for name in set(options.only) - set(TITLES) | set(options.engines) - set(ENGINES):
            parser.error(f'there is no {name}; see --help')
    return options


def main():
    options = parse(sys.argv[1:])
    sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]
    if options.worker:
        name, = options.engines or ['']
        print(json.dumps(WORKERS[options.worker](options.folder, name, options.only)))
        return
    cells = choose_cells(options)
    with contextlib.ExitStack() as stack:
        options.folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        os.makedirs(options.folder, exist_ok=True)
        results = prepare_all(options, cells)
        exact = {name for row, name in cells if row in TEXTS and ENGINES[name].bytes == 4}
        if exact - {'graph'}:
            check_greedy(options, [name for name in ENGINES if name in exact | {'graph'}])
        results.update(measure(options, cells))
    print_results(options, results)
    if options.plot:
        plot(options, results)


if __name__ == '__main__':
    main()
