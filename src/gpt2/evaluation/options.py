"""The options of evaluate.py."""

import dataclasses

from gpt2.errors import OptionError, UsageError
from gpt2.evaluation.pairs import PAIR_TASKS
from gpt2.evaluation.tasks import TASKS
from gpt2.options import PATH, PATHS, SWITCH, Options, as_tuple, choice, option, whole


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(Options):
    """What to evaluate, how, and where the results go."""

    task: str = option('all', choice(*TASKS, 'all', 'score', *PAIR_TASKS),
                       'one of the names above')
    file: str = option(None, PATHS, 'the file of the data set or of the pairs, or the files of '
                                    'texts to score')
    data_dir: str = option('data', PATH, 'the folder of the data sets')
    limit: int = option(None, whole(1), 'use only so many examples (enwik8, text8: bytes)')
    batch_size: int = option(1, whole(1), 'windows to read at a time, or as many tokens in shorter '
                                          'texts; changes only speed and memory')
    stride: int = option(32, whole(1), 'tokens that the window advances by in a longer text; the '
                                       'others are context. More is faster and a little worse')
    raw: bool = option(False, SWITCH, 'read the data sets as distributed, without de-tokenizing')
    output: str = option(None, PATH, 'of a task: a JSON file for the results; tasks that it has '
                                     'from the same weights and settings are not run again. Of '
                                     'score: the file to write the JSON lines to. Of pairs and '
                                     'crows_pairs: a file for the log likelihoods of each pair')
    html: str = option(None, PATH, 'of score: write a page that shows the texts, each token '
                                   'coloured by its rank or probability, with the 10 likeliest')

    def __post_init__(self):
        super().__post_init__()
        if self.task in ('score', *PAIR_TASKS) and not self.file:
            raise UsageError(f'FILE is missing; write: python3 src/evaluate.py {self.task} FILE')
        if self.task != 'score' and len(as_tuple(self.file)) > 1:
            raise UsageError(f'the task {self.task} takes one FILE; name only one')
        if self.task == 'all' and self.file:
            raise UsageError('the task all takes no FILE; name the folder with --data_dir')
        if self.task != 'score' and self.html:
            raise OptionError('html', 'is only for the task score; leave it out')
