"""Detection of synthetic text: statistics, ROC curves, comparisons, references, the command.

The page of a comparison is tested in test_page.py.
"""
import io
import json
import math
import random
import sys
import zipfile

import numpy as np
import pytest

import evaluate
import generate_unconditional_samples as unconditional
import reference as oracle
from gpt2.detection import comparison, report, roc, statistics, tfidf
from gpt2.detection import reference as references
from gpt2.detection.comparison import Text
from gpt2.errors import OptionError, UsageError, UserError
from gpt2.evaluation import loglikelihood, scorer
from gpt2.evaluation.loglikelihood import Scorer, Scores
from gpt2.evaluation.options import EvaluationOptions
from gpt2.model_dir import open_model_dir, weights_digest
from helpers import LONG, ONE_M, SRC, huggingface_logits, log_softmax

OPTIONS = evaluate.OPTIONS
NAMES = [statistic.name for statistic in statistics.STATISTICS]
NEAR = 1e-4  # logits as near as this may change places in float32
pure = pytest.mark.pure


# ---- statistics --------------------------------------------------------------------------------

def oracle_statistics(logits, tokens, margin):
    """Return the statistics of tokens [n] given float64 logits [n, V], as their papers define them.

    Ranks count the logits that are larger by more than a margin.
    """
    logprobs = np.array([log_softmax(row) for row in logits])
    own = logprobs[np.arange(len(tokens)), tokens]
    ranks = 1 + (logits > logits[np.arange(len(tokens)), tokens][:, np.newaxis] + margin).sum(1)
    p = np.exp(logprobs)
    mu, square = (p * logprobs).sum(axis=1), (p * logprobs**2).sum(axis=1)
    return {'log_likelihood': own.mean(), 'rank': ranks.mean(), 'log_rank': np.log(ranks).mean(),
            'entropy': -mu.mean(), 'lrr': -own.sum() / max(np.log(ranks).sum(), math.log(2)),
            'top_10': (ranks <= 10).mean(), 'top_100': (ranks <= 100).mean(),
            'fast_detectgpt': (own.sum() - mu.sum()) / math.sqrt((square - mu**2).sum())}


def check_statistics(found, logits, tokens):
    """Check the statistics of a text; those of ranks may be off where logits are nearly equal."""
    bounds = [oracle_statistics(logits, tokens, margin) for margin in (-NEAR, 0, NEAR)]
    assert list(bounds[0]) == NAMES
    for name, value in zip(NAMES, found):
        values = [bound[name] for bound in bounds]
        slack = 1e-4 * max(1, abs(values[1]))
        assert min(values) - slack <= value <= max(values) + slack, name


def documents(encoder, n, longest):
    """Return the token ids of n passages, of any length up to `longest` tokens, and bytes."""
    text = (SRC.parent / 'DEVELOPERS.md').read_text(encoding='utf-8')
    draw = random.Random(5)
    texts = [text[draw.randrange(len(text)):] for _ in range(n - 1)] + [
        ''.join(map(chr, range(250, 300))) * 9]
    return [encoder.encode(text[:1000])[:draw.randint(1, longest)] for text in texts]


@pytest.fixture(scope='module')
def read_texts(tf):
    """Passages read by models/1M: the model directory, token ids, and Scores."""
    model_dir = open_model_dir('1M', str(ONE_M.parent))
    texts = documents(model_dir.encoder, 200 if LONG else 5, 255)
    scorer = Scorer(model_dir, top=0)
    scores = scorer.loglikelihood_rolling(texts, batch_size=4)
    scorer.close()
    return model_dir, texts, scores


@pytest.mark.parametrize('peer', ['transformers', 'NumPy'])
def test_statistics_are_those_of_an_independent_implementation(request, saved, read_texts, peer):
    """On the logits of transformers, and of the float64 reference where there is no torch."""
    if peer == 'transformers':
        request.getfixturevalue('one_torch_thread')
    logits_of = {'transformers': huggingface_logits, 'NumPy': oracle.forward}[peer]
    model_dir, texts, scores = read_texts
    weights, hparams = saved(ONE_M), vars(model_dir.hparams)
    table = statistics.statistics_table(scores, [len(text) for text in texts])
    for tokens, text_scores, row in zip(texts, scores, table):
        logits = logits_of(weights, hparams, [model_dir.encoder.end_of_text, *tokens[:-1]])
        check_statistics(row, logits, tokens)
        half = -(-len(tokens) // 2)  # the first tokens of a text count as if no more followed
        first = statistics.statistics_table([text_scores], [half])[0]
        check_statistics(first, logits[:half], tokens[:half])


def test_fast_detectgpt_is_the_formula_of_its_paper_on_random_logits(tf):
    random = np.random.RandomState(0)
    for n, n_vocab, scale in [(1, 2, 1), (7, 257, 3), (50, 5000, 0.1), (300, 1000, 8)]:
        logits = random.normal(scale=scale, size=[n, n_vocab])
        tokens = random.randint(n_vocab, size=n)
        with tf.Graph().as_default(), tf.Session() as session:
            tensors = [tf.constant(logits, tf.float32), tf.constant(tokens, tf.int32)]
            scores = Scores(*session.run(loglikelihood.token_scores(*tensors, None)
                                         + loglikelihood.expectations(tensors[0], 0)))
        assert scores.top_tokens.shape == (n, 0)
        check_statistics(statistics.text_statistics(scores), logits, tokens)


def constant_scores(logprob, rank, n=3):
    """Return the Scores of n tokens of a model that never varies."""
    return Scores(np.full(n, logprob, np.float32), np.full(n, rank, np.int32), (),
                  np.full(n, -logprob, np.float32), (), (), np.zeros(n, np.float32))


@pure
def test_where_a_divisor_is_nothing_there_is_still_a_number():
    found = dict(zip(NAMES, statistics.text_statistics(constant_scores(-2, 1))))
    assert found['lrr'] == pytest.approx(6 / math.log(2)) and found['fast_detectgpt'] == 0
    table = statistics.statistics_table([constant_scores(-2, 1)] * 2, [0, 2])
    assert np.isnan(table[0]).all() and np.isfinite(table[1]).all()


# ---- ROC curves --------------------------------------------------------------------------------

def draws(seed, n_human=40, n_synthetic=31, shift=0.7):
    """Return the values of two sides, with ties."""
    random = np.random.RandomState(seed)
    return (np.round(random.normal(size=n_human), 1),
            np.round(random.normal(shift, size=n_synthetic), 1))


def pairs_auroc(human, synthetic):
    """Return the AUROC from all pairs, and its DeLong interval, as they are defined."""
    def wins(x, y):
        return 1.0 if x > y else 0.5 if x == y else 0.0

    m, n = len(synthetic), len(human)
    area = sum(wins(x, y) for x in synthetic for y in human) / (m * n)
    v10 = [sum(wins(x, y) for y in human) / n for x in synthetic]
    v01 = [sum(wins(x, y) for x in synthetic) / m for y in human]
    s10 = sum((v - area)**2 for v in v10) / (m - 1)
    s01 = sum((v - area)**2 for v in v01) / (n - 1)
    margin = 1.959964 * math.sqrt(s10 / m + s01 / n)
    return area, max(0, area - margin), min(1, area + margin)


@pure
@pytest.mark.parametrize('seed', range(5))
def test_the_area_and_its_interval_are_those_of_delong(seed):
    human, synthetic = draws(seed, 20 + seed, 30 - 5 * seed, shift=seed / 2)
    assert len(set(human)) < len(human)
    assert roc.auroc(human, synthetic) == pytest.approx(pairs_auroc(human, synthetic), abs=1e-6)


@pure
def test_the_interval_is_the_one_that_proc_publishes():
    """The WFNS grades, 1 to 5, of patients with a good and a poor outcome (Turck et al. 2010).

    They are the example of pROC (Robin et al. 2011), whose tests have these figures.
    """
    grades = np.arange(1, 6)
    good, poor = np.repeat(grades, [37, 20, 3, 8, 4]), np.repeat(grades, [2, 12, 1, 8, 18])
    assert roc.auroc(good, poor) == pytest.approx(
        (0.823678861788618, 0.748534887819453, 0.898822835757783), abs=1e-14)


@pure
@pytest.mark.parametrize('seed', range(5))
def test_areas_and_curves_are_those_of_scikit_learn(seed):
    metrics = pytest.importorskip('sklearn.metrics')
    human, synthetic = draws(seed)
    labels = np.repeat([0, 1], [len(human), len(synthetic)])
    values = np.concatenate([human, synthetic])
    assert roc.auroc(human, synthetic).value == pytest.approx(
        metrics.roc_auc_score(labels, values), abs=1e-12)
    fpr, tpr, thresholds = metrics.roc_curve(labels, values, drop_intermediate=False)
    found = roc.roc_curve(human, synthetic)
    np.testing.assert_allclose(found, [thresholds, fpr, tpr], rtol=0, atol=1e-12)


@pure
def test_thresholds_are_the_best_of_all():
    for seed in range(20):
        human, synthetic = draws(seed, 10 + seed * 9, 15)
        everything = np.concatenate([human, synthetic])
        accuracies = {t: ((human < t).mean() + (synthetic >= t).mean()) / 2 for t in everything}
        best = roc.best_threshold(human, synthetic)
        assert accuracies[best] == max(accuracies.values())
        assert roc.accuracy(human, synthetic, best) == accuracies[best]
        assert roc.true_positive_rate(human, synthetic, 0.1) == max(
            (synthetic > t).mean() for t in everything if (human > t).mean() <= 0.1)


@pure
def test_sides_that_do_not_overlap():
    human, synthetic = np.arange(10.0), np.arange(10.0) + 10
    assert roc.auroc(human, synthetic) == (1, 1, 1)
    assert roc.auroc(synthetic, human) == (0, 0, 0)
    assert roc.best_threshold(human, synthetic) == 10
    assert roc.true_positive_rate(human, synthetic) == 1


@pure
def test_two_halves_of_one_side_are_alike_within_the_interval():
    """95 of 100 intervals should have 0.5; of 100 draws fewer than 90 or all are unlikely."""
    values, covered = np.concatenate(draws(0, 150, 150)), 0
    for seed in range(100):
        half = comparison.validation_half(len(values), seed)
        _, low, high = roc.auroc(values[half], values[~half])
        covered += low <= 0.5 <= high
    assert 90 <= covered <= 99


# ---- equal lengths -----------------------------------------------------------------------------

@pure
@pytest.mark.parametrize('n_human, n_synthetic', [(50, 50), (30, 50), (50, 30)])
def test_lengths_say_nothing_after_the_cut(n_human, n_synthetic):
    random = np.random.RandomState(0)
    lengths = random.randint(1, 300, n_human), random.randint(100, 1000, n_synthetic)
    cuts = comparison.equal_lengths(*lengths)
    used = [cut[cut > 0] for cut in cuts]
    assert sorted(used[0]) == sorted(used[1]) and len(used[0]) == min(n_human, n_synthetic)
    assert roc.auroc(*lengths).value > 0.85 and roc.auroc(*used).value == 0.5
    assert all((cut <= own).all() for cut, own in zip(cuts, lengths))
    assert sum(used[0]) == sum(map(min, zip(*(  # no other pairs would leave more
        sorted(side[:len(used[0])]) for side in lengths))))
    assert all((cut[len(used[0]):] == 0).all() for cut in cuts)


@pure
def test_lengths_that_too_few_texts_have_are_left_out():
    human, synthetic = np.full(20, 100), np.repeat([10, 60, 200], [5, 6, 9])
    assert comparison.usable_lengths(human, synthetic, (200, 50, 10, 61, 50, 101)) == [10, 50]
    assert comparison.fixed_length(synthetic, 60).tolist() == [0] * 5 + [60] * 15


# ---- comparisons -------------------------------------------------------------------------------

def made_up_texts(seed, n, length, shift):
    """Return Texts whose log probabilities are higher by a shift."""
    random = np.random.RandomState(seed)
    texts = []
    for _ in range(n):
        logprobs = (random.normal(-4 + shift, size=length)).astype(np.float32)
        ranks = np.maximum(1, np.exp(-logprobs)).astype(np.int32)
        texts.append(Text(random.randint(97, 110, length).tolist(), Scores(
            logprobs, ranks, ranks, np.full(length, 4, np.float32), (), (),
            np.ones(length, np.float32))))
    return texts


@pure
def test_thresholds_come_from_one_half_and_accuracies_from_the_other():
    sides = made_up_texts(0, 40, 20, 0), made_up_texts(1, 30, 20, 0.2)
    cuts = [np.full(40, 20), np.full(30, 20)]
    detectors = comparison.compare(sides, cuts, seed=3)
    assert [detector.figures['statistic'] for detector in detectors] == NAMES
    for detector in detectors[:3]:
        sign, figures = detector.statistic.sign, detector.figures
        halves = [comparison.validation_half(n, 3) for n in (40, 30)]
        assert [half.sum() for half in halves] == [20, 15]
        values = [sign * side for side in (detector.human, detector.synthetic)]
        threshold = sign * figures['threshold']
        assert threshold == roc.best_threshold(*(
            side[half] for side, half in zip(values, halves)))
        assert figures['accuracy'] == roc.accuracy(*(
            side[~half] for side, half in zip(values, halves)), threshold)
        assert figures['auroc'] == roc.auroc(*values).value > 0.5
    other = comparison.compare(sides, cuts, seed=4)
    assert [d.figures['accuracy'] for d in other] != [d.figures['accuracy'] for d in detectors]
    assert [d.figures['auroc'] for d in other] == [d.figures['auroc'] for d in detectors]


@pure
def test_the_baseline_learns_words():
    pytest.importorskip('sklearn')
    sides = [['to be or not', 'not to be'] * 10, ['or be it so', 'so be it'] * 10]
    detector = comparison.measure_tfidf(sides, [comparison.validation_half(20, 0)] * 2)
    assert (detector.figures['auroc'], detector.figures['accuracy']) == (1, 1)
    assert detector.figures['human_texts'] == 10  # the half that nothing was learned from
    with pytest.raises(UserError, match='no words'):
        tfidf.classify(['\n'], [' '], ['\n'], [' '])


# ---- references --------------------------------------------------------------------------------

def made_up_reference(path):
    """Write a reference of made-up texts, some of them short; return its arrays."""
    sides = [made_up_texts(0, 30, 40, 0) + made_up_texts(1, 5, 12, 0),
             made_up_texts(2, 20, 60, 0.5)]
    lengths = [np.array([len(text.tokens) for text in side]) for side in sides]
    references.write_reference(str(path), {'model': 'some', 'weights': 'w' * 16}, sides, lengths,
                               [10, 40])
    return references.read_reference(str(path), 'w' * 16)


@pure
def test_a_reference_comes_back_as_it_was(tmp_path):
    arrays = made_up_reference(tmp_path / 'r.npz')
    assert arrays['model'] == 'some' and arrays['lengths'].tolist() == [10, 40]
    assert arrays['human'].shape == (2, 35, 8) and arrays['synthetic'].shape == (2, 20, 8)
    assert np.isnan(arrays['human'][1, 30:]).all() and np.isfinite(arrays['human'][0]).all()
    expected = made_up_texts(0, 30, 40, 0)[7].scores.logprobs
    assert arrays['human'][0, 7, 0] == expected[:10].mean(dtype=np.float64)
    assert arrays['human'][1, 7, 0] == expected.mean(dtype=np.float64)


@pure
def test_a_text_is_placed_among_those_of_its_length(tmp_path):
    arrays = made_up_reference(tmp_path / 'r.npz')
    for n_tokens, k in [(9, None), (10, 0), (39, 0), (40, 1), (1000, 1)]:
        text = made_up_texts(5, 1, n_tokens, 0.1)[0]
        found = references.comparisons(arrays, text)
        if k is None:
            assert found == {'n_compared': None, 'statistics': {}}
            continue
        assert found['n_compared'] == [10, 40][k] and list(found['statistics']) == NAMES
        value = text.scores.logprobs[:found['n_compared']].mean(dtype=np.float64)
        figures = found['statistics']['log_likelihood']
        assert figures['value'] == value
        human = arrays['human'][k, :[35, 30][k], 0]
        assert (figures['human_beyond'], figures['human_texts']) == (
            (human >= value).sum(), len(human))
        assert figures['false_positive_rate'] == (human >= value).mean()
        assert figures['true_positive_rate'] == (arrays['synthetic'][k, :, 0] >= value).mean()
        ranks = found['statistics']['rank']  # small ones are the suspicious ones
        assert ranks['human_beyond'] == (arrays['human'][k, :, 1] <= ranks['value']).sum()


class Evil:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return (exec, ('import sys; sys.modules["evil"] = 1',))


def rewrite(path, **changed):
    """Write a reference again with other arrays; None leaves one out."""
    arrays = dict(np.load(str(path)), **changed)
    np.savez(str(path), **{name: array for name, array in arrays.items() if array is not None})


def with_nan(values):
    """Return statistics of which one is missing."""
    values = values.copy()
    values[0, 0, 3] = np.nan
    return values


@pure
@pytest.mark.parametrize('change', [
    lambda a: {'human': None}, lambda a: {'human': np.array([Evil()], object)},
    lambda a: {'human': a['human'].astype(np.float32)}, lambda a: {'human': a['human'][:1]},
    lambda a: {'human': a['human'][:, :9]}, lambda a: {'human': a['human'][..., :7]},
    lambda a: {'human': -a['human']}, lambda a: {'synthetic': a['synthetic'] + np.inf},
    lambda a: {'synthetic': a['synthetic'] * [np.inf, 1, 1, 1, 1, 1, 1, 1]},
    lambda a: {'synthetic': with_nan(a['synthetic'])}, lambda a: {'synthetic': np.float64(3)},
    lambda a: {'lengths': a['lengths'][::-1]}, lambda a: {'lengths': a['lengths'] * 0},
    lambda a: {'lengths': np.array([], int)}, lambda a: {'lengths': np.array(['a', 'b'])},
    lambda a: {'statistics': a['statistics'][::-1]}, lambda a: {'model': np.array(3)},
    lambda a: {'model': np.array(['some'])}, lambda a: {'weights': np.array(b'w')}])
def test_a_reference_that_is_not_ours_is_refused(tmp_path, change):
    path = tmp_path / 'r.npz'
    rewrite(path, **change(made_up_reference(path)))
    with pytest.raises(UserError, match='r.npz is no reference, or is damaged'):
        references.read_reference(str(path), 'w' * 16)
    assert 'evil' not in sys.modules


@pure
def test_a_reference_of_other_weights_is_refused(tmp_path):
    made_up_reference(tmp_path / 'r.npz')
    with pytest.raises(UserError, match='other weights, of the model some'):
        references.read_reference(str(tmp_path / 'r.npz'), 'v' * 16)


def zipped(compression=zipfile.ZIP_STORED, **members):
    """Return a ZIP archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name in references.FIELDS:
            archive.writestr(f'{name}.npy', members.get(name, b''))
    return file.getvalue()


def header(text, version=b'\1\0'):
    """Return the beginning of an .npy file."""
    return b'\x93NUMPY' + version + len(text).to_bytes(2, 'little') + text.encode('ascii')


@pure
@pytest.mark.parametrize('data', [
    b'', b'text', b'PK\3\4', zipped(), zipped(zipfile.ZIP_DEFLATED, model=bytes(10**6)),
    zipped(model=header("{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000000,), }\n")),
    zipped(model=header('(' * 60000)), zipped(model=header('-' * 60000 + '1')),
    zipped(model=header('(' * 900)), zipped(model=header('{}')),
    zipped(model=header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n") + b'cos\n.'),
    zipped(model=header('{}', b'\2\0'))], ids=lambda data: f'{len(data)}')
def test_a_hostile_reference_is_refused(tmp_path, data):
    path = tmp_path / 'r.npz'
    path.write_bytes(data)
    with pytest.raises(UserError, match='r.npz is no reference, or is damaged'):
        references.read_reference(str(path), 'w' * 16)


@pure
def test_a_damaged_reference_is_refused_or_read(tmp_path):
    """A damaged array never passes: the archive has a checksum of each."""
    path = tmp_path / 'r.npz'
    arrays, data = made_up_reference(path), path.read_bytes()
    draw = random.Random(0)
    for _ in range(2000 if LONG else 300):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 1, 5])):
            place = draw.choice([draw.randrange(len(data)), draw.randrange(1000),
                                 len(data) - 1 - draw.randrange(700)])
            changed[place] = draw.randrange(256)
        path.write_bytes(changed[:draw.choice([None, None, None, draw.randrange(len(data))])])
        try:
            found = references.read_reference(str(path), 'w' * 16)
        except UserError as error:
            assert 'damaged' in str(error) or 'other weights' in str(error)
        else:
            assert {name: array.tobytes() for name, array in found.items()} == {
                name: array.tobytes() for name, array in arrays.items()}


# ---- the command -------------------------------------------------------------------------------

N_TEXTS = 24


@pytest.fixture(scope='module')
def tiny_scorer(tiny):
    """A Scorer of the tiny model as the command opens it."""
    scorer = Scorer(open_model_dir(tiny.name, str(tiny.models_dir)), top=0)
    yield scorer
    scorer.close()


@pytest.fixture
def sides(sample, tiny, tiny_scorer, tmp_path, monkeypatch):
    """A folder with human.txt and synthetic.jsonl, which the tiny model made; return its flags."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scorer, 'Scorer', lambda *args, **options: tiny_scorer)
    monkeypatch.setattr(tiny_scorer, 'close', lambda: None)  # its graph is built once
    draw = random.Random(0)
    human = [''.join(chr(draw.randrange(97, 123)) for _ in range(draw.randint(15, 25)))
             for _ in range(N_TEXTS)]
    (tmp_path / 'human.txt').write_text('<|endoftext|>'.join(human))
    sample(unconditional.sample_model, '--nsamples', N_TEXTS, '--output', 'synthetic.jsonl',
           '--length', 20, '--stop=False')
    return ['detect', '--human', 'human.txt', '--synthetic', 'synthetic.jsonl', '--lengths', '5,9',
            *tiny.flags, '--batch_size', 4]


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def test_the_command_measures_the_files_it_is_given(call, sides, tiny, tmp_path):
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *sides)
    assert (status, stderr) == (0, '')
    result = json.loads(stdout, parse_constant=pytest.fail)
    assert result['weights'] == weights_digest(str(tiny.path)) and result['equal_lengths']
    assert [row['statistic'] for row in result['figures']] == NAMES
    tokens = result['tokens']
    assert tokens['human'] == tokens['synthetic'] and 15 <= tokens['human']['mean'] <= 25
    # The figures at a length, from what the task score says about each token.
    scores = {}
    for name in ('human.txt', 'synthetic.jsonl'):
        call(evaluate.evaluate, OPTIONS, 'score', name, *tiny.flags, '--output', 'scores')
        scores[name] = [np.array(line['logprobs']) for line in read_lines(tmp_path / 'scores')]
    for row, length in zip(result['by_length'], (5, 9)):
        assert row['length'] == length
        human, synthetic = ([logprobs[:length].mean() for logprobs in side
                             if len(logprobs) >= length] for side in scores.values())
        figures = row['figures'][0]
        assert figures['human_texts'] == len(human) and figures['synthetic_texts'] == len(synthetic)
        area, low, high = pairs_auroc(human, synthetic)
        assert figures['auroc'] == pytest.approx(area, abs=1e-3)
        assert figures['auroc_interval'] == pytest.approx([low, high], abs=1e-3)
    # Again the same, whatever shares a batch; and the JSON goes to a file.
    assert call(evaluate.evaluate, OPTIONS, *sides, '--output', 'results.json') == (0, '', '')
    assert json.loads((tmp_path / 'results.json').read_text()) == result
    # Other lengths, with one side longer.
    _, stdout, _ = call(evaluate.evaluate, OPTIONS, *sides, '--noequal_lengths', '--limit', 12)
    assert result['left_out'] == {'human': 0, 'synthetic': 0}
    tokens = json.loads(stdout)['tokens']
    assert tokens['human'] != tokens['synthetic']
    # More texts of one side, and an empty one.
    with (tmp_path / 'synthetic.jsonl').open('a') as file:
        file.write('{"text": ""}\n{"text": "more"}\n')
    found = json.loads(call(evaluate.evaluate, OPTIONS, *sides)[1])
    assert found['left_out'] == {'human': 0, 'synthetic': 2}
    assert found['tokens'] == result['tokens']


def test_a_terminal_shows_a_table_of_figures(call, sides):
    _, stdout, _ = call(evaluate.evaluate, OPTIONS, *sides)
    result = json.loads(stdout)
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *sides, terminal=True)
    assert (status, stderr) == (0, '')
    description, table = stdout.split('\n\n')[:2]
    assert description.replace('\n', ' ').startswith(
        '24 human and 24 synthetic texts, read by tiny. Both sides are cut to equal lengths: ')
    head, *rows = table.splitlines()
    assert head.split('  ')[-1].strip() == '9 tokens' and len(rows) == len(NAMES)
    for row, figures, last in zip(rows, result['figures'], result['by_length'][-1]['figures']):
        assert row.startswith(report.HEADINGS[figures['statistic']])
        assert f' {figures["auroc"]:.3f} ' in row and row.endswith(f' {last["auroc"]:.3f}')
        assert f' {100 * figures["accuracy"]:.1f} %' in row


def test_a_text_is_compared_with_the_reference_of_an_earlier_run(call, sides, tiny, tmp_path):
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *sides, '--output', 'reference.npz')
    assert (status, stderr) == (0, '') and json.loads(stdout)['figures']
    flags = ['detect', '--reference', 'reference.npz', *tiny.flags]
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *flags, 'human.txt')
    assert (status, stderr) == (0, '')
    results = [json.loads(line, parse_constant=pytest.fail) for line in stdout.splitlines()]
    assert len(results) == N_TEXTS
    ranks = sorted(result['statistics']['log_likelihood']['human_beyond'] for result in results)
    # Each is itself in the reference, as it was read in another batch.
    assert np.abs(np.array(ranks) - range(1, N_TEXTS + 1)).max() <= 1
    assert all(result['n_compared'] == 9 and 'no verdict' in result['caution']
               for result in results)
    # On a terminal; a text may be too short.
    (tmp_path / 'new.jsonl').write_text('{"text": "abcdefg"}\n{"text": "abc"}\n{"text": ""}\n')
    call(evaluate.evaluate, OPTIONS, *flags, 'new.jsonl', '--output', 'new.json')
    figures = read_lines(tmp_path / 'new.json')[0]['statistics']['fast_detectgpt']
    status, stdout, _ = call(evaluate.evaluate, OPTIONS, *flags, 'new.jsonl', terminal=True)
    assert status == 0 and 'Its first 5 tokens' in stdout
    row = next(line for line in stdout.splitlines() if 'Fast-DetectGPT' in line)
    assert f'{figures["value"]:.4g} ' in row
    assert f' {figures["human_beyond"]} of 24, {100 * figures["false_positive_rate"]:.1f} %' in row
    assert 'too short to compare: 3 tokens' in stdout and 'compare: 0 tokens' in stdout
    assert ' '.join(stdout.split()).endswith(report.CAUTION)


def test_the_baseline_is_one_row_more(call, sides):
    pytest.importorskip('sklearn')
    status, stdout, stderr = call(evaluate.evaluate, OPTIONS, *sides, '--baseline')
    assert (status, stderr) == (0, '')
    result = json.loads(stdout)
    for figures in (result['figures'], *(row['figures'] for row in result['by_length'])):
        assert figures[-1]['statistic'] == 'tfidf'
        assert figures[-1]['human_texts'] == N_TEXTS // 2


# ---- what is refused ---------------------------------------------------------------------------

@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder with many.txt, few.txt, empty.jsonl and a damaged reference.npz."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'many.txt').write_text('<|endoftext|>'.join(['some text'] * 10))
    (tmp_path / 'few.txt').write_text('<|endoftext|>'.join(['some text'] * 9))
    (tmp_path / 'empty.jsonl').write_text('{"text": ""}\n' * 10)
    (tmp_path / 'reference.npz').write_bytes(b'PK')


BOTH = ['--human', 'many.txt', '--synthetic', 'many.txt']


@pure
@pytest.mark.parametrize('arguments, status, words', [
    ([], 2, ['--human', 'FILE', '--reference']), (['--human', 'many.txt'], 2, ['--synthetic']),
    (['many.txt'], 2, ['--reference']), (['many.txt', *BOTH], 2, ['name two of these']),
    ([*BOTH, '--reference', 'reference.npz'], 2, ['name two of these']),
    (['many.txt', '--reference', 'reference.npz', '--html', 'x'], 2, ['--html']),
    ([*BOTH, '--lengths', '5,x'], 2, ['--lengths']), ([*BOTH, '--lengths', '0'], 2, ['--lengths']),
    ([*BOTH, '--seed', '-1'], 2, ['--seed']), ([*BOTH, '--output', 'many.txt'], 1, ['many.txt']),
    (['many.txt', '--reference', 'reference.npz'], 1, ['reference.npz', 'damaged', '--output']),
    (['many.txt', '--reference', 'nowhere.npz'], 1, ['nowhere.npz']),
    (['--human', 'few.txt', '--synthetic', 'many.txt'], 1, ['--human', '9', '10']),
    (['--human', 'many.txt', '--synthetic', 'empty.jsonl'], 1, ['--synthetic', '0', '10']),
    (['--human', 'nowhere', '--synthetic', 'many.txt'], 1, ['nowhere']),
    ([*BOTH, '--output', 'new.npz'], 1, ['reference', '50 tokens', '--lengths'])])
def test_what_cannot_be_done_is_refused(refuse, unloaded, texts, arguments, status, words):
    found, line = refuse(evaluate.evaluate, OPTIONS, 'detect', *arguments, *unloaded)
    assert found == status and all(word in line for word in words), line


@pure
def test_the_baseline_needs_scikit_learn(refuse, unloaded, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    status, line = refuse(evaluate.evaluate, OPTIONS, 'detect', *BOTH, '--baseline', *unloaded)
    assert status == 1 and 'pip install scikit-learn' in line


@pure
@pytest.mark.parametrize('name, value', [
    ('human', 'x'), ('synthetic', 'x'), ('reference', 'x'), ('equal_lengths', False),
    ('lengths', (5,)), ('baseline', True), ('seed', 1)])
def test_options_of_detection_are_for_it_alone(name, value):
    with pytest.raises(OptionError, match=f'{name} is only for the task detect'):
        EvaluationOptions(task='score', file='x', **{name: value})
    with pytest.raises(UsageError):
        EvaluationOptions(task='detect', file='x')
    sides = {'human': ('x', 'y'), 'synthetic': 'z'}
    assert EvaluationOptions(task='detect', **sides).equal_lengths
