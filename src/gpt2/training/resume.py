"""The output of a run, a model directory, and what --resume continues from.

Beside the best weights it has metrics.jsonl, samples.txt and training/, with all variables as they
were after the last validations. training/progress.json, which is replaced last, names the step
whose variables are complete. All steps after it are repeated, with the same results.
"""

import collections
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import re

from gpt2 import checkpoint, files
from gpt2.errors import UserError

# The steps done, and the lowest validation loss up to there, in nats per token (None: no loss yet).
Progress = collections.namedtuple('Progress', 'step best')

EARLIER = {'optimizer': 'adamw'}  # settings of runs that were recorded before there was a choice
TEXTS = {'text': 'another text', 'validation': 'another validation text'}  # known by fingerprints
BANNER = re.compile('={40} STEP ([0-9]{1,10}) ={40}\n')


def check_output(path, resume):
    """Raise UserError if a directory holds a model that is not to be, or cannot be, resumed."""
    def has(*names):
        return os.path.exists(os.path.join(path, *names))
    if resume and not has('training'):
        raise UserError(f'{path} holds a model, but no training/ to resume from; give another '
                        '--output' if has('checkpoint') else
                        f'there is no training to resume in {path}; leave out --resume, or correct '
                        '--output')
    if not resume and (has('hparams.json') or has('training', 'progress.json')):
        raise UserError(f'{path} holds a model already; give another --output, or continue its '
                        'training with --resume')


@dataclasses.dataclass(frozen=True)
class Output:
    """The model directory that a run writes."""

    path: str
    settings: dict  # what decides what is learned, by name
    keep_last: int  # of how many validations training/ keeps the variables

    def training_path(self, name=''):
        """Return the path of a file in training/."""
        return os.path.join(self.path, 'training', name)

    @contextlib.contextmanager
    def lock(self, resume):
        """Make the directory, before hours of training, and lock it meanwhile.

        Raises UserError if it cannot be made, or another process trains or has trained there.
        """
        try:
            os.makedirs(self.training_path(), exist_ok=True)
            lock = open(files.open_regular(self.training_path('lock'), os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise UserError(f'{self.path} cannot be made: {error.filename}: {error.strerror}')
        with lock:
            try:
                files.lock(lock)
            except BlockingIOError:
                raise UserError(f'{self.path} is being trained by another process; wait for it, or '
                                'give another --output')
            check_output(self.path, resume)
            yield

    def read_progress(self):
        """Return the Progress of an earlier run; Progress(0, None) if it saved nothing yet.

        Raises UserError if it had other settings, or its progress cannot be read. A run that is
        finished may go on to more steps.
        """
        path = self.training_path('progress.json')
        try:
            stored = files.read_json(path)
            progress = Progress(stored['step'], stored['best'])
            before = dict(EARLIER, **stored['settings'])
            is_finished = before['steps'] <= progress.step
        except FileNotFoundError:
            return Progress(0, None)
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f'{path} cannot be read; train again with another --output')
        if self.settings['steps'] < progress.step:
            raise UserError(f'{self.path} has done {progress.step} steps already; give at least '
                            f'--steps {progress.step}')
        # The default of --warmup changes with --steps; a finished run is past it.
        free = ('steps', 'warmup') if is_finished else ()
        changes = [TEXTS.get(name, f'--{name} {value} (it was {before.get(name)})')
                   for name, value in self.settings.items()
                   if value != before.get(name) and name not in free]
        if changes:
            raise UserError(f'{self.path} was trained with other settings; now there is '
                            f'{", ".join(changes)}')
        return progress

    def write_progress(self, progress, save):
        """Call save(prefix), name it in progress.json and `checkpoint`, then remove the oldest."""
        name = f'step-{progress.step}'
        save(self.training_path(name))
        for path in glob.glob(glob.escape(self.training_path(name)) + '.*'):
            files.sync_file(path)
        checkpoint.write_checkpoint_state(self.training_path(), name)
        files.write_json(self.training_path('progress.json'),
                         dict(progress._asdict(), settings=self.settings))
        steps = {path: int(re.search(r'step-(\d+)', os.path.basename(path)).group(1))
                 for path in glob.glob(glob.escape(self.training_path()) + 'step-*')}
        kept = sorted({step for step in steps.values() if step <= progress.step})[-self.keep_last:]
        for path in steps:
            if steps[path] not in kept:
                os.remove(path)

    def append_metrics(self, metrics):
        """Add a line to metrics.jsonl."""
        self.append('metrics.jsonl', json.dumps(metrics) + '\n')

    def append_sample(self, step, text):
        """Add a sample to samples.txt."""
        self.append('samples.txt', sample_text(step, text) + '\n')

    def append(self, name, text):
        """Add a text to a file of the model directory."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with open(files.open_regular(os.path.join(self.path, name), flags), 'ab') as file:
            file.write(text.encode('utf-8'))

    def trim(self, step):
        """Keep only the complete metrics, and the samples, up to a step. Raises UserError."""
        self.trim_file('metrics.jsonl', lambda lines: [
            line for line in lines
            if line.endswith('\n') and files.parse_object(line)['step'] <= step])
        self.trim_file('samples.txt', lambda lines: itertools.takewhile(
            lambda line: line.endswith('\n') and step_of_banner(line) <= step, lines))

    def trim_file(self, name, keep):
        """Keep only some of the lines of a file of the model directory. Raises UserError."""
        path = os.path.join(self.path, name)
        try:
            with open(files.open_regular(path, os.O_RDONLY), encoding='utf-8',
                      newline='\n') as file:
                lines = list(keep(file))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f'{path} cannot be read; train again with another --output')
        files.write_file(path, lines)


def sample_text(step, text):
    """Return a sample below a banner with the number of its step."""
    return '=' * 40 + f' STEP {step} ' + '=' * 40 + '\n' + text


def step_of_banner(line):
    """Return the number of the step in the banner of a sample; 0 for any other line."""
    banner = BANNER.fullmatch(line)
    return int(banner.group(1)) if banner else 0
