"""Evaluates a model on the paper's data sets, or scores any text: python3 src/evaluate.py TASK.

See --help.
"""

import collections
import functools
import json
import math
import os
import time

import numpy as np

import checkpoint
import cli
import corpora
import report

# A data set. `files`: where it may lie in the data folder; `read`: a function of a path, a limit
# and whether to leave the text as it is, which returns examples; `measure`: a function of a Run and
# these examples, which returns their number and Measures.
Task = collections.namedtuple('Task', 'files read measure')

# A figure that was measured, its standard error (of accuracies; else None), and the column of the
# paper's table that it belongs to (else None).
Measure = collections.namedtuple('Measure', 'name value stderr column')

# What runs the model: a checkpoint.Model, a score.Scorer, and the flags of these names.
Run = collections.namedtuple('Run', 'opened scorer batch_size stride')

# Radford et al. 2019, table 3; accuracies in percent.
COLUMNS = ('lambada_ppl', 'lambada_acc', 'cbt_cn', 'cbt_ne', 'wikitext2', 'ptb', 'enwik8', 'text8',
           'wikitext103', '1bw')
PAPER = {
    '124M': (35.13, 45.99, 87.65, 83.4, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20),
    '355M': (15.60, 55.48, 92.35, 87.1, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72),
    '774M': (10.87, 60.12, 93.45, 88.0, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575),
    '1558M': (8.63, 63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16),
}
ALIASES = {'117M': '124M', '345M': '355M', '762M': '774M', '1542M': '1558M'}

TABLE = '%-12s %-38s %10s %8s %8s %9s %7s %9s'
HEADER = ('task', 'measure', 'this run', '+-', 'paper', 'examples', 'stride', 'time')


def evaluate(task: str, file: str = None, model_name='124M', data_dir='data', limit=None,
             batch_size=1, stride=32, raw=False, output: str = None, html: str = None,
             models_dir='models'):
    """Measures a model on a data set of the paper's zero-shot table, or scores your text.

    python3 src/evaluate.py TASK [FILE] [flags]
    python3 src/evaluate.py all --model_name 124M --data_dir DATA --output results.json
    python3 src/evaluate.py wikitext2 --stride 512
    python3 src/evaluate.py score FILE --html report.html > scores.jsonl

    A task's rows are printed when it is finished; Ctrl-C ends the rest.

    TASK is one of these; each reads the file as it is distributed, from DATA_DIR or as FILE:

      lambada      lambada_test.jsonl, {"text": ...} a line, the form the paper's authors published:
                   openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl
      cbt_cn       cbtest_CN_valid_2000ex.txt, of CBTest.tgz (CBTest/data/), Children's Book Test:
                   www.thespermwhale.com/jaseweston/babi/CBTest.tgz
      cbt_ne       cbtest_NE_valid_2000ex.txt, of the same
      wikitext2    wikitext-2/wiki.test.tokens, or wiki.test.tokens: wikitext-2-v1.zip
      ptb          ptb.test.txt, of simple-examples.tgz (data/): www.fit.vutbr.cz/~imikolov/rnnlm
      enwik8       enwik8: mattmahoney.net/dc/enwik8.zip; the last 5,000,000 bytes are scored
      text8        text8: mattmahoney.net/dc/text8.zip; the same
      wikitext103  wikitext-103/wiki.test.tokens: wikitext-103-v1.zip
      1bw          news.en.heldout-00000-of-00050, of the One Billion Word Benchmark
                   (heldout-monolingual.tokenized.shuffled/): www.statmt.org/lm-benchmark
      all          all of these; those whose file is missing are told and left out, and the exit
                   status is 1. Nothing is downloaded.
      score        FILE, or - for stdin: a text, or JSON objects with a "text", one a line. For each
                   text one JSON object a line comes out: its token ids, their log probabilities
                   (natural) and ranks, total, mean, perplexity, bits per byte, and the shares of
                   tokens of rank 1, 2-10, 11-100, 101-1000 and beyond.

    --model_name  a folder of MODELS_DIR: 124M
    --data_dir    where the data sets are: data
    --limit       use only the first so many passages, questions, lines or (enwik8, text8) bytes
    --batch_size  windows to read at a time, or as many tokens in shorter texts; changes speed and
                  memory alone: 1
    --stride      tokens that the window moves by in a text that is longer, 1 to the window; all
                  others are context. More is faster, and the figures get a little worse: 32
    --raw         score the data sets as distributed, with no de-tokenizing
    --output      of a task: a JSON file for the results; tasks that it holds already, of the same
                  weights and settings, are not done again. Of score: the file to write instead of
                  stdout
    --html        of score: write a page that shows the texts, tokens coloured by rank
    --models_dir  where the models are: models
    """
    cli.check_choice('task', task, [*TASKS, 'all', 'score'])
    if limit is not None:
        cli.check_int('limit', limit, 1)
    cli.check_int('batch_size', batch_size, 1)
    opened = checkpoint.open_model(model_name, models_dir)
    cli.check_int('stride', stride, 1, opened.hparams.n_ctx)
    for path in filter(None, [output, html]):
        report.check_writable(path)

    if task == 'score':
        if not file:
            raise cli.UsageError('FILE is missing: python3 src/evaluate.py score FILE, or -')
        documents = report.read_documents(file)[:limit]
        report.score_documents(open_run(opened, batch_size, stride), documents, output, html)
        return
    if html:
        raise cli.UsageError('--html is for the task score')
    if file and task == 'all':
        raise cli.UsageError('all takes no FILE; name their folder with --data_dir')
    settings = {'model': model_name, 'weights': checkpoint.weights_digest(opened.directory),
                'limit': limit,
                'stride': stride, 'raw': raw}
    evaluate_tasks(list(TASKS) if task == 'all' else [task], file, data_dir, settings, output,
                   functools.partial(open_run, opened, batch_size, stride, corpora.STOP_WORDS))


def evaluate_tasks(names, file, data_dir, settings, output, start):
    """Runs tasks, prints the table row by row, and keeps the results in a file, if one is named.

    Args:
      start: a function that returns a Run; it is called when all that can be checked is.

    Raises:
      UserError: a file is missing or malformed.
    """
    results = read_results(output)
    done = {name: result for name in names for result in results
            if result['task'] == name and result['settings'] == dict(settings, file=file)}
    examples, missing = {}, []
    for name in names:
        if name not in done:
            path = file or find(name, data_dir)
            if path:
                examples[name] = TASKS[name].read(path, settings['limit'], settings['raw'])
            else:
                missing.append(name)
    print(TABLE % HEADER, flush=True)
    run = start() if examples else None
    for name in names:
        if name in examples:
            began = time.monotonic()
            n_examples, measures = TASKS[name].measure(run, examples.pop(name))
            done[name] = {'task': name, 'settings': dict(settings, file=file),
                          'examples': n_examples, 'seconds': time.monotonic() - began,
                          'measures': [with_paper(measure, settings) for measure in measures]}
            results.append(done[name])
            if output:
                checkpoint.write_file(output, [json.dumps(results, indent=1)])
        if name in done:
            print_result(done[name])
    if missing:
        raise cli.UserError('not done, as the files are missing from %s: %s' % (
            data_dir, ', '.join('%s (%s)' % (name, TASKS[name].files[0]) for name in missing)))


def find(name, data_dir):
    """Returns the path of a task's file in the data folder, or None."""
    paths = [os.path.join(data_dir, file) for file in TASKS[name].files]
    return next(filter(os.path.exists, paths), None)


def read_results(path):
    """Returns the results in a file that an earlier run wrote; none if there is no such file."""
    if not path or not os.path.exists(path):
        return []
    try:
        with open(path, encoding='utf-8') as file:
            results = json.load(file)
        return [result for result in results if {*result} >= {'task', 'settings', 'measures'}]
    except (OSError, ValueError, TypeError):
        raise cli.UserError('%s does not hold results of this script; name another --output' % path)


def with_paper(measure, settings):
    """Returns a Measure as a dict, with the figure of the paper for the model in its place."""
    name = ALIASES.get(settings['model'], settings['model'])
    paper = None
    if measure.column and name in PAPER:
        paper = PAPER[name][COLUMNS.index(measure.column)]
    return {'measure': measure.name, 'value': measure.value, 'stderr': measure.stderr,
            'paper': paper}


def print_result(result):
    """Prints the rows of one task."""
    def figure(value):
        if value is None:
            return ''
        return '%d' % value if type(value) is int else '%.2f' % value if value < 1e6 else (
            '%.4g' % value)

    stride = result['settings']['stride'] if result['task'] in STREAMS else None
    for i, row in enumerate(result['measures']):
        once = (result['examples'], figure(stride), '%.0f s' % result['seconds'])
        print((TABLE % ('' if i else result['task'], row['measure'], figure(row['value']),
                        figure(row['stderr']), figure(row['paper']),
                        *(['', '', ''] if i else once))).rstrip(), flush=True)


def open_run(opened, batch_size, stride, stop_words=()):
    """Returns a Run, with the model loaded."""
    cli.import_tensorflow()
    import score
    allowed = [opened.encoder.decode([i]).lower().replace(' ', '', 1) not in stop_words
               for i in range(opened.hparams.n_vocab)]
    return Run(opened, score.Scorer(opened, np.array(allowed) if stop_words else None), batch_size,
               stride)


# The measures

def score_texts(run, texts, firsts=None):
    """Returns the Scores of texts, lists of ids that begin with a token that is not scored."""
    return run.scorer.score(texts, run.batch_size, run.stride, firsts)


def score_targets(run, pairs):
    """Returns the Scores of the tokens of each target after its context, pairs of texts.

    Of a context that is too long for the window, the end is read.
    """
    encoder, n_ctx = run.opened.encoder, run.opened.hparams.n_ctx
    encode = functools.lru_cache(maxsize=4096)(encoder.encode)
    texts, firsts = [], []
    for context, target in pairs:
        target = encode(target)
        text = [encoder.encoder[checkpoint.END_OF_TEXT]] + encode(context) + target
        texts.append(np.array(text[-n_ctx - 1:], np.int32))
        firsts.append(max(1, len(texts[-1]) - len(target)))
    return score_texts(run, texts, firsts)


def total(scores):
    """Returns the log probability of all tokens of one text, in nats."""
    return float(scores.log_probs.sum(dtype=np.float64))


def accuracy(name, hits, column=None):
    """Returns the Measure of a share, in percent, with the standard error of a binomial one."""
    share = float(np.mean(hits))
    return Measure(name, 100 * share, 100 * math.sqrt(share * (1 - share) / len(hits)), column)


def measure_lambada(run, clozes):
    """Measures how the last words of passages are predicted, by four readings of the paper.

    By word: all tokens of the word are the likeliest ones, given those before. By last token: the
    last token of the word is, given all before it, the word's own tokens included; replications
    found this to come near the paper's figures. The stop-word filter, as the paper calls it, takes
    no token that is a stop word as a whole; the likeliest of the others counts, at every place. A
    target is never taken away: one that is itself a stop word only has the others removed.
    Perplexity is that of whole words, and that of last tokens, over all passages.
    """
    scores = score_targets(run, clozes)
    last = [s._replace(ranks=s.ranks[-1:], filtered_ranks=s.filtered_ranks[-1:],
                       log_probs=s.log_probs[-1:]) for s in scores]
    measures = []
    for name, targets in [('word', scores), ('last token', last)]:
        measures += [
            accuracy('accuracy, %s' % name, [(s.ranks == 1).all() for s in targets]),
            accuracy('accuracy, %s, stop-word filter' % name,
                     [(s.filtered_ranks == 1).all() for s in targets], 'lambada_acc'),
            Measure('perplexity, %s' % name, math.exp(-np.mean([total(s) for s in targets])), None,
                    'lambada_ppl')]
    return len(clozes), measures


def measure_cbt(run, questions, column):
    """Measures how often the answer makes the rest of the sentence likelier than other choices."""
    scores = score_targets(run, [(question.context, choice + question.rest)
                                 for question in questions for choice in question.choices])
    totals = np.reshape([total(s) for s in scores], [len(questions), -1])
    answers = [question.answer for question in questions]
    return len(questions), [accuracy('accuracy', totals.argmax(axis=1) == answers, column)]


def measure_words(run, corpus, column):
    """Measures the perplexity of a word, of words as the corpus counts them."""
    encoder = run.opened.encoder
    start = encoder.encoder[checkpoint.END_OF_TEXT]
    scores = score_texts(run, [np.array([start] + encoder.encode(text), np.int32)
                               for text in corpus.texts])
    nats = -sum(map(total, scores))
    return corpus.n_lines, [Measure('perplexity of a word', math.exp(nats / corpus.n_words), None,
                                    column),
                            Measure('words and line ends', corpus.n_words, None, None),
                            Measure('lines scored as distributed', corpus.n_raw, None, None)]


def measure_bytes(run, data, column):
    """Measures the bits that a byte and a character take."""
    encoder = run.opened.encoder
    tokens = [encoder.encoder[checkpoint.END_OF_TEXT]] + encoder.encode_bytes(data)
    scores, = score_texts(run, [np.array(tokens, np.int32)])
    bits = -total(scores) / math.log(2)
    # A character has one byte that is no continuation, 10xxxxxx.
    n_characters = int(np.sum(np.frombuffer(data, np.uint8) & 0xc0 != 0x80))
    measures = [Measure('bits per byte', bits / len(data), None, None),
                Measure('bits per character', bits / n_characters, None, None)]
    i = column == 'text8'  # the one that the paper gives
    measures[i] = measures[i]._replace(column=column)
    return len(data), measures


def task(files, read, measure, column):
    return Task(files, read, functools.partial(measure, column=column))


STREAMS = ('wikitext2', 'ptb', 'enwik8', 'text8', 'wikitext103')
TASKS = {
    'lambada': Task(['lambada_test.jsonl'], corpora.read_lambada, measure_lambada),
    'cbt_cn': task(['cbtest_CN_valid_2000ex.txt', 'CBTest/data/cbtest_CN_valid_2000ex.txt'],
                   corpora.read_cbt, measure_cbt, 'cbt_cn'),
    'cbt_ne': task(['cbtest_NE_valid_2000ex.txt', 'CBTest/data/cbtest_NE_valid_2000ex.txt'],
                   corpora.read_cbt, measure_cbt, 'cbt_ne'),
    'wikitext2': task(['wikitext-2/wiki.test.tokens', 'wiki.test.tokens'],
                      corpora.read_wikitext, measure_words, 'wikitext2'),
    'ptb': task(['ptb.test.txt', 'simple-examples/data/ptb.test.txt'],
                corpora.read_ptb, measure_words, 'ptb'),
    'enwik8': task(['enwik8'], corpora.read_bytes_at_end, measure_bytes, 'enwik8'),
    'text8': task(['text8'], corpora.read_bytes_at_end, measure_bytes, 'text8'),
    'wikitext103': task(['wikitext-103/wiki.test.tokens'],
                        corpora.read_wikitext, measure_words, 'wikitext103'),
    '1bw': task(['news.en.heldout-00000-of-00050',
                 'heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050'],
                corpora.read_1bw, measure_words, '1bw'),
}


if __name__ == '__main__':
    cli.run(evaluate)
