"""Learn a vocabulary from text: python3 src/learn_vocabulary.py DATA --output NAME. See --help."""

from gpt2 import cli
from gpt2.training import vocabulary
from gpt2.training.options import VocabularyOptions

OPTIONS = (VocabularyOptions,)


def learn_vocabulary(data, output=None, size=1000, held_out=0.1, models_dir='models'):
    """Learn a byte-level BPE vocabulary from text, for a model of your own.

    python3 src/learn_vocabulary.py DATA --output NAME [flags]
    python3 src/train.py DATA --scratch --model_name NAME --output MODEL --n_layer 4 --n_head 4
        --n_embd 128 --n_ctx 256

    Writes MODELS_DIR/NAME with encoder.json and vocab.bpe, and an hparams.json with the number of
    tokens and, for the rest, the sizes of 124M; the flags of train.py give others. Ctrl-C leaves
    nothing behind.
    """
    vocabulary.learn(VocabularyOptions(
        data=data, output=output, size=size, held_out=held_out, models_dir=models_dir))


if __name__ == '__main__':
    cli.run(learn_vocabulary, *OPTIONS)
