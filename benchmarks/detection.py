"""How well the text of models/1M can be told from Shakespeare's: the table in README.

    python3 benchmarks/detection.py tinyshakespeare.txt FOLDER [--baseline]

500 passages of the tenth of the text that the model has not learned are compared with 500 samples
for each of three ways to sample. FOLDER gets the passages, the samples, and for each way the
results, a page and a reference. The tenth has about 100 tokens for each passage, so that longer
ones overlap; passages_apart.txt has fewer that do not, for comparison.
"""

import itertools
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'src')]  # before this folder, which has an encoder.py, too

from gpt2.evaluation.readers import END_OF_TEXT  # noqa: E402
from gpt2.model_dir import open_model_dir  # noqa: E402

MODEL = ['--model_name', '1M', '--models_dir', str(ROOT / 'models')]
WAYS = {'temperature_1': [], 'temperature_0.7': ['--temperature', '0.7'],
        'top_k_40': ['--top_k', '40']}
N_TEXTS = 500
LENGTH = 264  # tokens: 256, and a few more, since a sample may be encoded again in fewer tokens
LENGTHS = '64,128,256'


def main():
    text, folder, *flags = sys.argv[1:]
    folder = pathlib.Path(folder)
    folder.mkdir(exist_ok=True)
    write_passages(text, folder)
    for way, sampling in WAYS.items():
        samples = folder / f'{way}.jsonl'
        run('generate_unconditional_samples.py', '--nsamples', N_TEXTS, '--length', LENGTH,
            '--seed', 1, '--batch_size', 50, '--output', samples, *sampling)
        for human in ('passages', 'passages_apart'):
            result = folder / f'{human}_{way}.json'
            run('evaluate.py', 'detect', '--human', folder / f'{human}.txt', '--synthetic', samples,
                '--lengths', LENGTHS, '--batch_size', 16, '--output', result,
                '--html', result.with_suffix('.html'), *flags)
            show(result)


def write_passages(path, folder):
    """Write the passages: N_TEXTS at the same distance, and those that do not overlap."""
    encoder = open_model_dir('1M', str(ROOT / 'models')).encoder
    data = pathlib.Path(path).read_bytes()
    tokens = encoder.encode_bytes(data[-(len(data) // 10):])
    last = len(tokens) - LENGTH
    starts = {'passages': [i * last // (N_TEXTS - 1) for i in range(N_TEXTS)],
              'passages_apart': range(0, last + 1, LENGTH)}
    for name, places in starts.items():
        texts = [encoder.decode(tokens[start:start + LENGTH]) for start in places]
        (folder / f'{name}.txt').write_text(END_OF_TEXT.join(texts), encoding='utf-8')


def run(script, *arguments):
    """Run a command of ours."""
    subprocess.check_call([sys.executable, str(ROOT / 'src' / script),
                           *map(str, itertools.chain(arguments, MODEL))])


def show(path):
    """Print the rows of a result: at each length the AUROC, then the figures at the largest."""
    result = json.loads(path.read_text(encoding='utf-8'))
    rows = [row['figures'] for row in result['by_length']]
    print(f'{path.name}: {rows[-1][0]["human_texts"]} and {rows[-1][0]["synthetic_texts"]} texts')
    for figures in zip(*rows):
        low, high = figures[-1]['auroc_interval']
        print('|', figures[0]['statistic'], '|', ' | '.join(
            f'{row["auroc"]:.3f}' for row in figures), f'| {low:.3f} to {high:.3f}',
            f'| {100 * figures[-1]["accuracy"]:.1f} %',
            f'| {100 * figures[-1]["true_positive_rate"]:.1f} % |')


if __name__ == '__main__':
    main()
