"""Writes samples: to stdout, or to a file that grows by whole records and can be continued.

Two kinds of files: a .txt has each text under a line with its number, as stdout has; a .jsonl has a
JSON object a line, which says how the sample was made, and that it is synthetic. Nothing in them
depends on the time or on how often the run was interrupted.
"""

import collections
import itertools
import json
import os
import re
import sys
import time

from tqdm import tqdm

import checkpoint
import cli

FLUSH_SECONDS = 1  # how often, at most, a file is written to and made sure to be on the disk

# How far a file has got: the size of its whole records in bytes, and the index of the sample that
# comes next, or a lower one.
Progress = collections.namedtuple('Progress', 'size next')


def rule(number):
    """The line above a sample in a text; numbers count from 1."""
    return '=' * 40 + ' SAMPLE %d ' % number + '=' * 40 + '\n'


def done(batches):
    """Yields the Texts that `texts.grow` has done, in order, in lists, as they are done."""
    for batch in batches:
        yield list(itertools.takewhile(lambda text: text.done, batch))


def watched(batches, last, length, **options):
    """Passes on what `texts.grow` yields, with a progress bar on stderr if that is a terminal.

    Args:
      last: the index after that of the last text; None if they go on for ever.
      length: how many tokens a text has that does not end by itself.
      options: of tqdm.
    """
    n_gone = n_tokens = 0  # texts that are in `batch` no more, and their tokens
    with tqdm(unit=' tokens', **dict(dict(disable=None), **options)) as progress:
        for batch in batches:
            made = n_tokens + sum(len(text.tokens) for text in batch)
            n_done = n_gone + sum(text.done for text in batch)
            if last is not None:
                progress.total = made + round(missing(batch, last, length, made, n_done))
            progress.update(made - progress.n)
            yield batch
            for text in itertools.takewhile(lambda text: text.done, batch):
                n_gone += 1
                n_tokens += len(text.tokens)


def missing(batch, last, length, made, n_done):
    """Guesses how many tokens are still to be made.

    As if any token were as likely as any other to end its text, the more tokens there are for each
    text that is done, the longer the others are thought to be.
    """
    usual = min(length, made / n_done) if n_done else length
    return usual * (last - batch[-1].index - 1) + sum(
        min(usual, length - len(text.tokens)) for text in batch if not text.done)


class Printer:
    """Writes samples to stdout, with the interface of a File."""

    settings = None

    def __init__(self, first):
        self.next = first or 0

    def check(self, settings):
        """Any settings are as good as any others."""

    begin = check

    def write(self, texts):
        """Prints samples, above the progress bar."""
        for text in texts:
            tqdm.write(rule(text.index + 1) + text.text, sys.stdout)
        sys.stdout.flush()

    def flush(self):
        """Nothing is left to write."""

    close = flush


class File:
    """A file of samples, which no other process writes to meanwhile.

    settings: those that the samples in it were made with, a dict; None if there are none yet.
    """

    def __init__(self, path, first):
        """Opens a file, or creates it, and finds out what is in it.

        Args:
          first: the index of the first sample; None if it may be any.

        Raises:
          UserError: it cannot be opened, is written to by another process, or holds something else.
        """
        self.path, self.settings = path, None
        self._first = first
        self._pending, self._flushed = collections.deque(), time.monotonic()
        try:
            self._file = open(path, 'r+b' if os.path.exists(path) else 'x+b', buffering=0)
        except OSError as error:
            raise self._failed(error)
        try:
            self._lock()
            self._progress = self._recover()
        except OSError as error:
            self.close()
            raise self._failed(error)
        except cli.UserError:
            self.close()
            raise

    @property
    def next(self):
        """The index that the next sample in it must have, or a lower one."""
        return self._progress.next

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
        """Gets ready to write samples that are made with these settings; cuts a torn record off.

        Args:
          settings: all that there are, as in `check`.
        """
        self.check(dict(dict.fromkeys(self.settings or ()), **settings))
        self.settings = settings
        self._try(self._cut)

    def write(self, texts):
        """Adds samples; they are on the disk after a second, or a call of `flush`."""
        self._pending.extend(texts)
        if self._pending and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Writes what is left to write. Raises UserError if the disk is full."""
        self._try(self._flush)

    def close(self):
        """Lets another process write to it."""
        self._file.close()

    def _flush(self):
        """Writes what is pending. Interrupted anywhere, by Ctrl-C say, it may be called again."""
        while self._pending:
            text = self._pending[0]
            if text.index >= self.next:
                data = self._record(text).encode('utf-8')
                self._file.seek(self._progress.size)
                while data:
                    data = data[self._file.write(data):]
                self._progress = Progress(self._file.tell(), text.index + 1)
            self._pending.popleft()
        os.fsync(self._file.fileno())
        self._commit()
        self._flushed = time.monotonic()

    def _cut(self):
        """Leaves nothing but whole records."""
        self._file.truncate(self._progress.size)
        self._commit()

    def _try(self, function):
        """Calls a function that writes. Raises UserError if that fails; whole records stay."""
        try:
            function()
        except OSError as error:
            self._pending.clear()
            self._file.truncate(self._progress.size)
            raise self._failed(error)

    def _lock(self):
        """Raises UserError if another process writes to the file."""
        if not checkpoint.lock(self._file):
            raise cli.UserError('%s is being written to by another process; wait for it, or give '
                                'another --output' % self.path)

    def _failed(self, error):
        return cli.UserError('%s: %s' % (error.filename or self.path, error.strerror))

    def _foreign(self):
        return cli.UserError('%s holds something else than samples; give another --output'
                             % self.path)

    def _check_first(self, first):
        """Raises UserError if the samples in the file start with another than they must."""
        if None not in (first, self._first) and first != self._first:
            raise cli.UserError('%s starts with sample %d, not %d; give the same --first_sample, '
                                'or another --output' % (self.path, first, self._first))


class JsonLines(File):
    """A .jsonl file: its settings are in each record."""

    def __init__(self, path, first, encoder, with_prompt):
        """Opens a file, as File. Records have their prompts, or not."""
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
        """Reads the file, whose last record may be torn: returns its Progress."""
        size, following, last = 0, self._first, None
        with open(self.path, 'rb') as file:
            for line in file:
                if not line.endswith(b'\n'):
                    beginning = b'{"index": '
                    if line[:len(beginning)] != beginning[:len(line)]:
                        raise self._foreign()
                    break
                index = self._index(line)
                if last is None:
                    self._check_first(index)
                elif index < following or self._first is not None and index > following:
                    raise cli.UserError('%s: sample %d follows sample %d; give another --output'
                                        % (self.path, index, following - 1))
                size, following, last = size + len(line), index + 1, line
        if last:
            self.settings = self._settings(last)
        return Progress(size, following or 0)

    def _index(self, line):
        """Returns the index in a record, bytes. Raises UserError if it is none."""
        match = re.match(br'{"index": (\d+), .*}\n$', line)
        if not match:
            raise self._foreign()
        return int(match.group(1))

    def _settings(self, line):
        """Returns the settings in a record, bytes. Raises UserError if it is none."""
        try:
            record = json.loads(line.decode('utf-8'))
            return dict(record['settings'], model=record['model'], seed=record['seed'])
        except (ValueError, KeyError, TypeError):
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
        """Reads the file beside it: returns the Progress that it tells of."""
        size = os.path.getsize(self.path)
        if not size:  # a new one, whatever the one before it was
            return Progress(0, self._first or 0)
        try:
            with open(self._beside, encoding='utf-8') as file:
                state = json.load(file)
            first, progress = state['first_sample'], Progress(state['bytes'], state['next'])
            self.settings = dict(state['settings'])
            if progress.size > size:
                raise ValueError
        except FileNotFoundError:
            raise self._foreign()
        except (ValueError, KeyError, TypeError):
            raise cli.UserError('%s does not belong to %s, or is damaged; give another --output'
                                % (self._beside, self.path))
        self._check_first(first)
        return progress

    def _commit(self):
        """Replaces the file beside it, at once."""
        state = {'settings': self.settings, 'first_sample': self._first, 'next': self.next,
                 'bytes': self._progress.size}
        checkpoint.write_file(self._beside, [json.dumps(state, indent=1, ensure_ascii=False), '\n'])
