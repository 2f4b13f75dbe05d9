"""The engines that the benchmarks run: this project, and its peers.

Nothing big is imported before an engine needs it: start-up time and memory are measured, too.
"""

import functools
import importlib.util
import os
import sys
import time

from official import MODEL
from peers import PEERS, Engine

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHUNK_SECONDS = 0.5  # about how long, at most, the commands decode before they show progress


def open_decoder(folder, engine, dtype):
    """Return a decoder of this project."""
    from gpt2.model_dir import open_model_dir
    from gpt2.sampling import engines
    return engines.open_decoder(open_model_dir(MODEL, folder), engine, dtype)


def load_project(folder, target, temperature, engine, dtype):
    """This project."""
    return functools.partial(generate, open_decoder(folder, engine, dtype), temperature=temperature)


def start_batch(decoder, prompts):
    """Start a batch of prompts; equal ones are read once."""
    rows = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(row)
    decoder.reset(len(prompts))
    for prompt, same in rows.items():
        decoder.prefill(same, list(prompt))


def generate(decoder, prompts, n_new, temperature=1):
    """Continue prompts by a bare loop, in chunks as the commands do: int [B, N]."""
    import numpy as np

    from gpt2.sampling import rng
    from gpt2.sampling.options import SamplingOptions
    sampling = SamplingOptions(temperature=temperature)
    rngs = [rng.sample_rng(0, row) for row in range(len(prompts))]
    start_batch(decoder, prompts)
    chunks, chunk, remaining = [], 1, n_new
    while remaining:
        chunk = min(chunk, remaining)
        began = time.perf_counter()
        uniforms = None if sampling.greedy else rng.draw_uniforms(rngs, chunk,
                                                                  decoder.hparams.n_vocab)
        chunks.append(decoder.decode(chunk, sampling, uniforms)[0])
        rate = chunk / (time.perf_counter() - began)
        remaining -= chunk
        chunk = max(1, min(2 * chunk, int(rate * CHUNK_SECONDS)))
    return np.concatenate(chunks, axis=1)


def project_engine(title, n_bytes, **keywords):
    """Return an Engine of this project; the keywords are its engine and its dtype."""
    return Engine(title, ['tensorflow'], n_bytes, None, None,
                  functools.partial(load_project, **keywords))


PROJECT = {
    'graph': project_engine('graph f32', 4, engine='graph', dtype='float32'),
    'graph-bf16': project_engine('graph bf16', 2, engine='graph', dtype='bfloat16'),
    'lite-f32': project_engine('lite f32', 4, engine='lite', dtype='float32'),
    'lite-int8': project_engine('lite int8', 1, engine='lite', dtype='int8'),
    'lite-int4': project_engine('lite int4', 18 / 32, engine='lite', dtype='int4'),
}
ENGINES = {**PROJECT, **PEERS}
LITE = tuple(name for name in PROJECT if name.startswith('lite'))


def is_installed(name):
    """Return whether everything that an engine needs is installed."""
    if name in LITE and sys.version_info < (3, 8):  # TensorFlow 1
        return False
    return all(importlib.util.find_spec(package) for package in ENGINES[name].needs)


def converted(folder, name):
    """Return the path of a peer's copy of the model."""
    return os.path.join(folder, ENGINES[name].copy or MODEL)


def is_converted(folder, name):
    """Return whether the model is in the working folder in an engine's own format."""
    if name in LITE:
        from gpt2.lite import converted as lite
        return lite.find(os.path.join(folder, MODEL),
                         ENGINES[name].load.keywords['dtype']) is not None
    return os.path.exists(converted(folder, name))


def load(folder, name, temperature=1):
    """Load an engine."""
    return ENGINES[name].load(folder, converted(folder, name), temperature)
