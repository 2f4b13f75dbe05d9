"""The page of scores: page.html, filled with the documents and what the model expected of them.

The page shows the texts and their figures without JavaScript. With it, it shows the likeliest
tokens at each place, which are compressed in it: 12 bytes of HTML for a byte of text at most.
"""

import base64
import codecs
import html
import json
import pathlib
import re
import shlex
import sys
import zlib

import numpy as np

from gpt2.evaluation.summary import COLUMNS, RANK_CLASSES, figures, one_line
from gpt2.model_dir import weights_digest

TOP = 10  # likeliest tokens to show at each place
RANK_AXIS = ('1', '≤ 10', '≤ 100', '≤ 1000', '> 1000')  # RANK_CLASSES, where there is little room
FRACTIONS = 10  # bars of the histogram of p / p_max
DIGIT = 64  # a number of the vocabulary is DIGIT * high + low: two columns compress better
LOGPROB_SCALE = 25  # see `quantize`
LARGEST_CODE = 50000  # so that every character of `column` is one that UTF-8 can encode

# What is shown for control characters, tab and line end excepted: the pictures that Unicode has of
# them; and for others that are not to be seen, and could turn the text around, the sign of damage.
PICTURES = {**{code: 0x2400 + code for code in range(32) if chr(code) not in '\t\n'}, 0x7f: 0x2421,
            **dict.fromkeys([*range(0x80, 0xa0), *range(0x202a, 0x202f), *range(0x2066, 0x206a)],
                            0xfffd)}


def page(model_dir, names, results, scores):
    """Return the page that shows documents, given their headings, results and Scores."""
    documents = [*zip(names, results, scores)]
    n_bits = int(np.ceil(np.log2(model_dir.hparams.n_vocab)))
    parts = {
        'model': html.escape(one_line(model_dir.name)),
        'weights': weights_digest(model_dir.path),
        'command': command_line(),
        'columns': ''.join(f'<th scope="col">{name}</th>' for name in COLUMNS),
        'rows': rows(names, results),
        'documents': ''.join(article(i, *document, model_dir.encoder, n_bits)
                             for i, document in enumerate(documents, 1)),
        'data': pack(expectations(results, scores, model_dir.encoder))}
    return fill(pathlib.Path(__file__).with_name('page.html'), parts)


def fill(path, parts):
    """Return the template at a path, filled with parts by name and the `style` that pages share."""
    style = pathlib.Path(__file__).with_name('page.css').read_text(encoding='utf-8')
    parts = dict(parts, style=style)
    return re.sub(r'<!-- (\w+) -->', lambda match: parts[match.group(1)],
                  path.read_text(encoding='utf-8'))


def command_line():
    """Return the command that this process runs, as HTML."""
    return html.escape(one_line(' '.join(map(shlex.quote, ['python3', *sys.argv]))))


# ---- what is there without JavaScript ----------------------------------------------------------


def rows(names, results):
    """Return the rows of the table of all documents. Their histograms have one scale."""
    highest = max(max(rank_shares(result)) for result in results)
    return ''.join(
        f'<tr><th scope="row"><a href="#d{number}">{html.escape(name)}</a></th>'
        f'<td>{bars("ranks", rank_shares(result), highest)}</td>'
        f'{"".join(f"<td>{text}</td>" for text in figures(result))}</tr>\n'
        for number, (name, result) in enumerate(zip(names, results), 1))


def article(number, name, result, scores, encoder, n_bits):
    """Return the part of the page for one document: heading, histograms, prompt and text."""
    text = f'<span class="scored">{shown(encoder.decode(result["tokens"]))}</span>'
    if result.get('prompt'):
        text = f'<span class="prompt">{shown(result["prompt"])}</span>{text}'
    charts = histograms(result, scores, n_bits) if result['n_tokens'] else 'This text is empty.'
    return (f'<article class="card" id="d{number}" aria-labelledby="h{number}">\n'
            f'<h2 id="h{number}">{html.escape(name)}</h2>\n<div class="charts">{charts}</div>\n'
            f'<div class="text" role="group" aria-labelledby="h{number}">{text}</div>\n'
            '</article>\n')


def shown(text):
    """Return a text as HTML in which it can do no harm."""
    text = text.encode('utf-8', 'replace').decode('utf-8').translate(PICTURES)
    return html.escape(text, quote=False)


def histograms(result, scores, n_bits):
    """Return the histograms of a document's ranks, entropies and fractions p / p_max."""
    bits = np.clip(scores.entropies / np.log(2), 0, n_bits)  # rounding may leave the range
    entropies = np.histogram(bits, n_bits, (0, n_bits))[0]
    fractions = np.exp(np.minimum(0, scores.logprobs - scores.top_logprobs[:, 0]))
    fractions = np.histogram(fractions, FRACTIONS, (0, 1))[0]
    entropy_names = [f'{i} to {i + 1} bits' for i in range(n_bits)]
    fraction_names = [f'{i / FRACTIONS} to {(i + 1) / FRACTIONS}' for i in range(FRACTIONS)]
    return (figure('ranks', 'Ranks', RANK_CLASSES, rank_shares(result), RANK_AXIS)
            + figure('', 'Entropy', entropy_names, entropies / result['n_tokens'],
                     ['0', f'{n_bits} bits'])
            + figure('', 'Probability / highest', fraction_names,
                     fractions / result['n_tokens'], ['0', '1']))


def figure(kind, caption, names, shares, axis):
    """Return a histogram with its caption, the names of its bars, and the texts below them."""
    label = ', '.join(f'{name}: {100 * share:.0f} %' for name, share in zip(names, shares) if share)
    return (f'<figure><figcaption>{caption}</figcaption>'
            f'<div role="img" aria-label="{caption}: {label}">{bars(kind, shares, max(shares))}'
            f'</div><div class="axis {kind}" aria-hidden="true">'
            f'{"".join(f"<span>{text}</span>" for text in axis)}</div></figure>')


def bars(kind, shares, highest):
    """Return the bars of a histogram, of which one with the share `highest` would be full."""
    heights = [100 * share / (highest or 1) for share in shares]
    elements = ''.join(f'<i style="--h:{height:.0f}"></i>' for height in heights)
    return f'<span class="bars {kind}">{elements}</span>'


def rank_shares(result):
    """Return the shares of the RANK_CLASSES, a list; zeros of an empty document."""
    return [share or 0 for share in result['rank_shares'].values()]


# ---- what JavaScript reads ---------------------------------------------------------------------


def expectations(results, scores, encoder):
    """Return what the model expected at each place of documents, as page.html reads it.

    `vocabulary`: the texts of the likeliest tokens, the most frequent first. For each document,
    in `documents`: `lengths` and `ranks` of its tokens; `high` and `low`, the places of the
    likeliest tokens in the vocabulary; `steps`, from the code of a probability to that of the next
    lower one, first of all first tokens, then of all second ones; and `beyond`, the codes of those
    tokens that are not among the likeliest.
    """
    used, counts = np.unique(np.concatenate([s.top_tokens.ravel() for s in scores]),
                             return_counts=True)
    used = used[np.argsort(-counts, kind='stable')]
    places = np.zeros(len(encoder.encoder), np.int64)
    places[used] = np.arange(len(used))
    documents = []
    for result, s in zip(results, scores):
        top, codes = places[s.top_tokens].ravel(), quantize(s.top_logprobs)
        documents.append({
            'lengths': column(utf16_lengths(result['tokens'], encoder)),
            'ranks': result['ranks'],
            'high': column(top // DIGIT), 'low': column(top % DIGIT),
            'steps': column(np.diff(codes, axis=1, prepend=0).T.ravel()),
            'beyond': column(quantize(s.logprobs[s.ranks > s.top_tokens.shape[1]]))})
    vocabulary = [encoder.decode_bytes([token]).decode('utf-8', 'backslashreplace')
                  for token in used.tolist()]
    return {'vocabulary': vocabulary, 'documents': documents}


def utf16_lengths(tokens, encoder):
    """Return the length of each token's text in JavaScript.

    Of tokens that form whole characters only together, the last has the length of all, and the
    others 0.
    """
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    lengths, length = [], 0
    for i, token in enumerate(tokens, 1):
        text = decoder.decode(encoder.decode_bytes([token]), final=i == len(tokens))
        length += len(text.encode('utf-16-le')) // 2
        is_whole = not decoder.getstate()[0]
        lengths.append(length if is_whole else 0)
        length = 0 if is_whole else length
    return lengths


def quantize(logprobs):
    """Return codes, int [...], of which exp(-(code / LOGPROB_SCALE)^2) is about a probability.

    So large probabilities, whose digits are read, are the most exact: those from 50 % on to within
    a twenty-fifth, those from 1 % on to within a tenth.
    """
    codes = np.rint(LOGPROB_SCALE * np.sqrt(np.maximum(0, -logprobs.astype(np.float64))))
    return np.minimum(codes, LARGEST_CODE).astype(np.int64)


def column(values):
    """Return whole numbers, 0 to LARGEST_CODE, as a text with a character for each."""
    return ''.join(chr(ord('#') + value) for value in values)


def pack(value):
    """Return a value as JSON, compressed, in Base64."""
    data = json.dumps(value, ensure_ascii=False, separators=(',', ':')).encode('utf-8')
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL,
                                  zlib.Z_FILTERED)
    return base64.b64encode(compressor.compress(data) + compressor.flush()).decode('ascii')
