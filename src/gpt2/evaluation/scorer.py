"""Opens a Scorer: of this process, or of all machines that join."""

import contextlib
import itertools

from gpt2.evaluation.loglikelihood import Scorer


@contextlib.contextmanager
def open_scorer(model_dir, options, allowed=None, top=None):
    """Yield a Scorer that shows its progress, see there, until the block ends.

    If EvaluationOptions say so, workers score for it, and this process does not load the model.
    """
    with contextlib.ExitStack() as stack:
        score_batches = stack.enter_context(
            serve(model_dir, options, allowed, top)) if options.serve else None
        yield stack.enter_context(contextlib.closing(
            Scorer(model_dir, allowed, top, progress=True, score_batches=score_batches)))


@contextlib.contextmanager
def serve(model_dir, options, allowed, top):
    """Yield a function that lets workers score Batches, see Scorer."""
    from gpt2.cluster import chief, scores  # most evaluations need no chief

    def score_batches(batches):
        for ready in served.share(batches):
            yield from itertools.takewhile(lambda batch: batch.done, ready)

    with chief.serve(scores.Work(model_dir, allowed, top), options) as served:
        yield score_batches
