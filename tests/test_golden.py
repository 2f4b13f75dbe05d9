"""Samples of models/1M that were made before the code was restructured: the texts stay the same.

They fix what no independent source can: that a seed gives the same text from version to version.
"""
import json
import pathlib
import shutil

import pytest

import generate_conditional_samples as conditional
import generate_unconditional_samples as unconditional
from gpt2 import runtime
from gpt2.sampling import run
from helpers import SRC

GOLDEN = pathlib.Path(__file__).parent / 'golden'
MODEL = ['--models_dir', SRC.parent / 'models', '--model_name', '1M']
PROMPTS = 'ROMEO:\nTo be, or not\nThe king\n'
RUNS = {
    'plain.jsonl': ['--seed', 7, '--nsamples', 2, '--length', 60, '--batch_size', 4],
    'top_k.jsonl': ['--seed', 8, '--nsamples', 3, '--length', 60, '--batch_size', 2, '--logprobs',
                    '--top_k', 40, '--temperature', 0.8],
    'top_p.jsonl': ['--seed', 9, '--nsamples', 3, '--length', 60, '--batch_size', 3, '--logprobs',
                    '--top_p', 0.9],
    'long.txt': ['--seed', 11, '--nsamples', 5, '--length', 300, '--batch_size', 2, '--top_k', 40,
                 '--top_p', 0.95, '--temperature', 0.7, '--keep', 50, '--stop_at', ':'],
    'prompts.jsonl': ['--seed', 3, '--nsamples', 3, '--length', 40, '--batch_size', 4,
                      '--top_p', 0.9],
}


@pytest.fixture(autouse=True)
def open_once(graph_decoders, monkeypatch):
    """Build the model's graph only once."""
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)


def sample(call, name, engine, output, tmp_path):
    """Run the command that made a golden file; return what it prints on stderr."""
    command, flags = unconditional.sample_model, RUNS[name]
    if name == 'prompts.jsonl':
        (tmp_path / 'prompts.txt').write_text(PROMPTS)
        command = conditional.continue_prompts
        flags = flags + ['--prompts', tmp_path / 'prompts.txt']
    module = conditional if name == 'prompts.jsonl' else unconditional
    status, stdout, stderr = call(command, module.OPTIONS, *MODEL, *flags, '--engine', engine,
                                  '--output', output)
    assert (status, stdout) == (0, '')
    return stderr


def records(path):
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


@pytest.mark.parametrize('engine', ['graph', 'lite'])
@pytest.mark.parametrize('name', RUNS)
def test_the_same_seed_gives_the_same_text_as_ever(call, tmp_path, name, engine):
    if engine == 'lite' and runtime.is_tensorflow_1():
        pytest.skip('the lite engine needs TensorFlow 2')
    output = tmp_path / name
    assert sample(call, name, engine, output, tmp_path) == ''
    if name.endswith('.txt'):
        assert output.read_bytes() == (GOLDEN / name).read_bytes()
        return
    golden = records(GOLDEN / name)
    for new, old in zip(records(output), golden):
        old['settings'].update(engine=engine, tensorflow=new['settings']['tensorflow'])
        for key, values in old.pop('logprobs', {}).items():
            assert new['logprobs'][key] == pytest.approx(values, abs=1e-4)
        new.pop('logprobs', None)
        assert new.pop('finish_reason') == ('stop' if old['ended'] else 'length')
        assert list(new) == list(old)
        assert new == old
    assert len(records(output)) >= len(golden)


@pytest.mark.parametrize('name', ['plain.jsonl', 'top_k.jsonl', 'long.txt'])
def test_a_complete_file_made_before_stays_as_it_is(call, tmp_path, name):
    for path in GOLDEN.glob(name + '*'):
        shutil.copy(str(path), str(tmp_path))
    stderr = sample(call, name, 'graph', tmp_path / name, tmp_path)
    assert 'has all these samples already' in stderr
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()


@pytest.mark.skipif(not runtime.tensorflow_version().startswith('2.21'),
                    reason='the golden files were made by TensorFlow 2.21')
def test_a_file_made_before_is_continued(call, tmp_path):
    lines = (GOLDEN / 'top_k.jsonl').read_bytes().splitlines(keepends=True)
    (tmp_path / 'top_k.jsonl').write_bytes(lines[0] + lines[1][:100])
    assert sample(call, 'top_k.jsonl', 'auto', tmp_path / 'top_k.jsonl', tmp_path) == ''
    texts = [record['text'] for record in records(tmp_path / 'top_k.jsonl')]
    assert texts == [record['text'] for record in records(GOLDEN / 'top_k.jsonl')]
