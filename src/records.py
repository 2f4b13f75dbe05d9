"""Writes samples: to stdout, or to a file that grows by whole records and can be continued.

Two kinds of files: a .txt has each text under a line with its number, as stdout has; a .jsonl has a
JSON object a line, which says how the sample was made, and that it is synthetic. Nothing in them
depends on the time or on how often the run was interrupted.
"""

import itertools
import json
import os
import sys
import time

from tqdm import tqdm

import cli

FLUSH_SECONDS = 1  # how often a file is written to, and made sure to be on the disk


def rule(number):
    """The line above a sample in a text; numbers count from 1."""
    return '=' * 40 + ' SAMPLE %d ' % number + '=' * 40 + '\n'


def done(batches):
    """Yields the Texts that `texts.grow` has done, in order, in lists, as they are done."""
    for batch in batches:
        yield list(itertools.takewhile(lambda text: text.done, batch))


def watched(batches, n_texts, length, **options):
    """Passes on what `texts.grow` yields, with a progress bar on stderr if that is a terminal.

    Args:
      n_texts: how many there will be; None if nobody knows.
      options: of tqdm.
    """
    total = n_texts and n_texts * length
    before = 0  # tokens of texts that are done
    with tqdm(total=total, unit='token', **dict(dict(disable=None), **options)) as progress:
        for batch in batches:
            progress.update(before + sum(len(text.tokens) for text in batch) - progress.n)
            for text in itertools.takewhile(lambda text: text.done, batch):
                before += len(text.tokens)
                if total:
                    progress.total -= length - len(text.tokens)
            yield batch


class Printer:
    """Writes samples to stdout, with the interface of a File."""

    settings = None

    def __init__(self, first):
        self.next = first

    def check(self, settings):
        """Any settings are as good as any others."""

    begin = check

    def write(self, texts):
        for text in texts:
            tqdm.write(rule(text.index + 1) + text.text, sys.stdout)
        sys.stdout.flush()

    def flush(self):
        """Nothing is left to write."""


class File:
    """A file of samples.

    settings: those that the samples in it were made with, a dict; None if there are none yet.
    next: the index that the next sample in it must have, or a later one.
    """

    def __init__(self, path, first):
        """Opens a file, or creates it, and finds out what is in it.

        Args:
          first: the index of the first sample; None if it may be any.

        Raises:
          UserError: it cannot be opened, or holds something else.
        """
        self.path, self.settings, self.next = path, None, first or 0
        self._first = first
        try:
            self._file = open(path, 'r+b' if os.path.exists(path) else 'x+b', buffering=0)
            self._size = self._recover()
        except OSError as error:
            raise self._failed(error)
        self._pending, self._flushed = [], time.monotonic()

    def check(self, settings):
        """Raises UserError if the samples in the file were made with other settings than these."""
        if self.settings is None:
            return
        differ = ['%s %s, now %s' % (name, json.dumps(self.settings.get(name)), json.dumps(value))
                  for name, value in settings.items() if self.settings.get(name) != value]
        if differ:
            raise cli.UserError('%s was made with other settings (%s); give those again, or '
                                'another --output' % (self.path, '; '.join(differ)))

    def begin(self, settings):
        """Gets ready to write samples that are made with these settings; cuts a torn record off."""
        self.check(settings)
        self.settings = settings
        self._try(lambda: self._file.truncate(self._size))

    def write(self, texts):
        """Adds samples; they are on the disk after a second, or a call of `flush`."""
        self._pending += texts
        if self._pending and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Writes what is left to write. Raises UserError if the disk is full."""
        self._try(self._flush)

    def _flush(self):
        data = b''.join(self._record(text).encode('utf-8') for text in self._pending)
        self._file.seek(self._size)
        while data:
            data = data[self._file.write(data):]
        os.fsync(self._file.fileno())
        self._size = self._file.tell()
        if self._pending:
            self.next = self._pending[-1].index + 1
        self._pending, self._flushed = [], time.monotonic()
        self._commit()

    def _try(self, function):
        """Calls a function that writes. Raises UserError if that fails; whole records stay."""
        try:
            function()
        except OSError as error:
            self._pending = []
            self._file.truncate(self._size)
            raise self._failed(error)

    def _failed(self, error):
        return cli.UserError('%s: %s' % (error.filename or self.path, error.strerror))

    def _foreign(self):
        return cli.UserError('%s holds something else than samples; give another --output'
                             % self.path)


class JsonLines(File):
    """A .jsonl file: its settings are in each record."""

    def __init__(self, path, first, encoder, with_prompt):
        self._encoder, self._with_prompt = encoder, with_prompt
        super().__init__(path, first)

    def _record(self, text):
        settings = {name: value for name, value in self.settings.items()
                    if name not in ('model', 'seed')}
        record = {'index': text.index, 'model': self.settings['model'],
                  'seed': self.settings['seed'], 'settings': settings}
        if self._with_prompt:
            record['prompt'] = self._encoder.decode(text.prompt)
        record.update(text=text.text, tokens=text.tokens, ended=text.ended, synthetic=True)
        if text.logprobs:
            model, sampled = zip(*text.logprobs)
            record['logprobs'] = {'model': [round(value, 6) for value in model],
                                  'sampled': [round(value, 6) for value in sampled]}
        return json.dumps(record, ensure_ascii=False) + '\n'

    def _recover(self):
        """Reads the first and the last whole record; returns the size of all that are whole."""
        first = last = None
        size = 0
        for line in self._file_lines():
            if not line.endswith(b'\n'):
                beginning = b'{"index": '
                if line[:len(beginning)] != beginning[:len(line)]:
                    raise self._foreign()
                break
            size += len(line)
            first, last = first or line, line
        if first:
            first, last = self._parse(first), self._parse(last)
            if self._first is not None and first['index'] != self._first:
                raise cli.UserError('%s starts with sample %d, not %d; give the same '
                                    '--first_sample, or another --output'
                                    % (self.path, first['index'], self._first))
            self.settings = dict(last['settings'], model=last['model'], seed=last['seed'])
            self.next = last['index'] + 1
        return size

    def _file_lines(self):
        with open(self.path, 'rb') as file:
            yield from file

    def _parse(self, line):
        try:
            record = json.loads(line.decode('utf-8'))
            if not all(name in record for name in ('index', 'model', 'seed', 'settings')):
                raise ValueError
            return record
        except (ValueError, TypeError):
            raise self._foreign()

    def _commit(self):
        """There is nothing beside the file."""


class PlainText(File):
    """A .txt file: beside it lies another, with the settings and how much of it is whole."""

    def _record(self, text):
        return rule(text.index + 1) + text.text + '\n'

    @property
    def _beside(self):
        return self.path + '.settings.json'

    def _recover(self):
        """Reads the file beside it; returns the size of all records that are whole."""
        size = os.path.getsize(self.path)
        try:
            with open(self._beside, encoding='utf-8') as file:
                state = json.load(file)
            if state['first_sample'] != self._first:
                raise cli.UserError('%s starts with sample %d, not %d; give the same '
                                    '--first_sample, or another --output'
                                    % (self.path, state['first_sample'], self._first))
            self.settings, self.next, whole = state['settings'], state['next'], state['bytes']
        except FileNotFoundError:
            whole = 0
        except (ValueError, KeyError, TypeError):
            raise cli.UserError('%s is damaged; give another --output' % self._beside)
        if whole > size or (self.settings is None and size > 0):
            raise self._foreign()
        return whole

    def begin(self, settings):
        super().begin(settings)
        self._try(self._commit)

    def _commit(self):
        state = {'settings': self.settings, 'first_sample': self._first, 'next': self.next,
                 'bytes': self._size}
        partial = self._beside + '.partial'
        try:
            with open(partial, 'w', encoding='utf-8') as file:
                json.dump(state, file, indent=1, ensure_ascii=False)
                file.write('\n')
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._beside)
        finally:
            if os.path.exists(partial):
                os.remove(partial)
