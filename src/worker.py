"""Works for another machine: python3 src/worker.py HOST:PORT. See --help."""

from gpt2 import cli
from gpt2.cluster import options, worker
from gpt2.model_dir import ModelOptions

OPTIONS = (options.WorkerOptions, ModelOptions)


def work(chief, *, models_dir='models'):
    """Work for a command that runs elsewhere with --serve, the chief, until it has ended.

    python3 src/generate_unconditional_samples.py --serve 5000 --output FILE    on HOST
    python3 src/worker.py HOST:5000                                             on other machines

    generate_conditional_samples.py, generate_output_dataset.py and evaluate.py take --serve, too.

    Workers may join and leave at any time. What one had begun when it was lost is done by another.
    The results are the same as one machine's, if all have the same kind of processor. Model,
    weights and TensorFlow must be the chief's. Ctrl-C gives back what this worker has begun.

    The port of the chief has no password. Keep it within a private network, or reach it by SSH:
    ssh -N -L 5000:localhost:5000 HOST, and then python3 src/worker.py localhost:5000.
    """
    worker.work(options.WorkerOptions(chief=chief).chief, models_dir)


if __name__ == '__main__':
    cli.run(work, *OPTIONS)
