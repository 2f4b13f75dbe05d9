"""Options: frozen dataclasses that check themselves, for the commands and the Python interface.

    @dataclasses.dataclass(frozen=True)
    class SamplingOptions(Options):
        top_k: int = option(0, whole(0), 'choose among this many likeliest tokens; 0: among all')

`SamplingOptions(top_k=-1)` raises an OptionError. The command line takes the type and the help of
the flag --top_k from the same line.
"""

import collections
import dataclasses
import math
import numbers
import os
import re
import reprlib

from gpt2.errors import OptionError

LARGEST_INT = 2**31 - 1
LONGEST_NUMBER = 40  # characters of a number on the command line

# The values that an option takes. `wanted`: in words. `accepts`: whether a value is one of them.
# `parse`: from a flag's text to a value; a text that cannot be parsed stays a text.
Kind = collections.namedtuple('Kind', 'wanted accepts parse')


def whole(minimum, maximum=LARGEST_INT):
    """Return the Kind of the integers from minimum to maximum."""
    return Kind(f'a whole number from {minimum} to {maximum}',
                lambda value: is_number(value, numbers.Integral) and minimum <= value <= maximum,
                parse_int)


def number(wanted, accepts):
    """Return the Kind of the finite numbers that `accepts` is true of; `wanted` says which."""
    return Kind(f'a number {wanted}',
                lambda value: is_number(value, numbers.Real) and accepts(value), parse_float)


def choice(*values):
    """Return the Kind of a few texts."""
    return Kind(f'one of {", ".join(values)}', lambda value: value in values, str)


def is_number(value, kind):
    """Return whether a value is a number of this kind, finite as a float; a bool is not."""
    try:
        return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an int that is too large for a float
        return False


def parse_int(text):
    """Return the integer that a text consists of, or else the text."""
    is_integer = len(text) <= LONGEST_NUMBER and re.fullmatch(r'[+-]?[0-9]+', text)
    return int(text) if is_integer else text


def parse_float(text):
    """Return the number that a text consists of, or else the text."""
    try:
        return float(text) if len(text) <= LONGEST_NUMBER else text
    except ValueError:
        return text


def is_path(value):
    """Return whether a value is a path that the system can have."""
    try:
        return not isinstance(value, bytes) and b'\0' not in os.fsencode(value)
    except (TypeError, UnicodeEncodeError):
        return False


def several(kind, wanted):
    """Return the Kind of a value of a kind, or a list or tuple of them; a flag may be repeated.

    On the command line, `cli.py` separates the texts of one flag by a NUL.
    """
    def accepts(value):
        values = value if isinstance(value, (list, tuple)) else [value]
        return len(values) > 0 and all(map(kind.accepts, values))

    return Kind(wanted, accepts, lambda text: tuple(map(kind.parse, text.split('\0'))))


def as_tuple(value):
    """Return the values of an option of a Kind by `several`, () for None."""
    return () if value is None else tuple(value) if isinstance(value, (list, tuple)) else (value,)


def unescape(text):
    r"""Return a text with the characters that \n, \r, \t and \\ in it stand for."""
    return re.sub(r'\\([nrt\\])', lambda match: {'n': '\n', 'r': '\r', 't': '\t'}.get(
        match.group(1), '\\'), text)


def is_unicode(text):
    """Return whether a text has no lone surrogates, which UTF-8 cannot encode."""
    return not re.search('[\ud800-\udfff]', text)


TEXT = Kind('a text in UTF-8, and not empty',
            lambda value: isinstance(value, str) and value != '' and is_unicode(value),
            lambda text: os.fsencode(text).decode('utf-8', 'surrogateescape'))  # in any locale
PATH = Kind('a path', is_path, str)
PATHS = several(PATH, 'a path, or several')
TEXTS = several(TEXT, 'a text in UTF-8, or several, none of them empty')
ESCAPED_TEXTS = TEXTS._replace(parse=lambda text: tuple(map(unescape, TEXTS.parse(text))))
SWITCH = Kind('True or False', lambda value: isinstance(value, bool),
              lambda text: {'True': True, 'False': False}.get(text, text))


def switch_or_count(maximum):
    """Return the Kind of True, False, and the integers from 1 to maximum."""
    count = whole(1, maximum)
    return Kind(f'True, False, or {count.wanted}',
                lambda value: isinstance(value, bool) or count.accepts(value),
                lambda text: parse_int(text) if text[:1].isdigit() else SWITCH.parse(text))


def option(default, kind, text, alias=None):
    """Declare a field of an Options class; if its default is None, it also accepts None.

    `kind` is the Kind of its values, `text` its help, and `alias` a second name of its flag.
    """
    return dataclasses.field(default=default, metadata={'kind': kind, 'help': text, 'alias': alias})


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of all options. Raises OptionError if a field has a value that it does not accept."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field.metadata['kind']
            if value is None and field.default is dataclasses.MISSING:
                raise OptionError(field.name, f'is missing; give {kind.wanted}')
            is_left_out = value is None and field.default is None
            if not is_left_out and not kind.accepts(value):
                given = value[0] if isinstance(value, tuple) and len(value) == 1 else value
                raise OptionError(field.name, f'must be {kind.wanted}, not {reprlib.repr(given)}')

    def with_option(self, name, value):
        """Return these options with a field changed, if they have it; a text is that of a flag."""
        field = {field.name: field for field in dataclasses.fields(self)}.get(name)
        if field is None:
            return self
        if isinstance(value, str):
            value = field.metadata['kind'].parse(value)
        return dataclasses.replace(self, **{name: value})
