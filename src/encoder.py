"""Text to tokens and back: the byte-level byte-pair encoding (BPE) of GPT-2.

A text is cut into words (a space belongs to the word after it), and each word is written as its
UTF-8 bytes, one token a byte. Then neighbouring tokens are joined. Which pairs may join was learned
once from a large text, the most frequent pair first. `vocab.bpe` lists them in that order, and
every word is joined by the list, from its first line to its last; `encoder.json` gives each token
its id. As all 256 bytes are tokens themselves, any text can be written in tokens, and the bytes of
these tokens in a row are the text again.

Both files write a byte as one printable character, its symbol: `a` stands for itself, and `Ġ` is
the space. A vocabulary of the 256 bytes and four merges shows it all. `low` is joined in two steps,
l+o and lo+w, to one token; ` lower` in four, to two:

>>> merges = [('l', 'o'), ('lo', 'w'), ('e', 'r'), ('Ġ', 'low')]
>>> symbols = [*byte_symbols().values(), 'lo', 'low', 'er', 'Ġlow']
>>> tiny = Encoder({symbol: i for i, symbol in enumerate(symbols)}, merges)
>>> tiny.encode('low lower')
[257, 259, 258]
>>> [tiny.decode([token]) for token in tiny.encode('low lower')]
['low', ' low', 'er']
"""

import hashlib
import json
import numbers
import os
import re
from collections import defaultdict
from heapq import heappop, heappush
from itertools import chain, repeat

import regex

# What counts as a word: an English contraction's ending, letters, digits, other signs, white space.
# White space before a word leaves its last character to the word, which takes it if it is a space.
WORD = r"'(?:[sdmt]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^\s{L}{N}]+|\s+(?!\S)|\s+"

# Python's own re does not know the letters and numbers of Unicode, but is twice as fast without.
UNICODE_WORD = regex.compile(WORD.format(L=r'\p{L}', N=r'\p{N}'))
ASCII_WORD = re.compile(WORD.format(L='A-Za-z', N='0-9'), re.ASCII)

# A long text is cut into stretches, so that its words never all lie in memory at once and most
# stretches are ASCII. It is safe to cut before white space that follows something else: no word
# goes on there.
STRETCH = regex.compile(r'.{1,1024}\s*\S*', regex.DOTALL)

# Most words of a text have been met before, so the tokens of short words are kept. When they are
# this many, they are dropped and collected anew: 10 MB of English, 100 MB at the very worst.
SHORT_WORD = 32
KEPT_WORDS = 2 ** 16

# A list of merges may have a token that is out of reach: by b+c, a+b and ab+c, `abc` is joined to a
# and bc. The released list has none (a test joins the bytes of each). So a word that is a token
# there, as half of all words are when they are first met, need not be joined.
RELEASED_MERGES = '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'  # its sha256


def byte_symbols():
    """Returns a dict: each byte's symbol in the vocabulary files, in the order of GPT-2's ids.

    A byte that is a visible character in Latin-1 is its own symbol and comes first; the others
    (controls, spaces, the soft hyphen) follow and are shown by the characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return dict(zip(visible + others, map(chr, [*visible, *range(256, 256 + len(others))])))


def find_words(text):
    """Yields the words of the text in lists, in order."""
    for stretch in STRETCH.findall(text):
        yield (ASCII_WORD if stretch.isascii() else UNICODE_WORD).findall(stretch)


def join(tokens, ranks, results):
    """Joins neighbouring tokens until no pair of neighbours has a rank.

    The pair of the lowest rank goes first, at all its places from left to right.

    Args:
      tokens: list of one id or more; it is used up.
      ranks: dict, (left id, right id) -> rank.
      results: list, rank -> id of the joined token.

    Returns:
      The list of ids that remain.
    """
    never = len(results)
    tokens.append(None)  # joins with no token: the neighbour of the last, and (as -1) of the first
    pair_ranks = list(map(ranks.get, zip(tokens, tokens[1:]), repeat(never)))
    rank = min(pair_ranks)
    while rank != never:
        i = pair_ranks.index(rank)
        tokens[i] = joined = results[rank]
        del tokens[i + 1], pair_ranks[i]
        pair_ranks[i - 1] = ranks.get((tokens[i - 1], joined), never)
        pair_ranks[i] = ranks.get((joined, tokens[i + 1]), never)
        if rank not in pair_ranks:
            rank = min(pair_ranks)
    return tokens[:-1]


def join_long(tokens, ranks, results):
    """Does as join(), in time that grows as n log n instead of the square of the number of tokens.

    The pairs wait by rank instead of being searched, and the tokens form a linked list, from which
    one can go without moving the others: `before` and `after` hold the positions of neighbours.
    """
    n = len(tokens)
    tokens.append(None)
    before = list(range(-1, n))
    after = list(range(1, n + 1))
    places = defaultdict(list)  # rank -> positions of the left tokens of its pairs
    queue = []                  # heap of the ranks in places
    fresh = range(n)            # positions of the left tokens of new pairs
    while True:
        for i in fresh:
            rank = ranks.get((tokens[i], tokens[after[i]]))
            if rank is not None:
                if rank not in places:
                    heappush(queue, rank)
                places[rank].append(i)
        if not queue:
            return [token for token in tokens if token is not None]
        rank = heappop(queue)
        fresh = []
        for i in sorted(places.pop(rank)):
            j = after[i]
            if ranks.get((tokens[i], tokens[j])) == rank:  # else one has been joined to another
                tokens[i], tokens[j] = results[rank], None
                after[i] = after[j]
                before[after[i]] = i
                fresh += before[i], i


class Memory(dict):
    """Word -> function(word), computed when a word is first asked for; it keeps the short words."""

    def __init__(self, function):
        self.function = function

    def __missing__(self, word):
        value = self.function(word)
        if len(word) <= SHORT_WORD:
            if len(self) >= KEPT_WORDS:
                self.clear()
            self[word] = value
        return value


class Encoder:
    """A vocabulary: encode() turns text into token ids, decode() turns them back.

    Args:
      encoder: dict, token (a str of byte symbols) -> id, the ids being 0 to n - 1.
      merges: list of pairs of tokens that may be joined, those that go first first.
      reachable: whether the bytes of each token are known to be joined to this token.
    """

    def __init__(self, encoder, merges, reachable=False):
        symbols = byte_symbols()
        self.encoder = encoder
        self._byte_ids = [encoder[symbols[byte]] for byte in range(256)]
        self._ranks = {(encoder[a], encoder[b]): rank for rank, (a, b) in enumerate(merges)}
        self._results = [encoder[a + b] for a, b in merges]
        # A character that is no symbol (in a special token added to the vocabulary) means itself.
        byte_of = {symbol: bytes([byte]) for byte, symbol in symbols.items()}
        self._bytes = [b''.join(byte_of.get(c) or c.encode('utf-8', 'replace') for c in token)
                       for token in sorted(encoder, key=encoder.get)]
        self._ids = {token: i for i, token in enumerate(self._bytes)} if reachable else {}
        self._memory = Memory(self._encode_word)

    def encode(self, text):
        """Returns the list of the text's token ids. A lone surrogate counts as U+FFFD."""
        return self._encode(
            text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace'))

    def decode(self, tokens):
        """Returns the text of a sequence of token ids. Bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode('utf-8', 'replace')

    def encode_bytes(self, data):
        """Returns the list of the token ids of bytes, of which some may be no UTF-8 text.

        Such bytes count as signs, neither letters nor numbers nor white space.
        """
        return self._encode(data.decode('utf-8', 'surrogateescape'))

    def decode_bytes(self, tokens):
        """Returns the bytes of a sequence of token ids."""
        return b''.join(map(self._token_bytes, tokens))

    def _encode(self, text):
        words = chain.from_iterable(find_words(text))
        return list(chain.from_iterable(map(self._memory.__getitem__, words)))

    def _encode_word(self, word):
        data = word.encode('utf-8', 'surrogateescape')
        if data in self._ids:
            return [self._ids[data]]
        tokens = list(map(self._byte_ids.__getitem__, data))
        join_word = join if len(word) <= SHORT_WORD else join_long
        return join_word(tokens, self._ranks, self._results)

    def _token_bytes(self, token):
        integer = isinstance(token, numbers.Integral) and not isinstance(token, bool)
        if not integer or not 0 <= token < len(self._bytes):
            raise ValueError(f'{token!r} is not a token id: the ids of this vocabulary are the '
                             f'integers from 0 to {len(self._bytes) - 1}')
        return self._bytes[token]


def get_encoder(model_name, models_dir='models'):
    """Returns the Encoder of the model in the directory models_dir/model_name.

    Raises:
      FileNotFoundError: encoder.json or vocab.bpe is not there.
      ValueError: one of them is damaged; the message says where.
    """
    directory = os.path.join(models_dir, model_name)
    encoder = read_encoder(os.path.join(directory, 'encoder.json'))
    path = os.path.join(directory, 'vocab.bpe')
    merges = read_merges(path, encoder)
    with open(path, 'rb') as file:
        reachable = hashlib.sha256(file.read()).hexdigest() == RELEASED_MERGES
    return Encoder(encoder, merges, reachable)


def read_encoder(path):
    """Reads encoder.json: returns a dict, token -> id."""
    text = read_text(path)
    try:
        encoder = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f'this is not JSON: {error}') from error
    if not isinstance(encoder, dict) or any(type(i) is not int for i in encoder.values()):
        raise damaged(path, 'this is not a dictionary of tokens and their ids')
    if sorted(encoder.values()) != list(range(len(encoder))):
        raise damaged(path, f'the ids of {len(encoder)} tokens should be 0 to {len(encoder) - 1}')
    for byte, symbol in byte_symbols().items():
        if symbol not in encoder:
            raise damaged(path, f'the token {symbol!r}, for the byte {byte}, is missing')
    return encoder


def read_merges(path, encoder):
    """Reads vocab.bpe, a merge a line: returns a list of pairs of tokens."""
    merges = []
    for number, line in enumerate(read_text(path).rstrip('\n').split('\n'), start=1):
        if number == 1 and line.startswith('#version'):
            continue
        pair = tuple(line.split())
        if len(pair) != 2:
            raise damaged(f'{path}, line {number}', f'{line[:40]!r} is not a pair of tokens')
        for token in (*pair, ''.join(pair)):
            if token not in encoder:
                raise damaged(f'{path}, line {number}', f'{token!r} is not in encoder.json')
        merges.append(pair)
    return merges


def read_text(path):
    """Reads a UTF-8 file; any byte order mark goes, and any line ending becomes a newline."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise damaged(path, 'this is not UTF-8 text') from error


def damaged(where, problem):
    return ValueError(f'{where}: {problem}; the file is damaged, download the model again')
