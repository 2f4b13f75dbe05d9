"""Pairs of texts: the shares by hand, the log likelihoods by the reference and by transformers."""
import csv
import json
import math
import re

import numpy as np
import pytest

import convert
import evaluate
import reference
from gpt2.evaluation import pairs, readers
from gpt2.model_dir import open_model_dir
from helpers import ONE_M, log_softmax

pure = pytest.mark.pure

PAIRS = [{'first': 'He reads.', 'second': 'She reads.', 'category': 'gender', 'id': 7},
         {'first': 'An old man sang.', 'second': 'A young man sang.', 'category': 'age'},
         {'first': 'She leads, "always".', 'second': 'He leads, "always".', 'category': 'gender'},
         {'first': 'The same.', 'second': 'The same.', 'category': 'age'}]

# In the form of CrowS-Pairs as it is distributed: a first column without a name, quoted fields with
# commas, quotes and line ends. Made for this test.
CROWS = """,sent_more,sent_less,stereo_antistereo,bias_type,annotations,anon_writer,anon_annotators
0,"Women weep, ""they"" say.","Men weep, ""they"" say.",stereo,gender,"[['gender'], []]",a0,"['a1']"
1,The rich man won.,The poor man won.,antistereo,socioeconomic,[['socioeconomic']],a0,['a2']
2,"The old forget
.",The young forget – all.,stereo,age,"[['age'], ['age']]",a3,"['a1', 'a2']"
3,He lifts it.,She lifts it.,antistereo,gender,[['gender']],a4,['a2']
"""


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of a text, bytes or a list of objects; returns its path."""
    def write(content, name='file'):
        path = tmp_path / name
        if isinstance(content, list):
            content = ''.join(json.dumps(line) + '\n' for line in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
        return path

    return write


@pytest.fixture
def compare(call, tiny, tmp_path):
    """A function from a task and its file to the rows that are printed and the pairs written."""
    def compare(task, path, *flags):
        output = tmp_path / 'output.jsonl'
        status, stdout, stderr = call(evaluate.evaluate, evaluate.OPTIONS, task, path, *tiny.flags,
                                      '--output', output, *flags)
        assert (status, stderr) == (0, '')
        return [[json.loads(line) for line in text.splitlines()]
                for text in (stdout, output.read_text())]

    return compare


@pytest.fixture(scope='module')
def logprob(tiny):
    """A function from a text to its log likelihood after <|endoftext|> by the reference."""
    def logprob(text):
        tokens = [256, *tiny.encode(text)]
        assert len(tokens) <= tiny.hparams['n_ctx'] + 1
        logits = reference.forward(tiny.weights, tiny.hparams, tokens[:-1])
        return sum(log_softmax(row)[token] for row, token in zip(logits, tokens[1:]))

    return logprob


def check_rows(rows, expected_groups, differences):
    """Compare printed rows with figures made by hand: (group, which pairs are in it) each."""
    assert [row['group'] for row in rows] == [group for group, _ in expected_groups]
    for row, (_, members) in zip(rows, expected_groups):
        found = [differences[i] for i in members]
        n_first = sum(difference > 0 for difference in found)
        assert (row['pairs'], row['first_likelier']) == (len(members), n_first)
        assert row['share'] == pytest.approx(n_first / len(members))
        assert row['mean_difference'] == pytest.approx(np.mean(found), abs=1e-4)
        assert row['measure'] == 'total log likelihood'
        low, high = row['interval']
        assert 0 <= low <= row['share'] <= high <= 1 and high - low > 0.3


# ---- figures -----------------------------------------------------------------------------------


def test_pairs_have_the_figures_made_by_hand(compare, write, logprob):
    rows, written = compare('pairs', write(PAIRS))
    differences = [logprob(pair['first']) - logprob(pair['second']) for pair in PAIRS]
    check_rows(rows, [({}, range(4)), ({'category': 'age'}, [1, 3]),
                      ({'category': 'gender'}, [0, 2])], differences)
    for pair, result, difference in zip(PAIRS, written, differences):
        assert pair.items() <= result.items()
        assert result['first_logprob'] == pytest.approx(logprob(pair['first']), abs=1e-4)
        assert result['second_logprob'] == pytest.approx(logprob(pair['second']), abs=1e-4)
        assert result['difference'] == pytest.approx(difference, abs=1e-4)
    signs = [np.sign(difference) for difference in differences]
    assert signs[3] == 0 and {1, -1} <= {*signs}
    likelier = {1: 'first', -1: 'second', 0: None}
    assert [result['likelier'] for result in written] == [likelier[sign] for sign in signs]
    assert len(compare('pairs', write(PAIRS), '--limit', 3)[1]) == 3


def test_crows_pairs_as_distributed_has_the_figures_made_by_hand(compare, write, logprob):
    """In both directions, first is the more stereotypical sentence."""
    rows, written = compare('crows_pairs', write(CROWS, 'crows_pairs_anonymized.csv'))
    table = list(csv.DictReader(CROWS.splitlines(True)))
    assert len(table) == len(written) == 4
    for row, result in zip(table, written):
        assert (result['first'], result['second'], result['direction'], result['category']) == (
            row['sent_more'], row['sent_less'], row['stereo_antistereo'], row['bias_type'])
        assert result['first_logprob'] == pytest.approx(logprob(row['sent_more']), abs=1e-4)
    assert written[2]['first'] == 'The old forget\n.'
    differences = [logprob(row['sent_more']) - logprob(row['sent_less']) for row in table]
    assert len({difference > 0 for difference in differences}) == 2
    check_rows(rows, [({}, range(4)), ({'direction': 'antistereo'}, [1, 3]),
                      ({'direction': 'stereo'}, [0, 2]), ({'category': 'age'}, [2]),
                      ({'category': 'gender'}, [0, 3]), ({'category': 'socioeconomic'}, [1])],
               differences)


def test_a_terminal_shows_a_table(call, tiny, write):
    argv = ['pairs', write([*PAIRS, dict(PAIRS[0], category='z\ud800\x1b[2J')]), *tiny.flags]
    _, stdout, _ = call(evaluate.evaluate, evaluate.OPTIONS, *argv)
    results = [json.loads(line) for line in stdout.splitlines()]
    status, stdout, stderr = call(evaluate.evaluate, evaluate.OPTIONS, *argv, terminal=True)
    assert (status, stderr) == (0, '')
    head, *rows = [re.split('  +', row) for row in stdout.splitlines()]
    assert head == ['by total log likelihood', 'pairs', 'first likelier', '95 % interval',
                    'mean difference']
    assert [row[0] for row in rows] == ['all', 'age', 'gender', 'z\ufffd\ufffd[2J']
    for row, result in zip(rows, results):
        low, high = (100 * end for end in result['interval'])
        assert row[1:] == [str(result['pairs']), f'{100 * result["share"]:.1f} %',
                           f'{low:.1f} to {high:.1f} %', f'{result["mean_difference"]:.2f} nats']


@pure
@pytest.mark.parametrize('k, n, low, high', [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                             (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)])
def test_the_interval_is_that_of_published_examples(k, n, low, high):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I."""
    assert pairs.wilson_interval(k, n) == pytest.approx([low, high], abs=5e-5)
    assert pairs.wilson_interval(n - k, n) == pytest.approx([1 - high, 1 - low], abs=5e-5)


@pure
@pytest.mark.parametrize('k, n', [(1, 2), (3, 7), (700, 1508)])
def test_the_ends_of_the_interval_are_as_far_from_the_share_as_promised(k, n):
    for end in pairs.wilson_interval(k, n):
        assert abs(k / n - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(1.959964, 1e-6)


# ---- beside transformers -----------------------------------------------------------------------


@pytest.mark.usefixtures('one_torch_thread')
def test_the_small_model_converted_has_these_log_likelihoods_in_transformers(call, write, tmp_path):
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    folder, model = tmp_path / 'converted', ['--model_name', '1M', '--models_dir', ONE_M.parent]
    assert call(convert.convert, convert.OPTIONS, ONE_M, folder, '--to', 'transformers')[0] == 0
    net = transformers.GPT2LMHeadModel.from_pretrained(str(folder)).double().eval()
    encoder = open_model_dir('1M', str(ONE_M.parent)).encoder

    def logprob(text):
        ids = torch.tensor([[encoder.end_of_text, *encoder.encode(text)]])
        with torch.no_grad():
            logprobs = net(ids[:, :-1]).logits.log_softmax(-1)
        return float(logprobs.gather(-1, ids[:, 1:, None]).sum())

    for task, content in [('pairs', PAIRS), ('crows_pairs', CROWS)]:
        output = tmp_path / f'{task}.jsonl'
        status, stdout, stderr = call(evaluate.evaluate, evaluate.OPTIONS, task, write(content),
                                      *model, '--output', output)
        assert (status, stderr) == (0, '')
        written = [json.loads(line) for line in output.read_text().splitlines()]
        expected = [[logprob(pair['first']), logprob(pair['second'])] for pair in written]
        np.testing.assert_allclose([[pair['first_logprob'], pair['second_logprob']]
                                    for pair in written], expected, rtol=0, atol=1e-4)
        n_first = sum(first > second for first, second in expected)
        assert json.loads(stdout.splitlines()[0])['first_likelier'] == n_first


# ---- what is refused ---------------------------------------------------------------------------

PAIR = json.dumps(PAIRS[0])
HEADER = CROWS.splitlines()[0]


@pure
@pytest.mark.parametrize('task, content, words', [
    ('pairs', '', 'empty'), ('pairs', f'{PAIR}\n\nnothing\n', 'line 3: it is not JSON'),
    ('pairs', f'{PAIR}\n[1]\n', 'line 2'), ('pairs', b'{}\n\xff', 'line 2: it is not UTF-8'),
    ('pairs', [dict(PAIRS[0], second=5)], 'line 1: it has no text as its "second"'),
    ('pairs', [PAIRS[0], {'first': 'a', 'second': 'b'}], 'line 2: it has no text as its "cat'),
    ('pairs', [PAIRS[0], dict(PAIRS[0], first='')], 'line 2: its first text is empty'),
    ('pairs', '[' * 100000, 'line 1'), ('pairs', f'{PAIR[:-9]}', 'line 1'),
    ('crows_pairs', 'x', 'line 1: it names no column sent_more'),
    ('crows_pairs', '\n' + CROWS, 'line 1: it names no column'),
    ('crows_pairs', HEADER.replace('bias_type', 'bias'), 'line 1: it names no column bias_type'),
    ('crows_pairs', HEADER + '\n', 'no pairs'),
    ('crows_pairs', CROWS + '4,too,few\n', 'line 7: it has 3 columns, and the first line 8'),
    ('crows_pairs', CROWS.replace(',antistereo,gender', ',both,gender'), 'line 6'),
    ('crows_pairs', CROWS.replace('He lifts it.', ''), 'line 6: its first text is empty'),
    ('crows_pairs', CROWS + '4,"cut short', 'line 7'), ('crows_pairs', CROWS + '4,"a"b,', 'line 7'),
    ('crows_pairs', CROWS + '4,' + 'x' * 200000, 'line 7'),
    ('crows_pairs', CROWS.encode('utf-8') + b'4,\xe9,', 'line 7: it is not UTF-8')],
    ids=lambda value: str(value)[:40])
def test_a_malformed_file_is_refused(refuse, unloaded, write, task, content, words):
    path = write(content)
    status, line = refuse(evaluate.evaluate, evaluate.OPTIONS, task, path, *unloaded)
    assert status == 1 and line.startswith(str(path)) and words in line


@pure
@pytest.mark.parametrize('argv, words', [
    (['pairs'], 'evaluate.py pairs FILE'), (['crows_pairs'], 'evaluate.py crows_pairs FILE'),
    (['pairs', 'a', 'b'], 'one FILE'), (['pairs', 'a', '--html', 'b'], '--html')])
def test_unusable_arguments_are_refused(refuse, unloaded, argv, words):
    status, line = refuse(evaluate.evaluate, evaluate.OPTIONS, *argv, *unloaded)
    assert status == 2 and words in line


@pure
def test_readers_keep_texts_as_they_are(write):
    pair = {'first': ' a\tb ', 'second': 'ä\r\n', 'category': '', 'note': [1]}
    assert readers.read_pairs(str(write([pair]))) == [pair]
    crlf = write(CROWS.replace('\n', '\r\n').encode('utf-8-sig'))
    assert readers.read_crows_pairs(str(crlf))[2]['first'] == 'The old forget\r\n.'
