"""Measures how fast text becomes tokens, side by side with tiktoken and tokenizers.

    GPT2_TEST_DATA=FOLDER python3 benchmarks/encoder.py

The folder holds texts (*.txt, *.tokens, *.jsonl) and the released vocabulary, in gpt2-vocab/. Each
text is encoded as one str, `cold` by an encoder that has just been made and `warm` by one that has
met the text before. The encoders take turns; medians are printed as a Markdown table, in MB/s.
"""

import argparse
import collections
import glob
import importlib.util
import os
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[0] = os.path.join(HERE, os.pardir, 'src')  # this file has the name of what it measures


def make_project(vocabulary):
    """This project's Encoder, as a function from a text to its tokens."""
    import encoder
    return encoder.get_encoder('', vocabulary).encode


def make_tiktoken(vocabulary):
    """tiktoken's gpt2."""
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    pattern = (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s")
    ranks = data_gym_to_mergeable_bpe_ranks(*vocabulary_files(vocabulary))
    return tiktoken.Encoding('gpt2', pat_str=pattern, mergeable_ranks=ranks,
                             special_tokens={}).encode_ordinary


def make_tokenizers(vocabulary):
    """tokenizers' byte-level BPE."""
    import tokenizers
    merges, vocab = vocabulary_files(vocabulary)
    made = tokenizers.ByteLevelBPETokenizer(vocab, merges)
    return lambda text: made.encode(text).ids


def vocabulary_files(vocabulary):
    """Returns the paths of the merges and of the ids."""
    return [os.path.join(vocabulary, name) for name in ('vocab.bpe', 'encoder.json')]


MAKERS = collections.OrderedDict([('this project', make_project), ('tiktoken', make_tiktoken),
                                  ('tokenizers', make_tokenizers)])


def seconds(encode, text):
    """Returns the time an encoding takes."""
    began = time.perf_counter()
    encode(text)
    return time.perf_counter() - began


def measure(makers, vocabulary, texts, rounds):
    """Returns the median seconds by name of the encoder and text and by state, cold or warm."""
    times = collections.defaultdict(list)
    for _ in range(rounds):
        for title, text in texts.items():
            for name, maker in makers.items():
                encode = maker(vocabulary)
                times[name, title, 'cold'].append(seconds(encode, text))
                times[name, title, 'warm'].append(seconds(encode, text))
    return {key: statistics.median(values) for key, values in times.items()}


def read_texts(folder):
    """Returns the texts of a folder by name, and all of them in one."""
    texts = {}
    for ending in ('*.txt', '*.tokens', '*.jsonl'):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), ending))):
            with open(path, encoding='utf-8', newline='') as file:
                texts[os.path.basename(path)] = file.read()
    texts['all'] = ''.join(texts.values())
    return texts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', default=os.environ.get('GPT2_TEST_DATA'),
                        help='the folder; GPT2_TEST_DATA if not given')
    parser.add_argument('--rounds', type=int, default=5)
    options = parser.parse_args()
    if not options.data:
        parser.error('name the folder of the texts with --data')
    vocabulary = os.path.join(options.data, 'gpt2-vocab')
    texts = read_texts(options.data)
    makers = {name: maker for name, maker in MAKERS.items()
              if name == 'this project' or importlib.util.find_spec(name)}
    for title, text in texts.items():
        tokens = {name: list(maker(vocabulary)(text)) for name, maker in makers.items()}
        for name in tokens:
            if tokens[name] != tokens['this project']:
                sys.exit('%s gives other tokens for %s' % (name, title))
    times = measure(makers, vocabulary, texts, options.rounds)

    ratio = ' / tiktoken' if 'tiktoken' in makers else ''
    print('| MB/s, medians of %d | MB | %s |' % (options.rounds, ' | '.join(
        list(makers) + (['this project' + ratio] if ratio else []))))
    print('|' + ' --- |' * (2 + len(makers) + bool(ratio)))
    for state in ('cold', 'warm'):
        for title, text in texts.items():
            size = len(text.encode('utf-8')) / 1e6
            cells = ['%.2f' % (size / times[name, title, state]) for name in makers]
            if ratio:
                cells.append('%.2f' % (times['tiktoken', title, state]
                                       / times['this project', title, state]))
            print('| %s, %s | %.2f | %s |' % (title, state, size, ' | '.join(cells)))


if __name__ == '__main__':
    main()
