"""Training as its users meet it: text in, a model directory out, and losses printed on the way.

The losses and the first step are compared with the float64 reference, twenty steps with torch.
"""
import collections
import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import time
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as real_tf

import reference
import train
from gpt2 import files, model_dir
from gpt2.errors import OptionError, UserError
from gpt2.training import data, resume, run, vocabulary
from gpt2.training.options import (
    ComputeOptions,
    RunOptions,
    TrainingOptions,
    VocabularyOptions,
)
from helpers import contents, only_long

OFFICIAL_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
                  'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']
TRAINED_FILES = sorted(OFFICIAL_FILES + ['metrics.jsonl', 'training'])
END = '<|endoftext|>'
LINE = re.compile(r'step (\d+): training loss ([\d.]+), validation loss ([\d.]+) nats per token, '
                  r'([\d.]+) bits per byte(, kept)?\r?\n')
IS_TF1 = real_tf.__version__.startswith('1.')

BOOK = 'The cat sat on the mät. 猫はマットに座った。\r\n' * 25  # the split may cut no character


@pytest.fixture(scope='module')
def loop(tf):
    """The module of the training loop, which imports TensorFlow."""
    from gpt2.training import loop
    return loop


@pytest.fixture
def models(tiny, tmp_path):
    """A folder of models that holds the tiny one."""
    folder = tmp_path / 'models'
    tiny.copy(folder / 'tiny')
    return folder


@pytest.fixture
def start(tiny):
    """The tiny model, opened."""
    return model_dir.open_model_dir('tiny', str(tiny.models_dir))


def write(path, text):
    path.write_bytes(text.encode('utf-8'))
    return path


@pytest.fixture
def book(tmp_path):
    """A file with a text to train on."""
    return write(tmp_path / 'book.txt', BOOK)


def train_here(models, text, output='mine', **changes):
    """Train the tiny model in this process, by default in six short steps."""
    changes = dict(dict(steps=6, seq_len=8, accumulation=2, dropout=0.1, val_every=2, seed=3,
                        learning_rate=0.01, sample_length=0), **changes)

    def options(option_class, **fields):
        names = {field.name for field in dataclasses.fields(option_class)}
        return option_class(**fields, **{name: changes.pop(name) for name in names & set(changes)})

    run.train(model_dir.ModelOptions('tiny', str(models)), options(TrainingOptions),
              options(ComputeOptions), options(RunOptions, data=str(text), output=output))
    assert not changes


Unbroken = collections.namedtuple('Unbroken', 'models text path stdout')


@pytest.fixture(scope='module')
def unbroken(loop, tiny, tmp_path_factory):
    """A run of `train_here` with samples after steps 2, 4 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp('unbroken')
    tiny.copy(folder / 'models' / 'tiny')
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        train_here(folder / 'models', write(folder / 'book.txt', BOOK), 'unbroken',
                   sample_length=12, keep_last=2)
    return Unbroken(folder / 'models', folder / 'book.txt', folder / 'models' / 'unbroken',
                    stdout.getvalue())


@pytest.fixture
def copied(unbroken, models):
    """A copy of the directory of that run: models/mine."""
    shutil.copytree(str(unbroken.path), str(models / 'mine'))
    return models / 'mine'


def equals_unbroken(unbroken, path):
    """Return whether a run ended with the weights, optimizer state and metrics of `unbroken`."""
    return all((unbroken.path / name).read_bytes() == (path / name).read_bytes() for name in
               ('metrics.jsonl', 'training/step-6.data-00000-of-00001',
                'model.ckpt.data-00000-of-00001'))


def read_metrics(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').open()]


def read_samples(path):
    """Return what samples.txt has: a list of (step, text)."""
    _, *parts = re.split('={40} STEP ([0-9]+) ={40}\n',
                         (path / 'samples.txt').read_bytes().decode('utf-8'))
    return [(int(step), text[:-1]) for step, text in zip(parts[::2], parts[1::2])]


def encoded(tiny, text):
    """Return the tokens of a text, with <|endoftext|> before each document."""
    tokens = []
    for document in text.split(END):
        tokens += [256] + tiny.encode(document)
    return tokens


def validation_tokens(tiny, text, held_out):
    """Return the last tokens, for a share of the text's bytes; each but <|endoftext|> is a byte."""
    tokens = encoded(tiny, text)
    n_bytes = len(tokens) - tokens.count(256)
    wanted = int(n_bytes * held_out)
    place = len(tokens)
    while wanted:
        place -= 1
        wanted -= tokens[place] != 256
    while tokens[place - 1] == 256:  # it has no bytes, and goes with what follows
        place -= 1
    return tokens[place:]


def total_loss(weights, hparams, tokens):
    """Return the reference's loss on all tokens but the first: the sum, in nats."""
    logits = reference.forward(weights, hparams, tokens[:-1])
    return -np.sum(np.log(reference.softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]))


def expected_losses(tiny, weights, text, held_out, seq_len):
    """Return the reference's validation loss in nats per token and in bits per byte."""
    tokens = validation_tokens(tiny, text, held_out)
    total = sum(total_loss(weights, tiny.hparams, tokens[i:i + seq_len + 1])
                for i in range(0, len(tokens) - 1, seq_len))
    n_bytes = len(tokens[1:]) - tokens[1:].count(256)
    return total / (len(tokens) - 1), total / n_bytes / np.log(2)


def read_lines(stdout):
    """Parse what training prints: a list of (step, training loss, nats, bits, kept)."""
    assert LINE.sub('', stdout) == ''  # nothing else is printed
    return [(int(step), float(loss), float(nats), float(bits), bool(kept))
            for step, loss, nats, bits, kept in LINE.findall(stdout)]


# ---- what is trained ---------------------------------------------------------------------------


def test_from_scratch_on_a_folder(command, loop, tiny, models, saved, tmp_path):
    """The loss falls, the best weights are kept, and they are sampled from by name."""
    books = tmp_path / 'books'
    books.mkdir()
    write(books / 'b.txt', 'A second book. ' * 25)
    write(books / 'a.txt', BOOK + END + 'A short one.' + END)
    write(books / 'notes.md', 'Not a text. ' * 1000)
    text = END.join([BOOK + END + 'A short one.' + END, 'A second book. ' * 25])

    status, stdout, stderr = command(
        'train.py', books, '--output', 'mine', '--model_name', 'tiny', '--models_dir', models,
        '--scratch', '--steps', 60, '--val_every', 25, '--batch_size', 4, '--seq_len', 16,
        '--learning_rate', 0.02, '--validation_split', 0.3, '--seed', 3, '--sample_length', 0).run()
    assert status == 0
    assert stderr.startswith('3 documents, ') and stderr.count('\n') == 3
    lines = read_lines(stdout)
    assert [step for step, *_ in lines] == [25, 50, 60]
    assert lines[0][1] < np.log(257)  # better than without any knowledge
    assert lines[2][1] < lines[0][1] - 0.5

    kept = [line for line in lines if line[4]]
    best = min(lines, key=lambda line: line[2])
    assert kept[-1] == best and kept[0] == lines[0]
    weights = saved(models / 'mine')
    nats, bits = expected_losses(tiny, weights, text, held_out=0.3, seq_len=16)
    assert best[2] == pytest.approx(nats, abs=2e-4)
    assert best[3] == pytest.approx(bits, abs=3e-4)
    assert 256 in validation_tokens(tiny, text, 0.3) and nats < np.log(257)

    assert sorted(entry.name for entry in (models / 'mine').iterdir()) == TRAINED_FILES
    metrics = read_metrics(models / 'mine')
    assert [line['step'] for line in metrics] == [25, 50, 60]
    assert [line['held_out_loss'] for line in metrics] == pytest.approx(
        [nats for _, _, nats, _, _ in lines], abs=1e-4)
    for name in ['encoder.json', 'vocab.bpe']:
        assert (models / 'mine' / name).read_bytes() == (models / 'tiny' / name).read_bytes()
    assert files.read_json(str(models / 'mine' / 'hparams.json')) == tiny.hparams

    mine = model_dir.open_model_dir('mine', str(models))
    decoder = loop.GraphDecoder.open(mine)
    generation = loop.GenerationOptions(seed=2, length=20).fit_model(32, None)
    *_, (sample,) = loop.batching.generate(decoder, mine.encoder, [(0, [256])], generation,
                                           loop.SamplingOptions(), batch_size=1)
    decoder.close()
    assert [sample.text] == tiny.samples([0], seed=2, length=20, weights=weights, gap=0)


def gradient(tiny, tokens, name, position):
    """Return one entry of the gradient of the mean loss, by differences of the reference's."""
    def loss(change):
        weights = dict(tiny.weights, **{name: tiny.weights[name].astype(np.float64)})
        weights[name][position] += change
        return total_loss(weights, tiny.hparams, tokens) / (len(tokens) - 1)

    return (loss(1e-4) - loss(-1e-4)) / 2e-4


def test_one_step_of_fine_tuning_is_one_step_of_adam(loop, tiny, models, saved, tmp_path, capsys):
    """From the weights of a model, on a text with only one place to take a sequence from."""
    text = 'sixteen letters.held'
    train_here(models, write(tmp_path / 'text', text), steps=1, batch_size=3, seq_len=16,
               held_out=0.2, weight_decay=0, accumulation=1, dropout=0)
    (step, loss, nats, bits, kept), = read_lines(capsys.readouterr().out)
    assert (step, kept) == (1, True)
    tokens = encoded(tiny, text[:16])
    assert loss == pytest.approx(total_loss(tiny.weights, tiny.hparams, tokens) / 16, abs=1e-4)
    after = saved(models / 'mine')
    assert (nats, bits) == pytest.approx(expected_losses(tiny, after, text, 0.2, 16), abs=2e-4)

    # The last step has a tenth of the rate, and Adam's first step is the sign of the gradient.
    random = np.random.RandomState(0)
    steep = 0
    for name, before in tiny.weights.items():
        change = after[name].astype(np.float64) - before
        assert np.abs(change).max() < 0.00101
        for _ in range(4):
            position = tuple(random.randint(size) for size in before.shape)
            slope = gradient(tiny, tokens, name, position)
            if abs(slope) > 1e-3:
                steep += 1
                assert change[position] == pytest.approx(-0.001 * np.sign(slope), rel=0.01), name
    assert steep > 30
    assert np.all(after['model/wpe'][16:] == tiny.weights['model/wpe'][16:])  # not in use
    # The model that it started from is unchanged.
    assert all(np.array_equal(weight, tiny.weights[name])
               for name, weight in saved(models / 'tiny').items())


def test_worse_weights_are_not_kept(loop, tiny, models, saved, capsys, tmp_path):
    """The more it learns of the first nine tenths, the less it expects the last."""
    text = 'a' * 900 + 'b' * 100
    train_here(models, write(tmp_path / 'text', text), steps=5, learning_rate=0.05, val_every=1,
               accumulation=1, dropout=0)
    lines = read_lines(capsys.readouterr().out)
    losses = [nats for _, _, nats, _, _ in lines]
    assert losses == sorted(losses) and losses[0] < losses[4] - 1
    assert [kept for *_, kept in lines] == [True] + [False] * 4
    nats, _ = expected_losses(tiny, saved(models / 'mine'), text, held_out=0.1, seq_len=8)
    assert losses[0] == pytest.approx(nats, abs=2e-4)


def random_weights(tf, loop, start, seed):
    """Return the weights of an untrained model."""
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(seed)
        build(loop, start)
        loop.initialize(session, start, scratch=True)
        return session.run({weight.op.name: weight for weight in loop.checkpoint.model_weights()})


def test_random_weights(tf, loop, tiny, models, start, book, saved, capsys):
    """As in the paper: N(0, 0.02), less where a block adds to the residual stream."""
    train_here(models, book, scratch=True, steps=1, batch_size=1, learning_rate=1e-30, seed=7)
    weights = saved(models / 'mine')
    again, other = random_weights(tf, loop, start, 7), random_weights(tf, loop, start, 8)
    (_, loss, _, _, _), *_ = read_lines(capsys.readouterr().out)
    assert loss == pytest.approx(np.log(257), abs=0.1)  # without any knowledge
    assert {name: list(weight.shape) for name, weight in weights.items()} == reference.shapes(
        tiny.hparams)
    for name, weight in weights.items():
        assert np.allclose(weight, again[name], rtol=0, atol=1e-20), name
        if name.endswith(('/g', '/b')):
            assert np.allclose(weight, 1 if name.endswith('/g') else 0, atol=1e-20), name
            continue
        deviation = 0.01 if name == 'model/wpe' else 0.02
        if name.endswith('c_proj/w'):
            deviation /= np.sqrt(2 * tiny.hparams['n_layer'])
        # Within six standard errors.
        assert weight.std() == pytest.approx(deviation, rel=6 / np.sqrt(2 * weight.size)), name
        assert abs(weight.mean()) < 6 * deviation / np.sqrt(weight.size), name
        assert np.abs(weight).max() > 2.5 * deviation  # normal, not uniform or truncated at two
        assert not np.array_equal(weight, other[name])


# ---- what is reported and saved ----------------------------------------------------------------


def saved_state(tf, prefix):
    """Return the weights of the model among all variables of a training."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
            if name.startswith('model/')}


def test_a_sample_follows_each_validation(tf, tiny, unbroken):
    for step in (4, 6):
        weights = saved_state(tf, unbroken.path / 'training' / f'step-{step}')
        text, = tiny.samples([step], seed=3, length=12, weights=weights, top_k=40, gap=0)
        assert '=' * 40 + f' STEP {step} ' + '=' * 40 + '\n' + text + '\n' in unbroken.stdout
    assert unbroken.stdout.count(' STEP ') == 3
    assert (unbroken.path / 'samples.txt').read_bytes().decode('utf-8') == LINE.sub(
        '', unbroken.stdout)


def test_the_last_states_are_kept(tf, unbroken):
    folder = unbroken.path / 'training'
    assert sorted(path.name for path in folder.glob('step-*.index')) == [
        'step-4.index', 'step-6.index']
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / 'step-6')


def test_tensorboard_reads_the_losses(tf, unbroken):
    events, = (unbroken.path / 'training').glob('events.*')
    scalars = {(value.tag, event.step): value.simple_value
               for event in tf.train.summary_iterator(str(events)) for value in event.summary.value}
    metrics = read_metrics(unbroken.path)
    for line in metrics:
        for name in ('held_out_loss', 'bits_per_byte'):
            assert scalars[name, line['step']] == pytest.approx(line[name], rel=1e-6)
    for first, line in zip((1, 3, 5), metrics):
        assert np.mean([scalars['loss', step] for step in range(first, first + 2)]
                       ) == pytest.approx(line['training_loss'], rel=1e-6)
    assert {step for name, step in scalars if name == 'learning_rate'} == set(range(1, 7))


def test_tensorboard_shows_the_samples(tf, unbroken):
    """In Markdown, where lines that are indented by four spaces stay as they are."""
    events, = (unbroken.path / 'training').glob('events.*')
    found = [(event.step, value) for event in tf.train.summary_iterator(str(events))
             for value in event.summary.value if value.tag == 'sample']
    assert found[0][1].metadata.plugin_data.plugin_name == 'text'  # of all, said once
    texts = [(step, tf.make_ndarray(value.tensor).item().decode('utf-8')) for step, value in found]
    assert texts == [(step, '\n'.join('    ' + line for line in text.split('\n')))
                     for step, text in read_samples(unbroken.path)]


def text_losses(tiny, weights, text, seq_len):
    """Return the reference's loss of a text in nats per token and in bits per byte."""
    tokens = encoded(tiny, text)
    total = sum(total_loss(weights, tiny.hparams, tokens[i:i + seq_len + 1])
                for i in range(0, len(tokens) - 1, seq_len))
    return total / (len(tokens) - 1), total / len(text.replace(END, '')) / np.log(2)


def test_training_with_a_validation_text_and_what_is_said_on_stderr(call, tiny, models, saved,
                                                                    tmp_path):
    """The command that is printed at the end opens the model."""
    text, validation = 'Sixteen letters.' + END + 'Four', 'Another text.' + END + 'It is read.'
    paths = write(tmp_path / 'text', text), write(tmp_path / 'validation', validation)
    flags = [paths[0], '--validation', paths[1], '--output', 'my model', '--output_dir',
             tmp_path / 'new models', '--model_name', 'tiny', '--models_dir', models,
             '--batch_size', 2, '--seq_len', 4, '--sample_length', 0, '--steps', 1]
    status, stdout, stderr = call(train.train, train.OPTIONS, *flags)
    assert status == 0
    first, second, last = stderr.splitlines()
    assert first == ('4 documents, 22 tokens to train on and 26 for validation; an epoch takes 2.8 '
                     'steps')
    before, perplexity = map(float, re.fullmatch(
        r'before the first step: validation loss ([\d.]+) nats per token, perplexity ([\d.]+)',
        second).groups())
    expected, _ = text_losses(tiny, tiny.weights, validation, seq_len=4)
    assert before == pytest.approx(expected, abs=2e-4)
    assert perplexity == pytest.approx(np.exp(expected), rel=1e-3)
    path, command = re.fullmatch('the model is (.*); sample from it with: (.*)', last).groups()
    assert path == str(tmp_path / 'new models' / 'my model')
    assert [entry.name for entry in models.iterdir()] == ['tiny']  # which may be read-only
    words = shlex.split(command)
    assert words[:2] == ['python3', 'src/generate_unconditional_samples.py']
    given = dict(word[2:].split('=') for word in words if '=' in word)
    assert model_dir.open_model_dir(**given).path == path

    (_, _, nats, bits, _), = read_lines(stdout)
    weights = saved(tmp_path / 'new models' / 'my model')
    assert (nats, bits) == pytest.approx(text_losses(tiny, weights, validation, 4), abs=3e-4)
    write(paths[1], validation + '.')
    status, _, stderr = call(train.train, train.OPTIONS, *flags, '--resume')
    assert status == 1 and stderr.endswith('now there is another validation text\n')


def test_from_a_text_to_a_vocabulary_to_a_model(loop, models, book, saved, capsys):
    """Of sizes that flags give."""
    vocabulary.learn(VocabularyOptions(data=str(book), output='words', size=270,
                                       models_dir=str(models)))
    run.train(model_dir.ModelOptions('words', str(models)),
              TrainingOptions(scratch=True, n_layer=1, n_head=3, n_embd=12, n_ctx=9, steps=1),
              ComputeOptions(), RunOptions(data=str(book), output='mine', sample_length=0))
    mine = model_dir.open_model_dir('mine', str(models))
    assert vars(mine.hparams) == {'n_vocab': 270, 'n_layer': 1, 'n_head': 3, 'n_embd': 12,
                                  'n_ctx': 9}
    assert {name: list(weight.shape) for name, weight in saved(models / 'mine').items()
            } == reference.shapes(vars(mine.hparams))
    assert mine.encoder.decode(mine.encoder.encode(BOOK)) == BOOK
    assert len(mine.encoder.encode(BOOK)) < 0.7 * len(BOOK.encode('utf-8'))
    assert len(read_lines(capsys.readouterr().out)) == 1


def test_recorded_settings_keep_their_names_and_values(unbroken):
    """Runs of earlier versions are resumed by them."""
    progress = files.read_json(str(unbroken.path / 'training' / 'progress.json'))
    assert progress == {
        'step': 6, 'best': min(line['held_out_loss'] for line in read_metrics(unbroken.path)),
        'settings': {
            'model_name': 'tiny', 'scratch': False, 'n_layer': None, 'n_head': None,
            'n_embd': None, 'n_ctx': None, 'steps': 6, 'batch_size': 4, 'accumulation': 2,
            'seq_len': 8, 'optimizer': 'adamw', 'learning_rate': 0.01, 'schedule': 'cosine',
            'warmup': 0, 'validation': None,
            'weight_decay': 0.01, 'clip_norm': 1.0, 'dropout': 0.1, 'train_only': 'all',
            'dtype': 'float32', 'held_out': 0.1, 'val_every': 2, 'seed': 3,
            'text': data.open_dataset(str(unbroken.text), model_dir.open_model_dir(
                'tiny', str(unbroken.models)))[1]}}


# ---- the graph ---------------------------------------------------------------------------------


def build(loop, start, compute=None, devices=('',), **options):
    """Build the training graph of a model in the current graph."""
    return loop.build_graph(start.hparams, TrainingOptions(**options), compute or ComputeOptions(),
                            devices)


def our_losses(tf, loop, start, batches, compute=None, devices=('',), config=None, **options):
    """Return the losses of our steps on these batches."""
    with tf.Graph().as_default(), tf.Session(config=config) as session:
        graph = build(loop, start, compute, devices, **options)
        loop.initialize(session, start, scratch=False)
        options = TrainingOptions(**options).fit_model(start.hparams)
        n = options.accumulation
        return [loop.run_step(session, graph,
                              [(batch, i) for batch in batches[i * n:i * n + n]],
                              options.learning_rate * loop.schedule(i + 1, options))
                for i in range(len(batches) // n)]


def random_batches(tiny, n):
    tokens = np.array(tiny.encode(BOOK), np.uint16)
    options = TrainingOptions(seq_len=16, batch_size=2, seed=5)
    return [data.random_batch(tokens, options, i) for i in range(n)]


def torch_optimizer(torch, parameters, options):
    """Return torch's optimizer with a decay for matrices alone; its rates are relative to ours.

    torch's Adafactor multiplies the rate by the size of the weights, but at least by epsilon_2; so
    with a large epsilon_2 the rate does not depend on the weights. It also limits the rate by
    1 / sqrt(t), and puts epsilon_1 elsewhere, which is too small to matter.
    """
    scale = 1000 if options.optimizer == 'adafactor' else 1
    groups = [{'params': [p for p in parameters if p.dim() == 2],
               'weight_decay': options.weight_decay * scale},
              {'params': [p for p in parameters if p.dim() == 1], 'weight_decay': 0.0}]
    if options.optimizer == 'adamw':
        return torch.optim.AdamW(groups), scale
    return torch.optim.Adafactor(groups, eps=(1e-18, scale)), scale


def torch_losses(loop, folder, batches, options):
    """Return the losses of a torch loop over transformers' GPT-2 on these batches."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    torch.set_num_threads(1)  # its threads wait in a busy loop
    hparams = json.loads((folder / 'hparams.json').read_text())
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams['n_vocab'], n_positions=hparams['n_ctx'], n_embd=hparams['n_embd'],
        n_head=hparams['n_head'], n_layer=hparams['n_layer'], resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0)).train()
    weights = reference.random_weights(hparams, seed=0)
    parameters = dict(net.named_parameters())
    for name, value in weights.items():
        *scopes, last = re.sub(r'/h([0-9]+)/', r'/h/\1/', name).split('/')[1:]
        last = {'g': 'weight', 'w': 'weight', 'b': 'bias'}.get(last, last + '.weight')
        parameter = parameters['.'.join(['transformer', *scopes, last])]
        parameter.data = torch.from_numpy(value.copy()).reshape(parameter.shape)
    optimizer, scale = torch_optimizer(torch, list(parameters.values()), options)
    losses, accumulation = [], options.accumulation
    for i in range(0, len(batches), accumulation):
        rate = options.learning_rate * loop.schedule(i // accumulation + 1, options)
        for group in optimizer.param_groups:
            group['lr'] = rate / scale
        optimizer.zero_grad()
        parts = []
        for batch in batches[i:i + accumulation]:
            inputs = torch.from_numpy(batch.astype('int64'))
            logits = net(inputs[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten())
            (loss / accumulation).backward()
            parts.append(loss.item())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(np.mean(parts))
    return losses


LARGER = {'n_vocab': 257, 'n_ctx': 64, 'n_embd': 128, 'n_head': 4, 'n_layer': 3}


@pytest.mark.parametrize('recompute', [False, True], ids=['', 'recompute'])
@pytest.mark.parametrize('accumulation', [1, 4])
@pytest.mark.parametrize('shape, rate', [
    (None, 0.01), pytest.param(LARGER, 0.001, marks=only_long)], ids=['tiny', 'larger'])
def test_twenty_steps_have_the_losses_of_torch(tf, loop, tiny, models, shape, rate, accumulation,
                                               recompute):
    pytest.importorskip('torch')
    if shape:
        reference.write_checkpoint(models / 'tiny', shape, reference.random_weights(shape, seed=0))
    options = dict(steps=20, learning_rate=rate, weight_decay=0.1, accumulation=accumulation)
    batches = random_batches(tiny, 20 * accumulation)
    start = model_dir.open_model_dir('tiny', str(models))
    losses = our_losses(tf, loop, start, batches, ComputeOptions(recompute=recompute), **options)
    assert losses == pytest.approx(torch_losses(
        loop, models / 'tiny', batches, TrainingOptions(**options).fit_model(start.hparams)),
        rel=1e-4)
    assert losses[-1] < losses[0] - 0.5


def test_twenty_steps_of_adafactor_have_the_losses_of_torch(tf, loop, tiny, start):
    """Less exactly: torch's in float32 and in float64 differ by 1.6e-4, too.

    Gradients that are zero but for rounding, as those of a key's bias, make steps of full size.
    """
    options = dict(steps=20, learning_rate=0.01, weight_decay=0.1, optimizer='adafactor')
    batches = random_batches(tiny, 20)
    losses = our_losses(tf, loop, start, batches, **options)
    assert losses == pytest.approx(torch_losses(
        loop, tiny.path, batches, TrainingOptions(**options).fit_model(start.hparams)), rel=5e-4)
    assert losses[-1] < losses[0] - 0.5


def adafactor_in_float64(weight, gradients, rate, decay):
    """Return a weight after steps of Adafactor (Shazeer and Stern 2018, algorithms 4 and 5)."""
    weight, rows, columns, moments = np.array(weight, np.float64), 0, 0, 0
    for t, gradient in enumerate(np.array(gradients, np.float64), start=1):
        beta, square = 1 - t ** -0.8, gradient ** 2 + 1e-30
        if weight.ndim == 1:
            moments = beta * moments + (1 - beta) * square
        else:  # R and C are sums of rows and of columns, and V = R C / sum(R)
            rows = beta * rows + (1 - beta) * square.sum(-1)
            columns = beta * columns + (1 - beta) * square.sum(-2)
            moments = rows[..., :, None] * columns[..., None, :] / rows.sum()
            weight = weight * (1 - rate * decay)
        update = gradient / np.sqrt(moments)
        weight = weight - rate * update / max(1, np.sqrt(np.mean(update ** 2)))
    return weight


def test_adafactor_in_float64(tf):
    """Also where gradients grow and shrink a lot, or are zero."""
    from gpt2.training import optimizer
    shapes = {'model/h0/mlp/c_fc/w': [1, 4, 6], 'model/wte': [7, 3], 'model/h0/mlp/c_fc/b': [6]}
    random = np.random.RandomState(0)
    before = {name: random.normal(size=shape) for name, shape in shapes.items()}
    scales = 10.0 ** random.randint(-6, 4, size=5)
    gradients = {name: random.normal(size=[5] + shape) * scales.reshape([5] + [1] * len(shape))
                 for name, shape in shapes.items()}
    gradients['model/wte'][:, 2] = 0
    with tf.Graph().as_default(), tf.Session() as session:
        weights = [tf.get_variable(name, shape, use_resource=True)
                   for name, shape in shapes.items()]
        feeds = [tf.placeholder(tf.float32, shape) for shape in shapes.values()]
        step = optimizer.adafactor([tf.identity(feed) for feed in feeds], weights, 0.01, 0.1)
        session.run(tf.global_variables_initializer())
        for weight in weights:
            weight.load(before[weight.op.name], session)
        for i in range(5):
            session.run(step, {feed: gradients[name][i] for feed, name in zip(feeds, shapes)})
        after = {weight.op.name: session.run(weight) for weight in weights}
        slots = {slot.op.name: slot.shape.num_elements() for slot in tf.global_variables()
                 if slot.op.name.startswith('optimizer/model/')}
    for name in shapes:
        expected = adafactor_in_float64(before[name], gradients[name], rate=0.01, decay=0.1)
        assert after[name] == pytest.approx(expected, abs=1e-6), name
    assert sum(slots.values()) == 4 + 6 + 7 + 3 + 6


@pytest.mark.parametrize('rate', [pytest.param(0, marks=only_long), 0.2])
def test_gradient_checkpointing_gives_the_same_losses(tf, loop, tiny, start, rate):
    """With dropout, the same activations are dropped the second time."""
    batches = random_batches(tiny, 10)
    plain, checkpointed = [
        our_losses(tf, loop, start, batches, ComputeOptions(recompute=recompute), steps=10,
                   learning_rate=0.01, dropout=rate) for recompute in (False, True)]
    assert checkpointed == pytest.approx(plain, rel=1e-5)
    assert plain[-1] < plain[0]


@pytest.mark.parametrize('recompute', [False, True])
def test_gradient_checkpointing_computes_blocks_twice(tf, loop, start, recompute):
    """Each block's activation function occurs once for the losses and once for gradients."""
    with tf.Graph().as_default() as graph:
        build(loop, start, ComputeOptions(recompute=recompute))
        n_gelu = sum(operation.type == 'Tanh' for operation in graph.get_operations())
    assert n_gelu == (6 if recompute else 4)  # two blocks, for validation and for training


def test_dropout(tf, loop):
    from gpt2.training.graph import dropout
    with tf.Graph().as_default(), tf.Session() as session:
        seed = tf.placeholder(tf.int32, [])
        drop = dropout(0.3, seed)
        x = tf.ones([100, 200])
        with tf.variable_scope('here'):
            here, again = drop(x), drop(x)
        with tf.variable_scope('there'):
            there = drop(x)
        first, second, third = session.run([here, again, there], {seed: 1})
        other = session.run(here, {seed: 2})
    assert set(np.unique(first)) == {0, np.float32(1 / 0.7)}
    assert np.mean(first == 0) == pytest.approx(0.3, abs=6 * np.sqrt(0.3 * 0.7 / first.size))
    assert np.array_equal(first, second)
    for different in (third, other):  # as often equal as independent ones are
        assert np.mean((different == 0) == (first == 0)) == pytest.approx(0.58, abs=0.02)


def test_dropout_acts_only_on_training(tf, loop, tiny, start):
    """The loss of a step changes with the dropout seed; the validation loss does not."""
    batch, = random_batches(tiny, 1)
    with tf.Graph().as_default(), tf.Session() as session:
        graph = build(loop, start, dropout=0.5)
        loop.initialize(session, start, scratch=False)
        nodes = [graph.mean_loss, graph.total_loss]
        (first, total), (second, again) = [
            session.run(nodes, {graph.tokens: batch, graph.dropout_seed: seed}) for seed in (1, 2)]
    expected = sum(total_loss(tiny.weights, tiny.hparams, row) for row in batch.tolist())
    assert total == again == pytest.approx(expected, rel=1e-5)
    assert first != second and abs(first - expected / 32) > 1e-3


@pytest.mark.parametrize('which, scope', [
    ('all', 'model/'), ('blocks', 'model/h'), ('1', 'model/h1/'), ('2', 'model/h')])
def test_the_weights_to_train(tf, loop, tiny, start, which, scope):
    from gpt2.training import graph
    with tf.Graph().as_default():
        graph.model.model(start.hparams, tf.zeros([1, 1], tf.int32))
        weights = graph.weights_to_train(start.hparams, which)
    assert {weight.op.name for weight in weights} == {
        name for name in tiny.weights if name.startswith(scope)}


def test_only_the_weights_to_train_change(tf, loop, tiny, start):
    tokens = np.append(np.arange(32) * 8, 256)[np.newaxis]  # every position is in use
    with tf.Graph().as_default(), tf.Session() as session:
        graph = build(loop, start, train_only='1')
        loop.initialize(session, start, scratch=False)
        loop.run_step(session, graph, [(tokens, 0)], 0.001)
        weights = {weight.op.name: weight for weight in loop.checkpoint.model_weights()}
        for name, weight in session.run(weights).items():
            changed = not np.array_equal(weight, tiny.weights[name])
            assert changed == name.startswith('model/h1/'), name


@only_long
def test_two_devices_learn_what_one_does(tf, loop, tiny, start):
    options = dict(steps=10, learning_rate=0.01, accumulation=2)
    batches = random_batches(tiny, 20)
    one = our_losses(tf, loop, start, batches, **options)
    two = our_losses(tf, loop, start, batches, devices=['/cpu:0', '/cpu:1'],
                     config=tf.ConfigProto(device_count={'CPU': 2}), **options)
    assert two == pytest.approx(one, rel=1e-5)


@only_long
def test_devices_by_option(tf, tiny, models, book, monkeypatch, capsys):
    """On a machine without GPUs, parts of its processor."""
    monkeypatch.setattr(tf.config.experimental, 'list_physical_devices', lambda kind: [])
    train_here(models, book, steps=1, devices=2, accumulation=1, dropout=0)
    (_, loss, _, _, _), = read_lines(capsys.readouterr().out)
    tokens = np.array(encoded(tiny, BOOK))[:-len(validation_tokens(tiny, BOOK, 0.1))]
    batch = data.random_batch(tokens, TrainingOptions(seq_len=8, seed=3), 0)
    expected = sum(total_loss(tiny.weights, tiny.hparams, row) for row in batch.tolist()) / 32
    assert loss == pytest.approx(expected, abs=2e-4)


@only_long
@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 does not compile')
def test_a_compiled_step_learns_the_same(tf, loop, tiny, start):
    batches = random_batches(tiny, 20)
    plain, compiled = [
        our_losses(tf, loop, start, batches, ComputeOptions(recompute=True, xla=xla), steps=20,
                   learning_rate=0.01) for xla in (False, True)]
    assert compiled == pytest.approx(plain, rel=1e-4)


@only_long
@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has no products in bfloat16')
def test_matrix_products_in_bfloat16(tf, loop, tiny, start):
    """Losses are near, not equal: the products have 8 bits, the weights keep 24."""
    batches = random_batches(tiny, 20)
    exact, rounded = [our_losses(tf, loop, start, batches, steps=20, learning_rate=0.01,
                                 dtype=dtype) for dtype in ('float32', 'bfloat16')]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert np.abs(np.subtract(rounded, exact)).max() > 1e-5
    with tf.Graph().as_default() as graph:
        build(loop, start, dtype='bfloat16')
        products = [operation for operation in graph.get_operations()
                    if operation.type == 'MatMul' and not operation.name.startswith('model/')]
        assert sum(product.inputs[0].dtype == tf.bfloat16 for product in products) >= 3 * 9
        assert {weight.dtype.base_dtype for weight in tf.global_variables()} == {
            tf.float32, tf.float64}


@pytest.mark.parametrize('options, compute, words', [
    ({}, {'devices': 2}, 'GPU --devices'), ({'dtype': 'bfloat16'}, {}, '--dtype bfloat16'),
    ({}, {'xla': True}, '--xla TensorFlow')])
def test_what_the_machine_cannot_do_is_refused(tf, loop, monkeypatch, options, compute, words):
    from gpt2.training import devices
    gpus = ['one'] if 'devices' in compute else []
    monkeypatch.setattr(tf.config.experimental, 'list_physical_devices', lambda kind: gpus)
    monkeypatch.setattr(devices, 'has_bfloat16', lambda gpus: False)
    monkeypatch.setattr(tf, '__version__', '1.15.5' if 'xla' in compute else '2.21.0')
    with pytest.raises(UserError) as error:
        devices.choose_devices(TrainingOptions(**options), ComputeOptions(**compute))
    assert all(word in str(error.value) for word in words.split())


def test_the_learning_rate_rises_and_falls(loop):
    def rates(**options):
        options = TrainingOptions(seq_len=2, **options).fit_model(types.SimpleNamespace(n_ctx=2))
        return [loop.schedule(step, options) for step in range(1, options.steps + 1)]
    relative = rates(steps=1000)
    assert relative[0] == pytest.approx(0.02)
    assert relative.index(max(relative)) + 1 == pytest.approx(50, abs=1)
    assert max(relative) == pytest.approx(1) and relative[-1] == pytest.approx(0.1)
    assert relative[524] == pytest.approx(0.55, abs=1e-3)  # half-way along the cosine
    assert relative[:49] == sorted(relative[:49])
    assert relative[50:] == sorted(relative[50:], reverse=True)
    relative = rates(steps=1000, warmup=10, schedule='constant')
    assert relative[4] == pytest.approx(0.5) and set(relative[9:]) == {1}
    assert rates(steps=1000, warmup=0)[0] == pytest.approx(1, abs=1e-5)


# ---- interrupted, killed, resumed --------------------------------------------------------------


@only_long
def test_ctrl_c_keeps_what_was_learned(command, call, tiny, models, saved, book):
    """Meanwhile no other process can train the same model."""
    flags = [book, '--output', 'mine', '--model_name', 'tiny', '--models_dir', models,
             '--steps', 1000000, '--val_every', 1000000, '--seq_len', 16, '--sample_length', 0]
    screen = command('train.py', *flags).spawn()
    screen.expect(r'step [2-9]\d* of 1000000')  # the progress bar
    for resuming in ([], ['--resume']):
        status, _, stderr = call(train.train, train.OPTIONS, *flags, *resuming)
        assert status == 1 and 'another process' in stderr and stderr.count('\n') == 1
    screen.sendintr()
    screen.expect(LINE.pattern)
    step, _, nats, _, kept = screen.match.groups()
    rest = screen.read()
    screen.close()
    assert screen.exitstatus == 130
    assert 'Traceback' not in rest and not LINE.search(rest)
    assert int(step) >= 2 and kept
    expected, _ = expected_losses(tiny, saved(models / 'mine'), BOOK, held_out=0.1, seq_len=16)
    assert float(nats) == pytest.approx(expected, abs=2e-4)
    assert sorted(entry.name for entry in (models / 'mine').iterdir()) == TRAINED_FILES


def test_after_ctrl_c_training_resumes_exactly(loop, models, unbroken, book, monkeypatch, capsys):
    """The signal comes while TensorFlow computes, and is answered when the step is done."""
    run_step, calls = loop.run_step, []

    def interrupted(*arguments):
        calls.append(run_step(*arguments))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, 'run_step', interrupted)
        train_here(models, book)
    assert len(calls) == 3
    assert [line['step'] for line in read_metrics(models / 'mine')] == [2, 3]
    train_here(models, book, resume=True)
    name = 'training/step-6.data-00000-of-00001'
    assert (unbroken.path / name).read_bytes() == (models / 'mine' / name).read_bytes()


def test_the_second_ctrl_c_is_answered_at_once(loop, models, book, monkeypatch):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError('the step was completed')

    monkeypatch.setattr(loop, 'run_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_here(models, book)
    assert not (models / 'mine' / 'metrics.jsonl').exists()


@pytest.mark.parametrize('function', ['initialize', 'run_step', 'evaluate'])
def test_too_little_memory_is_reported(tf, loop, models, book, monkeypatch, function):
    def cannot(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
    monkeypatch.setattr(loop, function, cannot)
    with pytest.raises(UserError, match='memory is too small'):
        train_here(models, book)


def test_a_refused_training_can_be_corrected(loop, models, book, saved, monkeypatch):
    def cannot(*arguments):
        raise UserError('not here')
    with monkeypatch.context() as patch, pytest.raises(UserError, match='not here'):
        patch.setattr(loop, 'choose_devices', cannot)
        train_here(models, book)
    train_here(models, book, steps=1)
    assert saved(models / 'mine')


def test_weights_that_are_not_finite_are_named(loop, tiny, models, book):
    """It is not the learning rate's fault."""
    weights = dict(tiny.weights)
    weights['model/h1/mlp/c_fc/b'] = weights['model/h1/mlp/c_fc/b'] * np.float32(np.nan)
    reference.write_checkpoint(models / 'tiny', tiny.hparams, weights)
    with pytest.raises(UserError, match='model/h1/mlp/c_fc/b has values that are no finite'):
        train_here(models, book)


@pytest.mark.parametrize('name', ['training/lock', 'metrics.jsonl'])
@pytest.mark.parametrize('kind', ['fifo', 'link'])
def test_a_planted_pipe_or_link_is_refused(models, book, copied, name, kind):
    path = copied / name
    path.unlink()
    if kind == 'fifo':
        os.mkfifo(str(path))
    else:
        path.symlink_to('target')
    with pytest.raises(UserError, match=os.path.basename(name)):
        train_here(models, book, resume=True)
    assert not (path.parent / 'target').exists()


def test_a_model_that_is_locked_is_not_trained(models, book, copied):
    with open(str(copied / 'training' / 'lock'), 'w') as file:
        assert files.lock(file)
        with pytest.raises(UserError, match='another process'):
            train_here(models, book, resume=True)
    with pytest.raises(UserError, match='other settings'):  # it is not locked any more
        train_here(models, book, resume=True, seed=7)


def test_a_model_without_its_training_is_not_resumed(models, book, copied):
    before = contents(copied / 'training')
    shutil.move(str(copied / 'training'), str(copied / 'elsewhere'))
    metrics = (copied / 'metrics.jsonl').read_bytes()
    with pytest.raises(UserError, match='no training/'):
        train_here(models, book, resume=True)
    assert (copied / 'metrics.jsonl').read_bytes() == metrics
    shutil.move(str(copied / 'elsewhere'), str(copied / 'training'))
    (copied / 'training' / 'step-6.index').unlink()
    with pytest.raises(UserError, match='step-6.* cannot be read'):
        train_here(models, book, resume=True)
    (copied / 'training' / 'step-6.index').write_bytes(before['step-6.index'])
    for name, damage in [('training/progress.json', '{"step": 6}'), ('training/progress.json', '['),
                         ('metrics.jsonl', '{"loss": 3}\n')]:
        before = (copied / name).read_bytes()
        (copied / name).write_text(damage)
        with pytest.raises(UserError, match=f'{name} cannot be read'):
            train_here(models, book, resume=True)
        (copied / name).write_bytes(before)


def test_other_settings_are_not_resumed(models, book, copied, tmp_path):
    with pytest.raises(UserError) as error:
        train_here(models, book, resume=True, batch_size=3)
    assert '--batch_size 3 (it was 4)' in str(error.value) and '--seed' not in str(error.value)
    with pytest.raises(UserError, match='another text$'):
        train_here(models, write(tmp_path / 'other', BOOK * 2), resume=True)
    train_here(models, book, resume=True, recompute=True)  # decides nothing that is learned


def test_a_finished_run_goes_on_to_more_steps(tf, loop, models, book, copied, unbroken, capsys):
    """On the learning rates of a run of so many steps."""
    best = min(line['held_out_loss'] for line in read_metrics(copied))
    train_here(models, book, resume=True, steps=8)
    assert capsys.readouterr().err.splitlines()[1] == (
        f'resuming after step 6 of 8; the lowest validation loss is {best:.4f} nats per token')
    assert [line['step'] for line in read_metrics(copied)] == [2, 4, 6, 8]
    assert read_samples(copied) == read_samples(unbroken.path)
    rates = {event.step: value.simple_value
             for path in (copied / 'training').glob('events.*')
             for event in tf.train.summary_iterator(str(path)) for value in event.summary.value
             if value.tag == 'learning_rate'}
    options = TrainingOptions(steps=8, warmup=0, learning_rate=0.01)
    assert [rates[step] for step in (7, 8)] == pytest.approx(
        [0.01 * loop.schedule(step, options) for step in (7, 8)])
    for steps in (5, 7):
        with pytest.raises(UserError, match='has done 8 steps already; give at least --steps 8$'):
            train_here(models, book, resume=True, steps=steps)


@only_long
def test_with_a_constant_rate_more_steps_are_those_of_a_longer_run(loop, models, book):
    flags = dict(schedule='constant', warmup=0)
    train_here(models, book, 'whole', **flags)
    train_here(models, book, 'parts', steps=4, **flags)
    train_here(models, book, 'parts', steps=6, resume=True, **flags)
    for name in ('metrics.jsonl', 'training/step-6.data-00000-of-00001'):
        assert (models / 'whole' / name).read_bytes() == (models / 'parts' / name).read_bytes()


def test_an_unfinished_run_keeps_its_steps(models, book, copied):
    """A --steps that was forgotten would change the learning rates."""
    path = copied / 'training' / 'progress.json'
    progress = json.loads(path.read_text())
    path.write_text(json.dumps(dict(progress, step=4)))
    with pytest.raises(UserError, match=r'--steps 8 \(it was 6\)'):
        train_here(models, book, resume=True, steps=8)
    with pytest.raises(UserError, match='has done 4 steps already'):
        train_here(models, book, resume=True, steps=3)


def test_a_run_recorded_before_there_was_a_choice_is_resumed(copied):
    path = copied / 'training' / 'progress.json'
    progress = json.loads(path.read_text())
    now = dict(progress['settings'])
    for name in ('optimizer', 'validation', 'n_layer', 'n_head', 'n_embd', 'n_ctx'):
        del progress['settings'][name]
    path.write_text(json.dumps(progress))
    assert resume.Output(str(copied), now, 1).read_progress() == (6, progress['best'])
    now['optimizer'] = 'adafactor'
    with pytest.raises(UserError, match=r'now there is --optimizer adafactor \(it was adamw\)$'):
        resume.Output(str(copied), now, 1).read_progress()


def test_where_nothing_is_to_resume(refused_here, book):
    status, message = refused_here(book, '--output', 'mine', '--model_name', 'tiny', '--resume')
    assert status == 1 and 'no training to resume' in message and '--output' in message


@only_long
def test_a_full_disk_is_reported_and_training_resumes(command, loop, models, book, small_disk,
                                                      unbroken):
    """What was written before stays; with room, it ends as if nothing had happened."""
    small = small_disk(480)
    shutil.copytree(str(models / 'tiny'), str(small / 'tiny'))
    status, _, stderr = command(
        'train.py', book, '--output', 'mine', '--model_name', 'tiny', '--models_dir', small,
        '--steps', 6, '--seq_len', 8, '--accumulation', 2, '--dropout', 0.1, '--val_every', 2,
        '--seed', 3, '--learning_rate', 0.01, '--sample_length', 0, '--keep_last', 9).run()
    assert status == 1 and stderr.count('\n') == 3
    error = stderr.splitlines()[-1]
    assert str(small / 'mine') in error and '--resume' in error
    assert 'No space left on device' in error
    shutil.copytree(str(small / 'mine'), str(models / 'mine'))
    train_here(models, book, resume=True)
    assert equals_unbroken(unbroken, models / 'mine')


@only_long
def test_a_killed_training_resumes_exactly(command, loop, models, book, capsys):
    """Killed at random moments, it ends with the weights and the metrics of an unbroken run."""
    n_kills = 4
    flags = dict(steps=30 * n_kills, accumulation=2, val_every=4, seq_len=16, dropout=0.1,
                 sample_length=0)
    train_here(models, book, 'whole', learning_rate=1e-4, seed=0, **flags)
    metrics = models / 'broken' / 'metrics.jsonl'

    def start_process(*resuming):
        return command('train.py', book, '--output', 'broken', '--model_name', 'tiny',
                       '--models_dir', models, *resuming,
                       *[f'--{name}={value}' for name, value in flags.items()]).start()

    def n_validated():
        return metrics.read_bytes().count(b'\n') if metrics.exists() else 0

    random = np.random.RandomState(7)
    for kill in range(n_kills):
        process = start_process(*['--resume'] * (kill > 0))
        while n_validated() <= 3 * kill and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it had not ended
    train_here(models, book, 'broken', learning_rate=1e-4, seed=0, resume=True, **flags)
    for name in ['metrics.jsonl', f'training/step-{30 * n_kills}.data-00000-of-00001',
                 'model.ckpt.data-00000-of-00001']:
        assert (models / 'whole' / name).read_bytes() == (models / 'broken' / name).read_bytes()


class Crash(BaseException):
    """The process ends here."""


def simulate_run(output, steps):
    """Write what training writes at validations after these steps; the state is their number."""
    with output.lock(resume=True):
        progress = output.read_progress()
        if progress.step:  # what would be restored is complete
            prefix = output.training_path(f'step-{progress.step}')
            assert [open(prefix + suffix).read() for suffix in ('.index', '.data')
                    ] == [str(progress.step)] * 2
        output.trim(progress.step)

        def save(prefix):
            for suffix in ('.data', '.index'):
                with open(prefix + suffix, 'w') as file:
                    file.write(prefix.rpartition('-')[2])
        for step in steps:
            if step > progress.step:
                output.append_metrics({'step': step, 'loss': 1 / step})
                output.append_sample(step, f'A\rsample\n of {step}.')
                output.write_progress(resume.Progress(step, 1 / step), save)


def crashes_at(n, output, at_each_line):
    """Simulate a run that ends before its n-th line; return whether it has so many lines."""
    def crash(line):
        if line == n:
            raise Crash
    try:
        at_each_line([resume, files], lambda: simulate_run(output, [2, 4]), crash)
    except Crash:
        return True
    return False


@pytest.mark.parametrize('keep_last, kept', [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_states_of_the_last_validations_are_kept(tmp_path, keep_last, kept):
    simulate_run(resume.Output(str(tmp_path), {'steps': 6, 'text': 'abc'}, keep_last), [2, 4, 6])
    assert set(contents(tmp_path / 'training')) == {'progress.json', 'checkpoint', 'lock'} | {
        f'step-{step}{suffix}' for step in kept for suffix in ('.data', '.index')}


@pytest.mark.parametrize('keep_last', [1, pytest.param(2, marks=only_long)])
def test_a_crash_at_any_line_of_what_is_written_loses_nothing(tmp_path, at_each_line, monkeypatch,
                                                              keep_last):
    """After it the run resumes and ends with the same files, also with other steps in between."""
    def output(name):
        return resume.Output(str(tmp_path / str(name)), {'steps': 4, 'text': 'abc'}, keep_last)

    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # slow, and no power cut is tested
    simulate_run(output('whole'), [2, 4])
    expected = {name: content for name, content in contents(tmp_path / 'whole' / 'training').items()
                if not name.startswith('step-2')}  # with two kept, step 3 may take its place
    for n in itertools.count(1):
        crashed = crashes_at(n, output(n), at_each_line)
        if n % 2:
            simulate_run(output(n), [2, 3])  # until a Ctrl-C, for example
        simulate_run(output(n), [2, 4])
        found = contents(tmp_path / str(n) / 'training')
        assert {name: found[name] for name in expected} == expected
        steps = [line['step'] for line in read_metrics(tmp_path / str(n))]
        assert [step for step in steps if step != 3] == [2, 4]
        assert read_samples(tmp_path / str(n)) == [
            (step, f'A\rsample\n of {step}.') for step in steps]
        shutil.rmtree(output(n).path)
        if not crashed:
            break
    assert n > 100


@pytest.mark.parametrize('rest', [
    '====', resume.sample_text(4, 'A second\r\n\nHalf a'), resume.sample_text(12, '')],
    ids=['half a banner', 'half a text', 'later'])
def test_later_samples_and_half_ones_are_dropped(tmp_path, rest):
    output = resume.Output(str(tmp_path), {}, 1)
    output.append_sample(2, '\rA sample.\u2028\r\n\n STEP 9')
    before = (tmp_path / 'samples.txt').read_bytes()
    output.append('samples.txt', rest)
    output.trim(3)
    assert (tmp_path / 'samples.txt').read_bytes() == before


def test_half_a_line_of_metrics_is_dropped(tmp_path):
    output = resume.Output(str(tmp_path), {}, 1)
    write(tmp_path / 'metrics.jsonl', '{"step": 2}\n{"step": 4}\n{"st')
    output.trim(4)
    assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 2}\n{"step": 4}\n'
    assert not (tmp_path / 'samples.txt').exists()


# ---- what is refused ---------------------------------------------------------------------------

BAD_FLAGS = [
    ('--steps 0', '--steps 1'),
    ('--steps 2.5', '--steps 2.5'),
    ('--batch_size 0', '--batch_size'),
    ('--batch_size many', "--batch_size 'many'"),
    ('--seq_len 1', '--seq_len 2'),
    ('--seq_len 33', '--seq_len 32 33'),
    ('--learning_rate 0', '--learning_rate'),
    ('--learning_rate -1e-4', '--learning_rate'),
    ('--learning_rate nan', '--learning_rate nan'),
    ('--learning_rate 1e999', '--learning_rate inf'),
    ('--accumulation 0', '--accumulation'),
    ('--gradient_accumulation_steps 0', '--accumulation'),
    ('--weight_decay -1', '--weight_decay'),
    ('--clip_norm 0', '--clip_norm'),
    ('--max_grad_norm 0', '--clip_norm'),
    ('--held_out 0', '--held_out'),
    ('--held_out 1', '--held_out'),
    ('--held_out a', "--held_out 'a'"),
    ('--validation_split 1', '--held_out'),
    ('--val_every 0', '--val_every'),
    ('--schedule linear', '--schedule cosine linear'),
    ('--warmup -1', '--warmup'),
    ('--warmup_steps -1', '--warmup'),
    ('--dropout 1', '--dropout'),
    ('--dropout -0.1', '--dropout'),
    ('--train_only head', '--train_only blocks head'),
    ('--train_only 0', '--train_only 0'),
    ('--train_only 3', '--train_only 2 3'),
    ('--dtype float16', '--dtype bfloat16 float16'),
    ('--devices 0', '--devices'),
    ('--devices 3', '--batch_size --devices 3 4'),
    ('--sample_length -1', '--sample_length'),
    ('--keep_last 0', '--keep_last'),
    ('--seed -1', '--seed'),
    ('--seed 1.5', '--seed'),
    ('--scratch=yes', '--scratch'),
    ('--gradient_checkpointing=yes', '--recompute'),
    ('--lerning_rate 1', '--lerning_rate --learning_rate'),
    ('--steps', '--steps value'),
    ('--optimizer adam', '--optimizer adamw adafactor'),
    ('--n_layer 3', '--n_layer --scratch'),
    ('--scratch --n_layer 0', '--n_layer 1'),
    ('--scratch --n_embd 15', '--n_embd n_head 2 15'),
    ('--scratch --n_head 3', '--n_embd n_head 3 16'),
    ('--scratch --n_ctx 8 --seq_len 9', '--seq_len 8 9'),
    ('--held_out 0.1 --validation text', '--held_out --validation'),
    ('--output=', '--output'),
    ('--output .', '--output'),
    ('--output ..', '--output'),
    ('--output a/b', '--output a/b'),
]


@pytest.fixture
def refused_here(refuse, models):
    """As `refuse` of train.py with the tiny model; nothing may be left behind."""
    def run(*arguments):
        before = {path.name: contents(path) for path in models.iterdir() if path.is_dir()}
        result = refuse(train.train, train.OPTIONS, *arguments, '--models_dir', models)
        assert {path.name: contents(path) for path in models.iterdir() if path.is_dir()} == before
        return result
    return run


@pytest.mark.parametrize('arguments, words', BAD_FLAGS, ids=[flag for flag, _ in BAD_FLAGS])
def test_bad_flags_are_refused_in_one_line(refused_here, book, arguments, words):
    status, message = refused_here(book, '--output', 'mine', '--model_name', 'tiny',
                                   *arguments.split())
    assert status == 2
    assert all(word in message for word in words.split())


def test_flags_and_texts_are_checked_before_tensorflow_is_imported(refused, models, book):
    """As a process of its own."""
    flags = ['--output', 'mine', '--model_name', 'tiny', '--models_dir', models]
    status, message = refused('train.py', book, *flags, '--steps', 0)
    assert status == 2 and '--steps' in message
    status, message = refused('train.py', book, *flags, '--held_out', 0.001)
    assert status == 1 and 'too short' in message
    assert [entry.name for entry in models.iterdir()] == ['tiny']


@pytest.mark.parametrize('arguments, words', [
    ([], 'DATA is missing'), (['text'], '--output is missing; give the name')], ids=repr)
def test_what_is_missing_is_named(refused_here, arguments, words):
    status, message = refused_here(*arguments, '--model_name', 'tiny')
    assert status == 2 and words in message


def test_defaults_of_the_command_are_those_of_the_options():
    fields = {field.name: field for option_class in train.OPTIONS
              for field in dataclasses.fields(option_class)}
    for name, parameter in inspect.signature(train.train).parameters.items():
        if fields[name].default is not dataclasses.MISSING:
            assert repr(parameter.default) == repr(fields[name].default), name


def test_options_check_themselves(start):
    with pytest.raises(OptionError, match='^steps must be'):
        TrainingOptions(steps=0)
    options = TrainingOptions(steps=100)
    assert (options.warmup, options.seq_len) == (None, None)
    fitted = options.fit_model(start.hparams)
    assert (fitted.warmup, fitted.seq_len) == (5, 32)
    assert TrainingOptions(warmup=0).fit_model(start.hparams).warmup == 0


TEXTS = {
    'missing': (None, ['No such file']),
    'not UTF-8': (BOOK.encode('utf-8') + b'\xff', ['UTF-8', str(len(BOOK.encode('utf-8')))]),
    'UTF-16': (BOOK.encode('utf-16'), ['UTF-8', 'byte 0']),
    'empty': (b'', ['too short']),
    'a letter': (b'x', ['too short']),
    'a letter short': (b'x' * 34, ['too short', '32']),  # 31 of them, and END, to train on
    'separators': (END.encode() * 100, ['too short']),
}


@pytest.mark.parametrize('text', TEXTS)
def test_a_text_that_cannot_be_used(refused_here, tmp_path, text):
    content, words = TEXTS[text]
    if content is not None:
        (tmp_path / 'text').write_bytes(content)
    status, message = refused_here(tmp_path / 'text', '--output', 'mine', '--model_name', 'tiny')
    assert status == 1
    assert all(word in message for word in [str(tmp_path / 'text'), *words])


def test_a_folder_without_texts(refused_here, tmp_path):
    (tmp_path / 'books').mkdir()
    write(tmp_path / 'books' / 'a.md', BOOK)
    status, message = refused_here(tmp_path / 'books', '--output', 'mine', '--model_name', 'tiny')
    assert status == 1
    assert str(tmp_path / 'books') in message and '.txt' in message


def test_a_folder_with_a_bad_text_names_the_text(refused_here, tmp_path):
    (tmp_path / 'books').mkdir()
    write(tmp_path / 'books' / 'a.txt', BOOK)
    (tmp_path / 'books' / 'b.txt').write_bytes(b'ab\xff')
    status, message = refused_here(tmp_path / 'books', '--output', 'mine', '--model_name', 'tiny')
    assert status == 1
    assert str(tmp_path / 'books' / 'b.txt') in message and 'byte 2' in message


def test_a_missing_model_to_start_from(refused_here, book):
    status, message = refused_here(book, '--output', 'mine')
    assert status == 1
    assert message.endswith('python3 download_model.py 124M') and 'tiny' in message


def test_a_model_without_weights_serves_only_from_scratch(refused_here, models, book):
    (models / 'tiny' / 'checkpoint').unlink()
    status, message = refused_here(book, '--output', 'mine', '--model_name', 'tiny')
    assert status == 1 and str(models / 'tiny' / 'checkpoint') in message
    start = model_dir.open_model_dir('tiny', str(models), weights=False)
    assert start.hparams.n_embd == 16


def test_a_model_that_exists_is_not_overwritten(refused_here, models, book):
    status, message = refused_here(book, '--output', 'tiny', '--model_name', 'tiny', '--scratch')
    assert status == 1 and str(models / 'tiny') in message


def test_an_output_that_cannot_be_made(refused_here, models, book):
    write(models / 'file', 'mine')
    status, message = refused_here(book, '--output', 'file', '--model_name', 'tiny')
    assert status == 1 and str(models / 'file') in message
    assert (models / 'file').read_text() == 'mine'


def test_diverging_training_is_reported(loop, models, book):
    with pytest.raises(UserError) as caught:
        train_here(models, book, learning_rate=1e30, steps=50, val_every=100)
    message = str(caught.value)
    assert 'diverged' in message and '--learning_rate' in message and '\n' not in message
    assert not (models / 'mine' / 'checkpoint').exists()
