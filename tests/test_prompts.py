"""Prompts from files: which lines are prompts, and that each is continued as it would be alone."""
import hashlib
import json
import os

import pytest

import generate_conditional_samples as conditional
from gpt2.errors import UserError
from gpt2.sampling import prompts
from gpt2.sampling.options import ConditionalOptions
from helpers import contents, numbered

LINES = ['Hello', '你好 🙂', '', 'x' * 33, 'y' * 32, 'Hello', ' z\t']
USABLE = [0, 1, 4, 5, 6]


class Bytes:
    """An encoder whose tokens are bytes."""

    def encode(self, text):
        return list(text.encode('utf-8'))


# ---- reading -----------------------------------------------------------------------------------


def open_prompts(path):
    return prompts.open_prompts(ConditionalOptions(prompts=str(path)))


def read_all(path):
    """Return the prompts of a file, or why a line has none, in order."""
    found = []
    opened = open_prompts(path)
    for number in range(len(opened)):
        try:
            found.append(opened.read(number)[0])
        except ValueError as error:
            found.append(error.args)
    return found


@pytest.mark.pure
@pytest.mark.parametrize('data, expected', [
    (b'', []), (b'a', ['a']), (b'a\n', ['a']), (b'a\n\n', ['a', '']), (b'\n', ['']),
    (b'a\r\nb\r', ['a', 'b']), (b'a\rb\n', ['a\rb']), (b'a\r\r\n', ['a\r']),
    (b'\xef\xbb\xbfa\n\xef\xbb\xbfb', ['a', '\ufeffb']), (b' a\t\n\x0b\x0c', [' a\t', '\x0b\x0c']),
    ('é\u2028\x85\n🙂'.encode(), ['é\u2028\x85', '🙂']), (b'a\0b', ['a\0b']),
    (b'a\n\xff\nb', ['a', ('it is not UTF-8',), 'b']), (b'{"prompt": "a"}', ['{"prompt": "a"}'])],
    ids=repr)
def test_the_lines_of_a_txt(tmp_path, data, expected):
    (tmp_path / 'prompts.txt').write_bytes(data)
    assert read_all(tmp_path / 'prompts.txt') == expected


@pytest.mark.pure
@pytest.mark.parametrize('line, expected', [
    (b'{"prompt": "a"}', 'a'), (b'{"prompt": "a", "id": 7}\r', 'a'), (b' {"prompt": "a"} ', 'a'),
    (b'{"prompt": "a\\nb \\ud83d\\ude42"}', 'a\nb 🙂'), (b'{"prompt": ""}', ''),
    (b'\xef\xbb\xbf{"prompt": "a"}', 'a'),
    (b'{"text": "a"}', ('it has no text as its "prompt"',)),
    (b'{"prompt": 3}', ('it has no text as its "prompt"',)),
    (b'{"prompt": null}', ('it has no text as its "prompt"',)),
    (b'[]', ('it is not a JSON object',)), (b'"a"', ('it is not a JSON object',)),
    (b'a', ('it is not JSON',)), (b'', ('it is not JSON',)), (b'[' * 100000, ('it is not JSON',)),
    (b'{"prompt": "\xff"}', ('it is not UTF-8',))], ids=lambda value: repr(value)[:40])
def test_a_line_of_a_jsonl(tmp_path, line, expected):
    (tmp_path / 'prompts.jsonl').write_bytes(line + b'\n')
    assert read_all(tmp_path / 'prompts.jsonl') == [expected]


@pytest.mark.pure
def test_the_digest_is_that_of_the_file(tmp_path):
    (tmp_path / 'prompts.txt').write_bytes(b'a\n')
    assert open_prompts(tmp_path / 'prompts.txt').digest == (
        hashlib.sha256(b'a\n').hexdigest()[:16])


@pytest.mark.pure
def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match='nothing.txt: No such file or directory'):
        open_prompts(tmp_path / 'nothing.txt')
    (tmp_path / 'folder.txt').mkdir()
    with pytest.raises(UserError, match='folder.txt: Is a directory'):
        open_prompts(tmp_path / 'folder.txt')


@pytest.mark.pure
@pytest.mark.parametrize('first', range(9))
def test_numbers_of_samples_count_all_lines(tmp_path, capsys, first):
    """The prompt in line i, from 0, has the samples from 2 i; lines before `first` are not read."""
    (tmp_path / 'prompts.txt').write_bytes(b'ab\n\ncd\n' + b'x' * 5)
    opened = open_prompts(tmp_path / 'prompts.txt')
    found = list(opened.encode(Bytes(), 4, nsamples=2, first=first))
    whole = [(0, [97, 98]), (1, [97, 98]), (4, [99, 100]), (5, [99, 100])]
    assert found == [(index, tokens) for index, tokens in whole if index >= first]
    reports = ['prompt in line 2 left out: it is empty',
               'prompt in line 4 left out: it is 1 tokens too long: it has 5, and the window 4']
    expected = [report for report, end in zip(reports, [4, 8]) if first < end]
    assert capsys.readouterr() == ('', ''.join(f'{report}\n' for report in expected))


# ---- continuing --------------------------------------------------------------------------------


def records(path):
    """Return the records of a .jsonl."""
    return [json.loads(line) for line in path.read_bytes().decode('utf-8').splitlines()]


@pytest.mark.parametrize('batch_size', [1, 3, 16])
def test_prompts_of_all_lengths_share_a_batch(sample, tiny, tmp_path, batch_size):
    source, path = tmp_path / 'prompts.txt', tmp_path / 'samples.jsonl'
    source.write_bytes('\n'.join(LINES).encode('utf-8').replace(b'Hello\n', b'Hello\r\n', 1))
    stdout, stderr = sample(conditional.continue_prompts, '--prompts', source, '--nsamples', 2,
                            '--batch_size', batch_size, '--output', path)
    assert stdout == '' and stderr.count('\n') == 2
    assert 'line 3 ' in stderr and 'empty' in stderr and 'line 4 ' in stderr and '1 token' in stderr
    found = records(path)
    assert [record['index'] for record in found] == [2 * line + n for line in USABLE
                                                     for n in range(2)]
    n_compared = 0
    for record in found:
        prompt = LINES[record['index'] // 2]
        assert record['prompt'] == prompt
        assert len(record['tokens']) == 12
        if len(prompt.encode()) < 20:  # within the window, where the reference samples
            assert [record['text']] == tiny.samples([record['index']], seed=4, length=12,
                                                    prompt=prompt)
            n_compared += 1
    assert n_compared == 8


def test_prompts_from_stdin_and_from_json(sample, tiny, tmp_path):
    stdout, stderr = sample(conditional.continue_prompts, '--prompts=-', stdin='Hello\n\n你好 🙂\n')
    assert stderr.count('\n') == 1 and 'line 2 ' in stderr
    texts = [tiny.samples([index], seed=4, length=12, prompt=prompt)[0]
             for index, prompt in [(0, 'Hello'), (2, '你好 🙂')]]
    assert stdout == numbered(texts[:1]) + numbered(texts[1:], 3)
    source = tmp_path / 'prompts.jsonl'
    lines = ['{"prompt": "Hello", "id": 7}', '{"text": "Hello"}', json.dumps({'prompt': '你好 🙂'}),
             '{"prompt": 3}', '[]', 'Hello', '{"prompt": ""}']
    source.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    again, stderr = sample(conditional.continue_prompts, '--prompts', source)
    assert again == stdout
    assert [line.split(':')[0] for line in stderr.splitlines()] == [
        f'prompt in line {number} left out' for number in (2, 4, 5, 6, 7)]
    assert sample(conditional.continue_prompts, '--prompts', '-', stdin='') == ('', '')


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_a_file_of_prompts_is_continued(sample, sample_error, tmp_path, name):
    source, path = tmp_path / 'prompts.txt', tmp_path / name
    source.write_text('\n'.join(LINES), encoding='utf-8')
    flags = [conditional.continue_prompts, '--prompts', source, '--nsamples', 2, '--output', path]
    sample(*flags)
    whole = path.read_bytes()
    if name.endswith('.jsonl'):
        for cut in range(0, len(whole), len(whole) // 5):
            path.write_bytes(whole[:cut])
            sample(*flags)
            assert path.read_bytes() == whole
    assert 'nsamples' in sample_error(*flags, '--nsamples', 3)
    source.write_text('other prompts', encoding='utf-8')
    assert 'prompts' in sample_error(*flags)
    assert path.read_bytes() == whole


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_prompts_that_are_done_need_no_model(sample, monkeypatch, tmp_path, name):
    """Also if the last ones cannot be used, and no later record shows that they were read."""
    from gpt2.sampling import run
    source, path = tmp_path / 'prompts.txt', tmp_path / name
    source.write_text('Hello\n\nyou\n\n' + 'x' * 33 + '\n', encoding='utf-8')
    flags = [conditional.continue_prompts, '--prompts', source, '--nsamples', 2, '--output', path]
    sample(*flags)
    before = contents(tmp_path)
    monkeypatch.setattr(run, 'open_decoder', lambda *args: pytest.fail('the model was opened'))
    stdout, stderr = sample(*flags)
    assert stdout == '' and contents(tmp_path) == before
    *left_out, last = stderr.splitlines()
    assert [line.split(':')[0] for line in left_out] == [
        'prompt in line 4 left out', 'prompt in line 5 left out']
    assert last.startswith(f'{path} has all these samples already')


# ---- prompts in other forms ----------------------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize('data, expected', [
    ('prompt\na\n"b, ""c""\nd"\n', [('a', {}), ('b, "c"\nd', {})]),
    ('id,prompt\r\n7,a\r\n\r\n8,\r\n', [('a', {'id': '7'}), ('', {'id': '8'})]),
    ('\ufeffprompt,ü\n你好,é\n', [('你好', {'ü': 'é'})]),
    ('prompt,id\na\n', [('it has 1 columns, and the header 2',)])], ids=repr)
def test_the_rows_of_a_csv(tmp_path, data, expected):
    (tmp_path / 'prompts.csv').write_bytes(data.encode('utf-8'))
    opened, found = open_prompts(tmp_path / 'prompts.csv'), []
    for number in range(len(opened)):
        try:
            found.append(opened.read(number))
        except ValueError as error:
            found.append(error.args)
    assert found == expected


@pytest.mark.pure
@pytest.mark.parametrize('data, message', [
    (b'', 'no column named prompt'), (b'text\na\n', 'no column named prompt'),
    (b'prompt,prompt\na,b\n', 'no column named prompt'), (b'prompt\n\xff\n', 'table in UTF-8'),
    (b'prompt\n"a\n', 'table in UTF-8')], ids=repr)
def test_a_csv_that_is_no_table_of_prompts(tmp_path, data, message):
    (tmp_path / 'prompts.csv').write_bytes(data)
    with pytest.raises(UserError, match=message):
        open_prompts(tmp_path / 'prompts.csv')


def test_prompts_on_the_command_line(sample, tiny, tmp_path):
    stdout, _ = sample(conditional.continue_prompts, '--prompt', 'Hello', '--nsamples', 2)
    assert stdout == numbered(tiny.samples(range(2), seed=4, length=12, prompt='Hello'))
    several = ['--prompt', 'Two\nlines', '--prompt=--7']
    expected = [tiny.samples([index], seed=4, length=12, prompt=prompt)[0]
                for index, prompt in enumerate(['Two\nlines', '--7'])]
    assert sample(conditional.continue_prompts, *several)[0] == numbered(expected)
    path = tmp_path / 'samples.jsonl'
    sample(conditional.continue_prompts, *several, '--output', path)
    assert [record['prompt'] for record in records(path)] == ['Two\nlines', '--7']


@pytest.mark.parametrize('name', ['notes.md', 'pipe'])
def test_prompts_from_any_text(sample, tiny, tmp_path, name):
    """A pipe is how the shell passes <(...)."""
    if name == 'pipe':
        reading, writing = os.pipe()
        os.write(writing, b'Hello\n')
        os.close(writing)
        source = f'/dev/fd/{reading}'
    else:
        source = tmp_path / name
        source.write_text('Hello\n')
    stdout, _ = sample(conditional.continue_prompts, '--prompts', source)
    assert stdout == numbered(tiny.samples([0], seed=4, length=12, prompt='Hello'))


def test_what_else_a_line_has_comes_out_again(sample, tmp_path):
    source, path = tmp_path / 'prompts.jsonl', tmp_path / 'samples.jsonl'
    source.write_text('{"prompt": "a"}\n{"id": 7, "prompt": "b", "text": ["x"]}\n')
    sample(conditional.continue_prompts, '--prompts', source, '--nsamples', 2, '--output', path)
    assert [record.get('input') for record in records(path)] == [
        None, None, {'id': 7, 'text': ['x']}, {'id': 7, 'text': ['x']}]


@pytest.mark.parametrize('name', ['samples.jsonl', 'samples.txt'])
def test_texts_may_begin_with_their_prompts(sample, sample_error, tiny, tmp_path, name):
    flags = [conditional.continue_prompts, '--prompt', 'Hello\n', '--prompt', '你好']
    texts = [prompt + tiny.samples([index], seed=4, length=12, prompt=prompt)[0]
             for index, prompt in enumerate(['Hello\n', '你好'])]
    path = tmp_path / name
    sample(*flags, '--include_prompt', '--output', path)
    if name.endswith('.txt'):
        assert path.read_bytes().decode('utf-8') == numbered(texts)
        assert sample(*flags, '--include_prompt')[0] == numbered(texts)
    else:
        assert [record['text'] for record in records(path)] == texts
    assert 'include_prompt' in sample_error(*flags, '--output', path)


def test_parts_of_a_file_of_prompts_make_the_texts_of_the_whole(sample, tmp_path):
    """With --first_sample, several processes share the work."""
    flags = [conditional.continue_prompts, '--nsamples', 2]
    paths = [tmp_path / f'{name}.txt' for name in ('all', 'one', 'two')]
    for path, prompts_here in zip(paths, ['a\nb\nc\n', 'a\n', 'b\nc\n']):
        path.write_text(prompts_here)
    whole, first, second = tmp_path / 'whole.jsonl', tmp_path / '1.jsonl', tmp_path / '2.jsonl'
    sample(*flags, '--prompts', paths[0], '--output', whole)
    sample(*flags, '--prompts', paths[1], '--output', first)
    sample(*flags, '--prompts', paths[2], '--output', second, '--first_sample', 2)
    parts = records(first) + records(second)
    for key in ('index', 'prompt', 'text'):
        assert [record[key] for record in parts] == [record[key] for record in records(whole)]
    before = second.read_bytes()
    second.write_bytes(before[:before.index(b'\n', 10) + 20])
    sample(*flags, '--prompts', paths[2], '--output', second, '--first_sample', 2)
    assert second.read_bytes() == before


def test_a_run_without_a_usable_prompt_fails(sample, tmp_path):
    source = tmp_path / 'prompts.txt'
    source.write_text('\n' + 'x' * 33 + '\n')
    stdout, stderr = sample(conditional.continue_prompts, '--prompts', source, status=1)
    assert stdout == '' and stderr.count('\n') == 3 and 'no prompt that can be used' in stderr


def test_several_texts_may_end_a_sample(sample, tiny, tmp_path):
    r"""Also a line end, written \n."""
    text, = tiny.samples([0], seed=4, length=12, prompt='Hello')
    early, late = [char for char in text if char.isprintable() and char < '\x7f'][1::3][:2]
    for stop in (early, late):
        stdout, _ = sample(conditional.continue_prompts, '--prompt', 'Hello', '--stop_at', stop)
        assert stdout == numbered([text[:text.index(stop)]])
    stdout, _ = sample(conditional.continue_prompts, '--prompt', 'Hello', '--stop_at', 'nowhere',
                       '--stop_at', late, '--stop_at', early)
    assert stdout == numbered([text[:min(text.index(early), text.index(late))]])
    path = tmp_path / 'samples.jsonl'
    sample(conditional.continue_prompts, '--prompt', 'Hello', '--stop_at', r'\n', '--stop_at',
           r'a\tb\\', '--output', path)
    assert records(path)[0]['settings']['stop_at'] == ['\n', 'a\tb\\']


def test_a_changed_file_of_prompts_is_named_as_such(sample, sample_error, tmp_path):
    path = tmp_path / 'samples.jsonl'
    sample(conditional.continue_prompts, '--prompt', 'a', '--output', path)
    message = sample_error(conditional.continue_prompts, '--prompt', 'b', '--output', path)
    assert 'other prompts' in message and '"' not in message
