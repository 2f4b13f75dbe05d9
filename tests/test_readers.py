"""The readers and the de-tokenizers of the evaluation, on files in their published formats."""
import json
import os
import pathlib
import re

import pytest

from gpt2.errors import UserError
from gpt2.evaluation import detokenize, readers
from helpers import DATA, needs_data

pytestmark = pytest.mark.pure


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
    return str(path)


# ---- de-tokenizing -----------------------------------------------------------------------------

WIKI = [
    (' = = Early life = = ', '== Early life =='),
    (' ', ''),
    (' In 1 @,@ 234 days , the well @-@ known " Ship " ( 3 @.@ 5 m ) sank ; he didn \'t . ',
     'In 1,234 days, the well-known "Ship" (3.5 m) sank; he didn\'t.'),
    (" The ships ' crews and Mr. Smith 's U.S. wife : No. 6 of 1934 – 37 ! ",
     "The ships' crews and Mr. Smith's U.S. wife: No. 6 of 1934–37!"),
    (' It cost $ 5 , 20 % of the <unk> ; <unk> @-@ <unk> and 1 @,@ <unk> km / h . ',
     'It cost $5, 20% of the <unk>; <unk>-<unk> and 1,<unk> km/h.'),
    (' vitamin C . And so on ... ', 'vitamin C . And so on ...'),  # "C." is like an initial
]
PENN = [
    (" but it was n't black monday for investors ' funds ",
     "but it wasn't black monday for investors' funds"),
    (' the <unk> fell $ N to c$ N a share cities\\/abc said ',
     'the <unk> fell $N to c$N a share cities/abc said'),
    (" we 'll say they 're mr. smith 's ", "we'll say they're mr. smith's"),
]
NEWS = [
    ('" We do n\'t know , " Mr. Lee said ( again ) .', '"We don\'t know," Mr. Lee said (again).'),
    ("The $ 5 billion deal -- Japan 's -- fell 3 % .",
     "The $5 billion deal -- Japan's -- fell 3%."),
]


@pytest.mark.parametrize('style, line, text', [
    *[(detokenize.WIKITEXT, *case) for case in WIKI], *[(detokenize.PENN, *case) for case in PENN],
    *[(detokenize.NEWS, *case) for case in NEWS]])
def test_a_line_is_detokenized_and_restored(style, line, text):
    assert detokenize.detokenize(line, style) == text
    assert detokenize.tokenize(text, style) == line
    assert detokenize.detokenize_lines([line], style) == ([text], 0)


@pytest.mark.parametrize('line', [' 1,000th ', '  a b ', ' a , b', ' well-known '])
def test_a_line_that_cannot_be_restored_stays(line):
    """WikiText's tokenizer does not write such lines."""
    lines = [' one , two ', line]
    assert detokenize.detokenize_lines(lines, detokenize.WIKITEXT) == (['one, two', line], 1)


@needs_data
@pytest.mark.parametrize('name, read, style, n_words', [
    ('wiki.test.tokens', readers.read_wikitext, detokenize.WIKITEXT, 245569),
    ('ptb.test.txt', readers.read_ptb, detokenize.PENN, 82430)])
def test_real_files_are_detokenized_except_for_a_few_lines(name, read, style, n_words):
    path = os.path.join(DATA, name)
    lines = readers.read_lines(path)
    corpus = read(path)
    assert (corpus.n_words, corpus.n_lines) == (n_words, len(lines))
    assert corpus.n_raw < 0.005 * len(lines)
    *texts, end = corpus.texts[0].split('\n')
    assert end == ''
    restored = [detokenize.tokenize(text, style) == line for text, line in zip(texts, lines)]
    assert restored.count(True) == len(lines) - corpus.n_raw
    artefacts = r" @.@ | [,;:)]|\( | n't| 's\b|\\/"
    assert len(re.findall(artefacts, corpus.texts[0])) < 0.001 * len(
        re.findall(artefacts, '\n'.join(lines)))
    # All of the file was read.
    assert ''.join(line + '\n' for line in lines).encode('utf-8') == pathlib.Path(path).read_bytes()
    assert read(path, raw=True).texts[0].encode('utf-8') == pathlib.Path(path).read_bytes()


# ---- readers -----------------------------------------------------------------------------------

def test_lambada(tmp_path):
    passages = ['“Where’s the dog?” he asked.\n\nIt was in the garden', 'One line\nlast']
    path = write(tmp_path, 'lambada_test.jsonl',
                 ''.join(json.dumps({'text': passage}) + '\n' for passage in passages))
    assert readers.read_lambada(path) == [
        ('\n"Where\'s the dog?" he asked.\n\nIt was in the', ' garden'), ('\nOne line\n', 'last')]
    assert readers.read_lambada(path, limit=1, raw=True) == [
        ('“Where’s the dog?” he asked.\n\nIt was in the', ' garden')]


@needs_data
def test_real_lambada():
    path = os.path.join(DATA, 'lambada_test.jsonl')
    examples, raw = readers.read_lambada(path), readers.read_lambada(path, raw=True)
    assert len(examples) == len(raw) == 5153
    assert sum(bool(re.search('[‘’“”]', context + target)) for context, target in raw) == 1978
    for (context, target), (raw_context, raw_target) in zip(examples, raw):
        assert len(context + target) == 1 + len(raw_context + raw_target)
        assert not re.search('[‘’“”]', context + target)
        assert re.fullmatch(r' ?\S+', target)
        assert re.search(r'\s$', context) or target[0] == ' '


def cbt_question(answer='wood', choices='axe|tree|wood|king|door|hand|house|son|day|sea',
                 query="`` Give me my XXXXX , '' said he , and he did n't go -LRB- yet -RRB- ."):
    lines = [f"{i} Sentence {i} was here , by the old man 's door ." for i in range(1, 21)]
    return '\n'.join(lines) + f'\n21 {query}\t{answer}\t\t{choices}\n\n'


def test_cbt(tmp_path):
    path = write(tmp_path, 'cbtest_CN_valid_2000ex.txt', 2 * cbt_question())
    question, again = readers.read_cbt(path)
    assert question == again and [question] == readers.read_cbt(path, limit=1)
    context = ' '.join(f"Sentence {i} was here, by the old man's door." for i in range(1, 21))
    assert question.context == context + ' "Give me my'
    assert question.choices == [' axe', ' tree', ' wood', ' king', ' door', ' hand', ' house',
                                ' son', ' day', ' sea']
    assert question.rest == '," said he, and he didn\'t go (yet).'
    assert question.answer == 2
    raw, _ = readers.read_cbt(path, raw=True)
    assert raw.context.endswith(" man 's door . `` Give me my")
    assert raw.rest == " , '' said he , and he did n't go -LRB- yet -RRB- ."


def test_cbt_where_the_word_opens_the_sentence_or_a_quote(tmp_path):
    path = write(tmp_path, 'cbt', cbt_question(query="XXXXX said : `` wood ! ''")
                 + cbt_question(query="He cried , `` XXXXX ! ''"))
    first, second = readers.read_cbt(path)
    assert first.context.endswith('door.') and first.choices[2] == ' wood'
    assert first.rest == ' said: "wood!"'
    assert second.context.endswith('door. He cried, "') and second.choices[2] == 'wood'
    assert second.rest == '!"'


@pytest.mark.parametrize('read, name', [
    (readers.read_wikitext, 'wiki.test.tokens'), (readers.read_ptb, 'ptb.test.txt')])
def test_wikitext_and_ptb_are_one_text(tmp_path, read, name):
    path = write(tmp_path, name, ' \n one <unk> , N \n three \n')
    expected = '\none <unk>, N\nthree\n' if name.startswith('wiki') else '\none <unk> , N\nthree\n'
    assert read(path) == ([expected], 1 + 5 + 2, 0, 3)
    assert read(path, limit=2, raw=True) == ([' \n one <unk> , N \n'], 1 + 5, 0, 2)


def test_1bw_is_a_text_for_each_sentence(tmp_path):
    path = write(tmp_path, 'news.en.heldout-00000-of-00050', ''.join(
        line + '\n' for line, _ in NEWS))
    n_words = sum(len(line.split()) + 1 for line, _ in NEWS)
    assert readers.read_1bw(path) == ([text + '\n' for _, text in NEWS], n_words, 0, 2)


def test_enwik8_and_text8_are_read_from_their_ends(tmp_path):
    """As bytes: the cut may go through a character."""
    end = 'die Häuser größer €'.encode()[5:-1]
    with open(str(tmp_path / 'enwik8'), 'wb') as file:
        file.seek(95 * 10**6)
        file.write(end)
        file.truncate(10**8)
    data = readers.read_last_bytes(str(tmp_path / 'enwik8'))
    assert len(data) == 5 * 10**6 and data.startswith(end)
    assert readers.read_last_bytes(str(tmp_path / 'enwik8'), limit=3) == end[:3]


# ---- malformed files ---------------------------------------------------------------------------

GOOD = {'lambada': '{"text": "two words"}\n', 'cbt': cbt_question(), 'wikitext': ' a b \n',
        'ptb': ' a b \n', '1bw': 'a b\n'}


@pytest.mark.parametrize('kind', sorted(GOOD))
@pytest.mark.parametrize('bad, message', [
    (b'', 'is empty'), (b'\n', 'is empty'), (b'%s\xff\n', 'it is not UTF-8'),
    (b'%sa b', 'no end')])
def test_a_damaged_file_is_refused_with_the_number_of_the_line(tmp_path, kind, bad, message):
    good = GOOD[kind]
    path = write(tmp_path, 'file', bad.replace(b'%s', good.encode('utf-8')))
    with pytest.raises(UserError) as caught:
        getattr(readers, f'read_{kind}')(path)
    assert str(caught.value).startswith(path) and message in str(caught.value)
    if b'%s' in bad:
        number = good.count('\n') + 1
        assert f', line {number}: ' in str(caught.value)


@pytest.mark.parametrize('kind, text, line', [
    ('lambada', '{"text": "two words"}\n{"txt": "two words"}\n', 2),
    ('lambada', '{"text": "two words"}\n{"text": "two wo\n', 2),
    ('lambada', '["two words"]\n', 1), ('lambada', '{"text": 5}\n', 1),
    ('lambada', '{"text": "word"}\n', 1),
    ('cbt', cbt_question().replace('\n7 ', '\n8 '), 7),
    ('cbt', cbt_question() + '1 One .\n\n', 24),
    ('cbt', cbt_question() + '1 One .\n\n' + cbt_question(), 25),
    ('cbt', cbt_question() + '1 One .\n2 Two .\n', 24),
    ('cbt', cbt_question(query='There is no place .'), 21),
    ('cbt', cbt_question(query='XXXXX or XXXXX .'), 21),
    ('cbt', cbt_question(choices='wood|axe'), 21),
    ('cbt', cbt_question(answer='nothing'), 21),
    ('cbt', cbt_question().replace('\t\t', '\t'), 21)])
def test_a_malformed_line_is_refused_with_its_number(tmp_path, kind, text, line):
    path = write(tmp_path, 'file', text)
    with pytest.raises(UserError, match=f'^{re.escape(path)}, line {line}: '):
        getattr(readers, f'read_{kind}')(path)


def test_a_short_enwik8_is_refused(tmp_path):
    path = write(tmp_path, 'enwik8', b'x' * 1000)
    with pytest.raises(UserError, match='100,000,000'):
        readers.read_last_bytes(path)
    with pytest.raises(UserError, match='No such file'):
        readers.read_last_bytes(path + '0')
