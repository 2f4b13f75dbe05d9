"""Texts to train on: files -> one long row of tokens, kept in a file beside them -> batches.

<|endoftext|> stands before each document. The tokens are in a file because they may not fit in
memory. It is found by a fingerprint of texts and vocabulary, so texts are encoded only once.
"""

import codecs
import collections
import contextlib
import functools
import glob
import hashlib
import operator
import os
import re
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

import numpy as np
import regex
from tqdm import tqdm

from encoder import END_OF_TEXT
from gpt2 import files, runtime
from gpt2.errors import UserError
from gpt2.model_dir import VOCABULARY

PIECE = 2 ** 20  # characters, about, that are encoded at a time
BLOCK = 2 ** 24  # tokens that are counted at a time

# How the name of a token file ends; also of one that is being written.
TOKENS_NAME = re.compile(r'tokens-[0-9a-f]{8}-[0-9a-f]{16}(\.[0-9a-f]+\.partial)?$')

# `training` and `validation`: int [n], in a file. `validation_bytes`: of text, all but the first
# token's. `n_documents`: in both. `fingerprint`: of the texts and the vocabulary.
# `validation_fingerprint`: the same of validation texts of their own, else None.
TrainingData = collections.namedtuple(
    'TrainingData', 'training validation validation_bytes n_documents fingerprint '
    'validation_fingerprint')


def open_training_data(path, model_dir, seq_len, held_out, validation_path=None):
    """Open texts, see `open_dataset`, and return a TrainingData. Raises UserError.

    Their last `held_out` share is for validation, unless there are other texts for it.
    """
    tokens, fingerprint = open_dataset(path, model_dir)
    lengths = byte_lengths(model_dir.encoder)
    if validation_path is None:
        (training, validation), validation_fingerprint = split(tokens, lengths, held_out), None
    else:
        check_apart(path, validation_path)
        training = tokens
        validation, validation_fingerprint = open_dataset(validation_path, model_dir)
    validation_bytes = count_bytes(validation[1:], lengths)
    if len(training) <= seq_len:
        raise UserError(f'{path} is too short: {len(training)} tokens to train on, for sequences '
                        f'of {seq_len}; give more text, or a smaller --seq_len')
    if not validation_bytes:
        raise UserError(f'{validation_path} is too short to validate on; give more text'
                        if validation_path is not None else
                        f'{path} is too short: nothing is left for validation; give more text, or '
                        'a larger --held_out')
    n_documents = sum(count_documents(part, model_dir.encoder.end_of_text)
                      for part in (training, validation))
    return TrainingData(training, validation, validation_bytes, n_documents, fingerprint,
                        validation_fingerprint)


def check_apart(path, validation_path):
    """Raise UserError if a validation text is among those to train on."""
    to_train_on = set(map(os.path.realpath, find_files(path)))
    for other in find_files(validation_path):
        if os.path.realpath(other) in to_train_on:
            raise UserError(f'{other} is among the texts of {path}; validation needs a text that '
                            'is not trained on')


def open_dataset(path, model_dir):
    """Open a text file, a folder or a pattern of files, and encode them if that was not done yet.

    Returns the tokens, int [n] in a file, and a fingerprint of the texts and the vocabulary. Raises
    UserError if there is no such file, or a file is not UTF-8 or not JSON.
    """
    paths = find_files(path)
    vocabulary = digest(os.path.join(model_dir.path, name) for name in VOCABULARY)[:8]
    fingerprint = vocabulary + digest(paths)
    name = f'tokens-{vocabulary}-{fingerprint[8:24]}'
    folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
    beside = f'{path}.' if os.path.isfile(path) else os.path.join(os.path.commonpath(folders), '')
    targets = [beside + name]
    with contextlib.suppress(OSError):
        targets.append(os.path.join(files.cache_folder(), name))
    n_vocab = model_dir.hparams.n_vocab
    dtype = np.uint16 if n_vocab <= 2**16 else np.uint32
    owners = {status.st_uid for status in map(os.stat, paths)}
    for target in targets:
        with contextlib.suppress(OSError, ValueError):
            return read_tokens(target, dtype, n_vocab, owners), fingerprint
    target = write_tokens(paths, model_dir.encoder, dtype, targets)
    if target.startswith(f'{path}.'):
        remove_outdated(target)
    try:
        return read_tokens(target, dtype, n_vocab, owners), fingerprint
    except ValueError:
        raise UserError(f'{path} has no text in it; give another file')


def read_tokens(path, dtype, n_vocab, owners):
    """Return the tokens in a file that an earlier run wrote, int [n], mapped into memory.

    Raises OSError if there is no such file, and ValueError if it is empty, damaged, or belongs to
    somebody else than the user or the `owners` of the texts, who might have put other tokens in it.
    """
    with open(files.open_regular(path, os.O_RDONLY), 'rb') as file:
        status = os.fstat(file.fileno())
        if os.name == 'posix' and status.st_uid not in owners | {os.getuid()}:
            raise ValueError('it belongs to another user')
        tokens = np.memmap(file, dtype, 'r')  # which raises ValueError for half a token, and none
    if any(block.max() >= n_vocab for block in blocks(tokens)):
        raise ValueError('it has an id that is not in the vocabulary')
    return tokens


def blocks(tokens):
    """Yield tokens in parts of BLOCK, as they may not fit in memory."""
    return (tokens[start:start + BLOCK] for start in range(0, len(tokens), BLOCK))


def remove_outdated(target):
    """Remove the token files of earlier contents of a text file, which lie beside the present."""
    for other in glob.glob(glob.escape(target[:-16]) + '*'):
        if other != target and re.search(r'-[0-9a-f]{16}$', other):
            with contextlib.suppress(OSError):
                os.remove(other)


def find_files(path):
    """Return the paths of the files to read, in order of name. Raises UserError if none exists."""
    paths = [path]
    if os.path.isdir(path):
        paths = [file for suffix in ('.txt', '.jsonl')
                 for file in glob.glob(os.path.join(glob.escape(path), '*' + suffix))]
    elif glob.has_magic(path) and not os.path.exists(path):
        paths = [file for file in glob.glob(path, recursive=True)
                 if os.path.isfile(file) and not TOKENS_NAME.search(file)]
    if not paths:
        raise UserError(f'{path}: no text there; give a text file, a folder of .txt and .jsonl '
                        'files, or a pattern of files')
    return sorted(paths)


def digest(paths):
    """Return a checksum of the contents of files, in hexadecimal digits. Raises UserError."""
    total = hashlib.sha256()
    for path in paths:
        content = hashlib.sha256(os.path.splitext(path)[1].encode('utf-8', 'replace'))
        with open_text(path) as file:
            files.add_to_hash(content, file)
        total.update(content.digest())
    return total.hexdigest()


@contextlib.contextmanager
def open_text(path):
    """Yield a text file, open in binary. Raises UserError if it cannot be read, or is none."""
    try:
        with open(files.open_regular(path, os.O_RDONLY, follow_links=True), 'rb') as file:
            yield file
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; give a text file, or a folder of .txt files')


# Texts are read in pieces, which are encoded on their own as in their place: no word crosses a cut.
# A piece that does not begin with <|endoftext|> continues the document of the piece before.

WORD_END = regex.compile(r'(?r)\S(?=\s)')  # the last of a text, searched from its end


def read_pieces(path, progress):
    """Yield the pieces of a file, calling progress(n_bytes) as it is read. Raises UserError."""
    return (read_documents if path.endswith('.jsonl') else read_text)(path, progress)


def read_text(path, progress):
    """Yield the pieces of a text file."""
    decoder = codecs.getincrementaldecoder('utf-8-sig')()
    text, data = END_OF_TEXT, True
    with open_text(path) as file:
        while data:
            data = file.read(PIECE)
            try:
                text += decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                place = file.tell() - len(error.object) + error.start
                raise UserError(f'{path} is not UTF-8 text: byte {place}; convert it first')
            progress(len(data))
            word_end = WORD_END.search(text) if data else None
            cut = word_end.end() if word_end else 0
            yield text[:cut]
            text = text[cut:]
    yield text


def read_documents(path, progress):
    """Yield the pieces of a .jsonl file."""
    documents, n_characters = [], 0
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            progress(len(line))
            try:
                text = files.parse_object(line, 'text')['text']
            except ValueError as error:
                raise UserError(f'{path}, line {number}: {error}; correct the line')
            documents += [END_OF_TEXT, text]
            n_characters += len(text)
            if n_characters > PIECE:
                yield ''.join(documents)
                documents, n_characters = [], 0
    yield ''.join(documents)


def encode_text(encoder, text):
    """Return the tokens of a text, a list; <|endoftext|> in it becomes the special token."""
    tokens = []
    for number, document in enumerate(text.split(END_OF_TEXT)):
        tokens += [encoder.end_of_text] * (number > 0) + encoder.encode(document)
    return tokens


def write_tokens(paths, encoder, dtype, targets):
    """Encode files into the first writable target; return its path. Raises UserError."""
    # The permissions that all of the texts have.
    mode = functools.reduce(operator.and_, (os.stat(path).st_mode for path in paths), 0o666)
    for target in targets:
        try:
            with files.new_file(target, mode) as file:
                for tokens in encode_files(paths, encoder):
                    file.write(np.array(tokens, dtype).tobytes())
            return target
        except OSError as error:
            problem = error.strerror
    raise UserError(f'{target}: {problem}; make room there for the tokens of the text, or name '
                    'another folder as XDG_CACHE_HOME')


def encode_files(paths, encoder):
    """Yield the tokens of each piece of the files, with a progress bar and on all processors."""
    n_bytes = sum(map(os.path.getsize, paths))
    with tqdm(total=n_bytes, unit='B', unit_scale=True, desc='encoding', leave=False,
              disable=None) as bar:
        pieces = (piece for path in paths for piece in read_pieces(path, bar.update))
        if n_bytes <= PIECE:  # not worth other processes
            yield from (encode_text(encoder, piece) for piece in pieces)
        else:
            yield from encode_in_processes(encoder, pieces, runtime.processors())


def encode_in_processes(encoder, texts, n):
    """Yield the tokens of texts, encoded in n processes; only a few texts are read in advance."""
    waiting = collections.deque()
    with ProcessPoolExecutor(n, initializer=start_worker, initargs=(encoder, os.getpid())) as pool:
        try:
            for text in texts:
                waiting.append(pool.submit(work, text))
                if len(waiting) == 2 * n:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError('a process that encoded the text was killed; if memory is short, close '
                            'other programs, then try again')
        # Texts that are left over after an error are not cancelled: before Python 3.9, the pool
        # may then wait for them for ever.


def start_worker(encoder, parent):
    """Prepare a process for `work`; `parent` is the id of the process that started it."""
    runtime.follow(parent)
    work.encoder = encoder


def work(text):
    """Do `encode_text` in a process of a pool."""
    return np.array(encode_text(work.encoder, text), np.uint32)  # an array travels faster


def byte_lengths(encoder):
    """Return how many bytes of text each token stands for, int [V]; <|endoftext|> for none."""
    lengths = np.array([len(encoder.decode_bytes([i])) for i in range(len(encoder.encoder))])
    lengths[encoder.end_of_text] = 0
    return lengths


def count_bytes(tokens, lengths):
    """Return how many bytes of text tokens stand for, block by block, as they may be many."""
    return sum(int(lengths[block].sum()) for block in blocks(tokens))


def count_documents(tokens, end_of_text):
    """Return how many documents tokens have that are not empty, block by block."""
    starts = tokens[:-1], tokens[1:]
    return sum(int(np.count_nonzero((this == end_of_text) & (after != end_of_text)))
               for this, after in zip(*map(blocks, starts)))


def split(tokens, lengths, held_out):
    """Split tokens in two; the second part has the last `held_out` share of their bytes.

    A token across the border belongs to the first part. `lengths` are from `byte_lengths`.
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


def random_batch(tokens, options, number):
    """Return batch `number` of a run, int32 [B, S + 1]: sequences from random places."""
    random = np.random.default_rng([options.seed, number])
    starts = random.integers(len(tokens) - options.seq_len, size=options.batch_size)
    return np.array([tokens[start:start + options.seq_len + 1] for start in starts], np.int32)


def dropout_seed(seed, number):
    """Return what decides dropout in batch `number` of a run, an int of 31 bits."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] >> 1)
