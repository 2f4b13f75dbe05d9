"""Where samples are written: stdout, or a file that grows by whole records and can be continued.

A .txt has each text under a line with its number, as stdout has. A .jsonl has a JSON object a line,
which says how the sample was made and that it is synthetic. A file does not depend on the time or
on how often the run was interrupted. Another format is another subclass of ResumableFile, and a
line in `open_output`.
"""

import collections
import json
import os
import re
import sys
import time

from tqdm import tqdm

from gpt2 import files
from gpt2.errors import OptionError, UsageError, UserError
from gpt2.sampling.options import EngineOptions, GenerationOptions

UNCHECKED = ('engine', 'tensorflow')  # settings that are compared only once they are known
DIGESTS = ('weights', 'prompts')  # settings that are checksums
FLUSH_SECONDS = 1  # a file is written to and synchronized at most this often

# Of a file: the bytes of its whole records, and the index of the next sample or a lower one.
Progress = collections.namedtuple('Progress', 'size next')


def open_output(path, first, content):
    """Return what samples are written to: a ResumableFile, or a Printer if path is None.

    `first` is the index of the first sample, None if it may be any; `content` is the Content of a
    sample. Raises UsageError if the path does not end in .txt or .jsonl, and UserError as
    ResumableFile does.
    """
    if path is None:
        return Printer(first, content)
    if path.endswith('.jsonl'):
        return JsonLines(path, first, content)
    if path.endswith('.txt'):
        return PlainText(path, first, content)
    raise UsageError(f'--output must end in .txt or .jsonl, not {path!r}')


def banner(number):
    """Return the line above a sample in a text; numbers count from 1."""
    return '=' * 40 + f' SAMPLE {number} ' + '=' * 40 + '\n'


def check_settings(settings):
    """Return settings that were read from a file. Raises ValueError if no run has written them."""
    try:
        EngineOptions(engine=settings.get('engine', 'auto'))
        if GenerationOptions(seed=settings['seed']).seed is not None:
            return settings
    except OptionError:
        pass
    raise ValueError('no run has these settings')


class Content:
    """What is written of a sample, a Sequence."""

    def __init__(self, encoder, fields=None, include_prompt=False):
        """Args:
          encoder: of the model.
          fields: a function from the index of a sample to what else is known of its prompt, a dict;
            None for samples without prompts.
          include_prompt: whether a text begins with its prompt.
        """
        self._encoder, self._fields, self._include_prompt = encoder, fields, include_prompt

    def text(self, sequence):
        """Return the text to write."""
        prompt = self._encoder.decode(sequence.prompt) if self._include_prompt else ''
        return prompt + sequence.text

    def prompt(self, sequence):
        """Return what to record of its prompt, a dict."""
        if self._fields is None:
            return {}
        fields = self._fields(sequence.index)
        return {'prompt': self._encoder.decode(sequence.prompt),
                **({'input': fields} if fields else {})}

    def logprobs(self, sequence):
        """Return what to record of its log probabilities, a dict."""
        if not sequence.logprobs:
            return {}
        model, sampled = ([round(value, 6) for value in values]
                          for values in zip(*sequence.logprobs))
        top = [[{'id': token, 'text': self._encoder.decode([token]), 'logprob': round(value, 6)}
                for token, value in place] for place in sequence.top_logprobs]
        found = {'model': model, 'sampled': sampled, **({'top': top} if top[0] else {})}
        return {'logprobs': found}


class Printer:
    """Writes samples to stdout, with the interface of a ResumableFile."""

    settings = None

    def __init__(self, first, content):
        self.next, self._content = first or 0, content

    def check(self, settings):
        """Accept any settings."""

    begin = check

    def write(self, sequences):
        """Print samples, above the progress bar."""
        for sequence in sequences:
            tqdm.write(banner(sequence.index + 1) + self._content.text(sequence), sys.stdout)
        sys.stdout.flush()

    def flush(self):
        """Nothing is left to write."""

    close = flush


class ResumableFile:
    """A file of samples. While it is open, no other process writes to it.

    settings: what the samples in it were made with, a dict; None if there are none yet.
    elsewhere, same_first: the flags that an error names, for another file and for its first sample.
    """

    elsewhere, same_first = 'another --output', 'the same --first_sample'

    def __init__(self, path, first, content):
        """Open or create a file, see `open_output`, and find out what is in it.

        Raises UserError if it cannot be opened, another process writes to it, or it holds something
        else.
        """
        self.path, self.settings, self._first, self._content = path, None, first, content
        self._pending, self._flushed = collections.deque(), time.monotonic()
        try:
            descriptor = files.open_regular(path, os.O_RDWR | os.O_CREAT, follow_links=True)
        except FileNotFoundError:
            folder = os.path.dirname(os.path.realpath(path))
            raise UserError(f'{path}: there is no folder {folder}; create it, or give '
                            f'{self.elsewhere}')
        except OSError as error:
            raise self._failed(error)
        self._file = open(descriptor, 'r+b', buffering=0)
        try:
            files.lock(self._file)
            self._progress = self._recover()
        except BlockingIOError:
            self.close()
            raise UserError(f'{path} is being written to by another process; wait for it, or give '
                            f'{self.elsewhere}')
        except (OSError, UserError) as error:
            self.close()
            raise self._failed(error) if isinstance(error, OSError) else error

    @property
    def next(self):
        """The index that the next sample in it must have, or a lower one."""
        return self._progress.next

    def check(self, settings):
        """Raise UserError if the samples in the file were made with other settings than these."""
        if self.settings is None:
            return
        names = {**settings, **{name: None for name in self.settings if name not in UNCHECKED}}
        pairs = {name: (json.dumps(self.settings.get(name)), json.dumps(settings.get(name)))
                 for name in names}
        differ = [f'other {name}' if name in DIGESTS else f'{name} {old}, now {new}'
                  for name, (old, new) in pairs.items() if old != new]
        if differ:
            raise UserError(f'{self.path} was made with other settings ({"; ".join(differ)}); give '
                            f'those again, or {self.elsewhere}')

    def begin(self, settings):
        """Check all settings of the samples to write, record them, and cut off a torn record."""
        self.check(settings)
        self.settings = settings
        self._try(self._cut)

    def write(self, sequences):
        """Add samples; they are on the disk after a second, or a call of `flush`."""
        self._pending.extend(sequences)
        if self._pending and time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        """Write what is left to write. Raises UserError if the disk is full."""
        self._try(self._flush)

    def close(self):
        """Release the file, so that another process may write to it."""
        self._file.close()

    def _flush(self):
        """Write what is pending. Interrupted anywhere, by Ctrl-C say, it may be called again."""
        while self._pending:
            sequence = self._pending[0]
            if sequence.index >= self.next:
                data = self._record(sequence).encode('utf-8')
                self._file.seek(self._progress.size)
                while data:
                    data = data[self._file.write(data):]
                self._progress = Progress(self._file.tell(), sequence.index + 1)
            self._pending.popleft()
        os.fsync(self._file.fileno())
        self._commit()
        self._flushed = time.monotonic()

    def _cut(self):
        """Leave nothing but whole records."""
        self._file.truncate(self._progress.size)
        self._commit()

    def _try(self, function):
        """Call a function that writes. Raises UserError if that fails; whole records stay."""
        try:
            function()
        except OSError as error:
            self._pending.clear()
            self._file.truncate(self._progress.size)
            raise self._failed(error)

    def _failed(self, error):
        return UserError(f'{error.filename or self.path}: {error.strerror}')

    def _foreign(self):
        return UserError(f'{self.path} holds something else than samples; give '
                         f'{self.elsewhere}')

    def _check_first(self, first):
        """Raise UserError if the file starts with another sample than it must."""
        if None not in (first, self._first) and first != self._first:
            raise UserError(f'{self.path} starts with sample {first}, not {self._first}; give '
                            f'{self.same_first}, or {self.elsewhere}')


class JsonLines(ResumableFile):
    """A .jsonl file. Its settings are in each record."""

    def _record(self, sequence):
        settings = dict(self.settings)
        record = {'index': sequence.index, 'model': settings.pop('model'),
                  'seed': settings.pop('seed'), 'settings': settings,
                  **self._content.prompt(sequence), 'text': self._content.text(sequence),
                  'tokens': sequence.tokens, 'ended': sequence.ended,
                  'finish_reason': sequence.finish_reason, 'synthetic': True,
                  **self._content.logprobs(sequence)}
        return json.dumps(record, ensure_ascii=False) + '\n'

    def _recover(self):
        """Read the file, whose last record may be torn, and return its Progress."""
        size, following, last = 0, self._first, None
        for line in open(self._file.fileno(), 'rb', closefd=False):
            if not line.endswith(b'\n'):
                beginning = b'{"index": '
                if line[:len(beginning)] != beginning[:len(line)]:
                    raise self._foreign()
                break
            match = re.match(br'{"index": (\d{1,18}), .*}\n$', line)
            if not match:
                raise self._foreign()
            index = int(match.group(1))
            if last is None:
                self._check_first(index)
            elif index < following or self._first is not None and index > following:
                raise UserError(f'{self.path}: sample {index} follows sample {following - 1}; give '
                                f'{self.elsewhere}')
            size, following, last = size + len(line), index + 1, line
        if last:
            self.settings = self._settings(last)
        return Progress(size, following or 0)

    def _settings(self, line):
        """Return the settings in a record, bytes. Raises UserError if it has none."""
        try:
            record = files.parse_object(line)
            return check_settings(
                {**record['settings'], 'model': record['model'], 'seed': record['seed']})
        except (ValueError, KeyError, TypeError):
            raise self._foreign()

    def _commit(self):
        """Nothing lies beside the file."""


class SettingsBeside(ResumableFile):
    """A file with another one beside it, which has its settings and the size of whole records."""

    @property
    def _state_path(self):
        return self.path + '.settings.json'

    def _recover(self):
        """Read the file beside it and return the Progress recorded there."""
        size = os.path.getsize(self.path)
        try:
            state = files.read_json(self._state_path)
            first, progress = state['first_sample'], Progress(state['bytes'], state['next'])
            settings = check_settings(dict(state['settings']))
            whole = all(type(value) is int and value >= 0 for value in (first or 0, *progress))
            if not whole or size and progress.size > size:
                raise ValueError
        except FileNotFoundError:
            if size:
                raise self._foreign()
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{self._state_path} does not belong to {self.path}, or is damaged; '
                            f'give {self.elsewhere}')
        if not size:  # a new file, whatever an earlier one of that name was
            return Progress(0, self._first or 0)
        self.settings = settings
        self._check_first(first)
        return progress

    def _commit(self):
        """Replace the file beside it."""
        files.write_json(self._state_path, {
            'settings': self.settings, 'first_sample': self._first, 'next': self.next,
            'bytes': self._progress.size}, indent=1, ensure_ascii=False)


class PlainText(SettingsBeside):
    """A .txt file."""

    def _record(self, sequence):
        return banner(sequence.index + 1) + self._content.text(sequence) + '\n'


class DatasetLines(SettingsBeside):
    """A .jsonl file with the fields of OpenAI's gpt-2-output-dataset, and that it is synthetic."""

    elsewhere = 'another --data_dir'
    same_first = 'the same --train and --valid'

    def _record(self, sequence):
        # `length` counts the tokens of the text, which <|endoftext|> is not among.
        record = {'id': sequence.index, 'ended': sequence.ended,
                  'length': len(sequence.tokens) - sequence.ended,
                  'text': self._content.text(sequence), 'synthetic': True}
        return json.dumps(record, ensure_ascii=False) + '\n'
