"""Training as its users meet it: text in, a model directory out, and the numbers told on the way.

The losses and the first step are held to the float64 reference.
"""
import inspect
import json
import os
import re
import shutil
import signal
import time
import types

import numpy as np
import pytest
import tensorflow.compat.v1 as real_tf

import checkpoint
import cli
import generate_unconditional_samples
import reference
import train

OFFICIAL_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001',
                  'model.ckpt.index', 'model.ckpt.meta', 'vocab.bpe']
TRAINED_FILES = sorted(OFFICIAL_FILES + ['metrics.jsonl', 'training'])
END = '<|endoftext|>'
LINE = re.compile(r'step (\d+): training loss ([\d.]+), held-out loss ([\d.]+) nats per token, '
                  r'([\d.]+) bits per byte(, kept)?\r?\n')

BOOK = 'The cat sat on the mät. 猫はマットに座った。\r\n' * 25  # the split may cut no character


@pytest.fixture
def models(tiny, tmp_path):
    """A folder of models that holds the tiny one."""
    folder = tmp_path / 'models'
    shutil.copytree(str(tiny.path), str(folder / 'tiny'))
    return folder


def write(path, text):
    path.write_bytes(text.encode('utf-8'))
    return path


def tokens_of(tiny, text):
    """The tokens of a text, with <|endoftext|> before each document."""
    tokens = []
    for document in text.split(END):
        tokens += [256] + tiny.encode(document)
    return tokens


def held_out_tokens(tiny, text, held_out):
    """The last tokens, which stand for a share of the text's bytes; each but END is a byte."""
    tokens = tokens_of(tiny, text)
    n_bytes = len(tokens) - tokens.count(256)
    wanted = int(n_bytes * held_out)
    place = len(tokens)
    while wanted:
        place -= 1
        wanted -= tokens[place] != 256
    while tokens[place - 1] == 256:  # it counts for nothing, and goes with what follows
        place -= 1
    return tokens[place:]


def total_loss(weights, hparams, tokens):
    """The reference's loss on all tokens but the first, in nats, in all."""
    logits = reference.forward(weights, hparams, tokens[:-1])
    return -np.sum(np.log(reference.softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]))


def expected_losses(tiny, weights, text, held_out, seq_len):
    """The loss on the held-out part in nats per token and in bits per byte, by the reference."""
    tokens = held_out_tokens(tiny, text, held_out)
    total = sum(total_loss(weights, tiny.hparams, tokens[i:i + seq_len + 1])
                for i in range(0, len(tokens) - 1, seq_len))
    n_bytes = len(tokens[1:]) - tokens[1:].count(256)
    return total / (len(tokens) - 1), total / n_bytes / np.log(2)


def read_lines(stdout):
    """Parses what training prints: a list of (step, training loss, nats, bits, kept)."""
    assert LINE.sub('', stdout) == ''  # nothing else is printed
    return [(int(step), float(loss), float(nats), float(bits), bool(kept))
            for step, loss, nats, bits, kept in LINE.findall(stdout)]


# ---- trainings ---------------------------------------------------------------------------------


def test_from_scratch_on_a_folder(command, tf, tiny, models, saved, tmp_path, capsys):
    """The loss falls, the best weights are kept, and the sampling script takes them by name."""
    books = tmp_path / 'books'
    books.mkdir()
    write(books / 'b.txt', 'A second book. ' * 25)
    write(books / 'a.txt', BOOK + END + 'A short one.' + END)
    write(books / 'notes.md', 'Not a text. ' * 1000)
    text = END.join([BOOK + END + 'A short one.' + END, 'A second book. ' * 25])

    status, stdout, stderr = command(
        'train.py', books, '--output', 'mine', '--model_name', 'tiny', '--models_dir', models,
        '--scratch', '--steps', 60, '--val_every', 25, '--batch_size', 4, '--seq_len', 16,
        '--learning_rate', 0.02, '--held_out', 0.3, '--seed', 3, '--sample_length', 0).run()
    assert (status, stderr) == (0, '')
    lines = read_lines(stdout)
    assert [step for step, *_ in lines] == [25, 50, 60]
    assert lines[0][1] < np.log(257)  # better than knowing nothing
    assert lines[2][1] < lines[0][1] - 0.5

    kept = [line for line in lines if line[4]]
    best = min(lines, key=lambda line: line[2])
    assert kept[-1] == best and kept[0] == lines[0]
    weights = saved(models / 'mine')
    nats, bits = expected_losses(tiny, weights, text, held_out=0.3, seq_len=16)
    assert best[2] == pytest.approx(nats, abs=2e-4)
    assert best[3] == pytest.approx(bits, abs=3e-4)
    assert 256 in held_out_tokens(tiny, text, 0.3) and nats < np.log(257)

    assert sorted(entry.name for entry in (models / 'mine').iterdir()) == TRAINED_FILES
    metrics = [json.loads(line) for line in (models / 'mine' / 'metrics.jsonl').open()]
    assert [line['step'] for line in metrics] == [25, 50, 60]
    assert [line['held_out_loss'] for line in metrics] == pytest.approx(
        [nats for _, _, nats, _, _ in lines], abs=1e-4)
    for name in ['hparams.json', 'encoder.json', 'vocab.bpe']:
        assert (models / 'mine' / name).read_bytes() == (models / 'tiny' / name).read_bytes()
    with tf.Graph().as_default():
        generate_unconditional_samples.sample_model(
            model_name='mine', models_dir=str(models), nsamples=1, length=20, seed=2)
    sample, = tiny.samples([0], seed=2, length=20, weights=weights, gap=0)
    assert capsys.readouterr().out == '=' * 40 + ' SAMPLE 1 ' + '=' * 40 + '\n' + sample + '\n'


def gradient(tiny, tokens, name, position):
    """One entry of the gradient of the mean loss, by differences of the reference's."""
    def loss(change):
        weights = dict(tiny.weights, **{name: tiny.weights[name].astype(np.float64)})
        weights[name][position] += change
        return total_loss(weights, tiny.hparams, tokens) / (len(tokens) - 1)

    return (loss(1e-4) - loss(-1e-4)) / 2e-4


def test_one_step_of_fine_tuning_is_one_step_of_adam(command, tiny, models, saved, tmp_path):
    """From the weights of a model, on a text with a single place to take a sequence from."""
    text = 'sixteen letters.held'
    status, stdout, stderr = command(
        'train.py', write(tmp_path / 'text', text), '--output=mine', '--model_name=tiny',
        '--models_dir', models, '--steps=1', '--batch_size=3', '--seq_len=16', '--held_out=0.2',
        '--learning_rate=0.01', '--weight_decay=0', '--sample_length=0').run()
    assert (status, stderr) == (0, '')
    (step, loss, nats, bits, kept), = read_lines(stdout)
    assert (step, kept) == (1, True)
    tokens = tokens_of(tiny, text[:16])
    assert loss == pytest.approx(total_loss(tiny.weights, tiny.hparams, tokens) / 16, abs=1e-4)
    after = saved(models / 'mine')
    assert (nats, bits) == pytest.approx(expected_losses(tiny, after, text, 0.2, 16), abs=2e-4)

    # The last step is a tenth of the rate long, and Adam's first goes against each sign.
    random = np.random.RandomState(0)
    steep = 0
    for name, before in tiny.weights.items():
        moved = after[name].astype(np.float64) - before
        assert np.abs(moved).max() < 0.00101
        for _ in range(4):
            position = tuple(random.randint(size) for size in before.shape)
            slope = gradient(tiny, tokens, name, position)
            if abs(slope) > 1e-3:
                steep += 1
                assert moved[position] == pytest.approx(-0.001 * np.sign(slope), rel=0.01), name
    assert steep > 30
    assert np.all(after['model/wpe'][16:] == tiny.weights['model/wpe'][16:])  # nothing was there
    # The model that it started from is as it was.
    assert all(np.array_equal(weight, tiny.weights[name])
               for name, weight in saved(models / 'tiny').items())


def test_ctrl_c_keeps_what_was_learned(command, tiny, models, saved, tmp_path):
    screen = command(
        'train.py', write(tmp_path / 'text.txt', BOOK), '--output', 'mine', '--model_name', 'tiny',
        '--models_dir', models, '--steps', 1000000, '--val_every', 1000000, '--seq_len', 16,
        '--sample_length', 0).spawn()
    screen.expect(r'step [2-9]\d* of 1000000')  # the bar that tells of the steps
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


def in_process(tf, models, text, **flags):
    """Trains in this process, in a few short steps."""
    with tf.Graph().as_default():
        train.train(str(text), **dict(dict(
            output='mine', model_name='tiny', steps=6, models_dir=str(models), seq_len=8,
            accumulation=2, dropout=0.1, val_every=2, sample_length=0), **flags))


def test_after_ctrl_c_it_goes_on_exactly(tf, models, saved, tmp_path, monkeypatch, capsys):
    """The signal comes while TensorFlow computes, and is answered when the step is done."""
    text = write(tmp_path / 'text', BOOK)
    in_process(tf, models, text, output='whole')
    run_step, calls = train.run_step, []

    def interrupted(*arguments):
        calls.append(run_step(*arguments))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return calls[-1]

    monkeypatch.setattr(train, 'run_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_process(tf, models, text)
    assert len(calls) == 3
    assert [json.loads(line)['step'] for line in (models / 'mine' / 'metrics.jsonl').open()
            ] == [2, 3]
    in_process(tf, models, text, resume=True)
    name = 'training/step-6.data-00000-of-00001'
    assert (models / 'whole' / name).read_bytes() == (models / 'mine' / name).read_bytes()


def test_the_second_ctrl_c_is_answered_at_once(tf, models, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError('it went on')

    monkeypatch.setattr(train, 'run_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_process(tf, models, write(tmp_path / 'text', BOOK))
    assert (models / 'mine' / 'metrics.jsonl').read_text() == ''


@pytest.mark.parametrize('function', ['initialize', 'run_step', 'held_out_loss'])
def test_too_little_memory_is_told(tf, models, tmp_path, monkeypatch, capsys, function):
    def cannot(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
    monkeypatch.setattr(train, function, cannot)
    with pytest.raises(cli.UserError, match='memory is too small'):
        in_process(tf, models, write(tmp_path / 'text', BOOK))


def test_a_training_that_was_refused_can_be_put_right(tf, models, saved, tmp_path, capsys):
    text = write(tmp_path / 'text', BOOK)

    def cannot(flags):
        raise cli.UserError('not here')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(cli.UserError, match='not here'):
        patch.setattr(train, 'choose_devices', cannot)
        in_process(tf, models, text)
    in_process(tf, models, text, steps=2)
    assert saved(models / 'mine')


def test_no_two_processes_train_one_model(tf, models, tmp_path, capsys):
    text = write(tmp_path / 'text', BOOK)
    in_process(tf, models, text, steps=2)
    with open(str(models / 'mine' / 'training' / 'lock'), 'w') as file:
        assert checkpoint.lock(file)
        with pytest.raises(cli.UserError, match='another process'):
            in_process(tf, models, text, steps=2, resume=True)
    in_process(tf, models, text, steps=2, resume=True)


def test_a_model_without_its_training_is_not_gone_on_with(tf, models, tmp_path, capsys):
    text = write(tmp_path / 'text', BOOK)
    in_process(tf, models, text)
    shutil.move(str(models / 'mine' / 'training'), str(tmp_path / 'training'))
    metrics = (models / 'mine' / 'metrics.jsonl').read_text()
    with pytest.raises(cli.UserError, match='no training/'):
        in_process(tf, models, text, resume=True)
    assert (models / 'mine' / 'metrics.jsonl').read_text() == metrics
    shutil.move(str(tmp_path / 'training'), str(models / 'mine' / 'training'))
    (models / 'mine' / 'training' / 'step-6.index').unlink()
    with pytest.raises(cli.UserError, match='step-6.* cannot be read'):
        in_process(tf, models, text, resume=True)


def test_worse_weights_are_not_kept(tf, tiny, models, saved, capsys, tmp_path):
    """The more it learns of the first nine tenths, the less it expects the last."""
    text = 'a' * 900 + 'b' * 100
    with tf.Graph().as_default():
        train.train(str(write(tmp_path / 'text', text)), 'mine', model_name='tiny', steps=5,
                    models_dir=str(models), seq_len=8, learning_rate=0.05, val_every=1,
                    sample_length=0)
    lines = read_lines(capsys.readouterr().out)
    losses = [nats for _, _, nats, _, _ in lines]
    assert losses == sorted(losses) and losses[0] < losses[4] - 1
    assert [kept for *_, kept in lines] == [True] + [False] * 4
    nats, _ = expected_losses(tiny, saved(models / 'mine'), text, held_out=0.1, seq_len=8)
    assert losses[0] == pytest.approx(nats, abs=2e-4)


def test_fresh_weights(tf, tiny, models, saved, capsys, tmp_path):
    """As the paper's: N(0, 0.02), less where a block adds to the residual stream."""
    data = write(tmp_path / 'text', BOOK)
    for seed, output in [(0, 'a'), (0, 'b'), (1, 'c')]:
        with tf.Graph().as_default():
            train.train(str(data), output, model_name='tiny', models_dir=str(models), scratch=True,
                        steps=1, seq_len=8, batch_size=1, learning_rate=1e-30, seed=seed,
                        sample_length=0)
    (_, loss, _, _, _), *_ = read_lines(capsys.readouterr().out)
    assert loss == pytest.approx(np.log(257), abs=0.1)  # it knows nothing
    weights, again, other = [saved(models / output) for output in 'abc']
    assert {name: list(weight.shape) for name, weight in weights.items()} == reference.shapes(
        tiny.hparams)
    for name, weight in weights.items():
        assert np.array_equal(weight, again[name])
        if name.endswith('/g') or name.endswith('/b'):
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


# ---- the optimizer, and going on ---------------------------------------------------------------


def torch_losses(models, batches, flags):
    """The losses of a torch loop over transformers' GPT-2 on these batches."""
    torch = pytest.importorskip('torch')
    transformers = pytest.importorskip('transformers')
    hparams = json.loads((models / 'tiny' / 'hparams.json').read_text())
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
    matrices = [p for p in parameters.values() if p.dim() == 2]
    vectors = [p for p in parameters.values() if p.dim() == 1]
    adamw = torch.optim.AdamW([{'params': matrices, 'weight_decay': flags.weight_decay},
                               {'params': vectors, 'weight_decay': 0.0}])
    losses, accumulation = [], flags.accumulation
    for i in range(0, len(batches), accumulation):
        for group in adamw.param_groups:
            group['lr'] = flags.learning_rate * train.schedule(i // accumulation + 1, flags)
        adamw.zero_grad()
        parts = []
        for batch in batches[i:i + accumulation]:
            inputs = torch.from_numpy(batch.astype('int64'))
            logits = net(inputs[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten())
            (loss / accumulation).backward()
            parts.append(loss.item())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adamw.step()
        losses.append(np.mean(parts))
    return losses


def flags_of(**changes):
    """The flags that a training graph and its steps depend on."""
    defaults = {name: parameter.default
                for name, parameter in inspect.signature(train.train).parameters.items()}
    flags = types.SimpleNamespace(**dict(defaults, data='text', **changes))
    train.check_flags(flags)
    return flags


def our_losses(tf, models, batches, flags, devices=('',), session_config=None):
    """The losses of our steps on these batches, as `train.train` does them."""
    import learning
    start = checkpoint.open_model('tiny', str(models))
    with tf.Graph().as_default(), tf.Session(config=session_config) as session:
        graph = learning.build_graph(start.hparams, flags, devices)
        train.initialize(session, start, scratch=False)
        n = flags.accumulation
        return [train.run_step(session, graph, [(batch, i) for batch in batches[i * n:i * n + n]],
                               flags.learning_rate * train.schedule(i + 1, flags))
                for i in range(len(batches) // n)]


def batches_of(tiny, n, **changes):
    tokens = np.array(tiny.encode(BOOK), np.uint16)
    flags = flags_of(seq_len=16, batch_size=2, seed=5, **changes)
    return [train.random_batch(tokens, flags, i) for i in range(n)]


LARGER = {'n_vocab': 257, 'n_ctx': 64, 'n_embd': 256, 'n_head': 4, 'n_layer': 4}


@pytest.mark.parametrize('recompute', [False, True], ids=['', 'recompute'])
@pytest.mark.parametrize('accumulation', [1, 4])
@pytest.mark.parametrize('shape, rate', [(None, 0.01), (LARGER, 0.001)], ids=['tiny', 'larger'])
def test_twenty_steps_are_those_of_torch(tf, tiny, models, shape, rate, accumulation, recompute):
    pytest.importorskip('torch')
    if shape:
        reference.write_checkpoint(models / 'tiny', shape, reference.random_weights(shape, seed=0))
    flags = flags_of(steps=20, learning_rate=rate, weight_decay=0.1, accumulation=accumulation,
                     recompute=recompute)
    batches = batches_of(tiny, 20 * accumulation)
    losses = our_losses(tf, models, batches, flags)
    assert losses == pytest.approx(torch_losses(models, batches, flags), rel=1e-4)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize('rate', [0, 0.2])
def test_blocks_computed_anew_give_the_same_losses(tf, tiny, models, rate):
    """With dropout, the same activations are dropped the second time."""
    batches = batches_of(tiny, 10)
    kept, anew = [our_losses(tf, models, batches, flags_of(
        steps=10, learning_rate=0.01, dropout=rate, recompute=recompute))
        for recompute in (False, True)]
    assert anew == pytest.approx(kept, rel=1e-5)
    assert kept[-1] < kept[0]


def test_blocks_are_computed_anew(tf, tiny, models):
    """Each block's activation function is there once for the losses and once for gradients."""
    import learning
    for recompute in (False, True):
        with tf.Graph().as_default() as graph:
            learning.build_graph(checkpoint.open_model('tiny', str(models)).hparams,
                                 flags_of(recompute=recompute))
            n_gelu = sum(operation.type == 'Tanh' for operation in graph.get_operations())
        assert n_gelu == (6 if recompute else 4)  # two blocks, held-out loss and training


def test_dropout(tf, tiny, models):
    import learning
    with tf.Graph().as_default(), tf.Session() as session:
        noise = tf.placeholder(tf.int32, [])
        drop = learning.dropout(0.3, noise)
        x = tf.ones([100, 200])
        with tf.variable_scope('here'):
            here, again = drop(x), drop(x)
        with tf.variable_scope('there'):
            there = drop(x)
        first, second, third = session.run([here, again, there], {noise: 1})
        other = session.run(here, {noise: 2})
    assert set(np.unique(first)) == {0, np.float32(1 / 0.7)}
    assert np.mean(first == 0) == pytest.approx(0.3, abs=6 * np.sqrt(0.3 * 0.7 / first.size))
    assert np.array_equal(first, second)
    for different in (third, other):  # as often equal as independent ones are
        assert np.mean((different == 0) == (first == 0)) == pytest.approx(0.58, abs=0.02)


def test_dropout_acts_on_training_alone(tf, tiny, models):
    """The loss of a step is another for another batch's noise; the held-out loss is not."""
    import learning
    start = checkpoint.open_model('tiny', str(models))
    batch, = batches_of(tiny, 1)
    with tf.Graph().as_default(), tf.Session() as session:
        graph = learning.build_graph(start.hparams, flags_of(dropout=0.5))
        train.initialize(session, start, scratch=False)
        nodes = [graph.mean_loss, graph.total_loss]
        (a, total), (b, again) = [session.run(nodes, {graph.tokens: batch, graph.noise: noise})
                                  for noise in (1, 2)]
    expected = sum(total_loss(tiny.weights, tiny.hparams, row) for row in batch.tolist())
    assert total == again == pytest.approx(expected, rel=1e-5)
    assert a != b and abs(a - expected / 32) > 1e-3


@pytest.mark.parametrize('which, trained', [
    ('all', 'model/'), ('blocks', 'model/h'), ('1', 'model/h1/'), ('2', 'model/h')])
def test_some_weights_are_trained(tf, tiny, models, saved, tmp_path, which, trained):
    data = write(tmp_path / 'text', BOOK)
    with tf.Graph().as_default():
        train.train(str(data), 'mine', model_name='tiny', models_dir=str(models), steps=1,
                    seq_len=31, train_only=which, learning_rate=0.01, sample_length=0)
    for name, weight in saved(models / 'mine').items():
        moved = not np.array_equal(weight, tiny.weights[name])
        assert moved == name.startswith(trained), name


def test_two_devices_learn_what_one_does(tf, tiny, models):
    flags = flags_of(steps=20, learning_rate=0.01, accumulation=2)
    batches = batches_of(tiny, 40)
    one = our_losses(tf, models, batches, flags)
    config = tf.ConfigProto(device_count={'CPU': 2})
    two = our_losses(tf, models, batches, flags, ['/cpu:0', '/cpu:1'], config)
    assert two == pytest.approx(one, rel=1e-5)


def test_devices_by_flag(command, models, tmp_path):
    """On a machine without GPUs, parts of its processor."""
    data, lines = write(tmp_path / 'text', BOOK), []
    for n in (1, 2):
        status, stdout, stderr = command(
            'train.py', data, '--output', 'on%d' % n, '--model_name', 'tiny', '--models_dir',
            models, '--steps', 5, '--devices', n, '--sample_length', 0,
            env={'CUDA_VISIBLE_DEVICES': '-1'}).run()
        assert (status, stderr) == (0, '')
        lines += read_lines(stdout)
    assert lines[0] == pytest.approx(lines[1], abs=2e-4)


IS_TF1 = real_tf.__version__.startswith('1.')


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 does not compile')
def test_a_compiled_step_learns_the_same(tf, tiny, models):
    batches = batches_of(tiny, 20)
    plain, compiled = [our_losses(tf, models, batches, flags_of(
        steps=20, learning_rate=0.01, recompute=True, xla=xla))
        for xla in (False, True)]
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.skipif(IS_TF1, reason='TensorFlow 1 has no products in bfloat16')
def test_products_in_bfloat16(tf, tiny, models):
    """Losses are near, not equal: the products have 8 bits, the weights keep 24."""
    batches = batches_of(tiny, 20)
    exact, rounded = [our_losses(tf, models, batches, flags_of(
        steps=20, learning_rate=0.01, dtype=dtype)) for dtype in ('float32', 'bfloat16')]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert np.abs(np.subtract(rounded, exact)).max() > 1e-5
    import learning
    with tf.Graph().as_default() as graph:
        learning.build_graph(checkpoint.open_model('tiny', str(models)).hparams,
                             flags_of(dtype='bfloat16'))
        products = [operation for operation in graph.get_operations()
                    if operation.type == 'MatMul' and not operation.name.startswith('model/')]
        assert sum(product.inputs[0].dtype == tf.bfloat16 for product in products) >= 3 * 9
        assert {weight.dtype.base_dtype for weight in tf.global_variables()} == {
            tf.float32, tf.float64}


@pytest.mark.parametrize('flags, words', [
    ({'devices': 2}, 'GPU --devices'), ({'dtype': 'bfloat16'}, '--dtype bfloat16'),
    ({'xla': True}, '--xla TensorFlow')])
def test_what_this_machine_cannot_do(tf, monkeypatch, flags, words):
    gpus = ['one'] if 'devices' in flags else []
    monkeypatch.setattr(tf.config.experimental, 'list_physical_devices', lambda kind: gpus)
    monkeypatch.setattr(train, 'has_bfloat16', lambda gpus: False)
    monkeypatch.setattr(tf, '__version__', '1.15.5' if 'xla' in flags else '2.21.0')
    with pytest.raises(cli.UserError) as error:
        train.choose_devices(flags_of(**flags))
    assert all(word in str(error.value) for word in words.split())


def test_a_sample_after_each_measurement(tf, tiny, models, saved, capsys, tmp_path):
    with tf.Graph().as_default():
        train.train(str(write(tmp_path / 'text', BOOK)), 'mine', model_name='tiny', steps=6,
                    models_dir=str(models), seq_len=8, val_every=2, sample_length=12, seed=3,
                    keep_last=3, learning_rate=0.01)
    out = capsys.readouterr().out
    for step in (2, 4, 6):
        weights = saved_state(tf, models / 'mine' / 'training' / ('step-%d' % step))
        text, = tiny.samples([step], seed=3, length=12, weights=weights, top_k=40, gap=0)
        assert '=' * 40 + ' STEP %d ' % step + '=' * 40 + '\n' + text + '\n' in out


def saved_state(tf, prefix):
    """The weights of the model among all variables of a training."""
    reader = tf.train.load_checkpoint(str(prefix))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
            if name.startswith('model/')}


@pytest.mark.parametrize('keep_last, steps', [(1, [6]), (2, [4, 6]), (9, [2, 4, 6])])
def test_the_last_states_are_kept(tf, models, tmp_path, keep_last, steps):
    with tf.Graph().as_default():
        train.train(str(write(tmp_path / 'text', BOOK)), 'mine', model_name='tiny', steps=6,
                    models_dir=str(models), seq_len=8, val_every=2, sample_length=0,
                    keep_last=keep_last)
    folder = models / 'mine' / 'training'
    assert sorted(path.name for path in folder.glob('step-*.index')) == [
        'step-%d.index' % step for step in steps]
    assert tf.train.latest_checkpoint(str(folder)) == str(folder / 'step-6')


def test_tensorboard_reads_the_measurements(tf, models, tmp_path, capsys):
    with tf.Graph().as_default():
        train.train(str(write(tmp_path / 'text', BOOK)), 'mine', model_name='tiny', steps=6,
                    models_dir=str(models), seq_len=8, val_every=3, sample_length=0)
    events, = (models / 'mine' / 'training').glob('events.*')
    scalars = {(value.tag, event.step): value.simple_value
               for event in tf.train.summary_iterator(str(events)) for value in event.summary.value}
    metrics = [json.loads(line) for line in (models / 'mine' / 'metrics.jsonl').open()]
    for line in metrics:
        for name in ('held_out_loss', 'bits_per_byte'):
            assert scalars[name, line['step']] == pytest.approx(line[name], rel=1e-6)
    for begin, line in zip((1, 4), metrics):
        assert np.mean([scalars['loss', step] for step in range(begin, begin + 3)]
                       ) == pytest.approx(line['training_loss'], rel=1e-6)
    assert {step for name, step in scalars if name == 'learning_rate'} == set(range(1, 7))


def test_a_killed_training_goes_on_exactly(command, tiny, models, saved, tmp_path):
    """Killed at random moments, it ends with the weights and the metrics of an unbroken run."""
    def training(output, *flags):
        return command('train.py', write(tmp_path / 'text', BOOK), '--output', output,
                       '--model_name', 'tiny', '--models_dir', models, '--steps', 300,
                       '--accumulation', 2, '--val_every', 4, '--seq_len', 16,
                       '--dropout', 0.1, '--sample_length', 0, *flags)

    def measured():
        metrics = models / 'broken' / 'metrics.jsonl'
        return metrics.read_bytes().count(b'\n') if metrics.exists() else 0

    assert training('whole').run()[0] == 0
    random = np.random.RandomState(7)
    for kill in range(10):
        process = training('broken', '--resume').start()
        while measured() <= 3 * kill and process.poll() is None:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was not done
    status, _, stderr = training('broken', '--resume').run()
    assert (status, stderr) == (0, '')
    whole, broken = saved(models / 'whole'), saved(models / 'broken')
    assert all(np.array_equal(weight, broken[name]) for name, weight in whole.items())
    for name in ['metrics.jsonl', 'training/step-300.data-00000-of-00001']:
        assert (models / 'whole' / name).read_bytes() == (models / 'broken' / name).read_bytes()


def test_a_full_disk_is_told_and_gone_on_from(command, models, saved, small_disk, tmp_path):
    """What was written before stays; with room, it ends as if nothing had been."""
    def training(folder, *flags):
        return command('train.py', write(tmp_path / 'text', BOOK), '--output', 'mine',
                       '--model_name', 'tiny', '--models_dir', folder, '--steps', 12,
                       '--val_every', 3, '--seq_len', 16, '--keep_last', 9,
                       '--sample_length', 0, *flags).run()

    small = small_disk(480)
    shutil.copytree(str(models / 'tiny'), str(small / 'tiny'))
    status, _, stderr = training(small)
    assert status == 1 and stderr.count('\n') == 1
    assert str(small / 'mine') in stderr and '--resume' in stderr
    assert 'No space left on device' in stderr
    shutil.copytree(str(small / 'mine'), str(models / 'mine'))
    assert training(models, '--resume')[0] == 0
    (models / 'mine').rename(models / 'resumed')
    assert training(models)[0] == 0
    whole, resumed = saved(models / 'mine'), saved(models / 'resumed')
    assert all(np.array_equal(weight, resumed[name]) for name, weight in whole.items())
    assert (models / 'mine' / 'metrics.jsonl').read_bytes() == (
        models / 'resumed' / 'metrics.jsonl').read_bytes()


def test_going_on_with_other_settings_is_refused(command, refused, models, tmp_path):
    data = write(tmp_path / 'text', BOOK)
    flags = ['--output', 'mine', '--model_name', 'tiny', '--models_dir', models, '--steps', 2,
             '--seq_len', 8]
    assert command('train.py', data, *flags).run()[0] == 0
    status, message = refused('train.py', data, *flags, '--resume', '--batch_size', 3)
    assert status == 1 and '--batch_size 3 (it was 4)' in message and '--seed' not in message
    status, message = refused('train.py', write(tmp_path / 'other', BOOK * 2), *flags, '--resume')
    assert status == 1 and 'another text' in message


def test_the_rate_rises_and_falls_as_help_says():
    flags = flags_of(steps=1000)
    rates = [train.schedule(step, flags) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(0.02)
    assert rates.index(max(rates)) + 1 == pytest.approx(50, abs=1)
    assert max(rates) == pytest.approx(1) and rates[-1] == pytest.approx(0.1)
    assert rates[524] == pytest.approx(0.55, abs=1e-3)  # half-way along the cosine
    assert rates[:49] == sorted(rates[:49]) and rates[50:] == sorted(rates[50:], reverse=True)
    flags = flags_of(steps=1000, warmup=10, schedule='constant')
    rates = [train.schedule(step, flags) for step in range(1, 1001)]
    assert rates[4] == pytest.approx(0.5) and set(rates[9:]) == {1}
    assert train.schedule(1, flags_of(steps=1000, warmup=0)) == pytest.approx(1, abs=1e-5)


# ---- what is refused ---------------------------------------------------------------------------

BAD_FLAGS = [
    ('--steps 0', '--steps 1'),
    ('--steps 2.5', '--steps 2.5'),
    ('--batch_size 0', '--batch_size'),
    ('--batch_size many', "--batch_size 'many'"),
    ('--seq_len 1', '--seq_len 2 32'),
    ('--seq_len 33', '--seq_len 32 33'),
    ('--learning_rate 0', '--learning_rate'),
    ('--learning_rate -1e-4', '--learning_rate'),
    ('--learning_rate nan', '--learning_rate nan'),
    ('--learning_rate 1e999', '--learning_rate inf'),
    ('--accumulation 0', '--accumulation'),
    ('--weight_decay -1', '--weight_decay'),
    ('--clip_norm 0', '--clip_norm'),
    ('--held_out 0', '--held_out'),
    ('--held_out 1', '--held_out'),
    ('--held_out a', "--held_out 'a'"),
    ('--val_every 0', '--val_every'),
    ('--schedule linear', '--schedule cosine linear'),
    ('--warmup -1', '--warmup'),
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
    ('--lerning_rate 1', '--lerning_rate --learning_rate'),
    ('--steps', '--steps value'),
    ('--output=', '--output'),
    ('--output .', '--output'),
    ('--output ..', '--output'),
    ('--output a/b', '--output a/b'),
]


@pytest.mark.parametrize('arguments, words', BAD_FLAGS, ids=[flag for flag, _ in BAD_FLAGS])
def test_bad_flags_are_refused_in_one_line(refused, models, tmp_path, arguments, words):
    status, message = refused(
        'train.py', write(tmp_path / 'text', BOOK), '--output', 'mine', '--model_name', 'tiny',
        '--models_dir', models, *arguments.split())
    assert status == 2
    assert all(word in message for word in words.split())
    assert [entry.name for entry in models.iterdir()] == ['tiny']  # nothing is left behind


@pytest.mark.parametrize('arguments, words', [([], 'DATA'), (['text'], '--output')], ids=repr)
def test_what_is_needed_is_asked_for(refused, models, arguments, words):
    status, message = refused('train.py', *arguments, '--models_dir', models,
                              '--model_name', 'tiny')
    assert status == 2 and words in message


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
def test_a_text_that_cannot_be_used(refused, models, tmp_path, text):
    content, words = TEXTS[text]
    if content is not None:
        (tmp_path / 'text').write_bytes(content)
    status, message = refused('train.py', tmp_path / 'text', '--output', 'mine', '--model_name',
                              'tiny', '--models_dir', models)
    assert status == 1
    assert all(word in message for word in [str(tmp_path / 'text'), *words])
    assert [entry.name for entry in models.iterdir()] == ['tiny']  # nothing is left behind


def test_a_folder_without_texts(refused, models, tmp_path):
    (tmp_path / 'books').mkdir()
    write(tmp_path / 'books' / 'a.md', BOOK)
    status, message = refused('train.py', tmp_path / 'books', '--output', 'mine', '--model_name',
                              'tiny', '--models_dir', models)
    assert status == 1
    assert str(tmp_path / 'books') in message and '.txt' in message


def test_a_folder_with_a_bad_text_names_the_text(refused, models, tmp_path):
    (tmp_path / 'books').mkdir()
    write(tmp_path / 'books' / 'a.txt', BOOK)
    (tmp_path / 'books' / 'b.txt').write_bytes(b'ab\xff')
    status, message = refused('train.py', tmp_path / 'books', '--output', 'mine', '--model_name',
                              'tiny', '--models_dir', models)
    assert status == 1
    assert str(tmp_path / 'books' / 'b.txt') in message and 'byte 2' in message


def test_a_model_to_start_from_that_is_not_there(refused, models, tmp_path):
    status, message = refused('train.py', write(tmp_path / 'text', BOOK), '--output', 'mine',
                              '--models_dir', models)
    assert status == 1
    assert message.endswith('python3 download_model.py 124M') and 'tiny' in message


def test_a_model_without_weights_serves_from_scratch_alone(refused, models, tmp_path):
    (models / 'tiny' / 'checkpoint').unlink()
    status, message = refused('train.py', write(tmp_path / 'text', BOOK), '--output', 'mine',
                              '--model_name', 'tiny', '--models_dir', models)
    assert status == 1 and str(models / 'tiny' / 'checkpoint') in message
    start = checkpoint.open_model('tiny', str(models), weights=False)
    assert start.hparams.n_embd == 16


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_output_that_is_there_is_left_as_it_is(refused, models, tmp_path):
    before = contents(models / 'tiny')
    status, message = refused('train.py', write(tmp_path / 'text', BOOK), '--output', 'tiny',
                              '--model_name', 'tiny', '--models_dir', models, '--scratch')
    assert status == 1 and str(models / 'tiny') in message
    assert contents(models / 'tiny') == before


def test_an_output_that_cannot_be_made(refused, models, tmp_path):
    write(models / 'file', 'mine')
    status, message = refused('train.py', write(tmp_path / 'text', BOOK), '--output', 'file',
                              '--model_name', 'tiny', '--models_dir', models)
    assert status == 1 and str(models / 'file') in message
    assert (models / 'file').read_text() == 'mine'


def test_training_that_diverges_is_told(tf, models, tmp_path):
    with pytest.raises(cli.UserError) as caught, tf.Graph().as_default():
        train.train(str(write(tmp_path / 'text', BOOK)), 'mine', model_name='tiny', seq_len=8,
                    models_dir=str(models), learning_rate=1e30, steps=50)
    message = str(caught.value)
    assert 'diverged' in message and '--learning_rate' in message and '\n' not in message
    assert not (models / 'mine' / 'checkpoint').exists()
