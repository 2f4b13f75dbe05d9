"""The options of sampling, named as the flags are: for a token, a text, a run, and the engine."""

import dataclasses
import secrets
from typing import Optional, Sequence, Union

from gpt2.cluster.options import ServeOptions
from gpt2.errors import OptionError
from gpt2.options import (
    ESCAPED_TEXTS,
    PATH,
    SWITCH,
    TEXTS,
    Options,
    choice,
    number,
    option,
    switch_or_count,
    whole,
)


@dataclasses.dataclass(frozen=True)
class SamplingOptions(Options):
    """How the next token is chosen. The steps are taken in the order of `sample.py`."""

    temperature: float = option(
        1, number('that is not negative', lambda value: value >= 0),
        'below 1, likely tokens become likelier; 0 always takes the likeliest')
    top_k: int = option(0, whole(0), 'choose among this many likeliest tokens; 0: among all')
    top_p: float = option(1, number('from 0 to 1', lambda value: 0 <= value <= 1),
                          'choose among the fewest likeliest tokens that together have this '
                          'probability, the one that crosses it included; 0 or 1: among all')
    min_p: float = option(0, number('from 0 to 1', lambda value: 0 <= value <= 1),
                          'choose among the tokens at least this many times as likely as the '
                          'likeliest; 0: among all')
    typical_p: float = option(1, number('from 0 to 1', lambda value: 0 <= value <= 1),
                              'choose among the most typical tokens that together have this '
                              'probability; 0 or 1: among all')
    repetition_penalty: float = option(
        1, number('above 0', lambda value: value > 0), 'above 1, the tokens that are in the text '
        'already, or in its prompt, become less likely; 1.2 is usual')
    no_repeat_ngram_size: int = option(0, whole(0), 'never repeat a sequence of this many tokens; '
                                       '0: any may be repeated')

    @property
    def greedy(self):
        """Whether the likeliest token is taken and no random numbers are needed."""
        return self.temperature == 0

    def check_vocabulary(self, n_vocab):
        """Raise OptionError if top_k is more than the tokens of the vocabulary."""
        if self.top_k > n_vocab:
            raise OptionError('top_k', f'must be a whole number from 0 to {n_vocab}, the size of '
                                       f'the vocabulary, not {self.top_k}')


@dataclasses.dataclass(frozen=True)
class GenerationOptions(Options):
    """How a text is made of tokens: its randomness, its length, and where it ends."""

    seed: Optional[int] = option(None, whole(0, 2**64 - 1), 'a whole number that fixes every '
                                 'sample; if not given, a new one is drawn and printed')
    length: Optional[int] = option(
        None, whole(1), 'new tokens in a sample, also more than the window holds; if not given, '
        'the window without a prompt, half of it with one', alias='max_new_tokens')
    stop: bool = option(True, SWITCH, 'end a sample at <|endoftext|>')
    stop_at: Union[None, str, Sequence[str]] = option(
        None, ESCAPED_TEXTS, 'a text; end a sample before it; \\n stands for a line end; may be '
        'given several times')
    keep: Optional[int] = option(None, whole(1), 'when the window is full, continue from this '
                                 'many of the last tokens; if not given, half the window')
    logprobs: Union[bool, int] = option(
        False, switch_or_count(100), 'record the log probability of each token in a .jsonl: under '
        'the model, and under the distribution it was drawn from; --logprobs 5 also records the 5 '
        'likeliest tokens at each place')

    @property
    def n_top(self):
        """How many of the likeliest tokens to report at each place."""
        return 0 if isinstance(self.logprobs, bool) else self.logprobs

    def fit_model(self, n_ctx, default_length):
        """Return these options with the defaults that depend on the model's window filled in.

        Raises OptionError if keep is more than the window.
        """
        keep = max(1, n_ctx // 2) if self.keep is None else self.keep
        if keep > n_ctx:
            raise OptionError('keep', f'must be a whole number from 1 to {n_ctx}, the window of '
                                      f'the model, not {keep}')
        return dataclasses.replace(self, keep=keep, length=self.length or default_length)

    def with_seed(self):
        """Return these options with a seed, a new one if they have none."""
        return self if self.seed is not None else dataclasses.replace(
            self, seed=secrets.randbelow(2**32))


# The engine that each type of weights is for; None if for both.
DTYPES = {'float32': None, 'bfloat16': 'graph', 'float16': 'graph', 'int8': 'lite', 'int4': 'lite'}


@dataclasses.dataclass(frozen=True)
class EngineOptions(Options):
    """What runs the model."""

    engine: str = option('auto', choice('auto', 'graph', 'lite'), 'graph: TensorFlow; lite: a '
                         'faster one for CPUs, which converts the weights at its first run; auto: '
                         'lite for int8 and int4, or where the weights are converted and there is '
                         'no GPU; else graph')
    dtype: str = option('float32', choice(*DTYPES), 'the type of the weights; int8 and int4, for '
                        'the lite engine, are smaller, faster and less exact; bfloat16 and '
                        'float16, for the graph, take half the memory')

    def __post_init__(self):
        super().__post_init__()
        engine = DTYPES[self.dtype]
        if engine and self.engine not in ('auto', engine):
            raise OptionError('dtype', f'{self.dtype} is for the {engine} engine; use engine '
                                       f'{engine}')


@dataclasses.dataclass(frozen=True)
class BatchOptions(Options):
    """How many samples to make of each prompt, and how many at the same time."""

    nsamples: int = option(1, whole(1), 'samples of each prompt')
    batch_size: int = option(1, whole(1), 'samples made at the same time; more is faster')


@dataclasses.dataclass(frozen=True)
class OutputOptions(ServeOptions, BatchOptions):
    """Which samples to write, and where."""

    batch_size: int = option(1, whole(1), 'samples made at the same time; more is faster; a file '
                             'that is continued needs the same number again')
    first_sample: int = option(0, whole(0), 'index of the first sample, so that several processes '
                               'can share the work')
    output: Optional[str] = option(None, PATH, 'the file to write: a .txt has each text under a '
                                   'line with its number, a .jsonl an object a line; an incomplete '
                                   'file is continued; if not given, samples are printed')


@dataclasses.dataclass(frozen=True)
class ConditionalOptions(OutputOptions):
    """Which prompts to continue."""

    prompt: Union[None, str, Sequence[str]] = option(
        None, TEXTS, 'a prompt, taken as it is: its lines are lines, and \\n is no line end; may '
        'be given several times')
    prompts: Optional[str] = option(
        None, PATH, 'a file of prompts: a .jsonl has an object a line with a text named "prompt", '
        'a .csv a column of that name, and any other file a prompt a line; --prompts=- reads '
        'lines from stdin')
    include_prompt: bool = option(False, SWITCH, 'begin each text with its prompt')

    def __post_init__(self):
        super().__post_init__()
        if not self.prompt and not self.prompts:
            raise OptionError('prompt', 'is missing: give a text, or with --prompts a file of '
                                        'prompts, - for stdin')
        if self.prompt and self.prompts:
            raise OptionError('prompt', 'cannot be given together with --prompts')


@dataclasses.dataclass(frozen=True)
class UnconditionalOptions(OutputOptions):
    """Which samples to make without prompts."""

    nsamples: int = option(0, whole(0), 'number of samples; 0: until stopped with Ctrl-C')


@dataclasses.dataclass(frozen=True)
class DatasetOptions(ServeOptions):
    """How many texts a data set of a model's output has, what makes them, and where they go."""

    train: int = option(250000, whole(0), 'texts in each .train.jsonl; 0: no such file')
    valid: int = option(5000, whole(0), 'texts in each .valid.jsonl; 0: no such file')
    test: int = option(5000, whole(0), 'texts in each .test.jsonl; 0: no such file')
    seed: Optional[int] = option(
        None, whole(0, 2**64 - 2), 'a whole number that fixes every text; those with top-k 40 have '
        'the next number as their seed; if not given, a new one is drawn and printed')
    batch_size: int = option(1, whole(1), 'texts that a process makes at the same time; more is '
                             'faster; files that are continued need the same number again')
    processes: int = option(1, whole(1), 'processes that share the work of CPUs, each with the '
                            'model in its memory; the files are the same for any number')
    data_dir: str = option('data', PATH, 'the folder of the files; created if it is missing')

    def __post_init__(self):
        super().__post_init__()
        if not self.train + self.valid + self.test:
            raise OptionError('train', 'is 0, and so are --valid and --test; ask for a text')
        if self.serve and self.processes > 1:
            raise OptionError('processes', 'cannot be given together with --serve; start a '
                                           'src/worker.py for each process')
