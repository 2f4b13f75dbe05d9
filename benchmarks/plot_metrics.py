"""Draw the losses of a training from its metrics.jsonl.

    pip install -r benchmarks/requirements.txt
    python3 benchmarks/plot_metrics.py models/mine/metrics.jsonl losses.png
"""

import argparse
import json

import matplotlib

matplotlib.use('Agg')

from matplotlib import pyplot  # noqa: E402  (it needs the backend to be chosen before)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('metrics', help='the metrics.jsonl of a model that train.py wrote')
    parser.add_argument('output', help='the picture to write: .png or .svg')
    options = parser.parse_args()
    with open(options.metrics, encoding='utf-8') as file:
        metrics = [json.loads(line) for line in file]
    steps = [line['step'] for line in metrics]
    figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=100)
    for name, label in [('training_loss', 'training'), ('held_out_loss', 'validation')]:
        axes.plot(steps, [line[name] for line in metrics], marker='.', label=label)
    best = min(metrics, key=lambda line: line['held_out_loss'])
    axes.axvline(best['step'], color='gray', linewidth=0.8, linestyle=':', label='weights kept')
    axes.set(xlabel='step', ylabel='loss, nats per token')
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(options.output)


if __name__ == '__main__':
    main()
