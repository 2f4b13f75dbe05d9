"""Learn a small byte-level BPE vocabulary from a text and write encoder.json and vocab.bpe.

The ids are in GPT-2's order: the 256 bytes, the merges from the first to the last, <|endoftext|>.
It is learned from the first part of the text only, so that the rest can serve as unseen text.

    python3 tests/learn_vocabulary.py TEXT OUTPUT_DIR [--size 1000] [--train_share 0.9]
"""

import argparse
import json
import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, 'src'))

from encoder import END_OF_TEXT, bytes_to_unicode, pretokenize  # noqa: E402  (needs the path)


def first_part(text, share):
    """Return the first bytes of a text, this share of them, without a character cut in two."""
    data = text.encode('utf-8')
    return data[:int(len(data) * share)].decode('utf-8', 'ignore')


def learn_merges(text, count):
    """Return the merges that BPE learns from the words of a text, at most this many."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=256 + count, show_progress=False,
                                  initial_alphabet=list(bytes_to_unicode().values()))
    words = (word for document in text.split(END_OF_TEXT) for word in pretokenize(document))
    tokenizer.train_from_iterator(words, trainer)
    merges = json.loads(tokenizer.to_str())['model']['merges']
    # Older versions of tokenizers write a merge as 'a b', newer ones as ['a', 'b'].
    return [tuple(merge.split(' ') if isinstance(merge, str) else merge) for merge in merges]


def write_vocabulary(directory, merges):
    """Write the two files of a vocabulary with these merges; return its size."""
    tokens = [*bytes_to_unicode().values(), *(a + b for a, b in merges), END_OF_TEXT]
    tokens = list(dict.fromkeys(tokens))  # two merges can make the same token
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='utf-8', newline='\n') as file:
        file.write('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in merges))
    return len(tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('text', help='a UTF-8 text file')
    parser.add_argument('output_dir', help='directory for encoder.json and vocab.bpe')
    parser.add_argument('--size', type=int, default=1000, help='number of tokens (default 1000)')
    parser.add_argument('--train_share', type=float, default=0.9,
                        help='share of the text, from its start, to learn from (default 0.9)')
    args = parser.parse_args()
    if args.size < 257:
        sys.exit('--size: at least 257, for the 256 bytes and <|endoftext|>')
    if not 0 < args.train_share <= 1:
        sys.exit('--train_share: above 0, at most 1')
    try:
        with open(args.text, encoding='utf-8', newline='') as file:
            text = first_part(file.read(), args.train_share)
        merges = learn_merges(text, count=args.size - 257)
        size = write_vocabulary(args.output_dir, merges)
    except ImportError:
        sys.exit('the package tokenizers is missing: pip install tokenizers')
    except UnicodeDecodeError:
        sys.exit(f'{args.text}: not a UTF-8 text')
    except OSError as error:
        sys.exit(f'{error.filename}: {error.strerror}')
    print(f'{args.output_dir}: {size} tokens, learned from {len(text)} characters')


if __name__ == '__main__':
    main()
