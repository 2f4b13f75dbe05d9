"""Measure how fast text becomes tokens, side by side with tiktoken and tokenizers.

    GPT2_TEST_DATA=FOLDER python3 benchmarks/encoder.py [--baseline SRC]

The folder holds texts (*.txt, *.tokens, *.jsonl) and the released vocabulary, in gpt2-vocab/. Each
text is encoded as one str, `cold` by a new encoder and `warm` by the same one again. The encoders
take turns; medians are printed as a Markdown table, in MB/s. With --baseline, the src/ folder of
another version of this project takes its turns too.
"""

import argparse
import collections
import glob
import importlib.util
import os
import statistics
import sys
import time

SRC = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'src')
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


# Each of these returns a function from a text to its tokens.

def load_project(vocabulary, src=SRC):
    """Load the encoder of this project, from this src/ folder."""
    spec = importlib.util.spec_from_file_location('measured', os.path.join(src, 'encoder.py'))
    encoder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(encoder)
    return encoder.get_encoder('', vocabulary).encode


def load_tiktoken(vocabulary):
    """Load tiktoken's gpt2."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    ranks = data_gym_to_mergeable_bpe_ranks(*vocabulary_files(vocabulary))
    return tiktoken.Encoding('gpt2', pat_str=PATTERN, mergeable_ranks=ranks,
                             special_tokens={}).encode_ordinary


def load_tokenizers(vocabulary):
    """Load the byte-level BPE of tokenizers."""
    import tokenizers
    merges, ids = vocabulary_files(vocabulary)
    tokenizer = tokenizers.ByteLevelBPETokenizer(ids, merges)
    return lambda text: tokenizer.encode(text).ids


def vocabulary_files(vocabulary):
    """Return the paths of the merges and of the ids."""
    return [os.path.join(vocabulary, name) for name in ('vocab.bpe', 'encoder.json')]


def choose_encoders(baseline):
    """Return the functions that load the encoders, by name."""
    loaders = {'this project': load_project}
    if baseline:
        loaders['baseline'] = lambda vocabulary: load_project(vocabulary, baseline)
    peers = {'tiktoken': load_tiktoken, 'tokenizers': load_tokenizers}
    loaders.update({name: load for name, load in peers.items() if importlib.util.find_spec(name)})
    return loaders


def read_texts(folder):
    """Return the texts of a folder by name, and all of them as one."""
    texts = {}
    for pattern in ('*.txt', '*.tokens', '*.jsonl'):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), pattern))):
            with open(path, encoding='utf-8', newline='') as file:
                texts[os.path.basename(path)] = file.read()
    texts['all'] = ''.join(texts.values())
    return texts


def check_tokens(loaders, vocabulary, texts):
    """Exit if the encoders disagree."""
    for title, text in texts.items():
        tokens = {name: list(load(vocabulary)(text)) for name, load in loaders.items()}
        for name in tokens:
            if tokens[name] != tokens['this project']:
                sys.exit(f'{name} gives other tokens for {title}')


def seconds(encode, text):
    """Return the time that an encoding takes."""
    began = time.perf_counter()
    encode(text)
    return time.perf_counter() - began


def measure(loaders, vocabulary, texts, rounds):
    """Return the median seconds: a dict with keys (encoder, text, 'cold' or 'warm')."""
    times = collections.defaultdict(list)
    for _ in range(rounds):
        for title, text in texts.items():
            for name, load in loaders.items():
                encode = load(vocabulary)
                times[name, title, 'cold'].append(seconds(encode, text))
                times[name, title, 'warm'].append(seconds(encode, text))
    return {key: statistics.median(values) for key, values in times.items()}


def print_table(times, loaders, texts, rounds):
    """Print the speeds, and those of this project relative to the others that it is held to."""
    ratios = [name for name in ('baseline', 'tiktoken') if name in loaders]
    columns = [*loaders, *(f'this project / {name}' for name in ratios)]
    print(f'| MB/s, medians of {rounds} | MB | {" | ".join(columns)} |')
    print('|' + ' --- |' * (2 + len(columns)))
    for state in ('cold', 'warm'):
        for title, text in texts.items():
            size = len(text.encode('utf-8')) / 1e6
            ours = times['this project', title, state]
            cells = [size, *(size / times[name, title, state] for name in loaders),
                     *(times[name, title, state] / ours for name in ratios)]
            print(f'| {title}, {state} | ' + ' | '.join(f'{cell:.2f}' for cell in cells) + ' |')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=os.environ.get('GPT2_TEST_DATA'),
                        help='the folder; by default GPT2_TEST_DATA')
    parser.add_argument('--baseline', metavar='SRC', help='src/ of another version to measure')
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    if not options.data:
        parser.error('name the folder of the texts with --data')
    vocabulary = os.path.join(options.data, 'gpt2-vocab')
    texts = read_texts(options.data)
    loaders = choose_encoders(options.baseline)
    check_tokens(loaders, vocabulary, texts)
    times = measure(loaders, vocabulary, texts, options.rounds)
    print_table(times, loaders, texts, options.rounds)


if __name__ == '__main__':
    # Python puts this folder on the path, where this file has the name of the module it measures.
    sys.path.pop(0)
    main()
