"""The Python interface: a model, loaded once, that generates and scores with any options."""

import collections
import dataclasses
import difflib
import numbers
import operator
import reprlib
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from gpt2.errors import UsageError
from gpt2.model_dir import ModelDir, ModelOptions, open_model_dir
from gpt2.sampling import batching
from gpt2.sampling import options as sampling_options
from gpt2.sampling.engines import open_decoder
from gpt2.sampling.prompts import check_prompt

Prompt = Union[str, Sequence[int]]  # a text, or token ids


@dataclasses.dataclass(frozen=True)
class Sample:
    """A generated text. Together, `seed` and `index` (from 0, in one call) fix its randomness."""

    index: int
    seed: int
    prompt: List[int]  # the ids that it continues; `<|endoftext|>` alone for a text from scratch
    text: str  # the new text, without `<|endoftext|>` or `stop_at`
    tokens: List[int]  # the new ids, also the one that ended the text
    ended: bool  # before its full length
    finish_reason: str  # 'stop' if it ended, 'length' if it was cut
    # If asked for, float32 [n, 2], the log probability of each token under the model, and under
    # the distribution that it was drawn from.
    logprobs: Optional[np.ndarray]
    # With logprobs=K, the K likeliest tokens at each place: (id, log probability) each.
    top_logprobs: Optional[List[List[Tuple[int, float]]]]


# How likely a model finds a text of n tokens: `tokens`, its ids; `logprobs` float32 [n], the
# natural logarithm of each token's probability; `ranks` int32 [n], 1 for the likeliest token.
Score = collections.namedtuple('Score', 'tokens logprobs ranks')


def load(model_name: str = '124M', models_dir: str = 'models', engine: str = 'auto',
         dtype: str = 'float32') -> 'Model':
    """Open a model by the name of its folder in models_dir. Weights are loaded when needed.

    `engine` and `dtype` say what generates, as in `gpt2.sampling.options.EngineOptions`. Raises
    ModelError if the model is missing or damaged, and UsageError if an option cannot be used.
    """
    options = ModelOptions(model_name=model_name, models_dir=models_dir)
    return Model(open_model_dir(options.model_name, options.models_dir),
                 sampling_options.EngineOptions(engine=engine, dtype=dtype))


class Model:
    """An opened model, for one thread at a time, with its `encoder` and its sizes `hparams`."""

    def __init__(self, model_dir: ModelDir, engine: sampling_options.EngineOptions):
        self.encoder, self.hparams = model_dir.encoder, model_dir.hparams
        self._model_dir, self._engine = model_dir, engine
        self._decoder = self._scorer = None

    def __enter__(self) -> 'Model':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights. They are loaded again if the model is used again."""
        for part in filter(None, [self._decoder, self._scorer]):
            part.close()
        self._decoder = self._scorer = None

    def generate(self, prompts: Union[None, Prompt, Sequence[Prompt]] = None, nsamples: int = 1,
                 batch_size: int = 8, **options) -> List[Sample]:
        """Continue each prompt, or write from scratch; return the samples, prompt by prompt.

        Args:
          prompts: a text, a list of token ids, a list of those, or None for texts from scratch.
          nsamples: samples of each prompt.
          batch_size: samples made at the same time. It changes only the speed.
          options: seed, length, stop, stop_at, keep, logprobs, temperature, top_k, top_p, min_p,
            typical_p, repetition_penalty and no_repeat_ngram_size, as in GenerationOptions and
            SamplingOptions. A seed is drawn if there is none.

        Raises UsageError if an option or a prompt cannot be used.
        """
        sampling_options.BatchOptions(nsamples=nsamples, batch_size=batch_size)
        encoded = [self._encode_prompt(prompt) for prompt in
                   (prompts if is_list_of_prompts(prompts) else [prompts])]
        seed, batches = self._generate([ids for ids in encoded for _ in range(nsamples)],
                                       prompts is not None, batch_size, options)
        return [to_sample(sequence, seed)
                for sequences in batching.finished(batches) for sequence in sequences]

    def stream(self, prompt: Optional[Prompt] = None, **options) -> Iterator[str]:
        """Continue one prompt; yield the new text piece by piece. Arguments as in `generate`."""
        _, batches = self._generate([self._encode_prompt(prompt)], prompt is not None, 1, options)
        return filter(None, (sequence.stream() for sequence, in batches))

    def score(self, text: Prompt, stride: Optional[int] = None) -> Score:
        """Return how likely the model finds a text that begins a document.

        On a text that is longer, the window advances by `stride` tokens, 1 to n_ctx (default: 32).
        A larger stride is faster, and gives the tokens after the first window less context.
        """
        tokens = self._encode(text)
        stride = min(32, self.hparams.n_ctx) if stride is None else stride
        scores, = self._open_scorer().loglikelihood_rolling([tokens], stride=stride)
        return Score(tokens, scores.logprobs, scores.ranks)

    def logits(self, text: Prompt) -> np.ndarray:
        """Return the logits of what follows each token of a text, float32 [n, n_vocab].

        Raises UsageError if the text is empty or longer than the window.
        """
        return self._open_scorer().logits(self._encode_prompt(text))

    def _encode(self, text):
        """Return the ids of a text, or ids as they are, as a list. Raises UsageError."""
        if isinstance(text, str):
            return self.encoder.encode(text)
        try:
            tokens = [operator.index(token) for token in text]
        except TypeError:
            raise UsageError(f'a prompt must be a text or token ids, not {reprlib.repr(text)}')
        for token in tokens:
            if not 0 <= token < self.hparams.n_vocab:
                raise UsageError(f'{token} is not a token id; give ids from 0 to '
                                 f'{self.hparams.n_vocab - 1}')
        return tokens

    def _encode_prompt(self, prompt):
        """Return the ids of a prompt that fits the window, `<|endoftext|>` for None."""
        tokens = [self.encoder.end_of_text] if prompt is None else self._encode(prompt)
        try:
            check_prompt(tokens, self.hparams.n_ctx)
        except ValueError as error:
            raise UsageError(f'a prompt cannot be used: {error}')
        return tokens

    def _generate(self, prompts, conditional, batch_size, options):
        """Return the seed and what `batching.generate` yields for prompts, lists of ids."""
        generation, sampling = split_options(
            options, sampling_options.GenerationOptions, sampling_options.SamplingOptions)
        sampling.check_vocabulary(self.hparams.n_vocab)
        n_ctx = self.hparams.n_ctx
        generation = generation.fit_model(n_ctx, n_ctx // 2 if conditional else n_ctx).with_seed()
        if self._decoder is None:
            self._decoder = open_decoder(self._model_dir, self._engine.engine, self._engine.dtype)
        return generation.seed, batching.generate(self._decoder, self.encoder, enumerate(prompts),
                                                  generation, sampling, batch_size=batch_size)

    def _open_scorer(self):
        if self._scorer is None:
            from gpt2.evaluation.loglikelihood import Scorer
            self._scorer = Scorer(self._model_dir)
        return self._scorer


def is_list_of_prompts(prompts):
    """Return whether prompts are several texts or lists of ids, not one."""
    return isinstance(prompts, (list, tuple)) and not any(
        isinstance(prompt, numbers.Integral) for prompt in prompts[:1])


def split_options(options, *classes):
    """Make an object of each Options class from a dict of options. Raises UsageError."""
    names = [[field.name for field in dataclasses.fields(cls)] for cls in classes]
    known = sum(names, [])
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise UsageError(f'there is no option {name}; did you mean {" or ".join(near)}?')
    return [cls(**{name: options[name] for name in own if name in options})
            for cls, own in zip(classes, names)]


def to_sample(sequence, seed):
    """Return a finished batching.Sequence as a Sample."""
    logprobs = np.array(sequence.logprobs, np.float32) if sequence.logprobs else None
    return Sample(sequence.index, seed, sequence.prompt, sequence.text, sequence.tokens,
                  sequence.ended, sequence.finish_reason, logprobs,
                  sequence.top_logprobs if any(sequence.top_logprobs) else None)
