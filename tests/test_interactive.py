"""The interactive command: conversations through pipes and at a terminal."""
import os
import select
import shutil
import signal
import subprocess
import types

import numpy as np
import pytest

import interactive_conditional_samples as interactive
from gpt2.sampling import terminal
from gpt2.sampling.decoder import Decoder
from helpers import LONG, SRC, numbered, only_long

SCRIPT = 'interactive_conditional_samples.py'
PROMPT = 'Model prompt >>> '
PATIENCE = 4  # times to send Ctrl-C: Python loses one that comes in a destructor


def answer(texts):
    """Return texts as the command shows them, with a line below the last."""
    return numbered(texts) + '=' * 80 + '\n'


# ---- in pipes ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def latin_1(tmp_path_factory):
    """Environment variables of a locale whose characters are those of ISO 8859-1."""
    folder = tmp_path_factory.mktemp('locales')
    if not shutil.which('localedef') or subprocess.call(
            ['localedef', '-i', 'en_US', '-f', 'ISO-8859-1', str(folder / 'en_US.ISO-8859-1')],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        pytest.skip('there is no localedef, or it lacks en_US or ISO-8859-1')
    return {'LOCPATH': folder, 'LC_ALL': 'en_US.ISO-8859-1', 'PYTHONUTF8': None}


LOCALES = {
    'as it is': {},
    'C': {'LC_ALL': 'C', 'PYTHONUTF8': None, 'PYTHONIOENCODING': None},
    'ASCII': {'LC_ALL': 'C', 'PYTHONUTF8': 0, 'PYTHONCOERCECLOCALE': 0},
    'a locale that does not exist': {'LC_ALL': 'xx_XX.ISO-8859-1'},
    'an encoding for Python': {'PYTHONIOENCODING': 'latin-1'},
}

# A conversation in which everything occurs that may. 27 + 6 - 1 = 32, the window.
PROMPTS = ['Hello', '', 'x' * 35, '你好 🙂é', '', 'y' * 27]


def check_conversation(tiny, stdout, stderr):
    """Check what was printed after PROMPTS, with seed 5, 3 samples of 6 tokens each."""
    replies, first = [''] * len(PROMPTS), 0
    for number in [0, 3, 5]:
        indices = range(first, first + 3)  # counted over the whole session
        replies[number] = answer(tiny.samples(indices, seed=5, length=6, prompt=PROMPTS[number]))
        first += 3
    assert stdout == PROMPT + PROMPT.join(replies) + PROMPT + '\n'
    first, second, third = stderr.splitlines()
    assert first == third and 'empty' in first
    assert '3 tokens too long' in second and '35' in second and '32' in second


FLAGS = ['--seed', 5, '--nsamples', 3, '--length', 6]


@pytest.mark.parametrize('batch_size', [1, 2, 3, 4])
def test_a_conversation(sample, tiny, batch_size):
    """Without a newline after the last prompt."""
    stdout, stderr = sample(interactive.interact_model, *FLAGS, '--batch_size', batch_size,
                            stdin='\n'.join(PROMPTS))
    check_conversation(tiny, stdout, stderr)


@only_long
@pytest.mark.parametrize('locale', LOCALES)
def test_a_conversation_in_a_locale(command, tiny, locale):
    status, stdout, stderr = command(SCRIPT, *tiny.flags, *FLAGS, '--batch_size', 3,
                                     env=LOCALES[locale]).run('\n'.join(PROMPTS))
    assert status == 0
    check_conversation(tiny, stdout, stderr)


@only_long
def test_a_conversation_in_a_latin_1_locale(command, tiny, latin_1):
    status, stdout, stderr = command(SCRIPT, *tiny.flags, *FLAGS, '--batch_size', 7,
                                     env=latin_1).run('\n'.join(PROMPTS))
    assert status == 0
    check_conversation(tiny, stdout, stderr)


def test_a_prompt_may_be_any_bytes(sample):
    """What is not UTF-8 is read as U+FFFD, and a stray carriage return as text."""
    stdout, stderr = sample(interactive.interact_model, '--length', 4, stdin=b'a\xffb\0\r\n')
    assert stderr == ''
    # One or three replacement characters would be as good; the answer must come, and only one.
    assert stdout.count(' SAMPLE 1 ') == 1 and stdout.count(PROMPT) == 2


def test_the_default_length_is_half_the_window(call, graph_decoders, monkeypatch, tiny):
    from gpt2.sampling import run
    monkeypatch.setattr(run, 'open_decoder', graph_decoders)
    prompt = 'x' * 17
    status, stdout, stderr = call(
        interactive.interact_model, interactive.OPTIONS, *tiny.flags, '--engine', 'graph', '--seed',
        0, stdin=f'{"x" * 33}\n{prompt}\n')
    assert status == 0 and stderr.count('\n') == 1 and '1 token' in stderr
    expected = answer(tiny.samples([0], seed=0, length=16, prompt=prompt))
    assert stdout == PROMPT + PROMPT + expected + PROMPT + '\n'


def test_ctrl_c_between_samples_asks_for_the_next_prompt(sample, tiny, monkeypatch):
    """In a pipe only whole samples are printed."""
    from gpt2.sampling.graph import GraphDecoder
    decode, n_calls = GraphDecoder.decode, 0

    def interrupted(*args, **options):
        nonlocal n_calls
        n_calls += 1
        if n_calls == 20:
            raise KeyboardInterrupt
        return decode(*args, **options)

    monkeypatch.setattr(GraphDecoder, 'decode', interrupted)
    stdout, stderr = sample(interactive.interact_model, '--temperature', 0, '--length', 6,
                            '--nsamples', 10**6, stdin='Hello\n')
    text, = tiny.samples([0], seed=4, length=6, prompt='Hello', temperature=0)
    n = stdout.count(' SAMPLE ')
    assert n > 2
    assert (stdout, stderr) == (PROMPT + numbered([text] * n) + PROMPT + '\n', '\n')


@only_long
def test_ctrl_c_in_a_pipe_leaves_whole_samples(command, tiny):
    script = command(SCRIPT, *tiny.flags, '--seed', 1, '--temperature', 0, '--length', 6,
                     '--nsamples', 1000000).start()
    script.stdin.write(b'Hello\n')
    script.stdin.flush()
    read = b''
    while b' SAMPLE 3 ' not in read:
        read += os.read(script.stdout.fileno(), 4096)
    for _ in range(PATIENCE):
        script.send_signal(signal.SIGINT)
        if select.select([script.stderr], [], [], 20)[0]:  # a line break
            break
    rest, stderr = script.communicate(timeout=120)  # which is Ctrl-D
    stdout = (read + rest).decode('utf-8')
    sample, = tiny.samples([0], seed=1, length=6, prompt='Hello', temperature=0)
    shown = numbered([sample] * stdout.count(' SAMPLE '))
    assert (script.returncode, stdout) == (0, PROMPT + shown + PROMPT + '\n')
    assert stderr == b'\n' or b'Exception ignored' in stderr


# ---- at a terminal -----------------------------------------------------------------------------

LEFT, UP, BACKSPACE, CTRL_C, CTRL_D = '\x1b[D', '\x1b[A', '\x7f', '\x03', '\x04'


def stop_sampling(screen):
    """Type Ctrl-C until the prompt is back."""
    from pexpect import TIMEOUT
    for _ in range(PATIENCE):
        screen.send(CTRL_C)
        if screen.expect_exact([PROMPT, TIMEOUT], timeout=20) == 0:
            break
    assert screen.after == PROMPT
    assert 'Traceback' not in screen.before or 'Exception ignored' in screen.before
    assert '=' * 80 not in screen.before  # the line that follows the last sample


@only_long
@pytest.mark.parametrize('locale', ['C', 'as it is'])
def test_editing_history_and_ctrl_c(command, tiny, locale):
    """Texts without an end are shown as they are made. Ctrl-C returns to the prompt, or leaves."""
    screen = command(SCRIPT, *tiny.flags, '--length', 10**9, '--nsamples', 2, '--seed', 5,
                     env=LOCALES[locale]).spawn()

    def expect_text(index, prompt):
        text = numbered(tiny.samples([index], seed=5, length=12, prompt=prompt)).rstrip('\n')
        text = text.rstrip('\ufffd')  # it may be half a character
        screen.expect_exact(text.replace('\n', '\r\n'))
        screen.expect('(?s).{100}')  # more than the window
        stop_sampling(screen)
        assert ' SAMPLE 2 ' not in screen.before

    screen.expect_exact(PROMPT)
    screen.send('Hexlo' + LEFT + LEFT + BACKSPACE + 'l\r')
    expect_text(0, 'Hello')
    screen.send('你好 🙂x' + BACKSPACE + '\r')
    expect_text(2, '你好 🙂')
    screen.send(UP + UP + LEFT * 3 + BACKSPACE + 'o\r')
    expect_text(4, 'Hollo')
    screen.send('\r')
    screen.expect_exact('empty')
    screen.expect_exact(PROMPT)
    screen.send('half a prompt' + CTRL_C)  # clears the line
    screen.expect_exact('leaves.')
    screen.expect_exact(PROMPT)
    screen.send('\r')
    screen.expect_exact('empty')
    for _ in range(2):
        screen.expect_exact(PROMPT)
        screen.send(CTRL_C)
    rest = screen.read()
    assert 'Traceback' not in rest and 'SAMPLE' not in rest
    assert rest.endswith('\r\n')  # the shell's own prompt starts on a new line
    screen.close()
    assert screen.exitstatus == 130


@only_long
def test_ctrl_d_ends_the_command(command):
    """After a text of the model in the box, whose second sample is never reached."""
    screen = command(SCRIPT, '--model_name', '1M', '--models_dir', SRC.parent / 'models', '--seed',
                     1, '--length', 10**9, '--nsamples', 2, '--engine', 'graph').spawn()
    screen.expect_exact(PROMPT)
    screen.send('KING\r')
    screen.expect_exact(' SAMPLE 1 ' + '=' * 40 + '\r\n')
    for _ in range(30):
        screen.expect_exact('\r\n')
    stop_sampling(screen)
    assert ' SAMPLE 2 ' not in screen.before
    screen.send(CTRL_D)
    assert 'Traceback' not in screen.read()
    screen.close()
    assert screen.exitstatus == 0


class Speaker(Decoder):
    """A decoder that says the same tokens in every row, whatever the prompt."""

    def __init__(self, hparams, tokens):
        super().__init__(types.SimpleNamespace(hparams=hparams))
        self._tokens = tokens

    def reset(self, n_rows):
        self._start_rows(n_rows)

    def prefill(self, rows, prompt):
        self._position[rows] = 0

    def decode(self, length, options, uniforms=None, stop_token=None, logprobs=False, n_top=0):
        first = self._position[0]
        self._position += length
        return np.int32([self._tokens[first:first + length]] * len(self._position)), None


def test_emoji_and_chinese_arrive_whole(sample, tiny, monkeypatch):
    """From a model whose tokens are bytes, at a terminal, where half a character would be seen."""
    from gpt2.sampling import batching, run
    text = '你好，世界 🙂🇫🇷 é!'
    tokens = tiny.encode(text)
    monkeypatch.setattr(batching, 'CHUNK', 1)
    monkeypatch.setattr(run, 'open_decoder', lambda model_dir, engine, dtype: Speaker(
        types.SimpleNamespace(**{**tiny.hparams, 'n_ctx': 99}), tokens))
    stdout, stderr = sample(interactive.interact_model, '--length', len(tokens), '--stop',
                            stdin='x\n', terminal=True)
    assert (stdout, stderr) == (PROMPT + answer([text]) + PROMPT + '\n', '')


def test_samples_of_a_batch_are_shown_one_after_the_other(sample, tiny):
    """And each ends before the text it is to stop at."""
    whole = tiny.samples(range(3), seed=5, length=20, prompt='Hello')
    stop_at = next(whole[1][i:i + 2] for i in range(5, 20) if whole[1][i:i + 2].isprintable()
                   and '\ufffd' not in whole[1][i:i + 2])  # what is not UTF-8 cannot be asked for
    stdout, _ = sample(interactive.interact_model, '--seed', 5, '--nsamples', 3, '--length', 20,
                       '--batch_size', 2, '--stop_at', stop_at, stdin='Hello\n', terminal=True)
    texts = [text.split(stop_at)[0] for text in whole]
    assert texts != whole
    assert stdout == PROMPT + answer(texts) + PROMPT + '\n'


# ---- at a terminal -------------------------------------------------------------------------------

def numbers_of(screen, tiny, index, prompt, length=6):
    """Expect the text of a prompt, with a line below it."""
    text = answer(tiny.samples([index], seed=5, length=length, prompt=prompt))
    screen.expect_exact(text.replace('\n', '\r\n'))
    screen.expect_exact(PROMPT)


@pytest.mark.pure
@pytest.mark.parametrize('lines, text', [
    (['"""a', 'b"""'], 'a\nb'), (['"""', 'a', 'b', '"""'], 'a\nb'), (['"""a"""'], 'a'),
    (['"""', '', ' a', '', '"""'], '\n a\n'), (['"""', '"""'], ''), (['""""""'], '')])
def test_quotes_may_stand_on_lines_of_their_own(monkeypatch, lines, text):
    rest = iter(lines)
    monkeypatch.setattr('builtins.input', lambda prompt: next(rest))
    assert terminal.read(PROMPT) == text


def test_prompts_of_several_lines_commands_and_history(command, tiny):
    start = command(SCRIPT, *tiny.flags, '--length', 6, '--seed', 5, '--engine', 'graph')
    screen = start.spawn()
    screen.expect_exact('Loading tiny. Ctrl-D leaves; /help')
    screen.expect_exact(PROMPT)
    screen.send('\x1b[200~One\ntwo\x1b[201~\r')  # as a terminal pastes
    numbers_of(screen, tiny, 0, 'One\ntwo')
    screen.send('"""a\r')
    screen.expect_exact('... ')
    screen.send('\r')
    screen.expect_exact('... ')
    screen.send('b"""\r')
    numbers_of(screen, tiny, 1, 'a\n\nb')
    screen.send('/help\r')
    screen.expect_exact('/set NAME VALUE')
    screen.expect_exact(PROMPT)
    screen.send('/set temperature hot\r')
    screen.expect_exact("temperature must be a number that is not negative, not 'hot'")
    screen.expect_exact(PROMPT)
    screen.send('/set tempreature 1\r')
    screen.expect_exact('/set tempreature: there is no such option; /set shows all')
    screen.expect_exact(PROMPT)
    for line in ('/set length 4', '/set temperature 0'):
        screen.send(line + '\r')
        screen.expect_exact(PROMPT)
    screen.send('/set\r')
    screen.expect('temperature +0.0\r\n')
    screen.expect('length +4\r\n')
    screen.expect_exact(PROMPT)
    screen.send('/bin\r')  # a prompt like any other
    text = answer(tiny.samples([2], seed=5, length=4, prompt='/bin', temperature=0))
    screen.expect_exact(text.replace('\n', '\r\n'))
    screen.expect_exact(PROMPT)
    for line in ('/set length', '/set temperature'):
        screen.send(line + '\r')
        screen.expect_exact(PROMPT)
    screen.send('x\r')
    numbers_of(screen, tiny, 3, 'x')
    screen.send(CTRL_D)
    screen.read()
    screen.close()
    assert screen.exitstatus == 0
    if LONG:
        again = start.spawn()
        again.expect_exact(PROMPT)
        again.send(UP * 4 + '\r')  # /bin, of the session before
        numbers_of(again, tiny, 0, '/bin')
        again.send(CTRL_D)
        again.read()
        again.close()


@pytest.mark.pure
@pytest.mark.parametrize('text, shown', [
    ('one two three', 'one two \nthree'), ('exactly 10', 'exactly 10'), ('a' * 25, 'a' * 25),
    ('one two three four\nfive six', 'one two \nthree four\nfive six'),
    ('a ' + 'b' * 12, 'a ' + 'b' * 12), ('12345678 ab', '12345678 \nab'), ('', ''),
    ('你好你好你好', '你好你好你\n好'), ('12345 789 ', '12345 789 ')])
@pytest.mark.parametrize('size', [1, 3, 100])
def test_words_are_not_broken_at_the_edge(monkeypatch, text, shown, size):
    monkeypatch.setattr(terminal.sys, 'stdout', types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(terminal.shutil, 'get_terminal_size',
                        lambda: types.SimpleNamespace(columns=10))
    wrap = terminal.wrapper()
    pieces = [text[i:i + size] for i in range(0, len(text), size)]
    assert ''.join([wrap(piece, False) for piece in pieces] + [wrap('', True)]) == shown
