"""The Python interface: `import gpt2`, with src/ on the path."""
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import gpt2
import reference
from helpers import SRC, only_long

README = (SRC.parent / 'README.md').read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def tiny_model(tiny):
    with gpt2.load(tiny.name, models_dir=str(tiny.models_dir), engine='graph') as model:
        yield model


def test_texts_from_scratch_are_those_of_the_reference(tiny, tiny_model):
    samples = tiny_model.generate(nsamples=3, length=12, seed=4)
    assert [sample.text for sample in samples] == tiny.samples(range(3), seed=4, length=12)
    assert [sample.index for sample in samples] == [0, 1, 2]
    assert [sample.prompt for sample in samples] == 3 * [[256]]
    assert {sample.seed for sample in samples} == {4}


def test_samples_say_why_they_ended_and_what_was_likely(tiny, tiny_model):
    plain, = tiny_model.generate('ab', length=3, seed=1)
    assert (plain.finish_reason, plain.logprobs, plain.top_logprobs) == ('length', None, None)
    sample, = tiny_model.generate('ab', length=3, seed=1, logprobs=2, stop_at=['nowhere', 'x'],
                                  temperature=0)
    assert sample.finish_reason == 'length' and sample.logprobs.shape == (3, 2)
    for token, (own, _), top in zip(sample.tokens, sample.logprobs, sample.top_logprobs):
        assert len(top) == 2 and top[0] == (token, pytest.approx(own, abs=1e-5))
    first = sample.text[0]
    stopped, = tiny_model.generate('ab', length=3, seed=1, stop_at=[first, 'x'], temperature=0)
    assert (stopped.text, stopped.ended, stopped.finish_reason) == ('', True, 'stop')


@pytest.mark.parametrize('options', [
    {'temperature': 0}, {'temperature': 0.7}, {'top_k': 3}, {'top_p': 0.6}, {'top_p': 0},
    {'temperature': 2, 'top_k': 20, 'top_p': 0.9}], ids=str)
def test_one_model_takes_any_options(tiny, tiny_model, options):
    sample, = tiny_model.generate('ab', length=10, seed=2, **options)
    expected = {**options, 'top_p': options.get('top_p') or 1}
    assert [sample.text] == tiny.samples([0], seed=2, length=10, prompt='ab', **expected)


def test_a_prompt_is_a_text_or_ids_and_there_may_be_many(tiny, tiny_model):
    options = {'length': 6, 'seed': 3}
    text, = tiny_model.generate('xy', **options)
    ids, = tiny_model.generate(tiny.encode('xy'), **options)
    array, = tiny_model.generate(np.array(tiny.encode('xy')), **options)
    assert text == ids == array
    many = tiny_model.generate(['xy', tiny.encode('z')], nsamples=2, batch_size=3, **options)
    assert [sample.index for sample in many] == [0, 1, 2, 3]
    assert [sample.prompt for sample in many] == 2 * [tiny.encode('xy')] + 2 * [tiny.encode('z')]
    assert many[0] == text
    assert [sample.text for sample in many[2:]] == tiny.samples([2, 3], 3, 6, prompt='z')
    assert tiny_model.generate([], **options) == []


def test_a_stream_is_the_text_piece_by_piece(tiny_model):
    sample, = tiny_model.generate('ab', length=20, seed=5)
    pieces = list(tiny_model.stream('ab', length=20, seed=5))
    assert ''.join(pieces) == sample.text
    assert len(pieces) > 1


def test_a_stream_may_be_left_early(tiny_model):
    next(tiny_model.stream('ab', length=20, seed=5))
    first, second = (tiny_model.generate('ab', length=4, seed=5) for _ in range(2))
    assert first == second


def test_stop_at_and_log_probabilities(tiny_model):
    whole, = tiny_model.generate('ab', length=20, seed=5, logprobs=True, stop=False)
    assert whole.logprobs.shape == (20, 2) and whole.logprobs.dtype == np.float32
    assert not whole.ended
    stop = next(character for character in whole.text[3:] if ' ' < character < '\x7f')
    cut, = tiny_model.generate('ab', length=20, seed=5, stop_at=stop, stop=False)
    assert cut.text == whole.text.partition(stop)[0]
    assert cut.ended and cut.logprobs is None


def test_without_a_seed_samples_differ_and_can_be_repeated(tiny_model, capfd):
    first, second = (tiny_model.generate('ab', length=20)[0] for _ in range(2))
    assert first.seed != second.seed and first.tokens != second.tokens
    assert tiny_model.generate('ab', length=20, seed=first.seed) == [first]
    assert capfd.readouterr() == ('', '')


def test_scores_and_logits_are_those_of_the_reference(tiny, tiny_model):
    tokens = tiny.encode('hello')
    expected = reference.forward(tiny.weights, tiny.hparams, tokens)
    np.testing.assert_allclose(tiny_model.logits('hello'), expected, atol=1e-4)
    np.testing.assert_allclose(tiny_model.logits(tokens), expected, atol=1e-4)
    score = tiny_model.score('hello')
    logits = reference.forward(tiny.weights, tiny.hparams, [256] + tokens)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = logprobs[range(5), tokens]
    np.testing.assert_allclose(score.logprobs, chosen, atol=1e-4)
    assert score.ranks.tolist() == (1 + (logprobs > chosen[:, np.newaxis]).sum(axis=-1)).tolist()
    assert score.tokens == tokens
    empty = tiny_model.score('')
    assert empty.tokens == [] and empty.logprobs.size == 0


@pytest.mark.parametrize('call, message', [
    (lambda model: model.generate(topk=3), 'there is no option topk; did you mean top_k?'),
    (lambda model: model.generate(top_k=-1), 'top_k must be a whole number from 0'),
    (lambda model: model.generate(top_k=258), 'top_k must be a whole number from 0 to 257'),
    (lambda model: model.generate(temperature='hot'), 'temperature must be a number'),
    (lambda model: model.generate(keep=33), 'keep must be a whole number from 1 to 32'),
    (lambda model: model.generate(nsamples=0), 'nsamples must be a whole number from 1'),
    (lambda model: model.generate(batch_size=0), 'batch_size must be a whole number from 1'),
    (lambda model: model.generate(''), 'a prompt cannot be used: it is empty'),
    (lambda model: model.generate('a' * 33), 'it is 1 tokens too long'),
    (lambda model: model.generate([1, 257]), '257 is not a token id; give ids from 0 to 256'),
    (lambda model: model.generate(3), 'a prompt must be a text or token ids, not 3'),
    (lambda model: model.logits('a' * 33), 'it is 1 tokens too long'),
    (lambda model: model.score('a', stride=0), 'stride must be a whole number from 1 to 32'),
])
def test_unusable_arguments_are_errors_of_one_line(tiny_model, call, message):
    with pytest.raises(gpt2.UsageError) as caught:
        call(tiny_model)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_load_checks_its_arguments(tiny, tmp_path):
    with pytest.raises(gpt2.ModelError, match='there is no model 355M in .*, only: tiny'):
        gpt2.load('355M', models_dir=str(tiny.models_dir))
    with pytest.raises(gpt2.UsageError, match='engine must be one of auto, graph, lite'):
        gpt2.load(tiny.name, models_dir=str(tiny.models_dir), engine='fast')


@only_long
def test_a_closed_model_loads_again(tiny):
    model = gpt2.load(tiny.name, models_dir=str(tiny.models_dir), engine='graph')
    before = model.generate(length=4, seed=1)
    model.close()
    assert model.generate(length=4, seed=1) == before
    model.close()
    model.close()


def test_the_code_in_readme_runs_and_tensorflow_prints_nothing(tmp_path):
    code = re.search(r'```python\n(.*?)```', README, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, '-c', code], cwd=str(SRC.parent),
                          capture_output=True)
    assert (done.returncode, done.stderr.decode()) == (0, '')
    *_, last = done.stdout.decode().splitlines()
    assert re.fullmatch(r"'.*' -\d+\.\d+", last)
    assert done.stdout.decode().count('\n') > 8


def test_importing_gpt2_does_not_import_tensorflow():
    program = ('import sys; sys.path.append(sys.argv[1]); import gpt2; '
               'print("tensorflow" in sys.modules)')
    output = subprocess.check_output([sys.executable, '-c', program, str(pathlib.Path(SRC))])
    assert output.decode().strip() == 'False'
