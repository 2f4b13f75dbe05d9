"""GPT-2 and its sampling in plain NumPy float64: the oracle that the TensorFlow code must match.

Written from the paper and the contract alone, and slow on purpose: every token is computed from
the whole text, without a cache. Nothing here imports anything from src.

Dimensions: P = positions, E = n_embd, H = n_head, D = E / H, V = n_vocab,
            R = C = ceil(sqrt(V)), the rows and columns of the two-level draw.
"""
import contextlib
import json
import math
import os
import shutil
import warnings

import numpy as np

# ---- weights -----------------------------------------------------------------------------------


def shapes(hparams):
    """Return {variable name: shape} of a checkpoint, in the order the model uses them."""
    e = hparams['n_embd']
    block = {
        'ln_1/g': [e], 'ln_1/b': [e],
        'attn/c_attn/w': [1, e, 3 * e], 'attn/c_attn/b': [3 * e],
        'attn/c_proj/w': [1, e, e], 'attn/c_proj/b': [e],
        'ln_2/g': [e], 'ln_2/b': [e],
        'mlp/c_fc/w': [1, e, 4 * e], 'mlp/c_fc/b': [4 * e],
        'mlp/c_proj/w': [1, 4 * e, e], 'mlp/c_proj/b': [e],
    }
    named = {'model/wpe': [hparams['n_ctx'], e], 'model/wte': [hparams['n_vocab'], e]}
    for layer in range(hparams['n_layer']):
        named.update({f'model/h{layer}/{name}': shape for name, shape in block.items()})
    named.update({'model/ln_f/g': [e], 'model/ln_f/b': [e]})
    return named


def random_weights(hparams_dict, seed):
    """Return {variable name: float32 array} in which every part moves the logits.

    The logits have a standard deviation of about 2 at any width. In the residual stream the
    outputs of the blocks outweigh the embeddings, as they do after training: otherwise the output,
    which reuses wte, would mostly repeat the last token. The values are uniform and made of raw
    random bits, so they are the same to the last bit under every NumPy.
    """
    bits = np.random.PCG64(seed)
    e = hparams_dict['n_embd']
    branch = 1 / math.sqrt(max(hparams_dict['n_layer'], 1))  # scale of what each half block adds
    spread = {
        'wpe': 1 / math.sqrt(e), 'wte': 2 / math.sqrt(e),
        'g': 0.2, 'b': 0.2,
        'attn/c_attn/w': 1.5 / math.sqrt(e), 'attn/c_attn/b': 0.3,
        'attn/c_proj/w': branch / math.sqrt(e), 'attn/c_proj/b': 0.3 * branch,
        'mlp/c_fc/w': 1.5 / math.sqrt(e), 'mlp/c_fc/b': 0.5,
        'mlp/c_proj/w': branch / math.sqrt(4 * e), 'mlp/c_proj/b': 0.3 * branch,
    }
    weights = {}
    for name, shape in shapes(hparams_dict).items():
        parts = name.split('/')
        kind = '/'.join(parts[2:]) if len(parts) == 5 else parts[-1]
        size = int(np.prod(shape))
        array = bits.random_raw((size + 1) // 2).astype('<u8', copy=False).view('<i4')[:size]
        array = array.astype(np.float32).reshape(shape)  # uniform within +-2**31
        array *= np.float32(spread[kind] * math.sqrt(3) / 2**31)
        if kind == 'g':
            array += np.float32(1)
        weights[name] = array
    return weights


# ---- the transformer ---------------------------------------------------------------------------


def softmax(x):
    """Return the softmax over the last axis; -inf gives exactly 0."""
    weight = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return weight / np.sum(weight, axis=-1, keepdims=True)


def gelu(x):
    """Return GELU in its tanh form."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, g, b):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift: [P, E] -> [P, E]."""
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.mean((x - mean)**2, axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * g + b


def linear(x, w, b):
    """Apply a matrix of the checkpoint and a bias: [P, n], [1, n, m], [m] -> [P, m]."""
    return x @ w[0] + b


def attention(x, part, n_head):
    """Let each position attend to itself and to those before it: [P, E] -> [P, E]."""
    n = len(x)
    qkv = linear(x, part('attn/c_attn/w'), part('attn/c_attn/b'))  # [P, 3E]
    q, k, v = [a.reshape(n, n_head, -1).transpose(1, 0, 2)         # each [H, P, D]
               for a in np.split(qkv, 3, axis=-1)]
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])     # [H, P, P]
    scores = np.where(np.tril(np.ones([n, n], bool)), scores, -np.inf)
    merged = (softmax(scores) @ v).transpose(1, 0, 2).reshape(n, -1)  # [P, E]
    return linear(merged, part('attn/c_proj/w'), part('attn/c_proj/b'))


def mlp(x, part):
    """Apply the feed-forward network to each position: [P, E] -> [P, E]."""
    hidden = gelu(linear(x, part('mlp/c_fc/w'), part('mlp/c_fc/b')))  # [P, 4E]
    return linear(hidden, part('mlp/c_proj/w'), part('mlp/c_proj/b'))


def forward(weights, hparams_dict, tokens):
    """Return the logits [P, V], float64, of one sequence of P token ids."""
    tokens = np.asarray(tokens, dtype=np.int64)
    if tokens.ndim != 1 or not 0 < len(tokens) <= hparams_dict['n_ctx']:
        raise ValueError('tokens must be one sequence of 1 to n_ctx ids')
    if tokens.min() < 0 or tokens.max() >= hparams_dict['n_vocab']:
        raise ValueError('token id outside the vocabulary')

    def named(name):
        return np.asarray(weights['model/' + name], dtype=np.float64)

    wte = named('wte')
    x = wte[tokens] + named('wpe')[:len(tokens)]  # [P, E]
    for layer in range(hparams_dict['n_layer']):
        def part(name, layer=layer):
            return named(f'h{layer}/{name}')
        x = x + attention(layer_norm(x, part('ln_1/g'), part('ln_1/b')), part,
                          hparams_dict['n_head'])
        x = x + mlp(layer_norm(x, part('ln_2/g'), part('ln_2/b')), part)
    return layer_norm(x, named('ln_f/g'), named('ln_f/b')) @ wte.T  # [P, V]


# ---- which tokens may come next ----------------------------------------------------------------


def top_k_keep(logits, k):
    """Mark the logits at least as large as the k-th largest: [V] -> bool [V]. 0 keeps all."""
    logits = np.asarray(logits, dtype=np.float64)
    if not 0 <= k <= len(logits):
        raise ValueError('top_k must be between 0 and n_vocab')
    if k == 0:
        return np.ones(logits.shape, dtype=bool)
    return logits >= np.sort(logits)[-k]


def top_p_keep(logits, p):
    """Mark each token if the probabilities strictly larger than its own sum to less than p.

    [V] -> bool [V]. So tokens of equal probability are kept or dropped together, and the most
    probable ones are always kept. 1 keeps all.
    """
    if not 0 < p <= 1:
        raise ValueError('top_p must be above 0 and at most 1')
    if p == 1:
        return np.ones(np.shape(logits), dtype=bool)
    probabilities = softmax(np.asarray(logits, dtype=np.float64))
    values, which, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    mass = (values * counts)[::-1]  # of each distinct probability, the largest first
    larger = np.concatenate([[0.], np.cumsum(mass)[:-1]])[::-1]  # the mass strictly above each
    return (larger < p)[which.reshape(-1)]


def min_p_keep(logits, p):
    """Return which tokens min-p keeps: those at least p times as likely as the likeliest."""
    probabilities = softmax(logits)
    return probabilities >= p * probabilities.max()


def typical_p_keep(logits, p):
    """Return which tokens typical sampling keeps, bool [V].

    In the order of their distance from the entropy: until the probabilities reach p, and what is
    as far away as the last of these.
    """
    if p in (0, 1):
        return np.ones(len(logits), bool)
    probabilities = softmax(logits)
    likely = probabilities > 0
    information = np.full(len(logits), np.inf)
    information[likely] = -np.log(probabilities[likely])
    entropy = np.sum(probabilities[likely] * information[likely])
    distances, mass = np.abs(information - entropy), 0
    for token in np.argsort(distances, kind='stable'):
        mass += probabilities[token]
        if mass >= p:
            break
    return distances <= distances[token]


def penalize(logits, text, repetition_penalty=1, no_repeat_ngram_size=0):
    """Return logits float64 [V] that depend on the ids in a text, -inf where dropped."""
    logits, n = np.array(logits, dtype=np.float64), no_repeat_ngram_size
    for token in set(text):
        logits[token] *= repetition_penalty if logits[token] < 0 else 1 / repetition_penalty
    ngrams = {tuple(text[i:i + n]) for i in range(len(text) - n + 1)} if n else ()
    for ngram in ngrams:
        if list(ngram[:-1]) == list(text[len(text) - n + 1:]):
            logits[ngram[-1]] = -np.inf
    return logits


def warp_logits(logits, temperature=1, top_k=0, top_p=1, min_p=0, typical_p=1):
    """Return the logits that a token is drawn from: float64 [V], -inf where dropped.

    The maximum is subtracted first, so the best is 0. Temperature 0 keeps only the best token, of
    equal ones the one with the lowest index.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if temperature < 0:
        raise ValueError('temperature must not be negative')
    if temperature == 0:
        return np.where(np.arange(len(logits)) == np.argmax(logits), 0., -np.inf)
    logits = (logits - np.max(logits)) / temperature
    for keep, value in [(top_k_keep, top_k), (top_p_keep, top_p), (min_p_keep, min_p),
                        (typical_p_keep, typical_p)]:
        logits = np.where(keep(logits, value), logits, -np.inf)
    return logits


def warp(logits, temperature=1, top_k=0, top_p=1, **filters):
    """Return the probability of each token to be drawn, float64 [V]."""
    return softmax(warp_logits(logits, temperature, top_k, top_p, **filters))


# ---- the draw ----------------------------------------------------------------------------------


def side(n_vocab):
    """Return R = C = ceil(sqrt(n_vocab))."""
    return int(math.ceil(math.sqrt(n_vocab)))


def uniforms(seed, index, steps, n_vocab):
    """Return the randomness of sample `index` of run `seed`: float64 [steps, R + C].

    Row t belongs to the t-th new token: R uniforms for the rows, then C for the columns. All are
    odd multiples of 2**-24: exact in float32, never 0 or 1.
    """
    width = 2 * side(n_vocab)
    raw = np.random.Philox(np.random.SeedSequence([seed, index])).random_raw(steps * width)
    return (((raw >> np.uint64(41)).astype(np.float64) + 0.5) * 2.**-23).reshape(steps, width)


def best_and_gap(scores):
    """Return the index of the largest score, the first of equal ones, and its lead over the rest.

    The lead is infinite if no other score is finite.
    """
    best = int(np.argmax(scores))
    others = np.delete(scores, best)
    second = np.max(others) if len(others) else -np.inf
    return best, float(scores[best] - second)


def draw(kept_logits, u):
    """Draw a token by two-level Gumbel-max: logits [V] (-inf where dropped), uniforms [R + C].

    Returns the token and its gap: the lead of the best score over the second best, at the level
    where it is smaller. If the gap is tiny, float32 may choose another token.
    """
    kept_logits, u = np.asarray(kept_logits, np.float64), np.asarray(u, np.float64)
    n = side(len(kept_logits))
    if not np.any(np.isfinite(kept_logits)) or u.shape != (2 * n,):
        raise ValueError('draw needs a finite logit and R + C uniforms')
    table = np.full(n * n, -np.inf)
    table[:len(kept_logits)] = kept_logits
    table = table.reshape(n, n)  # [R, C]
    gumbel = -np.log(-np.log(u))

    top = np.max(kept_logits)
    with np.errstate(divide='ignore'):  # log(0) is -inf: an empty row is never chosen
        rows = top + np.log(np.sum(np.exp(table - top), axis=1))  # logsumexp of each row, [R]
    # The same for rows whose logits are all so far below the best that exp gives 0.
    for r in np.flatnonzero(np.isneginf(rows) & np.any(np.isfinite(table), axis=1)):
        rows[r] = np.max(table[r]) + np.log(np.sum(np.exp(table[r] - np.max(table[r]))))

    row, row_gap = best_and_gap(rows + gumbel[:n])
    column, column_gap = best_and_gap(table[row] + gumbel[n:])
    return row * n + column, min(row_gap, column_gap)


# ---- generation --------------------------------------------------------------------------------


def check_window(hparams, prompt, length):
    """Refuse a prompt and a length that do not fit the window together."""
    if len(prompt) + length - 1 > hparams['n_ctx']:
        raise ValueError('prompt and length do not fit n_ctx')


def greedy(weights, hparams, prompt, length):
    """Return the `length` best next tokens and their margins over the second best logit."""
    check_window(hparams, prompt, length)
    tokens, margins = list(prompt), []
    for _ in range(length):
        token, margin = best_and_gap(forward(weights, hparams, tokens)[-1])
        tokens.append(token)
        margins.append(margin)
    return tokens[len(prompt):], margins


def sample(weights, hparams, prompt, length, seed, index, temperature=1, end=None,
           repetition_penalty=1, no_repeat_ngram_size=0, **filters):
    """Return the `length` tokens of sample `index` of run `seed` after the prompt, and their gaps.

    A gap is that of `draw`, or at temperature 0 the margin between the two best logits. All tokens
    after the first `end` are `end` too, with infinite gaps.
    """
    check_window(hparams, prompt, length)
    tokens, gaps = list(prompt), []
    for u in uniforms(seed, index, length, hparams['n_vocab']):
        logits = penalize(forward(weights, hparams, tokens)[-1], tokens, repetition_penalty,
                          no_repeat_ngram_size)
        if temperature == 0:
            token, gap = best_and_gap(logits)
        else:
            token, gap = draw(warp_logits(logits, temperature, **filters), u)
        tokens.append(token)
        gaps.append(gap)
        if token == end:
            break
    missing = length - len(gaps)
    return tokens[len(prompt):] + [end] * missing, gaps + [math.inf] * missing


# ---- model directories -------------------------------------------------------------------------


def byte_symbols():
    """Return GPT-2's 256 byte symbols in the order of their ids.

    First the bytes that print as themselves in Latin-1, then the others as U+0100, U+0101, ...
    """
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 255 and b != 173]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def write_vocabulary(directory):
    """Write a vocabulary of 257 tokens: the bytes and <|endoftext|>, without merges."""
    symbols = byte_symbols() + ['<|endoftext|>']
    with open(os.path.join(directory, 'encoder.json'), 'w', encoding='ascii') as file:
        json.dump({symbol: i for i, symbol in enumerate(symbols)}, file)
    with open(os.path.join(directory, 'vocab.bpe'), 'w', encoding='ascii', newline='\n') as file:
        file.write('#version: 0.2\n')


@contextlib.contextmanager
def quiet_tensorflow():
    """Import the interface of TensorFlow 1 without its logs; restore all settings afterwards."""
    level = os.environ.get('TF_CPP_MIN_LOG_LEVEL')
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            import tensorflow.compat.v1 as tf
        verbosity = tf.logging.get_verbosity()
        tf.logging.set_verbosity(tf.logging.ERROR)
        try:
            yield tf
        finally:
            tf.logging.set_verbosity(verbosity)
    finally:
        if level is None:
            del os.environ['TF_CPP_MIN_LOG_LEVEL']
        else:
            os.environ['TF_CPP_MIN_LOG_LEVEL'] = level


def write_checkpoint(directory, hparams_dict, weights, vocabulary_dir=None, prefix='model.ckpt'):
    """Write a model directory in the official format: hparams, vocabulary, TensorFlow weights.

    The vocabulary is copied from `vocabulary_dir`. Without one, a vocabulary of 257 tokens is
    written if n_vocab is 257, else none. `prefix` names the checkpoint files.
    """
    directory = str(directory)
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, 'hparams.json'), 'w', encoding='ascii') as file:
        json.dump(hparams_dict, file, indent=2)
    if vocabulary_dir is not None:
        for name in ['encoder.json', 'vocab.bpe']:
            shutil.copyfile(os.path.join(str(vocabulary_dir), name), os.path.join(directory, name))
    elif hparams_dict['n_vocab'] == 257:
        write_vocabulary(directory)

    with quiet_tensorflow() as tf, tf.Graph().as_default():
        variables = {}
        for name, shape in shapes(hparams_dict).items():
            value = tf.placeholder(tf.float32, shape)  # fed: the graph holds no weights
            variables[name] = tf.get_variable(name, initializer=value, use_resource=True)
        saver = tf.train.Saver(list(variables.values()), save_relative_paths=True)
        with tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as sess:
            for name, variable in variables.items():
                sess.run(variable.initializer, {variable.initial_value: weights[name]})
            saver.save(sess, os.path.join(directory, prefix))
