"""Test src/encoder.py, byte-level BPE, against its definition, tiktoken and tokenizers.

The released vocabulary comes from the folder in GPT2_TEST_DATA; all other vocabularies are made
here. Nothing measures time: the work that long words cause is counted.
"""

import codecs
import collections
import doctest
import functools
import json
import os
import random
import subprocess
import sys
import tracemalloc
import unicodedata
from unittest import mock

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder as encoder_module
from encoder import Encoder, get_encoder
from helpers import DATA, LONG, SRC

pytestmark = pytest.mark.pure

MODELS = SRC.parent / 'models'
END_OF_TEXT = '<|endoftext|>'

# The words of GPT-2, as tiktoken writes them.
PATTERN = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s")

# GPT-2's byte symbols, in the order of their ids.
VISIBLE = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
SYMBOLS = [chr(b) for b in VISIBLE] + [chr(256 + i) for i in range(len(HIDDEN))]
SYMBOL_OF_BYTE = dict(zip(VISIBLE + HIDDEN, SYMBOLS))

TINY_MERGES = [('h', 'e'), ('Ġ', 't'), ('l', 'l'), ('Ġt', 'he'), ('he', 'll'), ('hell', 'o'),
               ('Ġ', 'Ġ'), ('ĠĠ', 'ĠĠ'), ('Ã', '©'), ('a', 'a'), ('aa', 'aa'), ("'", 'll'),
               ('1', '2'), ('Ċ', 'Ċ'), ('ð', 'Ł'), ('ðŁ', 'ĺ'), ('e', 'r'), ('l', 'o'), ('lo', 'w')]

CORPUS = {
    'english': "The quick brown fox didn't jump; it's he who'd seen they're WE'LL I'm 'tis O'Neil.",
    'contractions': "'s'd'm't'll've're 'S 'LL I'LL can't''s 's x's' ''' it’s they’re 'llama 'real",
    'digits': '0 1 12 123 1234567890 3.14 1,000,000 1e-5 x2y 007 ½ ² Ⅳ ٣٤٥ １２３ 〇一二 ₁ 1st 2nd',
    'spaces': ' a  b   c    d     e\t\tf \t g' + ' ' * 99,
    'unicode spaces': 'g\u00a0h\u2003i\u3000j \u00a0 k \u200b l \u2028m\x85n\u180eo\u3000\u3000p',
    'leading and trailing': '   \n\n  start and end  \n \n\n   ',
    'one trailing space': 'word ',
    'one trailing newline': 'word\n',
    'newlines': 'a\nb\n\nc\n\n\nd\n e \n\n f\n\t\n',
    'crlf': 'a\r\nb\r\n\r\nc\r\n \r\n d\r\r\n',
    'controls': 'a\x00b \x00\x00 \x01\x7f\x1c\x1d\x1e\x1f x\x1c y\x0b\x0c \ufeffbom',
    'code': 'def f(x):\n    if x == 1:\n\t\treturn {"a": [1, 2]}  # !?\n\n\nprint(f(1)//2)->x!=y\n',
    'markup': '<p class="a">&amp;</p> https://a.b/c?d=e#f <|endoftext|> <|endoftext|><| |>',
    'german and french': 'Größe, Übermut, Straße; garçon, œuvre, « déjà vu » — l’été à Noël…',
    'turkish and polish': 'İstanbul ığdır ŞIRNAK — zażółć gęślą jaźń, Łódź',
    'decomposed': 'e\u0301 n\u0303o A\u030a\u0327 \u0301\u0301 a\u0301 1\u0301 !\u0301',
    'greek and cyrillic': 'Ὀδυσσεύς, ἄνδρα μοι ἔννεπε; Съешь ещё этих мягких булок, їжак',
    'hebrew and arabic': 'שָׁלוֹם עֲלֵיכֶם "שלום" العربية: السَّلامُ عليكم ١٢٣؟ فارسی‌ها',
    'indic': 'हिन्दी में कुछ शब्द। বাংলা ভাষা தமிழ் తెలుగు ಕನ್ನಡ മലയാളം १२३',
    'thai and khmer': 'ภาษาไทยไม่มีช่องว่าง ๑๒๓ ភាសាខ្មែរ ພາສາລາວ မြန်မာဘာသာ',
    'chinese and japanese': '天地玄黄，宇宙洪荒。「吾輩は猫である」名前はまだ無い。ｶﾀｶﾅ 漢字',
    'korean': '안녕하세요 세계! 나랏말싸미 듕귁에 달아 \u1112\u1161\u11ab',
    'rare scripts': 'ᚠᚢᚦᚨᚱᚲ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ⴰⵎⴰⵣⵉⵖ 𐌰𐌱𐌲 𒀀𒀁 𓀀𓀁 𝔄𝔅 𝟙𝟚𝟛 𠀀𠀁',
    'emoji': '😀😃 👍🏽👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☺︎ 1️⃣ 🏴󠁧󠁢󠁳󠁣󠁴󠁿 a😀b 😀 😀  😀',
    'symbols': '€£¥₿ ∑∫√∞≠≤ ←↑→ ░▒▓ ♠♣♥♦ ©®™ №℃ ¡¿§¶†‡ _a_b__c__ ---- ==== ****** ~~~',
    'private and last': '\ue000\uf8ff \U000f0000 \U0010fffd \ufffd \uffff',
    'long words': 'Donaudampfschifffahrtskapitän' * 3 + ' ' + '=' * 77 + ' ' + '9' * 50,
    'empty': '',
}


# ---- vocabularies ------------------------------------------------------------------------------


def write_vocabulary(directory, merges=TINY_MERGES):
    """Write a vocabulary in the official formats, with the special token last."""
    tokens = SYMBOLS + [a + b for a, b in merges] + [END_OF_TEXT]
    directory.mkdir(exist_ok=True)
    (directory / 'encoder.json').write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (directory / 'vocab.bpe').write_bytes(
        ('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges)).encode('utf-8'))
    return directory


@pytest.fixture
def vocabulary(tmp_path):
    """A directory with the files of the tiny vocabulary, for a test to change."""
    return write_vocabulary(tmp_path / 'tiny')


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    models = tmp_path_factory.mktemp('models')
    write_vocabulary(models / 'tiny')
    return get_encoder('tiny', models_dir=str(models))


@functools.lru_cache(maxsize=None)
def load_released():
    return get_encoder('gpt2-vocab', models_dir=DATA)


@pytest.fixture(scope='module')
def released():
    if not DATA:
        pytest.skip('needs the released vocabulary: set GPT2_TEST_DATA')
    return load_released()


@pytest.fixture(scope='module')
def peer(released):
    """tiktoken with the released vocabulary, read here from its files."""
    tiktoken = pytest.importorskip('tiktoken', reason='needs tiktoken')
    byte_of = {symbol: bytes([byte]) for byte, symbol in SYMBOL_OF_BYTE.items()}
    with open(os.path.join(DATA, 'gpt2-vocab', 'encoder.json'), encoding='utf-8') as file:
        ids = json.load(file)
    special = {END_OF_TEXT: ids.pop(END_OF_TEXT)}
    ranks = {b''.join(byte_of[c] for c in token): i for token, i in ids.items()}
    return tiktoken.Encoding('gpt2', pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def read_data(name):
    with open(os.path.join(DATA, name), encoding='utf-8', newline='') as file:
        return file.read()


# ---- texts -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def assigned_characters():
    """Return a dict, general category -> its characters, for all categories but surrogates.

    These are the characters that the Unicode of this Python assigns. Where they are compared with
    tiktoken, on Python 3.10 and later, that is Unicode 13 or slightly newer.
    """
    characters = collections.defaultdict(list)
    for character in map(chr, range(sys.maxunicode + 1)):
        characters[unicodedata.category(character)].append(character)
    del characters['Cn'], characters['Cs']  # unassigned, surrogates
    return dict(characters)


def any_text():
    """Texts with every general category equally often, mixed with ASCII, spaces and fragments."""
    category = st.deferred(lambda: st.sampled_from(sorted(assigned_characters())).flatmap(
        lambda name: st.sampled_from(assigned_characters()[name])))
    ascii_character = st.integers(0, 127).map(chr)
    space = st.sampled_from([' ', '  ', '   ', '\n', '\n\n', '\r\n', '\t', '\x1c', '\u3000'])
    fragment = st.sampled_from(["'", "'s", "'ll", "'RE", 'the', ' of', '12', '...', END_OF_TEXT])
    return st.lists(st.one_of(category, ascii_character, space, fragment), max_size=40).map(''.join)


# ---- the definition ----------------------------------------------------------------------------


def merge_by_definition(tokens, merges):
    """Merge a list of strings as BPE is defined: the first merge of the list, everywhere, first."""
    while True:
        pairs = set(zip(tokens, tokens[1:]))
        pair = next((pair for pair in merges if pair in pairs), None)
        if pair is None:
            return tokens
        merged = tokens[:1]
        for token in tokens[1:]:
            if (merged[-1], token) == pair:
                merged[-1] += token
            else:
                merged.append(token)
        tokens = merged


def merges_of(letters, size):
    """Lists of merges of these letters in any order: a token may come before its parts."""
    def grow(indices):
        tokens, merges = list(letters), []
        for i, j in indices:
            pair = tokens[i % len(tokens)], tokens[j % len(tokens)]
            if pair not in merges:
                tokens.append(pair[0] + pair[1])
                merges.append(pair)
        return merges
    indices = st.tuples(st.integers(0, 99), st.integers(0, 99))
    return st.lists(indices, max_size=size).map(grow).flatmap(
        lambda merges: st.one_of(st.just(merges), st.permutations(merges)))


def vocabulary_of(merges):
    """Return an Encoder of the bytes and these merges."""
    tokens = dict.fromkeys(SYMBOLS + [a + b for a, b in merges])
    return Encoder({token: i for i, token in enumerate(tokens)}, merges)


@settings(deadline=None)
@given(merges_of('ab', 12), st.text('ab', min_size=1, max_size=80))
def test_both_ways_to_merge_follow_the_definition(merges, word):
    tiny = vocabulary_of(merges)
    expected = merge_by_definition(list(word), merges)
    assert tiny.bpe(word) == ' '.join(expected)
    for merge in encoder_module.merge_pairs, encoder_module.merge_pairs_heap:
        tokens = [tiny.encoder[letter] for letter in word]
        assert merge(tokens, tiny._ranks, tiny._results) == [tiny.encoder[t] for t in expected]


def test_a_merge_applies_everywhere_before_an_earlier_merge_that_it_makes_possible():
    merges = [('aa', 'a'), ('a', 'a')]  # out of order: the first line needs the second
    tiny = vocabulary_of(merges)
    for text in 'a' * 4, 'a' * 40:
        assert tiny.encode(text) == [tiny.encoder['aa']] * (len(text) // 2)
    assert tiny.encode('aaaaa') == [tiny.encoder['aa'], tiny.encoder['aaa']]


def test_the_example_in_the_module_docstring_is_true():
    result = doctest.testmod(encoder_module)
    assert result.attempted >= 4 and result.failed == 0


def test_the_symbols_of_bytes_are_in_the_order_of_the_released_ids():
    assert encoder_module.bytes_to_unicode() == SYMBOL_OF_BYTE
    assert list(encoder_module.bytes_to_unicode().values()) == SYMBOLS


# ---- what other people's code reads ------------------------------------------------------------


def encode_in_the_historic_way(vocabulary, text):
    """Encode a text word by word through the attributes, as code that extends the original does."""
    tokens = []
    for word in encoder_module.UNICODE_WORD.findall(text):
        symbols = ''.join(vocabulary.byte_encoder[byte] for byte in word.encode('utf-8'))
        tokens += [vocabulary.encoder[token] for token in vocabulary.bpe(symbols).split(' ')]
    return tokens


def decode_in_the_historic_way(vocabulary, tokens):
    symbols = ''.join(vocabulary.decoder[token] for token in tokens)
    data = bytes(vocabulary.byte_decoder[symbol] for symbol in symbols)
    return data.decode('utf-8', 'replace')


def test_attributes_of_the_tiny_vocabulary(tiny):
    tokens = SYMBOLS + [a + b for a, b in TINY_MERGES] + [END_OF_TEXT]
    assert tiny.encoder == {token: i for i, token in enumerate(tokens)}
    assert tiny.decoder == dict(enumerate(tokens))
    assert tiny.byte_encoder == SYMBOL_OF_BYTE
    assert tiny.byte_decoder == {symbol: byte for byte, symbol in SYMBOL_OF_BYTE.items()}
    assert tiny.bpe_ranks == {pair: rank for rank, pair in enumerate(TINY_MERGES)}
    assert tiny.bpe_ranks is tiny.bpe_ranks
    assert tiny.end_of_text == len(tokens) - 1


def test_bpe_by_hand(tiny):
    assert tiny.bpe('hello') == 'hello'
    assert tiny.bpe('hellolowlo') == 'hello low lo'
    assert tiny.bpe('ĠtheĠÃ©') == 'Ġthe Ġ Ã©'
    assert tiny.bpe('a' * 35) == ' '.join(['aaaa'] * 8 + ['aa', 'a'])
    assert tiny.bpe('x') == 'x'
    assert tiny.bpe('Ã') == 'Ã'  # half a character


@pytest.mark.parametrize('name', sorted(CORPUS))
def test_encoding_through_the_attributes_gives_the_same_tokens(tiny, name):
    tokens = encode_in_the_historic_way(tiny, CORPUS[name])
    assert tokens == tiny.encode(CORPUS[name])
    assert decode_in_the_historic_way(tiny, tokens) == CORPUS[name]


def test_bpe_never_returns_the_special_token(tiny, small):
    for vocabulary in tiny, small:
        assert END_OF_TEXT not in vocabulary.bpe(END_OF_TEXT).split(' ')


def test_an_encoder_works_without_the_special_token():
    vocabulary = vocabulary_of(TINY_MERGES)
    assert vocabulary.decode(vocabulary.encode('hello')) == 'hello'
    assert vocabulary.end_of_text is None


# ---- words -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(any_text(), st.integers(1, 5))
def test_cutting_a_text_into_chunks_cuts_no_word(text, length):
    chunk = regex.compile(f'.{{1,{length}}}\\s*\\S*', regex.DOTALL)
    with mock.patch.object(encoder_module, 'CHUNK', chunk):
        words = list(encoder_module.pretokenize(text))
    assert words == encoder_module.UNICODE_WORD.findall(text)
    assert ''.join(words) == text


@pytest.mark.parametrize('middle', [
    '', ' ', '  ', '   ', '\n', ' \n ', '\n\n\nx', '\u3000\u3000', '\x1c', '!\x1c!', "'s", ' a',
    'é ', '12', '. '])
def test_words_at_the_edge_of_a_chunk_stay_whole(middle):
    for before in range(1015, 1030):
        for letter in 'x', ' ', 'é', '\n':
            text = letter * before + middle + 'tail  of it'
            words = list(encoder_module.pretokenize(text))
            assert words == encoder_module.UNICODE_WORD.findall(text)


def test_the_ascii_pattern_finds_the_same_words():
    characters = [chr(i) for i in range(128)]
    texts = [a + b + c for a in characters for b in characters for c in " aZ0'!\n\x1c"]
    texts += ["it's we'll I'LL 'd've  x1 _\t\t9"]
    for text in texts:
        assert encoder_module.ASCII_WORD.findall(text) == encoder_module.UNICODE_WORD.findall(text)


def test_words_of_a_text_by_hand():
    text = "they'll  see 12 ...\n\nOK \n"
    words = list(encoder_module.pretokenize(text))
    assert words == ['they', "'ll", ' ', ' see', ' 12', ' ...', '\n', '\n', 'OK', ' \n']


# ---- encode and decode -------------------------------------------------------------------------


def test_tiny_vocabulary_by_hand(tiny):
    def ids(*tokens):
        return [tiny.encoder[token] for token in tokens]

    assert tiny.encode('hello the low') == ids('hello', 'Ġthe', 'Ġ', 'low')
    assert tiny.encode("he'll é12 \n\n") == ids('he', "'ll", 'Ġ', 'Ã©', '12', 'Ġ', 'ĊĊ')
    assert tiny.encode('aaaaaaa') == ids('aaaa', 'aa', 'a')
    assert tiny.encode('😀') == ids('ðŁĺ', 'Ģ')
    assert tiny.encode('') == []


@pytest.mark.parametrize('name', sorted(CORPUS))
def test_corpus_round_trips(tiny, name):
    tokens = tiny.encode(CORPUS[name])
    assert tiny.decode(tokens) == CORPUS[name]
    assert all(type(token) is int for token in tokens)


@settings(deadline=None)
@given(st.one_of(any_text(), st.text()))
def test_any_text_without_surrogates_round_trips(tiny, text):
    assert tiny.decode(tiny.encode(text)) == text


@pytest.mark.parametrize('text, meant', [
    ('\ud800', '\ufffd'), ('\udfff', '\ufffd'), ('a\udc80b', 'a\ufffdb'), ('x \ud83d', 'x \ufffd'),
    ('\udc00\ud800', '\ufffd\ufffd'), ('\ud83dA\ude00', '\ufffdA\ufffd'),
    ('\ud83d\ude00', '😀'),                        # a pair is not lone: it is a character
    ('\ud83d\ud83d\ude00\ude00', '\ufffd😀\ufffd'),
])
def test_a_lone_surrogate_counts_as_the_replacement_character(tiny, text, meant):
    assert tiny.encode(text) == tiny.encode(meant)
    assert tiny.decode(tiny.encode(text)) == meant


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text().map(lambda text: text.encode('utf-8')[1:-1])))
def test_any_bytes_round_trip(tiny, data):
    assert tiny.decode_bytes(tiny.encode_bytes(data)) == data


@settings(deadline=None)
@given(st.text())
def test_the_bytes_of_a_text_have_the_tokens_of_the_text(tiny, text):
    assert tiny.encode_bytes(text.encode('utf-8')) == tiny.encode(text)


def test_end_of_text_is_ordinary_text_to_encode(tiny):
    special = tiny.end_of_text
    assert special == len(tiny.encoder) - 1
    tokens = tiny.encode(f'a{END_OF_TEXT}b {END_OF_TEXT}')
    assert special not in tokens
    assert tiny.decode(tokens) == f'a{END_OF_TEXT}b {END_OF_TEXT}'
    assert tiny.decode([special]) == END_OF_TEXT


def test_a_special_token_may_contain_any_character():
    tiny = Encoder({token: i for i, token in enumerate(SYMBOLS + ['<a b 漢>', END_OF_TEXT])}, [])
    assert tiny.decode([256, *tiny.encode('é'), 257]) == '<a b 漢>é' + END_OF_TEXT


def test_decode_replaces_what_is_not_utf_8(tiny):
    assert tiny.decode(tiny.encode('é')[:1]) == 'é'
    halves = [tiny.encoder['Ã'], tiny.encoder['©']]
    assert tiny.decode(halves) == 'é'
    assert tiny.decode(halves[:1]) == '\ufffd'
    assert tiny.decode([*tiny.encode('ab'), *halves[1:], *tiny.encode('c')]) == 'ab\ufffdc'
    for byte in range(256):
        expected = bytes([byte, 65]).decode('utf-8', 'replace')
        assert tiny.decode([tiny.encoder[SYMBOL_OF_BYTE[byte]], tiny.encoder['A']]) == expected


@pytest.mark.parametrize('dtype', ['int32', 'int64', 'uint16'])
def test_decode_takes_arrays_and_their_elements(tiny, dtype):
    tokens = tiny.encode('hello the low é')
    array = np.array(tokens, dtype=dtype)
    assert tiny.decode(array) == 'hello the low é'
    assert tiny.decode([array[0]]) == 'hello'
    assert tiny.decode(iter(tokens)) == 'hello the low é'
    assert tiny.decode([]) == tiny.decode(array[:0]) == ''


@pytest.mark.parametrize('token', [
    -1, 276, 10 ** 30, np.int64(-1), np.int32(276), True, False, np.bool_(True), 1.0, np.float32(1),
    '1', None, (1,)], ids=repr)
def test_decode_names_what_is_not_an_id_and_the_range_of_ids(tiny, token):
    with pytest.raises(ValueError) as caught:
        tiny.decode([0, token])
    message = str(caught.value)
    assert '\n' not in message
    assert repr(token) in message and '0 to 275' in message


def test_the_module_imports_neither_tensorflow_nor_numpy():
    program = 'import sys, encoder; print({"tensorflow", "numpy"} & set(sys.modules))'
    output = subprocess.check_output([sys.executable, '-c', program], cwd=str(SRC))
    assert output.split() == [b'set()']


# ---- work and memory ---------------------------------------------------------------------------


class CountingDict(dict):
    """A dict that counts its look-ups."""

    lookups = 0

    def get(self, *args):
        self.lookups += 1
        return super().get(*args)


def count_work(merges, text):
    """Return how often encode() looks up the rank of a pair, and check what it returns."""
    vocabulary = vocabulary_of(merges)
    ranks = vocabulary._ranks = CountingDict(vocabulary._ranks)
    with mock.patch.object(encoder_module, 'merge_pairs', side_effect=AssertionError('too long')):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    return ranks.lookups


@pytest.mark.parametrize('kind', ['random', 'a', ' ', '\n', '1', '=', 'é', 'ab', ' \n', "'"])
def test_the_work_on_a_long_word_is_proportional_to_its_length(kind):
    letters = 'abcdefgh' if kind == 'random' else kind
    merges, tokens, draw = [], [*'abcdefgh1=ĠĊ', "'", 'Ã©'], random.Random(0)
    merges.append(('Ã', '©'))
    for letter in 'a1=ĠĊ':                       # doubling: letter, its pair, fours, eights ...
        for power in range(8):
            merges.append((letter * 2 ** power,) * 2)
    while len(merges) < 800:
        pair = draw.choice(tokens), draw.choice(tokens)
        if pair not in merges and len(pair[0] + pair[1]) < 9:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    merges = list({a + b: (a, b) for a, b in reversed(merges)}.values())[::-1]

    def word(n):
        draw = random.Random(1)
        return ''.join(draw.choice(letters) for _ in range(n)) if kind == 'random' else letters * n

    small, large = (count_work(merges, word(n)) for n in (500, 8000))
    byte_count = len(word(8000).encode('utf-8'))
    assert byte_count <= large <= 6 * byte_count
    assert large <= 17 * small


@pytest.mark.parametrize('text', ['a', ' ', '\n', '7', '!', 'é', '漢'])
def test_a_very_long_word_round_trips(tiny, text):
    n = 200000 if LONG else 50000
    assert tiny.decode(tiny.encode(text * n)) == text * n


@given(st.text('ab', min_size=1) | st.text('etaoin shrdlu', min_size=1) | st.text(min_size=1),
       st.integers(1, 9))
def test_the_pieces_of_a_long_word_give_the_same_tokens(released, word, size):
    data = word.encode('utf-8', 'replace')
    with mock.patch.object(encoder_module, 'PIECE', size):
        assert released._merge_pieces(data) == released._merge(data)


@pytest.mark.parametrize('word', ['a', 'ab', 'ACGT', '0123456789', '=', '漢字', '\\x00', 'lorem'])
def test_real_pieces_give_the_same_tokens(released, word):
    data = (word * 10**6).encode('utf-8')[:3 * encoder_module.PIECE + 7]
    assert released._merge_pieces(data) == released._merge(data)


def test_a_long_word_takes_bounded_memory(released):
    def peak(text):
        tracemalloc.start()
        released.encode(text)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    text = 'abcdefghij' * 50000
    released.encode(text[:100000])
    assert peak(text) - peak(text[:100000]) < 20 * 400000


def test_the_word_cache_is_bounded_and_leaves_long_words_out():
    tiny = vocabulary_of(TINY_MERGES)
    words = [f'{letter}{number}' for letter in 'abcdefgh' for number in range(40)]
    text = ' '.join(words)
    expected = tiny.encode(text)
    with mock.patch.object(encoder_module, 'CACHED_WORDS', 10):
        small = vocabulary_of(TINY_MERGES)
        sizes = set()
        for word in words:
            small.encode(word)
            sizes.add(len(small._words))
        assert max(sizes) == 10
        assert small.encode(text) == expected == small.encode(text)
    tiny._words.clear()
    tiny.encode('a' * 10000 + ' ' + '=' * 33 + ' b')
    assert list(tiny._words) == [' b']


def test_changing_a_returned_list_does_not_change_the_cache(tiny):
    first = tiny.encode('hello')
    first.append('changed')
    assert tiny.encode('hello') == first[:-1]


# ---- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize('change', [
    lambda data: data.replace(b'\n', b'\r\n'),
    lambda data: codecs.BOM_UTF8 + data,
    lambda data: codecs.BOM_UTF8 + data.replace(b'\n', b'\r\n'),
    lambda data: data.rstrip(b'\n'),
    lambda data: data + b'\n\n',
], ids=['CRLF', 'BOM', 'BOM and CRLF', 'no last newline', 'newlines at the end'])
def test_line_endings_and_byte_order_marks_do_not_matter(vocabulary, tiny, change):
    for name in 'encoder.json', 'vocab.bpe':
        path = vocabulary / name
        path.write_bytes(change(path.read_bytes()))
    changed = get_encoder('tiny', models_dir=str(vocabulary.parent))
    assert changed.encoder == tiny.encoder
    for text in CORPUS.values():
        assert changed.encode(text) == tiny.encode(text)


def test_ids_may_be_in_any_order(vocabulary, tiny):
    tokens = sorted(tiny.encoder)
    random.Random(0).shuffle(tokens)
    items = [(token, i) for i, token in enumerate(tokens)]
    random.Random(1).shuffle(items)
    (vocabulary / 'encoder.json').write_text(json.dumps(dict(items)))
    shuffled = get_encoder('tiny', models_dir=str(vocabulary.parent))
    token_of = {i: token for token, i in tiny.encoder.items()}
    for text in CORPUS.values():
        ids = shuffled.encode(text)
        assert ids == [shuffled.encoder[token_of[i]] for i in tiny.encode(text)]
        assert shuffled.decode(ids) == text


def test_the_version_line_may_be_missing_even_where_a_merge_starts_with_a_hash(tmp_path):
    write_vocabulary(tmp_path / 'hash', [('#', '#'), ('##', '#')])
    path = tmp_path / 'hash' / 'vocab.bpe'
    path.write_bytes(path.read_bytes().split(b'\n', 1)[1])
    vocabulary = get_encoder('hash', models_dir=tmp_path)
    assert vocabulary.encode('###') == [vocabulary.encoder['###']]


def test_a_vocabulary_without_merges_is_the_bytes(tmp_path):
    write_vocabulary(tmp_path / 'bytes', [])
    plain = get_encoder('bytes', models_dir=tmp_path)
    assert len(plain.encoder) == 257
    assert plain.encode('é a') == [plain.encoder[symbol] for symbol in ['Ã', '©', 'Ġ', 'a']]


def edit_json(edit):
    """Return a change of encoder.json that edits the dictionary in it."""
    def change(data):
        vocabulary = json.loads(data.decode('utf-8'))
        edit(vocabulary)
        return json.dumps(vocabulary).encode('utf-8')
    return change


DAMAGE = {
    'empty encoder.json': ('encoder.json', lambda data: b'', ['JSON', 'line 1']),
    'cut encoder.json': ('encoder.json', lambda data: data[:1000], ['JSON', 'line 1']),
    'web page': ('encoder.json', lambda data: b'<html>\n<body>', ['JSON']),
    'deep JSON': ('encoder.json', lambda data: b'[' * 200000, ['JSON']),
    'huge number': ('encoder.json', lambda data: b'{"a": %s}' % (b'1' * 5000), []),
    'binary encoder.json': ('encoder.json', lambda data: b'\xff\xfe\x00', ['UTF-8']),
    'list': ('encoder.json', lambda data: b'["a", "b"]', ['dictionary']),
    'number': ('encoder.json', lambda data: b'5', ['dictionary']),
    'empty dictionary': ('encoder.json', lambda data: b'{}', ["'!'", 'byte 33']),
    'id is text': ('encoder.json', edit_json(lambda d: d.update({'a': '1'})), ['ids']),
    'id is a float': ('encoder.json', edit_json(lambda d: d.update({'a': 64.0})), ['ids']),
    'id is a bool': ('encoder.json', edit_json(lambda d: d.update({'"': True})), ['ids']),
    'id is null': ('encoder.json', edit_json(lambda d: d.update({'a': None})), ['ids']),
    'id twice': ('encoder.json', edit_json(lambda d: d.update({'a': 0})), ['ids', '0 to 275']),
    'id too large': ('encoder.json', edit_json(lambda d: d.update({'a': 276})), ['0 to 275']),
    'id negative': ('encoder.json', edit_json(lambda d: d.update({'!': -1})), ['0 to 275']),
    'id missing': ('encoder.json', edit_json(lambda d: d.pop('hello')), ['0 to 274']),
    'byte missing': ('encoder.json', edit_json(lambda d: d.update(zz=d.pop('Ġ'))),
                     ["'Ġ'", 'byte 32']),
    'empty vocab.bpe': ('vocab.bpe', lambda data: b'', ['line 1']),
    'binary vocab.bpe': ('vocab.bpe', lambda data: data + b'\xff\xff', ['UTF-8']),
    'one part': ('vocab.bpe', lambda data: data + b'aa\n', ['line 21', "'aa'", 'pair']),
    'three parts': ('vocab.bpe', lambda data: data + b'a a a\n', ['line 21', "'a a a'", 'pair']),
    'cut line': ('vocab.bpe', lambda data: data[:-3], ['line 20', "'lo'", 'pair']),
    'two files in one': ('vocab.bpe', lambda data: data + data, ['line 21', "'#version:'"]),
    'empty line': ('vocab.bpe', lambda data: data.replace(b'\nh e\n', b'\n\nh e\n'),
                   ['line 2', "''", 'pair']),
    'long line': ('vocab.bpe', lambda data: data + b'a' * 10 ** 6, ['line 21', 'pair']),
    'unknown result': ('vocab.bpe', lambda data: data + b'a b\n',
                       ['line 21', "'ab'", 'encoder.json']),
    'unknown left part': ('vocab.bpe', lambda data: data + b'zz a\n', ['line 21', "'zz'"]),
    'unknown right part': ('vocab.bpe', lambda data: data + b'a zz\n', ['line 21', "'zz'"]),
    'not a symbol': ('vocab.bpe', lambda data: data + '漢 字\n'.encode(), ['line 21', "'漢'"]),
}


@pytest.mark.parametrize('name', sorted(DAMAGE))
def test_the_message_of_a_damaged_file_says_which_what_is_wrong_and_what_to_do(vocabulary, name):
    file, change, fragments = DAMAGE[name]
    path = vocabulary / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError) as caught:
        get_encoder('tiny', models_dir=str(vocabulary.parent))
    message = str(caught.value)
    assert message.startswith(f'{path} is damaged (')
    assert message.endswith('); download the model again')
    assert '\n' not in message and len(message) < len(str(path)) + 250
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize('file', ['encoder.json', 'vocab.bpe'])
def test_the_error_of_a_missing_file_names_it(vocabulary, file):
    (vocabulary / file).unlink()
    with pytest.raises(FileNotFoundError) as caught:
        get_encoder('tiny', models_dir=str(vocabulary.parent))
    assert caught.value.filename == str(vocabulary / file)


# ---- the released vocabulary, and tiktoken -----------------------------------------------------


def test_released_vocabulary(released):
    assert len(released.encoder) == 50257
    assert released.encoder[END_OF_TEXT] == 50256
    assert [released.encoder[symbol] for symbol in SYMBOLS] == list(range(256))
    assert released.encode('Hello world') == [15496, 995]
    assert released.decode([15496, 995, 50256]) == 'Hello world' + END_OF_TEXT


def test_attributes_of_the_released_vocabulary_are_what_its_files_say(released):
    assert released.encoder == json.loads(read_data('gpt2-vocab/encoder.json'))
    assert released.decoder == {i: token for token, i in released.encoder.items()}
    lines = read_data('gpt2-vocab/vocab.bpe').split('\n')
    assert lines[0].startswith('#version') and lines[-1] == '' and len(lines) == 50002
    assert released.bpe_ranks == {tuple(line.split()): i for i, line in enumerate(lines[1:-1])}
    assert released.end_of_text == 50256


def test_every_released_merge_makes_its_token(released):
    for token in range(50256):
        ids = [released._byte_ids[byte] for byte in released.decode_bytes([token])]
        merged = encoder_module.merge_pairs(list(ids), released._ranks, released._results)
        assert merged == [token]
        if token % 10 == 0:
            merged = encoder_module.merge_pairs_heap(ids, released._ranks, released._results)
            assert merged == [token]


def test_only_tokens_of_the_released_merges_skip_merging(released, tiny):
    assert sorted(released._ids.values()) == list(range(50256))
    assert not tiny._ids


def test_bpe_is_that_of_tokenizers(released):
    models = pytest.importorskip('tokenizers.models', reason='needs tokenizers')
    files = [os.path.join(DATA, 'gpt2-vocab', name) for name in ('encoder.json', 'vocab.bpe')]
    peer = models.BPE.from_file(*files)
    draw = random.Random(0)
    words = [''.join(draw.choice(SYMBOLS) for _ in range(draw.randrange(1, 60)))
             for _ in range(200)]
    for text in [*CORPUS.values(), read_data('tinyshakespeare.txt')[:20000]]:
        words += [''.join(map(SYMBOL_OF_BYTE.get, word.encode('utf-8')))
                  for word in [text, *text.split(' ')] if word]
    for word in [END_OF_TEXT, *words]:
        assert released.bpe(word).split(' ') == [token.value for token in peer.tokenize(word)]


@pytest.mark.parametrize('name', ['tinyshakespeare.txt', 'wiki.test.tokens'])
def test_files_have_the_tokens_of_tiktoken_and_round_trip(released, peer, name):
    text = read_data(name)
    tokens = released.encode(text)
    assert tokens == peer.encode_ordinary(text)
    assert released.decode(tokens) == text
    crlf = text[:100000].replace('\n', '\r\n')
    assert released.encode(crlf) == peer.encode_ordinary(crlf)


@pytest.mark.parametrize('name', sorted(CORPUS))
def test_the_corpus_has_the_tokens_of_tiktoken(released, peer, name):
    text = CORPUS[name]
    assert released.encode(text) == peer.encode_ordinary(text)
    for end in range(min(len(text), 40)):  # and each start of it: a text may end anywhere
        assert released.encode(text[:end]) == peer.encode_ordinary(text[:end])


@settings(deadline=None, max_examples=2000 if LONG else 200)
@given(text=any_text())
def test_any_text_has_the_tokens_of_tiktoken(released, peer, text):
    tokens = released.encode(text)
    assert tokens == peer.encode_ordinary(text)
    assert released.decode(tokens) == text


def test_every_character_has_the_tokens_of_tiktoken(released, peer):
    for characters in assigned_characters().values():
        # Of large categories (ideographs, Hangul, private use) every n-th character is tried.
        for character in characters[::1 + len(characters) // 5000]:
            text = f'a{character}1{character}!{character} {character}  {character}\n{character}'
            assert released.encode(text) == peer.encode_ordinary(text), hex(ord(character))


@pytest.mark.parametrize('text', ['\ud800', 'a \udc80b', '\ud83d\ude00', '\udc00\ud800 x\ud83d'])
def test_surrogates_have_the_tokens_of_tiktoken(released, peer, text):
    assert released.encode(text) == peer.encode_ordinary(text)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2 ** 32),
       letters=st.sampled_from(['ab', 'etaoin', 'étà', '漢字', '=-', '01']))
def test_long_words_have_the_tokens_of_tiktoken(released, peer, seed, letters):
    draw = random.Random(seed)
    text = ''.join(draw.choice(letters) for _ in range(draw.randrange(2000)))
    assert released.encode(text) == peer.encode_ordinary(text)


def test_decoded_texts_are_those_of_tiktoken(released, peer):
    draw = random.Random(0)
    for _ in range(500):  # random tokens: most of these are not UTF-8
        tokens = [draw.randrange(50257) for _ in range(draw.randrange(30))]
        assert released.decode(tokens) == peer.decode(tokens)


# ---- the model that comes with the project -----------------------------------------------------


@pytest.fixture(scope='module')
def small():
    if not (MODELS / '1M').is_dir():
        pytest.skip('needs models/1M')
    return get_encoder('1M', models_dir=str(MODELS))


def test_the_small_model_has_its_own_vocabulary(small):
    assert small.end_of_text == len(small.encoder) - 1 < 50256
    assert [small.encoder[symbol] for symbol in SYMBOLS] == list(range(256))
    text = 'First Citizen:\nBefore we proceed any further, hear me speak.\n'
    assert len(small.encode(text)) < len(text) / 2
    for sample in CORPUS.values():
        assert small.decode(small.encode(sample)) == sample
