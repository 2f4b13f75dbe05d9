"""Reads prompts: of a .jsonl or .csv file, or one a line of any other."""

import csv
import hashlib
import io
import json
import os
import re
import sys

from tqdm import tqdm

from gpt2 import files
from gpt2.errors import UserError
from gpt2.options import as_tuple

DIGEST_SIZE = 16  # hexadecimal digits

csv.field_size_limit(2**31 - 1)


class Prompts:
    """Prompts, one for each of `len(prompts)` lines, and their checksum `digest`.

    A subclass for each format has `read(number)`, which returns the prompt in a line, counted
    from 0, and a dict of what else the line has. It raises ValueError if there is no prompt.
    """

    def __init__(self, lines, data):
        """Args: lines: what `read` reads; data: the bytes that the checksum is of."""
        self._lines = lines
        self.digest = hashlib.sha256(data).hexdigest()[:DIGEST_SIZE]

    def __len__(self):
        return len(self._lines)

    def fields(self, number):
        """Return what else the line of a usable prompt has, a dict."""
        return self.read(number)[1]

    def encode(self, encoder, n_ctx, nsamples, first=0):
        """Yield the index of each sample and the ids of its prompt, from sample `first`.

        Line i, from 0, has the samples from i * nsamples. Bad prompts are reported and left out.
        Raises UserError at the end if there are only bad ones.
        """
        usable = first > 0 or not len(self)
        for number in range(first // nsamples, len(self)):
            try:
                tokens = encoder.encode(self.read(number)[0])
                check_prompt(tokens, n_ctx)
            except ValueError as error:
                tqdm.write(f'prompt in line {number + 1} left out: {error}', sys.stderr)
                continue
            usable = True
            for index in range(max(first, number * nsamples), (number + 1) * nsamples):
                yield index, tokens
        if not usable:
            raise UserError('there is no prompt that can be used')


class Texts(Prompts):
    """Prompts that are texts already."""

    def __init__(self, texts):
        super().__init__(texts, json.dumps(texts).encode('ascii'))

    def read(self, number):
        return self._lines[number], {}


class Lines(Prompts):
    """A prompt a line, as it stands there."""

    def __init__(self, data):
        lines = data.split(b'\n')
        super().__init__(lines if lines[-1] else lines[:-1], data)

    def read(self, number):
        return re.sub('\r$', '', self._decode(number)), {}

    def _decode(self, number):
        try:
            return self._lines[number].decode('utf-8-sig' if number == 0 else 'utf-8')
        except UnicodeDecodeError:
            raise ValueError('it is not UTF-8')


class JsonLines(Lines):
    """A JSON object a line, with a text named "prompt"."""

    def read(self, number):
        fields = files.parse_object(self._decode(number), 'prompt')
        return fields.pop('prompt'), fields


class Csv(Prompts):
    """A table with a column named "prompt". Its rows count as lines, the first after the header."""

    def __init__(self, path, data):
        """Raises UserError if it is no such table."""
        try:
            rows = list(csv.reader(io.StringIO(data.decode('utf-8-sig'), newline=''), strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f'{path} is not a table in UTF-8: {error}')
        self._header, *lines = [row for row in rows if row] or [[]]
        if self._header.count('prompt') != 1:
            raise UserError(f'{path} has no column named prompt in its first line')
        super().__init__(lines, data)

    def read(self, number):
        row = self._lines[number]
        if len(row) != len(self._header):
            raise ValueError(f'it has {len(row)} columns, and the header {len(self._header)}')
        fields = dict(zip(self._header, row))
        return fields.pop('prompt'), fields


def open_prompts(options):
    """Return the Prompts that ConditionalOptions name. Raises UserError if they cannot be read."""
    if options.prompt:
        return Texts(list(as_tuple(options.prompt)))
    path = options.prompts
    data = sys.stdin.buffer.read() if path == '-' else read_file(path)
    if path.endswith('.csv'):
        return Csv(path, data)
    return (JsonLines if path.endswith('.jsonl') else Lines)(data)


def read_file(path):
    """Return the bytes of a file, or of a pipe that the shell names, as for <(...)."""
    match = re.fullmatch(r'/dev/fd/(\d+)|/proc/self/fd/(\d+)', path)
    if not match:
        return files.read_bytes(path)
    with open(os.dup(int(match.group(1) or match.group(2))), 'rb') as file:
        return file.read()


def check_prompt(tokens, n_ctx):
    """Raise ValueError, with a message for the user, unless a prompt fits the window."""
    if not tokens:
        raise ValueError('it is empty')
    if len(tokens) > n_ctx:
        raise ValueError(f'it is {len(tokens) - n_ctx} tokens too long: it has {len(tokens)}, and '
                         f'the window {n_ctx}')
