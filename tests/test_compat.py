"""Scripts written for the historic code, run as the processes they are, and released checkpoints.

The scripts below stand for those of other people: they know `model`, `sample` and `encoder` by
their historic names, and TensorFlow 1. They are written to a file and run as they are, except for
TensorFlow's name, which is `tensorflow.compat.v1` in TensorFlow 2. Beside them lie other modules
with the name of each of ours.
"""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import encoder
import model
import reference
from helpers import DATA, LONG, SRC, only_long

NEAR = 1e-4  # how close the reference's two best may be before float32 may choose otherwise

# What both scripts start with. Their results go to report.json.
PREAMBLE = """
import json
import os
import sys

import numpy as np
import tensorflow as tf

sys.path.append(sys.argv[1])
import encoder
import model
import sample

MODEL_NAME, MODELS_DIR = 'small', 'models'
folder = os.path.join(MODELS_DIR, MODEL_NAME)
enc = encoder.get_encoder(MODEL_NAME, MODELS_DIR)
hparams = model.default_hparams()
with open(os.path.join(folder, 'hparams.json')) as f:
    hparams.override_from_dict(json.load(f))


def finish(**report):
    with open('report.json', 'w') as f:
        json.dump(report, f)
"""

SAMPLING = PREAMBLE + """
BATCH, LENGTH = 3, 12
prompts = ['Once upon a time', 'a', 'To be, or not']
end = enc.encoder['<|endoftext|>']
report = {'prompts': [enc.encode(prompt) for prompt in prompts], 'end': end}

with tf.Session(graph=tf.Graph()) as sess:
    np.random.seed(5)
    tf.set_random_seed(5)
    context = tf.placeholder(tf.int32, [BATCH, None])
    best = sample.sample_sequence(
        hparams=hparams, length=LENGTH, context=context, batch_size=BATCH,
        temperature=1, top_k=1)
    varied = sample.sample_sequence(
        hparams=hparams, length=LENGTH, context=context, batch_size=BATCH,
        temperature=0.8, top_k=20, top_p=0.9)
    free = sample.sample_sequence(
        hparams=hparams, length=LENGTH, start_token=end, batch_size=2 * BATCH, top_k=5)[:, 1:]

    # A loop of the script's own, token by token through `past`.
    token = tf.placeholder(tf.int32, [None, None])
    past = tf.placeholder(tf.float32, model.past_shape(hparams=hparams))
    first = model.model(hparams=hparams, X=token, past=None, reuse=tf.AUTO_REUSE)
    later = model.model(hparams=hparams, X=token, past=past, reuse=tf.AUTO_REUSE)

    logits = tf.constant([[1., 4., 2., 3., 0.], [0., 0., 9., 0., 1.]])
    kept = sample.top_p_logits(sample.top_k_logits(logits, k=3), p=0.5)

    saver = tf.train.Saver()
    saver.restore(sess, tf.train.latest_checkpoint(folder))
    report['variables'] = sorted(v.op.name for v in tf.global_variables())

    report['best'], report['varied'], report['looped'], report['texts'] = [], [], [], []
    for ids in report['prompts']:
        feed = {context: [ids for _ in range(BATCH)]}
        out = sess.run(best, feed_dict=feed)[:, len(ids):]
        report['best'].append(out.tolist())
        report['texts'].append(enc.decode(out[0]))
        out = sess.run(varied, feed_dict=feed)
        assert out[:, :len(ids)].tolist() == feed[context]
        report['varied'].append(out[:, len(ids):].tolist())

        step = sess.run(first, {token: [ids]})
        cache, tokens = step['present'], []
        while True:
            tokens.append(int(np.argmax(step['logits'][0, -1])))
            if len(tokens) == LENGTH:
                break
            step = sess.run(later, {token: [[tokens[-1]]], past: cache})
            cache = np.concatenate([cache, step['present']], axis=-2)
        report['looped'].append(tokens)
    report['free'] = sess.run(free).tolist()
    report['kept'] = sess.run(kept).tolist()

finish(**report)
"""

TRAINING = PREAMBLE + """
BATCH, STEPS = 2, 15
run = os.path.join('checkpoint', 'run1')
text = ('Now is the winter of our discontent made glorious summer by this sun of York, and all '
        'the clouds that lowered upon our house in the deep bosom of the ocean buried. ') * 2
tokens = np.array(enc.encode(text))
validation = tokens[:20]


def loss_of(ids, output):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=ids[:, 1:], logits=output['logits'][:, :-1]))


config = tf.ConfigProto()
config.gpu_options.allow_growth = True
with tf.Session(config=config) as sess:
    ids = tf.placeholder(tf.int32, [BATCH, None])
    loss = loss_of(ids, model.model(hparams=hparams, X=ids))
    val_ids = tf.placeholder(tf.int32, [1, None])
    val_loss = loss_of(val_ids, model.model(hparams=hparams, X=val_ids))
    blocks = len(tf.get_collection('checkpoints'))
    text_of = sample.sample_sequence(
        hparams=hparams, length=10, context=ids, batch_size=BATCH, temperature=1.0, top_k=1)

    weights = [v for v in tf.trainable_variables() if 'model' in v.name]
    rate = tf.Variable(0.0, trainable=False, name='rate')
    optimizer = tf.train.AdamOptimizer(learning_rate=rate)
    gradients = tf.gradients(loss, weights)
    assert not any(g is None for g in gradients)
    update = optimizer.apply_gradients(list(zip(gradients, weights)))

    saver = tf.train.Saver(var_list=weights, max_to_keep=2, keep_checkpoint_every_n_hours=2)
    sess.run(tf.global_variables_initializer())
    saver.restore(sess, tf.train.latest_checkpoint(folder))
    sess.run(rate.assign(0.005))

    def validate():
        return float(sess.run(val_loss, {val_ids: [validation]}))

    def samples():
        return sess.run(text_of, {ids: [tokens[:6]] * BATCH}).tolist()

    before, text_before = validate(), samples()
    pick, losses = np.random.RandomState(0), []
    for _ in range(STEPS):
        starts = pick.randint(0, len(tokens) - 24, size=BATCH)
        batch = [tokens[start:start + 24] for start in starts]
        _, value = sess.run((update, loss), feed_dict={ids: batch})
        losses.append(float(value))
    after, text_after = validate(), samples()
    os.makedirs(run)
    saver.save(sess, os.path.join(run, 'model'), global_step=STEPS)

with tf.Session(graph=tf.Graph()) as sess:
    ids = tf.placeholder(tf.int32, [BATCH, None])
    text_of = sample.sample_sequence(
        hparams=hparams, length=10, context=ids, batch_size=BATCH, temperature=1.0, top_k=1)
    saver = tf.train.Saver()
    saver.restore(sess, tf.train.latest_checkpoint(run))
    text_restored = sess.run(text_of, {ids: [tokens[:6]] * BATCH}).tolist()

finish(blocks=blocks, trained=[v.op.name for v in weights], losses=losses,
       before=before, after=after, validation=validation.tolist(),
       text_before=text_before, text_after=text_after, text_restored=text_restored)
"""


# Runs at the end of a script: the modules behind the commands are found by their own names, too.
INTERFACE = """
import importlib
import pkgutil

import gpt2

names = [found.name for found in pkgutil.walk_packages(gpt2.__path__, 'gpt2.')]
for name in names:
    importlib.import_module(name)
with gpt2.load(MODEL_NAME, MODELS_DIR, engine='graph') as loaded:
    texts = [found.text for found in loaded.generate(prompts[0], length=LENGTH, temperature=0)]
finish(**report, modules=names, interface=texts)
"""


def own_modules():
    """Return the names of all modules of ours but gpt2 and the three that scripts import.

    Nor is tensorflow among them, a format of ours: a script with such a module has no TensorFlow.
    """
    names = {path.stem for path in SRC.rglob('*.py')} | {
        path.parent.name for path in SRC.rglob('__init__.py')}
    return names - {'__init__', 'gpt2', 'model', 'sample', 'encoder', 'tensorflow'}


class Place:
    """A folder with models/small in it, where a script is run.

    Beside the script are modules of its own named like ours, which must not be imported instead.
    """

    def __init__(self, folder):
        for name in own_modules():
            (folder / f'{name}.py').write_text(f'raise ImportError("the script\'s own {name}")')
        vocabulary = DATA and os.path.join(DATA, 'gpt2-vocab')
        self.folder = folder
        self.hparams = {'n_vocab': 50257 if DATA else 257, 'n_ctx': 40, 'n_embd': 32, 'n_head': 4,
                        'n_layer': 2}
        self.weights = reference.random_weights(self.hparams, seed=3)
        reference.write_checkpoint(folder / 'models' / 'small', self.hparams, self.weights,
                                   vocabulary_dir=vocabulary)

    def run(self, script):
        """Run a script and return its report."""
        if not tf.__version__.startswith('1.'):
            script = script.replace('import tensorflow as tf', 'import tensorflow.compat.v1 as tf')
        (self.folder / 'script.py').write_text(script, encoding='utf-8')
        done = subprocess.run([sys.executable, 'script.py', str(SRC)], cwd=str(self.folder),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
        assert done.returncode == 0, done.stdout.decode('utf-8', 'replace')
        return json.loads((self.folder / 'report.json').read_text())

    def greedy(self, prompt, length, weights=None):
        tokens, margins = reference.greedy(weights or self.weights, self.hparams, prompt, length)
        assert min(margins) > NEAR
        return tokens

    def loss(self, weights, tokens):
        """Return the reference's mean loss in nats of all tokens but the first."""
        probabilities = reference.softmax(reference.forward(weights, self.hparams, tokens[:-1]))
        return float(-np.log(probabilities[np.arange(len(tokens) - 1), tokens[1:]]).mean())


# ---- a sampling script -------------------------------------------------------------------------

@pytest.fixture(scope='module')
def sampled(tmp_path_factory):
    """The place where the sampling script was run, and its report."""
    place = Place(tmp_path_factory.mktemp('sampling'))
    return place, place.run(SAMPLING + INTERFACE)


def test_scripts_may_have_modules_named_like_ours(sampled):
    """The other tests show that scripts with such modules beside them run."""
    place, report = sampled
    names = own_modules()
    assert {'cli', 'files', 'options', 'train', 'evaluate', 'logits', 'output', 'run', 'data',
            'graph', 'sampling', 'lite', 'training', 'evaluation', 'formats'} <= names
    assert all((place.folder / f'{name}.py').exists() for name in names)


def test_the_python_interface_finds_its_modules_beside_others_of_their_names(sampled):
    _, report = sampled
    assert {name.rpartition('.')[2] for name in report['modules']} <= own_modules() | {'tensorflow'}
    assert len(report['modules']) > 30
    assert report['interface'] == report['texts'][:1]


def test_a_sampling_script_has_the_variables_of_the_checkpoint_and_no_others(sampled):
    place, report = sampled
    assert report['variables'] == sorted(reference.shapes(place.hparams))


def test_a_sampling_script_gets_the_likeliest_texts(sampled):
    place, report = sampled
    vocabulary = encoder.get_encoder('small', str(place.folder / 'models'))
    assert report['prompts'][0] == vocabulary.encode('Once upon a time')
    assert report['end'] == place.hparams['n_vocab'] - 1
    for prompt, rows, text in zip(report['prompts'], report['best'], report['texts']):
        tokens = place.greedy(prompt, 12)
        assert rows == [tokens] * 3
        assert text == vocabulary.decode(tokens)


def test_a_sampling_script_may_have_its_own_loop(sampled):
    place, report = sampled
    for prompt, tokens in zip(report['prompts'], report['looped']):
        assert tokens == place.greedy(prompt, 12)


def test_a_sampling_script_gets_varied_texts_of_likely_tokens(sampled):
    place, report = sampled
    cases = [(prompt, row, {'temperature': 0.8, 'top_k': 20, 'top_p': 0.9})
             for prompt, rows in zip(report['prompts'], report['varied']) for row in rows]
    cases += [([report['end']], row, {'top_k': 5}) for row in report['free']]
    assert len(cases) == 9 + 6
    for prompt, row, warping in cases:
        assert len(row) == 12
        logits = reference.forward(place.weights, place.hparams, prompt + row[:-1])
        for token, ahead in zip(row, logits[len(prompt) - 1:]):
            assert reference.warp(ahead, **warping)[token] > 0
    for rows in report['varied'] + [report['free']]:
        assert len({tuple(row) for row in rows}) == len(rows)


def test_a_sampling_script_may_filter_logits_itself(sampled):
    _, report = sampled
    low = -1e10
    assert report['kept'] == [[low, 4, low, low, low], [low, low, 9, low, low]]


# ---- a training script -------------------------------------------------------------------------

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The place where the training script was run, its report, and the weights that it saved."""
    place = Place(tmp_path_factory.mktemp('training'))
    report = place.run(TRAINING)
    reader = tf.train.load_checkpoint(str(place.folder / 'checkpoint' / 'run1' / 'model-15'))
    shapes = reader.get_variable_to_shape_map()
    return place, report, {name: reader.get_tensor(name) for name in shapes}


@only_long
def test_a_training_script_trains_every_weight(trained):
    place, report, weights = trained
    assert sorted(report['trained']) == sorted(weights) == sorted(reference.shapes(place.hparams))
    assert report['blocks'] == 2 * place.hparams['n_layer']  # of the two calls of the model
    for name, weight in weights.items():
        assert np.abs(weight - place.weights[name]).max() > 1e-3, name


@only_long
def test_a_training_script_sees_the_loss_fall(trained):
    _, report, _ = trained
    losses = report['losses']
    assert len(losses) == 15 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert report['after'] < 0.8 * report['before']


@only_long
def test_a_training_script_shares_its_weights_with_validation_and_sampling(trained):
    """And saves them: the reference gets the same from the checkpoint."""
    place, report, weights = trained
    validation = report['validation']
    assert report['before'] == pytest.approx(place.loss(place.weights, validation), abs=1e-4)
    assert report['after'] == pytest.approx(place.loss(weights, validation), abs=1e-4)
    prompt = validation[:6]
    assert report['text_before'] == [prompt + place.greedy(prompt, 10)] * 2
    assert report['text_after'] == [prompt + place.greedy(prompt, 10, weights)] * 2
    assert report['text_before'] != report['text_after'] == report['text_restored']


# ---- a checkpoint in the shape of 124M ---------------------------------------------------------

SHAPE_124M = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}
PROMPT = 'The secret of getting ahead is getting started, said the old man, and he'


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """A folder with a model of random weights in the shape of 124M, its weights and its encoder."""
    if not LONG:
        pytest.skip('takes a minute and 2 GB: set GPT2_TEST_LONG=1')
    if not DATA:
        pytest.skip('needs the released vocabulary: set GPT2_TEST_DATA')
    folder = tmp_path_factory.mktemp('large')
    weights = reference.random_weights(SHAPE_124M, seed=0)
    reference.write_checkpoint(folder / '124M', SHAPE_124M, weights,
                               vocabulary_dir=os.path.join(DATA, 'gpt2-vocab'))
    yield folder, weights, encoder.get_encoder('124M', str(folder))
    shutil.rmtree(str(folder))  # pytest would keep the half gigabyte of its last three runs


def test_logits_in_the_shape_of_124m(large):
    folder, weights, vocabulary = large
    tokens = (vocabulary.encode(PROMPT) * 3)[:32]
    hparams = model.default_hparams()
    hparams.override_from_dict(SHAPE_124M)
    with tf.Graph().as_default(), tf.Session() as session:
        logits = model.model(hparams, tf.constant([tokens], tf.int32))['logits']
        tf.train.Saver().restore(session, tf.train.latest_checkpoint(str(folder / '124M')))
        found, = session.run(logits)
    expected = reference.forward(weights, SHAPE_124M, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_interactive_script_answers_an_english_prompt(large):
    folder, weights, vocabulary = large
    prompt = vocabulary.encode(PROMPT)
    tokens, gaps = reference.sample(weights, SHAPE_124M, prompt, 10, 7, 0, temperature=0.9,
                                    top_k=40, top_p=0.95)
    assert min(gaps) > NEAR
    flags = ['--models_dir', str(folder), '--model_name', '124M', '--seed', '7', '--length', '10',
             '--temperature', '0.9', '--top_k', '40', '--top_p', '0.95']
    done = subprocess.run(
        [sys.executable, str(SRC / 'interactive_conditional_samples.py')] + flags,
        input=PROMPT.encode('utf-8') + b'\n', capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode('utf-8', 'replace')
    answer = '=' * 40 + ' SAMPLE 1 ' + '=' * 40 + '\n' + vocabulary.decode(tokens) + '\n' + '=' * 80
    assert done.stdout.decode('utf-8').startswith('Model prompt >>> ' + answer)
