"""The options of training."""

import dataclasses
import os
import re
from typing import Optional

from gpt2.errors import OptionError
from gpt2.options import PATH, SWITCH, Kind, Options, choice, is_unicode, number, option, whole

POSITIVE = number('above 0', lambda value: value > 0)
WEIGHTS = Kind('all, blocks or a number of blocks', lambda value: isinstance(value, str) and
               re.fullmatch(r'all|blocks|[1-9][0-9]{0,9}', value) is not None, str)
NAME = Kind('the name of the model to write, without a path', lambda value:
            isinstance(value, str) and is_unicode(value) and os.path.basename(value) == value and
            value not in ('', '.', '..'), str)


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Options):
    """What decides what a model learns. A run is only resumed with the same values."""

    scratch: bool = option(
        False, SWITCH, 'train from random weights; MODEL_NAME gives only sizes and vocabulary')
    steps: int = option(1000, whole(1), 'number of updates of the weights')
    batch_size: int = option(4, whole(1), 'sequences per batch')
    accumulation: int = option(1, whole(1), 'batches per step, whose mean gradient is used',
                               alias='gradient_accumulation_steps')
    seq_len: Optional[int] = option(
        None, whole(2), 'tokens per sequence; if not given, the window of the model')
    learning_rate: float = option(1e-4, POSITIVE, 'the highest learning rate')
    schedule: str = option('cosine', choice('cosine', 'constant'),
                           'of the learning rate after the warm-up; cosine falls to a tenth')
    warmup: Optional[int] = option(None, whole(0), 'steps in which the learning rate rises; if not '
                                   'given, a twentieth of all', alias='warmup_steps')
    weight_decay: float = option(0.01, number('of at least 0', lambda value: value >= 0),
                                 "AdamW's, of matrices and embeddings; times the learning rate")
    clip_norm: float = option(1.0, POSITIVE, 'the largest norm of the gradient of a step; larger '
                              'ones are scaled down', alias='max_grad_norm')
    dropout: float = option(0.0, number('of at least 0 and below 1', lambda value: 0 <= value < 1),
                            'share of activations that are dropped')
    train_only: str = option('all', WEIGHTS, 'the weights to train: all; blocks, without '
                             'embeddings and the last normalization; or a number of last blocks')
    dtype: str = option('float32', choice('float32', 'bfloat16'), 'of matrix products; bfloat16 '
                        'where the hardware has it; weights are float32 in any case')
    held_out: float = option(0.1, number('above 0 and below 1', lambda value: 0 < value < 1),
                             'share of the text, at its end, for validation; all of it is read '
                             'each time, so choose less of a large text', alias='validation_split')
    val_every: int = option(100, whole(1), 'steps from one validation to the next')
    seed: int = option(0, whole(0), 'of batches, dropout and random weights')

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
            warmup=self.steps // 20 if self.warmup is None else self.warmup)

    def check_devices(self, n):
        """Raise OptionError unless n devices can share a batch equally."""
        if self.batch_size % n:
            raise OptionError('batch_size', 'must be a multiple of the number of --devices, '
                                            f'{n}, not {self.batch_size}')


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

    data: str = option(dataclasses.MISSING, PATH, 'a UTF-8 text file, with <|endoftext|> between '
                       'documents if it has several; a .jsonl, each line an object with a "text"; '
                       "a folder of .txt and .jsonl files; or a pattern such as 'books/*.txt'")
    output: str = option(
        dataclasses.MISSING, NAME, 'name of the model to write; it may only exist with --resume')
    resume: bool = option(False, SWITCH, 'continue the training of OUTPUT after its last '
                          'validation; all that decides what is learned must be as before')
    sample_length: int = option(
        100, whole(0), 'tokens of the sample after each validation; 0: no sample')
    keep_last: int = option(1, whole(1), 'of so many last validations, training/ keeps the weights '
                                         'and the optimizer state')
