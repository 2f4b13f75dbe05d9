"""The user's terminal: editing lines, their history, commands, and words that stay whole."""

import contextlib
import os
import re
import shutil
import sys
import unicodedata

from gpt2 import files

try:
    import readline  # line editing and history for input(), where there is one
except ImportError:
    readline = None

QUOTES = '"""'
CONTINUATION = '... '
HISTORY_LINES = 1000
HELP = '''A line is a prompt, and so is what you paste. """ opens and closes one of several lines,
at its ends or on lines of their own.
Ctrl-C stops the samples or clears the line, and pressed again, it leaves, as does Ctrl-D.

/set NAME VALUE  change an option, for example: /set temperature 0.8
/set NAME        give it back the value it had at the start
/set             show all options
/help            show this'''


@contextlib.contextmanager
def line_editing():
    """Within it, lines are UTF-8 whatever the locale, and a terminal's are kept for next time."""
    if readline is None or not sys.stdin.isatty():
        yield
        return
    for setting in ('input-meta on', 'output-meta on', 'convert-meta off',
                    'enable-bracketed-paste on'):
        readline.parse_and_bind(f'set {setting}')
    path = None
    # It works without a history as well.
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        path = os.path.join(files.cache_folder(), 'history.json')
        for line in files.read_json(path)['lines']:
            readline.add_history(line)
    try:
        yield
    finally:
        n = readline.get_current_history_length()
        lines = [readline.get_history_item(i + 1) for i in range(max(0, n - HISTORY_LINES), n)]
        if path is not None:
            with contextlib.suppress(OSError, UnicodeError):
                files.write_json(path, {'lines': lines})


def read(prompt):
    """Return a line, or several between triple quotes. Raises KeyboardInterrupt, and EOFError.

    Ctrl-C clears what is typed. It leaves only if pressed twice: the first may have been meant for
    a sample that has just ended.
    """
    interrupted = False
    while True:
        try:
            line = input(prompt)
            return read_block(line) if line.startswith(QUOTES) else line
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            print()
            print('Ctrl-C once more, or Ctrl-D, leaves.', file=sys.stderr)


def read_block(line):
    """Return the text that a line with opening quotes begins.

    It is without the quotes and the line ends beside them: as if it were pasted.
    """
    text = line[len(QUOTES):]
    while not text.endswith(QUOTES):
        text += '\n' + input(CONTINUATION)
    return re.sub(r'\A\n|\n\Z', '', text[:-len(QUOTES)])


def is_command(line):
    """Return whether a line is one of the commands in HELP; a prompt may begin with a slash."""
    return re.fullmatch(r'/help|/set(\s.*)?', line.strip()) is not None


def wrapper():
    """Return a function from the next piece of a text, and whether it is the last, to its display.

    At a terminal, words that would be cut at its edge begin a new line; a word is held back until
    it is complete.
    """
    if not sys.stdout.isatty():
        return lambda text, last: text
    width, column, word = shutil.get_terminal_size().columns, 0, ''

    def wrap(text, last):
        nonlocal column, word
        shown = ''
        for char in text:
            word += char
            if char.isspace() or cell_width(char) > 1:
                shown, word = shown + place(word), ''
        if last:
            shown, word = shown + place(word), ''
        return shown

    def place(word):
        """Return a word, on a new line if it does not fit in this one, and move the column."""
        nonlocal column
        size = sum(map(cell_width, word.rstrip()))
        is_cut = column and column + size > width >= size
        if is_cut:
            column = 0
        for char in word:
            column = 0 if char == '\n' else column + cell_width(char)
        return '\n' + word if is_cut else word

    return wrap


def cell_width(char):
    """Return how many cells of a terminal a character takes, about."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in 'WF' else 1
