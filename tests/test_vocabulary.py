"""Vocabularies learned from text: by definition, as tokenizers learns them, and as a command."""
import collections
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import learn_vocabulary
import reference
from encoder import get_encoder
from gpt2 import model_dir
from gpt2.training import vocabulary
from helpers import DATA, contents, needs_data, only_long

pytestmark = pytest.mark.pure

END = '<|endoftext|>'
SYMBOLS = reference.byte_symbols()
ORDER = sorted(range(256), key=lambda byte: (chr(byte) not in SYMBOLS, byte))  # of their bytes


@pytest.fixture
def learn(call, tmp_path):
    """Run the command in this process on a text: return (status, stdout, stderr)."""
    def run(text, *flags):
        (tmp_path / 'text.txt').write_bytes(text.encode('utf-8'))
        return call(learn_vocabulary.learn_vocabulary, learn_vocabulary.OPTIONS,
                    tmp_path / 'text.txt', '--output', 'words', '--models_dir', tmp_path, *flags)
    return run


def merged(parts, pair):
    """Return parts of a word with a pair merged, from left to right."""
    if len(parts) < 2:
        return parts
    if tuple(parts[:2]) == pair:
        return [''.join(pair)] + merged(parts[2:], pair)
    return parts[:1] + merged(parts[1:], pair)


def learn_by_definition(words, n_tokens):
    """Return tokens and merges: count all pairs, merge the most frequent one, and so on."""
    split = {word: [SYMBOLS[ORDER.index(byte)] for byte in word.encode('utf-8')] for word in words}
    tokens, merges = list(SYMBOLS), []
    while len(tokens) < n_tokens:
        counts = collections.Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                counts[pair] += words[word]
        pair = min(counts, default=None, key=lambda pair: (-counts[pair],
                                                           *map(tokens.index, pair)))
        if pair is None or counts[pair] < 2:
            break
        merges += [pair] * (pair not in merges)
        tokens += [''.join(pair)] * (''.join(pair) not in tokens)
        split = {word: merged(parts, pair) for word, parts in split.items()}
    return tokens, merges


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.sampled_from('abcé '), min_size=1, max_size=9),
                       st.integers(1, 5), max_size=9), st.integers(256, 275))
def test_what_is_learned_is_what_the_definition_says(words, n_tokens):
    assert vocabulary.learn_merges(words, n_tokens) == learn_by_definition(words, n_tokens)


@needs_data
@pytest.mark.parametrize('name, size', [
    ('tinyshakespeare.txt', 1000), pytest.param('wiki.test.tokens', 3000, marks=only_long)])
def test_what_is_learned_is_what_tokenizers_learns(name, size):
    tokenizers = pytest.importorskip('tokenizers')
    words = vocabulary.count_words([f'{DATA}/{name}'], held_out=0.1)
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                             use_regex=False)
    peer.train_from_iterator(words.elements(), tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1, min_frequency=2, show_progress=False, initial_alphabet=SYMBOLS))
    merges = [tuple(pair) for pair in json.loads(peer.to_str())['model']['merges']]
    learned = vocabulary.learn_merges(words, size - 1)
    assert learned.merges == merges and len(learned.tokens) == size - 1


def test_a_learned_vocabulary_gives_the_tokens_of_tokenizers(learn, tmp_path):
    tokenizers = pytest.importorskip('tokenizers')
    draw = random.Random(0)
    words = ['the', "whale's", 'naïve', '漢字', '1851', 'sea', 'seas', END, '...\n', '\t ']
    text = ' '.join(draw.choice(words) for _ in range(3000))
    assert learn(text, '--size', 290)[0] == 0
    files = [str(tmp_path / 'words' / name) for name in model_dir.VOCABULARY]
    peer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = get_encoder('words', str(tmp_path))
    for sample in (text, 'Another text: the whales, thesea 漢 字 ééé <|endoftext|>'):
        assert encoder.encode(sample) == peer.encode(sample).ids
        assert encoder.decode(encoder.encode(sample)) == sample


def test_a_learned_vocabulary_is_in_the_official_format(learn, tmp_path):
    text = 'sea seas ' * 90 + 'naïve ' * 20 + END + ' zq' * 40
    status, stdout, stderr = learn(text, '--size', 262)
    assert (status, stdout) == (0, '')
    assert stderr == (f'{tmp_path / "words"} has 262 tokens; to train a model with it, give '
                      'train.py --scratch --model_name words\n')
    lines = (tmp_path / 'words' / 'vocab.bpe').read_bytes().decode('utf-8').split('\n')
    assert lines[0] == '#version: 0.2' and lines[-1] == ''
    opened = model_dir.open_model_dir('words', str(tmp_path), weights=False)
    assert opened.hparams.n_vocab == 262 and opened.hparams.n_layer == 12
    assert list(opened.encoder.encoder) == SYMBOLS + [
        line.replace(' ', '') for line in lines[1:-1]] + [END]
    assert list(opened.encoder.encoder.values()) == list(range(262))
    assert sorted(contents(tmp_path / 'words')) == ['encoder.json', 'hparams.json', 'vocab.bpe']


def test_nothing_is_learned_from_what_is_held_out(learn, tmp_path):
    """Nor from <|endoftext|>, which has no bytes of text."""
    learn('ab ' * 80 + END * 99 + 'zq ' * 20, '--held_out', 0.2)
    tokens = get_encoder('words', str(tmp_path)).encoder
    assert 'ab' in tokens and 'zq' not in tokens
    assert not any('endoftext' in token for token in tokens if token != END)


@pytest.mark.parametrize('held_out, whole', [('0.6', 1), ('0.5', 2), ('0.4', 2), ('0', 4)])
def test_the_learned_part_ends_between_characters(tmp_path, held_out, whole):
    (tmp_path / 'text').write_bytes('漢漢漢漢'.encode())
    assert vocabulary.count_words([str(tmp_path / 'text')], float(held_out)) == {'漢' * whole: 1}


def test_words_of_several_files_and_formats_are_counted(tmp_path):
    (tmp_path / 'a.txt').write_text('one two')
    (tmp_path / 'b.jsonl').write_text('{"text": "one"}\n{"text": "\\ud800 two"}\n')
    paths = [str(tmp_path / name) for name in ('a.txt', 'b.jsonl')]
    assert vocabulary.count_words(paths, 0) == {'one': 2, ' two': 2, '?': 1}


def test_a_text_may_give_fewer_tokens(learn, tmp_path):
    status, _, stderr = learn('abab abab', '--held_out', 0)
    assert status == 0 and 'has 259 tokens, as no other pair occurs twice;' in stderr
    assert len(get_encoder('words', str(tmp_path)).encoder) == 259


def test_long_words_are_learned_from_in_pieces():
    """Otherwise each merge would read all of a text without spaces."""
    pairs = vocabulary.Pairs({'a' * 1000: 3})
    assert list(map(len, pairs.words)) == [256, 256, 256, 232]
    assert pairs.counts_of_words == [3] * 4


@pytest.mark.parametrize('flags, status, words', [
    ('--size 256', 2, '--size 257'), ('--size many', 2, "--size 'many'"),
    ('--held_out 1', 2, '--held_out'), ('--output a/b', 2, '--output a/b'),
    ('--output there', 1, 'there --output')])
def test_bad_flags_are_refused_in_one_line(refuse, tmp_path, flags, status, words):
    (tmp_path / 'text').write_text('A text.')
    (tmp_path / 'there').mkdir()
    arguments = [tmp_path / 'text', *(['--output', 'new'] * ('--output' not in flags))]
    found, message = refuse(learn_vocabulary.learn_vocabulary, learn_vocabulary.OPTIONS,
                            *arguments, *flags.split(), '--models_dir', tmp_path)
    assert found == status and all(word in message for word in words.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['text', 'there']


@pytest.mark.parametrize('content, words', [
    (None, 'No such file'), (b'caf\xe9', 'UTF-8 byte 3'), (b'', 'no text')])
def test_a_text_that_cannot_be_used(refuse, tmp_path, content, words):
    if content is not None:
        (tmp_path / 'text').write_bytes(content)
    status, message = refuse(learn_vocabulary.learn_vocabulary, learn_vocabulary.OPTIONS,
                             tmp_path / 'text', '--output', 'new', '--models_dir', tmp_path)
    assert status == 1 and str(tmp_path / 'text') in message
    assert all(word in message for word in words.split())
    assert not (tmp_path / 'new').exists()
