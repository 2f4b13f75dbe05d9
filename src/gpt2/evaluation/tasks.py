"""The tasks: the data sets of the paper's zero-shot table, and what is measured on each.

A new data set needs a row in TASKS, a reader in `readers`, and a line in the help of evaluate.py.
"""

import collections
import math

import numpy as np

from gpt2.evaluation import readers
from gpt2.evaluation.loglikelihood import Scores, exp, total_logprob

# A data set. `files`: where it may be in the data folder; `read`: its reader, which returns the
# examples; `measure`: a function of `score` and the examples, which returns their number and
# Measures (`score` is a function from pairs of a context and a target, texts or bytes, to their
# Scores); `paper`: for each measure that the paper has, its figures for PAPER_MODELS.
Task = collections.namedtuple('Task', 'files read measure paper')

# A measured figure. `stderr`: the standard error of an accuracy, else None.
Measure = collections.namedtuple('Measure', 'name value stderr', defaults=[None])

# The models of Radford et al. 2019, table 3: by the names of their release, and of the paper.
PAPER_MODELS = (('124M', '117M'), ('355M', '345M'), ('774M', '762M'), ('1558M', '1542M'))


def paper_figure(task_name, measure_name, model_name):
    """Return the figure of the paper that a measure compares with, or None."""
    figures = zip(PAPER_MODELS, TASKS[task_name].paper.get(measure_name, ()))
    return next((figure for names, figure in figures if model_name in names), None)


def accuracy(name, hits):
    """Return the Measure of the share of hits, in percent, with its binomial standard error."""
    share = float(np.mean(hits))
    return Measure(name, 100 * share, 100 * math.sqrt(share * (1 - share) / len(hits)))


def measure_lambada(score, examples):
    """Measure how well the last words of passages are predicted, by four readings of the paper.

    By word: all tokens of the word are the likeliest, given those before. By last token: the last
    token of the word is, given all before it, including the word's own tokens; replications found
    this near the paper's figures. The stop-word filter, as the paper calls it, ignores all
    tokens that are a stop word, except the target. Perplexity is that of words, and of last tokens.
    """
    scores = score(examples)
    last = [Scores(*(values[-1:] for values in s)) for s in scores]
    measures = []
    for name, targets in [('word', scores), ('last token', last)]:
        hits = [(s.ranks == 1).all() for s in targets]
        filtered_hits = [(s.filtered_ranks == 1).all() for s in targets]
        perplexity = exp(-np.mean([total_logprob(s) for s in targets]))
        measures += [accuracy(f'accuracy, {name}', hits),
                     accuracy(f'accuracy, {name}, stop-word filter', filtered_hits),
                     Measure(f'perplexity, {name}', perplexity)]
    return len(examples), measures


# Words that carry little meaning alone, and that no passage of LAMBADA should end with: articles,
# pronouns, prepositions, conjunctions, auxiliaries and a few adverbs, written out for this project.
STOP_WORDS = frozenset("""
a an the this that these those such i me my mine myself we us our ours ourselves you your yours
yourself yourselves he him his himself she her hers herself it its itself they them their theirs
themselves who whom whose which what when where why how whether and or but nor so yet if then than
because as while until although though unless since of at by for with about against between into
through during before after above below to from up down in out on off over under within without upon
toward towards among across behind beside along around near per via onto am is are was were be been
being have has had having do does did doing done will would shall should can could may might must
ought not no none neither either both each every all any some few more most other another much many
again further once here there now just only too very also even ever never always still already
almost quite rather really perhaps s t d ll m re ve don didn doesn isn wasn weren won wouldn couldn
shouldn can't cannot hadn hasn haven aren ain
""".split())


def allowed_tokens(encoder):
    """Return which tokens the stop-word filter lets through, bool [V]."""
    return np.array([encoder.decode([token]).lower().replace(' ', '', 1) not in STOP_WORDS
                     for token in range(len(encoder.encoder))])


def measure_cbt(score, questions):
    """Measure how often the answer makes the rest of the sentence likelier than other choices."""
    scores = score([(question.context, choice + question.rest)
                    for question in questions for choice in question.choices])
    totals = np.reshape([total_logprob(s) for s in scores], [len(questions), -1])
    answers = [question.answer for question in questions]
    return len(questions), [accuracy('accuracy', totals.argmax(axis=1) == answers)]


def measure_words(score, corpus):
    """Measure the perplexity per word, with words counted as the corpus counts them."""
    nats = -sum(total_logprob(s) for s in score([('', text) for text in corpus.texts]))
    return corpus.n_lines, [Measure('perplexity of a word', exp(nats / corpus.n_words)),
                            Measure('words and line ends', corpus.n_words),
                            Measure('lines scored as distributed', corpus.n_raw)]


def measure_bytes(score, data):
    """Measure the bits per byte and per character."""
    bits = -total_logprob(score([(b'', data)])[0]) / math.log(2)
    # Each character has one byte that is not a continuation, 10xxxxxx.
    n_characters = int(np.sum(np.frombuffer(data, np.uint8) & 0xc0 != 0x80))
    return len(data), [Measure('bits per byte', bits / len(data)),
                       Measure('bits per character', bits / n_characters if n_characters else None)]


TASKS = {
    'lambada': Task(['lambada_test.jsonl'], readers.read_lambada, measure_lambada,
                    {'accuracy, word, stop-word filter': (45.99, 55.48, 60.12, 63.24),
                     'accuracy, last token, stop-word filter': (45.99, 55.48, 60.12, 63.24),
                     'perplexity, word': (35.13, 15.60, 10.87, 8.63),
                     'perplexity, last token': (35.13, 15.60, 10.87, 8.63)}),
    'cbt_cn': Task(['cbtest_CN_valid_2000ex.txt', 'CBTest/data/cbtest_CN_valid_2000ex.txt'],
                   readers.read_cbt, measure_cbt, {'accuracy': (87.65, 92.35, 93.45, 93.30)}),
    'cbt_ne': Task(['cbtest_NE_valid_2000ex.txt', 'CBTest/data/cbtest_NE_valid_2000ex.txt'],
                   readers.read_cbt, measure_cbt, {'accuracy': (83.4, 87.1, 88.0, 89.05)}),
    'wikitext2': Task(['wikitext-2/wiki.test.tokens', 'wiki.test.tokens'], readers.read_wikitext,
                      measure_words, {'perplexity of a word': (29.41, 22.76, 19.93, 18.34)}),
    'ptb': Task(['ptb.test.txt', 'simple-examples/data/ptb.test.txt'], readers.read_ptb,
                measure_words, {'perplexity of a word': (65.85, 47.33, 40.31, 35.76)}),
    'enwik8': Task(['enwik8'], readers.read_last_bytes, measure_bytes,
                   {'bits per byte': (1.16, 1.01, 0.97, 0.93)}),
    'text8': Task(['text8'], readers.read_last_bytes, measure_bytes,
                  {'bits per character': (1.17, 1.06, 1.02, 0.98)}),
    'wikitext103': Task(['wikitext-103/wiki.test.tokens'], readers.read_wikitext, measure_words,
                        {'perplexity of a word': (37.50, 26.37, 22.05, 17.48)}),
    '1bw': Task(['news.en.heldout-00000-of-00050',
                 'heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050'],
                readers.read_1bw, measure_words,
                {'perplexity of a word': (75.20, 55.72, 44.575, 42.16)}),
}
STREAMS = ('wikitext2', 'ptb', 'enwik8', 'text8', 'wikitext103')  # one long text each
