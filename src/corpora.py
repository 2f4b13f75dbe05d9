"""The texts of the paper's zero-shot table, read from the files in which they are distributed.

Words in these files stand apart from their punctuation, contractions are cut in two, and some signs
are replaced. A language model of web text has not seen such text, so the paper undoes this with
"invertible de-tokenizers" (Radford et al. 2019, section 3.1); those here are of our own making.
That they are invertible makes the probability of the text that of the file.
"""

import collections
import json
import re

import cli

# Texts to predict word by word: strs, the number of words as the corpus counts them, with one more
# for each line end, and the numbers of lines that had to stay as distributed, and of all lines.
Corpus = collections.namedtuple('Corpus', 'texts n_words n_raw n_lines')

# A passage and what is to be predicted after it.
Cloze = collections.namedtuple('Cloze', 'context target')

# A question of the Children's Book Test: the context up to the missing word, the ten words to
# choose from, the rest of the sentence, and the number of the answer.
Question = collections.namedtuple('Question', 'context choices rest answer')

HUNDRED_MB = 10**8  # the size of enwik8 and of text8
TEST_BYTES = 5 * 10**6  # at their end, which by custom are the test set


# Files

def decode(path, data):
    """Returns the text of a file's bytes. Raises UserError: it is not UTF-8, or empty."""
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise bad_line(path, data.count(b'\n', 0, error.start) + 1, 'this is not UTF-8 text')
    if not text.strip():
        raise cli.UserError('%s is empty; get the file anew' % path)
    return text


def read_bytes(path, start=0):
    """Returns the bytes of a file from `start` on. Raises UserError."""
    try:
        with open(path, 'rb') as file:
            file.seek(start)
            return file.read()
    except OSError as error:
        raise cli.UserError('%s: %s' % (path, error.strerror))


def read_lines(path):
    """Returns the lines of a UTF-8 file, without their line ends. Raises UserError."""
    lines = re.split('\r?\n', decode(path, read_bytes(path)))
    if lines.pop():
        raise bad_line(path, len(lines) + 1, 'the line has no end; the file was cut short')
    return lines


def bad_line(path, number, problem):
    return cli.UserError('%s, line %d: %s; get the file anew' % (path, number, problem))


# LAMBADA (Paperno et al. 2016)

STRAIGHT_QUOTES = str.maketrans('\u2018\u2019\u201c\u201d', '\'\'""')


def read_lambada(path, limit=None, raw=False):
    """Reads `lambada_test.jsonl`, {"text": passage} a line: returns a list of Cloze.

    The target is the last word with the space before it. The preparation is the one that an author
    of the paper reported (issue 131 of the original repository): quotes are made straight, and a
    line break stands before the passage. With `raw` there is neither.
    """
    result = []
    for number, line in enumerate(read_lines(path)[:limit], 1):
        try:
            text = json.loads(line)['text'].strip()
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise bad_line(path, number, 'this is not an object with a "text"')
        if not raw:
            text = '\n' + text.translate(STRAIGHT_QUOTES)
        if len(text.split()) < 2:
            raise bad_line(path, number, 'the passage has less than two words')
        place = re.search(r' ?\S+$', text).start()
        result.append(Cloze(text[:place], text[place:]))
    return result


# Words that say little by themselves, and that no passage of LAMBADA should end with: articles,
# pronouns, prepositions, conjunctions, auxiliaries and a few adverbs, written out for this project.
STOP_WORDS = frozenset("""
a an the this that these those such
i me my mine myself we us our ours ourselves you your yours yourself yourselves
he him his himself she her hers herself it its itself they them their theirs themselves
who whom whose which what when where why how whether
and or but nor so yet if then than because as while until although though unless since
of at by for with about against between into through during before after above below to from up
down in out on off over under within without upon toward towards among across behind beside along
around near per via onto
am is are was were be been being have has had having do does did doing done
will would shall should can could may might must ought
not no none neither either both each every all any some few more most other another much many
again further once here there now just only too very also even ever never always still already
almost quite rather really perhaps
s t d ll m re ve don didn doesn isn wasn weren won wouldn couldn shouldn can't cannot hadn hasn
haven aren ain
""".split())


# The Children's Book Test (Hill et al. 2016)

def read_cbt(path, limit=None, raw=False):
    """Reads `cbtest_{CN,NE}_valid_2000ex.txt`: returns a list of Questions.

    A question has twenty lines of context with a number before each, and a line `21 SENTENCE` with
    XXXXX for the missing word, then a tab, the answer, two tabs, and ten choices with | between.
    Blank lines separate the questions.
    """
    result, context = [], []
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            if context:
                raise bad_line(path, number, 'the question ends before its line 21')
            continue
        place, _, sentence = line.partition(' ')
        if place != str(len(context) + 1):
            raise bad_line(path, number, 'the line should begin with %d' % (len(context) + 1))
        if len(context) < 20:
            context.append(sentence.rstrip())
            continue
        result.append(parse_question(path, number, context, sentence, raw))
        context = []
        if len(result) == limit:
            break
    if context:
        raise bad_line(path, len(lines), 'the file ends before line 21 of the question')
    return result


def parse_question(path, number, context, columns, raw):
    """Returns the Question of twenty sentences and the columns of the line after them."""
    columns = columns.rstrip().split('\t')
    if len(columns) != 4 or columns[0].split().count('XXXXX') != 1:
        raise bad_line(path, number, 'this is not a sentence with one XXXXX, the answer, nothing, '
                                     'and the choices, with tabs between')
    query, answer, _, choices = columns
    choices = choices.split('|')
    if len(choices) != 10 or choices.count(answer) != 1:
        raise bad_line(path, number, 'these are not ten choices with the answer among them')
    sentences = context + [query]
    if not raw:
        sentences = [join(brackets(sentence).split(), BOOKS).replace('`', "'")
                     for sentence in sentences]
    before, rest = ' '.join(sentences).rsplit('XXXXX', 1)
    space = ' ' * before.endswith(' ')  # which belongs to the tokens after it
    return Question(before[:len(before) - len(space)], [space + choice for choice in choices], rest,
                    choices.index(answer))


def brackets(line):
    """Undoes what the Penn Treebank writes for brackets and quotes. (There is no way back.)"""
    for name, sign in [('-LRB-', '('), ('-RRB-', ')'), ('-LSB-', '['), ('-RSB-', ']'),
                       ('``', '"'), ("''", '"')]:
        line = line.replace(name, sign)
    return line


# WikiText, the Penn Treebank and the One Billion Word Benchmark

def read_wikitext(path, limit=None, raw=False):
    """Reads `wiki.test.tokens` of WikiText-2 or -103 (Merity et al. 2017) as one text."""
    return read_stream(path, limit, raw, WIKITEXT)


def read_ptb(path, limit=None, raw=False):
    """Reads `ptb.test.txt`, the Penn Treebank as Mikolov et al. (2010) prepared it, as one text."""
    return read_stream(path, limit, raw, PENN)


def read_1bw(path, limit=None, raw=False):
    """Reads a `news.en.heldout-*` (Chelba et al. 2013), each of its sentences as a text."""
    corpus = read_stream(path, limit, raw, NEWS)
    return corpus._replace(texts=re.findall('.*\n', corpus.texts[0]))


def read_stream(path, limit, raw, style):
    """Returns the Corpus of a file whose lines make up one text."""
    lines = read_lines(path)[:limit]
    texts, n_raw = detokenize_lines(lines, raw, style)
    return Corpus([''.join(text + '\n' for text in texts)], count_words(lines), n_raw, len(lines))


def count_words(lines):
    """Returns the number of words of lines, each line's end being one."""
    return sum(len(line.split()) + 1 for line in lines)


def detokenize_lines(lines, raw, style):
    """Returns the de-tokenized lines, and how many had to stay as they are."""
    if raw:
        return lines, 0
    texts, n_raw = [], 0
    for line in lines:
        text = detokenize(line, style)
        if tokenize(text, style) != line:
            text = line
            n_raw += 1
        texts.append(text)
    return texts, n_raw


# How a corpus is tokenized. `ending`: what was cut from the end of a word; `margin`: what stands at
# both ends of a line; `signs`: a Sign for each sign within a word that was written in another way.
Style = collections.namedtuple('Style', 'ending margin signs')

# `tokenized` and `plain` are how it is written, and `where_tokenized` and `where_plain` the
# patterns of the places where one stands for the other.
Sign = collections.namedtuple('Sign', 'tokenized plain where_tokenized where_plain')

APOSTROPHE = r"'(?:s|re|ve|m|ll|d)|(?<=s)'"
STOP = r'[)"\],;:!?%]|(?<=[^.])\.'
PENN = Style("n't|" + APOSTROPHE, ' ', [Sign('\\/', '/', r'\\/', '/')])
NEWS = Style('%s|%s' % (PENN.ending, STOP), '', [])
BOOKS = Style(NEWS.ending + "|'", '', [])
WIKITEXT = Style("'t|%s|%s" % (APOSTROPHE, STOP), ' ', [
    Sign(' @-@ ', '-', ' @-@ ', r'(?<=\S)-(?=\S)'),
    Sign(' @,@ ', ',', ' @,@ ', r'(?<=[\d>]),(?=[\d<])'),  # a number may be an <unk>
    Sign(' @.@ ', '.', ' @.@ ', r'(?<=[\d>])\.(?=[\d<])'),
    Sign(' / ', '/', r'(?<=[\w>]) / (?=[\w<])', r'(?<=[\w>])/(?=[\w<])'),
    Sign(' – ', '–', r'(?<=\d) – (?=\d)', r'(?<=\d)–(?=\d)'),
    Sign('= ', '=', '= (?==)', '=(?==)')])

OPENING = re.compile(r'[("\[]|[A-Za-z]{0,2}[$£¥#]')  # stands right before a word

# A dot at the end of one of these belongs to it: letters with dots, and common abbreviations.
ABBREVIATION = re.compile(
    r'(?:^|(?<=[\s("\[-]))(?:(?:[A-Z]\.)*[A-Z]|No|Nos|St|Col|Gen|Dr|Mr|Mrs|Ms|Sr|Jr|Lt|Sgt|Capt|'
    r'Maj|Adm|Prof|Rev|Gov|Sen|Sens|Rep|Reps|Hon|Pres|vs|Inc|Bros|Co|Corp|Ltd|pp|al|etc|Ph\.D|'
    r'Jan|Feb|Aug|Sept|Oct|Nov|Dec|Calif|Conn|Mass|Mich|Fla|Pa|Va|Ga|Ill|Tex|Ave)\.$',
    re.IGNORECASE)


def detokenize(line, style):
    """Returns a line as people write it, from which `tokenize` makes the line again, if it can."""
    line = line.strip(style.margin) if style.margin else line
    for sign in style.signs:
        line = re.sub(sign.where_tokenized, lambda _, sign=sign: sign.plain, line)
    return join(line.split(' '), style)


def tokenize(text, style):
    """Returns the line that `detokenize` was given, if it can: the inverse, which is tried out."""
    line = ' '.join(word for part in text.split(' ') for word in split(part, style))
    for sign in reversed(style.signs):
        line = re.sub(sign.where_plain, lambda _, sign=sign: sign.tokenized, line)
    return style.margin + line + style.margin if line else style.margin


def join(words, style):
    """Joins words with spaces, except where people write none."""
    text, in_quotes, opening = '', False, True
    for word in words:
        closing = in_quotes if word == '"' else is_ending(text, word, style)
        text += word if opening or closing else ' ' + word
        opening = OPENING.fullmatch(word) and not closing
        in_quotes ^= word == '"'
    return text


def is_ending(text, word, style):
    """Says whether people write a word right after this text."""
    part = text[text.rfind(' ') + 1:] + word
    found = re.search('(?:%s)$' % style.ending, part)
    return found and found.group() == word and not ABBREVIATION.search(part)


def split(part, style):
    """Cuts what has no spaces in it into words: returns a list."""
    before, after = [], []
    found = OPENING.match(part)
    while found and found.end() < len(part):
        before.append(found.group())
        part = part[found.end():]
        found = OPENING.match(part)
    found = re.search('(?<=.)(?:%s)$' % style.ending, part)
    while found and not ABBREVIATION.search(part):
        after.insert(0, found.group())
        part = part[:found.start()]
        found = re.search('(?<=.)(?:%s)$' % style.ending, part)
    return before + [part] + after


# enwik8 and text8 (Mahoney 2006)

def read_bytes_at_end(path, limit=None, raw=False):
    """Reads the last 5,000,000 bytes of `enwik8` or `text8`, or the first `limit` of these.

    Raises:
      UserError: the file does not have its 100,000,000 bytes.
    """
    data = read_bytes(path, start=HUNDRED_MB - TEST_BYTES)
    if len(data) != TEST_BYTES:
        raise cli.UserError('%s has not the 100,000,000 bytes of the original; get the file anew'
                            % path)
    return data[:limit]
