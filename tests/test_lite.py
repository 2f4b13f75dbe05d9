"""The lite engine: export, interpreter, the choice of a token, and its decoder's own ways.

What it shares with the graph, and the texts, are in test_decoders.py. A folder of converted weights
is complete or not there.
"""
import fractions
import hashlib
import os
import shutil
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from hypothesis import strategies

import reference
import sample
from gpt2 import files, runtime
from gpt2.errors import ModelError, UserError
from gpt2.lite import converted
from gpt2.lite import logits as lite_logits
from gpt2.model_dir import open_model_dir
from gpt2.sampling import engines
from gpt2.sampling.graph import GraphDecoder
from gpt2.sampling.options import SamplingOptions
from helpers import SRC, only_long
from small_model import NEAR, PROMPTS, uniforms

IS_TF1 = tf.__version__.startswith('1.')
needs_engine = pytest.mark.skipif(IS_TF1, reason='the lite engine needs TensorFlow 2')
if not IS_TF1:
    from gpt2.lite import decoder as lite_decoder
    from gpt2.lite import export, interpreter

TINY = {'n_vocab': 257, 'n_ctx': 64, 'n_embd': 48, 'n_head': 3, 'n_layer': 2}
GREEDY, PLAIN = SamplingOptions(temperature=0), SamplingOptions()


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    """A small random model, opened, with its weights converted to float32."""
    models = tmp_path_factory.mktemp('models')
    reference.write_checkpoint(models / 'tiny', TINY, reference.random_weights(TINY, 5))
    opened = open_model_dir('tiny', str(models))
    if not IS_TF1:
        with pytest.MonkeyPatch.context() as patch:  # an output layer in four slices
            patch.setattr(export, 'SLICE_BYTES', 257 * 48 * 4 / 3.5)
            converted.find_or_convert(opened, 'float32')
    return opened


@pytest.fixture(scope='module')
def decoder(opened):
    one = engines.open_decoder(opened, 'lite')
    yield one
    one.close()


@pytest.fixture
def fresh(opened, tmp_path):
    """A copy of the model whose weights are not converted."""
    shutil.copytree(opened.path, str(tmp_path / 'tiny'), ignore=shutil.ignore_patterns('lite'))
    return open_model_dir('tiny', str(tmp_path))


@pytest.fixture
def fast_convert(monkeypatch):
    """Converts in no time, to bytes that say what was converted; a list of all calls."""
    calls = []

    class Template:
        def __init__(self, n_embd, dtype, build, n_inputs):
            calls.append((n_embd, dtype, n_inputs))
            self._data = repr(calls[-1]).encode('ascii')

        def fill(self, read):
            return self._data

    if not IS_TF1:
        monkeypatch.setattr(export, 'Template', Template)
    return calls


def decode(one, prompts, length, options=PLAIN):
    one.reset(len(prompts))
    for row, prompt in enumerate(prompts):
        one.prefill([row], prompt)
    numbers = uniforms(11, range(len(prompts)), length, 257)
    return one.decode(length, options, numbers, logprobs=True)


def small_prompts():
    return [[token % 257 for token in prompt] for prompt in PROMPTS]


# ---- the folder of converted weights -------------------------------------------------------------

@needs_engine
def test_a_converted_folder_holds_the_embeddings_and_each_subgraph(opened):
    folder = converted.converted_folders(opened.path, 'float32')[0]
    names = [f'head{i}.tflite' for i in range(4)] + ['manifest.json'] + [
        f'part{i}.tflite' for i in range(3)]
    assert sorted(os.listdir(folder)) == [*names, 'wpe.npy', 'wte.npy']
    weights = reference.random_weights(TINY, 5)
    for name in ('wte', 'wpe'):
        assert np.array_equal(np.load(os.path.join(folder, f'{name}.npy')),
                              weights[f'model/{name}'])


@needs_engine
def test_each_block_has_weights_of_its_own(tmp_path):
    """Though most are made of one template: five blocks, read by both engines."""
    hparams = {**TINY, 'n_layer': 5}
    reference.write_checkpoint(tmp_path / 'tiny', hparams, reference.random_weights(hparams, 6))
    opened = open_model_dir('tiny', str(tmp_path))
    found = []
    for engine in ('graph', 'lite'):
        one = engines.open_decoder(opened, engine)
        found.append(decode(one, small_prompts(), 8))
        one.close()
    assert np.array_equal(found[0][0], found[1][0])
    assert np.abs(found[0][1].logprobs - found[1][1].logprobs).max() < 1e-4


@needs_engine
def test_a_folder_is_converted_once(fresh, fast_convert):
    folder = converted.find_or_convert(fresh, 'float32')
    assert folder == converted.converted_folders(fresh.path, 'float32')[0] and os.path.isdir(folder)
    assert fast_convert == [(48, 'float32', n) for n in (1, 2, 2, 1)]
    assert converted.find_or_convert(fresh, 'float32') == folder and len(fast_convert) == 4
    other = converted.find_or_convert(fresh, 'int8')
    assert other != folder and os.path.isdir(folder) and os.path.isdir(other)
    shutil.rmtree(folder)  # which anyone may
    assert converted.find_or_convert(fresh, 'float32') == folder and os.path.isdir(folder)


@needs_engine
@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError('No space left on device')], ids=str)
def test_a_conversion_is_complete_or_absent(fresh, fast_convert, monkeypatch, error):
    """Wherever it is interrupted; and then it can be done again."""
    folder = converted.converted_folders(fresh.path, 'float32')[0]
    parent, template = os.path.dirname(folder), export.Template
    for last in range(4):
        fast_convert.clear()

        def interrupted(*args, last=last, **kwargs):
            if len(fast_convert) == last:
                raise error
            return template(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(type(error) if isinstance(
                error, OSError) else error):
            patch.setattr(export, 'Template', interrupted)
            converted.find_or_convert(fresh, 'float32')
        assert os.listdir(parent) == []
    assert converted.find_or_convert(fresh, 'float32') == folder and os.path.isdir(folder)


@needs_engine
def test_another_process_may_be_faster(fresh, fast_convert, monkeypatch):
    """Both then use what the first one has converted."""
    folder = converted.converted_folders(fresh.path, 'float32')[0]
    subgraphs = export.export

    def slow(*args):
        monkeypatch.setattr(export, 'export', subgraphs)
        subgraphs(*args)
        converted.find_or_convert(fresh, 'float32')  # meanwhile, in the other process
        open(os.path.join(folder, 'by the other'), 'w').close()

    monkeypatch.setattr(export, 'export', slow)
    assert converted.find_or_convert(fresh, 'float32') == folder
    assert 'by the other' in os.listdir(folder)
    assert os.listdir(os.path.dirname(folder)) == [os.path.basename(folder)]


@only_long
@needs_engine
def test_two_processes_convert_at_the_same_time(fresh):
    command = [sys.executable, str(SRC / 'generate_unconditional_samples.py'), '--model_name',
               'tiny', '--models_dir', os.path.dirname(fresh.path), '--nsamples', '1', '--seed',
               '1', '--length', '10', '--engine', 'lite']
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                 for _ in range(2)]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert len(os.listdir(os.path.join(fresh.path, 'lite'))) == 1


@needs_engine
def test_other_weights_sizes_versions_and_formats_are_converted_again(fresh, fast_convert,
                                                                      monkeypatch):
    """What it replaces, of the same dtype, is removed."""
    first = converted.find_or_convert(fresh, 'float32')
    int8 = converted.find_or_convert(fresh, 'int8')
    folders = [first]

    def convert_again():
        again = open_model_dir('tiny', os.path.dirname(fresh.path))
        folders.append(converted.find_or_convert(again, 'float32'))
        assert folders[-1] not in folders[:-1]
        assert sorted(os.listdir(os.path.join(fresh.path, 'lite'))) == sorted(
            map(os.path.basename, [folders[-1], int8]))

    reference.write_checkpoint(fresh.path, TINY, reference.random_weights(TINY, 6))
    convert_again()
    reference.write_checkpoint(fresh.path, dict(TINY, n_head=4), reference.random_weights(TINY, 6))
    convert_again()
    monkeypatch.setattr(converted, 'FORMAT', converted.FORMAT + 1)
    convert_again()
    monkeypatch.setattr(runtime, 'tensorflow_version', lambda: '2.99.1')
    convert_again()


@needs_engine
def test_weights_of_another_model_are_not_converted(opened, tmp_path):
    """Nor is what was converted used for other sizes."""
    shutil.copytree(opened.path, str(tmp_path / 'tiny'))
    path = tmp_path / 'tiny' / 'hparams.json'
    path.write_text(path.read_text().replace('"n_layer": 2', '"n_layer": 1'))
    changed = open_model_dir('tiny', str(tmp_path))
    for engine in ('auto', 'lite'):
        with pytest.raises(ModelError, match='no such layer'):
            engines.open_decoder(changed, engine)


@needs_engine
def test_who_can_read_the_model_can_read_what_was_converted(fresh, fast_convert):
    os.makedirs(os.path.join(fresh.path, 'lite'))
    os.chmod(os.path.join(fresh.path, 'lite'), 0o755)
    folder = converted.find_or_convert(fresh, 'float32')
    assert os.stat(folder).st_mode & 0o777 == 0o755


# ---- damage --------------------------------------------------------------------------------------

def cut(path):
    os.truncate(path, os.path.getsize(path) // 2)


def flip(path):
    with open(path, 'r+b') as file:
        data = file.read()
        file.seek(len(data) // 2)
        file.write(bytes([data[len(data) // 2] ^ 1]))


def empty(path):
    os.truncate(path, 0)


@needs_engine
@pytest.mark.parametrize('name, damage', [
    *[(name, damage) for name in ('part0.tflite', 'head0.tflite', 'wte.npy', 'wpe.npy')
      for damage in (cut, flip, empty, os.remove)],
    *[('manifest.json', damage) for damage in (cut, empty, os.remove)]],
    ids=lambda value: getattr(value, '__name__', value))
def test_damaged_weights_are_converted_again(fresh, fast_convert, name, damage):
    """Loading them would crash: SIGSEGV."""
    folder = converted.find_or_convert(fresh, 'float32')
    good = {file: checksum_of(folder, file) for file in os.listdir(folder)
            if file != 'manifest.json'}
    damage(os.path.join(folder, name))
    assert converted.find(fresh.path, 'float32') is None
    assert converted.find_or_convert(fresh, 'float32') == folder
    assert {file: checksum_of(folder, file) for file in good} == good
    assert converted.find(fresh.path, 'float32') == folder


def checksum_of(folder, name):
    with open(os.path.join(folder, name), 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


@needs_engine
def test_a_file_that_does_not_belong_there_is_damage(fresh, fast_convert):
    folder = converted.find_or_convert(fresh, 'float32')
    shutil.copy(os.path.join(folder, 'head0.tflite'), os.path.join(folder, 'head1.tflite'))
    assert converted.find(fresh.path, 'float32') is None
    assert 'head1.tflite' not in os.listdir(converted.find_or_convert(fresh, 'float32'))


@needs_engine
@pytest.mark.parametrize('text', [
    '{}', '[]', '{"sha256": [], "state": {}}', '{"sha256": {"a": 1}, "state": null}',
    '{"sha256": 5, "state": 5}', '[' * 10**5], ids=lambda text: text[:40])
def test_a_manifest_may_hold_anything(fresh, fast_convert, text):
    folder = converted.find_or_convert(fresh, 'float32')
    with open(os.path.join(folder, 'manifest.json'), 'w') as file:
        file.write(text)
    assert converted.find(fresh.path, 'float32') is None
    assert converted.find_or_convert(fresh, 'float32') == folder


@needs_engine
def test_what_was_only_copied_or_touched_is_read_once_and_kept(fresh, fast_convert, monkeypatch):
    folder, calls = converted.find_or_convert(fresh, 'float32'), []
    checksum = converted.checksum
    monkeypatch.setattr(converted, 'checksum', lambda *args: calls.append(args) or checksum(*args))
    assert converted.find(fresh.path, 'float32') == folder and not calls
    os.utime(os.path.join(folder, 'part0.tflite'), (1, 1))
    assert converted.find(fresh.path, 'float32') == folder
    assert calls == [(folder, 'part0.tflite')]
    assert converted.find(fresh.path, 'float32') == folder and len(calls) == 1


@needs_engine
def test_where_the_model_is_read_only_the_cache_has_what_is_converted(fresh, fast_convert,
                                                                      monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    writable = files.check_writable

    def check_writable(folder):
        if folder.startswith(fresh.path):
            raise PermissionError(13, 'Permission denied', folder)
        writable(folder)

    monkeypatch.setattr(files, 'check_writable', check_writable)
    folder = converted.find_or_convert(fresh, 'float32')
    assert folder.startswith(str(tmp_path / 'cache' / 'gpt2' / 'lite'))
    assert converted.find_or_convert(fresh, 'float32') == folder and len(fast_convert) == 4
    converted.find_or_convert(fresh, 'int8')
    assert len(os.listdir(os.path.dirname(folder))) == 2


@needs_engine
def test_what_somebody_else_may_have_put_in_the_cache_is_not_used(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    files.cache_folder()
    assert len(converted.converted_folders(fresh.path, 'float32')) == 2
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    folder, = converted.converted_folders(fresh.path, 'float32')
    assert folder.startswith(fresh.path)


# ---- which engine --------------------------------------------------------------------------------

@needs_engine
def test_auto_takes_converted_weights_and_never_converts(fresh, fast_convert, monkeypatch):
    monkeypatch.setattr(lite_decoder, 'LiteDecoder', lambda folder, model_dir: folder)
    monkeypatch.setattr(GraphDecoder, 'open', lambda model_dir, dtype: 'graph')
    monkeypatch.setattr(runtime, 'has_gpu', lambda: False)
    assert engines.open_decoder(fresh) == 'graph'
    assert not os.path.exists(os.path.join(fresh.path, 'lite'))
    folders = {dtype: converted.converted_folders(fresh.path, dtype)[0]
               for dtype in ('float32', 'int8')}
    assert engines.open_decoder(fresh, 'lite') == folders['float32']
    assert engines.open_decoder(fresh) == folders['float32']
    assert engines.open_decoder(fresh, 'graph') == 'graph'
    assert engines.open_decoder(fresh, dtype='int8') == folders['int8']
    assert engines.open_decoder(fresh, dtype='bfloat16') == 'graph'
    monkeypatch.setattr(runtime, 'has_gpu', lambda: True)
    assert engines.open_decoder(fresh) == 'graph'
    assert engines.open_decoder(fresh, 'lite') == folders['float32']


def test_tensorflow_1_has_the_graph_alone(fresh, monkeypatch):
    monkeypatch.setattr(runtime, 'is_tensorflow_1', lambda: True)
    monkeypatch.setattr(GraphDecoder, 'open', lambda model_dir, dtype: 'graph')
    monkeypatch.setattr(runtime, 'has_gpu', lambda: False)
    os.makedirs(converted.converted_folders(fresh.path, 'float32')[0])
    assert engines.open_decoder(fresh) == 'graph'
    for chosen in [('lite', 'float32'), ('lite', 'int8'), ('auto', 'int8'), ('auto', 'int4')]:
        with pytest.raises(UserError, match='the lite engine needs TensorFlow 2, and this is .*; '
                                            'use --engine graph'):
            engines.open_decoder(fresh, *chosen)


# ---- the interpreter -----------------------------------------------------------------------------

@needs_engine
def test_a_subgraph_takes_any_number_of_tokens(opened, decoder):
    """The first one, held to the reference: normalization, queries, keys and values."""
    weights = reference.random_weights(TINY, 5)
    subgraph = interpreter.Subgraph(os.path.join(
        converted.converted_folders(opened.path, 'float32')[0], 'part0.tflite'))
    for n in (1, 5, 2, 2, 300, 1):
        x = np.float32(np.random.RandomState(n).randn(n, 48))
        found, qkv = subgraph(x)
        h = reference.layer_norm(np.float64(x), weights['model/h0/ln_1/g'],
                                 weights['model/h0/ln_1/b'])
        expected = reference.linear(h, np.float64(weights['model/h0/attn/c_attn/w']),
                                    weights['model/h0/attn/c_attn/b'])
        assert np.array_equal(found, x)
        np.testing.assert_allclose(qkv, expected, rtol=0, atol=1e-4)


@needs_engine
def test_a_subgraph_that_was_interrupted_allocates_its_memory_again(decoder):
    expected = decode(decoder, small_prompts()[4:5], 9, GREEDY)[0].tolist()
    block = decoder._blocks[1]
    resized = block._interpreter

    class Interrupting:
        def __getattr__(self, name):
            if name == 'AllocateTensors':
                raise KeyboardInterrupt
            return getattr(resized, name)

    block._interpreter = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        decode(decoder, small_prompts()[4:5], 9, GREEDY)
    block._interpreter = resized
    assert decode(decoder, small_prompts()[4:5], 9, GREEDY)[0].tolist() == expected


@needs_engine
def test_tensorflow_is_not_imported_for_converted_weights(opened, decoder):
    """Importing it takes longer than a short text does."""
    program = """
import sys
from gpt2.model_dir import open_model_dir
from gpt2.sampling import engines, options, rng
decoder = engines.open_decoder(open_model_dir('tiny', sys.argv[1]), 'auto')
decoder.reset(1)
decoder.prefill([0], [7])
uniforms = rng.draw_uniforms([rng.sample_rng(11, 0)], 9, 257)
print(decoder.decode(9, options.SamplingOptions(top_k=20), uniforms)[0].tolist())
print('tensorflow' in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, '-c', program, os.path.dirname(opened.path)], check=True,
        env=dict(os.environ, PYTHONPATH=str(SRC)), stdout=subprocess.PIPE)
    tokens, imported = done.stdout.decode().splitlines()
    assert tokens == str(decode(decoder, [[7]], 9, SamplingOptions(top_k=20))[0].tolist())
    old = tuple(map(int, tf.__version__.split('.')[:2])) < (2, 20)
    assert imported == str(runtime.has_gpu() or old)


# ---- the decoder ---------------------------------------------------------------------------------

@needs_engine
def test_texts_with_an_output_layer_in_slices_are_those_of_the_reference(decoder):
    tokens, _ = decode(decoder, small_prompts()[:3], 12)
    for index, prompt in enumerate(small_prompts()[:3]):
        expected, gaps = reference.sample(reference.random_weights(TINY, 5), TINY, prompt, 12, 11,
                                          index)
        n = next((i for i, gap in enumerate(gaps) if gap < NEAR), 12)
        assert n > 3 and tokens[index, :n].tolist() == expected[:n]


@needs_engine
def test_threads_change_no_bit(decoder, monkeypatch):
    monkeypatch.setattr(runtime, 'processors', lambda: 3)
    results = []
    for scores in (2**30, 1):
        monkeypatch.setattr(lite_decoder, 'THREAD_SCORES', scores)
        tokens, scores = decode(decoder, small_prompts(), 20)
        results.append([tokens.tolist(), scores.logprobs.tolist()])
    assert results[0] == results[1]


@pytest.mark.parametrize('processors, n_head, n_scores, slices', [
    (3, 12, 1, [12]), (3, 12, 2**30, [4, 4, 4]), (3, 2, 2**30, [1, 1]),
    (4, 10, 2**30, [2, 3, 2, 3]), (8, 12, 3 * 2**12, [4, 4, 4]), (1, 12, 2**30, [12]),
    (2, 25, 2**17, [12, 13]),
])
@needs_engine
def test_heads_are_divided_among_threads_if_that_is_worth_it(monkeypatch, processors, n_head,
                                                             n_scores, slices):
    monkeypatch.setattr(runtime, 'processors', lambda: processors)
    found = lite_decoder.head_slices(n_head, n_scores)
    assert [part.stop - part.start for part in found] == slices
    assert [head for part in found for head in range(n_head)[part]] == list(range(n_head))


@needs_engine
def test_rows_are_read_from_a_file(tmp_path):
    matrix = np.random.default_rng(0).normal(size=[50, 7]).astype(np.float32)
    np.save(tmp_path / 'matrix.npy', matrix)
    reader = lite_decoder.RowReader(tmp_path / 'matrix.npy')
    indices = np.array([49, 0, 3, 3])
    assert np.array_equal(reader.read(indices), matrix[indices])
    assert reader.read(indices[:0]).shape == (0, 7)
    reader.close()


@needs_engine
def test_a_long_prompt_is_read_in_pieces(decoder, monkeypatch):
    whole, _ = decode(decoder, small_prompts(), 20)
    monkeypatch.setattr(lite_decoder, 'PROMPT_TOKENS', 8)
    assert decode(decoder, small_prompts(), 20)[0].tolist() == whole.tolist()


# ---- from logits to a token, in NumPy ------------------------------------------------------------

SETTINGS = [
    {'temperature': 0}, {}, {'top_k': 1}, {'top_k': 40}, {'top_k': 1000}, {'top_p': 0.9},
    {'top_p': 0}, {'top_p': 1e-9}, {'top_p': 1e-50}, {'temperature': 1e-50}, {'temperature': 1e30},
    {'temperature': 0.5, 'top_k': 300, 'top_p': 0.5}]


@pytest.fixture(scope='module')
def rows():
    """Logits [200, 1000], some with ties and far from 0, and random numbers [200, 2R]."""
    random = np.random.RandomState(3)
    logits = random.normal(0, 3, [200, 1000]).astype(np.float32)
    logits[:100] = np.round(logits[:100])
    logits[50:150] += np.float32(random.normal(0, 100, [100, 1]))
    return logits, uniforms(0, range(200), 1)[:, 0]


@pytest.mark.pure
@pytest.mark.parametrize('options', SETTINGS, ids=str)
def test_tokens_are_those_of_the_reference(rows, options):
    logits, u = rows
    checked = {**options, 'top_p': options.get('top_p') or 1}
    processed = lite_logits.process_logits(logits, SamplingOptions(**options))
    tokens = lite_logits.sample_token(processed, u, SamplingOptions(**options))
    scores = lite_logits.token_logprobs(logits, processed, tokens, SamplingOptions(**options))
    differ = 0
    for row, token, weights, score, numbers in zip(logits, tokens, processed, scores, u):
        own = reference.softmax(np.float64(row))
        np.testing.assert_allclose(score[0], np.log(own[token]), rtol=1e-5, atol=1e-4)
        if options.get('temperature') == 0:
            assert token == row.argmax() and score[1] == 0
            continue
        kept = reference.warp_logits(row, **checked)
        wanted, gap = reference.draw(kept, numbers)
        assert token == wanted or gap < NEAR
        differ += token != wanted
        drawn = reference.softmax(kept)
        assert not weights[1000:].any()
        assert np.sum((weights[:1000] > 0) != (drawn > 0)) <= 1
        np.testing.assert_allclose(weights[:1000] / weights.sum(), drawn, rtol=0, atol=1e-4)
        np.testing.assert_allclose(score[1], np.log(drawn[token]), rtol=0, atol=1e-4)
    assert differ <= 2


@pytest.mark.parametrize('options', SETTINGS, ids=str)
def test_tokens_are_those_of_the_graph(rows, graph_tokens, options):
    logits, u = rows
    processed = lite_logits.process_logits(logits, SamplingOptions(**options))
    found = lite_logits.sample_token(processed, u, SamplingOptions(**options))
    assert found.tolist() == graph_tokens(**options)


@pytest.fixture(scope='module')
def graph_tokens(rows):
    """A function from options to the tokens that `sample.sample_token` chooses."""
    logits, u = rows
    with tf.Graph().as_default(), tf.Session() as session:
        options = {'temperature': tf.placeholder(tf.float64, []),
                   'top_k': tf.placeholder(tf.int32, []), 'top_p': tf.placeholder(tf.float64, [])}
        processed = sample.process_logits(tf.constant(logits), **options)
        token = sample.sample_token(processed, tf.constant(u), options['temperature'])
        yield lambda temperature=1, top_k=0, top_p=1: session.run(
            token, dict(zip(options.values(), [temperature, top_k, top_p]))).tolist()


@pytest.mark.pure
def test_the_first_of_equals_is_the_likeliest():
    logits = np.zeros([2, 9], np.float32)
    logits[1, 3:5] = 1
    processed = lite_logits.process_logits(logits, GREEDY)
    assert lite_logits.sample_token(processed, None, GREEDY).tolist() == [0, 3]


@pytest.mark.pure
@hypothesis.settings(deadline=None, derandomize=True)
@hypothesis.given(strategies.lists(strategies.floats(0, 1, width=32), min_size=1, max_size=60),
                  strategies.data())
def test_thresholds_of_top_k_and_top_p_are_exact(weights, data):
    weights = np.array(weights + [1], np.float32)
    k = data.draw(strategies.integers(1, len(weights)))
    assert lite_logits.top_k_threshold(weights, k) == np.sort(weights)[-k]
    p = data.draw(strategies.floats(0.01, 0.99))
    # From the definition, in exact arithmetic: a token stays if the larger ones sum to less than p.
    exact = [fractions.Fraction(float(weight)) for weight in weights]
    larger = [sum(other for other in exact if other > weight) for weight in exact]
    hypothesis.assume(all(abs(mass - fractions.Fraction(p) * sum(exact)) > 1e-9 for mass in larger))
    kept = [weight for weight, mass in zip(weights, larger)
            if mass < fractions.Fraction(p) * sum(exact)]
    assert lite_logits.nucleus_threshold(weights, p) == min(kept)


@pytest.mark.pure
@pytest.mark.parametrize('k', [1, 7, 255, 256, 257, 1000, 50256, 50257])
def test_the_threshold_of_top_k_in_the_released_vocabulary(k):
    random = np.random.RandomState(k)
    for weights in [random.rand(50257), np.round(random.rand(50257), 2), np.arange(50257.),
                    np.arange(50257.)[::-1], np.zeros(50257)]:
        weights = np.float32(weights)
        assert lite_logits.top_k_threshold(weights, k) == np.sort(weights)[-k]
