"""The two sampling scripts as their users meet them: as processes, at a terminal and in pipes."""
import inspect
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess

import numpy as np
import pytest

import cli
import evaluate
import generate_conditional_samples as conditional
import generate_unconditional_samples as unconditional
import interactive_conditional_samples as interactive
import reference
import train

UNCONDITIONAL = 'generate_unconditional_samples.py'
CONDITIONAL = 'generate_conditional_samples.py'
INTERACTIVE = 'interactive_conditional_samples.py'
PROMPT = 'Model prompt >>> '
PATIENCE = 4  # times to type Ctrl-C: one that falls into a destructor is lost, as Python has it
LONG = os.environ.get('GPT2_TEST_LONG') == '1'
only_long = pytest.mark.skipif(not LONG, reason='set GPT2_TEST_LONG=1 for the longer matrices')


def numbered(texts, first=1):
    """The historic output format: each text under a line with its number."""
    return ''.join('=' * 40 + ' SAMPLE %d ' % number + '=' * 40 + '\n' + text + '\n'
                   for number, text in enumerate(texts, first))


def answer(texts):
    """The same of the interactive script, which draws a line below the last."""
    return numbered(texts) + '=' * 80 + '\n'


def called(function, tf, capsys, **flags):
    """Calls a script's function in this process: returns its stdout and stderr."""
    with tf.Graph().as_default():
        function(**flags)
    return capsys.readouterr()


# ---- unconditional -----------------------------------------------------------------------------


def test_unconditional_samples_are_the_references(command, tiny, tmp_path):
    """With flags in any form: = or a space, - or _, by place, twice; a name like a number."""
    shutil.copytree(str(tiny.path), str(tmp_path / '007'))
    status, stdout, stderr = command(
        UNCONDITIONAL, '007', '--models-dir=%s' % tmp_path, '--seed', 3, '--nsamples=7', '--length',
        12, '--top_k=0', '--top-p', '1.0', '--seed=4', '--batch_size', 3).run()
    assert (status, stderr) == (0, '')
    assert stdout == numbered(tiny.samples(range(7), seed=4, length=12))


@pytest.mark.parametrize('batch_size', [1, 2, 7, 8])
def test_the_batch_size_changes_nothing(tf, tiny, capsys, batch_size):
    stdout, _ = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                       models_dir=str(tiny.models_dir), seed=4, nsamples=7, length=12,
                       batch_size=batch_size)
    assert stdout == numbered(tiny.samples(range(7), seed=4, length=12))


@pytest.mark.parametrize('options', [
    {'temperature': 0}, {'temperature': 0.7}, {'temperature': 3.5}, {'top_k': 1}, {'top_k': 257},
    {'top_p': 1e-9}, {'top_p': 0.6}, {'temperature': 2, 'top_k': 20, 'top_p': 0.9}], ids=str)
def test_options_reach_the_sampler(tf, tiny, capsys, options):
    stdout, _ = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                       models_dir=str(tiny.models_dir), seed=2, nsamples=2, length=12,
                       batch_size=2, **options)
    assert stdout == numbered(tiny.samples(range(2), seed=2, length=12, **options))


def test_a_temperature_too_small_for_a_float_is_as_good_as_none(tf, tiny, capsys):
    stdout, _ = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                       models_dir=str(tiny.models_dir), seed=2, nsamples=1, length=12,
                       temperature=1e-50)
    assert stdout == numbered(tiny.samples([0], seed=2, length=12, temperature=0))


def test_the_default_length_is_the_whole_window(tf, tiny, capsys):
    stdout, stderr = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                            models_dir=str(tiny.models_dir), seed=2, nsamples=1)
    assert stdout == numbered(tiny.samples([0], seed=2, length=32))
    assert stderr == ''


def test_the_lite_engine_is_as_quiet_and_says_the_same(tf, command, tiny, tmp_path):
    shutil.copytree(str(tiny.path), str(tmp_path / 'tiny'))
    status, stdout, stderr = command(
        UNCONDITIONAL, '--engine', 'lite', '--model_name', 'tiny', '--models_dir', tmp_path,
        '--seed', 4, '--nsamples', 3, '--length', 12, '--batch_size', 2).run()
    if tf.__version__.startswith('1.'):
        assert (status, stdout, stderr.count('\n')) == (1, '', 1)
        assert stderr.startswith(UNCONDITIONAL + ': ') and '--engine graph' in stderr
    else:
        assert (status, stderr) == (0, '')
        assert stdout == numbered(tiny.samples(range(3), seed=4, length=12))


def test_without_a_seed_one_is_told_and_reproduces_the_text(command, tf, tiny, capsys):
    status, stdout, stderr = command(UNCONDITIONAL, *tiny.flags, '--nsamples', 2).run()
    assert status == 0
    seed = int(re.match(r'seed (\d+)\n$', stderr).group(1))
    again = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                   models_dir=str(tiny.models_dir), nsamples=2, seed=seed)
    assert stdout.count(' SAMPLE ') == 2
    assert again == (stdout, '')


def test_no_two_runs_draw_the_same_seed(capsys):
    seeds = [cli.choose_seed(None) for _ in range(20)]
    assert len(set(seeds)) == 20
    assert capsys.readouterr().err == ''.join('seed %d\n' % seed for seed in seeds)


def test_a_reader_may_leave_early(command, tiny):
    """As with `| head -n 3`, while samples are made for ever."""
    script = command(UNCONDITIONAL, *tiny.flags, '--seed', 4).start()
    head = subprocess.Popen(['head', '-n', '3'], stdin=script.stdout, stdout=subprocess.PIPE)
    script.stdout.close()
    first = head.communicate(timeout=120)[0]
    _, stderr = script.communicate(timeout=120)
    expected = numbered(tiny.samples(range(3), seed=4, length=32)).encode('utf-8')
    assert first == b''.join(expected.splitlines(True)[:3])
    assert (script.returncode, stderr) == (0, b'')


def test_ctrl_c_ends_unconditional_sampling(command, tiny):
    script = command(UNCONDITIONAL, *tiny.flags, '--seed', 4, '--batch_size', 2).start()
    read = b''
    while b' SAMPLE 9 ' not in read:  # it goes on and on
        read += os.read(script.stdout.fileno(), 4096)
    for _ in range(PATIENCE):
        script.send_signal(signal.SIGINT)
        try:
            rest, stderr = script.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired:
            continue
    assert script.returncode == 130
    assert stderr == b'' or b'Exception ignored' in stderr
    expected = numbered(tiny.samples(range(9), seed=4, length=32)).encode('utf-8')
    assert (read + rest).startswith(expected)


# ---- interactive, in pipes ---------------------------------------------------------------------


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
    'a locale that is not there': {'LC_ALL': 'xx_XX.ISO-8859-1'},
    'an encoding for Python': {'PYTHONIOENCODING': 'latin-1'},
}


def check_conversation(command, tiny, batch_size, env):
    """Has a conversation in which everything occurs that may, through pipes."""
    prompts = ['Hello', '', 'x' * 35, '你好 🙂é', '', 'y' * 27]  # 27 + 6 - 1 = 32
    script = command(INTERACTIVE, *tiny.flags, '--seed', 5, '--nsamples', 3, '--length', 6,
                     '--batch_size', batch_size, env=env)
    status, stdout, stderr = script.run('\n'.join(prompts))  # without a newline after the last
    assert status == 0  # as after Ctrl-D
    replies, made = [''] * len(prompts), 0
    for number in [0, 3, 5]:
        indices = range(made, made + 3)  # counted over the whole session
        replies[number] = answer(tiny.samples(indices, seed=5, length=6, prompt=prompts[number]))
        made += 3
    assert stdout == PROMPT + PROMPT.join(replies) + PROMPT + '\n'
    first, second, third = stderr.splitlines()
    assert first == third and 'empty' in first
    assert '3 tokens too long' in second and '35' in second and '32' in second


@pytest.mark.parametrize('batch_size, locale', [
    (2, 'C'), (3, 'ASCII'), pytest.param(1, 'as it is', marks=only_long),
    pytest.param(4, 'a locale that is not there', marks=only_long),
    pytest.param(5, 'an encoding for Python', marks=only_long)])
def test_a_conversation(command, tiny, batch_size, locale):
    check_conversation(command, tiny, batch_size, LOCALES[locale])


def test_a_conversation_in_a_latin_1_locale(command, tiny, latin_1):
    check_conversation(command, tiny, 7, latin_1)


def test_a_prompt_may_be_any_bytes(command, tiny):
    """What is not UTF-8 is taken for U+FFFD, and a stray carriage return for text."""
    script = command(INTERACTIVE, *tiny.flags, '--seed', 1, '--length', 4).start()
    stdout, stderr = script.communicate(b'a\xffb\0\r\n', timeout=120)
    assert (script.returncode, stderr) == (0, b'')
    # One or three replacement characters would be as good; the answer must come, and only one.
    assert stdout.decode('utf-8').count(' SAMPLE 1 ') == 1
    assert stdout.decode('utf-8').count(PROMPT) == 2


def test_the_default_length_is_half_the_window(tf, tiny, capsys, monkeypatch):
    prompts = iter(['x' * 33, 'x' * 17])

    def ask(text):
        assert text == PROMPT
        try:
            return next(prompts)
        except StopIteration:
            raise EOFError

    monkeypatch.setattr('builtins.input', ask)
    stdout, stderr = called(interactive.interact_model, tf, capsys, model_name=tiny.name,
                            models_dir=str(tiny.models_dir), seed=0)
    assert stdout == answer(tiny.samples([0], seed=0, length=16, prompt='x' * 17)) + '\n'
    assert stderr.count('\n') == 1 and '1 token' in stderr


# ---- interactive, at a terminal ----------------------------------------------------------------

LEFT, UP, BACKSPACE, CTRL_C, CTRL_D = '\x1b[D', '\x1b[A', '\x7f', '\x03', '\x04'


@pytest.mark.parametrize('locale', ['C', pytest.param('as it is', marks=only_long)])
def test_editing_history_and_ctrl_d(command, tiny, locale):
    screen = command(INTERACTIVE, *tiny.flags, '--seed', 5, '--length', 6,
                     env=LOCALES[locale]).spawn()

    def expect(text):
        screen.expect_exact(text.replace('\n', '\r\n'))

    def sample(index, prompt):
        return answer(tiny.samples([index], seed=5, length=6, prompt=prompt))

    expect(PROMPT)
    screen.send('Hexlo' + LEFT + LEFT + BACKSPACE + 'l\r')
    expect(sample(0, 'Hello'))
    expect(PROMPT)
    screen.send('你好 🙂x' + BACKSPACE + '\r')
    expect(sample(1, '你好 🙂'))
    expect(PROMPT)
    screen.send(UP + UP + '\r')
    expect(sample(2, 'Hello'))
    expect(PROMPT)
    screen.send('\r')
    expect('empty')
    expect(PROMPT)
    screen.send(CTRL_D)
    assert 'Traceback' not in screen.read()
    screen.close()
    assert screen.exitstatus == 0


def stop_sampling(screen):
    """Types Ctrl-C until the prompt is back."""
    from pexpect import TIMEOUT
    for _ in range(PATIENCE):
        screen.send(CTRL_C)
        if screen.expect_exact([PROMPT, TIMEOUT], timeout=20) == 0:
            break
    assert screen.after == PROMPT
    assert 'Traceback' not in screen.before or 'Exception ignored' in screen.before
    assert '=' * 80 not in screen.before  # the line that follows the last sample


def test_ctrl_c_returns_to_the_prompt_and_there_it_leaves(command, tiny):
    screen = command(INTERACTIVE, *tiny.flags, '--temperature', 0, '--length', 6,
                     '--nsamples', 1000000).spawn()
    samples = [numbered(tiny.samples([0], seed=0, length=6, prompt=prompt, temperature=0))
               .replace('\n', '\r\n') for prompt in ['Hello', 'Hollo']]
    screen.expect(r'seed \d+\r\n')
    screen.expect_exact(PROMPT)
    screen.send('Hello\r')
    screen.expect_exact(samples[0])
    screen.expect_exact(' SAMPLE 3 ')
    stop_sampling(screen)
    screen.send(UP + LEFT * 3 + BACKSPACE + 'o\r')  # what was typed before is still there
    screen.expect_exact(samples[1])
    screen.expect_exact(' SAMPLE 3 ')
    stop_sampling(screen)
    screen.send('half a prompt' + CTRL_C)
    rest = screen.read()
    assert 'Traceback' not in rest and 'SAMPLE' not in rest
    assert rest.endswith('\r\n')  # the shell's own prompt starts on a line of its own
    screen.close()
    assert screen.exitstatus == 130


def test_ctrl_c_in_a_pipe_leaves_whole_samples(command, tiny):
    script = command(INTERACTIVE, *tiny.flags, '--seed', 1, '--temperature', 0, '--length', 6,
                     '--nsamples', 1000000).start()
    script.stdin.write(b'Hello\n')
    script.stdin.flush()
    read = b''

    def read_until(text):
        nonlocal read
        while text.encode('utf-8') not in read:
            read += os.read(script.stdout.fileno(), 4096)

    read_until(' SAMPLE 3 ')
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


def test_a_text_is_shown_as_it_is_made(command):
    """One that has no end, at that, and is soon longer than the window."""
    models_dir = pathlib.Path(__file__).resolve().parent.parent / 'models'
    screen = command(INTERACTIVE, '--model_name', '1M', '--models_dir', models_dir, '--seed', 1,
                     '--length', 10**9, '--nsamples', 2).spawn()
    screen.expect_exact(PROMPT)
    screen.send('KING\r')
    screen.expect_exact(' SAMPLE 1 ' + '=' * 40 + '\r\n')
    for _ in range(40):
        screen.expect_exact('\r\n')
    stop_sampling(screen)
    assert ' SAMPLE 2 ' not in screen.before
    screen.send(CTRL_D)
    screen.expect_exact('\r\n')
    screen.close()


def test_emoji_and_chinese_arrive_whole(command, tiny, tmp_path):
    """From a model whose tokens are bytes."""
    text = '你好，世界 🙂🇫🇷 é!'
    numbers = {'n_vocab': 257, 'n_ctx': 64, 'n_embd': 64, 'n_head': 2, 'n_layer': 1}
    weights = {name: value if name.endswith('/g') else 0 * value  # no block adds anything
               for name, value in reference.random_weights(numbers, 0).items()}
    wte, tokens = np.random.RandomState(0).randn(257, 64), tiny.encode(text)
    weights['model/wte'] = np.float32(wte)
    weights['model/wpe'][:len(tokens)] = 20 * wte[tokens]  # each position asks for its token
    reference.write_checkpoint(tmp_path / 'speaker', numbers, weights)
    screen = command(INTERACTIVE, '--model_name', 'speaker', '--models_dir', tmp_path,
                     '--temperature', 0, '--seed', 1, '--length', len(tokens)).spawn()
    screen.expect_exact(PROMPT)
    screen.send('x\r')
    screen.expect_exact(answer([text]).replace('\n', '\r\n'))
    screen.close()


def test_samples_of_a_batch_are_shown_one_after_the_other(command, tiny):
    """And they end where they are told to."""
    whole = tiny.samples(range(3), seed=5, length=20, prompt='Hello')
    ending = next(whole[1][i:i + 2] for i in range(5, 20) if whole[1][i:i + 2].isprintable()
                  and '\ufffd' not in whole[1][i:i + 2])  # what is no UTF-8 cannot be asked for
    screen = command(INTERACTIVE, *tiny.flags, '--seed', 5, '--nsamples', 3, '--length', 20,
                     '--batch_size', 2, '--stop_at', ending).spawn()
    screen.expect_exact(PROMPT)
    screen.send('Hello\r')
    screen.expect_exact(answer([text.split(ending)[0] for text in whole]).replace('\n', '\r\n'))
    screen.close()


# ---- --help ------------------------------------------------------------------------------------

SCRIPTS = {UNCONDITIONAL: unconditional.sample_model, CONDITIONAL: conditional.continue_prompts,
           INTERACTIVE: interactive.interact_model, 'train.py': train.train,
           'evaluate.py': evaluate.evaluate}


@pytest.mark.parametrize('argument', ['--help', '-h'])
@pytest.mark.parametrize('script', SCRIPTS)
def test_help_explains_every_flag(bare, script, argument):
    status, stdout, stderr = bare(script, '--seed', 1, argument)
    assert (status, stderr) == (0, '')
    flags = {name: parameter.default
             for name, parameter in inspect.signature(SCRIPTS[script]).parameters.items()
             if parameter.default is not inspect.Parameter.empty and name != 'file'}  # FILE
    assert set(re.findall(r'^--(\w+)  ', stdout, re.MULTILINE)) == set(flags)
    for name, default in flags.items():
        # Up to the next flag, and ending in the default.
        explained = re.search(r'^--%s  +(.+(?:\n .+)*)' % name, stdout, re.MULTILINE).group(1)
        if isinstance(default, (str, int, float)) and not isinstance(default, bool):
            assert explained.endswith(': %s' % default) or (
                float(explained.rpartition(': ')[2]) == default), name
    assert 'Ctrl-C' in stdout
    assert all(len(line) <= 100 for line in stdout.splitlines())


def test_the_historic_flags_and_defaults():
    historic = {'model_name': '124M', 'seed': None, 'nsamples': 1, 'batch_size': 1, 'length': None,
                'temperature': 1, 'top_k': 0, 'top_p': 1, 'models_dir': 'models'}
    for function, nsamples in [(interactive.interact_model, 1), (unconditional.sample_model, 0)]:
        parameters = inspect.signature(function).parameters
        assert {name: parameters[name].default for name in historic} == dict(
            historic, nsamples=nsamples)


# ---- what is refused ---------------------------------------------------------------------------

# (arguments, words that the message must have)
BAD_FLAGS = [
    ('--length 0', '--length 1'),
    ('--length -1', '--length -1'),
    ('--length abc', "--length 'abc'"),
    ('--length 1.5', '--length 1.5'),
    ('--length=', '--length'),
    ('--length True', '--length True'),
    ('--length [3]', '--length [3]'),
    ('--keep 0', '--keep 1'),
    ('--keep 33', '--keep 32 33'),
    ('--stop_at=', '--stop_at'),
    ('--stop yes', "'yes'"),
    ('--stop=1', '--stop value'),
    ('--batch_size 0', '--batch_size 1'),
    ('--batch_size -3', '--batch_size -3'),
    ('--batch_size two', "--batch_size 'two'"),
    ('--batch_size 2.0', '--batch_size 2.0'),
    ('--nsamples -1', '--nsamples -1'),
    ('--nsamples many', "--nsamples 'many'"),
    ('--nsamples 1e3', '--nsamples'),
    ('--top_k -1', '--top_k -1'),
    ('--top_k 2.5', '--top_k 2.5'),
    ('--top_k 258', '--top_k 257 258'),
    ('--top_k all', "--top_k 'all'"),
    ('--top_p 0', '--top_p 0'),
    ('--top_p 0.0', '--top_p 0'),
    ('--top_p 1.5', '--top_p 1.5'),
    ('--top_p -1', '--top_p -1'),
    ('--top_p nan', '--top_p nan'),
    ('--top_p 1e999', '--top_p inf'),
    ('--top_p p', "--top_p 'p'"),
    ('--top_p False', '--top_p False'),
    ('--temperature nan', '--temperature nan'),
    ('--temperature NaN', '--temperature NaN'),
    ('--temperature inf', '--temperature inf'),
    ('--temperature -inf', '--temperature -inf'),
    ('--temperature 1e999', '--temperature inf'),
    ('--temperature -0.5', '--temperature -0.5'),
    ('--temperature -.5', '--temperature -0.5'),
    ('--temperature=hot', "--temperature 'hot'"),
    ('--temperature (1,2)', '--temperature'),
    ('--seed -1', '--seed -1'),
    ('--seed 1.5', '--seed 1.5'),
    ('--seed abc', "--seed 'abc'"),
    ('--seed True', '--seed True'),
    ('--engine fast', "--engine graph lite 'fast'"),
    ('--dtype float16', "--dtype float32 int8 'float16'"),
    ('--engine graph --dtype int8', '--dtype int8 --engine'),
    ('--engine', '--engine value'),
    ('--sede 3', '--sede --seed'),
    ('--temprature 1', '--temprature --temperature'),
    ('--top-q 1', '--top-q --top'),
    ('--nsample 1', '--nsample --nsamples'),
    ('--model 124M', '--model --model'),
    ('--Length 3', '--Length --length'),
    ('--unheard_of', '--unheard_of --help'),
    ('--noseed', '--noseed'),
    ('--trace', '--trace'),
    ('-x', '-x --help'),
    ('-n 3', '-n'),
    ('--seed', '--seed value'),
    ('--length --seed 3', '--length value'),
    ('--models_dir', '--models_dir value'),
    ('1 2 3 4 5 6 7 8 9 auto float32 extra', "'extra'"),
]


@pytest.mark.parametrize('arguments, words, script', [
    (arguments, words, script) for i, (arguments, words) in enumerate(BAD_FLAGS)
    for script in ([UNCONDITIONAL, INTERACTIVE] if LONG else [[UNCONDITIONAL, INTERACTIVE][i % 2]])
], ids=lambda value: value[:11] if value.endswith('.py') else value)
def test_bad_flags_are_refused_in_one_line(refused, tiny, arguments, words, script):
    flags = [] if 'extra' in arguments or arguments == '--models_dir' else tiny.flags
    status, message = refused(script, *flags, *arguments.split())
    assert status == 2
    for word in words.split():
        assert word in message


def test_interactive_asks_for_a_sample_at_least(refused, tiny):
    status, message = refused(INTERACTIVE, *tiny.flags, '--nsamples', 0)
    assert status == 2 and '--nsamples' in message and '1' in message


@pytest.mark.parametrize('script', [UNCONDITIONAL, INTERACTIVE])
@pytest.mark.parametrize('name', ['124M', '774', '1,2', "it's", '-', '--', '[tiny]', 'Ünï', ''])
def test_a_model_that_is_not_there(refused, tiny, script, name):
    status, message = refused(script, '--models_dir', tiny.models_dir, '--model_name', name)
    assert status == 1
    assert 'python3 download_model.py' in message
    # The only one there; `[` and `]` in the path are not read as a pattern.
    assert re.search(r'\btiny\b', message.replace(str(tiny.path), ''))
    assert name in message


def test_a_released_model_that_is_not_there_is_one_command_away(refused, tiny):
    for name in ['124M', '355M', '774M', '1558M']:
        _, message = refused(UNCONDITIONAL, '--models_dir', tiny.models_dir, '--model_name', name)
        assert message.endswith('python3 download_model.py ' + name)


def test_a_models_dir_that_is_not_there(refused, tmp_path):
    status, message = refused(UNCONDITIONAL, '--models_dir', tmp_path / 'nowhere')
    assert status == 1
    assert str(tmp_path / 'nowhere') in message and 'python3 download_model.py 124M' in message


@pytest.mark.parametrize('arguments', [
    ['--model_name', 'a\nb'], ['--a\nb', '1'], ['--seed', '1\n2'], ['--seed=1', '\n']], ids=repr)
def test_line_breaks_do_not_break_the_line(refused, tiny, arguments):
    status, _ = refused(UNCONDITIONAL, '--models_dir', tiny.models_dir, *arguments)
    assert status in [1, 2]


def test_tensorflow_that_is_missing_is_told(command, tiny, tmp_path):
    (tmp_path / 'tensorflow.py').write_text('raise ImportError("no such\\nthing")')
    status, stdout, stderr = command(UNCONDITIONAL, *tiny.flags,
                                     env={'PYTHONPATH': tmp_path}).run()
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert 'TensorFlow' in stderr and 'pip install -r requirements.txt' in stderr


# ---- unusual surroundings ----------------------------------------------------------------------


CLOSED = {'stdin': '<&-', 'stdout': '>&-', 'stderr': '2>&-'}


def without(stream, script):
    """Runs a command with one of its streams closed: returns (status, stdout, stderr)."""
    shell = ['sh', '-c', 'exec "$@" ' + CLOSED[stream], 'sh']
    done = subprocess.run(shell + script.arguments, env=script.env, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode('utf-8'), done.stderr.decode('utf-8')


@pytest.mark.parametrize('stream', CLOSED)
def test_a_closed_stream_is_no_reason_to_crash(command, tiny, stream):
    """As some service managers start a program."""
    status, stdout, stderr = without(stream, command(UNCONDITIONAL, *tiny.flags, '--seed', -1))
    assert (status, stdout) == (2, '')
    assert stderr.count('\n') == (stream != 'stderr')
    assert stream == 'stderr' or stderr.startswith(UNCONDITIONAL + ': --seed ')


@only_long
@pytest.mark.parametrize('stream', CLOSED)
def test_samples_without_a_stream(command, tiny, stream):
    status, stdout, stderr = without(
        stream, command(UNCONDITIONAL, *tiny.flags, '--seed', 4, '--nsamples', 1))
    samples = numbered(tiny.samples([0], seed=4, length=32))
    assert (status, stdout, stderr) == (0, '' if stream == 'stdout' else samples, '')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='this system has no /dev/full')
@pytest.mark.parametrize('arguments', [
    ['--help'], pytest.param(['--seed', 4], marks=only_long)], ids=str)
def test_a_full_disk_is_told_in_one_line(tiny, command, arguments):
    with open('/dev/full', 'w') as full:
        status, _, stderr = command(UNCONDITIONAL, *tiny.flags, *arguments).run(stdout=full)
    assert status == 1
    assert stderr.count('\n') == 1 and 'No space left on device' in stderr


def test_a_batch_far_beyond_memory_is_refused_or_cut(tf, tiny, capsys):
    try:
        stdout, _ = called(unconditional.sample_model, tf, capsys, model_name=tiny.name,
                           models_dir=str(tiny.models_dir), seed=4, nsamples=2, length=9,
                           batch_size=10**26)
    except cli.UsageError as error:
        assert '--batch_size' in str(error)
    else:
        assert stdout == numbered(tiny.samples(range(2), seed=4, length=9))


# ---- the model in the box ----------------------------------------------------------------------

COMMON_WORDS = set("""
    a all and are as be but by do for from good have he her here him his i if in is it king know let
    lord man me my no not now o of on our shall she sir so that the thee their them then there they
    this thou thy to was we well what when which who will with would you your""".split())


def test_the_model_in_the_box_writes_shakespeare(tf, capsys):
    models_dir = pathlib.Path(__file__).resolve().parent.parent / 'models'
    stdout, _ = called(unconditional.sample_model, tf, capsys, model_name='1M', seed=1, nsamples=4,
                       batch_size=4, length=150, models_dir=str(models_dir))
    words = re.findall("[a-z']+", stdout.lower())
    assert len(words) > 200
    assert sum(word in COMMON_WORDS for word in words) > 0.4 * len(words)
    assert len(re.findall(r'^\n?[A-Z][A-Za-z ]+:\n', stdout, re.MULTILINE)) > 4  # who speaks
    assert '\ufffd' not in stdout
