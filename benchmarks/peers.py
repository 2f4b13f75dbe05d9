"""What else people would use to sample: the model in each peer's format, and how it is run.

Nothing big is imported before a peer needs it: start-up time and memory are measured, too.
"""

import collections
import functools
import os
import re

from official import MODEL, official_weights, read_json, read_tokens

CORES = len(os.sched_getaffinity(0))

# `needs`: the packages of an engine; `bytes`: the size of a weight; `copy`: the name of its copy of
# the model in the working folder; `write`: a function of the folder and the path of that copy,
# which writes it; `load`: a function of both and a temperature, see below.
Engine = collections.namedtuple('Engine', 'title needs bytes copy write load')


# Writers: each converts the model in the working folder for a peer

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


def write_openvino(folder, target, dtype):
    """Convert the model for OpenVINO, with weights of a dtype; int4 has a scale for 32 of them."""
    import nncf
    import openvino
    import torch
    hparams = read_json(folder, 'hparams.json')
    n_layer, n_head, n_embd = (hparams[name] for name in ('n_layer', 'n_head', 'n_embd'))
    tokens = torch.zeros([2, 3], dtype=torch.int64)
    cache = [torch.zeros([2, n_head, 5, n_embd // n_head])] * (2 * n_layer)
    net = openvino.convert_model(torch_network(folder, n_layer, n_head), example_input=(
        tokens, tokens, torch.zeros([1, 1, 3, 8]), torch.arange(2, dtype=torch.int32), *cache))
    keep_cache(net, n_head, n_embd // n_head)
    if dtype == 'int8':
        net = nncf.compress_weights(net, mode=nncf.CompressWeightsMode.INT8_ASYM)
    if dtype == 'int4':
        net = nncf.compress_weights(net, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32,
                                    all_layers=True)
    os.makedirs(target)
    openvino.save_model(net, os.path.join(target, 'model.xml'), compress_to_fp16=False)


def keep_cache(net, n_head, width):
    """Let an OpenVINO model of `torch_network` keep keys and values, as OpenVINO's own tools do.

    OpenVINO fuses attention with such a state if its rows are chosen by int32 indices, and it has
    an initial value.
    """
    import numpy as np
    import openvino
    from openvino import opset13
    from openvino._offline_transformations import apply_make_stateful_transformation
    past, present = ([f'{which}{i}' for i in range(len(net.outputs) - 1)]
                     for which in ('past', 'present'))
    shapes = {'tokens': [-1, -1], 'positions': [-1, -1], 'mask': [1, 1, -1, -1], 'rows': [-1],
              **dict.fromkeys(past, [-1, n_head, -1, width])}
    for parameter, (name, sizes) in zip(net.inputs, shapes.items()):
        parameter.get_tensor().set_names({name})
        parameter.get_node().set_partial_shape(openvino.PartialShape(sizes))
    for result, name in zip(net.outputs, ['logits', *present]):
        result.get_tensor().set_names({name})
    net.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(net, dict(zip(past, present)))
    n_rows = opset13.shape_of(net.input('rows').get_node())
    empty = opset13.broadcast(np.float32(0),
                              opset13.concat([n_rows, np.array([n_head, 0, width])], 0))
    for node in net.get_ops():
        if node.get_type_name() == 'ReadValue':
            node.set_arguments([empty.output(0)])
    net.validate_nodes_and_infer_types()


def torch_network(folder, n_layer, n_head):
    """Return the model as a torch module, for a conversion that traces it.

    It takes tokens and positions [B, S], a mask [1, 1, S, T], the row of the cache that each text
    goes on from [B], and the keys and values of each block [B, H, T - S, D]; it returns the logits
    of the last token [B, V] and the longer keys and values.
    """
    import torch
    from torch.nn import functional
    weights = {name[len('model/'):]: torch.from_numpy(
        value[0].T.copy() if name.endswith('/w') else value)
        for name, value in official_weights(folder)}

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], weights[f'{name}/g'], weights[f'{name}/b'],
                                     1e-5)

    def linear(x, name):
        return functional.linear(x, weights[f'{name}/w'], weights[f'{name}/b'])

    class Network(torch.nn.Module):
        def forward(self, tokens, positions, mask, rows, *past):
            x = weights['wte'][tokens] + weights['wpe'][positions]
            present = []
            for layer in range(n_layer):
                c = linear(norm(x, f'h{layer}/ln_1'), f'h{layer}/attn/c_attn')
                q, k, v = (part.unflatten(-1, [n_head, -1]).transpose(1, 2)
                           for part in c.chunk(3, dim=-1))
                k, v = (torch.cat([old.index_select(0, rows), new], dim=2)
                        for old, new in zip(past[2 * layer:2 * layer + 2], (k, v)))
                present += [k, v]
                a = functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)
                x = x + linear(a.flatten(2), f'h{layer}/attn/c_proj')
                m = linear(norm(x, f'h{layer}/ln_2'), f'h{layer}/mlp/c_fc')
                x = x + linear(functional.gelu(m, approximate='tanh'), f'h{layer}/mlp/c_proj')
            return (functional.linear(norm(x[:, -1], 'ln_f'), weights['wte']), *present)
    return Network().eval()


# Loaders: each loads the model and returns a function from prompts and a number of new tokens to
# those tokens, int [B, N].

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


def load_openvino(folder, target, temperature, precision):
    """OpenVINO."""
    import numpy as np
    import openvino
    request = openvino.Core().compile_model(os.path.join(target, 'model.xml'), 'CPU', {
        'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_NUM_THREADS': CORES,
        'INFERENCE_PRECISION_HINT': precision}).create_infer_request()

    def generate(prompts, n_new):
        request.reset_state()
        tokens, end, columns = np.array(prompts), 0, []
        rows = np.arange(len(prompts), dtype=np.int32)
        for _ in range(n_new):
            positions = np.arange(end, end + tokens.shape[1])
            end = positions[-1] + 1
            later = np.arange(end) > positions[:, np.newaxis]
            request.infer({'tokens': tokens, 'positions': np.broadcast_to(positions, tokens.shape),
                           'mask': np.where(later, np.float32(-np.inf), np.float32(0))[None, None],
                           'rows': rows})
            tokens = request.get_output_tensor(0).data.argmax(axis=-1)[:, np.newaxis]
            columns.append(tokens)
        return np.concatenate(columns, axis=1)
    return generate


def load_keras(folder, target, temperature):
    """KerasHub on TensorFlow."""
    os.environ['KERAS_BACKEND'] = 'tensorflow'
    import keras_hub
    import numpy as np
    net = keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone.from_preset(target), None)
    net.compile(sampler='greedy')

    def generate(prompts, n_new):
        prompts = np.array(prompts)
        tokens = np.pad(prompts, [[0, 0], [0, n_new]])
        given = np.pad(np.ones_like(prompts), [[0, 0], [0, n_new]])
        texts = net.generate({'token_ids': tokens, 'padding_mask': given}, stop_token_ids=None)
        return np.asarray(texts['token_ids'])[:, prompts.shape[1]:]
    return generate


def openvino_engine(title, n_bytes, copy, dtype, precision):
    """Return an Engine of OpenVINO, with weights of a dtype and sums in a precision."""
    return Engine(title, ['openvino', 'nncf', 'torch'], n_bytes, copy,
                  functools.partial(write_openvino, dtype=dtype),
                  functools.partial(load_openvino, precision=precision))


def llama_engine(title, n_bytes, copy, dtype, cache):
    """Return an Engine of llama.cpp."""
    return Engine(title, ['llama_cpp', 'gguf'], n_bytes, copy,
                  functools.partial(write_gguf, dtype=dtype),
                  functools.partial(load_llama, cache=cache))


PEERS = {
    **{f'torch-{short}': Engine(f'transformers {short}', ['transformers', 'torch'], n_bytes,
                                'transformers', write_transformers,
                                functools.partial(load_transformers, dtype=dtype))
       for short, dtype, n_bytes in (('f32', 'float32', 4), ('bf16', 'bfloat16', 2))},
    **{f'ct2-{short}': Engine(f'CTranslate2 {short}', ['ctranslate2'], n_bytes, f'ct2-{short}',
                              functools.partial(write_ctranslate2, dtype=dtype),
                              functools.partial(load_ctranslate2, dtype=dtype))
       for short, dtype, n_bytes in (('f32', 'float32', 4), ('int8', 'int8', 1))},
    'keras-f32': Engine('KerasHub f32', ['keras_hub', 'transformers', 'torch'], 4, 'transformers',
                        write_transformers, load_keras),
    'openvino-f32': openvino_engine('OpenVINO f32', 4, 'openvino-f32', 'float32', 'f32'),
    'openvino-bf16': openvino_engine('OpenVINO bf16', 2, 'openvino-f32', 'float32', 'bf16'),
    'openvino-int8': openvino_engine('OpenVINO int8', 1, 'openvino-int8', 'int8', 'bf16'),
    'openvino-int4': openvino_engine('OpenVINO int4', 18 / 32, 'openvino-int4', 'int4', 'bf16'),
    'llama-f32': llama_engine('llama.cpp f32', 4, 'llama-f32', 'F32', 'F32'),
    'llama-q8': llama_engine('llama.cpp q8_0', 34 / 32, 'llama-q8', 'Q8_0', 'F16'),
    'llama-q4': llama_engine('llama.cpp q4_0', 18 / 32, 'llama-q4', 'Q4_0', 'F16'),
}
