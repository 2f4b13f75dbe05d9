"""Readers: from the files of the data sets, as they are distributed, to examples.

A reader is a function of a path, the number of examples to read (None: all) and whether to leave
the text `raw`, not de-tokenized. It raises a UserError that names the line if one is malformed.
"""

import collections
import csv
import functools
import io
import os
import re
import sys

from encoder import END_OF_TEXT
from gpt2 import files
from gpt2.errors import UserError
from gpt2.evaluation import detokenize

# A question of the Children's Book Test: the text before the missing word, the ten words to choose
# from, the rest of the sentence, and the index of the answer among the choices.
Question = collections.namedtuple('Question', 'context choices rest answer')

# Texts to predict word by word: strings, the number of words as the corpus counts them, where each
# line end is one, and the numbers of lines that had to stay as distributed and of all lines.
Corpus = collections.namedtuple('Corpus', 'texts n_words n_raw n_lines')


def read_lines(path):
    """Return the lines of a UTF-8 file without their line ends. Raises UserError."""
    lines = re.split('\r?\n', decode(path, files.read_bytes(path)))
    if lines.pop():
        raise bad_line(path, len(lines) + 1, 'the line has no end; the file was cut short')
    return lines


def decode(path, data):
    """Return the text of a file's bytes. Raises UserError if it is empty or not UTF-8."""
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise bad_line(path, data.count(b'\n', 0, error.start) + 1, 'it is not UTF-8')
    if not text.strip():
        raise UserError(f'{path} is empty; name another file')
    return text


def read_documents(path):
    """Return the documents of a file, or of stdin for -: dicts with at least a `text` and a `file`.

    A file that begins with { or is named *.jsonl holds JSON objects, one a line, each with a "text"
    and perhaps the "prompt" before it, a text or null. Any other is split at <|endoftext|>. Raises
    UserError if the file is missing, empty or malformed.
    """
    name = 'stdin' if path == '-' else path
    text = decode(name, sys.stdin.buffer.read() if path == '-' else files.read_bytes(path))
    if text.startswith('{') or path.endswith('.jsonl'):
        documents = [parse_document(name, number, line)
                     for number, line in enumerate(text.split('\n'), 1) if line.strip()]
    else:
        documents = [{'text': part} for part in text.split(END_OF_TEXT) if part.strip()]
    if not documents:
        raise UserError(f'{name} has no text; name another file')
    file = os.fsencode(name).decode('utf-8', 'replace')
    return [dict(document, file=file) for document in documents]


def parse_document(path, number, line):
    """Return the document in a line of a file. Raises UserError."""
    document = parse_line(path, number, line, 'text')
    if not isinstance(document.get('prompt'), (str, type(None))):
        raise bad_line(path, number, 'its "prompt" is not a text')
    return document


def parse_line(path, number, line, *fields):
    """Return the JSON object in a line. Raises UserError if one of its fields is not a text."""
    try:
        return files.parse_object(line, *fields)
    except ValueError as error:
        raise bad_line(path, number, error)


def bad_line(path, number, problem):
    """Return the UserError of a malformed line."""
    return UserError(f'{path}, line {number}: {problem}; correct the file or download it again')


def read_lambada(path, limit=None, raw=False):
    """Read LAMBADA (Paperno et al. 2016), `lambada_test.jsonl`: {"text": passage} a line.

    Returns pairs of a context and a target, the last word with the space before it. The preparation
    is the one that an author of GPT-2 reported (issue 131 of the original repository): quotes are
    made straight, and a line break stands before the passage. With `raw` there is neither.
    """
    examples = []
    for number, line in enumerate(read_lines(path)[:limit], 1):
        text = parse_line(path, number, line, 'text')['text'].strip()
        if not raw:
            text = '\n' + text.translate(str.maketrans('\u2018\u2019\u201c\u201d', '\'\'""'))
        if len(text.split()) < 2:
            raise bad_line(path, number, 'the passage has fewer than two words')
        start = re.search(r' ?\S+$', text).start()
        examples.append((text[:start], text[start:]))
    return examples


def read_cbt(path, limit=None, raw=False):
    """Read Children's Book Test (Hill et al. 2016), `cbtest_{CN,NE}_valid_2000ex.txt`: Questions.

    A question has twenty numbered lines of context, and a line `21 SENTENCE` with XXXXX for the
    missing word, a tab, the answer, two tabs, and ten choices with | between. A blank line follows.
    """
    questions, sentences = [], []
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        label, _, sentence = line.partition(' ')
        if label != str(len(sentences) + 1):
            raise bad_line(path, number, f'it must begin with {len(sentences) + 1}')
        sentences.append(sentence.rstrip())
        if len(sentences) == 21:
            questions.append(parse_question(path, number, sentences, raw))
            sentences = []
            if len(questions) == limit:
                break
    if sentences:
        raise bad_line(path, len(lines), 'the file ends before line 21 of the question')
    return questions


def parse_question(path, number, sentences, raw):
    """Return the Question of twenty sentences and the columns of the line after them."""
    columns = sentences[-1].split('\t')
    if len(columns) != 4 or columns[0].split().count('XXXXX') != 1:
        raise bad_line(path, number, 'it is not a sentence with one XXXXX, the answer, nothing, '
                                     'and the choices, with tabs between')
    query, answer, _, choices = columns
    choices = choices.split('|')
    if len(choices) != 10 or choices.count(answer) != 1:
        raise bad_line(path, number, 'it does not have ten choices with the answer among them')
    sentences = sentences[:-1] + [query]
    if not raw:
        sentences = [detokenize.book_sentence(sentence) for sentence in sentences]
    before, rest = ' '.join(sentences).rsplit('XXXXX', 1)
    space = ' ' if before.endswith(' ') else ''  # which belongs to the tokens after it
    return Question(before[:len(before) - len(space)], [space + choice for choice in choices], rest,
                    choices.index(answer))


def read_corpus(path, limit=None, raw=False, *, style, one_text=True):
    """Read a file tokenized in a Style, as one text or else one a line; return a Corpus."""
    lines = read_lines(path)[:limit]
    texts, n_raw = (lines, 0) if raw else detokenize.detokenize_lines(lines, style)
    texts = [text + '\n' for text in texts]
    n_words = sum(len(line.split()) + 1 for line in lines)
    return Corpus([''.join(texts)] if one_text else texts, n_words, n_raw, len(lines))


# WikiText (Merity et al. 2017), the Penn Treebank as Mikolov et al. (2010) prepared it, and the One
# Billion Word Benchmark (Chelba et al. 2013)
read_wikitext = functools.partial(read_corpus, style=detokenize.WIKITEXT)
read_ptb = functools.partial(read_corpus, style=detokenize.PENN)
read_1bw = functools.partial(read_corpus, style=detokenize.NEWS, one_text=False)


def read_last_bytes(path, limit=None, raw=False):
    """Return the last 5,000,000 bytes of `enwik8` or `text8` (Mahoney 2006), at most `limit`."""
    data = files.read_bytes(path)
    if len(data) != 10**8:
        raise UserError(f'{path} does not have the 100,000,000 bytes of the original; download it '
                        'again')
    return data[-5 * 10**6:][:limit]  # by custom the test set


def read_pairs(path):
    """Read pairs of texts to compare: dicts of texts `first`, `second`, `category`, and the rest.

    The file has a JSON object with these fields in each line.
    """
    lines = enumerate(decode(path, files.read_bytes(path)).split('\n'), 1)
    return [check_pair(path, number, parse_line(path, number, line, 'first', 'second', 'category'))
            for number, line in lines if line.strip()]


def check_pair(path, number, pair):
    """Return a pair. Raises UserError if one of its texts is empty."""
    for side in ('first', 'second'):
        if not pair[side]:
            raise bad_line(path, number, f'its {side} text is empty')
    return pair


# What the columns of CrowS-Pairs are called here.
CROWS_PAIRS = {'first': 'sent_more', 'second': 'sent_less', 'direction': 'stereo_antistereo',
               'category': 'bias_type'}


def read_crows_pairs(path):
    """Read CrowS-Pairs (Nangia et al. 2020), `crows_pairs_anonymized.csv`, as `read_pairs` does.

    `first` is `sent_more`, the more stereotypical sentence, in both directions, as the paper's
    metric has it. Of a `stereo` pair, `first` speaks of the disadvantaged group; of an `antistereo`
    pair, `second` does, and violates a stereotype.
    """
    rows = csv.reader(io.StringIO(decode(path, files.read_bytes(path)), newline=''), strict=True)
    try:
        header = next(rows)
        for column in CROWS_PAIRS.values():
            if column not in header:
                raise bad_line(path, 1, f'it names no column {column}')
        pairs = [crows_pair(path, rows.line_num, header, row) for row in rows if row]
    except csv.Error as error:
        raise bad_line(path, rows.line_num, error)
    if not pairs:
        raise UserError(f'{path} has no pairs; name another file')
    return pairs


def crows_pair(path, number, header, row):
    """Return the pair in a row that ends in line `number`. Raises UserError."""
    if len(row) != len(header):
        raise bad_line(path, number, f'it has {len(row)} columns, and the first line {len(header)}')
    values = dict(zip(header, row))
    pair = {name: values[column] for name, column in CROWS_PAIRS.items()}
    if pair['direction'] not in ('stereo', 'antistereo'):
        raise bad_line(path, number, 'its stereo_antistereo is neither stereo nor antistereo')
    return check_pair(path, number, pair)
