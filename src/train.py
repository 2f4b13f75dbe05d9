"""Trains a model on text: python3 src/train.py DATA --output NAME. See --help."""

import collections
import glob
import hashlib
import json
import math
import os
import sys

import numpy as np
from tqdm import tqdm

import checkpoint
import cli
from checkpoint import END_OF_TEXT

# The nodes of the training graph: token ids int32 [B, S + 1] and the rate go in; `add`, for every
# batch of a step but the last, `step` for the last, the mean loss of the batch and the sum of its
# losses, in nats, come out.
Graph = collections.namedtuple('Graph', 'tokens learning_rate add step mean_loss total_loss')


def train(data: str, output: str = None, model_name='124M', scratch=False, resume=False,
          steps=1000, batch_size=4, accumulation=1, seq_len=None, learning_rate=1e-4,
          weight_decay=0.01, clip_norm=1.0, held_out=0.1, val_every=100, seed=0,
          models_dir='models'):
    """Trains a model on your own text, from a model's weights or from scratch.

    python3 src/train.py DATA --output NAME [flags]

    Prints the loss on held-out text as training goes on, and keeps the weights that did best
    there in MODELS_DIR/NAME, which the other scripts take as --model_name NAME. Ctrl-C ends
    training early: it measures the loss once more and keeps the weights if they are the best.

    Beside the weights are metrics.jsonl, the measurements, and training/, from which --resume
    goes on exactly where the last measurement left off, even after a crash. When you are done,
    training/ can be removed.

    DATA             a UTF-8 text file, or a folder whose .txt files are taken in order of name;
                     documents within a file are separated by <|endoftext|>
    --output         name of the model to write; there must be none of that name yet, but with
    --resume         which goes on with it; all other flags must be as they were
    --model_name     the model to start from: 124M
    --scratch        take only its shape and vocabulary, and start from random weights
    --steps          number of steps, at least 1: 1000
    --batch_size     sequences at a time, at least 1: 4
    --accumulation   batches a step, whose mean gradient is taken, at least 1: 1
    --seq_len        tokens a sequence, 2 to the model's window; all of it if not given
    --learning_rate  the highest: it rises over the first twentieth of the steps, then falls
                     along a cosine to a tenth; above 0: 1e-4
    --weight_decay   of matrices and embeddings, times the rate, as in AdamW; at least 0: 0.01
    --clip_norm      largest norm of a step's gradient, above 0; a longer one is shortened: 1
    --held_out       share of the text, at its end, to measure the loss on: above 0, below 1: 0.1
    --val_every      steps between two measurements, at least 1: 100
    --seed           of the batches and of random weights, at least 0: 0
    --models_dir     where the models are: models
    """
    cli.check_int('steps', steps, 1)
    cli.check_int('batch_size', batch_size, 1)
    cli.check_int('accumulation', accumulation, 1)
    cli.check_number('learning_rate', learning_rate, lambda value: value > 0, 'above 0')
    cli.check_number('weight_decay', weight_decay, lambda value: value >= 0, 'of at least 0')
    cli.check_number('clip_norm', clip_norm, lambda value: value > 0, 'above 0')
    cli.check_number('held_out', held_out, lambda value: 0 < value < 1, 'above 0 and below 1')
    cli.check_int('val_every', val_every, 1)
    cli.check_int('seed', seed, 0, 2**31 - 1)
    start = checkpoint.open_model(model_name, models_dir, weights=not scratch)
    seq_len = start.hparams.n_ctx if seq_len is None else seq_len
    cli.check_int('seq_len', seq_len, 2, start.hparams.n_ctx)
    directory = output_directory(output, models_dir, resume)

    train_text, held_out_text = split(read_text(data), held_out)
    train_tokens = encode_documents(start.encoder, train_text)
    held_out_tokens = encode_documents(start.encoder, held_out_text)
    held_out_bytes = len(held_out_text.replace(END_OF_TEXT, '').encode('utf-8'))
    if len(train_tokens) <= seq_len or not held_out_bytes:
        raise cli.UserError('%s is too short: %d tokens to train on, for sequences of %d; give '
                            'more text, or a smaller --seq_len'
                            % (data, len(train_tokens), seq_len))
    settings = {'text': fingerprint(train_tokens, held_out_tokens), 'model_name': model_name,
                'scratch': scratch, 'steps': steps, 'batch_size': batch_size,
                'accumulation': accumulation, 'seq_len': seq_len, 'learning_rate': learning_rate,
                'weight_decay': weight_decay, 'clip_norm': clip_norm, 'held_out': held_out,
                'val_every': val_every, 'seed': seed}
    progress = read_progress(directory, settings) if resume else Progress(0, None)
    make_directory(directory)
    trim_metrics(directory, progress.step)

    tf = cli.import_tensorflow()
    tf.set_random_seed(seed)
    graph = build_graph(start.hparams, weight_decay, clip_norm, accumulation)
    saver = tf.train.Saver(checkpoint.model_weights(), max_to_keep=None)
    everything = tf.train.Saver(tf.global_variables(), max_to_keep=None)
    done, best, losses = progress.step, progress.best, []

    def measure():
        """Measures the held-out loss, tells it, and keeps the weights if they are the best."""
        nonlocal losses, best
        nats = held_out_loss(session, graph, held_out_tokens, batch_size, seq_len)
        if not math.isfinite(nats):
            raise diverged(done, nats)
        bits = nats * (len(held_out_tokens) - 1) / held_out_bytes / math.log(2)
        kept = best is None or nats < best
        if kept:
            best = nats
            checkpoint.save(session, saver, directory, start.directory)
        loss = float(np.mean(losses))
        append_metrics(directory, {'step': done, 'training_loss': loss, 'held_out_loss': nats,
                                   'bits_per_byte': bits, 'kept': kept})
        tqdm.write('step %d: training loss %.4f, held-out loss %.4f nats per token, %.4f bits per '
                   'byte%s' % (done, loss, nats, bits, ', kept' if kept else ''))
        sys.stdout.flush()
        losses = []

    with tf.Session() as session:
        if done:
            everything.restore(session, os.path.join(directory, 'training', 'step-%d' % done))
        else:
            initialize(session, start, scratch)
        try:
            with tqdm(total=steps, initial=done, unit='step', disable=None) as bar:
                while done < steps:
                    rate = learning_rate * schedule((done + 1) / steps)
                    batches = [random_batch(train_tokens, batch_size, seq_len, seed, number)
                               for number in range(done * accumulation, (done + 1) * accumulation)]
                    loss = run_step(session, graph, batches, rate)
                    if not math.isfinite(loss):
                        raise diverged(done + 1, loss)
                    losses.append(loss)
                    done += 1
                    bar.set_postfix(loss='%.3f' % loss, refresh=False)
                    bar.update()
                    if done % val_every == 0 or done == steps:
                        measure()
                        write_progress(session, everything, directory, Progress(done, best),
                                       settings)
        except KeyboardInterrupt:
            if losses:
                measure()
            raise


def run_step(session, graph, batches, rate):
    """Runs one step over batches, int32 [B, S + 1] each, and returns their mean loss."""
    feeds = [{graph.tokens: batch, graph.learning_rate: rate} for batch in batches]
    losses = [session.run([graph.mean_loss, graph.add], feed)[0] for feed in feeds[:-1]]
    losses.append(session.run([graph.mean_loss, graph.step], feeds[-1])[0])
    return float(np.mean(losses))


def diverged(step, loss):
    """Returns the error that a loss which is no number is told with."""
    return cli.UserError('training diverged at step %d: the loss is %s; try a lower '
                         '--learning_rate' % (step, loss))


# What --resume goes on from. training/progress.json names the step whose weights and optimizer
# state are whole; it is replaced last. All after that step is done again, with the same result.

# The steps done, and the lowest held-out loss up to there, in nats per token (None: no loss yet).
Progress = collections.namedtuple('Progress', 'step best')


def fingerprint(*tokens):
    """Returns a checksum of arrays of tokens."""
    return hashlib.sha256(b'|'.join(array.astype('<i4').tobytes() for array in tokens)).hexdigest()


def read_progress(directory, settings):
    """Returns the Progress of an earlier run; that of none if it wrote nothing yet.

    Raises:
      UserError: it had other settings, or its progress is not there to read.
    """
    path = os.path.join(directory, 'training', 'progress.json')
    try:
        with open(path, encoding='utf-8') as file:
            stored = json.load(file)
        progress, before = Progress(stored['step'], stored['best']), stored['settings']
    except FileNotFoundError:
        if os.path.exists(os.path.join(directory, 'checkpoint')) and not os.path.exists(
                os.path.join(directory, 'metrics.jsonl')):
            raise cli.UserError('%s holds a model that was not trained here; give another --output'
                                % directory)
        return Progress(0, None)
    except (OSError, ValueError, KeyError, TypeError):
        raise cli.UserError('%s cannot be read; train anew with another --output' % path)
    different = ['--%s %s (it was %s)' % (name, settings[name], before.get(name))
                 for name in settings if name != 'text' and settings[name] != before.get(name)]
    if before.get('text') != settings['text']:
        different.insert(0, 'another text')
    if different:
        raise cli.UserError('%s was trained with other settings; now there is %s'
                            % (directory, ', '.join(different)))
    return progress


def write_progress(session, saver, directory, progress, settings):
    """Saves all variables, then names them in progress.json, then removes those named before."""
    folder = os.path.join(directory, 'training')
    os.makedirs(folder, exist_ok=True)
    name = 'step-%d' % progress.step
    saver.save(session, os.path.join(folder, name), write_state=False, write_meta_graph=False)
    path = os.path.join(folder, 'progress.json')
    with open(path + '.partial', 'w', encoding='utf-8') as file:
        json.dump(dict(progress._asdict(), settings=settings), file)
    os.replace(path + '.partial', path)
    for other in glob.glob(os.path.join(glob.escape(folder), 'step-*')):
        if not os.path.basename(other).startswith(name + '.'):
            os.remove(other)


def append_metrics(directory, line):
    """Adds a line to metrics.jsonl."""
    with open(os.path.join(directory, 'metrics.jsonl'), 'a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')


def trim_metrics(directory, step):
    """Leaves the whole lines of metrics.jsonl up to a step, and makes the file if there is none."""
    path = os.path.join(directory, 'metrics.jsonl')
    lines = []
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            whole = [line for line in file if line.endswith('\n')]
        lines = [line for line in whole if json.loads(line)['step'] <= step]
    with open(path + '.partial', 'w', encoding='utf-8') as file:
        file.writelines(lines)
    os.replace(path + '.partial', path)


def output_directory(name, models_dir, resume):
    """Returns the directory of the model to write.

    Raises:
      UserError: no name is given, or a model of that name is there already and not to go on with.
    """
    if not name:
        raise cli.UsageError('--output is missing: give the name of the model to write')
    if os.path.basename(name) != name or name in ('.', '..'):
        raise cli.UsageError('--output must be a name, not a path such as %r' % name)
    directory = os.path.join(models_dir, name)
    if not resume and (os.path.exists(os.path.join(directory, 'hparams.json')) or
                       os.path.exists(os.path.join(directory, 'training'))):
        raise cli.UserError('%s holds a model already; give another --output, or go on with it '
                            'by --resume' % directory)
    return directory


def make_directory(directory):
    """Makes the directory of the model to write before hours go into it. Raises UserError."""
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise cli.UserError('%s cannot be made: %s' % (directory, error.strerror))


def read_text(path):
    """Returns the text of a file, or of all .txt files of a folder as separate documents.

    Raises:
      UserError: there is no such file, or it is not UTF-8.
    """
    paths = sorted(glob.glob(os.path.join(glob.escape(path), '*.txt'))) or [path]
    texts = []
    for path in paths:
        try:
            with open(path, encoding='utf-8', newline='') as file:
                texts.append(file.read())
        except OSError as error:
            raise cli.UserError('%s: %s; give a text file, or a folder of .txt files'
                                % (path, error.strerror))
        except UnicodeDecodeError as error:
            raise cli.UserError('%s is not UTF-8 text: byte %d; convert it first'
                                % (path, error.start))
    return END_OF_TEXT.join(texts)


def split(text, held_out):
    """Splits a text in two, the second with that share of its bytes and no character cut."""
    data = text.encode('utf-8')
    first = data[:int(len(data) * (1 - held_out))].decode('utf-8', 'ignore')
    return first, text[len(first):]


def encode_documents(encoder, text):
    """Returns the tokens of a text, int32 [n], with <|endoftext|> before each document."""
    tokens = []
    for document in text.split(END_OF_TEXT):
        tokens.append(encoder.encoder[END_OF_TEXT])
        tokens += encoder.encode(document)
    return np.array(tokens, dtype=np.int32)


def random_batch(tokens, batch_size, seq_len, seed, number):
    """Returns batch `number` of a run, int32 [B, S + 1]: stretches from random places."""
    random = np.random.default_rng([seed, number])
    starts = random.integers(len(tokens) - seq_len, size=batch_size)
    return np.stack([tokens[start:start + seq_len + 1] for start in starts])


def build_graph(hparams, weight_decay, clip_norm, accumulation):
    """Builds the training graph of a model: cross entropy and AdamW."""
    tf = cli.import_tensorflow()
    import model
    import optimizer
    tokens = tf.placeholder(tf.int32, [None, None])
    learning_rate = tf.placeholder(tf.float32, [])
    logits = model.model(hparams, tokens[:, :-1])['logits']
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits)
    mean_loss = tf.reduce_mean(losses)
    add, step = optimizer.adamw(mean_loss, checkpoint.model_weights(), learning_rate, weight_decay,
                                clip_norm, accumulation)
    return Graph(tokens, learning_rate, add or tf.no_op(), step, mean_loss, tf.reduce_sum(losses))


def initialize(session, start, scratch):
    """Gives the session the weights to start from, and the optimizer its zeros."""
    tf = cli.import_tensorflow()
    weights = set() if scratch else {weight.name for weight in checkpoint.model_weights()}
    session.run(tf.variables_initializer(
        [variable for variable in tf.global_variables() if variable.name not in weights]))
    if not scratch:
        checkpoint.restore(session, start.directory)


def schedule(progress):
    """Returns the learning rate of a step relative to the highest, progress above 0, at most 1."""
    if progress < 0.05:
        return progress / 0.05
    return 0.55 + 0.45 * math.cos(math.pi * (progress - 0.05) / 0.95)


def held_out_loss(session, graph, tokens, batch_size, seq_len):
    """Returns the mean loss of all tokens but the first, in nats.

    The tokens are read in stretches of seq_len, so one has half as many before it on average.
    """
    stretches = [tokens[i:i + seq_len + 1] for i in range(0, len(tokens) - 1, seq_len)]
    *whole, last = stretches
    batches = [whole[i:i + batch_size] for i in range(0, len(whole), batch_size)] + [[last]]
    total = sum(session.run(graph.total_loss, {graph.tokens: batch}) for batch in batches)
    return float(total / (len(tokens) - 1))


if __name__ == '__main__':
    cli.run(train)
