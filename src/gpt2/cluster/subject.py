"""What a worker must have in common with its chief."""

import os

from gpt2 import runtime
from gpt2.errors import UserError
from gpt2.model_dir import HPARAMS, open_model_dir, weights_digest


def describe(model_dir):
    """Return what the results of a model depend on, apart from the processor, a dict."""
    return {'model': os.fsencode(model_dir.name).decode('utf-8', 'replace'),
            'weights': weights_digest(model_dir.path),
            'hparams': {name: getattr(model_dir.hparams, name) for name in HPARAMS},
            'tensorflow': runtime.tensorflow_version()}


def open_model(name, models_dir):
    """Return the ModelDir of a name that the chief gives. Raises UserError, or TypeError."""
    if os.path.basename(name) != name:
        raise UserError(f'{name!r} is not the name of a model')
    return open_model_dir(name, models_dir)


def check_same(own, subject):
    """Raise UserError if the values of a dict differ from those that the chief has."""
    problem = differences(own, subject)
    if problem:
        raise UserError(problem)


def differences(own, subject):
    """Return a sentence that says which values of a dict the chief does not have; '' if none."""
    names = ', '.join(name for name in own if own[name] != subject.get(name))
    return f'other {names} than the chief has; use the same' if names else ''


def unknown(error):
    """Return the UserError for a subject that no chief has, from what reading it raised."""
    return UserError(f'the chief has settings that no run has ({error!r})')
