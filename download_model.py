#!/usr/bin/env python3
"""Fetches released GPT-2 models into models/SIZE and checks every byte of them.

Whatever interrupts it (a lost network, Ctrl-C, a power cut), the same command goes on where it
stopped. Files that are there and whole are not fetched again. A model is complete when its file
`checkpoint` is there: it comes last, and goes first when another file has to be replaced.
"""

import argparse
import base64
import collections
import contextlib
import difflib
import email.utils
import errno
import functools
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import sys
import time
from urllib.parse import urlsplit

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
ALIASES = {'117M': '124M', '345M': '355M'}  # As the sizes were called at first.

HPARAMS, WEIGHTS, MARKER = 'hparams.json', 'model.ckpt.data-00000-of-00001', 'checkpoint'
# In the order they are fetched: hparams.json tells how large the weights must be, and TensorFlow
# finds no weights where there is no `checkpoint`.
FILES = (HPARAMS, 'vocab.bpe', 'encoder.json', 'model.ckpt.index', 'model.ckpt.meta', WEIGHTS,
         MARKER)
SHA256 = {
    'encoder.json': '196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783',
    'vocab.bpe': '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5',
}

CHUNK = 2 ** 16       # Bytes a read; more is hardly faster, and a break loses the read under way.
TIMEOUT = 15, 30      # Seconds to connect, and without a byte.
RETRIES = 8           # Without progress in between; the pauses then add up to about two minutes.
FIRST_PAUSE = 0.5     # Seconds; doubles with every try,
LONGEST_PAUSE = 60    # up to this.
LONGEST_WAIT = 300    # Seconds; a server that asks for more patience (Retry-After) gets none.
LINE_EVERY = 10       # Seconds between two lines of progress where stderr is no terminal.
LOCK_EVERY = 0.5      # Seconds between two looks whether another process has finished.


class Failure(Exception):
    """What no further try can mend; the message is for the user."""


class Trouble(Exception):
    """What may pass, so that it is worth another try, after `wait` seconds at least."""

    def __init__(self, message, wait=0):
        super().__init__(message)
        self.wait = wait


# What a server says of a file: its size, its MD5 (in base64, as in Content-MD5) and a validator,
# its ETag or else its date, which If-Range takes. Each is None where the server does not say.
Remote = collections.namedtuple('Remote', 'size md5 validator')
UNKNOWN = Remote(None, None, None)


# The command line.

def main(argv=None):
    """Returns the exit status: 0, 1 after a failure, 130 after Ctrl-C.

    Raises:
      SystemExit: see parse.
    """
    args = parse(argv)
    if not args.sizes:
        print(table())
        return 0
    session = requests.Session()
    session.headers['Accept-Encoding'] = 'identity'
    try:
        for size in args.sizes:
            print(fetch_model(session, args.url, size, args.models_dir), flush=True)
    except Failure as failure:
        say(f'download_model.py: {failure}')
        return 1
    except KeyboardInterrupt:
        say('\nstopped; run the same command again to go on from here')
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that complains in one line."""

    def error(self, message):
        self.exit(2, f'{self.prog}: {message}\n')


def parse(argv):
    """Returns the arguments, with current names in `sizes`, each once, and `url` without a final /.

    Raises:
      SystemExit: status 2 and a line on stderr for unusable ones; 0 after --help.
    """
    parser = Parser('download_model.py', description=__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    epilog='without a SIZE, lists the sizes:\n\n' + table())
    parser.add_argument('sizes', metavar='SIZE', nargs='*', help=', '.join(PARAMETERS))
    parser.add_argument('--models_dir', metavar='DIR', default='models',
                        help='models go into DIR/SIZE (default: models, in the current folder)')
    parser.add_argument('--url', default=os.environ.get('GPT2_MODELS_URL') or URL,
                        help='a mirror, with the files at URL/SIZE/ (default: $GPT2_MODELS_URL, '
                             f'or else {URL})')
    args, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        parser.error(f'there is no flag {unknown[0]}'
                     + near(unknown[0].split('=')[0], ['--models_dir', '--url', '--help']))
    for size in args.sizes:
        if size not in PARAMETERS and size not in ALIASES:
            parser.error(f'there is no size {size!r}; the sizes are {", ".join(PARAMETERS)}'
                         + near(size.upper(), [*PARAMETERS, *ALIASES]))
    if not args.models_dir:
        parser.error('--models_dir is empty')
    if not re.match('https?://[^/]', args.url):
        parser.error(f'--url must begin with http:// or https:// and a host, not {args.url!r}')
    for size in sorted(ALIASES.keys() & args.sizes):
        say(f'{size} is called {ALIASES[size]} now, and goes into a folder of that name')
    args.sizes = list(dict.fromkeys(ALIASES.get(size, size) for size in args.sizes))
    args.url = args.url.rstrip('/')
    return args


def near(word, words):
    """Returns the question whether the nearest of words was meant, or '' if none is near."""
    matches = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f'; did you mean {matches[0]}?' if matches else ''


def table():
    """Returns the sizes as text: name, older name, parameters, download."""
    older = {name: alias for alias, name in ALIASES.items()}
    rows = [f'{name:7}{older.get(name, ""):9}{count:13,}{amount(4 * count):>12}'
            for name, count in PARAMETERS.items()]
    return '\n'.join([f'{"SIZE":7}{"formerly":9}{"parameters":>13}{"download":>12}', *rows])


def amount(size):
    return tqdm.format_sizeof(size, 'B')


def say(message):
    print(message, file=sys.stderr, flush=True)


# A model: its seven files.

def fetch_model(session, url, size, models_dir):
    """Makes models_dir/size complete and returns a sentence that says so.

    Raises:
      Failure: it cannot be done; what has come so far stays for the next run.
    """
    directory = os.path.join(models_dir, size)
    try:
        complete = not faulty(directory)
        try:
            remotes = survey(session, f'{url}/{size}', retries=0 if complete else RETRIES)
        except Failure as failure:
            if not complete:
                raise
            say(f'not compared with the server: {failure}')
            return f'{size} is in {directory}, complete as far as can be told without the server'
        fetched = []
        if lacking(directory, remotes):
            os.makedirs(directory, exist_ok=True)
            with only_user(directory):
                fetched = fetch_files(session, f'{url}/{size}', directory, remotes)
    except OSError as error:
        raise Failure(f'cannot write to {directory}: {error.strerror or error}; mend that or '
                      f'choose another place with --models_dir') from error
    done = f'fetched {", ".join(fetched)}' if fetched else 'nothing had to be fetched'
    return f'{size} is in {directory}, complete and checked: {done}'


def survey(session, url, retries):
    """Returns a dict: for each file what the server says of it.

    Raises:
      Failure: the server cannot be asked, or one of the files is not there.
    """
    return {name: persist(functools.partial(ask_about, session, f'{url}/{name}'), name, retries)
            for name in FILES}


def lacking(directory, remotes):
    """Returns the names of the files that are missing, broken, or not what the server has."""
    broken = faulty(directory)
    names = [name for name in FILES
             if name in broken or not matches(os.path.join(directory, name), remotes[name])]
    if names and MARKER not in names:
        names.append(MARKER)  # Replacing another file removes it.
    return names


def fetch_files(session, url, directory, remotes):
    """Fetches the files that the directory lacks; returns their names.

    Raises:
      Failure, OSError
    """
    if faulty(directory):
        remove(os.path.join(directory, MARKER))
    names = lacking(directory, remotes)
    for i, name in enumerate(names):
        if name == WEIGHTS:
            remotes = {**remotes, WEIGHTS: sized(remotes[WEIGHTS], directory)}
        require_space(directory, {name: remotes[name].size or 0 for name in names[i:]})
        fetch(session, f'{url}/{name}', os.path.join(directory, name), remotes[name])
    for name in FILES:  # A partial file can lie beside a whole one that came from elsewhere.
        remove(os.path.join(directory, name + '.partial'))
        remove(os.path.join(directory, name + '.partial.json'))
    return names


def sized(remote, directory):
    """Returns what the server says of the weights, with the size they have by hparams.json.

    Raises:
      Failure: the server offers another size.
    """
    size = weights_size(os.path.join(directory, HPARAMS))
    if remote.size not in (None, size):
        raise Failure(f'{WEIGHTS}: {HPARAMS} asks for {size:,} bytes, the server has '
                      f'{remote.size:,}; its files do not belong together, choose another --url')
    return remote._replace(size=size)


def require_space(directory, sizes):
    """Raises Failure if the disk cannot hold the rest of the files; sizes: name -> bytes."""
    missing = sum(max(0, size - size_of(os.path.join(directory, name + '.partial')))
                  for name, size in sizes.items())
    free = shutil.disk_usage(directory).free
    if missing > free:
        raise Failure(f'{directory}: {amount(missing)} are still to come, but only {amount(free)} '
                      f'are free there; make room or choose another place with --models_dir')


@contextlib.contextmanager
def only_user(directory):
    """Holds a lock on the directory, after waiting for any other process that holds it.

    The system drops the lock with the process that holds it, however that one ends.
    """
    path = os.path.join(directory, '.lock')
    told = False
    while True:
        lock = open(path, 'a')
        if try_lock(lock) and is_at(lock, path):
            break
        lock.close()
        if not told:
            say(f'waiting for another process that fetches into {directory}')
            told = True
        time.sleep(LOCK_EVERY)
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows removes no open file.
            os.remove(path)
        lock.close()


def try_lock(file):
    """Returns whether the file is locked by this process now; if not, it is by another."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        say('this file system has no locks: do not fetch the same model twice at a time')
    return True


def is_at(file, path):
    """Returns whether an open file is the one at path; the process before may have removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


# Whether a file is what it should be.

def faulty(directory):
    """Returns the names of the files that are missing or, by their content alone, not in order."""
    return [name for name in FILES if problem(name, os.path.join(directory, name))]


def problem(name, path):
    """Returns what is wrong with the content of the file at path, which is to be name, or None."""
    if not os.path.isfile(path):
        return 'it is missing'
    with open(path, 'rb') as file:
        start = file.read(100)
    if not start:
        return 'it is empty'
    if start.lstrip().lower().startswith((b'<!doctype', b'<html')):
        return 'it is a web page, perhaps the login page of the network'
    if name == HPARAMS:
        return hparams_problem(path)
    if name == WEIGHTS:
        return weights_problem(path)
    if name == MARKER and b'model_checkpoint_path: "model.ckpt"' not in start:
        return 'it does not name model.ckpt'
    if name in SHA256 and digest(path, hashlib.sha256()).hex() != SHA256[name]:
        return 'it is not the vocabulary of GPT-2 (its sha256 differs)'
    return None


def hparams_problem(path):
    try:
        weights_size(path)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f'it is not JSON with the dimensions of a model ({error!r})'
    return None


def weights_problem(path):
    hparams = os.path.join(os.path.dirname(path), HPARAMS)
    if problem(HPARAMS, hparams):
        return None  # Nothing to measure them by.
    size = weights_size(hparams)
    if os.path.getsize(path) != size:
        return f'it has {os.path.getsize(path):,} bytes where {HPARAMS} asks for {size:,}'
    return None


def weights_size(path):
    """Returns the bytes that the weights take by the hparams.json at path: four a parameter.

    Raises:
      ValueError, KeyError, TypeError: it does not hold what it should.
    """
    with open(path, encoding='utf-8') as file:
        hparams = json.load(file)
    dimensions = [hparams[key] for key in ('n_vocab', 'n_ctx', 'n_embd', 'n_layer')]
    if not all(type(dimension) is int and dimension > 0 for dimension in dimensions):
        raise ValueError('a dimension is not a positive integer')
    n_vocab, n_ctx, n_embd, n_layer = dimensions
    attention = 4 * n_embd ** 2 + 4 * n_embd
    mlp = 8 * n_embd ** 2 + 5 * n_embd
    norm = 2 * n_embd
    return 4 * ((n_vocab + n_ctx) * n_embd + n_layer * (attention + mlp + 2 * norm) + norm)


def matches(path, remote):
    """Returns whether the file at path is what the server has, as far as the server says."""
    if not os.path.isfile(path) or remote.size not in (None, os.path.getsize(path)):
        return False
    return remote.md5 is None or remote.md5 == in_base64(digest(path, hashlib.md5()))


def digest(path, hasher):
    with open(path, 'rb') as file:
        for chunk in chunks(file):
            hasher.update(chunk)
    return hasher.digest()


def chunks(file):
    """Yields the bytes of an open file, showing progress where that takes a while."""
    size = os.fstat(file.fileno()).st_size
    with progress(f'{os.path.basename(file.name)} (checking)', 0, size, delay=1) as bar:
        for chunk in iter(lambda: file.read(CHUNK), b''):
            yield chunk
            bar.update(len(chunk))


def in_base64(digest):
    return base64.b64encode(digest).decode('ascii')


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


# A file: from the server to its place.

def fetch(session, url, path, remote):
    """Fetches url to path, going on with the partial file there may be.

    Bytes that came whole and are wrong are fetched once more: nothing tells which of them to keep.

    Raises:
      Failure, OSError: there is no file at path then, or still the former one.
    """
    name = os.path.basename(path)
    for again in True, False:
        with Partial(path, remote) as partial:
            persist(lambda: receive(session, url, partial), name, RETRIES, lambda: partial.size)
            fault = partial.fault()
            if not fault:
                partial.put_in_place()
                return
            partial.discard()
        if again:
            say(f'{name}: {fault}; fetching it once more')
    raise Failure(f'{name}: {fault}, at the second try as well; another network or another --url '
                  f'may help')


class Partial:
    """The bytes of a file so far, and what the server said of the file they belong to.

    The bytes lie in path.partial. path.partial.json says what they belong to, so that a later run
    can tell whether the server still has the rest of them.
    """

    def __init__(self, path, remote):
        self.path = path
        self.bytes, self.note = path + '.partial', path + '.partial.json'
        self.file = open(self.bytes, 'ab+')  # Writes go to its end, wherever it was read last.
        self.remote = self.read_note()
        self.size = 0
        self.md5 = hashlib.md5()
        if continues(self.remote, remote):
            self.take_stock()
        else:
            self.begin(remote)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        if not self.size:
            self.discard()

    def read_note(self):
        try:
            with open(self.note, encoding='utf-8') as file:
                return Remote(**json.load(file))
        except (FileNotFoundError, ValueError, TypeError):
            return UNKNOWN

    def take_stock(self):
        """Goes on with the bytes that are there."""
        self.file.seek(0)
        for chunk in chunks(self.file):
            self.md5.update(chunk)
            self.size += len(chunk)

    def begin(self, remote):
        """Starts over, with nothing, on a file that the server describes so."""
        self.file.truncate(0)
        self.size = 0
        self.md5 = hashlib.md5()
        self.remote = remote
        with open(self.note, 'w', encoding='utf-8') as file:
            json.dump(remote._asdict(), file)

    def append(self, chunk):
        self.file.write(chunk)
        self.md5.update(chunk)
        self.size += len(chunk)

    def fault(self):
        """Returns what is wrong with the bytes, now that all have come, or None."""
        self.file.flush()
        if self.remote.size not in (None, self.size):
            return f'{self.size:,} bytes came where {self.remote.size:,} were announced'
        if self.remote.md5 not in (None, in_base64(self.md5.digest())):
            return 'the bytes that came are not those the server has (their MD5 differs)'
        return problem(os.path.basename(self.path), self.bytes)

    def discard(self):
        self.file.close()
        remove(self.bytes)
        remove(self.note)

    def put_in_place(self):
        os.fsync(self.file.fileno())
        self.file.close()
        # Of a former model, no part may be replaced while it still counts as complete.
        remove(os.path.join(os.path.dirname(self.path), MARKER))
        os.replace(self.bytes, self.path)
        remove(self.note)


def continues(former, remote):
    """Returns whether bytes of the file that was `former` may be followed by bytes of `remote`."""
    if not same(former, remote):
        return False
    return former.validator is not None or former.md5 is not None and former.md5 == remote.md5


def same(one, other):
    """Returns whether two Remotes can describe the same file: neither contradicts the other."""
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, other))


def receive(session, url, partial):
    """Asks for what a partial file lacks and appends what comes.

    Raises:
      Trouble, Failure, OSError
    """
    if partial.size and partial.size == partial.remote.size:
        return
    if not continues(partial.remote, partial.remote):
        partial.begin(partial.remote)
    headers = {}
    if partial.size:
        headers['Range'] = f'bytes={partial.size}-'
        if partial.remote.validator:
            headers['If-Range'] = partial.remote.validator
    with ask(session, 'GET', url, headers) as response:
        if response.status_code == 200:
            partial.begin(whole(response, partial.remote))
        elif not fits(response, partial):
            partial.begin(partial.remote)
            raise Trouble('the server has another file now, or cannot go on in one: starting over')
        size = partial.remote.size
        with progress(os.path.basename(partial.path), partial.size, size) as bar:
            for chunk in body(response):
                partial.append(chunk)
                bar.update(len(chunk))
                if size is not None and partial.size > size:
                    return  # More than announced: a fault.
    if size is not None and partial.size < size:
        raise Trouble('the connection broke (it ended early)')


def whole(response, before):
    """Returns the Remote of a response that brings the whole file, filled up by what HEAD said.

    Raises:
      Trouble: it says another size than HEAD. One of them is a lie, which must not cost the bytes
        that are here.
      Failure: nothing says where the file ends.
    """
    found = describe(response)
    if None not in (found.size, before.size) and found.size != before.size:
        raise Trouble(f'the server sends {found.size:,} bytes of a file that has {before.size:,}')
    size = before.size if found.size is None else found.size
    if size is None and response.headers.get('Transfer-Encoding', '').lower() != 'chunked':
        raise Failure('the server does not say how long the file is, so nobody can tell whether it '
                      'is whole; choose another --url')
    return Remote(size, found.md5 or (before.md5 if same(found, before) else None), found.validator)


def fits(response, partial):
    """Returns whether a response goes on where the partial file ends, in the same file."""
    start = re.match('bytes ([0-9]*)', response.headers.get('Content-Range', ''))
    return (response.status_code == 206 and start is not None
            and number(start.group(1)) == partial.size
            and same(describe(response), partial.remote))


# The network.

def persist(action, name, retries, position=lambda: 0):
    """Returns what action() returns, trying again after Trouble, with longer and longer pauses.

    Tries count from the last one that got further, by position(), than any before it.

    Raises:
      Failure: action() raised it, or Trouble too often.
    """
    tries, furthest = 0, position()
    while True:
        try:
            return action()
        except Failure as failure:
            raise Failure(f'{name}: {failure}') from failure
        except Trouble as trouble:
            if position() > furthest:
                tries, furthest = 0, position()
            tries += 1
            if tries > retries:
                after = f' after the {position():,} bytes that are here' if position() else ''
                raise Failure(f'{name}: {trouble}, try {tries} of {tries}; run the same command '
                              f'again to go on{after}') from trouble
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            pause = max(pause, trouble.wait)
            say(f'{name}: {trouble}; trying again in {pause:.1f} s ({tries} of {retries})')
            time.sleep(pause)


def ask_about(session, url):
    """Returns what the server says of a file without sending it; UNKNOWN if it cannot do that."""
    with ask(session, 'HEAD', url, {}) as response:
        return describe(response) if response.status_code == 200 else UNKNOWN


def ask(session, method, url, headers):
    """Sends a request; returns the response, whose body is still to be read.

    Its status is 200; also 206 or 416 if headers ask for a range; also 405 or 501 to HEAD.

    Raises:
      Trouble, Failure
    """
    try:
        response = session.request(method, url, headers=headers, stream=True, timeout=TIMEOUT,
                                   allow_redirects=True)
    except (requests.ConnectionError, requests.Timeout) as error:
        if 'CERTIFICATE_VERIFY_FAILED' in str(error):
            raise Failure(f'the certificate of {url} is not valid here; the network may ask for a '
                          f'login, or have its own certificates ($REQUESTS_CA_BUNDLE)') from error
        raise Trouble(f'no answer from {urlsplit(url).netloc} ({cause(error)})') from error
    except (OSError, ValueError) as error:  # Of requests, and of what it uses.
        raise Failure(f'{url} cannot be asked for ({cause(error)}); is --url right?') from error
    try:
        check_answer(response, method, headers)
    except (Trouble, Failure):
        response.close()
        raise
    return response


def check_answer(response, method, headers):
    """Raises Trouble or Failure unless the response is one that ask() returns."""
    status, url = response.status_code, response.url
    if status == 429 or status == 408 or status >= 500 and status != 501:
        wait = retry_after(response)
        if wait > LONGEST_WAIT:
            raise Failure(f'the server asks to wait {wait:,.0f} s; run the same command again then')
        raise Trouble(f'the server answers {status} {response.reason}', wait)
    if status in (405, 501) and method == 'HEAD' or status == 416 and 'Range' in headers:
        return
    if status != 200 and not (status == 206 and 'Range' in headers):
        raise Failure(f'{url} answers {status} {response.reason}; is --url right?')
    if 'text/html' in response.headers.get('Content-Type', ''):
        raise Failure(f'{url} is a web page; log in to the network, if it has a login page, or '
                      f'mend --url')
    if response.headers.get('Content-Encoding', 'identity') != 'identity':
        raise Failure(f'{url} comes with Content-Encoding {response.headers["Content-Encoding"]}, '
                      f'unasked, so it cannot be checked; choose another network or --url')


def body(response):
    """Yields the chunks of the response's body. Raises Trouble."""
    try:
        yield from response.iter_content(CHUNK)
    except requests.RequestException as error:
        raise Trouble(f'the connection broke ({cause(error)})') from error


def cause(error):
    """Returns what is at the bottom of an error, which requests and urllib3 wrap several times."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    if isinstance(error, http.client.IncompleteRead):
        return 'it ended early'
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__


def describe(response):
    """Returns the Remote that the headers of a response describe: of the whole file, always."""
    headers = response.headers
    if response.status_code == 206:
        size, md5 = headers.get('Content-Range', '').rpartition('/')[2], None  # MD5: of the part.
    else:
        size, md5 = headers.get('Content-Length', ''), headers.get('Content-MD5')
    etag = headers.get('ETag', 'W/')
    validator = headers.get('Last-Modified') if etag.startswith('W/') else etag
    return Remote(number(size), md5, validator)


def retry_after(response):
    """Returns the seconds that the server asks to wait (Retry-After: seconds or a date), or 0."""
    value = response.headers.get('Retry-After', '')
    if number(value) is not None:
        return number(value)
    try:
        return max(0, email.utils.mktime_tz(email.utils.parsedate_tz(value)) - time.time())
    except (TypeError, ValueError, IndexError, OverflowError):  # It is no date.
        return 0


def number(text):
    """Returns the number that a header gives, None if it is not one."""
    return int(text) if re.fullmatch('[0-9]{1,18}', text) else None


# Progress.

def progress(name, done, size, **options):
    """Returns a bar for size bytes, of which some are done; or lines if stderr is no terminal."""
    if not sys.stderr.isatty():
        return Lines(name, done, size, **options)
    return tqdm(desc=name, initial=done, total=size, unit='B', unit_scale=True, **options)


class Lines:
    """Progress for a log: a line every few seconds, and one at the end of what took `delay`."""

    def __init__(self, name, done, size, delay=0):
        self.name, self.first, self.done, self.size = name, done, done, size
        self.delay = delay
        self.started = self.told = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if time.monotonic() - self.started >= self.delay:
            self.tell()

    def update(self, count):
        self.done += count
        if time.monotonic() - self.told >= LINE_EVERY:
            self.tell()

    def tell(self):
        self.told = time.monotonic()
        say(tqdm.format_meter(
            self.done, self.size, self.told - self.started, prefix=self.name, unit='B',
            unit_scale=True, initial=self.first,
            bar_format='{desc}: {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left'))


if __name__ == '__main__':
    sys.exit(main())
