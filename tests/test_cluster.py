"""Work of several processes: who does which part, what they say, and what if one dies."""
import itertools
import json
import math
import random
import re
import signal
import socket
import time
import types

import numpy as np
import pytest

import evaluate
import reference
from gpt2.cluster import chief, link, samples, scores, server, worker
from gpt2.cluster.leases import WINDOW, Leases
from gpt2.errors import UserError
from gpt2.evaluation.loglikelihood import Batch, Scorer
from gpt2.model_dir import ModelOptions, open_model_dir
from gpt2.sampling import batching, run
from gpt2.sampling.options import EngineOptions, GenerationOptions, SamplingOptions
from helpers import Command, finish, only_long

pure = pytest.mark.pure

SCRIPT = 'generate_unconditional_samples.py'
END = 256  # <|endoftext|> of the tiny model


# ---- leases ------------------------------------------------------------------------------------


def wanted_samples(n):
    return (batching.Sequence(i, [END]) for i in range(n))


def made(index, tokens=(1, END)):
    sequence = batching.Sequence(index, [END])
    sequence.tokens, sequence.done = list(tokens), True
    return sequence


def indices(leases):
    return [[item.index for item in lease] for lease in leases]


def wanted(leases):
    return [sequence.index for sequence in leases.ready() if not sequence.done]


@pure
def test_leases_are_offered_in_order_as_far_as_there_is_room():
    leases = Leases(wanted_samples(7), 3, patience=10)
    assert indices(leases.offers(2, 0, now=0)) == [[0, 1, 2], [3, 4, 5]]
    assert leases.offers(0, 2, now=1) == []
    assert indices(leases.offers(5, 1, now=2)) == [[6]]
    assert leases.offers(5, 1, now=3) == [] and not leases.complete


@pure
def test_what_a_silent_worker_has_taken_is_offered_again():
    leases = Leases(wanted_samples(4), 2, patience=10)
    leases.offers(2, 0, now=0)
    assert leases.offers(2, 2, now=100) == []  # nobody has taken them
    assert leases.offers(2, 1, now=101) == []  # now somebody took the first
    assert indices(leases.offers(1, 1, now=112)) == [[0, 1]]
    assert leases.offers(1, 2, now=113) == []
    leases.hear([2, 3], now=120)
    leases.hear([2], now=125)
    assert indices(leases.offers(1, 2, now=131)) == [[3]]


@pure
def test_what_is_given_back_is_offered_at_once_and_what_is_finished_never():
    leases = Leases(wanted_samples(3), 3, patience=10)
    leases.offers(1, 0, now=0)
    leases.finish(made(1))
    leases.give_back([0, 1, 2, 77])
    assert indices(leases.offers(1, 0, now=1)) == [[0, 2]]
    assert leases.wanted(1) is None and leases.wanted(77) is None
    assert leases.wanted(2).prompt == [END]


@pure
def test_samples_come_out_in_order_each_once():
    leases = Leases(wanted_samples(4), 4, patience=10)
    leases.offers(1, 0, now=0)
    leases.finish(made(1))
    assert [s.index for s in leases.ready()] == [0, 1, 2, 3] and wanted(leases) == [0, 2, 3]
    leases.finish(made(0))
    assert [s.index for s in leases.ready() if s.done] == [0, 1]
    for index in (2, 3):
        leases.finish(made(index))
    leases.offers(1, 0, now=1)
    assert not leases.complete
    assert [s.index for s in leases.ready()] == [2, 3] and leases.complete


@pure
def test_few_samples_are_in_memory():
    leases = Leases(wanted_samples(10**9), 100, patience=10)
    assert sum(map(len, leases.offers(10**6, 0, now=0))) == WINDOW
    leases.finish(made(1))
    assert leases.offers(10, 0, now=1) == []
    leases.finish(made(0))
    leases.ready()
    assert indices(leases.offers(10, 0, now=1)) == [[WINDOW, WINDOW + 1]]


@pure
def test_workers_that_come_and_go_at_random_lose_nothing():
    """Simulated: workers take leases, finish samples, fall silent, and come back with old news."""
    random_ = random.Random(0)
    for size in (1, 4):
        leases, queue, held, order, now = Leases(wanted_samples(300), size, 10), [], {}, [], 0
        while not leases.complete:
            now += 1
            queue += leases.offers(8 - len(queue), len(queue), now)
            name = random_.randrange(5)
            mine = held.setdefault(name, [])
            if queue and random_.random() < 0.7:
                mine += [item.index for item in queue.pop(0)]
            if mine and random_.random() < 0.8:
                leases.hear(mine, now)
                index = mine.pop(random_.randrange(len(mine)))
                if leases.wanted(index):
                    leases.finish(made(index))
            if random_.random() < 0.1:
                held[name] = []  # it was killed
            order += [s.index for s in itertools.takewhile(lambda s: s.done, leases.ready())]
        assert order == list(range(300))


# ---- what a chief hears ------------------------------------------------------------------------


class Queues:
    """Stands in for a Link: a chief hears these reports."""

    def __init__(self, reports):
        self.reports, self.offered = reports, []

    def describe(self, subject):
        """Nobody asks."""

    def room(self):
        return link.N_LEASES

    def offer(self, lease):
        self.offered.append(lease)

    def hear(self, seconds):
        return [self.reports.pop(0)]


@pytest.fixture
def share(monkeypatch):
    """A function that lets a Chief share items of a Work, and hear reports: return its last list.

    The digest of what its work is about is abc.
    """
    monkeypatch.setattr(link, 'digest', lambda subject: 'abc')

    def share(work, items, reports, local=None):
        shared = chief.Chief(Queues([*reports]), work)
        shared.local = local
        *_, last = shared.share(items)
        return last

    return share


@pytest.fixture
def model_dir(unloaded):
    return open_model_dir(unloaded[1], unloaded[3])


@pytest.fixture
def texts_from(share, model_dir):
    """A function that makes two samples of some reports: return the last list of Sequences."""
    def run(*reports, local=None, **options):
        generation = GenerationOptions(**{'length': 3, **options})
        run = types.SimpleNamespace(model_dir=model_dir, generation=generation,
                                    choose_engine=lambda: 'graph')
        return share(samples.Work(run, {'batch_size': 4}), wanted_samples(2), reports, local)

    return run


def report(*finished, digest='abc', **values):
    return json.dumps({**worker.report(digest, finished=finished), **values}).encode('utf-8')


@pure
def test_a_chief_makes_the_texts_from_tokens(texts_from, capsys):
    found = texts_from(report([1, [66, 67, 68], None]), report([0, [69, END], None]))
    assert [(s.index, s.text, s.ended) for s in found] == [(0, 'f', True), (1, 'cde', False)]
    assert capsys.readouterr().err.count('joined') == 1


GOOD = [0, [66, 67, 68], None]
SCORES = [[[-1., -2.]] * 3, [[1]] * 3, [[-1.]] * 3]
NONSENSE = [
    b'', b'\xff', b'{', b'[]', b'7', b'null', b'[' * 100000, b'{"digest": "abc"}',
    *(report(GOOD, **{name: value}) for name, value in [
        ('worker', None), ('worker', 'x' * 1000), ('note', 7), ('held', 'x'), ('held', [1.5]),
        ('held', [True]), ('returned', {}), ('returned', [None]), ('finished', 3),
        ('finished', [[]]), ('finished', [[1, 2, 3, 4]])]),
    *(report([0, tokens, None]) for tokens in [
        [], [66], [66] * 4, [66, END, 66], [66, 67, 257], [66, 67, -1], [66, 67, 6.0],
        [66, 67, '68'], [66, 67, None], 'abc', None, [10**400] * 3]),
    report([0, [66, 67, 68], SCORES]),  # nobody has asked for scores
    *(report([index, [66, 67, 68], None]) for index in [[], {}])]


WRONG_SCORES = [
    None, 7, 'abc', [[]], SCORES[:2], [SCORES[0][:2], *SCORES[1:]],
    [[[-1., float('nan')]] * 3, *SCORES[1:]], [[[-1.]] * 3, *SCORES[1:]],
    [[['x', 'y']] * 3, *SCORES[1:]], [SCORES[0], [[300]] * 3, SCORES[2]],
    [SCORES[0], [[1, 2]] * 3, SCORES[2]], [SCORES[0], SCORES[1], [['<script>']] * 3]]


@pure
@pytest.mark.parametrize('number', range(len(NONSENSE)))
def test_a_report_that_makes_no_sense_is_left_out(texts_from, capsys, number):
    found = texts_from(NONSENSE[number], report(GOOD), report([1, [69, 70, 71], None]))
    assert [s.text for s in found if s.index == 1] == ['fgh']
    assert 'makes no sense' in capsys.readouterr().err


@pure
@pytest.mark.parametrize('number', range(len(WRONG_SCORES)))
def test_scores_that_cannot_be_are_left_out(texts_from, capsys, number):
    wrong = report([0, [66, 67, 68], WRONG_SCORES[number]])
    found = texts_from(wrong, *(report([index, [66, 67, 68], SCORES]) for index in (0, 1)),
                       logprobs=1)
    assert [s.logprobs for s in found if s.index == 1] == [SCORES[0]]
    assert 'makes no sense' in capsys.readouterr().err


@pure
def test_random_damage_to_reports(texts_from, capsys):
    """A chief goes on, and takes in only what a worker may have made."""
    random_ = random.Random(1)
    good = report([0, [66, 67, 68], SCORES], [1, [69, END], [part[:2] for part in SCORES]])
    reports = []
    for _ in range(1000):
        damaged = bytearray(good)
        for _ in range(random_.randrange(1, 4)):
            damaged[random_.randrange(len(damaged))] = random_.randrange(256)
        reports.append(bytes(damaged[:random_.choice([len(good), random_.randrange(len(good))])]))
    for sequence in texts_from(*reports, good, logprobs=1):
        assert sequence.done and len(sequence.logprobs) == len(sequence.tokens)
        assert all(0 <= token < 257 for token in sequence.tokens)
    assert 'makes no sense' in capsys.readouterr().err


@pure
def test_reports_of_another_run_and_samples_that_nobody_wants_are_not_taken(texts_from):
    found = texts_from(report([0, [70, 70, 70], None], digest='other'), report(GOOD),
                       report([5, [66, 67, 68], None]), report([0, [71] * 3, None]),
                       report([1, [66, 67, 68], None]))
    assert found[-1].text == 'cde'


@pure
def test_a_note_of_a_worker_is_printed_without_what_a_terminal_acts_on(texts_from, capsys):
    texts_from(report(GOOD, note='cannot work: \x1b[2J\n'), report([1, [66, 67, 68], None]))
    assert 'cannot work: \\x1b[2J\\n\n' in capsys.readouterr().err


@pure
def test_a_chief_whose_only_worker_has_ended_does_not_wait_for_ever(texts_from):
    local = types.SimpleNamespace(is_alive=lambda: False)
    with pytest.raises(UserError, match='has ended, and there is no other'):
        texts_from(report(GOOD), local=local)


@pure
def test_nobody_falls_silent_while_a_chief_does_something_else(
        share, model_dir, capsys, monkeypatch):
    monkeypatch.setattr(chief, 'time', types.SimpleNamespace(monotonic=lambda: now))
    queues, now = Queues([scored(0), scored(1)]), 1000
    shared = chief.Chief(queues, scores.Work(model_dir, None, None))
    for index in range(2):
        (batch,), = shared.share(iter([batch_of(index)]))
        assert batch.done and batch.index == index
        now += 1000
    assert capsys.readouterr().err.count('\n') == 1  # that it joined


@pure
def test_a_chief_that_was_asleep_goes_on(model_dir, monkeypatch):
    """Its own calls are not answered in time, each for once."""
    late, queues = ['room', 'offer', 'hear'], Queues([scored(0), scored(1)])

    def late_once(name):
        call = getattr(queues, name)

        def first_late(*args, **options):
            if name in late:
                late.remove(name)
                raise server.LateError
            return call(*args, **options)

        setattr(queues, name, first_late)

    for name in late:
        late_once(name)
    monkeypatch.setattr(link, 'digest', lambda subject: 'abc')
    shared = chief.Chief(queues, scores.Work(model_dir, None, None))
    *_, last = shared.share(map(batch_of, range(2)))
    assert (last[-1].done, last[-1].index, late) == (True, 1, [])


# ---- scores ------------------------------------------------------------------------------------


def batch_of(index):
    """Return a Batch of two windows, and of three tokens to score."""
    return Batch(index, np.array([[1, 2, 3], [4, 5, 0]], np.int32), [1, 2, 4],
                 np.array([3, 9, END], np.int32))


def result_of(top=None, seed=0):
    """Return scores that a worker may report for such a Batch, as arrays."""
    random_ = np.random.RandomState(seed)
    floats = [(random_.standard_normal([3, *shape]) * 10.**random_.randint(-44, 38)).astype(
        np.float32) for shape in [[], [], [], [top or 0]]]
    ranks = [np.array(values, np.int32) for values in [[1, 257, 3], [1, 200, 2]]]
    tops = random_.randint(0, 257, [3, top or 0]).astype(np.int32)
    return [floats[0], *ranks, *([] if top is None else [floats[1], tops, floats[3], floats[2]])]


def scored(index, values=None):
    """Return the report of such scores."""
    values = result_of() if values is None else values
    return report([index, *(value.tolist() for value in values)])


@pytest.fixture
def scores_from(share, model_dir):
    """A function that scores two Batches by some reports: return the last list of Batches."""
    def run(*reports, top=None):
        work = scores.Work(model_dir, None, top)
        return share(work, map(batch_of, range(2)), reports)

    return run


@pure
@pytest.mark.parametrize('top', [None, 0, 2])
def test_scores_arrive_bit_for_bit(scores_from, top):
    """Also those that are tiny or huge."""
    for seed in range(40):
        values = [result_of(top, seed), result_of(top, seed + 1000)]
        found = scores_from(scored(1, values[1]), scored(0, values[0]), top=top)
        for batch, sent in zip(found, values):
            assert [value.tobytes() for value in batch.scores] == [v.tobytes() for v in sent]
            assert [value.dtype for value in batch.scores] == [v.dtype for v in sent]


def spoil(n, change, top=2):
    """Return a report of which one part is something else."""
    values = [value.tolist() for value in result_of(top)]
    values[n] = change(values[n]) if callable(change) else change
    return report([0, *values])


FLOATS, INTS = [-1., -2.5, -3.], [1, 2, 3]
WRONG_RESULTS = [
    report([0]), report([0, FLOATS]), report([0, FLOATS, INTS, INTS]), report([0, *[FLOATS] * 7]),
    report([0, FLOATS, INTS, INTS, FLOATS, [[1, 2]] * 3, [FLOATS[:2]] * 3]),
    *(spoil(n, change) for n in (0, 3, 5, 6) for change in [
        None, 7, 'abc', {}, [], FLOATS, INTS, FLOATS[:2], [[x] for x in FLOATS],
        [[x] * 3 for x in FLOATS], lambda values: [math.nan, *values[1:]],
        lambda values: [math.inf, *values[1:]], [1e39] * 3, [[1e39] * 2] * 3, [10**400, 1., 2.],
        ['x'] * 3, [True] * 3, [None] * 3, [FLOATS, 1., [2.]]]
      if (n, change) not in [(0, FLOATS), (3, FLOATS), (6, FLOATS)]),
    *(spoil(n, change) for n in (1, 2, 4) for change in [
        None, 7, 'abc', {}, [], FLOATS, [1, 2, 258], [[1, 257]] * 3, [0, 1, 2], [[0, -1]] * 3,
        [1, 2], [[1, 2]] * 2, [2**40] * 3, [[2**40] * 2] * 3, [2**64] * 3, [10**400] * 3,
        [True] * 3, [1, 2, None], [1.0, 2.0, 3.0], [1, [2], 3]])]


@pure
def test_scores_of_texts_that_cannot_be_are_left_out(scores_from, capsys):
    good = [scored(index, result_of(2)) for index in range(2)]
    for number, wrong in enumerate(WRONG_RESULTS):
        found = scores_from(wrong, *good, top=2)
        assert [batch.index for batch in found if batch.done] == [0, 1][-len(found):], number
        assert capsys.readouterr().err.count('makes no sense') == 1, (number, wrong)


@pure
def test_random_damage_to_reports_of_scores(scores_from, capsys):
    random_, good, reports = random.Random(2), scored(0, result_of(2)), []
    for _ in range(1000):
        damaged = bytearray(good)
        for _ in range(random_.randrange(1, 4)):
            damaged[random_.randrange(len(damaged))] = random_.choice(b'0123456789-e[],. "{x\xff')
        reports.append(bytes(damaged))
    found = scores_from(*reports, scored(1, result_of(2)), good, top=2)
    for batch in found:
        for value, like in zip(batch.scores, result_of(2)):
            assert (value.dtype, value.shape) == (like.dtype, like.shape)
            assert np.isfinite(value).all()
    assert 'makes no sense' in capsys.readouterr().err


@pytest.fixture(scope='module')
def maker(tiny):
    """What scores Batches for a chief that wants two of the likeliest tokens."""
    model_dir = open_model_dir('tiny', str(tiny.models_dir))
    allowed = np.arange(257) % 3 > 0
    return scores.Maker(scores.Work(model_dir, allowed, 2).subject, str(tiny.models_dir))


def test_texts_are_scored_by_others_as_in_one_process(tiny, share, maker, monkeypatch):
    """To the bit: also with a batch of several windows, and one that is not full."""
    model_dir = open_model_dir('tiny', str(tiny.models_dir))
    allowed, random_ = np.arange(257) % 3 > 0, np.random.RandomState(3)
    work, n_batches = scores.Work(model_dir, allowed, 2), []

    def score_batches(batches):
        for batch in batches:
            n_batches.append(1)
            lease = json.loads(json.dumps(work.encode(batch)))
            (done,), = maker.make([maker.decode(*lease)])
            index, *result = json.loads(json.dumps(maker.encode(done)))
            assert index == batch.index
            yield work.decode(batch, *result)

    texts = [random_.randint(0, 257, n).tolist() for n in (70, 1, 0, 33, 5)]
    for batch_size, stride in [(1, 32), (3, 7)]:
        one, many = [Scorer(model_dir, allowed, 2, score_batches=score).loglikelihood_rolling(
            texts, batch_size, stride) for score in (None, score_batches)]
        assert [[part.tobytes() for part in text] for text in one] == [
            [part.tobytes() for part in text] for text in many]
    assert len(n_batches) > 5


@pytest.mark.parametrize('change, words', [
    ({'kind': 'dreams'}, 'work of a kind that is not known here'),
    ({'kind': []}, 'of a kind that'), ({'model': '../tiny'}, 'is not the name of a model'),
    ({'model': 7}, 'settings that no run has'), ({'weights': 'x'}, 'other weights than'),
    ({'tensorflow': '0.1'}, 'other tensorflow than'), ({'hparams': {}}, 'other hparams than'),
    ({'top': -1}, 'no run has'), ({'top': True}, 'no run has'), ({'top': 258}, 'no run has'),
    ({'forbidden': 7}, 'no run has'), ({'forbidden': [257]}, 'no run has'),
    ({'forbidden': [-1]}, 'no run has'), ({'forbidden': ['x']}, 'no run has')], ids=str)
def test_scores_for_another_chief_are_refused(tiny, change, words):
    subject = scores.Work(open_model_dir('tiny', str(tiny.models_dir)), None, 2).subject
    with pytest.raises(UserError) as error:
        worker.open_maker(link.encode({**subject, **change}), str(tiny.models_dir))
    assert words in str(error.value)


@pure
@pytest.mark.parametrize('subject', [b'', b'7', b'\xff', b'{}', b'[' * 100000])
def test_what_no_chief_says_is_refused(subject):
    with pytest.raises(UserError, match='of a kind that is not known'):
        worker.open_maker(subject, 'models')


# ---- what a worker takes -----------------------------------------------------------------------


@pytest.fixture
def settings(tiny):
    """The settings of a run of the tiny model."""
    opened = run.open_run(ModelOptions(model_name='tiny', models_dir=str(tiny.models_dir)),
                          EngineOptions(engine='graph'), SamplingOptions(),
                          GenerationOptions(seed=4, length=5), conditional=False)
    return samples.Work(opened, opened.settings(batch_size=3)).subject


def test_a_worker_opens_the_run_of_its_chief(tiny, settings):
    opened = samples.open_run({**settings, 'prompts': 'abc'}, str(tiny.models_dir))
    assert (opened.generation.seed, opened.generation.length, opened.engine.engine) == (
        4, 5, 'graph')


@pytest.mark.parametrize('change, words', [
    ({'model': '../tiny'}, 'is not the name of a model'), ({'model': 'none'}, 'no model none'),
    ({'model': 7}, 'settings that no run has'), ({'weights': 'x'}, 'other weights than'),
    ({'tensorflow': '0.1'}, 'other tensorflow than'), ({'hparams': None}, 'other hparams than'),
    ({'temperature': 'hot'}, 'temperature'),
    ({'length': None}, 'other length'), ({'top_k': -1}, 'top_k'), ({'top_k': 999}, 'top_k'),
    ({'batch_size': 0}, 'batch_size'), ({'seed': 'x'}, 'no run has'),
    ({'seed': None}, 'no run has'), ({'engine': 'warp'}, 'no run has'),
    ({'keep': None}, 'other keep')], ids=str)
def test_settings_that_do_not_fit_are_refused(tiny, settings, change, words):
    with pytest.raises(UserError) as error:
        samples.open_run({**settings, **change}, str(tiny.models_dir))
    assert words in str(error.value)


def lease(*items, digest='abc'):
    return json.dumps({'digest': digest, 'items': items}).encode('utf-8')


BAD_LEASES = [b'', b'\xff', b'7', b'{"digest": "abc"}', b'[' * 100000, lease(7),
              b'{"digest": "abc", "items": 7}', lease([0]), lease([0], digest='other')[:-9]]
BAD_SAMPLES = [['0', [1]], [0, []], [0, [1] * 33], [0, [257]], [0, ['1']], [0, 'abc'], [0, [1], 2]]
BAD_BATCHES = [
    ['0', [[1]], [0], [1]], [0, [1], [0], [1]], [0, [[]], [0], [1]], [0, [[1] * 33], [0], [1]],
    [0, [[257]], [0], [1]], [0, [[1]], [1], [1]], [0, [[1]], [-1], [1]], [0, [[1]], [], []],
    [0, [[1]], [0], [257]], [0, [[1]], [0], [1, 2]], [0, [[1], [2, 3]], [0], [1]],
    [0, [['1']], [0], [1]], [0, [[1.5]], [0], [1]], [0, [[2**70]], [0], [1]], [0, [], [0], [1]],
    [0, [[10**400, 1.5]], [0], [1]], [0, [[1]], [[0]], [[1]]], [0, None, [0], [1]], [0, {}, {}, {}]]


@pytest.fixture
def take(model_dir):
    """A function that lets an idle Worker with a Maker take a lease: what it gets, what it says."""
    def take(kind, data):
        said, idle = [], worker.Worker.__new__(worker.Worker)
        idle._chief = types.SimpleNamespace(take=lambda timeout: data, report=said.append)
        idle.digest, idle._maker = 'abc', kind.Maker.__new__(kind.Maker)
        idle._maker._run = types.SimpleNamespace(model_dir=model_dir)
        idle._maker._hparams = model_dir.hparams
        return idle._take(1), said

    return take


@pure
@pytest.mark.parametrize('kind, wrong', [(samples, BAD_SAMPLES), (scores, BAD_BATCHES)])
def test_a_lease_that_makes_no_sense_is_left_out(take, capsys, kind, wrong):
    for data in [*BAD_LEASES, *map(lease, wrong)]:
        assert take(kind, data) == (None, [])
        assert capsys.readouterr().err.count('makes no sense') == 1, data


@pure
def test_a_lease_of_other_work_is_given_back_at_once(take):
    found, (said,) = take(samples, lease([7, [1]], [9, [1]], digest='other'))
    assert found is None
    assert (said['digest'], said['returned'], said['held']) == ('other', [7, 9], [])


@pure
def test_a_lease_has_what_the_chief_has_offered(take, model_dir):
    work = scores.Work(model_dir, None, None)
    (batch,), said = take(scores, lease(work.encode(batch_of(3))))
    assert (batch.index, batch.tokens.tolist(), list(batch.positions), batch.targets.tolist()) == (
        3, [[1, 2, 3], [4, 5, 0]], [1, 2, 4], [3, 9, END])
    assert not batch.done and not said


# ---- processes ---------------------------------------------------------------------------------


@pytest.fixture
def start_worker(tiny, port):
    """A function that starts a worker; all are killed in the end."""
    workers = []

    def start(models_dir=tiny.models_dir):
        workers.append(Command('worker.py', f'localhost:{port}', '--models_dir',
                               models_dir).start())
        return workers[-1]

    yield start
    for process in workers:
        process.kill()
        process.communicate()


def wait_for(process, text):
    """Read the stderr of a process up to a text."""
    seen = b''
    while text.encode('utf-8') not in seen:
        new = process.stderr.read1(1000)
        assert new, seen.decode('utf-8')
        seen += new


def test_a_worker_makes_the_file_that_one_process_makes(port, sample, monkeypatch, tmp_path):
    import generate_conditional_samples as conditional
    monkeypatch.setattr(chief, 'LINGER', 0)
    prompts = ['--prompt', 'One', '--prompt', 'Two', '--nsamples', 5, '--logprobs', 2]
    sample(conditional.continue_prompts, *prompts, '--output', tmp_path / 'one.jsonl')
    stdout, stderr = sample(conditional.continue_prompts, *prompts, '--serve', port, '--output',
                            tmp_path / 'many.jsonl')
    assert stdout == ''
    assert 'whoever reaches this port' in stderr and 'joined' in stderr
    assert (tmp_path / 'many.jsonl').read_bytes() == (tmp_path / 'one.jsonl').read_bytes()


@pytest.fixture
def measure(call, tiny, tmp_path):
    """A function that measures two tasks, in windows of a long text and in short ones.

    It returns the table without the time, the measures with all their digits, and stderr.
    """
    folder = tmp_path / 'data'
    folder.mkdir()
    (folder / 'lambada_test.jsonl').write_text(''.join(
        json.dumps({'text': f'One two {"three " * n} four'}) + '\n' for n in range(9)))
    (folder / 'ptb.test.txt').write_text(' one two N of <unk> \n' * 20)

    def measure(name, *flags):
        output = tmp_path / name
        status, stdout, stderr = call(
            evaluate.evaluate, evaluate.OPTIONS, 'all', '--data_dir', folder, *tiny.flags,
            '--stride', 3, '--batch_size', 2, '--output', output, *flags)
        assert status == 1 and 'their files are missing' in stderr.splitlines()[-1]
        measures = [result['measures'] for result in json.loads(output.read_text('utf-8'))]
        return re.sub(r' +\d+ s\n', '\n', stdout), measures, stderr

    return measure


def test_a_worker_finds_the_figures_that_one_process_finds(port, measure, monkeypatch):
    """One task after the other is shared."""
    monkeypatch.setattr(chief, 'LINGER', 0)
    table, measures, _ = measure('one.json')
    assert len(measures) == 2
    *found, stderr = measure('many.json', '--serve', port)
    assert found == [table, measures]
    assert 'whoever reaches this port' in stderr and 'joined' in stderr


@only_long
def test_a_worker_that_is_killed_takes_no_figure_with_it(port, measure, start_worker, monkeypatch):
    """It is killed when it has taken something. A page of scores is the same, too."""
    monkeypatch.setattr(chief, 'PATIENCE', 3)
    expected = measure('one.json')[:2]
    offer, workers = link.Link.offer, [start_worker() for _ in 'abc']
    n_offered = []

    def killing(self, lease):
        n_offered.append(1)
        if len(n_offered) == link.N_LEASES + 9:
            workers[0].kill()
        offer(self, lease)

    monkeypatch.setattr(link.Link, 'offer', killing)
    assert measure('many.json', '--serve', port, '--nowork')[:2] == expected
    assert len(n_offered) > link.N_LEASES + 9
    assert [finish(other)[0] for other in workers[1:]] == [0, 0]


@only_long
def test_processes_that_are_killed_lose_nothing(tiny, port, sample, start_worker, tmp_path):
    """Also one that is stopped for long, and one that leaves."""
    import generate_unconditional_samples as unconditional
    arguments = ['--nsamples', 1500, '--stop_at', 'a']
    sample(unconditional.sample_model, *arguments, '--output', tmp_path / 'one.jsonl')
    command = Command(
        'generate_unconditional_samples.py', *tiny.flags, *arguments, '--engine', 'graph', '--seed',
        4, '--length', 12, '--batch_size', 3, '--serve', port, '--nowork', '--output',
        tmp_path / 'many.jsonl')
    many, random_ = tmp_path / 'many.jsonl', random.Random(0)
    process, workers, n_killed, n_chiefs = command.start(), [start_worker() for _ in 'ab'], 0, 1
    stopped = start_worker()
    while process.poll() is None:
        size = many.stat().st_size if many.exists() else 0
        deadline = time.monotonic() + 60
        while process.poll() is None and many.exists() and many.stat().st_size == size:
            assert time.monotonic() < deadline, 'nothing is written any more'
            time.sleep(0.05)
        if n_killed < 4:
            worker_ = workers.pop(0)
            worker_.send_signal(random_.choice([signal.SIGKILL, signal.SIGINT]))
            workers.append(start_worker())
            n_killed += 1
            if n_killed == 2:
                stopped.send_signal(signal.SIGSTOP)
            if n_killed == 3:
                process.kill()
                process.communicate()
                process, n_chiefs = command.start(), n_chiefs + 1
    assert process.returncode == 0 and n_chiefs == 2
    assert many.read_bytes() == (tmp_path / 'one.jsonl').read_bytes()
    assert [finish(other)[0] for other in workers] == [0, 0]
    stopped.send_signal(signal.SIGCONT)


@only_long
def test_a_worker_with_other_weights_is_refused_on_both_sides(tiny, port, start_worker, tmp_path):
    models = tmp_path / 'models'
    reference.write_checkpoint(models / 'tiny', tiny.hparams,
                               reference.random_weights(tiny.hparams, seed=1))
    process = Command(SCRIPT, *tiny.flags, '--nsamples', 2, '--length', 5, '--serve', port,
                      '--nowork').start()
    status, stdout, stderr = finish(start_worker(models))
    assert (status, stdout) == (1, '')
    assert stderr.splitlines()[-1] == ('worker.py: other weights than the chief has; use the same')
    wait_for(process, 'cannot work: other weights')
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130


def test_a_port_in_use_and_a_chief_that_is_not_there(tiny, port, call, sample, monkeypatch):
    import generate_unconditional_samples as unconditional
    import worker as command
    monkeypatch.setattr(worker, 'WAIT', -1)
    monkeypatch.setattr(link, 'TIMEOUT', 0.5)
    status, stdout, stderr = call(command.work, command.OPTIONS, f'localhost:{port}')
    assert (status, stdout) == (1, '')
    assert stderr.startswith(f'worker.py: no chief answers at localhost:{port}; start it')
    with socket.socket() as taken:
        taken.bind(('', port))
        taken.listen()
        stderr = sample(unconditional.sample_model, '--nsamples', 1, '--serve', port, status=1)[1]
    assert f'port {port} cannot be opened; another program may use it' in stderr


@pure
@pytest.mark.parametrize('address', ['', 'host', 'host:', ':5', 'a b:5', 'host:5/', 'http://h:5'])
def test_an_address_is_a_host_and_a_port(refuse, address):
    import worker as command
    assert refuse(command.work, command.OPTIONS, address) == (
        2, f'--chief must be HOST:PORT, not {address!r}')
