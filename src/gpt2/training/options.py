"""The options of training."""

import dataclasses
import os
import re
import types
from typing import Optional

from gpt2.errors import OptionError
from gpt2.model_dir import LARGEST_SIZE
from gpt2.options import PATH, SWITCH, Kind, Options, choice, is_unicode, number, option, whole

POSITIVE = number('above 0', lambda value: value > 0)
WEIGHTS = Kind('all, blocks or a number of blocks', lambda value: isinstance(value, str) and
               re.fullmatch(r'all|blocks|[1-9][0-9]{0,9}', value) is not None, str)
SIZES = ('n_layer', 'n_head', 'n_embd', 'n_ctx')  # those of a model that flags can give
SHARE = number('above 0 and below 1', lambda value: 0 < value < 1)
DATA = ('a UTF-8 text file, with <|endoftext|> between documents if it has several; a .jsonl, each '
        'line an object with a "text"; a folder of .txt and .jsonl files; or a pattern such as '
        "'books/*.txt'")
NAME = Kind('the name of a model to write, without a path', lambda value:
            isinstance(value, str) and is_unicode(value) and os.path.basename(value) == value and
            value not in ('', '.', '..'), str)


def size_option(text):
    """Declare the option of a size of a new model."""
    return option(None, whole(1, LARGEST_SIZE), f'{text}, with --scratch; if not given, that of '
                                                'MODEL_NAME')


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """What decides what a model learns. A run is only resumed with the same values."""

    scratch: bool = option(
        False, SWITCH, 'train from random weights; MODEL_NAME gives only sizes and vocabulary')
    n_layer: Optional[int] = size_option('number of blocks')
    n_head: Optional[int] = size_option('attention heads of a block')
    n_embd: Optional[int] = size_option('width of the model, a multiple of n_head')
    n_ctx: Optional[int] = size_option('tokens in the window of the model')
    steps: int = option(1000, whole(1), 'number of updates of the weights; with --resume, a '
                        'finished run goes on to more, on the learning rates of a run of so many: '
                        'with cosine, the rate rises again')
    batch_size: int = option(4, whole(1), 'sequences per batch, of all devices and hosts')
    accumulation: int = option(1, whole(1), 'batches per step, whose mean gradient is used',
                               alias='gradient_accumulation_steps')
    seq_len: Optional[int] = option(
        None, whole(2), 'tokens per sequence; if not given, the window of the model')
    optimizer: str = option('adamw', choice('adamw', 'adafactor'), 'adafactor (Shazeer and Stern '
                            '2018) takes far less memory: factored second moments, no momentum, '
                            'and LEARNING_RATE as it is, not relative to the weights')
    learning_rate: float = option(1e-4, POSITIVE, 'the highest learning rate')
    schedule: str = option('cosine', choice('cosine', 'constant'),
                           'of the learning rate after the warm-up; cosine falls to a tenth')
    warmup: Optional[int] = option(None, whole(0), 'steps in which the learning rate rises; if not '
                                   'given, a twentieth of all', alias='warmup_steps')
    weight_decay: float = option(0.01, number('of at least 0', lambda value: value >= 0),
                                 'of matrices and embeddings, as in AdamW; times the learning '
                                 'rate')
    clip_norm: float = option(1.0, POSITIVE, 'the largest norm of the gradient of a step; larger '
                              'ones are scaled down', alias='max_grad_norm')
    dropout: float = option(0.0, number('of at least 0 and below 1', lambda value: 0 <= value < 1),
                            'share of activations that are dropped')
    train_only: str = option('all', WEIGHTS, 'the weights to train: all; blocks, without '
                             'embeddings and the last normalization; or a number of last blocks')
    dtype: str = option('float32', choice('float32', 'bfloat16'), 'of matrix products; bfloat16 '
                        'where the hardware has it; weights are float32 in any case')
    held_out: Optional[float] = option(
        None, SHARE, 'share of the text, at its end, for validation; all of it is read each time, '
        'so choose less of a large text; if not given, a tenth', alias='validation_split')
    val_every: int = option(100, whole(1), 'steps from one validation to the next')
    seed: int = option(0, whole(0), 'of batches, dropout and random weights')

    def __post_init__(self):
        super().__post_init__()
        for name in SIZES:
            if getattr(self, name) is not None and not self.scratch:
                raise OptionError(name, 'is for a new model; give --scratch, too, or leave it out')

    def resize(self, hparams):
        """Return sizes of a model with those that options give. Raises OptionError."""
        given = {name: getattr(self, name) for name in SIZES if getattr(self, name) is not None}
        hparams = types.SimpleNamespace(**dict(vars(hparams), **given))
        if hparams.n_embd % hparams.n_head:
            raise OptionError('n_embd', f'must be a multiple of n_head, {hparams.n_head}, not '
                                        f'{hparams.n_embd}')
        return hparams

    def fit_model(self, hparams):
        """Return these options, completed. Raises OptionError if one is too large for the model."""
        if self.train_only.isdigit() and int(self.train_only) > hparams.n_layer:
            raise OptionError('train_only', f'must be at most {hparams.n_layer}, the number of '
                                            f'blocks, not {self.train_only}')
        if self.seq_len is not None and self.seq_len > hparams.n_ctx:
            raise OptionError('seq_len', f'must be a whole number from 2 to {hparams.n_ctx}, the '
                                         f'window of the model, not {self.seq_len}')
        return dataclasses.replace(
            self, seq_len=self.seq_len or hparams.n_ctx,
            held_out=0.1 if self.held_out is None else self.held_out,
            warmup=self.steps // 20 if self.warmup is None else self.warmup)

    def check_devices(self, n, n_hosts=1):
        """Raise OptionError unless n devices of each host can share a batch equally."""
        if self.batch_size % (n_hosts * n):
            hosts = f'hosts times that of their --devices, {n_hosts} x ' if n_hosts > 1 else (
                '--devices, ')
            raise OptionError('batch_size', f'must be a multiple of the number of {hosts}{n}, not '
                                            f'{self.batch_size}')


@dataclasses.dataclass(frozen=True)
class ComputeOptions(Options):
    """How training is computed."""

    recompute: bool = option(
        False, SWITCH, 'compute each block a second time for its gradients: a third slower, but '
        'with much less memory', alias='gradient_checkpointing')
    xla: bool = option(False, SWITCH, 'compile the step (TensorFlow 2)')
    devices: Optional[int] = option(
        None, whole(1), 'number of GPUs that share each batch, or without GPUs, to try this out, '
        'of parts of the CPU; if not given, all GPUs')


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
    """What a run reads, writes and prints."""

    data: str = option(dataclasses.MISSING, PATH, DATA)
    output: str = option(
        dataclasses.MISSING, NAME, 'name of the model to write; it may only exist with --resume')
    output_dir: Optional[str] = option(
        None, PATH, 'the folder to write the model into; if not given, MODELS_DIR')
    validation: Optional[str] = option(
        None, PATH, 'texts for validation, given as DATA is, instead of the end of DATA')
    resume: bool = option(False, SWITCH, 'continue the training of OUTPUT after its last '
                          'validation; all that decides what is learned must be as before, but '
                          'see --steps')
    sample_length: int = option(
        100, whole(0), 'tokens of the sample after each validation; 0: no sample')
    keep_last: int = option(1, whole(1), 'of so many last validations, training/ keeps the weights '
                                         'and the optimizer state')


@dataclasses.dataclass(frozen=True)
class VocabularyOptions(Options):
    """Which vocabulary to learn, from what."""

    data: str = option(dataclasses.MISSING, PATH, DATA)
    output: str = option(dataclasses.MISSING, NAME, 'name of the folder of MODELS_DIR to write; it '
                                                    'must not exist yet')
    size: int = option(1000, whole(257, LARGEST_SIZE),
                       'number of tokens: the 256 bytes, what is learned, and <|endoftext|>')
    held_out: float = option(
        0.1, number('of at least 0 and below 1', lambda value: 0 <= value < 1), 'share of the '
        'text, at its end, that nothing is learned from, so that it can serve for validation')
    models_dir: str = option('models', PATH, 'the folder of the models')
