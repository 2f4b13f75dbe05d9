"""Convert a model between formats; see --help."""

from gpt2 import cli
from gpt2.formats import conversion

OPTIONS = (conversion.ConversionOptions,)


def convert(source, output, to=None, base_model=None, models_dir='models', dtype=None):
    """Convert a model to Hugging Face transformers or llama.cpp, and from other programs.

    python3 src/convert.py models/124M 124M-transformers --to transformers
    python3 src/convert.py models/124M 124M.gguf --to gguf --dtype q8_0
    python3 src/convert.py DOWNLOADED models/mine --to tensorflow
    python3 src/convert.py checkpoint/run1 models/mine --to tensorflow --base_model 124M

    SOURCE is one of these:
    - a model directory, as in models/;
    - a GPT-2 of transformers: config.json; model.safetensors or pytorch_model.bin, or the shards of
      one and their index, in float32, float16 or bfloat16; and vocab.json with merges.txt, or
      tokenizer.json;
    - a TensorFlow checkpoint of a fine-tuning program: `checkpoint` and model-1000.*, with or
      without hparams.json, encoder.json and vocab.bpe. The optimizer's variables are left out.
      The weights are those that `checkpoint` names; name others by their prefix, as in
      checkpoint/run1/model-1000.

    The weights keep their exact values, but for --dtype; float16 and bfloat16 become float32. One
    thing differs: the tokenizers of transformers and llama.cpp read a literal <|endoftext|> as the
    token between documents, while ours reads it as ordinary text.
    """
    conversion.convert(conversion.ConversionOptions(
        source=source, output=output, to=to, base_model=base_model, models_dir=models_dir,
        dtype=dtype))


if __name__ == '__main__':
    cli.run(convert, *OPTIONS)
