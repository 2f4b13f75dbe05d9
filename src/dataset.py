"""Texts to train on: files -> one long row of tokens, which is kept in a file beside them.

<|endoftext|> stands before each document. The tokens are in a file because there may be more than
fit in memory: training reads the places that it needs. The file is found again by a fingerprint of
the texts and the vocabulary, so it is made only once.
"""

import codecs
import collections
import contextlib
import glob
import hashlib
import json
import multiprocessing
import os
import re
import secrets
import signal
import tempfile

import numpy as np
import regex
from tqdm import tqdm

import cli
from checkpoint import END_OF_TEXT, VOCABULARY

PIECE = 2 ** 20  # characters, about, that are encoded at a time
BLOCK = 2 ** 24  # tokens that are looked at at a time

# What follows in the name of a file of tokens, of one that is being written, too.
TOKENS_NAME = re.compile(r'tokens-[0-9a-f]{8}-[0-9a-f]{16}(\.[0-9a-f]+\.partial)?$')

# A row of tokens: `tokens` int [n], in a file; `key`, a fingerprint of texts and vocabulary.
Dataset = collections.namedtuple('Dataset', 'tokens key')


def open_dataset(path, opened):
    """Returns the Dataset of a text file, a folder or a pattern of files; encodes it if need be.

    Args:
      path: a text file, one document or several with <|endoftext|> between; a .jsonl, a document
        a line, an object with a "text"; a folder of .txt and .jsonl files; or a pattern such as
        'books/*.txt'.
      opened: the checkpoint.Model whose vocabulary encodes it.

    Raises:
      UserError: there is no such file, or it is not UTF-8 or not JSON.
    """
    paths = find_files(path)
    vocabulary = digest(os.path.join(opened.directory, name) for name in VOCABULARY)[:8]
    name = 'tokens-%s-' % vocabulary  # one of each vocabulary
    key = vocabulary + digest(paths)
    beside = path + '.' if os.path.isfile(path) else os.path.join(common_folder(paths), '')
    dtype = np.uint16 if opened.hparams.n_vocab <= 2**16 else np.uint32
    targets = [prefix + name + key[8:24] for prefix in
               (beside, os.path.join(tempfile.gettempdir(), ''))]
    target = next(filter(os.path.exists, targets), None)
    if target is None:
        target = write_tokens(paths, opened.encoder, dtype, targets)
        if target.startswith(path + '.'):
            remove_others(target)
    return Dataset(np.memmap(target, dtype, 'r') if os.path.getsize(target) else np.zeros(0, dtype),
                   key)


def remove_others(target):
    """Removes the tokens of what a text file was before, which lie beside those that it has now."""
    for other in glob.glob(glob.escape(target[:-16]) + '*'):
        if other != target and re.search(r'-[0-9a-f]{16}$', other):
            with contextlib.suppress(OSError):
                os.remove(other)


# Files

def find_files(path):
    """Returns the paths of the files to read, in order of name. Raises UserError: there are none.
    """
    paths = [path]
    if os.path.isdir(path):
        paths = [file for ending in ('.txt', '.jsonl')
                 for file in glob.glob(os.path.join(glob.escape(path), '*' + ending))]
    elif glob.has_magic(path) and not os.path.exists(path):
        paths = [file for file in glob.glob(path, recursive=True)
                 if os.path.isfile(file) and not TOKENS_NAME.search(file)]
    if not paths:
        raise cli.UserError('%s: no text there; give a text file, a folder of .txt and .jsonl '
                            'files, or a pattern of files' % path)
    return sorted(paths)


def common_folder(paths):
    """Returns the folder that all of these files are in, or in folders of."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def digest(paths):
    """Returns a checksum of the contents of files, in hexadecimal digits. Raises UserError."""
    total = hashlib.sha256()
    for path in paths:
        one = hashlib.sha256(os.path.splitext(path)[1].encode('utf-8', 'replace'))
        try:
            with open(path, 'rb') as file:
                for data in iter(lambda: file.read(PIECE), b''):
                    one.update(data)
        except OSError as error:
            raise cli.UserError('%s: %s; give a text file, or a folder of .txt files'
                                % (path, error.strerror))
        total.update(one.digest())
    return total.hexdigest()


# A piece is a part of the texts that is encoded by itself as it would be in its place: no word goes
# on from one piece to the next. <|endoftext|> stands before each document, so if a piece does not
# begin with it, a document goes on from the piece before. `n_bytes` were read for it.
Piece = collections.namedtuple('Piece', 'text n_bytes')

WORD_END = regex.compile(r'(?r)\S(?=\s)')  # the last of a text, searched from its end


def read_pieces(path):
    """Yields the Pieces of a file. Raises UserError: it is not UTF-8, or not JSON."""
    return (read_documents if path.endswith('.jsonl') else read_text)(path)


def read_text(path):
    """Yields the Pieces of a text file."""
    decoder = codecs.getincrementaldecoder('utf-8-sig')()
    text = END_OF_TEXT
    with open(path, 'rb') as file:
        while True:
            data = file.read(PIECE)
            try:
                text += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = file.tell() - len(error.object) + error.start
                raise cli.UserError('%s is not UTF-8 text: byte %d; convert it first'
                                    % (path, place))
            if not data:
                yield Piece(text, 0)
                return
            end = WORD_END.search(text)
            n = end.end() if end else 0
            yield Piece(text[:n], len(data))
            text = text[n:]


def read_documents(path):
    """Yields the Pieces of a .jsonl file."""
    documents, n_characters, n_bytes = [], 0, 0
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            try:
                text = json.loads(line.decode('utf-8-sig'))['text']
                documents += [END_OF_TEXT, text]
                n_characters += len(text)
            except (ValueError, LookupError, TypeError, RecursionError):
                raise cli.UserError('%s, line %d: it is no JSON object with a text as its "text"; '
                                    'correct the line' % (path, number))
            n_bytes += len(line)
            if n_characters > PIECE:
                yield Piece(''.join(documents), n_bytes)
                documents, n_characters, n_bytes = [], 0, 0
    yield Piece(''.join(documents), n_bytes)


# Tokens

def encode_piece(encoder, text):
    """Returns the tokens of a Piece's text, a list."""
    tokens = []
    for number, document in enumerate(text.split(END_OF_TEXT)):
        tokens += [encoder.encoder[END_OF_TEXT]] * (number > 0) + encoder.encode(document)
    return tokens


def write_tokens(paths, encoder, dtype, targets):
    """Encodes files into the first of the targets that can be written. Returns its path.

    Raises:
      UserError: none can be, or a file is not what it should be.
    """
    for target in targets:
        partial = '%s.%s.partial' % (target, secrets.token_hex(4))
        try:
            with open(partial, 'wb') as file:
                for tokens in encode_files(paths, encoder):
                    file.write(np.array(tokens, dtype).tobytes())
            os.replace(partial, target)
            return target
        except OSError as error:
            problem = error
        finally:
            with contextlib.suppress(OSError):
                os.remove(partial)
    raise cli.UserError('%s: %s; make room there for the tokens of the text'
                        % (targets[-1], problem.strerror))


def encode_files(paths, encoder):
    """Yields the tokens of each Piece of the files, with a progress bar and on all cores."""
    n_bytes = sum(map(os.path.getsize, paths))
    with tqdm(total=n_bytes, unit='B', unit_scale=True, desc='encoding', leave=False,
              disable=None) as progress:
        def pieces():
            for path in paths:
                for piece in read_pieces(path):
                    progress.update(piece.n_bytes)
                    yield piece.text
        if n_bytes <= PIECE:  # not worth the processes
            yield from (encode_piece(encoder, text) for text in pieces())
            return
        n = cli.processors()
        with multiprocessing.Pool(n, start_worker, (encoder,)) as pool:
            yield from in_order(pool, work, pieces(), 4 * n)


def start_worker(encoder):
    """Readies a process to `work`; Ctrl-C is for the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work.encoder = encoder


def work(text):
    """As `encode_piece`, in a process of a pool."""
    return np.array(encode_piece(work.encoder, text), np.uint32)  # an array travels faster


def in_order(pool, function, items, n_ahead):
    """As pool.imap, but takes no more than n_ahead items before their results are asked for."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.apply_async(function, (item,)))
        if len(waiting) == n_ahead:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


# A part that is held out

def byte_lengths(encoder):
    """Returns how many bytes of text each token stands for, int [V]; <|endoftext|> for none."""
    lengths = np.array([len(encoder.decode_bytes([i])) for i in range(len(encoder.encoder))])
    lengths[encoder.encoder[END_OF_TEXT]] = 0
    return lengths


def count_bytes(tokens, lengths):
    """Returns how many bytes of text tokens stand for, block by block, as they may be many."""
    return sum(int(lengths[tokens[i:i + BLOCK]].sum()) for i in range(0, len(tokens), BLOCK))


def split(tokens, lengths, held_out):
    """Splits tokens in two, the second with the last `held_out` share of their bytes.

    A token across the border belongs to the first part.

    Args:
      lengths: of tokens, as from `byte_lengths`.
    """
    n_bytes = count_bytes(tokens, lengths)
    n_first = n_bytes - int(n_bytes * held_out)
    for start in range(0, len(tokens), BLOCK):
        n_bytes = count_bytes(tokens[start:start + BLOCK], lengths)
        if n_bytes >= n_first:
            ends = lengths[tokens[start:start + BLOCK]].cumsum()
            place = start + int(np.searchsorted(ends, n_first)) + 1
            return tokens[:place], tokens[place:]
        n_first -= n_bytes
    return tokens, tokens[:0]
