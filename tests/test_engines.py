"""Which engine `auto` takes, and the hint that there is a faster one."""
import types

import pytest

import generate_unconditional_samples as unconditional
import interactive_conditional_samples as interactive
from gpt2 import runtime
from gpt2.errors import OptionError
from gpt2.lite import converted
from gpt2.sampling import engines, run
from gpt2.sampling.options import DTYPES, EngineOptions

RELEASED = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A function that sets what there is, and returns a ModelDir of this size."""
    def machine(tensorflow_1=False, gpu=False, is_converted=False, n_layer=12):
        monkeypatch.setattr(runtime, 'is_tensorflow_1', lambda: tensorflow_1)
        monkeypatch.setattr(runtime, 'has_gpu', lambda: gpu)
        monkeypatch.setattr(converted, 'converted_folders', lambda path, dtype: [
            str(tmp_path if is_converted else tmp_path / 'missing')])
        return types.SimpleNamespace(
            path=str(tmp_path), hparams=types.SimpleNamespace(**{**RELEASED, 'n_layer': n_layer}))

    return machine


@pytest.mark.pure
def test_each_type_of_weights_has_its_engines(machine):
    for dtype, engine in DTYPES.items():
        assert engines.choose_engine(machine(), 'auto', dtype) == (engine or 'graph')
        for other in {'graph', 'lite'} - {engine or 'graph', engine or 'lite'}:
            with pytest.raises(OptionError, match=f'{dtype} is for the {engine} engine'):
                EngineOptions(engine=other, dtype=dtype)
            EngineOptions(engine=engine, dtype=dtype)
    assert engines.choose_engine(machine(is_converted=True), 'auto', 'float32') == 'lite'
    assert engines.choose_engine(machine(is_converted=True), 'auto', 'bfloat16') == 'graph'


@pytest.mark.pure
def test_a_large_model_on_the_graph_of_a_cpu_has_a_hint(machine):
    hint = engines.lite_hint(machine(), EngineOptions())
    assert '--engine lite' in hint and 'in about 12 s' in hint
    for there in [{'tensorflow_1': True}, {'gpu': True}, {'is_converted': True}, {'n_layer': 1}]:
        assert engines.lite_hint(machine(**there), EngineOptions()) is None, there
    for options in [{'engine': 'graph'}, {'engine': 'lite'}, {'dtype': 'int8'},
                    {'dtype': 'bfloat16'}]:
        assert engines.lite_hint(machine(), EngineOptions(**options)) is None, options


@pytest.mark.parametrize('function, arguments', [
    (unconditional.sample_model, {'--nsamples': 4}), (interactive.interact_model, {})])
def test_the_hint_comes_once_after_the_first_text(sample, monkeypatch, function, arguments):
    argv = [text for pair in arguments.items() for text in pair]
    quiet = sample(function, *argv, stdin='a\nb\n')
    monkeypatch.setattr(run, 'lite_hint', lambda model_dir, options: 'A hint.')
    assert sample(function, *argv, stdin='a\nb\n') == (quiet[0], quiet[1] + 'A hint.\n')
    assert quiet[1] == ''
