"""The errors that users can cause. Each message is one line that says what is wrong and what to do.

The command line prints the message and exits; the Python interface raises the error.
"""


class UserError(Exception):
    """Something the user can correct. A command exits with status 1."""


class UsageError(UserError):
    """An argument that cannot be used. A command exits with status 2."""


class OptionError(UsageError):
    """An option with an unusable value: OptionError('top_k', 'must be a whole number')."""

    def __init__(self, name, problem):
        super().__init__(f'{name} {problem}')


class ModelError(UserError):
    """A model directory that cannot be used."""
