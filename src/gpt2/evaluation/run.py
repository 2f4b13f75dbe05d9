"""Evaluates a model on tasks: prints the table, and keeps the results in a file."""

import contextlib
import functools
import itertools
import json
import os
import time

from gpt2 import files
from gpt2.detection.run import detect
from gpt2.errors import UserError
from gpt2.evaluation.loglikelihood import check_stride
from gpt2.evaluation.pairs import PAIR_TASKS, compare_pairs
from gpt2.evaluation.readers import read_documents
from gpt2.evaluation.report import score_documents
from gpt2.evaluation.scorer import open_scorer
from gpt2.evaluation.tasks import STREAMS, TASKS, allowed_tokens, paper_figure
from gpt2.model_dir import open_model_dir, weights_digest
from gpt2.options import as_tuple

TABLE = '{:12} {:38} {:>10} {:>8} {:>8} {:>9} {:>7} {:>9}'
RESULT_KEYS = {'task', 'settings', 'examples', 'seconds', 'measures'}


def evaluate(model, options):
    """Evaluate the model of ModelOptions as EvaluationOptions say. Raises UserError."""
    # Whatever can be checked is checked before TensorFlow is imported.
    model_dir = open_model_dir(model.model_name, model.models_dir)
    check_stride(options.stride, model_dir.hparams.n_ctx)
    sources = (options.file, options.human, options.synthetic, options.reference)
    check_outputs([*itertools.chain.from_iterable(map(as_tuple, sources))], options.output,
                  options.html)
    if options.task == 'detect':
        detect(model_dir, options)
    elif options.task == 'score':
        documents = itertools.chain.from_iterable(map(read_documents, as_tuple(options.file)))
        score_documents(model_dir, [*documents][:options.limit], options)
    elif options.task in PAIR_TASKS:
        pairs = PAIR_TASKS[options.task].read(*as_tuple(options.file))
        compare_pairs(model_dir, pairs[:options.limit], options)
    else:
        evaluate_tasks(model_dir, options)


def check_outputs(sources, *outputs):
    """Raise UserError if an output cannot be written, or would replace a source or another."""
    paths = [os.path.realpath(path) for path in (*set(sources), *outputs) if path]
    for path in filter(None, outputs):
        if paths.count(os.path.realpath(path)) > 1:
            raise UserError(f'{path} is named for two purposes; name another output')
        if os.path.exists(path) and not os.path.isfile(path):
            raise UserError(f'{path} is not a regular file; name another output')
        try:
            files.check_writable(os.path.dirname(path))
        except OSError as error:
            raise UserError(f'{path} cannot be written: {error.strerror}; name another output')


def evaluate_tasks(model_dir, options):
    """Run tasks, print the table by rows, add the results to the output. Raises UserError."""
    file = next(iter(as_tuple(options.file)), None)
    settings = dict(model=model_dir.name, weights=weights_digest(model_dir.path),
                    limit=options.limit, stride=options.stride, raw=options.raw, file=file)
    names = list(TASKS) if options.task == 'all' else [options.task]
    results = {result['task']: result for result in read_results(options.output)
               if result['settings'] == settings}
    examples = {}
    for name in names:
        paths = [os.path.join(options.data_dir, file) for file in TASKS[name].files]
        path = file or next(filter(os.path.exists, paths), None)
        if path and name not in results:
            examples[name] = TASKS[name].read(path, options.limit, options.raw)
    print(TABLE.format('task', 'measure', 'this run', '+-', 'paper', 'examples', 'stride', 'time'),
          flush=True)
    with contextlib.ExitStack() as stack:
        score = stack.enter_context(open_score(model_dir, options)) if examples else None
        for name in names:
            if name in examples:
                results[name] = run_task(name, score, examples[name], settings)
                if options.output:
                    add_result(options.output, results[name])
            if name in results:
                print_result(results[name])
    missing = [f'{name} ({TASKS[name].files[0]})' for name in names if name not in results]
    if missing:  # an error only now, when the other tasks are finished
        raise UserError(f'these tasks were not run, as their files are missing from '
                        f'{options.data_dir}: {", ".join(missing)}')


@contextlib.contextmanager
def open_score(model_dir, options):
    """Open a Scorer; yield the function `score` that a Task measures with."""
    encoder = model_dir.encoder
    encode = functools.lru_cache(maxsize=4096)(lambda text: (
        encoder.encode_bytes(text) if isinstance(text, bytes) else encoder.encode(text)))
    with open_scorer(model_dir, options, allowed_tokens(encoder)) as scorer:
        yield lambda pairs: scorer.loglikelihood(
            [(encode(context), encode(target)) for context, target in pairs], options.batch_size,
            options.stride)


def run_task(name, score, examples, settings):
    """Run a task; return its result in the form of the output."""
    began = time.monotonic()
    n_examples, measures = TASKS[name].measure(score, examples)
    return {'task': name, 'settings': settings, 'examples': n_examples,
            'seconds': time.monotonic() - began,
            'measures': [{'measure': measure.name, 'value': measure.value, 'stderr': measure.stderr,
                          'paper': paper_figure(name, measure.name, settings['model'])}
                         for measure in measures]}


def read_results(path):
    """Return the results in the file of an earlier run; none if there is no such file."""
    if not path or not os.path.exists(path):
        return []
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        results = json.loads(files.read_bytes(path))
        if isinstance(results, list) and all(RESULT_KEYS <= {*result} for result in results):
            return results
    raise UserError(f'{path} does not hold results of this script; name another --output')


def add_result(path, result):
    """Add a result to the file of results, to which other processes may add theirs."""
    with files.locked(os.path.dirname(os.path.realpath(path)), wait=True):
        results = [*read_results(path), result]
        files.write_file(path, [json.dumps(results, indent=1)])


def print_result(result):
    """Print the rows of one task."""
    stride = result['settings']['stride'] if result['task'] in STREAMS else None
    once = (result['examples'], figure(stride), f'{result["seconds"]:.0f} s')
    name = result['task']
    for row in result['measures']:
        values = [figure(row['value']) or '-', figure(row['stderr']), figure(row['paper'])]
        print(TABLE.format(name, row['measure'], *values, *once).rstrip(), flush=True)
        name, once = '', ('', '', '')


def figure(value):
    """Return a number, or None, as the table shows it."""
    if value is None or isinstance(value, int):
        return '' if value is None else str(value)
    return f'{value:.2f}' if value < 1e6 else f'{value:.4g}'
