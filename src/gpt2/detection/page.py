"""The page of the task detect: page.html, filled with figures, ROC curves and histograms."""

import html
import pathlib

import numpy as np

from gpt2.detection import report, roc
from gpt2.evaluation.page import bars, command_line, fill
from gpt2.evaluation.summary import one_line

BARS = 40  # of a histogram
TAIL = 0.5  # percent of the values that may lie beyond each end of a histogram, and count there
MOST_POINTS = 200  # of a ROC curve, since each takes 10 bytes or so

CAUTION = ('These figures are of these texts alone. Texts of another kind or length, by other '
           'people, another model or other settings, and edited texts give others. They are no '
           'ground to accuse anybody.')


def page(result, detectors, by_length):
    """Return the page of a comparison.

    `result` is what the JSON has; `detectors` are all Detectors, and `by_length` pairs of a length
    and the Detectors there.
    """
    return fill(pathlib.Path(__file__).with_name('page.html'), {
        'model': html.escape(one_line(result['model'])),
        'description': html.escape(one_line(report.description(result))),
        'weights': result['weights'], 'command': command_line(), 'caution': CAUTION,
        'columns': ''.join(f'<th scope="col">{text}</th>' for text in report.headings(result)),
        'rows': ''.join(row(*cells) for cells in report.rows(result)),
        'cards': ''.join(card(detector, [(length, others[i].figures)
                                         for length, others in by_length])
                         for i, detector in enumerate(detectors)),
        'published': ''.join(f'<tr><th scope="row">{what}</th><td>{figure}</td><td>{source}</td>'
                             '</tr>\n' for what, figure, source in report.PUBLISHED)})


def row(figures, texts):
    """Return the row of a table for a detector, given its figures and how the table shows them."""
    name = figures['statistic']
    cells = ''.join(f'<td>{text}</td>' for text in texts)
    return f'<tr><th scope="row"><a href="#{name}">{report.HEADINGS[name]}</a></th>{cells}</tr>\n'


def card(detector, figures_by_length):
    """Return the part of the page for a Detector."""
    statistic = detector.statistic
    expected = 'larger' if statistic.sign > 0 else 'smaller'
    charts = curve(detector) + histograms(detector)
    if figures_by_length:
        charts += intervals(figures_by_length)
    return (f'<article class="card" id="{statistic.name}" aria-labelledby="h-{statistic.name}">\n'
            f'<h2 id="h-{statistic.name}">{statistic.heading}</h2>\n'
            f'<p class="note">{html.escape(statistic.meaning)} Expected to be {expected} for '
            f'synthetic text.</p>\n<div class="charts">{charts}</div>\n</article>\n')


def curve(detector):
    """Return the ROC curve of a Detector."""
    sides = [detector.statistic.sign * values for values in (detector.human, detector.synthetic)]
    _, false_positives, true_positives = roc.roc_curve(*sides)
    places = np.unique(np.linspace(0, len(false_positives) - 1, MOST_POINTS).round().astype(int))
    points = ' '.join(f'{100 * x:.4g},{100 - 100 * y:.4g}' for x, y in zip(
        false_positives[places], true_positives[places]))
    label = ', '.join(f'{100 * roc.true_positive_rate(*sides, rate):.0f} % true ones at '
                      f'{100 * rate:.0f} %' for rate in (0.01, 0.1, 0.5))
    chart = (f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"><path '
             f'class="chance" d="M0,100 100,0"/><path d="M{points}"/></svg>')
    return figure('roc', 'ROC curve', f'false positives: {label}', chart, '',
                  ['0', 'false positives', '1'])


def histograms(detector):
    """Return the histograms of human values, and of synthetic ones upside down below them."""
    sides = detector.human, detector.synthetic
    low, high = np.percentile(np.concatenate(sides), [TAIL, 100 - TAIL])
    if low == high:  # almost all are alike
        low, high = low - 0.5, high + 0.5
    shares = [np.histogram(np.clip(values, low, high), BARS, (low, high))[0] / len(values)
              for values in sides]
    chart = ''.join(bars(name, share, np.max(shares)) for name, share in zip(
        ('human', 'synthetic'), shares))
    label = 'half of the human texts are below {:.3g}, of the synthetic ones below {:.3g}'.format(
        *map(np.median, sides))
    return figure('values', 'Values', label, chart, '', [f'{low:.3g}', f'{high:.3g}'])


def intervals(figures_by_length):
    """Return the chart of the AUROC at some lengths, given pairs of a length and figures."""
    columns, labels = '', []
    for length, figures in figures_by_length:
        low, high = figures['auroc_interval']
        columns += (f'<span style="--low:{100 * low:.1f};--high:{100 * high:.1f};'
                    f'--value:{100 * figures["auroc"]:.1f}"><i></i><b></b></span>')
        labels.append(f'{figures["auroc"]:.3f} at {length:,} tokens')
    return figure('', 'AUROC by tokens read', ', '.join(labels),
                  f'<div class="intervals">{columns}</div>', 'lengths',
                  [f'{length:,}' for length, _ in figures_by_length])


def figure(kind, caption, label, chart, axis_kind, axis):
    """Return a chart with its caption, its meaning for those who cannot see it, and its axis."""
    texts = ''.join(f'<span>{text}</span>' for text in axis)
    return (f'<figure class="{kind}"><figcaption>{caption}</figcaption>'
            f'<div class="frame" role="img" aria-label="{caption}: {label}">{chart}</div>'
            f'<div class="axis {axis_kind}" aria-hidden="true">{texts}</div></figure>')
