"""Samples as the work of many machines: what a lease holds, how it is done, what is checked.

A lease has the index and the prompt of each sample, a report its index, tokens and scores.
"""

import dataclasses
import math

from gpt2.cluster import subject as subjects
from gpt2.cluster.link import as_indices
from gpt2.sampling import batching, output
from gpt2.sampling.decoder import Scores
from gpt2.sampling.options import (
    BatchOptions,
    EngineOptions,
    GenerationOptions,
    SamplingOptions,
)
from gpt2.sampling.run import fit_model


class Work:
    """The chief's side: samples of a Run."""

    def __init__(self, run, settings):
        """Args: settings: of the Run, and of its prompts if there are any."""
        self.model_dir = run.model_dir
        self.subject = {'kind': 'samples', **subjects.describe(run.model_dir), **settings,
                        'seed': run.generation.seed, 'engine': run.choose_engine()}
        self.lease_size = max(1, settings['batch_size'] // 2)
        self._n_vocab = run.model_dir.hparams.n_vocab
        self._has_scores = bool(run.generation.logprobs)
        self._n_top = min(run.generation.n_top, self._n_vocab)
        self._criteria = batching.stop_criteria(run.generation, run.model_dir.encoder)
        self._token_bytes = batching.cached_token_bytes(run.model_dir.encoder)

    def items(self, prompts):
        """Yield the Sequences of prompts, an iterable of (index, ids)."""
        for index, ids in prompts:
            yield batching.Sequence(index, ids)

    def encode(self, sequence):
        """Return a sample that is to be made, for a lease."""
        return [sequence.index, sequence.prompt]

    def decode(self, wanted, tokens, scores):
        """Return the finished Sequence of reported tokens; its text is made of them here.

        Raises ValueError or TypeError if they cannot be a whole sample.
        """
        check_tokens(tokens, self._n_vocab)
        if self._has_scores:
            scores = check_scores(scores, len(tokens), self._n_top, self._n_vocab)
        elif scores is not None:
            raise ValueError('nobody asked for scores')
        sequence = batching.Sequence(wanted.index, wanted.prompt)
        batching.extend(sequence, tokens, scores, self._token_bytes, self._criteria)
        if not sequence.done or len(sequence.tokens) != len(tokens):
            raise ValueError('no sample ends there')
        return sequence


class Maker:
    """A worker's side."""

    def __init__(self, subject, models_dir):
        """Load the model. Raises UserError if it, or TensorFlow, is not the chief's."""
        self._run = open_run(subject, models_dir)
        self._batch_size = subject['batch_size']
        self._decoder = self._run.open_decoder()

    def decode(self, index, prompt):
        """Return the Sequence of a sample in a lease. Raises ValueError or TypeError."""
        as_indices([index])
        check_tokens(prompt, self._run.model_dir.hparams.n_vocab)
        if not 0 < len(prompt) <= self._run.model_dir.hparams.n_ctx:
            raise ValueError('not a prompt')
        return batching.Sequence(index, prompt)

    def make(self, sequences):
        """Yield lists of Sequences, of which some are done, see `batching.generate`."""
        prompts = ((sequence.index, sequence.prompt) for sequence in sequences)
        return self._run.generate(self._decoder, prompts, self._batch_size, fill=True)

    def encode(self, sequence):
        """Return a finished sample, for a report."""
        return [sequence.index, sequence.tokens, sequence.scores_as_lists()]


def open_run(subject, models_dir):
    """Return the Run that a subject is about. Raises UserError if it cannot be had here."""
    try:
        output.check_settings(subject)
        model_dir = subjects.open_model(subject['model'], models_dir)
        engine, sampling, generation = (
            options(**{field.name: subject[field.name] for field in dataclasses.fields(options)
                       if field.name in subject})
            for options in (EngineOptions, SamplingOptions, GenerationOptions))
        run = fit_model(model_dir, engine, sampling, generation, conditional=False)
        batch = BatchOptions(batch_size=subject['batch_size'])
        own = {**subjects.describe(model_dir), **run.settings(batch.batch_size)}
    except (KeyError, TypeError, ValueError) as error:
        raise subjects.unknown(error)
    subjects.check_same(own, subject)
    return run


def check_tokens(tokens, n_vocab):
    """Raise ValueError unless something is a list of tokens."""
    if not all(0 <= token < n_vocab for token in as_indices(tokens)):
        raise ValueError('not in the vocabulary')


def check_scores(scores, n_tokens, n_top, n_vocab):
    """Return the Scores of tokens from a list, with so many of the likeliest at each place.

    Raises ValueError or TypeError if it has no such Scores.
    """
    scores = Scores(*scores)
    for part, width in zip(scores, (2, n_top, n_top)):
        if len(part) != n_tokens or any(len(place) != width for place in part):
            raise ValueError('not the scores of these tokens')
    for place in scores.top_tokens:
        check_tokens(place, n_vocab)
    if not all(type(value) is float and math.isfinite(value)
               for place in [*scores.logprobs, *scores.top_logprobs] for value in place):
        raise ValueError('not log probabilities')
    return scores
