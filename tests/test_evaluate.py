"""Scoring and the evaluation script, held to the float64 reference and to transformers."""
import html
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import types

import numpy as np
import pytest

import checkpoint
import corpora
import evaluate
import reference

SCRIPT = 'evaluate.py'
DATA = os.environ.get('GPT2_TEST_DATA')
ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 4  # times to send Ctrl-C, as in test_scripts.py
NEAR = 1e-4  # logits as close as this may change places in float32
ROUNDING = 3e-5  # the same where both sides are float32


@pytest.fixture(scope='module')
def run(tf, tiny):
    """A Run of the tiny model, without stop words."""
    return evaluate.open_run(checkpoint.open_model(tiny.name, str(tiny.models_dir)), 2, 5)


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def score_by_reference(tiny, tokens, stride, first=1):
    """Returns the log probabilities and ranks of a text's tokens, each from a forward pass.

    And how near the nearest other logit comes to each: ranks hang on that.
    """
    n_ctx = tiny.hparams['n_ctx']
    log_probs, ranks, gaps = [], [], []
    for i in range(first, len(tokens)):
        steps = max(0, math.ceil((i - n_ctx) / stride))  # of the first window that reaches it
        logits = reference.forward(tiny.weights, tiny.hparams, tokens[steps * stride:i])[-1]
        log_probs.append(log_softmax(logits)[tokens[i]])
        ranks.append(1 + (logits > logits[tokens[i]]).sum())
        gaps.append(np.abs(np.delete(logits, tokens[i]) - logits[tokens[i]]).min())
    return np.array(log_probs), np.array(ranks), np.array(gaps)


def random_text(tiny, n, seed=0):
    return [256] + np.random.RandomState(seed).randint(97, 256, n).tolist()


# ---- windows -----------------------------------------------------------------------------------

@pytest.mark.parametrize('n_ctx', [1, 2, 7, 32])
def test_windows_score_each_token_once_with_the_context_promised(tf, n_ctx):
    import score
    for stride in range(1, n_ctx + 1):
        for n_tokens in [*range(3 * n_ctx + 3), 100]:
            for first in {1, 2, n_ctx + 2}:
                scored = []
                for start, end, begin in score.windows(n_tokens, n_ctx, stride, first):
                    assert start % stride == 0 and start < begin <= end < n_tokens
                    assert end - start <= n_ctx
                    assert begin - start > n_ctx - stride or start == 0
                    scored.extend(range(begin, end + 1))
                assert scored == list(range(first, n_tokens))


def test_batches_hold_like_windows_and_no_more_tokens_than_asked_for(tf):
    import score
    jobs = [(i, score.Window(0, length, 1)) for i, length in enumerate([3, 8, 5, 1, 8, 2, 4, 4])]
    batches = list(score.batches(jobs, 10))
    assert sorted(job for batch in batches for job in batch) == jobs
    lengths = [[window.end for _, window in batch] for batch in batches]
    assert lengths == [[8], [8], [5, 4], [4, 3], [2, 1]]


# ---- scores ------------------------------------------------------------------------------------

@pytest.mark.parametrize('stride', [1, 2, 5, 31, 32])
@pytest.mark.parametrize('batch_size', [1, 3])
def test_scores_are_those_of_one_forward_pass_for_each_token(run, tiny, stride, batch_size):
    texts = [random_text(tiny, n, n) for n in (75, 1, 33, 0, 32, 7, 2)]
    for text, scores in zip(texts, run.scorer.score(texts, batch_size, stride)):
        log_probs, ranks, gaps = score_by_reference(tiny, text, stride)
        np.testing.assert_allclose(scores.log_probs, log_probs, rtol=0, atol=1e-4)
        assert len(text) < 8 or (gaps > NEAR).mean() > 0.9
        assert (scores.ranks == ranks)[gaps > NEAR].all()
        assert (scores.filtered_ranks == scores.ranks).all()


def test_many_places_are_scored_in_parts_and_some_tokens_may_be_left_out(tf, tiny, monkeypatch):
    import score
    monkeypatch.setattr(score, 'PLACES', 3)
    allowed = np.arange(257) % 3 > 0
    opened = checkpoint.open_model(tiny.name, str(tiny.models_dir))
    text = random_text(tiny, 32)
    scores, again = score.Scorer(opened, allowed).score([text, text], 1, 32, [1, 20])
    for i, found in enumerate(scores.log_probs, 1):
        logits = reference.forward(tiny.weights, tiny.hparams, text[:i])[-1]
        assert found == pytest.approx(log_softmax(logits)[text[i]], abs=1e-4)
        assert scores.ranks[i - 1] == 1 + (logits > logits[text[i]]).sum()
        assert scores.filtered_ranks[i - 1] == 1 + (logits > logits[text[i]])[allowed].sum()
    assert (again.ranks == scores.ranks[19:]).all()


def test_equal_logits_share_the_better_rank(tf, tmp_path):
    weights = reference.random_weights(dict(n_vocab=257, n_ctx=8, n_embd=8, n_head=2, n_layer=1), 0)
    weights['model/wte'][:] = weights['model/wte'][0]
    reference.write_checkpoint(tmp_path / 'flat', dict(n_vocab=257, n_ctx=8, n_embd=8, n_head=2,
                                                       n_layer=1), weights)
    flat = evaluate.open_run(checkpoint.open_model('flat', str(tmp_path)), 1, 8)
    scores, = flat.scorer.score([[256, 1, 2, 3]], 1, 8)
    assert scores.ranks.tolist() == [1, 1, 1]
    np.testing.assert_allclose(scores.log_probs, -math.log(257), rtol=1e-5)


# ---- the measures ------------------------------------------------------------------------------

def test_stop_words_are_the_tokens_that_are_a_word_as_a_whole(tf, monkeypatch):
    opened = checkpoint.open_model('1M', str(ROOT / 'models'))
    seen = {}
    import score
    monkeypatch.setattr(score, 'Scorer', lambda opened, allowed: seen.update(allowed=allowed))
    evaluate.open_run(opened, 1, 1, corpora.STOP_WORDS)
    taken = {opened.encoder.decode([i]) for i in np.flatnonzero(~seen['allowed'])}
    assert {' the', ' and', 'The', ' you', 'he'} <= taken
    assert not taken & {' king', ' lord', ',', '\n', ' ', ' good', ' ther'}
    assert len(taken) < 250


def test_lambada_measures(run):
    """On scores that are made up: what is a hit by which reading."""
    def scores(*rows):
        return types.SimpleNamespace(score=lambda *_: [made(*row) for row in rows])

    def made(ranks, filtered_ranks):
        import score
        return score.Scores(np.full(len(ranks), -0.5, np.float32), np.array(ranks),
                            np.array(filtered_ranks))

    fake = run._replace(scorer=scores(([1], [1]), ([1, 2], [1, 1]), ([2, 1], [1, 1]),
                                      ([3, 3], [2, 1])))
    n, measures = evaluate.measure_lambada(fake, [corpora.Cloze('a', ' b')] * 4)
    found = {measure.name: measure for measure in measures}
    assert n == 4
    assert found['accuracy, word'].value == 25
    assert found['accuracy, word, stop-word filter'].value == 75
    assert found['accuracy, last token'].value == 50
    assert found['accuracy, last token, stop-word filter'].value == 100
    assert found['perplexity, word'].value == pytest.approx(math.exp(0.5 * 7 / 4))
    assert found['perplexity, last token'].value == pytest.approx(math.exp(0.5))
    assert found['accuracy, word'].stderr == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 4))


def greedy_byte(tiny, text):
    """Returns the character that the tiny model finds likeliest after a text, if it is one."""
    tokens = ([256] + tiny.encode(text))[-32:]
    logits = reference.forward(tiny.weights, tiny.hparams, tokens)[-1]
    best, second = np.sort(logits)[[-1, -2]]
    character = tiny.decode([int(logits.argmax())])
    return character if re.fullmatch('[!-~]', character) and best - second > NEAR else None


def test_half_of_a_set_made_so_is_exactly_half(command, tiny, tmp_path):
    """A process reads the file; every second last word is the model's own."""
    lines, greedy = [], 0
    for i in range(400):
        context = 'Passage %d says\n' % i
        word = greedy_byte(tiny, '\n' + context)
        if word and greedy < 10:
            lines += [context + word, context + ('a' if word != 'a' else 'b')]
            greedy += 1
    assert len(lines) == 20
    path = tmp_path / 'lambada_test.jsonl'
    path.write_text(''.join(json.dumps({'text': line}) + '\n' for line in lines))
    output = tmp_path / 'results.json'
    status, stdout, stderr = command(SCRIPT, 'lambada', path, *tiny.flags, '--output', output).run()
    assert (status, stderr) == (0, '')
    rows = {row['measure']: row for row in json.loads(output.read_text())[0]['measures']}
    for name in ('word', 'last token'):
        assert rows['accuracy, ' + name]['value'] == 50
        assert rows['accuracy, ' + name]['stderr'] == pytest.approx(100 * math.sqrt(0.25 / 20))
    assert re.search(r'^lambada +accuracy, word +50\.00 +11\.18 +20 +\d+ s$', stdout, re.MULTILINE)


def test_cbt_takes_the_choice_that_makes_the_sentence_likeliest(run, tiny):
    choices = [' ' + word for word in 'ab cde fg h ij kl mn op qr st'.split()]
    questions, hits = [], []
    for i, context in enumerate(['Once there', 'A long context ' * 4, 'x']):
        totals = []
        for choice in choices:
            tokens = [256] + tiny.encode(context + choice + ' was.')
            tokens = tokens[-33:]
            n = len(choice + ' was.')
            totals.append(score_by_reference(tiny, tokens, 32, len(tokens) - n)[0].sum())
        assert np.diff(np.sort(totals))[-1] > NEAR
        answer = int(np.argmax(totals)) if i else 3
        hits.append(answer == int(np.argmax(totals)))
        questions.append(corpora.Question(context, choices, ' was.', answer))
    n, (measure,) = evaluate.measure_cbt(run, questions, 'cbt_cn')
    assert n == 3 and measure.value == pytest.approx(100 * np.mean(hits))
    assert sum(hits) == 2


def test_word_perplexity(run, tiny):
    corpus = corpora.Corpus(['one two\n', 'a longer sentence than the window is wide, by far\n'],
                            14, 0, 2)
    nats = -sum(score_by_reference(tiny, [256] + tiny.encode(text), 5)[0].sum()
                for text in corpus.texts)
    n, measures = evaluate.measure_words(run, corpus, 'ptb')
    assert (n, measures[0].column) == (2, 'ptb')
    assert measures[0].value == pytest.approx(math.exp(nats / 14), rel=1e-4)


@pytest.mark.parametrize('column', ['enwik8', 'text8'])
def test_bits_of_bytes_that_begin_and_end_within_a_character(run, tiny, column):
    data = 'ä – bytes, 東京 and more of them €'.encode()[1:-1]
    symbols = [byte for byte in range(256) if chr(byte) in reference.byte_symbols()]
    order = symbols + [byte for byte in range(256) if byte not in symbols]
    tokens = [256] + [order.index(byte) for byte in data]
    bits = -score_by_reference(tiny, tokens, 5)[0].sum() / math.log(2)
    n, (per_byte, per_character) = evaluate.measure_bytes(run, data, column)
    assert n == len(data)
    assert per_byte.value == pytest.approx(bits / n, rel=1e-4)
    # The rest of ä is no character of its own, but the beginning of € is.
    assert per_character.value == pytest.approx(
        bits / len(' – bytes, 東京 and more of them €'), rel=1e-4)
    assert [per_byte.column, per_character.column] == (
        ['enwik8', None] if column == 'enwik8' else [None, 'text8'])


def test_the_papers_figures_stand_beside_its_sizes():
    for name, figure in [('124M', 45.99), ('117M', 45.99), ('1542M', 63.24), ('mine', None)]:
        measure = evaluate.Measure('accuracy', 1.0, 0.1, 'lambada_acc')
        assert evaluate.with_paper(measure, {'model': name})['paper'] == figure
    assert {len(row) for row in evaluate.PAPER.values()} == {len(evaluate.COLUMNS)}


# ---- tasks as commands -------------------------------------------------------------------------

@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / 'lambada_test.jsonl').write_text('{"text": "One two three"}\n')
    (folder / 'ptb.test.txt').write_text(' one two N \n' * 4)
    return folder


def test_all_tells_what_is_missing_and_does_nothing_twice(command, bare, tiny, data_dir, tmp_path):
    output = tmp_path / 'results.json'
    flags = ['all', *tiny.flags, '--data_dir', data_dir, '--output', output]
    status, stdout, stderr = command(SCRIPT, *flags).run()
    assert status == 1
    assert stderr.count('\n') == 1 and 'enwik8' in stderr and 'lambada' not in stderr
    tasks = [line.split()[0] for line in stdout.splitlines() if not line.startswith(' ')]
    assert tasks == ['task', 'lambada', 'ptb']
    results = output.read_text()
    # TensorFlow cannot be imported now.
    assert bare(SCRIPT, *flags) == (status, stdout, stderr)
    assert output.read_text() == results
    # Other settings are another result.
    status, other, _ = command(SCRIPT, 'ptb', *tiny.flags, '--data_dir', data_dir, '--output',
                               output, '--stride', 7).run()
    assert status == 0 and '  7  ' in other
    assert len(json.loads(output.read_text())) == 3


def test_ctrl_c_leaves_what_is_finished(command, tiny, data_dir, tmp_path):
    output = tmp_path / 'results.json'
    (data_dir / 'ptb.test.txt').write_text(' one two N \n' * 40000)
    script = command(SCRIPT, 'all', *tiny.flags, '--data_dir', data_dir, '--output', output,
                     '--stride', 1).start()
    read = b''
    while b'perplexity, last' not in read:
        read += os.read(script.stdout.fileno(), 4096)
    for _ in range(PATIENCE):
        script.send_signal(signal.SIGINT)
        try:
            _, stderr = script.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert script.returncode == 130
    assert stderr == b'' or b'Exception ignored' in stderr
    assert [result['task'] for result in json.loads(output.read_text())] == ['lambada']


@pytest.mark.parametrize('arguments, status, words', [
    ([], 2, ['TASK']), (['lambda'], 2, ['--task', 'lambada']), (['score'], 2, ['FILE']),
    (['ptb', '--stride', 0], 2, ['--stride']), (['ptb', '--stride', 33], 2, ['--stride', '32']),
    (['ptb', '--limit', 0], 2, ['--limit']), (['ptb', '--batch_size', 0], 2, ['--batch_size']),
    (['ptb', '--html', 'x.html'], 2, ['--html']), (['all', 'x'], 2, ['--data_dir']),
    (['ptb', 'nowhere.txt'], 1, ['nowhere.txt']), (['score', 'nowhere'], 1, ['nowhere']),
    (['ptb', '--output', 'no/where'], 1, ['no/where'])])
def test_what_cannot_be_done_is_refused(refused, tiny, arguments, status, words):
    found, line = refused(SCRIPT, *arguments, *tiny.flags)
    assert found == status
    assert all(word in line for word in words)


@pytest.mark.parametrize('task, text, words', [
    ('lambada', '{"text": "two words"}\nnothing\n', 'line 2'),
    ('ptb', ' one \n two', 'line 2'), ('cbt_ne', '1 One .\n3 Three .\n', 'line 2'),
    ('score', '{"text": "fine"}\n{"text": 5}\n', 'line 2'),
    ('score', '{"text": "fine"}\n{"text": "cu', 'line 2'), ('score', '', 'empty'),
    ('score', b'one\ntwo \xff\n', 'line 2')])
def test_a_malformed_file_is_refused_before_anything_else(refused, tiny, tmp_path, task, text,
                                                          words):
    path = tmp_path / 'file'
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    status, line = refused(SCRIPT, task, path, *tiny.flags)
    assert status == 1 and str(path) in line and words in line


def test_other_files_are_not_written_over(refused, tiny, data_dir, tmp_path):
    path = tmp_path / 'notes.txt'
    path.write_text('mine')
    status, line = refused(SCRIPT, 'ptb', *tiny.flags, '--data_dir', data_dir, '--output', path)
    assert status == 1 and str(path) in line and path.read_text() == 'mine'


# ---- score -------------------------------------------------------------------------------------

DOCUMENTS = [{'text': 'A first text, longer than the window of 32.', 'id': 7}, {'text': ''},
             {'text': '<b>東京\n &amp; 🙂 "é"</b>'}]


def test_documents_are_scored(command, tiny, tmp_path):
    page = tmp_path / 'report.html'
    lines = ''.join(json.dumps(document) + '\n' for document in DOCUMENTS)
    status, stdout, stderr = command(SCRIPT, 'score', '-', *tiny.flags, '--stride', 3, '--html',
                                     page).run(stdin=lines)
    assert (status, stderr) == (0, '')
    results = [json.loads(line) for line in stdout.splitlines()]
    for document, result in zip(DOCUMENTS, results):
        assert document.items() <= result.items()
        tokens = tiny.encode(document['text'])
        assert result['tokens'] == tokens
        assert result['n_tokens'] == result['n_bytes'] == len(tokens)
        log_probs, ranks, gaps = score_by_reference(tiny, [256] + tokens, 3)
        np.testing.assert_allclose(result['log_probs'], log_probs, rtol=0, atol=1e-4)
        assert (np.array(result['ranks']) == ranks)[gaps > NEAR].all()
        assert result['total_log_prob'] == pytest.approx(log_probs.sum(), abs=1e-3)
        if tokens:
            mean = result['total_log_prob'] / len(tokens)
            assert result['mean_log_prob'] == pytest.approx(mean)
            assert result['perplexity'] == pytest.approx(math.exp(-mean))
            assert result['bits_per_byte'] == pytest.approx(-mean / math.log(2))
            ranks = np.array(result['ranks'])
            assert result['rank_shares'] == {
                '1': (ranks == 1).mean(), '2-10': ((ranks > 1) & (ranks <= 10)).mean(),
                '11-100': ((ranks > 10) & (ranks <= 100)).mean(),
                '101-1000': (ranks > 100).mean(), '1001-': 0}
    assert results[1]['perplexity'] is None
    # The page shows the texts as they are, and the colours of the ranks.
    texts = re.findall('<p class="text">(.*?)</p>', page.read_text(encoding='utf-8'), re.DOTALL)
    assert [html.unescape(re.sub('<.*?>', '', text)) for text in texts] == [
        DOCUMENTS[0]['text'], DOCUMENTS[2]['text']]
    classes = [int(name) for name in re.findall('<span class="r(.)"', texts[0])]
    assert classes == np.searchsorted([1, 10, 100, 1000], results[0]['ranks']).tolist()
    assert len(re.findall('<span', texts[1])) == len(DOCUMENTS[2]['text'])  # whole characters
    assert texts[1].count('probability') == len(results[2]['tokens'])


def test_a_plain_file_is_one_document(command, tiny, tmp_path):
    path, output = tmp_path / 'text.txt', tmp_path / 'scores.jsonl'
    path.write_text('Two lines,\n{"text": "one document"}\n')
    status, stdout, stderr = command(SCRIPT, 'score', path, *tiny.flags, '--output', output).run()
    assert (status, stdout, stderr) == (0, '', '')
    result, = [json.loads(line) for line in output.read_text().splitlines()]
    assert result['text'] == path.read_text()


# ---- beside transformers -----------------------------------------------------------------------

def as_in_transformers(directory):
    """Returns the model of a directory as a model of transformers, made from its checkpoint."""
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
        last = {'g': 'weight', 'w': 'weight', 'b': 'bias'}.get(last, last + '.weight')
        weight = state['.'.join(['transformer', *scopes, last])]
        weight.copy_(torch.from_numpy(reader.get_tensor(name)).reshape(weight.shape))
    return net.eval()


def score_by_transformers(net, tokens, stride):
    """Returns the log probabilities and ranks of all tokens but the first, and their slack.

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


def check_against_transformers(directory, tmp_path, stride):
    """Compares LAMBADA, WikiText-2 and PTB: total log probabilities, and every target's rank."""
    net = as_in_transformers(directory)
    opened = checkpoint.open_model(directory.name, str(directory.parent))
    run = evaluate.open_run(opened, 2, stride)
    encode, end = opened.encoder.encode, opened.hparams.n_vocab - 1
    assert opened.encoder.encoder['<|endoftext|>'] == end

    def check(tokens, scores):
        log_probs, ranks, slack = score_by_transformers(net, tokens, stride)
        log_probs, ranks, slack = (x[-len(scores.ranks):] for x in (log_probs, ranks, slack))
        assert scores.log_probs.sum(dtype=np.float64) == pytest.approx(log_probs.sum(), rel=1e-4)
        assert (np.abs(scores.ranks - ranks) <= slack).all()
        return (scores.ranks == ranks).mean()

    for name, read in [('wiki.test.tokens', corpora.read_wikitext),
                       ('ptb.test.txt', corpora.read_ptb)]:
        data = (pathlib.Path(DATA) / name).read_bytes()[:50000]
        (tmp_path / name).write_bytes(data[:data.rindex(b'\n') + 1])
        text, = read(str(tmp_path / name)).texts
        tokens = [end] + encode(text)
        scores, = run.scorer.score([tokens], 1, stride)
        check(tokens, scores)

    lines = (pathlib.Path(DATA) / 'lambada_test.jsonl').read_text(encoding='utf-8').splitlines()
    quotes = {'‘': "'", '’': "'", '“': '"', '”': '"'}
    passages = ['\n' + ''.join(quotes.get(c, c) for c in json.loads(line)['text'])
                for line in lines[:200]]
    clozes = corpora.read_lambada(os.path.join(DATA, 'lambada_test.jsonl'), limit=200)
    found = evaluate.score_targets(run, clozes)
    equal = []
    for passage, scores in zip(passages, found):
        tokens = ([end] + encode(passage))[-net.config.n_positions - 1:]
        target = re.search(r' ?\S+$', passage).group()
        assert len(scores.ranks) == len(encode(target))
        equal.append(check(tokens, scores))
    print("equal ranks: %.4f of LAMBADA's targets" % np.mean(equal))
    assert np.mean(equal) > 0.95  # the others have a neighbour that rounding moves past them


needs_data = pytest.mark.skipif(not DATA, reason='needs real texts: set GPT2_TEST_DATA')


@needs_data
def test_the_small_model_scores_real_texts_as_in_transformers(tf, tmp_path):
    check_against_transformers(ROOT / 'models' / '1M', tmp_path, stride=64)


@needs_data
def test_the_shape_of_124m_scores_real_texts_as_in_transformers(tf, tmp_path):
    if os.environ.get('GPT2_TEST_LONG') != '1':
        pytest.skip('takes minutes and 3 GB: set GPT2_TEST_LONG=1')
    pytest.importorskip('transformers')
    shape = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}
    directory = tmp_path / '124M'
    reference.write_checkpoint(directory, shape, reference.random_weights(shape, seed=0),
                               vocabulary_dir=os.path.join(DATA, 'gpt2-vocab'))
    check_against_transformers(directory, tmp_path, stride=1024)
    shutil.rmtree(str(directory))
