"""The Python interface of GPT-2, and all that is behind its commands. With src/ on the path:

    import gpt2
    with gpt2.load('124M') as model:
        for sample in model.generate('Once upon a time', nsamples=3, length=40):
            print(sample.text)
"""

import os

# NumPy's own threads keep spinning after a product and take the processors from those of the lite
# engine. NumPy reads this when it is imported, so it is set before.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

__all__ = ['Model', 'ModelError', 'OptionError', 'Sample', 'Score', 'UsageError', 'UserError',
           'load']


def __getattr__(name):
    """Import the interface when it is first used: the commands begin with other modules."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from gpt2 import api, errors
    return getattr(errors if name.endswith('Error') else api, name)
