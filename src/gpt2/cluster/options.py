"""The options of a chief and of a worker."""

import dataclasses
import re
from typing import Optional

from gpt2.options import SWITCH, Kind, Options, option, whole

ADDRESS = Kind('HOST:PORT', lambda value: isinstance(value, str) and re.fullmatch(
    r'[\w.-]+:\d{1,5}|\[[\da-fA-F:.]+\]:\d{1,5}', value) is not None, str)


@dataclasses.dataclass(frozen=True)
class ServeOptions(Options):
    """Whether other machines share the work."""

    serve: Optional[int] = option(None, whole(1, 65535), 'share the work with src/worker.py on '
                                  'other machines, which reach this one at this port; whoever '
                                  'else reaches it controls this process')
    work: bool = option(True, SWITCH, 'with --serve, work on this machine, too')


@dataclasses.dataclass(frozen=True)
class WorkerOptions(Options):
    """Whom to work for."""

    chief: str = option('', ADDRESS, 'HOST:PORT of the command that runs with --serve PORT')
