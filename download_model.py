#!/usr/bin/env python3
"""Download released GPT-2 models into models/SIZE and check every byte of them.

After any interruption (a lost connection, Ctrl-C, a power cut), the same command resumes where it
stopped. Files that are complete are not downloaded again. A model is complete when its file
`checkpoint` exists: it is written last, and removed first when another file must be replaced.
"""

import _signal as signal  # without the imports of `signal`, in which Ctrl-C would be a traceback
import os
import sys

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Before the slow imports, so that Ctrl-C never prints a traceback. The process may end at any
    # point: what has arrived is on disk, and the system releases the lock.
    def stop(*_):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.write(2, b'\nstopped; run the same command again to resume\n')
        os._exit(130)

    signal.signal(signal.SIGINT, stop)

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import difflib
import functools
import hashlib
import json
import random
import re
import shutil
import stat
import threading
import time
import types

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt
    fcntl = None

try:
    import requests
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f'download_model.py needs the package {error.name}: '
             f'python3 -m pip install requests tqdm')

URL = 'https://openaipublic.blob.core.windows.net/gpt-2/models'
PARAMETERS = {'124M': 124439808, '355M': 354823168, '774M': 774030080, '1558M': 1557611200}
ALIASES = {'117M': '124M', '345M': '355M'}  # the names at the first release
HPARAMS, WEIGHTS, MARKER = 'hparams.json', 'model.ckpt.data-00000-of-00001', 'checkpoint'
# In the order of download: hparams.json gives the size of the weights, and TensorFlow finds no
# weights without `checkpoint`.
FILES = HPARAMS, 'vocab.bpe', 'encoder.json', 'model.ckpt.index', 'model.ckpt.meta', WEIGHTS, MARKER
SHA256 = {'encoder.json': '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783',
          'vocab.bpe': '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'}
# All paths in a file `checkpoint`, with their quotes. As in TensorFlow's text protocol buffers,
# adjacent strings are one. Of several paths, one reader takes the first and another the last.
MODEL_PATHS = re.compile(rb'(?<!\w)model_checkpoint_path\s*:\s*("[^"\n]*"(?:\s*"[^"\n]*")*|)')
SMALL_FILE = 10 ** 8  # bytes that no file but the weights may exceed
DIMENSION = 10 ** 7   # what no dimension in hparams.json may exceed
CHUNK = 2 ** 16       # bytes per read; larger is hardly faster, and an error loses the current read
TIMEOUT = 15, 30      # seconds to connect, and between two bytes
ANSWER_TIMEOUT = 90   # seconds until all headers have arrived, redirects included
RETRIES = 8           # without progress in between; the pauses add up to about two minutes
FIRST_PAUSE = 0.5     # seconds; doubles with every retry,
LONGEST_PAUSE = 60    # up to this
LONGEST_WAIT = 300    # seconds; a server that asks for more (Retry-After) is an error
LINE_EVERY = 10       # seconds between two lines of progress if stderr is not a terminal
LOCK_EVERY = 0.5      # seconds between two attempts to lock a directory
amount = functools.partial(tqdm.format_sizeof, suffix='B')  # 498MB

# What a server says about a file: its size, its MD5 (in base64, as in Content-MD5), and a validator
# for If-Range (its ETag, or else its date). Each is None if the server does not say.
Remote = collections.namedtuple('Remote', 'size md5 validator')


class DownloadError(Exception):
    """An error that no retry can fix. The message is for the user."""


class RetryableError(Exception):
    """An error that may pass, at `position` in a file; a retry must wait `wait` seconds or more."""

    def __init__(self, message, wait=0, position=0):
        super().__init__(message)
        self.wait, self.position = wait, position


def main(argv=None):
    """Run the command; return its exit status, 0 or 1. See `parse` for other statuses."""
    args = parse(argv)
    if not args.sizes:
        print(table())
        return 0
    session = requests.Session()
    session.headers['Accept-Encoding'] = 'identity'
    try:
        for size in args.sizes:
            directory = os.path.join(args.models_dir, size)
            done = complete_model(session, f'{args.url.rstrip("/")}/{size}', directory)
            say(f'{size} is in {directory}, {done}', sys.stdout)
    except DownloadError as error:
        say(f'download_model.py: {error}')
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    def error(self, message):  # in one line
        say(f'{self.prog}: {message}')
        self.exit(2)


def parse(argv):
    """Return the arguments, or raise SystemExit: 2 after an error in one line, 0 after --help."""
    parser = Parser('download_model.py', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog='without a SIZE, lists the sizes:\n\n' + table())
    parser.add_argument('sizes', metavar='SIZE', nargs='*', help=', '.join(PARAMETERS))
    parser.add_argument('--models_dir', metavar='DIR', default='models',
                        help='store models in DIR/SIZE (default: models in the current folder)')
    parser.add_argument('--url', default=os.environ.get('GPT2_MODELS_URL') or URL,
                        help='a mirror that has the files at URL/SIZE/ (default: $GPT2_MODELS_URL, '
                             f'or else {URL})')
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f'there is no flag {unknown[0]}'
                     + suggest(unknown[0].split('=')[0], ['--models_dir', '--url', '--help']))
    for size in args.sizes:
        if size not in PARAMETERS and size not in ALIASES:
            parser.error(f'there is no size {size!r}; the sizes are {", ".join(PARAMETERS)}'
                         + suggest(size.upper(), [*PARAMETERS, *ALIASES]))
    if not args.models_dir:
        parser.error('--models_dir is empty; name a folder')
    if not re.match('https?://[^/]', args.url):
        parser.error(f'--url must begin with http:// or https:// and a host, not {args.url!r}')
    for size in sorted(ALIASES.keys() & args.sizes):
        say(f'{size} is now called {ALIASES[size]}, and is stored in a folder of that name')
    args.sizes = list(dict.fromkeys(ALIASES.get(size, size) for size in args.sizes))
    return args


def suggest(word, words):
    """Return a question that suggests the most similar of some words, or '' if none is similar."""
    matches = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f'; did you mean {matches[0]}?' if matches else ''


def table():
    """Return the sizes as text: name, former name, parameters, download."""
    former = {name: alias for alias, name in ALIASES.items()}
    rows = [f'{name:7}{former.get(name, ""):9}{count:13,}{amount(4 * count):>12}'
            for name, count in PARAMETERS.items()]
    return '\n'.join([f'{"SIZE":7}{"formerly":9}{"parameters":>13}{"download":>12}', *rows])


def say(message, file=None):
    """Print one line, without control characters: parts of it may come from a server."""
    line = ''.join(char if char.isprintable() else ' ' for char in message)
    if len(line) > 1000:
        line = f'{line[:500]} ... {line[-500:]}'
    print(line, file=file or sys.stderr, flush=True)


def progress(name, done, size, delay=0):
    """Return a progress bar that appears after `delay` seconds; lines if stderr is no terminal."""
    form = {} if sys.stderr.isatty() else {
        'file': types.SimpleNamespace(write=lambda text: text.strip() and say(text.strip())),
        'mininterval': LINE_EVERY, 'miniters': 1,
        'bar_format': '{desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left'}
    return tqdm(desc=name, initial=done, total=size, unit='B', unit_scale=True, delay=delay, **form)


def complete_model(session, url, directory):
    """Download what a directory lacks of the model at url; return what was done, in words."""
    downloaded = []
    try:
        complete = not invalid_files(directory)
        try:
            remotes = {name: retry(lambda name=name: ask_about(session, f'{url}/{name}'), name,
                                   retries=0 if complete else RETRIES) for name in FILES}
        except DownloadError as error:
            if not complete:
                raise
            say(f'not compared with the server: {error}')
            return 'complete as far as one can check without the server'
        if invalid_files(directory, remotes):
            os.makedirs(directory, exist_ok=True)
            with locked(directory):
                downloaded = download_files(session, url, directory, remotes)
    except OSError as error:
        raise DownloadError(f'cannot write to {error.filename or directory}: '
                            f'{error.strerror or error}; correct this or choose another folder '
                            f'with --models_dir')
    done = f'downloaded {", ".join(downloaded)}' if downloaded else 'nothing had to be downloaded'
    return f'complete and checked: {done}'


def download_files(session, url, directory, remotes):
    """Download the files of a locked directory that are missing or invalid; return their names."""
    if invalid_files(directory):
        remove(os.path.join(directory, MARKER))
    names = invalid_files(directory, remotes)
    if names and MARKER not in names:
        names.append(MARKER)  # it is removed when another file is replaced
    require_space(directory, sum(remotes[name].size or 0 for name in names)
                  - sum(map(os.path.getsize, partial_files(directory))))
    for name in names:
        fetch = functools.partial(attempt, session, f'{url}/{name}', os.path.join(directory, name))
        wrong = retry(fetch, name, RETRIES)
        if wrong:  # no byte can be trusted: once more, from the start
            say(f'{name}: {wrong}; downloading it again')
            wrong = retry(fetch, name, RETRIES)
        if wrong:
            raise DownloadError(f'{name}: {wrong}, at the second attempt as well; try another '
                                f'network or another --url')
    for path in partial_files(directory):
        remove(path)
    return names


def partial_files(directory):
    """Return the paths of all partial files; earlier versions had a .partial.json for each."""
    return [os.path.join(directory, name) for name in os.listdir(directory)
            if name.startswith(tuple(f'{file}.' for file in FILES))
            and name.endswith(('.partial', '.partial.json'))]


def require_space(directory, size):
    """Raise DownloadError if the disk has no room for this many more bytes."""
    free = shutil.disk_usage(directory).free
    if size > free:
        raise DownloadError(f'{directory}: {amount(size)} are still to come, but only '
                            f'{amount(free)} are free; make room or choose another --models_dir')


@contextlib.contextmanager
def locked(directory):
    """Hold a lock on a directory. The system releases it when the process ends in any way."""
    path = os.path.join(directory, '.lock')
    file = open_regular(path)
    if not lock(file):
        say(f'waiting for another process that downloads into {directory}')
        while not lock(file):
            file.close()
            time.sleep(LOCK_EVERY)
            file = open_regular(path)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows cannot remove an open file
            remove(path)
        file.close()


def lock(file):
    """Lock an open file; return False if another process has it locked, or has removed it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        say('this file system has no locks: do not run two downloads of one model at a time')
    return os.fstat(file.fileno()).st_nlink > 0


def open_regular(path):
    """Open a regular file to read and append, or create it. Raises OSError if it is not one."""
    # Others may have put at the path a link, a FIFO, or a file that has other names (hard links).
    def opener(path, flags):
        flags |= getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_NONBLOCK', 0)  # not on Windows
        descriptor = os.open(path, flags, 0o666)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            os.close(descriptor)
            raise OSError(0, 'it is not a regular file with one name', path)
        return descriptor
    return open(path, 'ab+', opener=opener)


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def invalid_files(directory, remotes=None):
    """Return the names of the files that are missing or invalid, or differ from their Remotes."""
    return [name for name in FILES
            if problem(name, os.path.join(directory, name), remotes and remotes[name])]


def problem(name, path, remote=None):
    """Return what is wrong with the file at path, whose name is or will be `name`, or None."""
    if not os.path.isfile(path):
        return 'it is missing'
    size, required = os.path.getsize(path), None
    with open(path, 'rb') as file:
        start = file.read(2 ** 20)
    if name == WEIGHTS:
        required = weights_size(os.path.join(os.path.dirname(path), HPARAMS))
    elif size > SMALL_FILE:
        return f'it has more than {amount(SMALL_FILE)}'
    if remote and remote.size not in (None, size):
        return f'it has {size:,} bytes, but {remote.size:,} were announced'
    if required not in (None, size):
        return f'it has {size:,} bytes, but {HPARAMS} requires {required:,}'
    if not start:
        return 'it is empty'
    if start.lstrip().lower().startswith((b'<!doctype', b'<html')):
        return 'it is a web page, perhaps the login page of the network'
    if name == HPARAMS and not weights_size(path):
        return f'it is not JSON with n_vocab, n_ctx, n_embd and n_layer from 1 to {DIMENSION:,}'
    if name == MARKER and MODEL_PATHS.findall(start) != [b'"model.ckpt"']:
        return 'it does not name model.ckpt'
    if name in SHA256 and digest(path, hashlib.sha256()).hex() != SHA256[name]:
        return 'it is not the vocabulary of GPT-2 (its sha256 differs)'
    md5 = remote and remote.md5
    if md5 and md5 != base64.b64encode(digest(path, hashlib.md5())).decode():
        return 'it is not what the server has (its MD5 differs)'
    return None


def weights_size(path):
    """Return the bytes that the weights of the hparams.json at path have, None if it is invalid."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        with open(path, encoding='utf-8') as file:
            hparams = json.loads(file.read(2 ** 20))
        sizes = [hparams[key] for key in ('n_vocab', 'n_ctx', 'n_embd', 'n_layer')]
        if all(type(size) is int and 0 < size <= DIMENSION for size in sizes):
            n_vocab, n_ctx, n_embd, n_layer = sizes
            per_layer = 12 * n_embd ** 2 + 13 * n_embd  # matrices; biases and two normalizations
            return 4 * ((n_vocab + n_ctx + 2) * n_embd + n_layer * per_layer)
    return None


def digest(path, hasher):
    with open(path, 'rb') as file, progress(f'{os.path.basename(path)} (checking)', 0,
                                            os.path.getsize(path), delay=1) as bar:
        for chunk in iter(lambda: file.read(CHUNK), b''):
            hasher.update(chunk)
            bar.update(len(chunk))
    return hasher.digest()


def attempt(session, url, path):
    """Start or resume a download; return what is wrong, or None. An error leaves path as it was."""
    directory, name = os.path.split(path)
    remote = ask_about(session, url)
    if name == WEIGHTS:
        size = weights_size(os.path.join(directory, HPARAMS)) or 0
        if remote.size not in (None, size):
            raise DownloadError(f'{HPARAMS} requires {size:,} bytes, the server has {remote.size:,}'
                                f'; its files do not belong together, choose another --url')
        remote = remote._replace(size=size)
    # The name says which file the bytes belong to: only bytes of the same file complete them.
    identity = remote.md5 or f'{remote.size} {remote.validator}'
    partial = f'{path}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}.partial'
    for other in partial_files(directory):
        if other.startswith(path) and other != partial:
            remove(other)
    with open_regular(partial) as file:
        if not (remote.md5 or remote.validator):  # the bytes may be of another file
            file.truncate(file.seek(0))
        if not file.tell() or file.tell() != remote.size:
            remote = receive(session, url, name, file, remote)
        file.flush()
        os.fsync(file.fileno())
    wrong = problem(name, partial, remote)
    if wrong:
        remove(partial)
        return wrong
    remove(os.path.join(directory, MARKER))  # a mixture of files must not count as complete
    os.replace(partial, path)
    if fcntl:  # Windows cannot open a folder
        descriptor = os.open(directory, os.O_RDONLY)
        with contextlib.suppress(OSError):  # nor can every file system synchronize one
            os.fsync(descriptor)
        os.close(descriptor)
    return None


def receive(session, url, name, file, remote):
    """Append what a file lacks; return `remote` with what else the response says about it."""
    done = file.tell()
    headers = {'Range': f'bytes={done}-', 'If-Range': remote.validator} if done else {}
    with request(session, 'GET', url, headers) as response:
        content_range = response.headers.get('Content-Range', '')
        if response.status_code != 200 and not content_range.startswith(f'bytes {done}-'):
            file.truncate(file.seek(0))
            raise RetryableError('the server cannot resume: starting over')
        found = describe(response)
        if not all(None in pair or pair[0] == pair[1] for pair in zip(found, remote)):
            # Which of the two is wrong is unknown; this must not cost the bytes so far.
            raise RetryableError(f'the server announced another file ({remote.size} bytes) than '
                                 f'it sends ({found.size} bytes)')
        if response.status_code == 200:
            file.truncate(file.seek(0))
        size = remote.size or found.size
        if size is None and response.headers.get('Transfer-Encoding', '').lower() != 'chunked':
            raise DownloadError('the server does not say how long the file is, so its end cannot '
                                'be checked; choose another --url')
        limit = size if name == WEIGHTS else SMALL_FILE
        require_space(os.path.dirname(file.name), (size or 0) - file.tell())
        with progress(name, file.tell(), size) as bar:
            for chunk in body(response, file):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > limit:
                    break
    if file.tell() < min(size or 0, limit):
        raise RetryableError('the connection broke (it ended early)', position=file.tell())
    return Remote(size, remote.md5 or found.md5, None)


def retry(action, name, retries):
    """Return action(), repeated after RetryableErrors: `retries` times without any progress."""
    failures = furthest = 0
    while True:
        try:
            return action()
        except DownloadError as error:
            raise DownloadError(f'{name}: {error}')
        except RetryableError as error:
            if error.position > furthest:
                failures, furthest = 0, error.position
            failures += 1
            if failures > retries:
                after = f' after the {furthest:,} bytes on disk' if furthest else ''
                raise DownloadError(f'{name}: {error} (attempt {failures} of {failures}); run the '
                                    f'same command again to resume{after}')
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * random.uniform(0.5, 1)
            pause = max(pause, error.wait)
            say(f'{name}: {error}; retrying in {pause:.1f} s ({failures} of {retries})')
        time.sleep(pause)


def ask_about(session, url):
    """Return the Remote of a file: by HEAD, or by a GET that is not read if there is no HEAD."""
    for method in 'HEAD', 'GET':
        with request(session, method, url, {}) as response:
            if response.status_code == 200:  # always after a GET, see check_response
                return describe(response)


def describe(response):
    """Return the Remote that the headers of a response describe, always of the whole file."""
    headers = response.headers
    size, md5 = headers.get('Content-Length', ''), headers.get('Content-MD5')
    if response.status_code == 206:
        size, md5 = headers.get('Content-Range', '').rpartition('/')[2], None  # MD5 of the part
    etag = headers.get('ETag', 'W/')
    validator = headers.get('Last-Modified') if etag.startswith('W/') else etag
    return Remote(int(size) if re.fullmatch('[0-9]{1,18}', size) else None, md5,
                  validator if re.fullmatch('[ -~]{1,200}', validator or '') else None)


@contextlib.contextmanager
def request(session, method, url, headers):
    """Send a request; yield a response that passed check_response, to read its body."""
    # The timeouts of a socket start again with every byte: slow headers never end by them.
    future = concurrent.futures.Future()

    def send():
        try:
            future.set_result(session.request(method, url, headers=headers, stream=True,
                                              timeout=TIMEOUT))
        except BaseException as error:
            future.set_exception(error)
    threading.Thread(target=send, daemon=True).start()
    try:
        response = future.result(ANSWER_TIMEOUT)
    except Exception as error:  # requests does not wrap all that urllib3 and http.client raise
        reason = f'{url} does not answer ({cause(error)})'
        passing = (requests.ConnectionError, requests.Timeout, concurrent.futures.TimeoutError)
        if isinstance(error, passing) and 'CERTIFICATE_VERIFY_FAILED' not in str(error):
            raise RetryableError(reason)
        raise DownloadError(f'{reason}; check --url, or the network')
    with response:
        check_response(response)
        yield response


def check_response(response):
    """Accept 200; also 405 and 501 for HEAD, 206 and 416 for a range. Others raise an error."""
    status, ranged = response.status_code, 'Range' in response.request.headers
    answer = f'{response.url} answers {status} {response.reason}'
    if status in (405, 501) and response.request.method == 'HEAD' or status == 416 and ranged:
        return
    if status in (408, 429) or status >= 500 and status != 501:
        wait = 0
        with contextlib.suppress(Exception):  # a Retry-After that is neither a number nor a date
            wait = int(requests.adapters.Retry().get_retry_after(response.raw) or 0)
        if wait > LONGEST_WAIT:
            raise DownloadError(f'{answer} and asks to wait {wait:,} s; try again then')
        raise RetryableError(answer, wait)
    if status != 200 and not (status == 206 and ranged):
        raise DownloadError(f'{answer}; check --url')
    if 'text/html' in response.headers.get('Content-Type', ''):
        raise DownloadError(f'{response.url} is a web page; log in to the network if it has a '
                            f'login page, or correct --url')
    encoding = response.headers.get('Content-Encoding', 'identity')
    if encoding != 'identity':
        raise DownloadError(f'{response.url} comes with Content-Encoding {encoding}, which cannot '
                            f'be checked; choose another network or --url')


def body(response, file):
    """Yield the chunks of the body of a response, which are written to a file."""
    try:
        yield from response.iter_content(CHUNK)
    except Exception as error:  # as in request()
        raise RetryableError(f'the connection broke ({cause(error)})', position=file.tell())


def cause(error):
    """Return the text of the first of the errors that requests and urllib3 wrap in one another."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


if __name__ == '__main__':
    sys.exit(main())
