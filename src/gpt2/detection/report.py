"""What the task detect shows on a terminal, and its words of caution."""

import textwrap

from gpt2.detection.comparison import TFIDF
from gpt2.detection.statistics import STATISTICS

HEADINGS = {statistic.name: statistic.heading for statistic in (*STATISTICS, TFIDF)}
COLUMNS = ('AUROC', '95 % interval', 'accuracy', 'TPR at 1 % FPR')
WIDTHS = (8, 15, 10, 16)  # of COLUMNS on a terminal
LINE = 100  # characters of sentences there
PLACEMENT_COLUMNS = ('value', 'human beyond: FPR', 'synthetic beyond: TPR')
PLACEMENT_WIDTHS = (10, 24, 24)

# Published figures, for context: of other models, texts and lengths than those measured here.
PUBLISHED = (
    ('Logistic regression on TF-IDF, accuracy, temperature 1',
     '117M 88.29 %, 345M 88.94 %, 762M 77.16 %, 1542M 74.31 %',
     'authors of the output data set (2019)'),
    ('Logistic regression on TF-IDF, accuracy, top-k 40',
     '117M 96.79 %, 345M 95.22 %, 762M 94.43 %, 1542M 92.69 %',
     'authors of the output data set (2019)'),
    ('Threshold on the total log likelihood, accuracy, top-k 40', '81.8 %',
     'authors of the output data set (2019)'),
    ('Fast-DetectGPT, white box, mean AUROC of five models', '0.9887', 'Bao et al. (2024)'),
)

CAUTION = (
    'This is no verdict. A false positive rate says how many of the human texts of the reference '
    'have such a value or a more suspicious one. It does not say how likely it is that this text '
    'is synthetic, and it holds only for texts like those of the reference. Text of another kind, '
    'time or language, by people who write in a second language, text quoted from what the model '
    'learned, and text of another model, by other settings or edited by a person can have any '
    'value. Do not hold it against anybody.')


def description(result):
    """Return sentences about the texts of a comparison and how they were cut."""
    first = result['figures'][0]
    sentences = [f'{first["human_texts"]:,} human and {first["synthetic_texts"]:,} synthetic '
                 f'texts, read by {result["model"]}.']
    words = [describe_span(**span) for span in result['tokens'].values()]
    if result['equal_lengths']:
        sentences.append(f'Both sides are cut to equal lengths: {words[0]}.')
    else:
        sentences.append(f'The texts have their own lengths: human ones {words[0]}, synthetic ones '
                         f'{words[1]}. Differences in length may help to tell them apart.')
    if any(result['left_out'].values()):
        sentences.append('{human:,} human and {synthetic:,} synthetic texts more are left out: '
                         'they are empty, or the other side has fewer.'.format(
                             **result['left_out']))
    return ' '.join(sentences)


def describe_span(least, mean, most):
    """Return how many tokens texts have, in words."""
    if least == most:
        return f'{least:,} tokens each'
    return f'{least:,} to {most:,} tokens, {mean:,.0f} on average'


def cells(figures):
    """Return figures as the texts below COLUMNS."""
    low, high = figures['auroc_interval']
    return [f'{figures["auroc"]:.3f}', f'{low:.3f}-{high:.3f}',
            *(f'{100 * figures[name]:.1f} %' for name in ('accuracy', 'true_positive_rate'))]


def headings(result):
    """Return what the columns of a comparison are called: COLUMNS, and one for each length."""
    return [*COLUMNS, *(f'{row["length"]:,} tokens' for row in result['by_length'])]


def rows(result):
    """Yield the figures of each detector, and the texts below `headings`."""
    for i, figures in enumerate(result['figures']):
        areas = [f'{row["figures"][i]["auroc"]:.3f}' for row in result['by_length']]
        yield figures, [*cells(figures), *areas]


def comparison_lines(result):
    """Yield the lines that show a comparison on a terminal."""
    widths = [*WIDTHS, *(len(heading) + 2 for heading in headings(result)[len(WIDTHS):])]
    yield from textwrap.wrap(description(result), LINE)
    yield ''
    yield line('statistic', headings(result), widths)
    for figures, texts in rows(result):
        yield line(HEADINGS[figures['statistic']], texts, widths)
    yield ''
    yield from textwrap.wrap(
        'Accuracies are of one half of the texts, at the best threshold for the other half. The '
        'last columns have the AUROC of the first tokens of texts that have so many.', LINE)


def placement_lines(names, results):
    """Yield the lines that show on a terminal how documents compare with a reference."""
    for name, result in zip(names, results):
        yield name
        if result['n_compared'] is None:
            yield f'  It is too short to compare: {result["n_tokens"]} tokens.'
        else:
            yield f'  Its first {result["n_compared"]:,} tokens, beside as many of the reference:'
            yield line('  statistic', PLACEMENT_COLUMNS, PLACEMENT_WIDTHS)
            for statistic, figures in result['statistics'].items():
                texts = [f'{figures["value"]:.4g}',
                         share(figures['human_beyond'], figures['human_texts']),
                         share(figures['synthetic_beyond'], figures['synthetic_texts'])]
                yield line('  ' + HEADINGS[statistic], texts, PLACEMENT_WIDTHS)
        yield ''
    yield from textwrap.wrap(CAUTION, LINE)


def share(count, total):
    """Return a share of texts as a table shows it."""
    return f'{count:,} of {total:,}, {100 * count / total:.1f} %'


def line(name, texts, widths):
    """Return a line of a table."""
    return ''.join([f'{name:16}', *(f'{text:>{n}}' for text, n in zip(texts, widths))]).rstrip()
