"""Scoring and evaluate.py, against the float64 reference and transformers."""
import functools
import html
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

import evaluate
import reference
from gpt2.errors import OptionError, UsageError
from gpt2.evaluation import loglikelihood, readers, run, tasks
from gpt2.evaluation.loglikelihood import Scorer, Scores, Window
from gpt2.evaluation.options import EvaluationOptions
from gpt2.model_dir import open_model_dir, weights_digest
from helpers import DATA, ONE_M, SRC, Command, log_softmax, needs_data, only_long

SCRIPT = 'evaluate.py'
OPTIONS = evaluate.OPTIONS
ATTEMPTS = 4  # how often to send Ctrl-C: some libraries swallow one
NEAR = 1e-4  # logits as near as this may change places in float32
ROUNDING = 3e-5  # the same where both sides are float32
pure = pytest.mark.pure


@pytest.fixture(scope='module')
def model_dir(tiny):
    return open_model_dir(tiny.name, str(tiny.models_dir))


@pytest.fixture(scope='module')
def scorer(model_dir):
    scorer = Scorer(model_dir)
    yield scorer
    scorer.close()


@pytest.fixture(scope='module')
def score(model_dir):
    """The function that tasks measure with."""
    with run.open_score(model_dir, EvaluationOptions(batch_size=2, stride=5)) as score:
        yield score


@pytest.fixture(scope='module')
def logits_after(tiny):
    """A function from tokens to the reference's logits of the next token."""
    return functools.lru_cache(maxsize=None)(
        lambda tokens: reference.forward(tiny.weights, tiny.hparams, tokens)[-1])


@pytest.fixture(scope='module')
def expected(tiny, logits_after):
    """A function that scores the tokens of a text after the first ones, each by a forward pass.

    Returns their log probabilities, their ranks, and how near the nearest other logit is.
    """
    def score_text(text, stride, first=1):
        n_ctx = tiny.hparams['n_ctx']
        logprobs, ranks, gaps = [], [], []
        for i in range(first, len(text)):
            start = stride * max(0, math.ceil((i - n_ctx) / stride))
            logits = logits_after(tuple(text[start:i]))
            logprobs.append(log_softmax(logits)[text[i]])
            ranks.append(1 + (logits > logits[text[i]]).sum())
            gaps.append(np.abs(np.delete(logits, text[i]) - logits[text[i]]).min())
        return np.array(logprobs), np.array(ranks), np.array(gaps)

    return score_text


def random_text(n, seed=0):
    return np.random.RandomState(seed).randint(97, 256, n).tolist()


# ---- windows -----------------------------------------------------------------------------------

@pure
@pytest.mark.parametrize('n_ctx', [1, 2, 7, 32])
def test_windows_score_each_token_once_with_the_promised_context(n_ctx):
    for stride in range(1, n_ctx + 1):
        for n_tokens in [*range(3 * n_ctx + 3), 100]:
            for first in {1, 2, n_ctx + 2}:
                scored = []
                for window in loglikelihood.rolling_windows(n_tokens, n_ctx, stride, first):
                    start, end, begin = window
                    assert start % stride == 0 and start < begin <= end < n_tokens
                    assert end - start <= n_ctx
                    assert begin - start > n_ctx - stride or start == 0
                    scored.extend(range(begin, end + 1))
                assert scored == list(range(first, n_tokens))


@pure
def test_batches_have_similar_windows_and_at_most_the_tokens_asked_for():
    windows = [Window(10 * i, 10 * i + length, 10 * i + 1)
               for i, length in enumerate([3, 8, 5, 1, 8, 2, 4, 4])]
    batches = list(loglikelihood.batches(windows, 10))
    assert sorted(window for batch in batches for window in batch) == windows
    lengths = [[window.end - window.start for window in batch] for batch in batches]
    assert lengths == [[8], [8], [5, 4], [4, 3], [2, 1]]


# ---- scores ------------------------------------------------------------------------------------

@pytest.mark.parametrize('stride', [1, 2, 5, 31, 32])
def test_texts_are_scored_as_by_one_forward_pass_for_each_token(scorer, expected, stride):
    texts = [random_text(n, n) for n in (75, 1, 33, 0, 32, 7, 2)]
    for batch_size in (1, 3):
        results = scorer.loglikelihood_rolling(texts, batch_size, stride)
        for text, scores in zip(texts, results):
            logprobs, ranks, gaps = expected([256] + text, stride)
            np.testing.assert_allclose(scores.logprobs, logprobs, rtol=0, atol=1e-4)
            assert len(text) < 8 or (gaps > NEAR).mean() > 0.9
            assert (scores.ranks == ranks)[gaps > NEAR].all()
            assert (scores.filtered_ranks == scores.ranks).all()
            assert [values.dtype for values in scores[:3]] == [np.float32, np.int32, np.int32]
            assert scores[3:] == ((), (), (), ())  # nobody asked for the likeliest tokens
    assert scorer.loglikelihood_rolling([]) == []


@pytest.mark.parametrize('n_context, n_target', [
    (0, 5), (3, 4), (27, 5), (28, 5), (50, 1), (50, 32), (9, 40), (5, 0)])
def test_targets_are_scored_after_the_end_of_their_context(scorer, expected, n_context, n_target):
    """Of a long context, the end is read; a target longer than the window is scored whole."""
    context, target = random_text(n_context, 1), random_text(n_target, 2)
    scores, again = scorer.loglikelihood([(context, target), (context, target)], 1, 7)
    text = [256, *context, *target]
    text = text[-1 - max(32, n_target):]
    logprobs, ranks, gaps = expected(text, 7, len(text) - n_target)
    assert len(logprobs) == n_target
    np.testing.assert_allclose(scores.logprobs, logprobs, rtol=0, atol=1e-4)
    assert (scores.ranks == ranks)[gaps > NEAR].all()
    assert (scores.ranks == again.ranks).all()


def test_logits_in_chunks_and_tokens_that_are_not_allowed(model_dir, logits_after, monkeypatch):
    monkeypatch.setattr(loglikelihood, 'LOGITS_CHUNK', 3)
    allowed = np.arange(257) % 3 > 0
    text = random_text(32)
    scores, again = Scorer(model_dir, allowed).loglikelihood([([], text), (text[:19], text[19:])])
    for i, logprob in enumerate(scores.logprobs):
        logits = logits_after((256, *text[:i]))
        assert logprob == pytest.approx(log_softmax(logits)[text[i]], abs=1e-4)
        larger = logits > logits[text[i]]
        assert scores.ranks[i] == 1 + larger.sum()
        assert scores.filtered_ranks[i] == 1 + larger[allowed].sum()
    assert (again.ranks == scores.ranks[19:]).all()


def test_logits_are_those_of_the_reference(scorer, tiny):
    tokens = random_text(32)
    logits = scorer.logits(tokens)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference.forward(tiny.weights, tiny.hparams, tokens),
                               rtol=0, atol=1e-4)


def test_the_likeliest_tokens_and_the_entropies(model_dir, logits_after, monkeypatch):
    monkeypatch.setattr(loglikelihood, 'LOGITS_CHUNK', 3)
    texts, scorer = [random_text(7), [], random_text(20, 1)], Scorer(model_dir, top=5)
    results = scorer.loglikelihood_rolling(texts, batch_size=2)
    scorer.close()
    for text, scores in zip(texts, results):
        assert scores.top_tokens.shape == scores.top_logprobs.shape == (len(text), 5)
        for i, (tokens, logprobs, entropy) in enumerate(zip(
                scores.top_tokens, scores.top_logprobs, scores.entropies)):
            expected = log_softmax(logits_after((256, *text[:i])))
            best = np.sort(expected)[::-1][:5]
            np.testing.assert_allclose(logprobs, best, rtol=0, atol=1e-4)
            np.testing.assert_allclose(expected[tokens], best, rtol=0, atol=NEAR)
            assert entropy == pytest.approx(-(np.exp(expected) * expected).sum(), abs=1e-4)
            assert len(set(tokens.tolist())) == 5


def test_equal_logits_share_the_better_rank(tf, tmp_path):
    hparams = dict(n_vocab=257, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
    weights = reference.random_weights(hparams, 0)
    weights['model/wte'][:] = weights['model/wte'][0]
    reference.write_checkpoint(tmp_path / 'flat', hparams, weights)
    flat = Scorer(open_model_dir('flat', str(tmp_path)))
    scores, = flat.loglikelihood_rolling([[1, 2, 3]], stride=8)
    assert scores.ranks.tolist() == [1, 1, 1]
    np.testing.assert_allclose(scores.logprobs, -math.log(257), rtol=1e-5)
    with pytest.raises(OptionError, match='stride must be a whole number from 1 to 8, .*not 9'):
        flat.loglikelihood_rolling([[1, 2, 3]], stride=9)
    flat.close()
    with pytest.raises(RuntimeError):
        flat.logits([1])


# ---- measures ----------------------------------------------------------------------------------

@pure
def test_stop_words_are_the_tokens_that_are_a_whole_word():
    encoder = open_model_dir('1M', str(SRC.parent / 'models')).encoder
    allowed = tasks.allowed_tokens(encoder)
    stopped = {encoder.decode([token]) for token in np.flatnonzero(~allowed)}
    assert {' the', ' and', 'The', ' you', 'he'} <= stopped
    assert not stopped & {' king', ' lord', ',', '\n', ' ', ' good', ' ther'}
    assert len(stopped) < 250


@pure
def test_lambada_measures_of_given_ranks():
    rows = [([1], [1]), ([1, 2], [1, 1]), ([2, 1], [1, 1]), ([3, 3], [2, 1])]
    scores = [Scores(np.full(len(ranks), -0.5, np.float32), np.array(ranks), np.array(filtered))
              for ranks, filtered in rows]
    n, measures = tasks.measure_lambada(lambda _: scores, [('a', ' b')] * 4)
    found = {measure.name: measure for measure in measures}
    assert n == 4
    assert found['accuracy, word'].value == 25
    assert found['accuracy, word, stop-word filter'].value == 75
    assert found['accuracy, last token'].value == 50
    assert found['accuracy, last token, stop-word filter'].value == 100
    assert found['perplexity, word'].value == pytest.approx(math.exp(0.5 * 7 / 4))
    assert found['perplexity, last token'].value == pytest.approx(math.exp(0.5))
    assert found['accuracy, word'].stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 4))


def test_half_the_words_of_a_file_made_so_are_predicted(call, tiny, logits_after, tmp_path):
    """Every second last word is the one that the model finds likeliest."""
    lines = []
    for i in range(400):
        context = f'Passage {i} says\n'
        logits = logits_after(tuple([256, *tiny.encode('\n' + context)][-32:]))
        second, best = np.sort(logits)[-2:]
        word = tiny.decode([int(logits.argmax())])
        if re.fullmatch('[!-~]', word) and best - second > NEAR and len(lines) < 20:
            lines += [context + word, context + ('a' if word != 'a' else 'b')]
    assert len(lines) == 20
    path, output = tmp_path / 'lambada_test.jsonl', tmp_path / 'results.json'
    path.write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines))
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'lambada', path, *tiny.flags,
                                  '--output', output)
    assert (status, stderr) == (0, '')
    rows = {row['measure']: row for row in json.loads(output.read_text())[0]['measures']}
    for name in ('word', 'last token'):
        assert rows[f'accuracy, {name}']['value'] == 50
        assert rows[f'accuracy, {name}']['stderr'] == pytest.approx(100 * math.sqrt(0.25 / 20))
    assert re.search(r'^lambada +accuracy, word +50\.00 +11\.18 +20 +\d+ s$', stdout, re.MULTILINE)


def test_cbt_takes_the_choice_that_makes_the_sentence_likeliest(score, tiny, expected):
    choices = [' ' + word for word in 'ab cde fg h ij kl mn op qr st'.split()]
    questions, hits = [], []
    for i, context in enumerate(['Once there', 'A long context ' * 4, 'x']):
        totals = []
        for choice in choices:
            tokens = [256, *tiny.encode(context + choice + ' was.')][-33:]
            totals.append(expected(tokens, 32, len(tokens) - len(choice + ' was.'))[0].sum())
        assert np.diff(np.sort(totals))[-1] > NEAR
        answer = int(np.argmax(totals)) if i else 3
        hits.append(answer == int(np.argmax(totals)))
        questions.append(readers.Question(context, choices, ' was.', answer))
    n, (measure,) = tasks.measure_cbt(score, questions)
    assert n == 3 and measure.value == pytest.approx(100 * np.mean(hits))
    assert sum(hits) == 2


def test_word_perplexity(score, tiny, expected):
    texts = ['one two\n', 'a longer sentence than the window is wide, by far\n']
    nats = -sum(expected([256, *tiny.encode(text)], 5)[0].sum() for text in texts)
    n, measures = tasks.measure_words(score, readers.Corpus(texts, 14, 0, 2))
    assert n == 2
    assert measures[0].value == pytest.approx(math.exp(nats / 14), rel=1e-4)


def test_bits_of_bytes_that_begin_and_end_within_a_character(score, expected):
    data = 'ä – bytes, 東京 and more of them €'.encode()[1:-1]
    symbols = [byte for byte in range(256) if chr(byte) in reference.byte_symbols()]
    order = symbols + [byte for byte in range(256) if byte not in symbols]
    bits = -expected([256, *map(order.index, data)], 5)[0].sum() / math.log(2)
    n, (per_byte, per_character) = tasks.measure_bytes(score, data)
    assert n == len(data)
    assert per_byte.value == pytest.approx(bits / n, rel=1e-4)
    # The rest of ä is not a character, but the beginning of € is.
    assert per_character.value == pytest.approx(
        bits / len(' – bytes, 東京 and more of them €'), rel=1e-4)


@pure
def test_the_papers_figures_stand_beside_its_sizes():
    name = 'accuracy, word, stop-word filter'
    for model, figure in [('124M', 45.99), ('117M', 45.99), ('1542M', 63.24), ('mine', None)]:
        assert tasks.paper_figure('lambada', name, model) == figure
    assert tasks.paper_figure('lambada', 'accuracy, word', '124M') is None
    assert tasks.paper_figure('enwik8', 'bits per byte', '355M') == 1.01
    assert tasks.paper_figure('text8', 'bits per character', '355M') == 1.06
    assert tasks.paper_figure('text8', 'bits per byte', '355M') is None
    columns = {figures for task in tasks.TASKS.values() for figures in task.paper.values()}
    assert len(columns) == 10
    assert {len(figures) for figures in columns} == {len(tasks.PAPER_MODELS)}


# ---- tasks -------------------------------------------------------------------------------------

@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / 'lambada_test.jsonl').write_text('{"text": "One two three"}\n')
    (folder / 'ptb.test.txt').write_text(' one two N \n' * 4)
    return folder


def test_all_names_what_is_missing_and_runs_nothing_twice(call, bare, tiny, data_dir, tmp_path):
    output = tmp_path / 'results.json'
    flags = ['all', *tiny.flags, '--data_dir', data_dir, '--output', output]
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *flags)
    assert status == 1
    assert stderr.count('\n') == 1 and 'enwik8' in stderr and 'lambada' not in stderr
    names = [line.split()[0] for line in stdout.splitlines() if not line.startswith(' ')]
    assert names == ['task', 'lambada', 'ptb']
    results = output.read_text()
    # TensorFlow cannot be imported in this process.
    status, again, stderr_again = bare(SCRIPT, *flags)
    assert (status, again) == (1, stdout)
    assert stderr_again.split(': ', 1)[1] == stderr.split(': ', 1)[1]
    assert output.read_text() == results
    # Other settings are another result.
    status, other, _ = call(evaluate.evaluate, OPTIONS, 'ptb', *tiny.flags, '--data_dir', data_dir,
                            '--output', output, '--stride', 7)
    assert status == 0 and '  7  ' in other
    assert len(json.loads(output.read_text())) == 3


def test_a_result_of_the_first_version_is_continued(call, tiny, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'open_scorer', None)  # nothing may be scored
    output = tmp_path / 'results.json'
    output.write_text(json.dumps([{
        'task': 'ptb',
        'settings': {'model': 'tiny', 'weights': weights_digest(str(tiny.path)), 'limit': None,
                     'stride': 32, 'raw': False, 'file': None},
        'examples': 4, 'seconds': 12.7,
        'measures': [{'measure': 'perplexity of a word', 'value': 12345678.9, 'stderr': None,
                      'paper': None},
                     {'measure': 'words and line ends', 'value': 16, 'stderr': None, 'paper': None},
                     {'measure': 'an accuracy', 'value': 12.3456, 'stderr': 1.2, 'paper': 45.99}],
    }], indent=1))
    before = output.read_text()
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'ptb', *tiny.flags, '--data_dir',
                                  data_dir, '--output', output)
    assert (status, stderr) == (0, '')
    assert output.read_text() == before
    assert stdout == '\n'.join([
        'task         measure                                  this run       +-    paper  '
        'examples  stride      time',
        'ptb          perplexity of a word                    1.235e+07                    '
        '       4      32      13 s',
        '             words and line ends                            16',
        '             an accuracy                                 12.35     1.20    45.99', ''])


@only_long
def test_ctrl_c_keeps_what_is_finished(tiny, data_dir, tmp_path):
    output = tmp_path / 'results.json'
    (data_dir / 'ptb.test.txt').write_text(' one two N \n' * 40000)
    process = Command(SCRIPT, 'all', *tiny.flags, '--data_dir', data_dir, '--output', output,
                      '--stride', 1).start()
    read = b''
    while b'perplexity, last' not in read:
        read += os.read(process.stdout.fileno(), 4096)
    for _ in range(ATTEMPTS):
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert stderr == b'' or b'Exception ignored' in stderr
    assert [result['task'] for result in json.loads(output.read_text())] == ['lambada']


def test_two_runs_on_one_output_keep_both_results(call, tiny, data_dir, tmp_path, monkeypatch):
    output, run_task = tmp_path / 'results.json', run.run_task

    def slow(name, *args):
        result = run_task(name, *args)
        if name == 'lambada':  # meanwhile, the other run
            call(evaluate.evaluate, OPTIONS, 'ptb', *tiny.flags, '--data_dir', data_dir, '--output',
                 output)
        return result

    monkeypatch.setattr(run, 'run_task', slow)
    call(evaluate.evaluate, OPTIONS, 'lambada', *tiny.flags, '--data_dir', data_dir, '--output',
         output)
    assert [result['task'] for result in json.loads(output.read_text())] == ['ptb', 'lambada']


# ---- numbers that are no figures ---------------------------------------------------------------

@pytest.fixture
def changed(tiny, tmp_path):
    """A function that writes the tiny model with other weights; returns its flags."""
    def write(change):
        weights = {name: change(name, weight) for name, weight in tiny.weights.items()}
        reference.write_checkpoint(tmp_path / 'changed', tiny.hparams, weights)
        return ['--model_name', 'changed', '--models_dir', str(tmp_path)]

    return write


@pytest.mark.parametrize('task', ['lambada', 'ptb', 'score'])
def test_a_model_that_is_no_number_has_no_score(call, changed, data_dir, task):
    """Its ranks would all be 1: it would score 100 % on LAMBADA."""
    flags = changed(lambda name, weight: weight * np.nan if name == 'model/h1/ln_1/b' else weight)
    file = data_dir / ('ptb.test.txt' if task == 'ptb' else 'lambada_test.jsonl')
    status, _, stderr = call(evaluate.evaluate, OPTIONS, task, file, *flags)
    assert status == 1 and stderr.count('\n') == 1
    assert 'model/h1/ln_1/b' in stderr and 'finite' in stderr


def test_a_perplexity_too_large_for_a_number(call, changed, data_dir, tmp_path):
    flags = changed(lambda name, weight: weight * 300 if name == 'model/ln_f/g' else weight)
    output, page = tmp_path / 'scores.jsonl', tmp_path / 'page.html'
    (tmp_path / 'text').write_text('漢' * 200, encoding='utf-8')
    status, _, stderr = call(evaluate.evaluate, OPTIONS, 'score', tmp_path / 'text', *flags,
                             '--output', output, '--html', page)
    assert (status, stderr) == (0, '')
    scores = json.loads(output.read_text(encoding='utf-8'), parse_constant=pytest.fail)
    assert scores['perplexity'] is None and math.isfinite(scores['mean_logprob'])
    assert 'above 1e308' in page.read_text(encoding='utf-8')
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'ptb', data_dir / 'ptb.test.txt',
                                  *flags, '--output', tmp_path / 'results.json')
    assert (status, stderr) == (0, '') and re.search('perplexity of a word +-', stdout)
    json.loads((tmp_path / 'results.json').read_text(), parse_constant=pytest.fail)


def test_bytes_without_a_character(score):
    _, (per_byte, per_character) = tasks.measure_bytes(score, b'\x80')
    assert per_byte.value > 0 and per_character.value is None


# ---- what is refused ---------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, status, words', [
    ([], 2, ['TASK']), (['lambda'], 2, ['--task', 'lambada']), (['score'], 2, ['FILE']),
    (['ptb', '--stride', 0], 2, ['--stride']), (['ptb', '--stride', 33], 2, ['--stride', '32']),
    (['ptb', '--limit', 0], 2, ['--limit']), (['ptb', '--batch_size', 0], 2, ['--batch_size']),
    (['ptb', '--html', 'x.html'], 2, ['--html']), (['all', 'x'], 2, ['--data_dir']),
    (['ptb', 'x', 'y'], 2, ['ptb', 'one FILE']),
    (['ptb', 'nowhere.txt'], 1, ['nowhere.txt']), (['score', 'nowhere'], 1, ['nowhere']),
    (['ptb', '--output', 'no/where'], 1, ['no/where']),
    (['ptb', '--output', os.devnull], 1, [os.devnull, 'regular']),
    (['ptb', '--models_dir', 'nowhere'], 1, ['nowhere'])])
def test_what_cannot_be_done_is_refused(call, tiny, arguments, status, words):
    found, stdout, stderr = call(evaluate.evaluate, OPTIONS, *tiny.flags[:2],
                                 *([] if '--models_dir' in arguments else tiny.flags[2:]),
                                 *[f'--task={argument}' if i == 0 else argument
                                   for i, argument in enumerate(arguments)])
    assert (found, stdout, stderr.count('\n')) == (status, '', 1)
    assert all(word in stderr for word in words)


def test_a_process_is_refused_before_it_imports_tensorflow(refused, tiny):
    status, line = refused(SCRIPT, 'ptb', 'nowhere.txt', *tiny.flags)
    assert status == 1 and line == 'nowhere.txt: No such file or directory'


@pure
def test_options_check_themselves():
    assert EvaluationOptions(task='score', file='x', html='y').stride == 32
    for error, options in [(OptionError, {'task': 'lambda'}), (OptionError, {'limit': 0}),
                           (OptionError, {'raw': 1}), (UsageError, {'task': 'score'}),
                           (UsageError, {'task': 'all', 'file': 'x'}),
                           (UsageError, {'task': 'ptb', 'file': ('x', 'y')}),
                           (OptionError, {'task': 'ptb', 'html': 'x'})]:
        with pytest.raises(error):
            EvaluationOptions(**options)


@pure
def test_help_has_every_task_and_flag(call):
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, '--help')
    assert (status, stderr) == (0, '')
    listed = re.findall(r'^  (\w+)  +\S', stdout, re.MULTILINE)
    assert listed == [*tasks.TASKS, 'all', 'score', 'pairs', 'crows_pairs', 'detect']
    assert all(f'{flag}  ' in stdout for flag in ('--data_dir', '--stride', '--html', '--raw'))


@pytest.mark.parametrize('task, text, words', [
    ('lambada', '{"text": "two words"}\nnothing\n', 'line 2'),
    ('ptb', ' one \n two', 'line 2'), ('cbt_ne', '1 One .\n3 Three .\n', 'line 2'),
    ('score', '{"text": "fine"}\n{"text": 5}\n', 'line 2'),
    ('score', '{"text": "fine"}\n{"text": "cu', 'line 2'), ('score', '', 'empty'),
    ('score', '{"text": "x"}\n{"text": "x", "prompt": ["y"]}', 'line 2: its "prompt"'),
    ('score', '<|endoftext|>\n<|endoftext|>', 'no text'),
    ('score', b'one\ntwo \xff\n', 'line 2')])
def test_a_malformed_file_is_refused_before_anything_else(call, tiny, tmp_path, task, text, words):
    path = tmp_path / 'file'
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, task, path, *tiny.flags)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert str(path) in stderr and words in stderr


@pytest.mark.parametrize('content', ['mine', '{}', '[{"task": "ptb"}]', '[1]', '{"a": [1]}',
                                     '[' * 100000], ids=lambda content: content[:20])
def test_results_do_not_replace_other_files(call, tiny, data_dir, tmp_path, content):
    path = tmp_path / 'notes.txt'
    path.write_text(content)
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'ptb', *tiny.flags, '--data_dir',
                                  data_dir, '--output', path)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert str(path) in stderr and path.read_text() == content


@pytest.mark.parametrize('flags', [
    ['--output', 'text'], ['--html', 'text'], ['--output', 'link'],
    ['--output', 'new', '--html', 'new'], ['--output', 'new', '--html', 'folder/../new']])
def test_a_file_does_not_have_two_purposes(call, tiny, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text').write_text('mine')
    (tmp_path / 'link').symlink_to('text')
    (tmp_path / 'folder').mkdir()
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'score', 'text', *tiny.flags, *flags)
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert 'two purposes' in stderr and (tmp_path / 'text').read_text() == 'mine'
    assert {path.name for path in tmp_path.iterdir()} == {'text', 'link', 'folder'}


# ---- scores of documents -----------------------------------------------------------------------

DOCUMENTS = [{'text': 'A first text, longer than the window of 32.', 'id': 7}, {'text': ''},
             {'text': '<b>東京\n &amp; 🙂 "é"</b> $model'}]


def test_documents_from_stdin_are_scored(tiny, tmp_path, expected):
    page, other = tmp_path / 'report.html', tmp_path / 'report.html.partial'
    other.write_text('mine')
    lines = ''.join(json.dumps(document) + '\n' for document in DOCUMENTS)
    status, stdout, stderr = Command(SCRIPT, 'score', '-', *tiny.flags, '--stride', 3, '--html',
                                     page).run(stdin=lines)
    assert (status, stderr) == (0, '')
    assert other.read_text() == 'mine' and {*tmp_path.iterdir()} == {page, other}
    results = [json.loads(line) for line in stdout.splitlines()]
    for document, result in zip(DOCUMENTS, results):
        assert document.items() <= result.items()
        tokens = tiny.encode(document['text'])
        assert result['tokens'] == tokens
        assert result['n_tokens'] == result['n_bytes'] == len(tokens)
        logprobs, ranks, gaps = expected([256, *tokens], 3)
        np.testing.assert_allclose(result['logprobs'], logprobs, rtol=0, atol=1e-4)
        assert (np.array(result['ranks']) == ranks)[gaps > NEAR].all()
        assert result['total_logprob'] == pytest.approx(logprobs.sum(), abs=1e-3)
        if tokens:
            mean = result['total_logprob'] / len(tokens)
            assert result['mean_logprob'] == pytest.approx(mean)
            assert result['perplexity'] == pytest.approx(math.exp(-mean))
            assert result['bits_per_byte'] == pytest.approx(-mean / math.log(2))
            ranks = np.array(result['ranks'])
            assert result['rank_shares'] == {
                '1': (ranks == 1).mean(), '2-10': ((ranks > 1) & (ranks <= 10)).mean(),
                '11-100': ((ranks > 10) & (ranks <= 100)).mean(),
                '101-1000': (ranks > 100).mean(), '1001-': 0}
    assert results[1]['perplexity'] is None
    assert set(results[1]['rank_shares'].values()) == {None}
    # The page shows the texts as they are. For the rest of it, see test_page.py.
    texts = re.findall('<span class="scored">(.*?)</span>', page.read_text(encoding='utf-8'),
                       re.DOTALL)
    assert [*map(html.unescape, texts)] == [document['text'] for document in DOCUMENTS]


@pytest.fixture
def score_files(call, tiny, tmp_path, monkeypatch):
    """A function that scores files, given their contents by name; returns the JSON objects."""
    monkeypatch.chdir(tmp_path)

    def run(contents, *argv):
        for name, content in contents.items():
            pathlib.Path(name).write_text(content, encoding='utf-8')
        status, stdout, stderr = call(evaluate.evaluate, OPTIONS, 'score',
                                      *(argv or contents), *tiny.flags)
        assert (status, stderr) == (0, '')
        return [json.loads(line) for line in stdout.splitlines()]

    return run


def test_a_text_has_a_document_between_any_two_ends_of_text(score_files):
    first = 'Two lines,\n{"text": "one document"}\n'
    results = score_files({'a.txt': f'<|endoftext|>{first}<|endoftext|>\n<|endoftext|>other\n'})
    assert [(result['file'], result['text']) for result in results] == [
        ('a.txt', first), ('a.txt', 'other\n')]


@pytest.mark.parametrize('argv', [
    ['a.txt', 'b.jsonl', 'c.txt'], ['a.txt', '--stride', 9, 'b.jsonl', 'c.txt'],
    ['--file', 'a.txt', '--file=b.jsonl', 'c.txt'], ['--file=a.txt', 'b.jsonl', 'c.txt']])
def test_all_files_that_are_named_are_scored(score_files, argv):
    results = score_files({'a.txt': 'first', 'b.jsonl': '{"text": "x", "id": 7}\n{"text": "y"}\n',
                           'c.txt': 'last'}, *argv)
    assert [(result['file'], result['text'], result.get('id')) for result in results] == [
        ('a.txt', 'first', None), ('b.jsonl', 'x', 7), ('b.jsonl', 'y', None),
        ('c.txt', 'last', None)]


def test_a_text_is_scored_after_its_prompt(score_files, tiny, expected):
    prompt, text = 'ROMEO: what', ' light'
    lines = [{'prompt': prompt, 'text': text, 'tokens': [1], 'logprobs': {}},
             {'prompt': None, 'text': text}, {'text': text}]
    after, *alone = score_files({'samples.jsonl': '\n'.join(map(json.dumps, lines))})
    assert after['tokens'] == tiny.encode(text) and after['prompt'] == prompt
    tokens = [256, *tiny.encode(prompt + text)]
    logprobs, _, _ = expected(tokens, 32, len(tokens) - len(text))
    np.testing.assert_allclose(after['logprobs'], logprobs, rtol=0, atol=1e-4)
    for result in alone:
        np.testing.assert_allclose(result['logprobs'], expected([256, *tiny.encode(text)], 32)[0],
                                   rtol=0, atol=1e-4)


def test_a_terminal_shows_a_table(call, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [{'text': 'some text', 'title': 'Two\nlines \x1b[2J'}, {'text': ''},
             {'text': 'x' * 20, 'id': 'long ' * 20}]
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (tmp_path / 'b.txt').write_text('text')
    argv = ['score', 'a.jsonl', 'b.txt', *tiny.flags]
    _, stdout, _ = call(evaluate.evaluate, OPTIONS, *argv)
    results = [json.loads(line) for line in stdout.splitlines()]
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *argv, terminal=True)
    assert (status, stderr) == (0, '')
    head, *rows = [re.split('  +', row) for row in stdout.splitlines()]
    assert head == ['document', 'tokens', 'mean logprob', 'perplexity', 'bits/byte', 'rank 1',
                    'top 10', 'top 100']
    assert [row[0] for row in rows] == [
        'a.jsonl, 1: Two lines \ufffd[2J', 'a.jsonl, 2', 'a.jsonl, 3: long long long long long lo…',
        'b.txt']
    assert rows[1][1:] == ['0']
    for row, result in [(rows[0], results[0]), (rows[2], results[2]), (rows[3], results[3])]:
        ranks = np.array(result['ranks'])
        assert row[1:] == [
            str(len(ranks)), f'{np.mean(result["logprobs"]):.3f}',
            f'{math.exp(-np.mean(result["logprobs"])):,.2f}',
            f'{-np.mean(result["logprobs"]) / math.log(2):.3f}',
            *(f'{100 * (ranks <= limit).mean():.1f} %' for limit in (1, 10, 100))]
    # With --output, the JSON lines go there, and the terminal stays empty.
    assert call(evaluate.evaluate, OPTIONS, *argv, '--output', 'out', terminal=True) == (0, '', '')
    assert [json.loads(line) for line in (tmp_path / 'out').read_text().splitlines()] == results


def test_a_pipe_that_closes_early_ends_the_run_quietly(tiny, tmp_path):
    path = tmp_path / 'texts.jsonl'
    path.write_text('{"text": "One of many documents"}\n' * 2000)
    process = Command(SCRIPT, 'score', path, *tiny.flags).start()
    assert json.loads(process.stdout.readline())['n_tokens'] == 21
    process.stdout.close()
    assert process.stderr.read() == b''
    assert process.wait() == 0
    process.stdin.close()
    process.stderr.close()


# ---- beside transformers -----------------------------------------------------------------------

def open_in_transformers(directory):
    """Return the model of a directory as a model of transformers, made from its checkpoint."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    import tensorflow.compat.v1 as tf
    hparams = json.loads((directory / 'hparams.json').read_text())
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams['n_vocab'], n_positions=hparams['n_ctx'], n_embd=hparams['n_embd'],
        n_head=hparams['n_head'], n_layer=hparams['n_layer'], bos_token_id=0, eos_token_id=0))
    state = net.state_dict()
    reader = tf.train.load_checkpoint(str(directory / 'model.ckpt'))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith('model/')]
    assert len(names) == 4 + 12 * hparams['n_layer']
    for name in names:
        *scopes, last = re.sub(r'/h(\d+)/', r'/h/\1/', name).split('/')[1:]
        last = {'g': 'weight', 'w': 'weight', 'b': 'bias'}.get(last, f'{last}.weight')
        weight = state['.'.join(['transformer', *scopes, last])]
        weight.copy_(torch.from_numpy(reader.get_tensor(name)).reshape(weight.shape))
    return net.eval()


def score_by_transformers(net, tokens, stride):
    """Return the log probabilities and ranks of all tokens but the first, and their slack.

    Windows end after n_ctx tokens, then `stride` further each, as in the guide of transformers to
    perplexity. The slack is the number of logits that rounding could move past the target's.
    """
    import torch
    n_ctx = net.config.n_positions
    results = []
    done = 0  # tokens that were predicted
    while done < len(tokens) - 1:
        start = max(0, done + stride - n_ctx) if done else 0
        ids = torch.tensor([tokens[start:start + n_ctx + 1]])
        with torch.inference_mode():
            logits = net(ids[:, :-1]).logits[0]
        new = len(ids[0]) - 1 - (done - start)
        logits, targets = logits[-new:], ids[0, -new:, None]
        at_target = logits.gather(1, targets)
        results.append(np.stack([
            at_target[:, 0].double() - logits.double().logsumexp(-1),
            1 + (logits > at_target).sum(-1),
            ((logits - at_target).abs() < ROUNDING).sum(-1) - 1]))
        done += new
    return np.concatenate(results, axis=1)


def check_against_transformers(directory, tmp_path, stride, n_bytes, n_passages):
    """Compare the first passages of LAMBADA and bytes of WikiText-2 and PTB.

    That is, the total log probabilities, and the rank of each target.
    """
    net = open_in_transformers(directory)
    model_dir = open_model_dir(directory.name, str(directory.parent))
    scorer = Scorer(model_dir)
    encode, end = model_dir.encoder.encode, model_dir.hparams.n_vocab - 1
    assert model_dir.encoder.end_of_text == end

    def check(tokens, scores):
        logprobs, ranks, slack = score_by_transformers(net, tokens, stride)
        logprobs, ranks, slack = (x[-len(scores.ranks):] for x in (logprobs, ranks, slack))
        assert scores.logprobs.sum(dtype=np.float64) == pytest.approx(logprobs.sum(), rel=1e-4)
        assert (np.abs(scores.ranks - ranks) <= slack).all()
        return (scores.ranks == ranks).mean()

    for name, read in [('wiki.test.tokens', readers.read_wikitext),
                       ('ptb.test.txt', readers.read_ptb)]:
        data = (pathlib.Path(DATA) / name).read_bytes()[:n_bytes]
        (tmp_path / name).write_bytes(data[:data.rindex(b'\n') + 1])
        tokens = encode(read(str(tmp_path / name)).texts[0])
        scores, = scorer.loglikelihood_rolling([tokens], 1, stride)
        check([end, *tokens], scores)

    path = os.path.join(DATA, 'lambada_test.jsonl')
    examples = readers.read_lambada(path, limit=n_passages)
    found = scorer.loglikelihood([(encode(context), encode(target))
                                  for context, target in examples], 2, stride)
    quotes = {'‘': "'", '’': "'", '“': '"', '”': '"'}
    lines = pathlib.Path(path).read_text(encoding='utf-8').splitlines()
    equal = []
    for line, scores in zip(lines, found):
        passage = '\n' + ''.join(quotes.get(c, c) for c in json.loads(line)['text'])
        tokens = [end, *encode(passage)][-net.config.n_positions - 1:]
        target = re.search(r' ?\S+$', passage).group()
        assert len(scores.ranks) == len(encode(target))
        equal.append(check(tokens, scores))
    assert len(equal) == n_passages
    assert np.mean(equal) > 0.95  # the others have a neighbour that rounding moves past them


@needs_data
def test_the_small_model_scores_real_texts_as_in_transformers(tf, one_torch_thread, tmp_path):
    check_against_transformers(ONE_M, tmp_path, stride=64, n_bytes=10000, n_passages=100)


@needs_data
@only_long
def test_the_shape_of_124m_scores_real_texts_as_in_transformers(tf, one_torch_thread, tmp_path):
    """Takes a minute and 3 GB."""
    pytest.importorskip('transformers')
    shape = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}
    directory = tmp_path / '124M'
    reference.write_checkpoint(directory, shape, reference.random_weights(shape, seed=0),
                               vocabulary_dir=os.path.join(DATA, 'gpt2-vocab'))
    check_against_transformers(directory, tmp_path, stride=1024, n_bytes=10000, n_passages=40)
    shutil.rmtree(str(directory))
