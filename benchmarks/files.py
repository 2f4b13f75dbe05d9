"""Measures sampling for real work: into files, with rows refilled, past the window, streamed.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/files.py                # models/1M
    python3 benchmarks/files.py --size 124M    # random weights in that shape

What is compared is measured in turn, round after round, in one process; medians and their ratios
are printed as Markdown tables. `--only` measures some rows, `--engines` some engines.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import types

from engines import MODEL, ROOT, SIZES, write_official

# What the project set out to reach: a ratio of at most this.
LIMITS = {'file': 1.05, 'refill': 0.7, 'window': 1.2, 'first': 2}


def clock(function):
    """Returns the seconds that a call of a function takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def in_turn(first, second, rounds):
    """Returns the median seconds that two functions take, measured in turn."""
    times = [(clock(first), clock(second)) for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times)]


def finish(batches):
    """Makes all texts of `texts.grow`."""
    for _ in batches:
        pass


def measure_file(model, options, folder):
    """Samples into a file, against the bare loop; batch 32."""
    import generation
    import job
    import records
    length, n = options.length, 2 * 32
    flags = types.SimpleNamespace(
        model_name='model', seed=1, batch_size=32, length=length, temperature=1, top_k=0, top_p=1,
        models_dir='models', engine='auto', dtype='float32', stop=False, stop_at=None,
        keep=model.opened.hparams.n_ctx // 2, logprobs=False)
    start = [model.opened.hparams.n_vocab - 1]
    sampler = model.sampler()

    def bare():
        for first in range(0, n, 32):
            finish(generation.generate(sampler, [start] * 32, range(first, first + 32), seed=1,
                                       length=length))

    def file():
        output = records.JsonLines(os.path.join(folder, 'samples-%f.jsonl' % time.time()), 0,
                                   model.opened.encoder, False)
        output.begin(dict(job.run_settings(flags, model.opened), seed=1))
        batches = job.grow(flags, model.opened, sampler, ((i, start) for i in range(n)),
                           batch_size=32, fill=True)
        for done in records.done(records.watched(batches, n, length)):
            output.write(done)
        output.flush()
    bare()
    return in_turn(file, bare, options.rounds), 's for %d x %d tokens' % (n, length)


def measure_refill(model, options, folder):
    """Makes 500 documents of very different lengths, rows refilled, against batch after batch."""
    import numpy as np

    import texts
    random = np.random.RandomState(0)
    prompts = [(i, [int(random.randint(model.opened.hparams.n_vocab))]) for i in range(500)]
    sampler = model.sampler()
    stop_at = options.stop_at
    lengths = []

    def grow(some):
        for batch in texts.grow(sampler, model.opened.encoder, some, seed=1, length=options.longest,
                                keep=options.keep, batch_size=16, stop_at=stop_at):
            lengths.extend(len(text.tokens) for text in batch if text.done)

    def refilled():
        grow(prompts)

    def waves():
        for first in range(0, 500, 16):
            grow(prompts[first:first + 16])
    times = in_turn(refilled, waves, 1 if options.size else options.rounds)
    return times, 's for 500 documents of %d to %d tokens, median %d, batch 16' % (
        min(lengths), max(lengths), statistics.median(lengths))


def measure_window(model, options, folder):
    """Makes one text of 5,000 tokens: its last 1,000 against its first."""
    import texts
    sampler = model.sampler()
    marks = {}
    began = time.perf_counter()
    for text, in texts.grow(sampler, model.opened.encoder, [(0, [0])], seed=1, length=5000,
                            keep=options.keep, batch_size=1, chunk_seconds=0.2):
        marks[len(text.tokens)] = time.perf_counter() - began

    def at(n):  # between the ends of chunks, by proportion
        before, after = max(m for m in marks if m <= n), min(m for m in marks if m >= n)
        share = 0 if before == after else (n - before) / (after - before)
        return marks[before] + share * (marks[after] - marks[before])
    times = [at(5000) - at(4000), at(1000) - marks[1]]
    return times, 's for tokens 4,001 to 5,000, against 1 to 1,000'


def measure_first(model, options, folder):
    """From a prompt of 100 tokens to the first token, against reading the prompt."""
    import texts
    sampler = model.sampler()
    prompt = list(range(100))

    def first():
        next(texts.grow(sampler, model.opened.encoder, [(0, prompt)], seed=1, length=50,
                        keep=options.keep, batch_size=1))

    def read():
        sampler.start([prompt + [0]])
    first()
    return in_turn(first, read, 7), 's to the first token, against reading the prompt of 100'


MEASURES = {'file': measure_file, 'refill': measure_refill, 'window': measure_window,
            'first': measure_first}


class Model:
    """A model and the engine that runs it."""

    def __init__(self, opened, engine):
        self.opened, self.engine = opened, engine
        self._sampler = None

    def sampler(self):
        """Returns a sampler; the same every time, as they take memory."""
        import engine
        if self._sampler is None:
            self._sampler = engine.open_sampler(self.opened, self.engine, 'float32')
        return self._sampler


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--size', choices=SIZES, help='random weights in this shape, not models/1M')
    parser.add_argument('--folder', help='where those are kept from one run to the next')
    parser.add_argument('--only', help='rows, with commas between: ' + ','.join(MEASURES))
    parser.add_argument('--engines', default='graph,lite', help='graph,lite')
    parser.add_argument('--rounds', type=int, default=3)
    options = parser.parse_args()
    sys.path[:0] = [os.path.join(ROOT, 'src'), os.path.join(ROOT, 'tests')]
    import checkpoint
    with tempfile.TemporaryDirectory() as temporary:
        if options.size:
            folder = options.folder or temporary
            if not os.path.isdir(os.path.join(folder, MODEL)):
                write_official(folder, options.size)
            opened = checkpoint.open_model(MODEL, folder)
            options.length, options.longest, options.stop_at = 48, 128, 'a'
        else:
            opened = checkpoint.open_model('1M', os.path.join(ROOT, 'models'))
            options.length, options.longest, options.stop_at = 256, 500, '\n\n'
        options.keep = opened.hparams.n_ctx // 2
        print('| %s, two medians and their ratio | engine | | against | ratio | wanted |'
              % (options.size or '1M'))
        print('|---|---|---|---|---|---|')
        for engine in options.engines.split(','):
            model = Model(opened, engine)
            for row in (options.only or ','.join(MEASURES)).split(','):
                (ours, against), title = MEASURES[row](model, options, temporary)
                print('| %s, %s | %s | %.3g | %.3g | %.2f | %.2f |' % (
                    row, title, engine, ours, against, ours / against, LIMITS[row]), flush=True)


if __name__ == '__main__':
    main()
