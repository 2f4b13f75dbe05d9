"""Reads prompts from a file: one a line, as they stand in a .txt, as JSON objects in a .jsonl."""

import hashlib
import sys

from tqdm import tqdm

from gpt2 import files
from gpt2.errors import UsageError


class Prompts:
    """The prompts of a file, and its checksum `digest`."""

    def __init__(self, path):
        """Read a .txt or .jsonl file, or stdin as a .txt if the path is '-'.

        Raises UserError if the file cannot be read, or its name has another ending.
        """
        self._is_json = path.endswith('.jsonl')
        if path != '-' and not path.endswith(('.txt', '.jsonl')):
            raise UsageError('--prompts must be a .txt or .jsonl file, or - for stdin, not '
                             f'{path!r}')
        data = sys.stdin.buffer.read() if path == '-' else files.read_bytes(path)
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self._lines = data.split(b'\n')
        if not self._lines[-1]:
            self._lines.pop()

    def __len__(self):
        return len(self._lines)

    def read(self, number):
        """Return the prompt in a line, counted from 0. Raises ValueError, which says why not."""
        try:
            line = self._lines[number].decode('utf-8-sig' if number == 0 else 'utf-8')
        except UnicodeDecodeError:
            raise ValueError('it is not UTF-8')
        if self._is_json:
            return files.parse_object(line, 'prompt')['prompt']
        return line[:-1] if line.endswith('\r') else line

    def encode(self, encoder, n_ctx, nsamples, first=0):
        """Yield the index of each sample and the ids of its prompt, from sample `first`.

        Line i, from 0, has the samples from i * nsamples. Bad prompts are reported and left out.
        """
        for number in range(first // nsamples, len(self)):
            try:
                tokens = encoder.encode(self.read(number))
                check_prompt(tokens, n_ctx)
            except ValueError as error:
                tqdm.write(f'prompt in line {number + 1} left out: {error}', sys.stderr)
                continue
            for index in range(max(first, number * nsamples), (number + 1) * nsamples):
                yield index, tokens


def check_prompt(tokens, n_ctx):
    """Raise ValueError, with a message for the user, unless a prompt fits the window."""
    if not tokens:
        raise ValueError('it is empty')
    if len(tokens) > n_ctx:
        raise ValueError(f'it is {len(tokens) - n_ctx} tokens too long: it has {len(tokens)}, and '
                         f'the window {n_ctx}')
