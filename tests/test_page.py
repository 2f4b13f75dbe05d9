"""The pages of scores and of detection: what they have, and how they look and work in a browser.

Most pages here are of made-up logits, so that no TensorFlow is needed.
"""
import base64
import dataclasses
import html.parser
import itertools
import json
import os
import pathlib
import re
import shutil
import zlib

import numpy as np
import pytest

from gpt2.detection import page as detection_page
from gpt2.detection.comparison import Text, compare
from gpt2.detection.run import as_json
from gpt2.detection.statistics import STATISTICS
from gpt2.evaluation import page, report, summary
from gpt2.evaluation.loglikelihood import Scores
from gpt2.evaluation.options import EvaluationOptions
from gpt2.model_dir import open_model_dir
from helpers import DATA, LONG, SRC, log_softmax, needs_data

pure = pytest.mark.pure
STYLES = [pathlib.Path(page.__file__).with_name(name).read_text(encoding='utf-8')
          for name in ('page.css', 'page.html')]
CHROMIUM = shutil.which('chromium') or '/usr/bin/chromium'
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
HOSTILE = ('</script><script>alert(1)</script> & &amp; <!-- data --> \' " `\r\n\0\x1b[2J\x7f\t'
           '$model ${model} <img src=x onerror=alert(1)> é 東京 🙂 \u202e')
DOCUMENTS = [
    {'file': 'a.txt', 'text': 'Good morrow, neighbour Gremio.\nGod save you, gentlemen!\n' * 3},
    {'file': '<b>.jsonl', 'text': HOSTILE, 'prompt': '<i>' + HOSTILE, 'title': HOSTILE[:45]},
    {'file': '<b>.jsonl', 'text': ''}]


@pytest.fixture(scope='module')
def model_dir():
    return open_model_dir('1M', str(SRC.parent / 'models'))


def made_up_scores(tokens, n_vocab, seed):
    """Return the Scores of a model that draws its logits, half the time with the token likely."""
    random = np.random.RandomState(seed)
    logits = random.normal(scale=2, size=[len(tokens), n_vocab])
    logits[np.arange(len(tokens)), tokens] += random.choice([0, 9], len(tokens))
    logprobs = np.array([log_softmax(row) for row in logits]).reshape(len(tokens), n_vocab)
    own = logprobs[np.arange(len(tokens)), tokens]
    top = np.argsort(-logprobs, axis=1)[:, :page.TOP]
    ranks = 1 + (logprobs > own[:, np.newaxis]).sum(axis=1)
    return Scores(own, ranks, ranks, -(np.exp(logprobs) * logprobs).sum(axis=1), top,
                  np.take_along_axis(logprobs, top, axis=1))


def made_up_page(model_dir, documents=DOCUMENTS):
    """Return a page of documents, and their Scores."""
    texts = [model_dir.encoder.encode(document['text']) for document in documents]
    scores = [made_up_scores(tokens, 1000, i) for i, tokens in enumerate(texts)]
    results = [dict(document, **summary.summarize(tokens, s, len(document['text'].encode('utf-8'))))
               for document, tokens, s in zip(documents, texts, scores)]
    return page.page(model_dir, summary.headings(documents), results, scores), scores


@pytest.fixture(scope='module')
def made_up(model_dir):
    return made_up_page(model_dir)


# ---- what is in the page -----------------------------------------------------------------------

class Parser(html.parser.HTMLParser):
    """Collects the start tags of a page, and the text in each element, by class or else tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ('meta', 'input'):
            self.open.append((tag, attrs.get('class') or tag))
            self.texts.append((self.open[-1][1], ''))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1][1], data))

    def text_of(self, name):
        """Return the text of each element with a name that has any."""
        return [text for key, text in self.texts if key == name and text]


@pure
def test_texts_are_shown_as_they_are_and_do_nothing(made_up):
    text, _ = made_up
    parser = Parser(text)
    assert parser.open == []
    shown = HOSTILE.replace('\r', '␍').replace('\0', '␀').replace('\x1b', '␛').replace('\x7f', '␡')
    shown = shown.replace('\u202e', '\ufffd')
    assert parser.text_of('scored') == [DOCUMENTS[0]['text'], shown]
    assert parser.text_of('prompt') == ['<i>' + shown]
    names = parser.text_of('h2')
    assert names[0] == 'a.txt' and names[2] == '<b>.jsonl, 2'
    assert names[1] == '<b>.jsonl, 1: ' + HOSTILE[:45].strip()
    assert parser.tags.count('script') == 2 and not {'img', 'b'} & {*parser.tags}
    assert "default-src 'none'" in text and not re.search(r'https?:', text)


@pure
def test_the_head_says_which_weights_made_it_and_how(model_dir, monkeypatch):
    monkeypatch.setattr('sys.argv', ['src/evaluate.py', 'score', 'my <text>.txt', '\udcff'])
    text, _ = made_up_page(model_dir, DOCUMENTS[:1])
    heading, = Parser(text).text_of('h1')
    assert heading == 'Text as 1M sees it'
    digest, command = Parser(text).text_of('code')
    assert re.fullmatch('[0-9a-f]{16}', digest)
    assert command == "python3 src/evaluate.py score 'my <text>.txt' '\ufffd'"


def shown_token(encoder, token):
    """Return the text of a token, with \\x.. for each byte of a part of a character."""
    return encoder.decode_bytes([token]).decode('utf-8', 'backslashreplace')


def unpack(text):
    """Return the data of a page."""
    data = re.search(r'<script id="data" type="text/plain">(.*?)</script>', text).group(1)
    return json.loads(zlib.decompress(base64.b64decode(data)).decode('utf-8'))


@pure
def test_the_data_are_the_scores(made_up, model_dir):
    text, all_scores = made_up
    data = unpack(text)
    for document, packed, scores in zip(DOCUMENTS, data['documents'], all_scores):
        n = len(scores.ranks)
        assert packed['ranks'] == scores.ranks.tolist()
        lengths, high, low, steps, beyond = (
            [ord(c) - 35 for c in packed[name]] for name in (
                'lengths', 'high', 'low', 'steps', 'beyond'))
        assert sum(lengths) == len(document['text'].encode('utf-16-le')) // 2
        tokens = [data['vocabulary'][64 * a + b] for a, b in zip(high, low)]
        assert tokens == [shown_token(model_dir.encoder, token)
                          for token in scores.top_tokens.ravel().tolist()]
        codes = np.cumsum(np.reshape(steps, [-1, n]), axis=0).T if n else np.zeros([0, 10])
        for code, logprobs in [(codes, scores.top_logprobs),
                               (np.array(beyond), scores.logprobs[scores.ranks > 10])]:
            p, found = np.exp(logprobs), np.exp(-(code / 25)**2)
            assert (np.abs(found - p) <= p / 10)[p >= 0.01].all()
            assert (np.abs(found - p) <= p / 25)[p >= 0.5].all()


@pure
def test_tokens_of_one_character_share_its_length(model_dir):
    tokens = model_dir.encoder.encode('a🙂é')
    lengths = page.utf16_lengths(tokens, model_dir.encoder)
    assert len(lengths) == 7 and lengths == [1, 0, 0, 0, 2, 0, 1]


@pure
def test_the_histograms_count_every_token(made_up):
    text, all_scores = made_up
    labels = re.findall(r'role="img" aria-label="([^"]*)"', text)
    assert len(labels) == 6  # none of the empty document
    scores = all_scores[0]
    n = len(scores.ranks)
    ranks, entropies, fractions = labels[:3]
    assert ranks.startswith(f'Ranks: 1: {100 * (scores.ranks == 1).sum() / n:.0f} %')
    bits = scores.entropies / np.log(2)
    assert f'5 to 6 bits: {100 * ((bits >= 5) & (bits < 6)).sum() / n:.0f} %' in entropies
    p = np.exp(scores.logprobs - scores.top_logprobs[:, 0])
    assert fractions.endswith(f'0.9 to 1.0: {100 * (p >= 0.9).sum() / n:.0f} %')


@pure
def test_a_page_of_an_empty_text_alone(model_dir):
    text, _ = made_up_page(model_dir, DOCUMENTS[2:])
    assert 'This text is empty.' in text and 'nan' not in text.lower()
    assert unpack(text)['vocabulary'] == [] and unpack(text)['documents'][0]['ranks'] == []


@needs_data
def test_a_page_has_at_most_twelve_bytes_for_a_byte_of_text(tf, model_dir, tmp_path):
    """Of the text that the model knows best; with longer tokens there are fewer."""
    text = (pathlib.Path(DATA) / 'tinyshakespeare.txt').read_text()[-30000:]
    path = tmp_path / 'page.html'
    report.score_documents(model_dir, [{'file': 'x', 'text': text}], EvaluationOptions(
        task='score', file='x', html=str(path), output=str(tmp_path / 'scores'), stride=256))
    assert path.stat().st_size < 12 * len(text)
    assert len(unpack(path.read_text(encoding='utf-8'))['documents'][0]['ranks']) > 10000


# ---- colours -----------------------------------------------------------------------------------

# How people see linear RGB who lack a kind of cones (Machado, Oliveira and Fernandes 2009, table of
# severity 1).
VISION = {
    'full': np.eye(3),
    'protanopia': [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    'deuteranopia': [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    'tritanopia': [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]]}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    """Return the linear RGB of a colour such as #1b1f24."""
    c = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055)**2.4)


def to_lab(rgb):
    """Return CIE L*a*b* of linear RGB; a distance of 2.3 in it is just noticeable."""
    t = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(*colours):
    """Return the contrast of two colours as the WCAG define it."""
    darker, lighter = sorted((TO_XYZ @ linear(colour))[1] for colour in colours)
    return (lighter + 0.05) / (darker + 0.05)


@pure
@pytest.mark.parametrize('mode', [0, 1], ids=['light', 'dark'])
def test_everybody_can_tell_the_colours_apart_and_read_the_text(mode):
    block = ''.join(re.findall(r':root \{(.*?)\}', style, re.DOTALL)[mode] for style in STYLES)
    colours = dict(re.findall(r'--(\w+): (#[0-9a-f]{6});', block))
    classes = [colours[f'c{i}'] for i in range(5)]
    for matrix in VISION.values():
        seen = [to_lab(np.array(matrix) @ linear(colour)) for colour in classes]
        assert min(np.linalg.norm(a - b) for a, b in zip(seen, seen[1:])) > 12
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 10
    assert all(contrast(colours['ink'], colour) >= 4.5 for colour in classes)
    for background in ('page', 'card'):
        assert contrast(colours['soft'], colours[background]) >= 4.5


# ---- in a browser ------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api')
    if not os.path.exists(CHROMIUM):
        pytest.skip('needs Chromium, as Debian has it')
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """A function that opens a page in a browser; nothing may go wrong in it until the end."""
    path, problems, pages = tmp_path / 'page.html', [], []

    def open_page(text, width=1200, scheme='light', **options):
        path.write_text(text, encoding='utf-8')
        tab = browser.new_page(viewport={'width': width, 'height': 800}, color_scheme=scheme,
                               **options)
        pages.append(tab)
        tab.on('console', lambda message: problems.append(message.text))
        tab.on('pageerror', lambda error: problems.append(str(error)))
        tab.on('dialog', lambda dialog: problems.append(dialog.message))
        tab.on('request', lambda request: problems.extend(
            [request.url] * (not request.url.startswith(('file:', 'blob:')))))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert problems == []


@pytest.fixture
def show(open_page, made_up):
    """A function that opens the page of scores."""
    def show(*settings, **options):
        tab = open_page(made_up[0], *settings, **options)
        if options.get('java_script_enabled', True):
            tab.wait_for_selector('.token')
        return tab

    return show


def alternatives(tab):
    """Return the likeliest tokens in the panel and their percentages."""
    rows = tab.locator('#panel li').evaluate_all(
        'rows => rows.map(row => [row.children[0].textContent, row.children[2].textContent])')
    return [(text, float(percent.strip('% '))) for text, percent in rows]


def check_panel(tab, scores, i, encoder):
    """Check that the panel shows place i of a document."""
    found = alternatives(tab)
    tokens = [shown_token(encoder, token) for token in scores.top_tokens[i].tolist()]
    assert [text for text, _ in found] == [
        token.replace(' ', '␣').replace('\n', '↵') for token in tokens]
    np.testing.assert_allclose([percent for _, percent in found],
                               100 * np.exp(scores.top_logprobs[i]), rtol=0.15)
    assert f'rank {scores.ranks[i]}, ' in tab.locator('#panel h2 + p').inner_text()


@pure
def test_mouse_and_keyboard_show_what_the_model_expected(show, made_up, model_dir):
    tab, scores = show(), made_up[1][0]
    tokens = tab.locator('#d1 .token')
    assert tokens.count() == len(scores.ranks)
    assert ''.join(tokens.all_text_contents()) == DOCUMENTS[0]['text']
    assert tab.locator('#d1 .end').count() == 6
    tokens.nth(4).hover()
    check_panel(tab, scores, 4, model_dir.encoder)
    # The Tab key stops once in each text.
    stops = []
    tab.locator('[name=by]').first.focus()
    for _ in range(4):
        tab.keyboard.press('Tab')
        stops.append(tab.evaluate('document.activeElement.closest("#panel, article")?.id'))
    assert stops == ['panel', 'd1', 'd2', None]
    tokens.first.focus()
    for key, place in [('ArrowRight', 1), ('ArrowRight', 2), ('ArrowLeft', 1),
                       ('End', len(scores.ranks) - 1), ('ArrowRight', len(scores.ranks) - 1),
                       ('Home', 0)]:
        tab.keyboard.press(key)
        check_panel(tab, scores, place, model_dir.encoder)
    message = tab.locator('[role=status]').text_content()
    assert message.startswith(f'rank {scores.ranks[0]}, probability ') and 'Expected: ' in message


@pure
def test_the_colours_are_those_of_ranks_or_probabilities(show, made_up):
    tab, scores = show(), made_up[1][0]
    ranks = np.searchsorted([1, 10, 100, 1000], scores.ranks)
    p = np.exp(scores.logprobs)
    by_probability = np.searchsorted([-0.5, -0.1, -0.01, -0.001], -p)
    clear = [np.abs(p / limit - 1).min() > 0.15 for p, limit in zip(
        p[:, np.newaxis], [np.array([0.5, 0.1, 0.01, 0.001])] * len(p))]

    def colours(selector):
        return tab.locator(selector).evaluate_all(
            'all => all.map(one => getComputedStyle(one).backgroundColor)')

    for kind, classes, chosen in [('rank', ranks, np.ones(len(p), bool)),
                                  ('probability', by_probability, np.array(clear))]:
        tab.get_by_label(kind, exact=True).check()
        key = colours(f'.key ul.{kind[0]} li')
        assert len(set(key)) == 5 and len(set(classes[chosen])) > 2
        assert np.array_equal(np.array(colours('#d1 .token'))[chosen], np.array(key)[
            classes[chosen]])
        visible = tab.locator('.key li:visible')
        assert visible.count() == 5


@pure
def test_a_tap_shows_the_panel_of_a_small_screen_and_hides_it(show, made_up, model_dir):
    tab = show(width=375, has_touch=True)
    panel = tab.locator('#panel')
    assert not panel.is_visible()
    tab.locator('#d2 .token').first.tap()
    check_panel(tab, made_up[1][1], 0, model_dir.encoder)
    assert panel.bounding_box()['height'] < 0.5 * 800
    # A character of several tokens has the alternatives to each of them.
    tab.locator('#d2 .token', has_text='🙂').tap()
    assert len(alternatives(tab)) == 10 * len(model_dir.encoder.encode('🙂'))
    tab.get_by_label('Close').tap()
    assert not panel.is_visible()


ANY_WIDTH = pytest.mark.parametrize('width, scheme', [(375, 'light'), (1200, 'dark')] + LONG * [
    (375, 'dark'), (1200, 'light')])


@pure
@ANY_WIDTH
def test_the_page_is_accessible_at_any_width(show, width, scheme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    tab = show(width, scheme)
    tab.locator('#d1 .token').nth(9).focus()
    assert tab.evaluate('document.documentElement.scrollWidth') == width
    assert axe.Axe().run(tab).response['violations'] == []


@pure
def test_the_text_can_be_read_without_javascript(show):
    tab = show(java_script_enabled=False)
    assert tab.locator('#d1 .scored').inner_text().startswith('Good morrow, neighbour Gremio.')
    assert tab.locator('td').first.is_visible() and not tab.locator('fieldset').is_visible()


# ---- the page of detection ---------------------------------------------------------------------

def made_up_sides(length):
    """Return Texts of a person and of a model that prefers likely tokens."""
    sides = []
    for seed, bias in [(0, 0), (1, 1)]:
        draw = np.random.RandomState(seed)
        sides.append([])
        for _ in range(30):
            logprobs = draw.normal(-4 + bias, size=length).astype(np.float32)
            ranks = np.maximum(1, np.exp(-logprobs)).astype(np.int32)
            sides[-1].append(Text([0] * length, Scores(logprobs, ranks, ranks, logprobs * 0 + 4, (),
                                                       (), logprobs * 0 + 1)))
    return sides


@pytest.fixture(scope='module')
def detection(model_dir):
    """The page of a comparison, and its result."""
    sides, lengths = made_up_sides(20), [np.full(30, 20)] * 2
    detectors = compare(sides, lengths, seed=0)
    by_length = [(length, compare(sides, [np.full(30, length)] * 2, seed=0)) for length in (5, 20)]
    hostile = dataclasses.replace(model_dir, name='<b>&\x1b[2J')
    result = as_json(hostile, EvaluationOptions(task='detect', human='x', synthetic='y'), [32, 30],
                     lengths, detectors, by_length)
    return detection_page.page(result, detectors, by_length), result


@pure
def test_the_page_of_detection_has_the_figures(detection):
    text, result = detection
    parser = Parser(text)
    assert parser.open == [] and not {'script', 'img'} & {*parser.tags}
    assert parser.text_of('h1') == ['How well <b>&\ufffd[2J tells texts apart']
    assert re.search(r'30 human and 30 synthetic texts.*equal lengths: 20 tokens each', text)
    assert '2 human and 0 synthetic texts more are left out' in text
    assert "default-src 'none'" in text and not re.search(r'https?:', text)
    headings = parser.text_of('h2')
    assert headings == [*(s.heading for s in STATISTICS), 'Published figures']
    rows = re.findall('<tr><th scope="row"><a href="#(.*?)">.*?</a></th>(.*)</tr>', text)
    for (name, cells), figures, last in zip(rows, result['figures'],
                                            result['by_length'][1]['figures']):
        assert name == figures['statistic'] and f'id="{name}"' in text
        cells = re.findall('<td>(.*?)</td>', cells)
        assert cells[0] == cells[-1] == f'{figures["auroc"]:.3f}' == f'{last["auroc"]:.3f}'
        assert cells[3] == f'{100 * figures["true_positive_rate"]:.1f} %'
    assert len(rows) == len(STATISTICS) and 'nan' not in text


@pure
def test_curves_and_histograms_show_the_values(detection):
    text, result = detection
    article = re.search('<article class="card" id="log_likelihood".*?</article>', text,
                        re.DOTALL).group()
    points = re.search('<path d="M(.*?)"', article).group(1).split()
    x, y = np.array([point.split(',') for point in points], float).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 100, 100, 0)
    area = ((100 - y[1:]) + (100 - y[:-1])) @ np.diff(x) / 2 / 100**2
    assert area == pytest.approx(result['figures'][0]['auroc'], abs=1e-3)
    for name in ('human', 'synthetic'):
        bars = re.search(f'<span class="bars {name}">(.*?)</span>', article).group(1)
        assert len(re.findall('--h:', bars)) == detection_page.BARS
    at_20 = result['figures'][0]['auroc_interval']
    assert f'--low:{100 * at_20[0]:.1f};--high:{100 * at_20[1]:.1f}' in article


@pure
@pytest.mark.parametrize('mode', [0, 1], ids=['light', 'dark'])
def test_everybody_can_tell_the_two_sides_apart(mode):
    template = pathlib.Path(detection_page.__file__).with_name('page.html').read_text('utf-8')
    blocks = [re.findall(r':root \{(.*?)\}', style, re.DOTALL)[mode]
              for style in (STYLES[0], template)]
    colours = dict(re.findall(r'--(\w+): (#[0-9a-f]{6});', ''.join(blocks)))
    sides = [colours[name] for name in ('human', 'synthetic')]
    for matrix in VISION.values():
        seen = [to_lab(np.array(matrix) @ linear(colour)) for colour in sides]
        assert np.linalg.norm(seen[0] - seen[1]) > 20
    assert all(contrast(colour, colours['card']) >= 3 for colour in sides)


@pure
@ANY_WIDTH
def test_the_page_of_detection_is_accessible_at_any_width(open_page, detection, width, scheme):
    axe = pytest.importorskip('axe_playwright_python.sync_playwright')
    tab = open_page(detection[0], width, scheme)
    assert tab.evaluate('document.documentElement.scrollWidth') == width
    assert axe.Axe().run(tab).response['violations'] == []
    # Both charts of values are there, and of the same height; the keyboard reaches the cards.
    heights = tab.locator('#lrr .bars').evaluate_all('all => all.map(one => one.offsetHeight)')
    assert len(heights) == 2 and min(heights) > 50 and abs(heights[0] - heights[1]) <= 1
    tab.keyboard.press('Tab')
    for _ in STATISTICS:
        tab.keyboard.press('Tab')
    tab.keyboard.press('Enter')
    assert tab.evaluate('location.hash') == f'#{STATISTICS[-1].name}'
    assert tab.locator(f'#{STATISTICS[-1].name}').bounding_box()['y'] < 800
