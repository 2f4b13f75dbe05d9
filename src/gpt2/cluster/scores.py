"""Scores of texts as the work of many machines: what a lease holds, how it is done, and checked.

A lease has a Batch of windows, with its index, and a report the index and the parts of its Scores.
Floats survive JSON exactly.
"""

import dataclasses
import secrets

import numpy as np

from gpt2.cluster import subject as subjects
from gpt2.cluster.link import as_indices
from gpt2.evaluation.loglikelihood import Batch, BatchScorer, zero_scores


class Work:
    """The chief's side: Batches of a Scorer."""

    lease_size = 1

    def __init__(self, model_dir, allowed, top):
        """Args: allowed, top: as of a Scorer."""
        self.model_dir, self._n_vocab, self._top = model_dir, model_dir.hparams.n_vocab, top
        forbidden = None if allowed is None else np.flatnonzero(~allowed).tolist()
        # Batches have the same indices in each run: what was made for an earlier one is no use.
        self.subject = {'kind': 'scores', 'run': secrets.token_hex(8), 'forbidden': forbidden,
                        'top': top, **subjects.describe(model_dir)}

    def encode(self, batch):
        """Return a Batch that is to be scored, for a lease."""
        return [batch.index, batch.tokens.tolist(), list(batch.positions), batch.targets.tolist()]

    def decode(self, wanted, *scores):
        """Return a Batch with the scores of a report. Raises ValueError if they cannot be its."""
        parts = [part for part in zero_scores(len(wanted.targets), self._top) if len(part)]
        if len(scores) != len(parts):
            raise ValueError('not the scores that were asked for')
        logprobs, ranks, filtered_ranks, *others = [
            as_array(values, part.dtype, part.shape) for values, part in zip(scores, parts)]
        check_range(ranks, 1, self._n_vocab + 1)
        check_range(filtered_ranks, 1, self._n_vocab + 1)
        if others:
            check_range(others[1], 0, self._n_vocab)  # the likeliest tokens
        return dataclasses.replace(wanted, scores=[logprobs, ranks, filtered_ranks, *others])


class Maker:
    """A worker's side."""

    def __init__(self, subject, models_dir):
        """Load the model. Raises UserError if it, or TensorFlow, is not the chief's."""
        try:
            model_dir = subjects.open_model(subject['model'], models_dir)
            self._hparams = model_dir.hparams
            allowed, top = check_settings(subject, self._hparams.n_vocab)
        except (KeyError, TypeError, ValueError) as error:
            raise subjects.unknown(error)
        subjects.check_same(subjects.describe(model_dir), subject)
        self._scorer = BatchScorer(model_dir, allowed, top)

    def decode(self, index, tokens, positions, targets):
        """Return a Batch of a lease. Raises ValueError if it is none."""
        as_indices([index])
        tokens, positions, targets = (
            as_array(values, np.dtype(np.int32)) for values in (tokens, positions, targets))
        if tokens.ndim != 2 or not 0 < tokens.shape[1] <= self._hparams.n_ctx:
            raise ValueError('not windows')
        if positions.ndim != 1 or not len(positions) or positions.shape != targets.shape:
            raise ValueError('not places in windows')
        check_range(tokens, 0, self._hparams.n_vocab)
        check_range(targets, 0, self._hparams.n_vocab)
        check_range(positions, 0, tokens.size)
        return Batch(index, tokens, positions, targets)

    def make(self, batches):
        """Yield lists of Batches that are done."""
        for batch in batches:
            yield [self._scorer.score(batch)]

    def encode(self, batch):
        """Return a Batch that is done, for a report."""
        return [batch.index, *(values.tolist() for values in batch.scores)]


def check_settings(subject, n_vocab):
    """Return the arguments `allowed` and `top` of a BatchScorer that a subject is about.

    Raises ValueError, TypeError or KeyError.
    """
    forbidden, top = subject['forbidden'], subject['top']
    if top is not None and (type(top) is not int or not 0 <= top <= n_vocab):
        raise ValueError('top')
    if forbidden is None:
        return None, top
    forbidden, allowed = as_array(as_indices(forbidden), np.dtype(np.int32)), np.ones(n_vocab, bool)
    check_range(forbidden, 0, n_vocab)
    allowed[forbidden] = False
    return allowed, top


def as_array(values, dtype, shape=None):
    """Return lists of numbers as an array of ints or finite floats, of a shape if one is given.

    Raises ValueError if they are something else, or beyond the type.
    """
    array = np.array(values)
    if shape not in (None, array.shape) or array.size and array.dtype.kind != dtype.kind:
        raise ValueError('not such numbers')
    with np.errstate(over='ignore'):
        result = array.astype(dtype)
    if dtype.kind == 'i' and not np.array_equal(result, array) or not np.isfinite(result).all():
        raise ValueError('too large numbers')
    return result


def check_range(values, low, high):
    """Raise ValueError unless all numbers of an array are at least `low` and below `high`."""
    if ((values < low) | (values >= high)).any():
        raise ValueError('not in the range')
