"""Byte-level BPE, learned: texts -> the words in them -> the pairs of tokens that merge.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", on the words
and the bytes of `encoder.py`: again and again the most frequent pair of neighbours becomes a token.
Of equals, the pair with the smaller ids does.
"""

import collections
import heapq
import os
import sys

from tqdm import tqdm

from encoder import END_OF_TEXT, bytes_to_unicode, pretokenize
from gpt2 import files
from gpt2.errors import UserError
from gpt2.training.data import find_files, read_pieces

SIZES = {'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}  # of 124M
LONGEST_WORD = 256  # bytes; longer words are learned from in pieces, as each merge reads a word

# `tokens`: without <|endoftext|>, in the order of their ids. `merges`: pairs of tokens, in order.
Vocabulary = collections.namedtuple('Vocabulary', 'tokens merges')


def learn(options):
    """Write a folder with the vocabulary that VocabularyOptions ask for. Raises UserError."""
    path = os.path.join(options.models_dir, options.output)
    if os.path.lexists(path):
        raise UserError(f'{path} exists already; give another --output')
    words = count_words(find_files(options.data), options.held_out)
    if not words:
        raise UserError(f'{options.data} has no text to learn from; give another file, or a '
                        'smaller --held_out')
    vocabulary = learn_merges(words, options.size - 1)
    try:
        os.makedirs(options.models_dir, exist_ok=True)
        with files.new_folder(path) as folder:
            write(vocabulary, folder)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}')
    n_tokens = len(vocabulary.tokens) + 1
    no_more = '' if n_tokens == options.size else ', as no other pair occurs twice'
    print(f'{path} has {n_tokens:,} tokens{no_more}; to train a model with it, give train.py '
          f'--scratch --model_name {options.output}', file=sys.stderr)


def count_words(paths, held_out):
    """Return how often each word occurs in texts, a dict; not in their last `held_out` share."""
    n_bytes = sum(len(text.encode('utf-8', 'replace')) for text in read_texts(paths, 'measuring'))
    n_bytes -= int(n_bytes * held_out)
    words = collections.Counter()
    for text in read_texts(paths, 'reading'):
        beginning = text.encode('utf-8', 'replace')[:n_bytes]
        n_bytes -= len(beginning)
        words.update(pretokenize(beginning.decode('utf-8', 'ignore')))  # no half characters
    return words


def read_texts(paths, description):
    """Yield texts without <|endoftext|>, in pieces that no word crosses, with a progress bar."""
    with tqdm(total=sum(map(os.path.getsize, paths)), unit='B', unit_scale=True, desc=description,
              leave=False, disable=None) as bar:
        for path in paths:
            for piece in read_pieces(path, bar.update):
                yield from piece.split(END_OF_TEXT)


def learn_merges(words, n_tokens):
    """Return the Vocabulary of at most so many tokens that BPE learns from words.

    It has fewer if no pair is left that occurs twice.

    Args:
      words: dict, word -> how often it occurs.
    """
    pairs = Pairs(words)
    tokens, merges = list(bytes_to_unicode().values()), {}
    ids = {token: i for i, token in enumerate(tokens)}
    with tqdm(total=n_tokens, initial=len(tokens), unit='token', desc='merging', leave=False,
              disable=None) as bar:
        while len(tokens) < n_tokens:
            pair = pairs.pop_most_frequent()
            if pair is None:
                break
            left, right = tokens[pair[0]], tokens[pair[1]]
            merges[left, right] = True
            if left + right not in ids:  # two pairs can make the same token
                ids[left + right] = len(tokens)
                tokens.append(left + right)
                bar.update()
            pairs.merge(pair, ids[left + right])
    return Vocabulary(tokens, list(merges))


class Pairs:
    """The pairs of neighbouring tokens in words.

    `words` are lists of ids, and `counts_of_words` says how often each occurs. `counts` says how
    often each pair occurs, and `places` in which words it does, or did before a merge. `heap` has
    each pair with a count, negative, that is at least its present one.
    """

    def __init__(self, words):
        byte_ids = {byte: i for i, byte in enumerate(bytes_to_unicode())}
        self.words, self.counts_of_words = [], []
        for word, count in words.items():
            data = [byte_ids[byte] for byte in word.encode('utf-8')]
            for start in range(0, len(data), LONGEST_WORD):
                self.words.append(data[start:start + LONGEST_WORD])
                self.counts_of_words.append(count)
        self.counts, self.places = collections.Counter(), collections.defaultdict(list)
        for number, word in enumerate(self.words):
            for pair in zip(word, word[1:]):
                self.counts[pair] += self.counts_of_words[number]
                self.places[pair].append(number)
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def pop_most_frequent(self):
        """Return the pair that occurs most often; None if no pair occurs twice."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            if self.counts[pair] < 2:
                continue
            if self.counts[pair] == -count:
                return pair
            heapq.heappush(self.heap, (-self.counts[pair], pair))
        return None

    def merge(self, pair, merged):
        """Merge a pair into one token wherever it is."""
        grown = set()
        for number in self.places.pop(pair):
            before = self.words[number]
            after = self.words[number] = merge_pair(before, pair, merged)
            if len(after) == len(before):  # it was merged before
                continue
            count = self.counts_of_words[number]
            for old in zip(before, before[1:]):
                self.counts[old] -= count
            for new in zip(after, after[1:]):
                self.counts[new] += count
                if merged in new:
                    self.places[new].append(number)
                    grown.add(new)
        for new in grown:
            heapq.heappush(self.heap, (-self.counts[new], new))


def merge_pair(word, pair, merged):
    """Return a word, a list of ids, with a pair merged from left to right."""
    left, right = pair
    result, i, last = [], 0, len(word) - 1
    while i <= last:
        if word[i] == left and i < last and word[i + 1] == right:
            result.append(merged)
            i += 2
        else:
            result.append(word[i])
            i += 1
    return result


def write(vocabulary, folder):
    """Write a Vocabulary, <|endoftext|> behind its tokens, and sizes of a model into a folder."""
    tokens = vocabulary.tokens + [END_OF_TEXT]
    files.write_json(os.path.join(folder, 'encoder.json'),
                     {token: i for i, token in enumerate(tokens)})
    files.write_file(os.path.join(folder, 'vocab.bpe'), [
        '#version: 0.2\n', *(f'{left} {right}\n' for left, right in vocabulary.merges)])
    files.write_json(os.path.join(folder, 'hparams.json'), dict(n_vocab=len(tokens), **SIZES))
