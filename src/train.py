"""Train a model on text: python3 src/train.py DATA --output NAME. See --help."""

from gpt2 import cli
from gpt2.model_dir import ModelOptions
from gpt2.training import run
from gpt2.training.options import ComputeOptions, RunOptions, TrainingOptions

OPTIONS = (ModelOptions, TrainingOptions, ComputeOptions, RunOptions)


def train(data, output=None, model_name='124M', scratch=False, n_layer=None, n_head=None,
          n_embd=None, n_ctx=None, resume=False, steps=1000, batch_size=4, accumulation=1,
          seq_len=None, optimizer='adamw', learning_rate=1e-4, schedule='cosine', warmup=None,
          weight_decay=0.01, clip_norm=1.0, dropout=0.0, train_only='all', dtype='float32',
          recompute=False, xla=False, devices=None, validation=None, held_out=None, val_every=100,
          sample_length=100, keep_last=1, seed=0, output_dir=None, models_dir='models'):
    """Train a model on your own text, from the weights of a model or from scratch.

    python3 src/train.py DATA --output NAME [flags]

    Prints the validation loss and a sample from time to time, and keeps the weights with the lowest
    validation loss in OUTPUT_DIR/NAME: a model that the other scripts take as --model_name NAME.
    Ctrl-C ends training early: the step is completed, the loss is validated, and the weights are
    kept if they are the best. A second Ctrl-C ends it at once.

    Beside the weights are metrics.jsonl, the losses, samples.txt, and training/, which --resume
    needs: it continues where the last validation was, even after a crash. TensorBoard, which
    `pip install tensorboard` gets, shows it: tensorboard --logdir OUTPUT_DIR/NAME/training
    You may remove training/ when you are done. The tokens of DATA are kept in a file beside it.

    Several hosts train one model where each runs this command, with its own copy of the text, and
    the environment variable TF_CONFIG names them all and this one:
    {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}
    The first one needs the weights and writes. Ctrl-C stops all of them; if one is lost, all end.
    Whoever reaches such a port controls the process: keep the ports within a private network.
    """
    run.train(
        ModelOptions(model_name=model_name, models_dir=models_dir),
        TrainingOptions(
            scratch=scratch, n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_ctx=n_ctx,
            steps=steps, batch_size=batch_size, accumulation=accumulation, seq_len=seq_len,
            optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, warmup=warmup,
            weight_decay=weight_decay, clip_norm=clip_norm, dropout=dropout, train_only=train_only,
            dtype=dtype, held_out=held_out, val_every=val_every, seed=seed),
        ComputeOptions(recompute=recompute, xla=xla, devices=devices),
        RunOptions(data=data, output=output, output_dir=output_dir, validation=validation,
                   resume=resume, sample_length=sample_length, keep_last=keep_last))


if __name__ == '__main__':
    cli.run(train, *OPTIONS)
