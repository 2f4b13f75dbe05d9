"""The CPU engine gives the graph engine's texts, and its files are there in whole or not at all."""

import fractions
import os
import shutil
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import strategies

import checkpoint
import generation
import reference
import sample

if tf.__version__.startswith('1.'):
    pytest.skip('the lite engine needs TensorFlow 2', allow_module_level=True)

import engine  # noqa: E402  (only where it works)
import lite  # noqa: E402
import lite_converter  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HPARAMS = {'n_vocab': 257, 'n_ctx': 300, 'n_embd': 48, 'n_head': 3, 'n_layer': 2}
PROMPTS = [[7], list(range(20)), list(range(250, 257)), [3] * 140, [1, 2], [255, 0, 9], [5] * 9,
           [6]]


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    """A small random model, opened."""
    models = tmp_path_factory.mktemp('models')
    reference.write_checkpoint(models / 'tiny', HPARAMS, reference.random_weights(HPARAMS, 5))
    return checkpoint.open_model('tiny', str(models))


@pytest.fixture(scope='module')
def box():
    """The model in the box, opened."""
    return checkpoint.open_model('1M', os.path.join(ROOT, 'models'))


def graph_sampler(session, model, **options):
    sampler = sample.Sampler(session, model.hparams, **options)
    checkpoint.restore(session, model.directory)
    return sampler


def lite_sampler(model, dtype='float32', **options):
    folder = lite_converter.convert(model.directory, model.hparams, dtype)
    return lite.Sampler(folder, model.hparams, **options)


def texts(sampler, prompts, length, first=0, seed=11):
    indices = range(first, first + len(prompts))
    return np.concatenate(list(generation.generate(sampler, prompts, indices, seed=seed,
                                               length=length)), axis=1).tolist()


@pytest.mark.parametrize('options', [
    {}, {'temperature': 0}, {'temperature': 0.7, 'top_k': 20}, {'top_p': 0.8}])
def test_same_texts_as_the_graph(opened, options):
    with tf.Graph().as_default(), tf.Session() as session:
        graph = texts(graph_sampler(session, opened, **options), PROMPTS, 150)
    assert texts(lite_sampler(opened, **options), PROMPTS, 150) == graph


def test_same_texts_for_any_batch(opened):
    sampler = lite_sampler(opened)
    together = texts(sampler, PROMPTS, 40)
    assert together == [texts(sampler, [prompt], 40, first=i)[0]
                        for i, prompt in enumerate(PROMPTS)]


def test_same_texts_as_the_reference(opened):
    weights = reference.random_weights(HPARAMS, 5)
    for i, row in enumerate(texts(lite_sampler(opened), PROMPTS[:2], 12)):
        tokens, gaps = reference.sample(weights, HPARAMS, PROMPTS[i], 12, 11, i)
        sure = next((n for n, gap in enumerate(gaps) if gap < 1e-4), len(tokens))
        assert row[:sure] == list(tokens[:sure])
        assert sure > 0


def test_same_texts_of_the_model_in_the_box(box):
    start = [[box.encoder.encoder[checkpoint.END_OF_TEXT]]] * 8
    with tf.Graph().as_default(), tf.Session() as session:
        graph = texts(graph_sampler(session, box), start, 200)
    sampler = lite_sampler(box)
    assert texts(sampler, start, 200) == graph
    assert texts(sampler, start[:1], 200) == graph[:1]


def test_stop_token_ends_rows_and_text(opened):
    plain = texts(lite_sampler(opened), PROMPTS, 60)
    stop = plain[0][4]
    stopped = texts(lite_sampler(opened, stop_token=stop), PROMPTS, 60)
    for row, whole in zip(stopped, plain):
        n = whole.index(stop) if stop in whole else len(row)
        assert row[:n] == whole[:n]
        assert set(row[n:]) <= {stop}


def test_threads_change_no_bit(opened, monkeypatch):
    monkeypatch.setattr(lite.cli, 'processors', lambda: 3)
    results = []
    for worth in (2 ** 30, 1):
        monkeypatch.setattr(lite, 'THREAD_SCORES', worth)
        sampler = lite_sampler(opened, logprobs=True)
        results.append([texts(sampler, PROMPTS, 20), sampler.logprobs.tolist()])
    assert results[0] == results[1]
    assert [len(lite.shares(3, n)) for n in (1, 2, 9)] == [1, 2, 3]


def test_prompts_are_read_in_pieces(opened, monkeypatch):
    whole = texts(lite_sampler(opened), PROMPTS, 20)
    monkeypatch.setattr(lite, 'PROMPT_TOKENS', 16)
    assert texts(lite_sampler(opened), PROMPTS, 20) == whole


def test_weights_of_another_model_are_not_converted(opened, tmp_path):
    """Nor is what was converted used for other hyperparameters."""
    lite_converter.convert(opened.directory, opened.hparams, 'float32')
    shutil.copytree(opened.directory, str(tmp_path / 'tiny'))
    path = tmp_path / 'tiny' / 'hparams.json'
    path.write_text(path.read_text().replace('"n_layer": 2', '"n_layer": 1'))
    changed = checkpoint.open_model('tiny', str(tmp_path))
    for chosen in ('auto', 'graph', 'lite'):
        with tf.Graph().as_default(), pytest.raises(checkpoint.ModelError, match='no such layer'):
            engine.open_sampler(changed, chosen, 'float32')


def test_who_can_read_the_model_can_read_what_was_converted(opened, tmp_path):
    shutil.copytree(opened.directory, str(tmp_path / 'tiny'),
                    ignore=shutil.ignore_patterns('lite'))
    os.makedirs(str(tmp_path / 'tiny' / 'lite'))
    os.chmod(str(tmp_path / 'tiny' / 'lite'), 0o755)
    folder = lite_converter.convert(str(tmp_path / 'tiny'), opened.hparams, 'float32')
    assert os.stat(folder).st_mode & 0o777 == 0o755


def test_a_part_that_was_interrupted_has_its_room_made_again(opened, monkeypatch):
    sampler = lite_sampler(opened, temperature=0)
    expected = texts(sampler, PROMPTS[1:2], 9)
    part = sampler._parts[1]
    resized = part._interpreter

    class Interrupting:
        def __getattr__(self, name):
            if name == 'AllocateTensors':
                raise KeyboardInterrupt
            return getattr(resized, name)
    part._interpreter = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        texts(sampler, PROMPTS[1:2], 9)
    part._interpreter = resized
    assert texts(sampler, PROMPTS[1:2], 9) == expected


def test_checks_on_the_host(opened):
    sampler = lite_sampler(opened)
    for prompts in [[[]], [[257]], [[-1]], [[0] * 301]]:
        with pytest.raises(ValueError):
            sampler.start(prompts)
    sampler.start([[0] * 299])
    with pytest.raises(ValueError, match='too many'):
        sampler.decode(3, np.full([1, 3, 34], 0.5, np.float32))


def test_int8_stays_close_to_float32(box):
    """Mean KL divergence of the next-token distributions along a text, and its perplexity."""
    tokens = texts(lite_sampler(box), [[0]], 200)[0]

    def log_probabilities(dtype):
        sampler = lite_sampler(box, dtype)
        sampler.start([[0]])
        sampler._make_room(200)
        read = sampler._step(np.array([[0] + tokens[:-1]]), np.array([0]), sampler._cache)
        logits = sampler._logits(*read).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    exact, close = log_probabilities('float32'), log_probabilities('int8')
    divergence = (np.exp(exact) * (exact - close)).sum(axis=1).mean()
    assert 0 < divergence < 0.01
    chosen = np.arange(200), tokens
    assert abs(exact[chosen].mean() - close[chosen].mean()) < 0.01


def test_conversion_is_whole_or_absent(opened, monkeypatch):
    folder = lite_converter.convert(opened.directory, opened.hparams, 'float32')
    parent = os.path.dirname(folder)
    shutil.rmtree(folder)
    calls = []
    real = lite_converter.convert_part

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(lite_converter, 'convert_part', interrupted)
    with pytest.raises(KeyboardInterrupt):
        lite_converter.convert(opened.directory, opened.hparams, 'float32')
    assert not os.path.exists(folder)
    assert not [name for name in os.listdir(parent) if name.startswith('partial-')]
    monkeypatch.setattr(lite_converter, 'convert_part', real)
    assert lite_converter.convert(opened.directory, opened.hparams, 'float32') == folder
    assert os.path.isdir(folder)


def test_other_weights_are_converted_anew(opened, tmp_path):
    directory = str(tmp_path / 'tiny')
    shutil.copytree(opened.directory, directory, ignore=shutil.ignore_patterns('lite'))
    old = lite_converter.convert(directory, opened.hparams, 'float32')
    other = lite_converter.convert(directory, opened.hparams, 'int8')
    reference.write_checkpoint(directory, HPARAMS, reference.random_weights(HPARAMS, 6))
    new = lite_converter.convert(directory, opened.hparams, 'float32')
    assert new != old
    assert not os.path.exists(old)
    assert os.path.isdir(new)
    assert os.path.isdir(other)  # of another dtype: replaced when that one is asked for


def test_two_processes_convert_at_once(opened, tmp_path):
    shutil.copytree(opened.directory, str(tmp_path / 'tiny'),
                    ignore=shutil.ignore_patterns('lite'))
    command = [sys.executable, os.path.join(ROOT, 'src', 'generate_unconditional_samples.py'),
               '--model_name', 'tiny', '--models_dir', str(tmp_path), '--nsamples', '1', '--seed',
               '1', '--length', '10', '--engine', 'lite']
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert len(os.listdir(str(tmp_path / 'tiny' / 'lite'))) == 1


def test_auto_takes_converted_weights_and_never_converts(opened, tmp_path, monkeypatch):
    shutil.copytree(opened.directory, str(tmp_path / 'tiny'),
                    ignore=shutil.ignore_patterns('lite'))
    model = checkpoint.open_model('tiny', str(tmp_path))
    assert isinstance(engine.open_sampler(model, 'auto', 'float32'), sample.Sampler)
    assert not os.path.exists(os.path.join(model.directory, 'lite'))
    assert isinstance(engine.open_sampler(model, 'lite', 'float32'), lite.Sampler)
    assert isinstance(engine.open_sampler(model, 'auto', 'float32'), lite.Sampler)
    assert isinstance(engine.open_sampler(model, 'auto', 'int8'), lite.Sampler)


def test_tensorflow_is_not_imported_for_converted_weights(opened):
    """Importing it takes longer than a short text does."""
    lite_converter.convert(opened.directory, opened.hparams, 'float32')
    program = """
import sys
import checkpoint, engine, generation
model = checkpoint.open_model('tiny', sys.argv[1])
sampler = engine.open_sampler(model, 'auto', 'float32', top_k=20)
print(next(generation.generate(sampler, [[7]], [0], seed=11, length=1)).tolist())
print('tensorflow' in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, '-c', program, os.path.dirname(opened.directory)], check=True,
        env=dict(os.environ, PYTHONPATH=os.path.join(ROOT, 'src')), stdout=subprocess.PIPE)
    token, imported = done.stdout.decode().splitlines()
    assert token == str([texts(lite_sampler(opened, top_k=20), [[7]], 1)[0]])
    gpu = engine.has_gpu()
    old = tuple(map(int, tf.__version__.split('.')[:2])) < (2, 20)
    assert imported == str(gpu or old)


@pytest.mark.parametrize('options', [
    {'temperature': 0}, {}, {'top_k': 1}, {'top_k': 40}, {'top_p': 0.9}, {'top_p': 1e-9},
    {'temperature': 0.5, 'top_k': 300, 'top_p': 0.5}])
def test_picks_as_the_graph_does(options):
    random = np.random.RandomState(3)
    logits = random.normal(0, 3, [200, 1000]).astype(np.float32)
    logits[:100] = np.round(logits[:100])  # ties
    uniforms = generation.random_uniforms([generation.random_stream(0, i) for i in range(200)], 1,
                                          1000)[:, 0]
    with tf.Graph().as_default(), tf.Session() as session:
        wanted = session.run(sample.pick(tf.constant(logits), tf.constant(uniforms), **options))
    options = dict({'temperature': 1, 'top_k': 0, 'top_p': 1}, **options)
    assert lite.pick(logits, uniforms, **options).tolist() == wanted.tolist()


@hypothesis.given(strategies.lists(strategies.floats(0, 1, width=32), min_size=1, max_size=60),
                  strategies.data())
def test_limits_of_top_k_and_top_p(weights, data):
    weights = np.array(weights + [1], np.float32)
    k = data.draw(strategies.integers(1, len(weights)))
    assert lite.kth_largest(weights, k) == np.sort(weights)[-k]
    p = data.draw(strategies.floats(0.01, 0.99))
    # From the definition, in exact arithmetic: a token stays if the larger ones sum to less than p.
    exact = [fractions.Fraction(float(weight)) for weight in weights]
    larger = [sum(other for other in exact if other > weight) for weight in exact]
    hypothesis.assume(all(abs(mass - fractions.Fraction(p) * sum(exact)) > 1e-9 for mass in larger))
    kept = [weight for weight, mass in zip(weights, larger)
            if mass < fractions.Fraction(p) * sum(exact)]
    assert lite.smallest_of_nucleus(weights, p) == min(kept)
