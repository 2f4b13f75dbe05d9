"""The options of a worker."""

import dataclasses
import re

from gpt2.options import Kind, Options, option

ADDRESS = Kind('HOST:PORT', lambda value: isinstance(value, str) and re.fullmatch(
    r'[\w.-]+:\d{1,5}|\[[\da-fA-F:.]+\]:\d{1,5}', value) is not None, str)


@dataclasses.dataclass(frozen=True)
class WorkerOptions(Options):
    """Whom to work for."""

    chief: str = option('', ADDRESS, 'HOST:PORT of the command that runs with --serve PORT')
