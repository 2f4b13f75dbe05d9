"""A model to convert, in the form that every format reads it into and writes it from."""

import dataclasses
import json
import os
import types
import typing

from encoder import Encoder
from gpt2 import files


@dataclasses.dataclass(frozen=True)
class Source:
    """A model to convert. Its weights are read one at a time, so they need not fit in memory."""

    hparams: types.SimpleNamespace  # all values of its hparams.json
    encoder: Encoder                # its vocabulary
    # Opens the weights; returns a function from a name of `weight_shapes` to a float32 array of
    # that shape.
    open_weights: typing.Callable

    def write_vocabulary(self, folder, tokens_name, merges_name):
        """Write the two files of the vocabulary, which only have other names in other formats."""
        ranks = self.encoder.bpe_ranks
        # The reader of transformers drops the first line and the last.
        lines = ['#version: 0.2', *map(' '.join, sorted(ranks, key=ranks.get)), '']
        files.write_file(os.path.join(folder, tokens_name), [json.dumps(self.encoder.encoder)])
        files.write_file(os.path.join(folder, merges_name), ['\n'.join(lines)])


def absent(folder, *names):
    """Return those of the names that are not files of a folder."""
    return [name for name in names if not os.path.isfile(os.path.join(folder, name))]
