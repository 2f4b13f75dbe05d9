"""De-tokenizers: from a line as a corpus has it to a line as people write it, and back.

In the files of the corpora, words stand apart from their punctuation, contractions are split, and
some signs are replaced. A language model of web text has not seen such text, so the paper undoes
this with "invertible de-tokenizers" (Radford et al. 2019, section 3.1); these are our own. Because
they are invertible, the probability of the text is that of the file. To add one, add a Style.
"""

import collections
import re

# How a corpus is tokenized. `ending`: a pattern of what is split off the end of a word; `margin`:
# what stands at both ends of a line; `signs`: a Sign for each sign that is replaced.
Style = collections.namedtuple('Style', 'ending margin signs')

# A sign, `plain` and as it is `tokenized`, and a pattern of the places where each is replaced.
Sign = collections.namedtuple('Sign', 'tokenized plain where_tokenized where_plain')

APOSTROPHE = r"'(?:s|re|ve|m|ll|d)|(?<=s)'"
PUNCTUATION = r'[)"\],;:!?%]|(?<=[^.])\.'
PENN = Style(f"n't|{APOSTROPHE}", ' ', [Sign('\\/', '/', r'\\/', '/')])
NEWS = Style(f'{PENN.ending}|{PUNCTUATION}', '', [])
BOOKS = Style(f"{NEWS.ending}|'", '', [])
WIKITEXT = Style(f"'t|{APOSTROPHE}|{PUNCTUATION}", ' ', [
    Sign(' @-@ ', '-', ' @-@ ', r'(?<=\S)-(?=\S)'),
    Sign(' @,@ ', ',', ' @,@ ', r'(?<=[\d>]),(?=[\d<])'),  # a number may be an <unk>
    Sign(' @.@ ', '.', ' @.@ ', r'(?<=[\d>])\.(?=[\d<])'),
    Sign(' / ', '/', r'(?<=[\w>]) / (?=[\w<])', r'(?<=[\w>])/(?=[\w<])'),
    Sign(' – ', '–', r'(?<=\d) – (?=\d)', r'(?<=\d)–(?=\d)'),
    Sign('= ', '=', '= (?==)', '=(?==)')])

OPENING = r'[("\[]|[A-Za-z]{0,2}[$£¥#]'  # stands right before a word

# Whatever ends in one of these keeps its dot: letters with dots, and common abbreviations.
ABBREVIATION = re.compile(
    r'(?:^|(?<=[\s("\[-]))(?:(?:[A-Z]\.)*[A-Z]|No|Nos|St|Col|Gen|Dr|Mr|Mrs|Ms|Sr|Jr|Lt|Sgt|Capt|'
    r'Maj|Adm|Prof|Rev|Gov|Sens?|Reps?|Hon|Pres|vs|Inc|Bros|Co|Corp|Ltd|pp|al|etc|Ph\.D|Jan|'
    r'Feb|Aug|Sept|Oct|Nov|Dec|Calif|Conn|Mass|Mich|Fla|Pa|Va|Ga|Ill|Tex|Ave)\.$', re.IGNORECASE)


def detokenize_lines(lines, style):
    """Return the de-tokenized lines, and the number of those that had to stay as they are."""
    texts = [detokenize(line, style) for line in lines]
    exact = [tokenize(text, style) == line for text, line in zip(texts, lines)]
    texts = [text if same else line for text, line, same in zip(texts, lines, exact)]
    return texts, exact.count(False)


def detokenize(line, style):
    """Return a line as people write it. `tokenize` restores most lines."""
    line = line.strip(style.margin)
    for sign in style.signs:
        line = re.sub(sign.where_tokenized, lambda _, sign=sign: sign.plain, line)
    return join_words(line.split(' '), style)


def tokenize(text, style):
    """Return the line that `detokenize` made a text from, if that can be restored."""
    line = ' '.join(word for part in text.split(' ') for word in split_words(part, style))
    for sign in reversed(style.signs):
        line = re.sub(sign.where_plain, lambda _, sign=sign: sign.tokenized, line)
    return style.margin + line + style.margin if line else style.margin


def book_sentence(sentence):
    """Return a sentence of the Children's Book Test as people write it. (This has no inverse.)"""
    for name, sign in [('-LRB-', '('), ('-RRB-', ')'), ('-LSB-', '['), ('-RSB-', ']'),
                       ('``', '"'), ("''", '"')]:  # the brackets and quotes of the Penn Treebank
        sentence = sentence.replace(name, sign)
    return join_words(sentence.split(), BOOKS).replace('`', "'")


def join_words(words, style):
    """Join words with spaces, except where people write none."""
    text, in_quotes, opening = '', False, True
    for word in words:
        closing = in_quotes if word == '"' else is_ending(text, word, style)
        text += word if opening or closing else ' ' + word
        opening = re.fullmatch(OPENING, word) and not closing
        in_quotes ^= word == '"'
    return text


def is_ending(text, word, style):
    """Return whether people write a word right after this text."""
    part = text[text.rfind(' ') + 1:] + word
    found = re.search(f'(?:{style.ending})$', part)
    return found and found.group() == word and not ABBREVIATION.search(part)


def split_words(part, style):
    """Return the words of a text without spaces, a list."""
    start = re.match(f'(?:(?:{OPENING})(?=.))*', part).end()  # where the word begins
    before, part, after = re.findall(OPENING, part[:start]), part[start:], []
    while True:
        found = re.search(f'(?<=.)(?:{style.ending})$', part)
        if not found or ABBREVIATION.search(part):
            return [*before, part, *after]
        after.insert(0, found.group())
        part = part[:found.start()]
