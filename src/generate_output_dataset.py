"""Writes a data set of a model's output: python3 src/generate_output_dataset.py. See --help."""

from gpt2 import cli
from gpt2.model_dir import ModelOptions
from gpt2.sampling import dataset
from gpt2.sampling.options import DatasetOptions, EngineOptions

OPTIONS = (ModelOptions, EngineOptions, DatasetOptions)


def generate_dataset(model_name='124M', *, train=250000, valid=5000, test=5000, seed=None,
                     batch_size=1, processes=1, data_dir='data', models_dir='models',
                     engine='auto', dtype='float32', serve=None, work=True):
    """Write texts that the model makes up, in the files of OpenAI's gpt-2-output-dataset.

    python3 src/generate_output_dataset.py 124M --batch_size 32
    python3 src/generate_output_dataset.py 1M --train 1000 --valid 100 --test 100

    Stopped with Ctrl-C or otherwise, the same command continues the files. Several machines make
    them together: one runs this command with --serve 5000, the others python3 src/worker.py
    HOST:5000. The port knows no password; see src/worker.py --help.

    DATA_DIR gets six files, for 124M small-117M.train.jsonl, small-117M.valid.jsonl and
    small-117M.test.jsonl, at temperature 1, and small-117M-k40.train.jsonl and so on, with top-k
    40. (355M is medium-345M, 774M large-762M, 1558M xl-1542M; other models keep their names.) Each
    has a JSON object a line:

      id         counts from 0 in .train.jsonl, and on through .valid.jsonl and .test.jsonl
      ended      whether the text ended with <|endoftext|>, or else was cut
      length     tokens of the text, at most the window of the model, 1,024
      text       without <|endoftext|>
      synthetic  true

    Beside each file lies FILE.settings.json, which says how its texts were made.
    """
    dataset.write_dataset(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        EngineOptions(engine=engine, dtype=dtype),
        DatasetOptions(train=train, valid=valid, test=test, seed=seed, batch_size=batch_size,
                       processes=processes, data_dir=data_dir, serve=serve, work=work))


if __name__ == '__main__':
    cli.run(generate_dataset, *OPTIONS)
