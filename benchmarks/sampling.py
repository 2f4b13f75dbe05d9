"""Measures how fast this project samples, side by side with transformers on torch.

    python3 benchmarks/sampling.py [--rounds 5] [--prompt 32] [--new 128]

On random weights in the shape of 124M, batch 1, greedy, float32. Each engine runs in a process of
its own, in turn, `--rounds` times; the medians and their ratio are printed. Memory is the peak
resident memory of the whole process. First it is checked that both give the same tokens.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, os.pardir, folder) for folder in ('src', 'tests')]

HPARAMS = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}


def peak_memory():
    """Returns the peak resident memory of this process in MB (Linux)."""
    # Not getrusage's: that begins at what the parent process had.
    with open('/proc/self/status', encoding='ascii') as file:
        return int(re.search(r'VmHWM:\s*(\d+) kB', file.read()).group(1)) * 1024 / 1e6


def run_import(directory, prompt, length):
    """What TensorFlow takes by itself."""
    import cli
    cli.import_tensorflow()
    return {}


def run_graph(directory, prompt, length):
    """This project's graph engine."""
    import types

    import cli
    tf = cli.import_tensorflow()
    import checkpoint
    import sample
    hparams = types.SimpleNamespace(**HPARAMS)
    with tf.Session() as session:
        sampler = sample.Sampler(session, hparams, temperature=0)
        checkpoint.restore(session, directory)

        def generate():
            return sample.complete(sampler, [prompt], [0], seed=0, length=length)[0].tolist()
        return timed(generate, length)


def run_transformers(directory, prompt, length):
    """transformers on torch, float32."""
    import tensorflow.compat.v1 as tf
    import torch
    import transformers
    reader = tf.train.load_checkpoint(os.path.join(directory, 'model.ckpt'))
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    state = net.state_dict()
    for name in reader.get_variable_to_shape_map():
        *scopes, last = re.sub(r'/h(\d+)/', r'/h/\1/', name).split('/')[1:]
        last = {'g': 'weight', 'w': 'weight', 'b': 'bias'}.get(last, last + '.weight')
        key = '.'.join(['transformer', *scopes, last])
        state[key].copy_(torch.from_numpy(reader.get_tensor(name)).reshape(state[key].shape))
    inputs = torch.tensor([prompt])

    def generate():
        with torch.no_grad():
            output = net.generate(inputs, max_new_tokens=length, min_new_tokens=length,
                                  do_sample=False, pad_token_id=0,
                                  attention_mask=torch.ones_like(inputs))
        return output[0, len(prompt):].tolist()
    return timed(generate, length)


def timed(generate, length):
    """Returns the tokens and the milliseconds a new token takes, prompt included, once warm."""
    generate()
    began = time.monotonic()
    tokens = generate()
    return {'tokens': tokens, 'ms': 1000 * (time.monotonic() - began) / length}


WORKERS = {'import': run_import, 'graph': run_graph, 'transformers': run_transformers}


def measure(worker, directory, prompt, length):
    """Runs one worker in a process of its own and returns what it measured."""
    output = subprocess.run(
        [sys.executable, os.path.abspath(__file__), '--worker', worker, '--directory', directory,
         '--prompt', json.dumps(prompt), '--new', str(length)],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    return json.loads(output.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--prompt', default='32', help='its number of tokens')
    parser.add_argument('--new', type=int, default=128, help='number of new tokens')
    parser.add_argument('--worker', choices=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument('--directory', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        result = WORKERS[options.worker](options.directory, json.loads(options.prompt),
                                         options.new)
        print(json.dumps(dict(result, memory=peak_memory())))
        return

    import reference
    prompt = [(7919 * i) % HPARAMS['n_vocab'] for i in range(1, int(options.prompt) + 1)]
    with tempfile.TemporaryDirectory() as directory:
        reference.write_checkpoint(directory, HPARAMS, reference.random_weights(HPARAMS, 0))
        results = {name: [] for name in WORKERS}
        for _ in range(options.rounds):
            for name in WORKERS:
                results[name].append(measure(name, directory, prompt, options.new))
    assert results['graph'][0]['tokens'] == results['transformers'][0]['tokens']

    def median(name, what):
        return statistics.median(result[what] for result in results[name])
    for name in ('transformers', 'graph'):
        print('%-14s %6.1f ms a token   %6.0f MB' % (name, median(name, 'ms'),
                                                      median(name, 'memory')))
    print('%-14s %27.0f MB' % ('TensorFlow', median('import', 'memory')))
    print('time, graph / transformers: %.2f' % (median('graph', 'ms')
                                                 / median('transformers', 'ms')))


if __name__ == '__main__':
    main()
