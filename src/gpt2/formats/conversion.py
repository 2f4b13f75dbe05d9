"""Conversion of models between formats.

A format of folders is a module, listed in FORMATS, with these functions:

    is_model(path)           whether there is a model in this format
    missing_files(path)      the missing files that another model, the base model, can provide
    open_source(path, base)  check a model and return a Source; base: a ModelDir or None
    write(source, folder)    write a Source into a new folder

`gguf`, a file, is only written.
"""

import dataclasses
import os

from gpt2 import files, model_dir
from gpt2.errors import OptionError, UsageError, UserError
from gpt2.formats import gguf, tensorflow, transformers
from gpt2.options import PATH, Options, choice, is_unicode, option

FORMATS = {'tensorflow': tensorflow, 'transformers': transformers}
TARGETS = (*FORMATS, 'gguf')


@dataclasses.dataclass(frozen=True)
class ConversionOptions(Options):
    """What to convert, and to what."""

    source: str = option(dataclasses.MISSING, PATH, 'the model to convert: a folder, or the '
                         'prefix of a checkpoint, such as run1/model-1000')
    output: str = option(dataclasses.MISSING, PATH, 'the folder to write, or the file for '
                         'gguf, NAME.gguf; it must not exist yet')
    to: str = option(dataclasses.MISSING, choice(*TARGETS),
                     'transformers; tensorflow, a model directory for the scripts here; or gguf, a '
                     'file for llama.cpp')
    base_model: str = option(None, PATH, 'the model that SOURCE was fine-tuned from, to take the '
                             'vocabulary and the hyperparameters from where SOURCE lacks them')
    models_dir: str = option('models', PATH, 'the folder that has the base model')
    dtype: str = option(None, choice(*gguf.TYPES), 'the type of the matrices in a gguf file: '
                        'float32, if it is left out; float16; or q8_0, integers of 8 bits')

    def __post_init__(self):
        if self.to is None:
            raise OptionError('to', f'is missing; give one of {", ".join(TARGETS)}')
        super().__post_init__()
        if not self.output or not is_unicode(os.fspath(self.output)):
            raise UsageError(f'OUTPUT must be the name of a folder, not {self.output!r}')
        if self.to == 'gguf':
            if os.path.splitext(os.path.basename(self.output))[1] != '.gguf':
                raise UsageError(f'OUTPUT must be NAME.gguf, not {self.output!r}')
        elif self.dtype is not None:
            raise OptionError('dtype', f'is for --to gguf; leave it out for {self.to}')


def convert(options):
    """Convert a model. Raises UserError if it is unusable or OUTPUT exists or cannot be written."""
    output = os.path.normpath(options.output)  # without a slash at its end
    if os.path.lexists(output):
        raise UserError(f'{output} exists already; give another OUTPUT, or remove it')
    if options.to == 'tensorflow':
        model_dir.check_path(output)
    model = open_source(os.fspath(options.source), options.base_model, options.models_dir)
    try:
        os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
        if options.to == 'gguf':
            gguf.write(model, output, options.dtype or 'float32')
        else:
            with files.new_folder(output) as folder:
                FORMATS[options.to].write(model, folder)
    except OSError as error:
        raise UserError(f'{output} cannot be written: {error}')


def open_source(path, base_model, models_dir):
    """Return the Source at a path, after all checks that need no TensorFlow. Raises UserError."""
    found = [module for module in FORMATS.values() if module.is_model(path)]
    if not found:
        raise UserError(f'{path} is not the folder of a model: it has neither `checkpoint`, as '
                        'models of TensorFlow, nor config.json, as models of transformers; nor is '
                        f'it the prefix of a checkpoint: there is no {path}.index')
    missing = found[0].missing_files(path)
    if missing and not base_model:
        raise UserError(f'{path} lacks {", ".join(missing)}; name the model that it was '
                        'fine-tuned from, for instance --base_model 124M')
    if base_model and not missing:
        raise UsageError(f'{path} has its own hyperparameters and vocabulary; leave out '
                         '--base_model')
    base = model_dir.open_model_dir(base_model, models_dir, weights=False) if missing else None
    model = found[0].open_source(path, base)
    tokens, n_vocab = len(model.encoder.encoder), model.hparams.n_vocab
    if tokens != n_vocab:
        raise UserError(f'the vocabulary has {tokens} tokens, but the model in {path} has '
                        f'{n_vocab}; they belong to different models')
    return model
