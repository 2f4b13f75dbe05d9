"""Reads prompts from a file: one a line, as they stand in a .txt, as JSON objects in a .jsonl."""

import hashlib
import json
import sys

from tqdm import tqdm

import cli


class Prompts:
    """The prompts of a file.

    digest: a checksum of the file.
    """

    def __init__(self, path):
        """Reads a .txt or .jsonl file, or stdin, as a .txt, if the path is '-'.

        Raises:
          UserError: there is no such file, or it is neither.
        """
        self._is_json = path.endswith('.jsonl')
        if not self._is_json and not path.endswith('.txt') and path != '-':
            raise cli.UsageError('--prompts must be a .txt or .jsonl file, or - for stdin, not %r'
                                 % path)
        try:
            if path == '-':
                data = sys.stdin.buffer.read()
            else:
                with open(path, 'rb') as file:
                    data = file.read()
        except OSError as error:
            raise cli.UserError('%s: %s' % (path, error.strerror))
        self.digest = hashlib.sha256(data).hexdigest()[:16]
        self._lines = data.split(b'\n')
        if not self._lines[-1]:
            self._lines.pop()

    def __len__(self):
        return len(self._lines)

    def read(self, number):
        """Returns the prompt in a line, a str.

        Raises:
          ValueError: there is none; the message says why.
        """
        line = self._lines[number].decode('utf-8-sig' if number == 0 else 'utf-8')
        if not self._is_json:
            return line[:-1] if line.endswith('\r') else line
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get('prompt'), str):
            raise ValueError('it is no JSON object with a text as its "prompt"')
        return record['prompt']

    def encode(self, encoder, n_ctx, nsamples, first=0):
        """Yields the index of each sample and the ids of its prompt, from sample `first` on.

        The nsamples samples of the prompt in line i, counted from 0, are those from i x nsamples
        on. A prompt that cannot be used is told on stderr, and left out.
        """
        for number in range(first // nsamples, len(self)):
            try:
                tokens = encoder.encode(self.read(number))
                check_tokens(tokens, n_ctx)
            except (ValueError, RecursionError) as error:
                problem = 'it is not UTF-8' if isinstance(error, UnicodeDecodeError) else (
                    'it is not JSON' if isinstance(error, json.JSONDecodeError) else error)
                tqdm.write('prompt in line %d left out: %s' % (number + 1, problem), sys.stderr)
                continue
            for index in range(max(first, number * nsamples), (number + 1) * nsamples):
                yield index, tokens


def check_tokens(tokens, n_ctx):
    """Raises ValueError, with a message for the user, unless a prompt fits the window."""
    if not tokens:
        raise ValueError('it is empty')
    if len(tokens) > n_ctx:
        raise ValueError('it is %d tokens too long: it has %d, and the window %d'
                         % (len(tokens) - n_ctx, len(tokens), n_ctx))
