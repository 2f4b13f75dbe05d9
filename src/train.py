"""Trains a model on text: python3 src/train.py DATA --output NAME. See --help."""

import collections
import glob
import math
import os
import sys

import numpy as np
from tqdm import tqdm

import checkpoint
import cli
from checkpoint import END_OF_TEXT

# The nodes of the training graph: token ids int32 [B, S + 1] and the rate go in; a training step,
# the mean loss of the batch and the sum of its losses, in nats, come out.
Graph = collections.namedtuple('Graph', 'tokens learning_rate step mean_loss total_loss')


def train(data: str, output: str = None, model_name='124M', scratch=False, steps=1000,
          batch_size=4, seq_len=None, learning_rate=1e-4, held_out=0.1, val_every=100, seed=0,
          models_dir='models'):
    """Trains a model on your own text, from a model's weights or from scratch.

    python3 src/train.py DATA --output NAME [flags]

    Prints the loss on held-out text as training goes on, and keeps the weights that did best
    there in MODELS_DIR/NAME, which the other scripts take as --model_name NAME. Ctrl-C ends
    training early: it measures the loss once more and keeps the weights if they are the best.

    DATA             a UTF-8 text file, or a folder whose .txt files are taken in order of name;
                     documents within a file are separated by <|endoftext|>
    --output         name of the model to write; there must be none of that name yet
    --model_name     the model to start from: 124M
    --scratch        take only its shape and vocabulary, and start from random weights
    --steps          number of steps, at least 1: 1000
    --batch_size     sequences a step, at least 1: 4
    --seq_len        tokens a sequence, 2 to the model's window; all of it if not given
    --learning_rate  the highest: it rises over the first twentieth of the steps, then falls
                     along a cosine to a tenth; above 0: 1e-4
    --held_out       share of the text, at its end, to measure the loss on: above 0, below 1: 0.1
    --val_every      steps between two measurements, at least 1: 100
    --seed           of the batches and of random weights, at least 0: 0
    --models_dir     where the models are: models
    """
    cli.check_int('steps', steps, 1)
    cli.check_int('batch_size', batch_size, 1)
    cli.check_number('learning_rate', learning_rate, lambda value: value > 0, 'above 0')
    cli.check_number('held_out', held_out, lambda value: 0 < value < 1, 'above 0 and below 1')
    cli.check_int('val_every', val_every, 1)
    cli.check_int('seed', seed, 0, 2**31 - 1)
    start = checkpoint.open_model(model_name, models_dir, weights=not scratch)
    seq_len = start.hparams.n_ctx if seq_len is None else seq_len
    cli.check_int('seq_len', seq_len, 2, start.hparams.n_ctx)
    directory = output_directory(output, models_dir)

    train_text, held_out_text = split(read_text(data), held_out)
    train_tokens = encode_documents(start.encoder, train_text)
    held_out_tokens = encode_documents(start.encoder, held_out_text)
    held_out_bytes = len(held_out_text.replace(END_OF_TEXT, '').encode('utf-8'))
    if len(train_tokens) <= seq_len or not held_out_bytes:
        raise cli.UserError('%s is too short: %d tokens to train on, for sequences of %d; give '
                            'more text, or a smaller --seq_len'
                            % (data, len(train_tokens), seq_len))
    make_directory(directory)

    tf = cli.import_tensorflow()
    tf.set_random_seed(seed)
    graph = build_graph(start.hparams)
    saver = tf.train.Saver(checkpoint.model_weights(), max_to_keep=None)
    batches = random_batches(train_tokens, batch_size, seq_len, seed)
    losses, best = [], math.inf

    def measure(done):
        """Measures the held-out loss, tells it, and keeps the weights if they are the best."""
        nonlocal losses, best
        nats = held_out_loss(session, graph, held_out_tokens, batch_size, seq_len)
        bits = nats * (len(held_out_tokens) - 1) / held_out_bytes / math.log(2)
        kept = nats < best
        if kept:
            best = nats
            checkpoint.save(session, saver, directory, start.directory)
        tqdm.write('step %d: training loss %.4f, held-out loss %.4f nats per token, %.4f bits per '
                   'byte%s' % (done, np.mean(losses), nats, bits, ', kept' if kept else ''))
        sys.stdout.flush()
        losses = []

    with tf.Session() as session:
        initialize(session, start, scratch)
        done = 0
        try:
            with tqdm(total=steps, unit='step', disable=None) as progress:
                while done < steps:
                    rate = learning_rate * schedule((done + 1) / steps)
                    feed = {graph.tokens: next(batches), graph.learning_rate: rate}
                    losses.append(session.run([graph.mean_loss, graph.step], feed)[0])
                    done += 1
                    if not math.isfinite(losses[-1]):
                        raise cli.UserError('training diverged at step %d: the loss is %s; try a '
                                            'lower --learning_rate' % (done, losses[-1]))
                    progress.set_postfix(loss='%.3f' % losses[-1], refresh=False)
                    progress.update()
                    if done % val_every == 0 or done == steps:
                        measure(done)
        except KeyboardInterrupt:
            if losses:
                measure(done)
            raise


def output_directory(name, models_dir):
    """Returns the directory of the model to write.

    Raises:
      UserError: no name is given, or a model of that name is there already.
    """
    if not name:
        raise cli.UsageError('--output is missing: give the name of the model to write')
    if os.path.basename(name) != name or name in ('.', '..'):
        raise cli.UsageError('--output must be a name, not a path such as %r' % name)
    directory = os.path.join(models_dir, name)
    if os.path.exists(os.path.join(directory, 'hparams.json')):
        raise cli.UserError('%s holds a model already; give another --output' % directory)
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


def random_batches(tokens, batch_size, seq_len, seed):
    """Yields int32 [B, S + 1] without end: stretches of the tokens from random places."""
    random = np.random.RandomState(seed)
    while True:
        starts = random.randint(len(tokens) - seq_len, size=batch_size)
        yield np.stack([tokens[start:start + seq_len + 1] for start in starts])


def build_graph(hparams):
    """Builds the training graph of a model: cross entropy and Adam (Kingma and Ba 2015)."""
    tf = cli.import_tensorflow()
    import model
    tokens = tf.placeholder(tf.int32, [None, None])
    learning_rate = tf.placeholder(tf.float32, [])
    logits = model.model(hparams, tokens[:, :-1])['logits']
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits)
    mean_loss = tf.reduce_mean(losses)
    step = tf.train.AdamOptimizer(learning_rate).minimize(mean_loss)
    return Graph(tokens, learning_rate, step, mean_loss, tf.reduce_sum(losses))


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
    return total / (len(tokens) - 1)


if __name__ == '__main__':
    cli.run(train)
