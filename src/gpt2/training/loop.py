"""The training loop: steps, validation, samples, and what is saved of them."""

import contextlib
import math
import signal
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from gpt2 import checkpoint, model_dir, runtime
from gpt2.cluster import collective, meeting
from gpt2.errors import UserError
from gpt2.sampling import batching
from gpt2.sampling.graph import GraphDecoder
from gpt2.sampling.options import GenerationOptions, SamplingOptions
from gpt2.training import resume
from gpt2.training.data import dropout_seed, random_batch
from gpt2.training.devices import choose_devices
from gpt2.training.graph import build_graph


def train(start, data, options, compute, sample_length, output, progress, hosts):
    """Train the model of a ModelDir, `start`, by fitted TrainingOptions until all steps are done.

    The chief of the Hosts has the Progress to continue from, and writes the Output.

    Returns whether Ctrl-C ended it before; then the last step is complete and validated. Raises
    UserError if the devices or the memory do not suffice, the loss diverges, the output cannot be
    written, it cannot be resumed, or another host differs.
    """
    devices = choose_devices(options, compute, hosts.n)
    config = tf.ConfigProto(allow_soft_placement=True, device_count={'CPU': len(devices)})
    subject = dict(output.settings, **vars(start.hparams), devices=devices,
                   tensorflow=tf.__version__)
    with meeting.connect(hosts, config, subject, progress.step) as (target, step), \
            tf.Graph().as_default(), tf.Session(target, config=config) as session:
        try:
            runtime.require_memory(least_memory(start.hparams, options, hosts.n))
            tf.set_random_seed(options.seed)
            group = collective.Collective(hosts) if hosts.n > 1 else collective.Alone()
            graph = build_graph(start.hparams, options, compute, devices, group.average,
                                hosts.index * len(devices))
            steps = Steps(session, graph, options, data.training, hosts, group)
            if not hosts.is_chief:
                group.broadcast(session, tf.global_variables())
                return run_steps(steps, options, step)
            trainer = Trainer(session, graph, start, options, sample_length, output, steps)
            trainer.restore_or_initialize(progress)
            group.broadcast(session, tf.global_variables())
            trainer.introduce(data)
            return trainer.run(data)
        except (MemoryError, tf.errors.ResourceExhaustedError):
            raise UserError('the memory is too small; try --gradient_checkpointing, --optimizer '
                            'adafactor, or a smaller --batch_size with a larger --accumulation')


def least_memory(hparams, options, n_hosts):
    """Return how many bytes training takes a host at least, however few weights are trained.

    In float32: the weights; and of each token, the logits, and 12 E within a block.
    """
    n_tokens = options.batch_size // n_hosts * options.seq_len
    return 4 * model_dir.parameter_count(hparams) + 4 * n_tokens * (
        hparams.n_vocab + 12 * hparams.n_embd)


class Steps:
    """The steps of a run on this host, of the batches that all Hosts share."""

    def __init__(self, session, graph, options, tokens, hosts, group):
        """Args: tokens: to train on, int [n]; group: the Alone or Collective of the hosts."""
        self._session, self._graph, self._options = session, graph, options
        self._tokens, self._hosts, self._group = tokens, hosts, group
        self.batch_size = options.batch_size // hosts.n  # of this host

    def do(self, step, interrupted):
        """Do a step, counted from 1.

        Returns its mean loss, its learning rate, and whether Ctrl-C has `interrupted` any host,
        the same on all of them. Raises UserError if the loss is not finite.
        """
        options = self._options
        rate = options.learning_rate * schedule(step, options)
        first = (step - 1) * options.accumulation
        batches = [(self._hosts.share(random_batch(self._tokens, options, number)),
                    dropout_seed(options.seed, number))
                   for number in range(first, first + options.accumulation)]
        loss = run_step(self._session, self._graph, batches, rate, self._group.run_options)
        loss, stop = self._group.agree(self._session, loss, bool(interrupted))
        check_finite(step, loss)
        return loss, rate, stop


def run_steps(steps, options, done):
    """Do the Steps after the first `done`, on a host that is not the chief.

    Returns whether Ctrl-C ended them before.
    """
    with defer_sigint() as interrupted, progress_bar(options, done) as bar:
        for step in range(done + 1, options.steps + 1):
            loss, _, stop = steps.do(step, interrupted)
            show_step(bar, step, loss, options)
            if stop:
                return True
    return False


class Trainer:
    """A run of training in a session.

    `done` steps are done; `losses` are the training losses since the last validation; `best` is the
    lowest validation loss up to here, in nats per token, None before the first.
    """

    def __init__(self, session, graph, start, options, sample_length, output, steps):
        self.session, self.graph, self.start, self.options = session, graph, start, options
        self.sample_length, self.output, self.steps = sample_length, output, steps
        self.weights = tf.train.Saver(checkpoint.model_weights(), max_to_keep=None)
        self.state = tf.train.Saver(tf.global_variables(), max_to_keep=None)
        self.events = tf.summary.FileWriter(output.training_path())
        self.decoder = GraphDecoder(session, start) if sample_length else None

    def restore_or_initialize(self, progress):
        """Give weights and optimizer the values to resume from, or to start from."""
        self.done, self.best, self.losses = progress.step, progress.best, []
        if self.done:
            prefix = self.output.training_path(f'step-{self.done}')
            try:
                self.state.restore(self.session, prefix)
            except (tf.errors.NotFoundError, tf.errors.DataLossError, tf.errors.OutOfRangeError,
                    ValueError):
                raise UserError(f'{prefix}.* cannot be read; train again with another --output')
        else:
            initialize(self.session, self.start, self.options.scratch)
        # TensorBoard drops what it has of later steps, which are repeated.
        self.events.add_session_log(tf.SessionLog(status=tf.SessionLog.START), self.done + 1)

    def introduce(self, data):
        """Print on stderr what is trained on, and where the training starts."""
        print(describe(data, self.options), file=sys.stderr)
        if self.done:
            print(f'resuming after step {self.done} of {self.options.steps}; the lowest validation '
                  f'loss is {self.best:.4f} nats per token', file=sys.stderr)
            return
        nats = self.evaluate(data.validation)
        if not (math.isfinite(nats) or self.options.scratch):
            raise checkpoint.non_finite_error(self.start)
        print(f'before the first step: validation loss {nats:.4f} nats per token, perplexity '
              f'{np.exp(nats):.2f}', file=sys.stderr)

    def run(self, data):
        """Do all steps that are left, with a progress bar on stderr if that is a terminal.

        Returns whether Ctrl-C ended them before.
        """
        options = self.options
        with defer_sigint() as interrupted, progress_bar(options, self.done) as bar:
            while self.done < options.steps:
                loss, rate, stop = self.steps.do(self.done + 1, interrupted)
                self.losses.append(loss)
                self.done += 1
                self.log(loss=loss, learning_rate=rate)
                show_step(bar, self.done, loss, options)
                if stop:
                    tqdm.write('validating once more; press Ctrl-C again to skip that', sys.stderr)
                    self.validate(data)
                    return True
                if self.done % options.val_every == 0 or self.done == options.steps:
                    self.validate(data)
        return False

    def evaluate(self, tokens):
        """Return the mean loss of tokens for validation, read in batches of this host's size."""
        return evaluate(self.session, self.graph, tokens, self.options.seq_len,
                        self.steps.batch_size)

    def validate(self, data):
        """Compute the validation loss, save, report, and show a sample."""
        nats = self.evaluate(data.validation)
        check_finite(self.done, nats)
        bits = nats * (len(data.validation) - 1) / data.validation_bytes / math.log(2)
        kept = self.best is None or nats < self.best
        self.best = nats if kept else self.best
        loss = float(np.mean(self.losses))
        self.losses = []
        sample = self.sample() if self.decoder else None
        self.save({'step': self.done, 'training_loss': loss, 'held_out_loss': nats,
                   'bits_per_byte': bits, 'kept': kept}, sample)
        self.log(held_out_loss=nats, bits_per_byte=bits)
        if self.decoder:
            self.log_text(sample=sample)
        self.events.flush()
        report(f'step {self.done}: training loss {loss:.4f}, validation loss {nats:.4f} nats per '
               f'token, {bits:.4f} bits per byte{", kept" if kept else ""}')
        if self.decoder:
            report(resume.sample_text(self.done, sample))

    def sample(self):
        """Return a text of the model as it is now, each token drawn from the 40 likeliest."""
        hparams, encoder = self.start.hparams, self.start.encoder
        generation = GenerationOptions(seed=self.options.seed, length=self.sample_length)
        *_, (sequence,) = batching.generate(
            self.decoder, encoder, [(self.done, [encoder.end_of_text])],
            generation.fit_model(hparams.n_ctx, None),
            SamplingOptions(top_k=min(40, hparams.n_vocab)), batch_size=1)
        return sequence.text

    def save(self, metrics, sample):
        """Write the weights if they are the best, metrics, sample, and what --resume needs."""
        try:
            if metrics['kept']:
                checkpoint.save(self.session, self.weights, self.output.path, self.start)
            self.output.append_metrics(metrics)
            if sample is not None:
                self.output.append_sample(self.done, sample)
            self.output.write_progress(
                resume.Progress(self.done, self.best),
                lambda prefix: self.state.save(self.session, prefix, write_state=False,
                                               write_meta_graph=False))
        except (OSError, tf.errors.OpError) as error:
            problem = error.strerror if isinstance(error, OSError) else error.message
            raise UserError(f'{self.output.path} cannot be written ({problem}); make room there, '
                            'then continue with --resume')

    def log(self, **scalars):
        """Write scalars for TensorBoard."""
        values = [tf.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self.events.add_summary(tf.Summary(value=values), self.done)

    def log_text(self, **texts):
        """Write texts for TensorBoard, which takes them for Markdown: lines that are indented stay.

        Its plugin "text" shows values that name it in their metadata.
        """
        plugin, line_start = tf.SummaryMetadata.PluginData(plugin_name='text'), '\n' + ' ' * 4
        values = [tf.Summary.Value(
            tag=tag, metadata=tf.SummaryMetadata(plugin_data=plugin),
            tensor=tf.make_tensor_proto(line_start[1:] + text.replace('\n', line_start)))
                  for tag, text in texts.items()]
        self.events.add_summary(tf.Summary(value=values), self.done)


def initialize(session, start, scratch):
    """Give the session the weights to start from, and the optimizer its zeros."""
    restored = set() if scratch else {weight.name for weight in checkpoint.model_weights()}
    session.run(tf.variables_initializer(
        [variable for variable in tf.global_variables() if variable.name not in restored]))
    if not scratch:
        checkpoint.restore(session, start.path)


def describe(data, options):
    """Return a line about the TrainingData of a run."""
    steps = len(data.training) / tokens_per_step(options)
    plural = '' if data.n_documents == 1 else 's'
    return (f'{data.n_documents:,} document{plural}, {len(data.training):,} tokens to train on and '
            f'{len(data.validation):,} for validation; an epoch takes {steps:,.1f} steps')


def progress_bar(options, done):
    """Return a bar on stderr, if that is a terminal, that counts the tokens of all steps."""
    n_tokens = tokens_per_step(options)
    return tqdm(total=options.steps * n_tokens, initial=done * n_tokens, unit='token',
                unit_scale=True, disable=None)


def show_step(bar, step, loss, options):
    """Show in a bar that a step is done."""
    bar.set_description(f'step {step} of {options.steps}', refresh=False)
    bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
    bar.update(tokens_per_step(options))


def tokens_per_step(options):
    """Return how many tokens a step of TrainingOptions reads, on all hosts."""
    return options.batch_size * options.accumulation * options.seq_len


def run_step(session, graph, batches, rate, run_options=None):
    """Do a step on batches, pairs of tokens [B, S + 1] and dropout seed; return its mean loss."""
    feeds = [{graph.tokens: tokens, graph.dropout_seed: seed, graph.learning_rate: rate}
             for tokens, seed in batches]
    losses = [session.run([graph.mean_loss, graph.add], feed)[0] for feed in feeds[:-1]]
    losses.append(session.run([graph.mean_loss, graph.update], feeds[-1], run_options)[0])
    return float(np.mean(losses))


def schedule(step, options):
    """Return the learning rate of a step, counted from 1, relative to the highest."""
    if step <= options.warmup:
        return step / options.warmup
    if options.schedule == 'constant':
        return 1
    share = (step - options.warmup) / (options.steps - options.warmup)
    return 0.55 + 0.45 * math.cos(math.pi * share)


def evaluate(session, graph, tokens, seq_len, batch_size):
    """Return the mean loss, in nats, of all tokens but the first, read in sequences of seq_len."""
    *whole, last = [tokens[i:i + seq_len + 1] for i in range(0, len(tokens) - 1, seq_len)]
    batches = [whole[i:i + batch_size] for i in range(0, len(whole), batch_size)]
    total = sum(float(session.run(graph.total_loss, {graph.tokens: batch}))
                for batch in tqdm(batches + [[last]], 'validating', leave=False, disable=None))
    return total / (len(tokens) - 1)


def check_finite(step, loss):
    """Raise UserError if the loss of a step is not a finite number."""
    if not math.isfinite(loss):
        raise UserError(f'training diverged at step {step}: the loss is {loss}; try a lower '
                        '--learning_rate')


def report(text):
    """Print a text above the progress bar."""
    tqdm.write(text)
    sys.stdout.flush()


@contextlib.contextmanager
def defer_sigint():
    """Yield a list that the first Ctrl-C adds to; the next one raises KeyboardInterrupt as usual.

    So a step is done completely or not at all. KeyboardInterrupt would come between the weights,
    which TensorFlow has updated, and the number of the step.
    """
    interrupted, handler = [], signal.getsignal(signal.SIGINT)

    def defer(number, frame):
        interrupted.append(number)
        signal.signal(signal.SIGINT, handler)
    if handler != signal.SIG_IGN:
        signal.signal(signal.SIGINT, defer)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, handler)
