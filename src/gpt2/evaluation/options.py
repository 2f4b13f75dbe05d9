"""The options of evaluate.py."""

import dataclasses

from gpt2.cluster.options import ServeOptions
from gpt2.errors import OptionError, UsageError
from gpt2.evaluation.pairs import PAIR_TASKS
from gpt2.evaluation.tasks import TASKS
from gpt2.options import (
    PATH,
    PATHS,
    SWITCH,
    as_tuple,
    choice,
    option,
    parse_int,
    several,
    whole,
)

COUNTS = several(whole(1), 'whole numbers above 0 with commas between')._replace(
    parse=lambda text: tuple(map(parse_int, text.split(','))))
DETECTION = ('human', 'synthetic', 'reference', 'equal_lengths', 'lengths', 'baseline', 'seed')


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(ServeOptions):
    """What to evaluate, how, and where the results go."""

    task: str = option('all', choice(*TASKS, 'all', 'score', *PAIR_TASKS, 'detect'),
                       'one of the names above')
    file: str = option(None, PATHS, 'the file of the data set or of the pairs, or the files of '
                                    'texts to score or to compare with a reference')
    data_dir: str = option('data', PATH, 'the folder of the data sets')
    limit: int = option(None, whole(1), 'use only so many examples (enwik8, text8: bytes; detect: '
                                    'texts of each side)')
    batch_size: int = option(1, whole(1), 'windows to read at a time, or as many tokens in shorter '
                                          'texts; changes only speed and memory')
    stride: int = option(32, whole(1), 'tokens that the window advances by in a longer text; the '
                                       'others are context. More is faster and a little worse')
    raw: bool = option(False, SWITCH, 'read the data sets as distributed, without de-tokenizing')
    output: str = option(None, PATH, 'of a task: a JSON file for the results; tasks that it has '
                                     'from the same weights and settings are not run again. Of '
                                     'score: the file to write the JSON lines to. Of pairs and '
                                     'crows_pairs: a file for the log likelihoods of each pair. Of '
                                     'detect: a JSON file, or, named *.npz, a reference for '
                                     '--reference')
    html: str = option(None, PATH, 'of score: write a page that shows the texts, each token '
                                   'coloured by its rank or probability, with the 10 likeliest. '
                                   'Of detect: a page with histograms and ROC curves')
    human: str = option(None, PATHS, 'of detect: a file of texts by people; may be given several '
                                     'times')
    synthetic: str = option(None, PATHS, 'of detect: a file of texts by a model; may be given '
                                         'several times')
    reference: str = option(None, PATH, 'of detect: the .npz file to compare the texts of FILE '
                                        'with, which detect wrote with --output')
    equal_lengths: bool = option(True, SWITCH, 'of detect: cut the texts of both sides, longest '
                                               'with longest, to equal lengths, which would '
                                               'otherwise help to tell them apart')
    lengths: int = option(None, COUNTS, 'of detect: measure also on the first tokens of texts, so '
                                        'many each time, where both sides have such texts; if not '
                                        'given, 50,100,200,500,1000')
    baseline: bool = option(False, SWITCH, 'of detect: with scikit-learn, which must be installed, '
                                           'also train logistic regression on TF-IDF of words')
    seed: int = option(0, whole(0), 'of detect: which half of the texts chooses thresholds, and '
                                    'trains the baseline')

    def __post_init__(self):
        super().__post_init__()
        if self.task in ('score', *PAIR_TASKS) and not self.file:
            raise UsageError(f'FILE is missing; write: python3 src/evaluate.py {self.task} FILE')
        if self.task not in ('score', 'detect') and len(as_tuple(self.file)) > 1:
            raise UsageError(f'the task {self.task} takes one FILE; name only one')
        if self.task == 'all' and self.file:
            raise UsageError('the task all takes no FILE; name the folder with --data_dir')
        if self.task not in ('score', 'detect') and self.html:
            raise OptionError('html', 'is only for the tasks score and detect; leave it out')
        if self.task == 'detect':
            self.check_detection()
        for field in dataclasses.fields(self):
            if (self.task != 'detect' and field.name in DETECTION
                    and getattr(self, field.name) != field.default):
                raise OptionError(field.name, 'is only for the task detect; leave it out')

    def check_detection(self):
        """Raise UsageError unless there are two sides to tell apart, or texts and a reference."""
        has_sides, has_file = (self.human, self.synthetic), (self.file, self.reference)
        if not (all(has_sides) and not any(has_file) or all(has_file) and not any(has_sides)):
            raise UsageError('detect takes --human FILE and --synthetic FILE, or else FILE and '
                             '--reference FILE.npz; name two of these')
        if self.reference and self.html:
            raise OptionError('html', 'is only for --human and --synthetic; leave it out')
