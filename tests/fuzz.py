"""Attacks on the commands: hostile flags, files and servers, at random, reproducible by a seed.

    python3 tests/fuzz.py --minutes 60                 all attacks, and a table of the results
    python3 tests/fuzz.py --attacks flags --case 1234  one case again, with what it prints

What a case may do: end with status 0; or with status 1 or 2, one line on stderr, and every file
that was there before as it was. All else is a failure: a traceback, a crash, no end in a minute,
another output.

The cases run in another process, so that a crash or an endless loop is noticed and ends nothing
else. A case depends on the seed, the attack and the number of the case alone.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from unittest import mock

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / 'src'), str(TESTS.parent)]

import numpy as np  # noqa: E402

import helpers  # noqa: E402
import model_files  # noqa: E402
import reference  # noqa: E402

TINY = {'n_vocab': 257, 'n_ctx': 32, 'n_embd': 16, 'n_head': 2, 'n_layer': 2}
CASE_SECONDS = 60  # after which a case counts as endless
TEXT = 'One two three.\nVier fünf sechs, 七八九!\n' * 40


class Failure(AssertionError):
    """What a case must not do."""


# ---- nasty values ------------------------------------------------------------------------------

NUMBERS = ['', '0', '-0', '-1', '1', '2', '3', '0.5', '1e-300', '1e400', '-1e400', 'nan', 'inf',
           '9' * 5000, '1' + '0' * 310, '0x' + 'f' * 5000, '0x10', '1_0', '１２', '٣', '+1', ' 1',
           '1 ', '1.0', '1j', '1L', '1,', '(1)', '(' * 300, '~' * 3000, '[' * 3000, '1if 1else 2',
           '2147483648', '18446744073709551616', '-18446744073709551616', 'None', 'True', 'False']
TEXTS = ['', ' ', '\n', '\t\x1b[31m', 'a' * 10**5, 'ü' * 3000, '\udcff', '\u202e', '--',
         '-', '-h', '---', '=', '--=', '-5', '@', '*', '?', '[', '{}', '{a', '[1, 2]', '"', "'",
         "__import__('os')", '%s%n', '../..', '.', '/', '~', 'no-such', 'a/../b', '\\', 'auto',
         'graph', 'lite', 'float32', 'int8', 'bfloat16', 'all', 'blocks', 'tensorflow']
PATHS = ['text.txt', 'prompts.txt', 'prompts.jsonl', 'samples.txt', 'samples.jsonl', 'models',
         'models/tiny', 'tiny', 'hf', '/dev/null', '/dev/full', '/dev/zero', 'fifo', 'dangling',
         'link.txt', 'new.txt', 'new.jsonl', 'no/such/new.txt', 'models/new.jsonl', 'hf/new.txt']
JSON = ['null', 'true', '-1', '0', '1.5', '1e999', '-1e999', 'NaN', '9' * 4000, '1' + '0' * 19,
        '""', '"\\ud800"', '"\\u0000"', '"' + 'x' * 10000 + '"', '[]', '{}', '[[[]]]', '"../x"',
        '[' * 100000, '{"a":' * 100000, '"model.ckpt"', '"/etc/passwd"', ',', '', '{', '}']
TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[\[\]{},:]')


def mutate(rng, data):
    """Return bytes that are changed somewhere: as JSON, or as bytes."""
    if rng.random() < 0.6:
        with contextlib.suppress(UnicodeDecodeError):
            return mutate_json(rng, data.decode('utf-8')).encode('utf-8', 'surrogatepass')
    place, length = rng.randrange(len(data) + 1), rng.randrange(1, 2 + len(data) // 2)
    noise = bytes(rng.randrange(256) for _ in range(min(length, 64)))
    return rng.choice([
        lambda: flip(rng, data), lambda: flip(rng, data), lambda: data[:place],
        lambda: data[:place] + noise + data[place:], lambda: data[:place] + data[place + length:],
        lambda: data[:place] + data[place:place + length] + data[place:], lambda: b'',
        lambda: bytes(len(data)), lambda: noise, lambda: data + noise,
        lambda: data[:place] + noise + data[place + len(noise):]])()


def flip(rng, data):
    """Return bytes with a few bits flipped."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def mutate_json(rng, text):
    """Return a text with one or two of its JSON tokens replaced."""
    for _ in range(rng.choice([1, 1, 2])):
        spans = [match.span() for match in TOKENS.finditer(text)]
        if spans:
            start, end = rng.choice(spans)
            text = text[:start] + rng.choice(JSON) + text[end:]
    return text


def mutate_file(rng, path):
    """Change a file: its contents, or what is at its path."""
    data = path.read_bytes()
    choice = rng.random()
    if choice < 0.9:
        path.write_bytes(mutate(rng, data))
    else:
        path.unlink()
        if choice > 0.97:
            path.mkdir()
        elif choice > 0.94:
            path.symlink_to('dangling')


# ---- a sandbox ---------------------------------------------------------------------------------

class Sandbox:
    """Folders like those of a user: `fresh()` makes one, as it was at first."""

    def __init__(self, folder):
        self.template, self.work = folder / 'template', folder / 'work'
        os.environ['XDG_CACHE_HOME'] = str(folder / 'cache')
        in_child(self.make)

    def make(self):
        """Make the template: texts, and a model, also converted, with samples."""
        self.template.mkdir(parents=True)
        os.chdir(str(self.template))
        pathlib.Path('text.txt').write_text(TEXT, encoding='utf-8')
        pathlib.Path('prompts.txt').write_text('One\ntwo\n\nüü\n', encoding='utf-8')
        pathlib.Path('prompts.jsonl').write_text('{"prompt": "One"}\n{"prompt": "\\u00fc"}\n')
        pathlib.Path('link.txt').symlink_to('text.txt')
        os.mkfifo('fifo')
        reference.write_checkpoint('models/tiny', TINY, reference.random_weights(TINY, seed=0))
        commands = Commands()
        expect(commands.run('convert', 'models/tiny', 'hf', '--to', 'transformers'), 0)
        model_files.write_torch('hf/pytorch_model.bin', model_files.as_f32(model_files.renamed(
            reference.random_weights(TINY, seed=0))))  # not read while there is the other
        for dtype in ('float32', 'int8') if commands.has_lite else ():
            expect(commands.run('unconditional', *commands.tiny, '--engine', 'lite', '--dtype',
                                dtype, '--nsamples', 1, '--length', 2), 0)
        for output in ('samples.txt', 'samples.jsonl'):
            expect(commands.run('unconditional', *commands.tiny, '--output', output, '--seed', 1,
                                '--nsamples', 3, '--length', 8), 0)

    def fresh(self):
        """Return the path of a fresh copy, the current folder."""
        os.chdir('/')
        for folder in (str(self.work), os.environ['XDG_CACHE_HOME']):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(str(self.template), str(self.work), symlinks=True,
                        copy_function=copy_special)
        os.chdir(str(self.work))
        return self.work


def copy_special(source, target):
    """Copy a file, or a FIFO, with its times: converted weights must look untouched."""
    if os.path.exists(source) and not os.path.isfile(source):
        os.mkfifo(target)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def snapshot(folder):
    """Return the contents of all files below a folder, and what else is there, by path."""
    found = {}
    for path in sorted(folder.rglob('*')):
        if path.is_symlink():
            found[path] = os.readlink(str(path))
        elif path.is_file():
            found[path] = path.read_bytes()
        else:
            found[path] = None
    return found


def expect(result, *statuses):
    """Raise Failure unless the result of a command is allowed and has one of these statuses."""
    status, stdout, stderr = result
    if 'Traceback' in stderr + stdout or status not in statuses:
        raise Failure(f'status {status}, stderr: {stderr[-2000:]}')
    lines = [line for line in stderr.split('\n') if line]
    if status in (1, 2) and (not lines or re.match(r'\w+\.py: ', lines[-1]) is None
                             or any(re.match(r'\w+\.py: ', line) for line in lines[:-1])):
        raise Failure(f'status {status}, but no line of its own: {stderr[-2000:]}')
    if status == 2 and len(lines) > 1:
        raise Failure(f'{len(lines)} lines: {stderr[-2000:]}')


def check(folder, before, result):
    """Raise Failure unless a result is allowed; see the top of this file."""
    expect(result, 0, 1, 2)
    if result[0] == 0:
        return
    after = snapshot(folder)
    for path, data in before.items():
        if path.name == 'manifest.json':  # it has the times of files, which this copy changed
            continue
        if after.get(path, b'') != data:
            raise Failure(f'status {result[0]}, but {path} was changed: {result[2]}')


class Commands:
    """The commands, to be called in this process on the tiny model."""

    tiny = ['--model_name', 'tiny', '--models_dir', 'models']

    def __init__(self):
        import convert
        import evaluate
        import generate_conditional_samples as conditional
        import generate_unconditional_samples as unconditional
        import interactive_conditional_samples as interactive
        import learn_vocabulary
        import train
        from gpt2 import runtime
        self.has_lite = not runtime.is_tensorflow_1()
        self.functions = {
            'unconditional': (unconditional.sample_model, unconditional.OPTIONS),
            'conditional': (conditional.continue_prompts, conditional.OPTIONS),
            'interactive': (interactive.interact_model, interactive.OPTIONS),
            'evaluate': (evaluate.evaluate, evaluate.OPTIONS),
            'train': (train.train, train.OPTIONS),
            'learn': (learn_vocabulary.learn_vocabulary, learn_vocabulary.OPTIONS),
            'convert': (convert.convert, convert.OPTIONS)}

    def run(self, name, *argv, **options):
        """Run a command; return (status, stdout, stderr)."""
        return helpers.call(*self.functions[name], *argv, **options)


# ---- attacks -----------------------------------------------------------------------------------

def in_child(function):
    """Call a function in a fork of this process; raise Failure if it fails there.

    TensorFlow does not survive a fork: what imports it here must not use it in a child later.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    if status not in (0, signal.SIGKILL):
        raise Failure(f'a child ended with {status}')


class Attack:
    """Cases of one kind. `case` runs one; it raises Failure, or any other error, if it fails."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.commands = Commands()

    def run(self, name, *argv, **options):
        """Run a command in the present sandbox, and check it; return its result."""
        before = snapshot(self.sandbox.work)
        result = self.commands.run(name, *argv, **options)
        if VERBOSE:
            print(name, [str(argument)[:200] for argument in argv], result[0], result[2][-1000:],
                  file=sys.stderr)
        check(self.sandbox.work, before, result)
        return result

    def sample(self, *argv, output='', engine=None):
        """Make samples by the unconditional command, and check it; return its result."""
        engine = engine or ('lite' if self.commands.has_lite else 'graph')
        argv += ('--output', output) if output else ()
        return self.run('unconditional', *self.commands.tiny, '--engine', engine, '--nsamples', 5,
                        '--length', 8, '--seed', 1, *argv)


class Flags(Attack):
    """Values that no flag expects."""

    FEW = {'nsamples', 'length', 'steps', 'batch_size', 'accumulation', 'sample_length', 'limit',
           'warmup', 'seq_len', 'devices', 'max_new_tokens', 'gradient_accumulation_steps'}
    SMALL = {'unconditional': ['--nsamples', 1, '--length', 3], 'interactive': ['--length', 3],
             'conditional': ['--length', 3, '--prompts', 'prompts.txt'], 'convert': [],
             'evaluate': [], 'train': ['--steps', 1, '--sample_length', 0, '--output', 'new'],
             'learn': ['--output', 'new']}

    def case(self, rng):
        self.sandbox.fresh()
        name = rng.choice(['unconditional', 'conditional'] * 4 + list(self.SMALL))
        function, classes = self.commands.functions[name]
        fields = [field for options in classes for field in dataclasses.fields(options)]
        names = [flag for field in fields for flag in (field.name, field.metadata['alias']) if flag]
        argv = [str(value) for value in self.SMALL[name]]
        if rng.random() < 0.8:
            argv += self.commands.tiny
        if self.commands.has_lite and name in ('unconditional', 'conditional', 'interactive'):
            argv += ['--engine', 'lite']
        if name == 'evaluate':
            argv[:0] = [rng.choice(['score', 'detect', 'lambada', 'enwik8', 'all', 'nothing']),
                        'text.txt']
        elif name in ('train', 'learn'):
            argv[:0] = ['text.txt']
        elif name == 'convert':
            argv[:0] = [rng.choice(['models/tiny', 'hf']), 'new', '--to', 'transformers']
        for _ in range(rng.choice([1, 1, 2, 3])):
            self.add(rng, argv, rng.choice(names))
        self.run(name, *argv, stdin=rng.choice(['', 'One\n', '\0\n', b'\xff\n', 'a' * 10**5]))

    def add(self, rng, argv, name):
        """Add a nasty argument, with a flag or without."""
        value = rng.choice(rng.choice([NUMBERS, TEXTS, PATHS]))
        if name in self.FEW and value in ('0', '-0'):  # samples without an end
            value = '1'
        flag = rng.choice(['--' + name] * 8 + ['-' + name[:1], '--no' + name, '---' + name,
                                               '--' + name[:-1], '--' + name.replace('_', '-')])
        argv[len(argv):] = rng.choice([[flag, value], [flag + '=' + value], [flag, value], [flag],
                                       [value]])


class ModelFiles(Attack):
    """Damaged files of a model."""

    def case(self, rng):
        folder = self.sandbox.fresh() / 'models' / 'tiny'
        names = ['hparams.json', 'encoder.json', 'vocab.bpe', 'checkpoint', 'model.ckpt.index',
                 'model.ckpt.data-00000-of-00001']
        mutate_file(rng, folder / rng.choice(names))
        action = rng.random()
        if action < 0.9:
            self.sample(engine=rng.choice(['graph', 'auto']))
        elif action < 0.95:
            self.run('convert', 'models/tiny', 'new', '--to', 'transformers')
        else:
            self.run('evaluate', 'score', 'text.txt', *self.commands.tiny)


class Converted(Attack):
    """Damaged converted weights: the texts stay the same."""

    def __init__(self, sandbox):
        super().__init__(sandbox)
        self.texts = {}

    def case(self, rng):
        if not self.commands.has_lite:
            return
        dtype = rng.choice(['float32', 'int8'])
        folder, = (self.sandbox.fresh() / 'models' / 'tiny' / 'lite').glob(dtype + '-*')
        if dtype not in self.texts:
            self.texts[dtype] = self.sample('--dtype', dtype)[1]
        for _ in range(rng.choice([1, 1, 3])):
            path = rng.choice(sorted(path for path in folder.iterdir() if path.is_file()))
            mutate_file(rng, path)
        if self.sample('--dtype', dtype)[1] != self.texts[dtype]:
            raise Failure('other texts')


class Samples(Attack):
    """Damaged files of samples that are to be continued."""

    def case(self, rng):
        folder = self.sandbox.fresh()
        output = rng.choice(['samples.txt', 'samples.jsonl'])
        names = [output] + ['samples.txt.settings.json'] * 2 * (output == 'samples.txt')
        for _ in range(rng.choice([1, 1, 2])):
            path = folder / rng.choice(names)
            if path.is_file():
                mutate_file(rng, path)
        self.sample(output=output)


class Prompts(Attack):
    """Damaged files of prompts, and prompts that are typed."""

    def case(self, rng):
        folder = self.sandbox.fresh()
        path = folder / rng.choice(['prompts.txt', 'prompts.jsonl'])
        mutate_file(rng, path)
        small = [*self.commands.tiny, '--length', 3]
        if self.commands.has_lite:
            small += ['--engine', 'lite']
        if rng.random() < 0.7:
            self.run('conditional', *small, '--prompts', path.name)
        elif path.is_file():
            self.run('interactive', *small, stdin=path.read_bytes())


class TrainingTexts(Attack):
    """Damaged texts, and token files that another program wrote."""

    def case(self, rng):
        from gpt2 import model_dir
        from gpt2.errors import UserError
        from gpt2.training import data
        folder = self.sandbox.fresh()
        (folder / 'text.jsonl').write_text('{"text": "One"}\n{"text": "two \\u00fc"}\n')
        opened = model_dir.open_model_dir('tiny', 'models')
        name = rng.choice(['text.txt', 'text.jsonl'])
        with contextlib.suppress(UserError):
            if rng.random() < 0.4:
                mutate_file(rng, folder / name)
                data.open_training_data(name, opened, 4, rng.choice([0.1, 0.5, 1e-9]))
                return
            tokens, _ = data.open_dataset(name, opened)
            expected = np.array(tokens)
            path, = folder.glob('*tokens-*')
            before = path.read_bytes()
            mutate_file(rng, path)
            tokens, _ = data.open_dataset(name, opened)
            same = path.is_file() and path.read_bytes() == before
            if same and not np.array_equal(tokens, expected) or tokens.max() >= TINY['n_vocab']:
                raise Failure('other tokens')


class Conversions(Attack):
    """Damaged models of transformers."""

    def case(self, rng):
        folder = self.sandbox.fresh()
        names = ['config.json', 'vocab.json', 'merges.txt', 'model.safetensors',
                 'pytorch_model.bin']
        path = folder / 'hf' / rng.choice(names)
        if path.name == 'pytorch_model.bin':
            (folder / 'hf' / 'model.safetensors').unlink()
        if path.name == 'pytorch_model.bin' and rng.random() < 0.7:  # its pickle alone
            with zipfile.ZipFile(str(path)) as archive:
                storages = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(str(path), 'w') as archive:
                for name, data in storages.items():
                    archive.writestr(name, mutate(rng, data) if name.endswith('.pkl') else data)
        elif path.name == 'model.safetensors' and rng.random() < 0.7:  # its header alone
            data = path.read_bytes()
            end = 8 + int.from_bytes(data[:8], 'little')
            header = mutate(rng, data[8:end])
            length = len(header) if rng.random() < 0.8 else rng.choice([0, 2**63, end, 7])
            path.write_bytes(length.to_bytes(8, 'little') + header + data[end:])
        else:
            mutate_file(rng, path)
        args = rng.choice([['new', '--to', 'transformers'], ['new.gguf', '--to', 'gguf']])
        if rng.random() < 0.1:
            args = ['new', '--to', 'tensorflow']  # which takes longer
        self.run('convert', 'hf', *args)


class Evaluations(Attack):
    """Damaged data sets and texts to score, and results of earlier runs."""

    FILES = {'lambada': '{"text": "One two three"}\n{"text": "four five"}\n',
             'cbt_cn': ''.join(f'{i} One two .\n' for i in range(1, 21))
                       + '21 I XXXXX .\tam\t\tam|is|a|b|c|d|e|f|g|h\n\n',
             'wikitext2': ' \n = One = \n \n two <unk> three @-@ four \n',
             'ptb': " no it was n't black monday \n but <unk> N \n", 'enwik8': TEXT,
             'text8': ' one two', '1bw': 'One two .\nThree ?\n',
             'score': '{"text": "One"}\n{"text": ""}\n'}

    def case(self, rng):
        folder = self.sandbox.fresh()
        task = rng.choice(list(self.FILES))
        (folder / 'data').write_text(self.FILES[task], encoding='utf-8')
        (folder / 'results.json').write_text('[{"task": "ptb", "settings": {}, "examples": 1, '
                                             '"seconds": 1.0, "measures": []}]')
        mutate_file(rng, folder / rng.choice(['data', 'data', 'data', 'results.json']))
        self.run('evaluate', task, 'data', *self.commands.tiny, '--batch_size', 4, '--output',
                 rng.choice(['results.json', 'new.json']))


class Detections(Attack):
    """Damaged texts to tell apart, and damaged references to compare a text with."""

    def case(self, rng):
        folder = self.sandbox.fresh()
        for name in ('human', 'synthetic'):
            (folder / name).write_text('{"text": "One two"}\n' * 10)
        sides = ['--human', 'human', '--synthetic', 'synthetic', '--lengths', '2']
        damages_texts = rng.random() < 0.4
        if damages_texts:
            mutate_file(rng, folder / rng.choice(['human', 'synthetic']))
        self.run('evaluate', 'detect', *sides, *self.commands.tiny, '--batch_size', 4, '--output',
                 rng.choice(['new.json', 'new.npz']) if damages_texts else 'new.npz',
                 '--html', 'new.html')
        if not damages_texts:
            mutate_file(rng, folder / 'new.npz')
            self.run('evaluate', 'detect', 'human', '--reference', 'new.npz', *self.commands.tiny)


class Texts(Attack):
    """Texts that are hard to encode: they come back as they were, in the fewest merges."""

    def __init__(self, sandbox):
        import encoder
        if helpers.DATA:
            self.encoder = encoder.get_encoder('gpt2-vocab', helpers.DATA)
        else:
            self.encoder = encoder.get_encoder('tiny', str(sandbox.template / 'models'))

    def case(self, rng):
        alphabet = rng.choice(['a', 'ab', 'abc ', ' \n', 'aé漢😀', '0123456789', "'s ", '!?.,-=',
                               '\0\ufeff\u200d', 'the quick brown', '\ud800\udfff',
                               '<|endoftext|>'])
        text = ''.join(rng.choice(alphabet) for _ in range(rng.choice([1, 10, 100, 5000])))
        tokens = self.encoder.encode(text)
        expected = text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')
        if self.encoder.decode(tokens) != expected:
            raise Failure('another text')
        with mock.patch('encoder.PIECE', rng.choice([1, 2, 3, 7, 50])):
            self.encoder._words.clear()
            if self.encoder.encode(text) != tokens:
                raise Failure('the pieces of long words give other tokens')
        self.encoder._words.clear()


class Servers(Attack):
    """Servers that answer with anything."""

    HEADERS = ['Content-Length', 'Content-Range', 'ETag', 'Content-MD5', 'Last-Modified',
               'Content-Type', 'Content-Encoding', 'Transfer-Encoding', 'Retry-After', 'Location']
    VALUES = ['', '0', '-1', '5', '9' * 400, 'x' * 70000, 'nan', '\x1b[31m', 'bytes 5-9/10',
              'bytes */0', 'gzip', 'chunked', 'identity', 'text/html', '"a"', 'W/"a"', '/', '//',
              'http://127.0.0.1:1/', 'file:///etc/passwd', '1e9', '١']
    LINES = ['HTTP/1.1 200 OK', 'HTTP/1.1 206 Partial Content', 'HTTP/1.1 302 Found',
             'HTTP/1.1 416 No', 'HTTP/1.1 429 Wait', 'HTTP/1.1 500 \x1b[31m', 'HTTP/1.1 999 X',
             'HTTP/1.1 -1 X', 'HTTP/9.9 200 OK', 'HTTP/1.1', 'HTTP/1.1 abc', '', '\0' * 100,
             'ICY 200 OK', 'x' * 70000]

    def __init__(self, sandbox):
        import model_server
        super().__init__(sandbox)
        self.server_module = model_server
        self.server = model_server.ModelServer({'124M': model_server.small_model()}).__enter__()

    def case(self, rng):
        import download_model
        self.sandbox.fresh()
        self.server.faults.clear()
        for name in rng.sample(self.server_module.FILES, rng.choice([1, 1, 2])):
            for method in rng.choice([['GET'], ['HEAD'], ['GET', 'HEAD']]):
                answers = [self.answer(rng) for _ in range(rng.choice([1, 2]))]
                self.server.inject(name, *answers, method=method, always=rng.random() < 0.3)
        quick = dict(FIRST_PAUSE=0, LONGEST_PAUSE=0, RETRIES=2, TIMEOUT=(1, 0.3), LONGEST_WAIT=0.1,
                     ANSWER_TIMEOUT=2, SHA256={})
        before = snapshot(self.sandbox.work)
        stdout, stderr = io.StringIO(), io.StringIO()
        with mock.patch.multiple(download_model, **quick), contextlib.redirect_stdout(stdout), \
                contextlib.redirect_stderr(stderr):
            status = download_model.main(['124M', '--url', self.server.url])
            invalid = download_model.invalid_files('models/124M') if status == 0 else []
        lines = stderr.getvalue()
        if VERBOSE:
            print(status, lines, file=sys.stderr)
        if status not in (0, 1) or 'Traceback' in lines or re.search('[\x00-\x09\x0b-\x1f\x7f]',
                                                                     lines.replace('\r', '')):
            raise Failure(f'status {status}: {lines[-2000:]}')
        if status == 1 and not re.search('^download_model.py: [^\n]*\n\\Z', lines, re.MULTILINE):
            raise Failure(f'no line of its own at the end: {lines[-2000:]}')
        if invalid:
            raise Failure(f'it says that all is well, but not {invalid}')
        after = snapshot(self.sandbox.work)
        if any(after.get(path) != data for path, data in before.items()):
            raise Failure('a file outside was changed')

    def answer(self, rng):
        """Return a fault: a function that changes an answer of the server."""
        def change(answer):
            choice = rng.random()
            if choice < 0.3:
                line = rng.choice(self.LINES)
                headers = [f'{rng.choice(self.HEADERS)}: {rng.choice(self.VALUES)}'
                           for _ in range(rng.randrange(6))]
                answer.raw = ('\r\n'.join([line, *headers, '', '']).encode('utf-8', 'replace')
                              + rng.choice([b'', b'-5\r\nabc\r\n', b'f' * 18 + b'\r\n', b'0\r\n',
                                            answer.body, b'\0' * 1000]))
            elif choice < 0.6:
                answer.headers[rng.choice(self.HEADERS)] = re.sub(
                    '[^ -~]', '?', rng.choice(self.VALUES))
            elif choice < 0.8:
                answer.cut = rng.randrange(len(answer.body) + 1)
                answer.ending = rng.choice(['close', 'reset'])
            elif choice < 0.9:
                answer.length = rng.choice([None, 0, 1, 10**12, len(answer.body) + 1])
            else:
                answer.chunked = True
        return change


class Kills(Attack):
    """SIGKILL at any write: the next run completes, with the same result."""

    def __init__(self, sandbox):
        super().__init__(sandbox)
        self.finished = {}

    def case(self, rng):
        folder = self.sandbox.fresh()
        (folder / 'data').write_text(Evaluations.FILES['lambada'])
        name = rng.choice(['samples.txt', 'samples.jsonl', 'more.txt', 'more.jsonl', 'tokens',
                           'results.json', 'hf2', 'tf2', 'lite'])
        if name == 'lite':
            shutil.rmtree('models/tiny/lite', ignore_errors=True)
        if name not in self.finished:
            in_child(lambda: self.produce(name))
            self.finished[name] = self.result(name)
            return
        before = snapshot(folder)
        n_writes = rng.randrange(rng.choice([5, 20, 60]))
        in_child(lambda: self.produce_killed(name, n_writes))
        for path, data in snapshot(folder).items():
            if path in before and data != before[path] and not path.name.startswith(
                    ('samples', 'manifest.json')):
                raise Failure(f'{path} was changed')
        in_child(lambda: self.produce(name))
        if self.result(name) != self.finished[name]:
            raise Failure(f'{name} is another one')

    def produce(self, name):
        """Make something."""
        if name.startswith(('samples', 'more')):
            self.sample(output=name)
        elif name == 'tokens':
            from gpt2 import model_dir
            from gpt2.training import data
            data.open_dataset('text.txt', model_dir.open_model_dir('tiny', 'models'))
        elif name == 'results.json':
            self.run('evaluate', 'lambada', 'data', *self.commands.tiny, '--output', name)
        elif name == 'lite':
            text = self.sample('--dtype', 'int8')[1]
            (self.sandbox.work / 'lite.txt').write_text(text, encoding='utf-8')
        elif not os.path.exists(name):
            source, to = ('models/tiny', 'transformers') if name == 'hf2' else ('hf', 'tensorflow')
            self.run('convert', source, name, '--to', to)

    def result(self, name):
        """Return what was made, in a form that can be compared."""
        folder = self.sandbox.work
        if name == 'lite':
            return (folder / 'lite.txt').read_bytes()
        if name == 'tokens':
            path, = folder.glob('*tokens-*')
            return path.read_bytes()
        if name == 'results.json':
            return re.sub('"seconds": [^,]*', '', (folder / name).read_text())
        if name in ('hf2', 'tf2'):
            return {path.name: path.read_bytes() for path in (folder / name).iterdir()
                    if not path.name.endswith('.meta')}
        return (folder / name).read_bytes()

    def produce_killed(self, name, n_writes):
        """Do `produce`, but kill this process when it has changed so many files."""
        left = n_writes

        def hook(event, arguments):
            nonlocal left
            opens = event == 'open' and isinstance(arguments[2], int) and arguments[2] & 3
            if opens or event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir'):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        self.produce(name)


ATTACKS = {attack.__name__.lower(): attack
           for attack in (Flags, ModelFiles, Converted, Samples, Prompts, TrainingTexts,
                          Conversions, Evaluations, Detections, Texts, Servers, Kills)}
VERBOSE = False


# ---- running them ------------------------------------------------------------------------------

Outcome = collections.namedtuple('Outcome', 'cases failures')


def work(names, seed, first, n_cases):
    """Run cases of these attacks in turn; print a JSON line before and after each."""
    real_stdout = os.fdopen(os.dup(1), 'w')
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(pathlib.Path(folder))
        attacks = [ATTACKS[name](sandbox) for name in names]
        for number in range(first, first + n_cases):
            print(json.dumps({'begin': number}), file=real_stdout, flush=True)
            name, attack = names[number % len(names)], attacks[number % len(names)]
            problem = None
            try:
                attack.case(random.Random(f'{seed} {name} {number}'))
            except Exception:
                problem = traceback.format_exc()[-4000:]
            print(json.dumps({'end': number, 'problem': problem}), file=real_stdout, flush=True)
        os.chdir('/')


def run_attacks(names, seed, first, n_cases, until, verbose=False):
    """Run cases of attacks in a process that may crash, up to a time; return the Outcome."""
    number, failures, stop = first, [], first + n_cases
    while number < stop and time.monotonic() < until:
        process = subprocess.Popen(
            [sys.executable, __file__, '--attacks', ','.join(names), '--seed', str(seed),
             '--worker', str(number), str(stop - number)],
            stdout=subprocess.PIPE, stderr=None if verbose else subprocess.PIPE)
        log = [] if verbose else tail(process.stderr)
        try:
            for line in lines_until(process.stdout, CASE_SECONDS):
                message = json.loads(line)
                if message.get('problem'):
                    failures.append((message['end'], message['problem']))
                if 'end' in message:
                    number = message['end'] + 1
                    if number == stop or time.monotonic() > until:
                        break
            else:
                failures.append((number, f'it crashed: status {process.wait()}; '
                                         f'{b"".join(log)[-1500:].decode("utf-8", "replace")}'))
                number += 1
        except TimeoutError:
            failures.append((number, f'it did not end in {CASE_SECONDS} s'))
            number += 1
        finally:
            process.kill()
            process.wait()
    return Outcome(number - first, failures)


def tail(stream):
    """Return a list that a thread fills with the last of what a stream has."""
    last = collections.deque(maxlen=50)
    threading.Thread(target=lambda: last.extend(iter(lambda: stream.read1(2**16), b'')),
                     daemon=True).start()
    return last


def lines_until(stream, seconds):
    """Yield the lines of a stream. Raises TimeoutError if one does not come in time."""
    data = b''
    while True:
        ready, _, _ = select.select([stream], [], [], 4 * seconds if not data else seconds)
        if not ready:
            raise TimeoutError
        new = os.read(stream.fileno(), 2**16)
        if not new:
            return
        *lines, data = (data + new).split(b'\n')
        yield from lines


def main(argv=None):
    """Run the attacks; print a table and the failures; return the exit status."""
    global VERBOSE
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--attacks', default=','.join(ATTACKS), help='of these names')
    parser.add_argument('--minutes', type=float, default=1, help='in all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--case', type=int, help='run this one case of each attack')
    parser.add_argument('--worker', nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    names = options.attacks.split(',')
    if options.worker:
        VERBOSE = bool(os.environ.get('FUZZ_VERBOSE'))
        work(names, options.seed, *options.worker)
        return 0
    started, failed = time.monotonic(), False
    print(f'{"attack":14} {"cases":>8} {"failures":>9} {"seconds":>8}')
    for i, name in enumerate(names):
        begun = time.monotonic()
        until = begun + (started + 60 * options.minutes - begun) / (len(names) - i)
        if options.case is None:
            outcome = run_attacks([name], options.seed, 0, 10**9, until)
        else:
            os.environ['FUZZ_VERBOSE'] = '1'
            outcome = run_attacks([name], options.seed, options.case, 1, begun + 600,
                                  verbose=True)
        failed = failed or bool(outcome.failures)
        print(f'{name:14} {outcome.cases:8,} {len(outcome.failures):9} '
              f'{time.monotonic() - begun:8.0f}', flush=True)
        for number, problem in outcome.failures[:10]:
            print(f'  case {number}: {problem[-1000:]}', flush=True)
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
