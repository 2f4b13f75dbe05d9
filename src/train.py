"""Trains a model on text: python3 src/train.py DATA --output NAME. See --help."""

import collections
import contextlib
import glob
import json
import math
import os
import re
import signal
import sys
import types

import numpy as np
from tqdm import tqdm

import checkpoint
import cli
import dataset
import texts
from checkpoint import END_OF_TEXT

# The flags that decide what is learned. With --resume they must be as they were.
SETTINGS = ('model_name', 'scratch', 'steps', 'batch_size', 'accumulation', 'seq_len',
            'learning_rate', 'schedule', 'warmup', 'weight_decay', 'clip_norm', 'dropout',
            'train_only', 'dtype', 'held_out', 'val_every', 'seed')


def train(data: str, output: str = None, model_name='124M', scratch=False, resume=False,
          steps=1000, batch_size=4, accumulation=1, seq_len=None, learning_rate=1e-4,
          schedule='cosine', warmup=None, weight_decay=0.01, clip_norm=1.0, dropout=0.0,
          train_only='all', dtype='float32', recompute=False, xla=False, devices=None,
          held_out=0.1, val_every=100, sample_length=100, keep_last=1, seed=0,
          models_dir='models'):
    """Trains a model on your own text, from a model's weights or from scratch.

    python3 src/train.py DATA --output NAME [flags]

    Prints the loss on held-out text and a sample as training goes on, and keeps the weights that
    did best there in MODELS_DIR/NAME, which the other scripts take as --model_name NAME. Ctrl-C
    ends training early: once the step is done it measures once more and keeps the weights if they
    are the best. (Ctrl-C while it does so ends it without.)

    Beside the weights are metrics.jsonl, the measurements, and training/, which TensorBoard reads,
    and from which --resume goes on exactly where the last measurement left off, even after a crash.
    When you are done, training/ can be removed.

    DATA             a UTF-8 text file, with <|endoftext|> between documents if it has several; a
                     .jsonl, each line an object with a "text"; a folder of such files; or a
                     pattern, 'books/*.txt'. Its tokens are kept in a file beside it
    --output         name of the model to write; there must be none of that name yet, but with
    --resume         which goes on with it; all that decides what is learned must be as it was
    --model_name     the model to start from: 124M
    --scratch        take only its shape and vocabulary, and start from random weights
    --steps          number of steps, at least 1: 1000
    --batch_size     sequences at a time, at least 1: 4
    --accumulation   batches a step, whose mean gradient is taken, at least 1: 1
    --seq_len        tokens a sequence, 2 to the model's window; all of it if not given
    --learning_rate  the highest, above 0: 1e-4
    --schedule       of the rate once it has risen: cosine, down to a tenth, or constant: cosine
    --warmup         steps in which the rate rises, at least 0; a twentieth of all if not given
    --weight_decay   of matrices and embeddings, times the rate, as in AdamW; at least 0: 0.01
    --clip_norm      largest norm of a step's gradient, above 0; a longer one is shortened: 1
    --dropout        share of activations that are dropped, from 0 on, below 1: 0
    --train_only     which weights: all; blocks, all but the embeddings and the last normalization;
                     or a number, so many blocks from the end: all
    --dtype          of the matrix products: float32, or bfloat16 where the hardware has it; the
                     weights themselves are float32: float32
    --recompute      compute each block twice, which takes a third longer, and much less memory
    --xla            compile the step (TensorFlow 2)
    --devices        number of GPUs, which share each batch; without GPUs, of parts of the CPU, to
                     try this out; all GPUs if not given
    --held_out       share of the text, at its end, to measure the loss on, above 0, below 1; all of
                     it is read at each measurement, so give less of a large text: 0.1
    --val_every      steps between two measurements, at least 1: 100
    --sample_length  tokens of the sample after each measurement; 0 makes none: 100
    --keep_last      number of measurements, from the end, whose weights and optimizer state stay
                     in training/, at least 1: 1
    --seed           of the batches, dropout and random weights, at least 0: 0
    --models_dir     where the models are: models
    """
    flags = types.SimpleNamespace(**locals())
    check_flags(flags)
    start = checkpoint.open_model(model_name, models_dir, weights=not scratch)
    fit_to_model(flags, start.hparams)
    directory = output_directory(output, models_dir, resume)
    opened = dataset.open_dataset(data, start)
    lengths = dataset.byte_lengths(start.encoder)
    tokens, rest = dataset.split(opened.tokens, lengths, held_out)
    held_out = HeldOut(rest, dataset.count_bytes(rest[1:], lengths))
    if len(tokens) <= flags.seq_len:
        raise cli.UserError('%s is too short: %d tokens to train on, for sequences of %d; give '
                            'more text, or a smaller --seq_len'
                            % (data, len(tokens), flags.seq_len))
    if not held_out.n_bytes:
        raise cli.UserError('%s is too short for anything of it to be held out; give more text, or '
                            'a larger --held_out' % data)
    settings = dict({name: getattr(flags, name) for name in SETTINGS}, text=opened.key)
    with taken(directory, resume):
        progress = read_progress(directory, settings) if resume else Progress(0, None)
        trim_metrics(directory, progress.step)
        trainer = Trainer(flags, start, directory, settings)
        with told_if_too_large():
            trainer.begin(progress)
            trainer.run(tokens, held_out)


# Flags

def check_flags(flags):
    """Raises UsageError unless the flags make sense, and UserError if they cannot be had here."""
    for name in ('steps', 'batch_size', 'accumulation', 'val_every', 'keep_last'):
        cli.check_int(name, getattr(flags, name), 1)
    for name in ('seed', 'sample_length'):
        cli.check_int(name, getattr(flags, name), 0)
    for name in ('learning_rate', 'clip_norm'):
        cli.check_number(name, getattr(flags, name), lambda value: value > 0, 'above 0')
    cli.check_number('weight_decay', flags.weight_decay, lambda value: value >= 0, 'of at least 0')
    cli.check_number('dropout', flags.dropout, lambda value: 0 <= value < 1, 'from 0 on, below 1')
    cli.check_number('held_out', flags.held_out, lambda value: 0 < value < 1, 'above 0, below 1')
    cli.check_choice('schedule', flags.schedule, ('cosine', 'constant'))
    cli.check_choice('dtype', flags.dtype, ('float32', 'bfloat16'))
    flags.warmup = flags.steps // 20 if flags.warmup is None else flags.warmup
    cli.check_int('warmup', flags.warmup, 0)
    if flags.devices is not None:
        cli.check_int('devices', flags.devices, 1)
        if flags.batch_size % flags.devices:
            raise cli.UsageError('--batch_size must be a multiple of --devices, %d, not %d'
                                 % (flags.devices, flags.batch_size))
    if not re.fullmatch(r'all|blocks|[1-9]\d*', flags.train_only):
        raise cli.UsageError('--train_only must be all, blocks or a number of blocks, not %r'
                             % flags.train_only)


def fit_to_model(flags, hparams):
    """Fills in the default of --seq_len. Raises UsageError: the model is smaller than the flags."""
    flags.seq_len = hparams.n_ctx if flags.seq_len is None else flags.seq_len
    cli.check_int('seq_len', flags.seq_len, 2, hparams.n_ctx)
    if flags.train_only.isdigit():
        cli.check_int('train_only', int(flags.train_only), 1, hparams.n_layer)


def output_directory(name, models_dir, resume):
    """Returns the directory of the model to write.

    Raises:
      UserError: no name is given, or a model of that name is there already and not to go on with,
        or there is nothing to go on from; or (ModelError) TensorFlow cannot read such a path.
    """
    if not name or not cli.is_unicode(name):
        raise cli.UsageError('--output is missing: give the name of the model to write')
    if os.path.basename(name) != name or name in ('.', '..'):
        raise cli.UsageError('--output must be a name, not a path such as %r' % name)
    directory = os.path.join(models_dir, name)
    checkpoint.check_path(directory)
    if not resume:
        check_unused(directory)
    elif os.path.exists(os.path.join(directory, 'checkpoint')) and not os.path.isdir(
            os.path.join(directory, 'training')):
        raise cli.UserError('%s holds a model, but no training/ to go on from; give another '
                            '--output' % directory)
    return directory


def check_unused(directory):
    """Raises UserError if a directory holds a model."""
    for name in ('hparams.json', os.path.join('training', 'progress.json')):
        if os.path.exists(os.path.join(directory, name)):
            raise cli.UserError('%s holds a model already; give another --output, or go on with it '
                                'by --resume' % directory)


@contextlib.contextmanager
def taken(directory, resume):
    """Makes the directory of the model to write, before hours go into it, and locks it meanwhile.

    Raises:
      UserError: it cannot be made, or another process trains a model there, or has done so.
    """
    path = os.path.join(directory, 'training')
    try:
        os.makedirs(path, exist_ok=True)
        lock = open(os.path.join(path, 'lock'), 'w', encoding='utf-8')
    except OSError as error:
        raise cli.UserError('%s cannot be made: %s' % (directory, error.strerror))
    with lock:
        if not checkpoint.lock(lock):
            raise cli.UserError('%s is being trained by another process; wait for it, or give '
                                'another --output' % directory)
        if not resume:
            check_unused(directory)
        yield


@contextlib.contextmanager
def noted_interrupt():
    """Notes the first Ctrl-C in a list, which this yields; one after that is raised as ever.

    A step is thus done in whole or not at all. Raised, KeyboardInterrupt would come between the
    weights, which TensorFlow has moved, and the number of the step.
    """
    noted, before = [], signal.getsignal(signal.SIGINT)

    def note(number, frame):
        noted.append(number)
        signal.signal(signal.SIGINT, before)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


# The loop

class Trainer:
    """A training under way: a graph, its session, and the files that are written.

    done: the number of steps done.
    """

    def __init__(self, flags, start, directory, settings):
        """Builds the graph.

        Args:
          flags: of `train`.
          start: the checkpoint.Model to start from.
          directory: of the model to write.
          settings: a dict, which --resume compares.

        Raises:
          UserError: this machine cannot do what the flags ask for.
        """
        tf = cli.import_tensorflow()
        devices = choose_devices(flags)
        import learning
        import sample
        tf.set_random_seed(flags.seed)
        self.flags, self.start, self.directory, self.settings = flags, start, directory, settings
        self.graph = learning.build_graph(start.hparams, flags, devices)
        self.weights = tf.train.Saver(checkpoint.model_weights(), max_to_keep=None)
        self.everything = tf.train.Saver(tf.global_variables(), max_to_keep=None)
        self.session = tf.Session(config=tf.ConfigProto(
            allow_soft_placement=True, device_count={'CPU': len(devices)}))
        self.events = tf.summary.FileWriter(os.path.join(directory, 'training'))
        self.end = start.encoder.encoder[END_OF_TEXT]
        if flags.sample_length:
            self.sampler = sample.Sampler(self.session, start.hparams, stop_token=self.end,
                                          top_k=min(40, start.hparams.n_vocab))

    def begin(self, progress):
        """Gives the weights and the optimizer the values to start from, or to go on from.

        Raises:
          UserError: what to go on from cannot be read.
        """
        tf = cli.import_tensorflow()
        self.done, self.best, self.losses = progress.step, progress.best, []
        if self.done:
            path = state_path(self.directory, self.done)
            try:
                self.everything.restore(self.session, path)
            except (tf.errors.NotFoundError, tf.errors.DataLossError, tf.errors.OutOfRangeError,
                    ValueError):
                raise cli.UserError('%s.* cannot be read; train anew with another --output' % path)
        else:
            initialize(self.session, self.start, self.flags.scratch)
        # TensorBoard forgets what it was told of later steps, which are done again.
        self.events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), self.done + 1)

    def run(self, tokens, held_out):
        """Does all steps that are left, with a progress bar on stderr if that is a terminal.

        Args:
          tokens: to learn from, int [n].
          held_out: the HeldOut.

        Raises:
          KeyboardInterrupt: after Ctrl-C, once the step is done and measured.
          UserError: as `step` and `measure` do.
        """
        flags = self.flags
        n_tokens = flags.batch_size * flags.accumulation * flags.seq_len
        with noted_interrupt() as noted, \
                tqdm(total=flags.steps * n_tokens, initial=self.done * n_tokens, unit='token',
                     unit_scale=True, disable=None) as bar:
            while self.done < flags.steps:
                loss, rate = self.step(tokens)
                self.log(loss=loss, learning_rate=rate)
                bar.set_description('step %d of %d' % (self.done, flags.steps), refresh=False)
                bar.set_postfix(loss='%.3f' % loss, refresh=False)
                bar.update(n_tokens)
                if noted or self.done % flags.val_every == 0 or self.done == flags.steps:
                    if noted:
                        tqdm.write('measuring once more; Ctrl-C ends it without', sys.stderr)
                    self.measure(held_out)
                    if noted:
                        raise KeyboardInterrupt

    def step(self, tokens):
        """Does one step. Returns its mean loss and its learning rate. Raises UserError."""
        flags = self.flags
        rate = flags.learning_rate * schedule(self.done + 1, flags)
        first = self.done * flags.accumulation
        batches = [(random_batch(tokens, flags, number), batch_noise(flags.seed, number))
                   for number in range(first, first + flags.accumulation)]
        loss = run_step(self.session, self.graph, batches, rate)
        if not math.isfinite(loss):
            raise diverged(self.done + 1, loss)
        self.losses.append(loss)
        self.done += 1
        return loss, rate

    def measure(self, held_out):
        """Measures the held-out loss, tells it, shows a sample, and saves.

        Raises:
          UserError: the loss is no number, or the disk is full.
        """
        nats = held_out_loss(self.session, self.graph, held_out.tokens, self.flags)
        if not math.isfinite(nats):
            raise diverged(self.done, nats)
        bits = nats * (len(held_out.tokens) - 1) / held_out.n_bytes / math.log(2)
        kept = self.best is None or nats < self.best
        self.best = nats if kept else self.best
        loss = float(np.mean(self.losses))
        self.losses = []
        self.save({'step': self.done, 'training_loss': loss, 'held_out_loss': nats,
                   'bits_per_byte': bits, 'kept': kept})
        self.log(held_out_loss=nats, bits_per_byte=bits)
        self.events.flush()
        self.tell('step %d: training loss %.4f, held-out loss %.4f nats per token, %.4f bits per '
                  'byte%s' % (self.done, loss, nats, bits, ', kept' if kept else ''))
        if self.flags.sample_length:
            self.tell('=' * 40 + ' STEP %d ' % self.done + '=' * 40 + '\n' + self.sample())

    def save(self, metrics):
        """Writes the weights if they are to be kept, the measurements, and what --resume needs."""
        tf = cli.import_tensorflow()
        try:
            if metrics['kept']:
                checkpoint.save(self.session, self.weights, self.directory, self.start.directory)
            append_metrics(self.directory, metrics)
            write_progress(self.session, self.everything, self.directory,
                           Progress(self.done, self.best), self.settings, self.flags.keep_last)
        except (OSError, tf.errors.OpError) as error:
            problem = error.strerror if isinstance(error, OSError) else error.message
            raise cli.UserError('%s cannot be written to (%s); make room there, then go on with '
                                '--resume' % (self.directory, problem))

    def sample(self):
        """Returns a text that the model makes up now, drawn from the 40 likeliest tokens each."""
        keep = max(1, self.start.hparams.n_ctx // 2)
        *_, (text,) = texts.grow(
            self.sampler, self.start.encoder, [(self.done, [self.end])], seed=self.flags.seed,
            length=self.flags.sample_length, keep=keep, batch_size=1)
        return text.text

    def log(self, **scalars):
        """Hands scalars to TensorBoard."""
        tf = cli.import_tensorflow()
        self.events.add_summary(tf.Summary(value=[
            tf.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]),
            self.done)

    @staticmethod
    def tell(text):
        """Prints a text above the progress bar."""
        tqdm.write(text)
        sys.stdout.flush()


def choose_devices(flags):
    """Returns the names of the devices that share a batch.

    Raises:
      UserError: there are not as many, or what the flags ask for cannot be had on them.
    """
    tf = cli.import_tensorflow()
    gpus = tf.config.experimental.list_physical_devices('GPU')
    n = flags.devices or len(gpus) or 1
    if gpus and n > len(gpus):
        raise cli.UserError('there are %d GPUs, not %d; give a smaller --devices' % (len(gpus), n))
    if flags.batch_size % n:
        raise cli.UsageError('--batch_size must be a multiple of the number of GPUs, %d, not %d; '
                             'or give --devices 1' % (n, flags.batch_size))
    is_tensorflow_1 = tf.__version__.startswith('1.')
    if flags.xla and is_tensorflow_1:
        raise cli.UserError('--xla needs TensorFlow 2, and this is %s' % tf.__version__)
    if flags.dtype == 'bfloat16' and (is_tensorflow_1 or not has_bfloat16(gpus)):
        raise cli.UserError('--dtype bfloat16 needs TensorFlow 2 and a GPU or a processor that '
                            'computes in it, which is not here; leave it out')
    return ['/%s:%d' % ('gpu' if gpus else 'cpu', number) for number in range(n)]


def has_bfloat16(gpus):
    """Says whether GPUs, or without any this processor, have matrix products in bfloat16."""
    tf = cli.import_tensorflow()
    if gpus:
        return all(tf.config.experimental.get_device_details(gpu).get('compute_capability', (0,))
                   >= (8, 0) for gpu in gpus)  # NVIDIA's from Ampere on
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            return re.search(r'\b(avx512_bf16|amx_bf16)\b', file.read()) is not None
    except OSError:
        return False


@contextlib.contextmanager
def told_if_too_large():
    """Raises UserError if the memory is too small for what is done meanwhile."""
    tf = cli.import_tensorflow()
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise cli.UserError('the memory is too small; try --recompute, or a smaller --batch_size '
                            'with a larger --accumulation')


def initialize(session, start, scratch):
    """Gives the session the weights to start from, and the optimizer its zeros."""
    tf = cli.import_tensorflow()
    weights = set() if scratch else {weight.name for weight in checkpoint.model_weights()}
    session.run(tf.variables_initializer(
        [variable for variable in tf.global_variables() if variable.name not in weights]))
    if not scratch:
        checkpoint.restore(session, start.directory)


def run_step(session, graph, batches, rate):
    """Runs one step over batches, pairs of tokens [B, S + 1] and noise; returns their mean loss."""
    feeds = [{graph.tokens: tokens, graph.noise: noise, graph.learning_rate: rate}
             for tokens, noise in batches]
    losses = [session.run([graph.mean_loss, graph.add], feed)[0] for feed in feeds[:-1]]
    losses.append(session.run([graph.mean_loss, graph.step], feeds[-1])[0])
    return float(np.mean(losses))


def schedule(step, flags):
    """Returns the learning rate of a step, counted from 1, relative to the highest."""
    if step <= flags.warmup:
        return step / flags.warmup
    if flags.schedule == 'constant':
        return 1
    share = (step - flags.warmup) / (flags.steps - flags.warmup)
    return 0.55 + 0.45 * math.cos(math.pi * share)


def random_batch(tokens, flags, number):
    """Returns batch `number` of a run, int32 [B, S + 1]: stretches from random places."""
    random = np.random.default_rng([flags.seed, number])
    starts = random.integers(len(tokens) - flags.seq_len, size=flags.batch_size)
    return np.array([tokens[start:start + flags.seq_len + 1] for start in starts], np.int32)


def batch_noise(seed, number):
    """Returns what decides dropout in batch `number` of a run, an int of 31 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)


# Held-out text: its tokens, and the bytes of all of them but the first.
HeldOut = collections.namedtuple('HeldOut', 'tokens n_bytes')


def held_out_loss(session, graph, tokens, flags):
    """Returns the mean loss of all tokens but the first, in nats.

    The tokens are read in stretches of seq_len, so one has half as many before it on average.
    """
    stretches = [tokens[i:i + flags.seq_len + 1]
                 for i in range(0, len(tokens) - 1, flags.seq_len)]
    *whole, last = stretches
    batches = [whole[i:i + flags.batch_size] for i in range(0, len(whole), flags.batch_size)]
    total = sum(float(session.run(graph.total_loss, {graph.tokens: batch}))
                for batch in batches + [[last]])
    return total / (len(tokens) - 1)


def diverged(step, loss):
    """Returns the error that a loss which is no number is told with."""
    return cli.UserError('training diverged at step %d: the loss is %s; try a lower '
                         '--learning_rate' % (step, loss))


# What --resume goes on from. training/progress.json names the step whose weights and optimizer
# state are whole; it is replaced last. All after that step is done again, with the same result.

# The steps done, and the lowest held-out loss up to there, in nats per token (None: no loss yet).
Progress = collections.namedtuple('Progress', 'step best')


def state_path(directory, step):
    """Returns the path, without its endings, of all variables as they were after a step."""
    return os.path.join(directory, 'training', 'step-%d' % step)


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
        return Progress(0, None)
    except (OSError, ValueError, KeyError, TypeError):
        raise cli.UserError('%s cannot be read; train anew with another --output' % path)
    different = ['--%s %s (it was %s)' % (name, settings[name], before.get(name))
                 for name in SETTINGS if settings[name] != before.get(name)]
    if before.get('text') != settings['text']:
        different.insert(0, 'another text')
    if different:
        raise cli.UserError('%s was trained with other settings; now there is %s'
                            % (directory, ', '.join(different)))
    return progress


def write_progress(session, saver, directory, progress, settings, keep_last):
    """Saves all variables, then names them in progress.json, then removes the oldest ones."""
    folder = os.path.join(directory, 'training')
    saver.save(session, state_path(directory, progress.step), write_state=False,
               write_meta_graph=False)
    checkpoint.write_file(os.path.join(folder, 'progress.json'),
                          [json.dumps(dict(progress._asdict(), settings=settings))])
    checkpoint.write_state(folder, 'step-%d' % progress.step)
    files = collections.defaultdict(list)  # by step
    for other in glob.glob(os.path.join(glob.escape(folder), 'step-*')):
        files[int(re.search(r'step-(\d+)', os.path.basename(other)).group(1))].append(other)
    for step in sorted(files):
        if step > progress.step or step not in sorted(files)[-keep_last:]:
            for other in files[step]:
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
    checkpoint.write_file(path, lines)


if __name__ == '__main__':
    cli.run(train)
