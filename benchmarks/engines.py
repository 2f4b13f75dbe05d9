"""The engines that the benchmarks run: this project and its peers, and the model in their formats.

Nothing big is imported before an engine needs it: start-up time and memory are measured, too.
"""

import collections
import functools
import importlib.util
import json
import os
import re
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORES = len(os.sched_getaffinity(0))
MODEL = 'official'  # the name of the model that is measured, in the working folder
CHUNK_SECONDS = 0.5  # about how long, at most, the commands decode before they show progress


def shape(n_layer, n_head, n_embd):
    """Return the sizes of a released model."""
    return {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': n_embd, 'n_head': n_head,
            'n_layer': n_layer}


SIZES = {'124M': shape(12, 12, 768), '355M': shape(24, 16, 1024), '774M': shape(36, 20, 1280),
         '1558M': shape(48, 25, 1600)}


# The model, in every engine's format

def write_official(folder, size):
    """Write a model with random weights in the official format."""
    import encoder
    import reference
    directory = os.path.join(folder, MODEL)
    reference.write_checkpoint(directory, SIZES[size], reference.random_weights(SIZES[size], 0))
    # An invented vocabulary: every byte, and 50,000 pairs of bytes.
    symbols = list(encoder.bytes_to_unicode().values())
    merges = [(first, second) for second in symbols for first in symbols][:50000]
    tokens = symbols + [first + second for first, second in merges] + ['<|endoftext|>']
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n' + ''.join(f'{first} {second}\n' for first, second in merges))


def official_weights(folder):
    """Yield the name of each weight and its value."""
    import tensorflow.compat.v1 as tf
    reader = tf.train.load_checkpoint(os.path.join(folder, MODEL, 'model.ckpt'))
    for name in sorted(reader.get_variable_to_shape_map()):
        yield name, reader.get_tensor(name)


def read_json(folder, name):
    """Return the contents of a JSON file of the official model."""
    with open(os.path.join(folder, MODEL, name), encoding='utf-8') as file:
        return json.load(file)


def read_tokens(folder):
    """Return the tokens of the vocabulary, by id."""
    vocabulary = read_json(folder, 'encoder.json')
    return sorted(vocabulary, key=vocabulary.get)


def write_transformers(folder, target):
    """Convert the model for transformers."""
    import torch
    import transformers
    hparams = read_json(folder, 'hparams.json')
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        n_embd=hparams['n_embd'], n_head=hparams['n_head'], n_layer=hparams['n_layer']))
    state = net.state_dict()
    for name, value in official_weights(folder):
        *scopes, last = re.sub(r'/h(\d+)/', r'/h/\1/', name).split('/')[1:]
        last = {'g': 'weight', 'w': 'weight', 'b': 'bias'}.get(last, last + '.weight')
        weight = state['.'.join(['transformer'] + scopes + [last])]
        weight.copy_(torch.from_numpy(value).reshape(weight.shape))
    net.save_pretrained(target)


def write_ctranslate2(folder, target, dtype):
    """Convert the model for CTranslate2."""
    from ctranslate2.converters import openai_gpt2
    from ctranslate2.specs import common_spec, transformer_spec
    hparams = read_json(folder, 'hparams.json')
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        hparams['n_layer'], hparams['n_head'], pre_norm=True,
        activation=common_spec.Activation.GELUTanh)
    openai_gpt2.set_decoder(spec.decoder, dict(official_weights(folder)), 'model')
    spec.register_vocabulary(read_tokens(folder))
    for name in ('unk_token', 'bos_token', 'eos_token'):
        setattr(spec.config, name, '<|endoftext|>')
    spec.validate()
    spec.optimize(quantization=dtype)
    os.makedirs(target)
    spec.save(target)


def write_gguf(folder, target, dtype):
    """Convert the model for llama.cpp: a GGUF file with matrices of this dtype."""
    import gguf
    import numpy as np
    hparams = read_json(folder, 'hparams.json')
    tokens = read_tokens(folder)
    with open(os.path.join(folder, MODEL, 'vocab.bpe'), encoding='utf-8') as file:
        merges = file.read().split('\n')[1:-1]
    writer = gguf.GGUFWriter(target, 'gpt2')
    writer.add_context_length(hparams['n_ctx'])
    writer.add_embedding_length(hparams['n_embd'])
    writer.add_feed_forward_length(4 * hparams['n_embd'])
    writer.add_block_count(hparams['n_layer'])
    writer.add_head_count(hparams['n_head'])
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    names = {'wte': 'token_embd', 'wpe': 'position_embd', 'ln_f': 'output_norm',
             'ln_1': 'attn_norm', 'attn/c_attn': 'attn_qkv', 'attn/c_proj': 'attn_output',
             'ln_2': 'ffn_norm', 'mlp/c_fc': 'ffn_up', 'mlp/c_proj': 'ffn_down'}
    for name, value in official_weights(folder):
        layer, part, kind = re.fullmatch(r'model/(?:h(\d+)/)?(.+?)(?:/([gwb]))?', name).groups()
        if kind == 'w':
            value = np.ascontiguousarray(value[0].T)  # [n_out, n_in]
        kept = value.ndim == 1 or part == 'wpe'
        quantized = gguf.GGMLQuantizationType['F32' if kept else dtype]
        block = f'blk.{layer}.' if layer else ''
        writer.add_tensor(f'{block}{names[part]}.{"bias" if kind == "b" else "weight"}',
                          gguf.quants.quantize(value, quantized), raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# The engines: each loads the model and returns a function from prompts and a number of new tokens
# to those tokens, int [B, N].

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


# Peers

def load_transformers(folder, target, temperature, dtype, device='cpu'):
    """transformers on torch."""
    import torch
    import transformers
    torch.set_num_threads(CORES)
    net = transformers.GPT2LMHeadModel.from_pretrained(target, dtype=getattr(torch, dtype)).eval()
    net.to(device)
    net.generation_config.eos_token_id = None  # no text ends early

    def generate(prompts, n_new):
        inputs = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            tokens = net.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False,
                                  max_new_tokens=n_new, pad_token_id=0)
        return tokens[:, len(prompts[0]):].cpu().numpy()
    return generate


def load_ctranslate2(folder, target, temperature, dtype):
    """CTranslate2."""
    import ctranslate2
    import numpy as np
    net = ctranslate2.Generator(target, compute_type=dtype, inter_threads=1, intra_threads=CORES)
    tokens = read_tokens(folder)

    def generate(prompts, n_new):
        results = net.generate_batch([[tokens[i] for i in prompt] for prompt in prompts],
                                     min_length=n_new, max_length=n_new,
                                     include_prompt_in_result=False)
        return np.array([result.sequences_ids[0] for result in results])
    return generate


def load_llama(folder, target, temperature, cache):
    """llama.cpp, with a context for each batch size and a KV cache of this dtype."""
    import llama_cpp
    import numpy as np
    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, None)
    hparams = read_json(folder, 'hparams.json')
    llama_cpp.llama_backend_init()
    net = llama_cpp.llama_model_load_from_file(target.encode(),
                                               llama_cpp.llama_model_default_params())

    @functools.lru_cache(maxsize=None)
    def context(n_batch):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_batch * hparams['n_ctx'], n_batch
        params.n_threads = params.n_threads_batch = CORES
        params.type_k = params.type_v = getattr(llama_cpp, 'GGML_TYPE_' + cache)
        return llama_cpp.llama_init_from_model(net, params), llama_cpp.llama_batch_init(2048, 0, 1)

    def read(n_batch, rows, position):
        """Read the next tokens of each row; return the likeliest token after each row."""
        state, batch = context(n_batch)
        wanted = []
        for row, tokens in enumerate(rows):
            for i, token in enumerate(tokens):
                n = row * len(tokens) + i
                batch.token[n], batch.pos[n] = token, position + i
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
                batch.logits[n] = i == len(tokens) - 1
            wanted.append(n)
        batch.n_tokens = n + 1
        if llama_cpp.llama_decode(state, batch):
            raise RuntimeError('llama_decode failed')
        return [int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, n),
                                          [hparams['n_vocab']]).argmax()) for n in wanted]

    def generate(prompts, n_new, silence=silence):  # the callback must live as long as this does
        n_batch = len(prompts)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context(n_batch)[0]), True)
        columns = [read(n_batch, prompts, 0)]
        for position in range(len(prompts[0]), len(prompts[0]) + n_new - 1):
            columns.append(read(n_batch, [[token] for token in columns[-1]], position))
        return np.array(columns).T
    return generate


# `needs`: the packages of an engine; `bytes`: the size of a weight; `write`: a function of the
# working folder and a path, which writes the model there; `load`: see above.
Engine = collections.namedtuple('Engine', 'title needs bytes write load')


def project_engine(title, n_bytes, **keywords):
    """Return an Engine of this project; the keywords are its engine and its dtype."""
    return Engine(title, ['tensorflow'], n_bytes, None,
                  functools.partial(load_project, **keywords))


PROJECT = {
    'graph': project_engine('graph f32', 4, engine='graph', dtype='float32'),
    'graph-bf16': project_engine('graph bf16', 2, engine='graph', dtype='bfloat16'),
    'lite-f32': project_engine('lite f32', 4, engine='lite', dtype='float32'),
    'lite-int8': project_engine('lite int8', 1, engine='lite', dtype='int8'),
    'lite-int4': project_engine('lite int4', 18 / 32, engine='lite', dtype='int4'),
}
PEERS = {
    'torch-f32': Engine('transformers f32', ['transformers', 'torch'], 4, write_transformers,
                        functools.partial(load_transformers, dtype='float32')),
    'torch-bf16': Engine('transformers bf16', ['transformers', 'torch'], 2, write_transformers,
                         functools.partial(load_transformers, dtype='bfloat16')),
    'ct2-f32': Engine('CTranslate2 f32', ['ctranslate2'], 4,
                      functools.partial(write_ctranslate2, dtype='float32'),
                      functools.partial(load_ctranslate2, dtype='float32')),
    'ct2-int8': Engine('CTranslate2 int8', ['ctranslate2'], 1,
                       functools.partial(write_ctranslate2, dtype='int8'),
                       functools.partial(load_ctranslate2, dtype='int8')),
    'llama-f32': Engine('llama.cpp f32', ['llama_cpp', 'gguf'], 4,
                        functools.partial(write_gguf, dtype='F32'),
                        functools.partial(load_llama, cache='F32')),
    'llama-q8': Engine('llama.cpp q8_0', ['llama_cpp', 'gguf'], 34 / 32,
                       functools.partial(write_gguf, dtype='Q8_0'),
                       functools.partial(load_llama, cache='F16')),
    'llama-q4': Engine('llama.cpp q4_0', ['llama_cpp', 'gguf'], 18 / 32,
                       functools.partial(write_gguf, dtype='Q4_0'),
                       functools.partial(load_llama, cache='F16')),
}
ENGINES = {**PROJECT, **PEERS}
LITE = tuple(name for name in PROJECT if name.startswith('lite'))


def is_installed(name):
    """Return whether everything that an engine needs is installed."""
    if name in LITE and sys.version_info < (3, 8):  # TensorFlow 1
        return False
    return all(importlib.util.find_spec(package) for package in ENGINES[name].needs)


def converted(folder, name):
    """Return the path of an engine's own copy of the model; the two of transformers share one."""
    return os.path.join(folder, 'torch' if name.startswith('torch') else name)


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
