"""A small random model: its weights, what it should say, and texts that were stored once."""
import types

import numpy as np

import model
import reference
from gpt2.model_dir import ModelDir

NEAR = 1e-4  # two scores that are closer may change places by rounding
HPARAMS = {'n_vocab': 1000, 'n_ctx': 64, 'n_embd': 64, 'n_head': 4, 'n_layer': 2}
WARPING = {'temperature': 0.9, 'top_k': 50, 'top_p': 0.95}
# Seven prompts of different lengths, one token or more.
PROMPTS = [np.random.RandomState(n).randint(0, 1000, n).tolist() for n in (3, 1, 9, 2, 28, 5, 17)]

STORED_PROMPTS = [[1, 2, 3], [999], [500, 0, 500, 0, 7]]
# Samples 0, 1 and 2 of seed 18 after these prompts, made once by reference.sample in float64:
# neither TensorFlow nor anything in src had a part in them. The closest gap is 0.0088.
STORED = [
    ({}, [
        [772, 283, 816, 800, 903, 908, 602, 610, 533, 769, 816, 721, 815, 872, 340, 682, 128, 471,
         283, 283, 231, 715, 26, 119, 119, 119, 119, 682, 726, 57, 244, 244, 244, 357, 977, 487],
        [82, 487, 410, 488, 283, 756, 323, 427, 136, 410, 557, 62, 871, 965, 663, 602, 906, 952,
         97, 636, 427, 657, 244, 323, 427, 427, 980, 427, 427, 257, 496, 244, 996, 144, 721, 309],
        [96, 261, 512, 17, 17, 471, 471, 196, 471, 464, 471, 706, 321, 875, 519, 400, 873, 965,
         965, 61, 487, 425, 487, 425, 119, 781, 981, 129, 512, 298, 170, 519, 519, 463, 766, 487],
    ]),
    ({'temperature': 1.1, 'top_k': 300, 'top_p': 0.9}, [
        [772, 283, 816, 17, 904, 906, 602, 610, 522, 782, 425, 711, 811, 871, 427, 682, 142, 471,
         276, 357, 231, 715, 26, 119, 487, 107, 231, 231, 231, 57, 202, 244, 244, 357, 977, 487],
        [88, 511, 415, 487, 871, 767, 731, 487, 950, 400, 557, 62, 965, 965, 641, 720, 914, 943,
         98, 72, 427, 823, 234, 323, 427, 976, 965, 116, 129, 529, 496, 816, 427, 129, 721, 301],
        [119, 517, 757, 981, 231, 471, 471, 196, 471, 463, 471, 713, 345, 895, 103, 410, 893, 685,
         471, 524, 235, 425, 487, 427, 493, 493, 988, 610, 512, 202, 173, 520, 782, 231, 754,
         244],
    ]),
]


class LetterEncoder:
    """Stands in for an Encoder: every token is a letter, but for the last id."""

    end_of_text = 999

    def decode_bytes(self, tokens):
        return bytes(97 + token % 26 for token in tokens)


class SmallModel:
    """The model whose texts are stored above."""

    def __init__(self):
        self.hparams = model.HParams(**HPARAMS)
        self.weights = reference.random_weights(HPARAMS, 4)
        self._weights64 = {name: np.float64(weight) for name, weight in self.weights.items()}

    def write(self, folder):
        """Write it as a model directory; return the ModelDir."""
        reference.write_checkpoint(folder, HPARAMS, self.weights)
        return ModelDir(folder.name, str(folder), types.SimpleNamespace(**HPARAMS), LetterEncoder())

    def load(self, session):
        """Set the variables of a session's graph."""
        import tensorflow.compat.v1 as tf
        with session.graph.as_default():
            for variable in tf.global_variables():
                variable.load(self.weights[variable.op.name], session)

    def logits(self, tokens):
        """Return the reference's logits [P, V]."""
        return reference.forward(self._weights64, HPARAMS, tokens)

    def penalized(self, text, n_prompt, options):
        """Return the logits [N, V] of the tokens after a prompt, after the options' penalties."""
        rows = self.logits(text[:-1])[n_prompt - 1:]
        return [reference.penalize(row, text[:n_prompt + i], options.get('repetition_penalty', 1),
                                   options.get('no_repeat_ngram_size', 0))
                for i, row in enumerate(rows)]

    def check(self, prompt, tokens, uniforms, **options):
        """Check each new token: it must be the reference's choice after all tokens before it.

        It may be another one only at a near-tie, and that is rare.

        Args:
          uniforms: [at least the number of tokens, 2R].
        """
        text, n_differ = list(prompt) + list(tokens), 0
        logits = self.penalized(text, len(prompt), options)
        for token, row, u in zip(tokens, logits, uniforms):
            wanted, gap = choose(row, u, **filters(options))
            assert token == wanted or gap < NEAR
            n_differ += token != wanted
        assert n_differ <= 1

    def check_sample(self, prompt, tokens, seed, index, **options):
        """Check the tokens of sample `index` of a run."""
        self.check(prompt, tokens, uniforms(seed, [index], len(tokens))[0], **options)


def filters(options):
    """Return the options of `reference.warp_logits`, those without penalties."""
    return {name: value for name, value in options.items()
            if name not in ('repetition_penalty', 'no_repeat_ngram_size')}


def choose(logits, u, temperature=1, **options):
    """Return the reference's token, and its lead over the second best."""
    if temperature == 0:
        return reference.best_and_gap(logits)
    return reference.draw(reference.warp_logits(logits, temperature, **options), u)


def uniforms(seed, indices, length, n_vocab=1000):
    """Return the reference's random numbers of some samples of a run, float32 [B, length, 2R]."""
    return np.float32([reference.uniforms(seed, index, length, n_vocab) for index in indices])


def force(uniforms, token):
    """Return random numbers [2R] changed so that this token is drawn at moderate logits."""
    forced = np.full_like(uniforms, 2.**-24)
    side = len(uniforms) // 2
    forced[[token // side, side + token % side]] = 1 - 2.**-24
    return forced
