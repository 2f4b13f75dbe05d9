"""Text to tokens and back: the byte-level byte-pair encoding (BPE) of GPT-2.

A text is split into words; a space belongs to the word after it. A word starts as its UTF-8 bytes,
one token per byte. Then neighbouring tokens are merged. Which pairs merge was learned once from a
large text, the most frequent pair first, and `vocab.bpe` lists them in that order: of all pairs in
a word, the one that is listed first merges first, until no listed pair is left. `encoder.json` maps
each token to its id. All 256 bytes are tokens, so every text has an encoding, and the bytes of its
tokens, in order, are the text.

Both files write a byte as one printable character, its symbol: `a` stands for itself, `Ġ` for the
space. A vocabulary of the 256 bytes and four merges shows it all. `low` takes two merges, l+o and
lo+w, and becomes one token; ` lower` takes four and becomes two:

>>> merges = [('l', 'o'), ('lo', 'w'), ('e', 'r'), ('Ġ', 'low')]
>>> symbols = [*bytes_to_unicode().values(), 'lo', 'low', 'er', 'Ġlow']
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

END_OF_TEXT = '<|endoftext|>'  # the token between two documents; encode() never returns its id

# A word: letters, the ending of an English contraction, other characters, digits, or white space.
# White space before a word leaves its last character to the word, which takes it if it is a space.
# Only contractions must come before the other characters; else the most frequent kind is first.
WORD = r" ?[{L}]+|'(?:[sdmt]|ll|ve|re)| ?[^\s{L}{N}]+| ?[{N}]+|\s+(?!\S)|\s+"

# Python's own re does not know the letters and numbers of Unicode, but is twice as fast on ASCII.
UNICODE_WORD = regex.compile(WORD.format(L=r'\p{L}', N=r'\p{N}'))
ASCII_WORD = re.compile(WORD.format(L='A-Za-z', N='0-9'), re.ASCII)

# A long text is cut into chunks, so that its words are never all in memory at once and most chunks
# are ASCII. A cut where white space begins is safe: no word spans it.
CHUNK = regex.compile(r'.{1,1024}\s*\S*', regex.DOTALL)

# Most words of a text occur in it before, so the tokens of short words are cached. When the cache
# holds this many words, it is emptied: it takes 10 MB with English, 100 MB at the very worst.
SHORT_WORD = 32
CACHED_WORDS = 2 ** 16

# A long word, such as a text without spaces, is merged in pieces of this many bytes: merging takes
# 300 bytes of memory for each byte.
PIECE = 2 ** 15

# A list of merges may have a token that no bytes merge to: by b+c, a+b and ab+c, `abc` becomes a
# and bc. The released list has none (a test merges the bytes of each). So a word that is a token
# there, as half of all words are when they first occur, need not be merged.
RELEASED_MERGES = '1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5'  # its sha256


def bytes_to_unicode():
    """Return the symbol of each byte, a dict byte -> character, in the order of GPT-2's ids.

    A byte that is a visible character in Latin-1 is its own symbol and comes first. The others
    (controls, spaces, the soft hyphen) follow, with the characters from U+0100.
    """
    visible = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return dict(zip(visible + others, map(chr, [*visible, *range(256, 256 + len(others))])))


def pretokenize(text):
    """Return an iterator over the words of a text, which together are the text."""
    return chain.from_iterable(
        (ASCII_WORD if chunk.isascii() else UNICODE_WORD).findall(chunk)
        for chunk in CHUNK.findall(text))


def merge_pairs(tokens, ranks, results):
    """Merge neighbouring tokens until no pair has a rank; return the list of ids that remain.

    The pair of the lowest rank merges first, everywhere in the word, from left to right.

    Args:
      tokens: list of one id or more; it is modified.
      ranks: dict, (left id, right id) -> rank.
      results: list, rank -> id of the merged token.
    """
    never = len(results)
    tokens.append(None)  # merges with no token: right of the last and (as -1) left of the first
    pair_ranks = list(map(ranks.get, zip(tokens, tokens[1:]), repeat(never)))
    rank = min(pair_ranks)
    while rank != never:
        i = pair_ranks.index(rank)
        tokens[i] = merged = results[rank]
        del tokens[i + 1], pair_ranks[i]
        pair_ranks[i - 1] = ranks.get((tokens[i - 1], merged), never)
        pair_ranks[i] = ranks.get((merged, tokens[i + 1]), never)
        if rank not in pair_ranks:
            rank = min(pair_ranks)
    return tokens[:-1]


def merge_pairs_heap(tokens, ranks, results):
    """Do the same as merge_pairs() in O(n log n) instead of O(n²) steps, for n tokens.

    Pairs wait in a heap of ranks instead of being searched for, and the tokens form a linked list,
    from which one is removed without moving the others: `before` and `after` hold positions.
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
            if ranks.get((tokens[i], tokens[j])) == rank:  # else one of them has merged since
                tokens[i], tokens[j] = results[rank], None
                after[i] = after[j]
                before[after[i]] = i
                fresh += before[i], i


class WordCache(dict):
    """A cache word -> function(word), computed at the first look-up and kept for short words."""

    def __init__(self, function):
        self.function = function

    def __missing__(self, word):
        value = self.function(word)
        if len(word) <= SHORT_WORD:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = value
        return value


class Encoder:
    """A vocabulary: encode() turns a text into token ids, decode() turns them back.

    Attributes:
      encoder: dict, token (a str of byte symbols) -> id.
      decoder: dict, id -> token.
      byte_encoder: dict, byte -> symbol.
      byte_decoder: dict, symbol -> byte.
      bpe_ranks: dict, pair of tokens that merge -> rank; the lowest rank merges first.
      end_of_text: the id of <|endoftext|>; None if the vocabulary lacks it.
    """

    def __init__(self, encoder, merges, reachable=False):
        """Make an Encoder of a vocabulary.

        Args:
          encoder: dict, token -> id, with ids 0 to n - 1 and a token for each byte.
          merges: list of pairs of tokens that merge, by rank.
          reachable: whether the bytes of each token that merges make are known to merge to it.
        """
        self.encoder = encoder
        self.decoder = {i: token for token, i in encoder.items()}
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {symbol: byte for byte, symbol in self.byte_encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.end_of_text = encoder.get(END_OF_TEXT)
        self._byte_ids = [encoder[self.byte_encoder[byte]] for byte in range(256)]
        self._ranks = {(encoder[a], encoder[b]): rank for (a, b), rank in self.bpe_ranks.items()}
        self._results = [encoder[a + b] for a, b in merges]
        # A character that is no symbol (in a special token added to the vocabulary) means itself.
        bytes_of = {symbol: bytes([byte]) for symbol, byte in self.byte_decoder.items()}
        self._bytes = [b''.join(bytes_of.get(c) or c.encode('utf-8', 'replace')
                                for c in self.decoder[i]) for i in range(len(encoder))]
        whole_words = self._byte_ids + self._results if reachable else []
        self._ids = {self._bytes[i]: i for i in whole_words}
        self._words = WordCache(self._encode_word)

    def encode(self, text):
        """Return the list of a text's token ids. A lone surrogate counts as U+FFFD."""
        return self._encode(
            text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace'))

    def decode(self, tokens):
        """Return the text of a sequence of token ids. Bytes that are not UTF-8 become U+FFFD.

        Raises ValueError if an element is not a token id of this vocabulary.
        """
        return self.decode_bytes(tokens).decode('utf-8', 'replace')

    def encode_bytes(self, data):
        """Return the list of the token ids of bytes, which need not be UTF-8.

        A byte that is not UTF-8 counts as neither letter nor number nor white space.
        """
        return self._encode(data.decode('utf-8', 'surrogateescape'))

    def decode_bytes(self, tokens):
        """Return the bytes of a sequence of token ids. Raises ValueError as decode() does."""
        return b''.join(map(self._token_bytes, tokens))

    def bpe(self, token):
        """Return the tokens of one word: symbols -> merged symbols with spaces between them."""
        word = bytes(map(self.byte_decoder.__getitem__, token)).decode('utf-8', 'surrogateescape')
        return ' '.join(map(self.decoder.__getitem__, self._words[word]))

    def _encode(self, text):
        return list(chain.from_iterable(map(self._words.__getitem__, pretokenize(text))))

    def _encode_word(self, word):
        data = word.encode('utf-8', 'surrogateescape')
        if data in self._ids:
            return [self._ids[data]]
        in_pieces = self._ids and len(data) > PIECE
        return self._merge_pieces(data) if in_pieces else self._merge(data)

    def _merge(self, data):
        tokens = list(map(self._byte_ids.__getitem__, data))
        merge = merge_pairs if len(data) <= SHORT_WORD else merge_pairs_heap
        return merge(tokens, self._ranks, self._results)

    def _merge_pieces(self, data):
        """Do the same as _merge(), piece by piece, if the bytes of each token merge to it.

        Pieces need no merge across their border if the two tokens at it, on their own, need none.
        Else the tokens before the border are taken back, and join the piece after it.
        """
        tokens = []
        for start in range(0, len(data), PIECE):
            piece, n_back = data[start:start + PIECE], 1
            new = self._merge(piece)
            while tokens and not self._is_merged(tokens[-1:] + new[:1]):
                piece = self.decode_bytes(tokens[-n_back:]) + piece
                del tokens[-n_back:]
                n_back *= 2
                new = self._merge(piece)
            tokens += new
        return tokens

    def _is_merged(self, tokens):
        return self._merge(self.decode_bytes(tokens)) == tokens

    def _token_bytes(self, token):
        integer = isinstance(token, numbers.Integral) and not isinstance(token, bool)
        if not integer or not 0 <= token < len(self._bytes):
            raise ValueError(f'{token!r} is not a token id; the ids of this vocabulary are the '
                             f'integers 0 to {len(self._bytes) - 1}')
        return self._bytes[token]


def get_encoder(model_name, models_dir='models'):
    """Return the Encoder of the model in the directory models_dir/model_name.

    Raises FileNotFoundError if encoder.json or vocab.bpe is missing, and ValueError if one of them
    is damaged; the message says where.
    """
    directory = os.path.join(models_dir, model_name)
    encoder = read_encoder(os.path.join(directory, 'encoder.json'))
    path = os.path.join(directory, 'vocab.bpe')
    merges = read_merges(path, encoder)
    with open(path, 'rb') as file:
        reachable = hashlib.sha256(file.read()).hexdigest() == RELEASED_MERGES
    return Encoder(encoder, merges, reachable)


def read_encoder(path):
    """Read encoder.json: return a dict, token -> id. Raises ValueError if it is damaged."""
    text = read_text(path)
    try:
        encoder = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f'not JSON: {error}') from error
    if not isinstance(encoder, dict) or any(type(i) is not int for i in encoder.values()):
        raise damaged(path, 'not a dictionary from tokens to ids')
    if sorted(encoder.values()) != list(range(len(encoder))):
        raise damaged(path, f'the ids of its {len(encoder)} tokens are not 0 to {len(encoder) - 1}')
    for byte, symbol in bytes_to_unicode().items():
        if symbol not in encoder:
            raise damaged(path, f'the token {symbol!r}, for the byte {byte}, is missing')
    return encoder


def read_merges(path, encoder):
    """Read vocab.bpe: return the list of pairs that merge. Raises ValueError if it is damaged."""
    merges = []
    for number, line in enumerate(read_text(path).rstrip('\n').split('\n'), start=1):
        if number == 1 and line.startswith('#version'):
            continue
        pair = tuple(line.split())
        if len(pair) != 2:
            raise damaged(path, f'line {number}, {line[:40]!r}, is not a pair of tokens')
        for token in (*pair, ''.join(pair)):
            if token not in encoder:
                raise damaged(path, f'line {number}: {token!r} is not in encoder.json')
        merges.append(pair)
    return merges


def read_text(path):
    """Read a UTF-8 file without its byte order mark, every line ending as a newline."""
    try:
        with open(path, encoding='utf-8-sig') as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise damaged(path, 'not UTF-8 text') from error


def damaged(path, detail):
    """Return the error that a file is damaged."""
    return ValueError(f'{path} is damaged ({detail}); download the model again')
