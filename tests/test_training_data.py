"""Texts become the right tokens in a file, only once, in every format and folder."""
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import stat
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.errors import UserError
from gpt2.model_dir import open_model_dir
from gpt2.training import data
from helpers import SRC, Command, file_names, only_long

pytestmark = pytest.mark.pure

END = '<|endoftext|>'
MODELS = str(SRC.parent / 'models')


@pytest.fixture(scope='module')
def model_1m():
    """The model that comes with the project; its tokens are several letters long."""
    return open_model_dir('1M', MODELS)


def write(path, text):
    path.write_bytes(text.encode('utf-8'))
    return path


def encoded(model_dir, *documents):
    """Return the tokens of documents, each after <|endoftext|>."""
    return [token for document in documents
            for token in [model_dir.encoder.end_of_text] + model_dir.encoder.encode(document)]


def open_tokens(path, model_dir):
    tokens, _ = data.open_dataset(str(path), model_dir)
    return tokens.tolist()


# ---- formats ------------------------------------------------------------------------------


def test_documents_are_separated_by_the_special_token(model_1m, tmp_path):
    path = write(tmp_path / 'text.txt', 'one' + END + ' two' + END + END + '<|endoftext| >')
    assert open_tokens(path, model_1m) == encoded(model_1m, 'one', ' two', '', '<|endoftext| >')


def test_a_byte_order_mark_is_dropped_and_line_ends_are_kept(model_1m, tmp_path):
    path = write(tmp_path / 'text', '\ufeffone\r\ntwo\rthree\n')
    assert open_tokens(path, model_1m) == encoded(model_1m, 'one\r\ntwo\rthree\n')


def test_json_lines(model_1m, tmp_path):
    lines = [{'text': 'one'}, {'text': 'mät 猫 \ud83d\ude42', 'id': 3}, {'text': ''}]
    path = write(tmp_path / 'text.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    assert open_tokens(path, model_1m) == encoded(model_1m, 'one', 'mät 猫 🙂', '')


def test_folders_and_patterns(model_1m, tmp_path):
    books = tmp_path / 'my [books]'
    (books / 'old').mkdir(parents=True)
    write(books / 'b.txt', 'second')
    write(books / 'a.jsonl', '{"text": "first"}\n')
    write(books / 'notes.md', 'notes')
    write(books / 'old' / 'c.txt', 'old')
    assert open_tokens(books, model_1m) == encoded(model_1m, 'first', 'second')
    assert open_tokens(tmp_path / 'my*' / '*.md', model_1m) == encoded(model_1m, 'notes')
    assert open_tokens(tmp_path / 'my*' / '**' / '*.txt', model_1m) == encoded(
        model_1m, 'second', 'old')
    everything = tmp_path / 'my*' / '*'  # without the token files of the first call
    assert open_tokens(everything, model_1m) == open_tokens(everything, model_1m) == encoded(
        model_1m, 'first', 'second', 'notes')


@pytest.mark.parametrize('content, words', [
    (b'{"text": "a"}\n{"text": 3}\n', 'line 2'), (b'text\n', 'line 1'), (b'[]\n', 'line 1'),
    (b'{"prompt": "a"}\n', 'line 1'), (b'{"text": "\xff"}\n', 'line 1'), (b'\n', 'line 1'),
    (b'[' * 100000, 'line 1'),
], ids=lambda value: repr(value)[:30])
def test_malformed_json_lines_are_refused(model_1m, tmp_path, content, words):
    path = tmp_path / 'text.jsonl'
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        data.open_dataset(str(path), model_1m)
    assert f'{path}, {words}: ' in str(error.value)
    assert file_names(tmp_path) == ['text.jsonl']  # nothing is left behind


def test_json_lines_may_begin_with_a_byte_order_mark(model_1m, tmp_path):
    path = write(tmp_path / 'text.jsonl', '\ufeff{"text": "one"}\n')
    assert open_tokens(path, model_1m) == encoded(model_1m, 'one')


@pytest.mark.parametrize('place', [0, 5, 1000])
def test_text_that_is_not_utf_8_is_refused_with_the_place(model_1m, tmp_path, place, monkeypatch):
    monkeypatch.setattr(data, 'PIECE', 64)
    path = tmp_path / 'text'
    path.write_bytes('mä tt'.encode()[:place] + b'a ' * (max(0, place - 6) // 2)
                     + b'\xff' + b'more')
    with pytest.raises(UserError) as error:
        data.open_dataset(str(path), model_1m)
    assert f'byte {path.read_bytes().index(0xff)};' in str(error.value)


# ---- pieces ------------------------------------------------------------------------------------

TEXTS = st.lists(st.sampled_from(['a', 'word', ' ', '  ', '\n', '\t', "'s", "'", '12', '.', '猫',
                                  '\u3000', '\x85', '\x1c', END, '<|', '🙂', '\r\n']))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_pieces_are_encoded_like_the_whole_text(tmp_path_factory, texts, size):
    encoder = open_model_dir('1M', MODELS).encoder
    path = write(tmp_path_factory.getbasetemp() / 'pieces.txt', ''.join(texts))
    n_bytes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, 'PIECE', size)
        pieces = list(data.read_pieces(str(path), n_bytes.append))
    assert sum(n_bytes) == path.stat().st_size
    tokens = [token for piece in pieces for token in data.encode_text(encoder, piece)]
    assert tokens == [token for document in ''.join(texts).split(END)
                      for token in [encoder.end_of_text] + encoder.encode(document)]


def long_text(ending):
    """Return a text of more than four pieces, and its documents."""
    documents = [f'Document {i}. ' + f'It has words and 数字 {i}. ' * (i % 50) for i in range(8000)]
    text = END.join(documents) if ending == 'txt' else ''.join(
        json.dumps({'text': document}) + '\n' for document in documents)
    assert len(text.encode()) > 4 * data.PIECE
    return text, documents


@pytest.mark.parametrize('ending', ['txt', pytest.param('jsonl', marks=only_long)])
def test_a_long_text_is_encoded_in_several_processes(model_1m, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(data.runtime, 'processors', lambda: 2)
    text, documents = long_text(ending)
    tokens, _ = data.open_dataset(str(write(tmp_path / f'text.{ending}', text)), model_1m)
    assert tokens.dtype == np.uint16 and np.array_equal(tokens, encoded(model_1m, *documents))


def kill_this_process(text):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_encoding_process_ends_training_with_one_line(model_1m, tmp_path, monkeypatch):
    """The system does that when memory is short."""
    path = write(tmp_path / 'text.txt', long_text('txt')[0])
    monkeypatch.setattr(data, 'work', kill_this_process)
    with pytest.raises(UserError, match='was killed'):
        data.open_dataset(str(path), model_1m)
    assert file_names(tmp_path) == ['text.txt']


def test_few_texts_are_read_in_advance(model_1m):
    """So memory does not grow with the text."""
    read = []
    results = data.encode_in_processes(model_1m.encoder, map(lambda i: read.append(i) or str(i),
                                                             range(100)), 1)
    for n in range(3):
        assert next(results).tolist() == model_1m.encoder.encode(str(n))
        assert len(read) <= n + 2
    results.close()
    assert not multiprocessing.active_children()


def test_an_encoder_can_be_sent_to_another_process(model_1m):
    """Where processes are not forked it must be."""
    copy = pickle.loads(pickle.dumps(model_1m.encoder))
    assert copy.encode('To be, or not to be') == model_1m.encoder.encode('To be, or not to be')
    with multiprocessing.get_context('spawn').Pool(
            1, initializer=data.start_worker,
            initargs=(model_1m.encoder, os.getpid())) as pool:
        assert pool.apply(data.work, ('To be',)).tolist() == model_1m.encoder.encode('To be')


# ---- the token file ----------------------------------------------------------------------------


def test_tokens_are_made_only_once(model_1m, tmp_path, monkeypatch):
    other_models = tmp_path / 'models'  # with another vocabulary, which lacks a pair
    shutil.copytree(MODELS, str(other_models))
    vocabulary = other_models / '1M' / 'vocab.bpe'
    write(vocabulary, ''.join(vocabulary.read_text(encoding='utf-8').splitlines(True)[:-1]))
    (tmp_path / 'texts').mkdir()
    path = write(tmp_path / 'texts' / 'text.txt', 'To be, or not to be')
    tokens, key = data.open_dataset(str(path), model_1m)
    _, other_key = data.open_dataset(str(path), open_model_dir('1M', str(other_models)))
    assert len(file_names(path.parent)) == 3 and key != other_key
    moved = tmp_path / 'moved'
    path.parent.rename(moved)
    with monkeypatch.context() as patch:
        patch.setattr(data, 'encode_files', None)  # it is not needed again
        tokens_again, key_again = data.open_dataset(str(moved / 'text.txt'), model_1m)
    assert key_again == key and np.array_equal(tokens_again, tokens)
    write(moved / 'text.txt', 'That is the question')
    changed, changed_key = data.open_dataset(str(moved / 'text.txt'), model_1m)
    assert changed_key != key
    assert changed.tolist() == encoded(model_1m, 'That is the question')
    assert len(file_names(moved)) == 3  # the tokens of the earlier text are gone


def test_a_token_file_made_by_an_earlier_version_is_found(model_1m, tmp_path, monkeypatch):
    """Its name and its format are fixed."""
    path = write(tmp_path / 'text.txt', 'To be')
    tokens = tmp_path / 'text.txt.tokens-b422e264-f0a160d1f9301159'
    np.array([7, 8, 9], '<u2').tofile(str(tokens))
    monkeypatch.setattr(data, 'encode_files', None)
    assert open_tokens(path, model_1m) == [7, 8, 9]


@pytest.mark.parametrize('modes, expected', [([0o600], 0o600), ([0o640, 0o604], 0o600),
                                             ([0o644], 0o644)])
def test_nobody_reads_tokens_who_may_not_read_the_text(model_1m, tmp_path, modes, expected):
    for number, mode in enumerate(modes):
        write(tmp_path / f'{number}.txt', 'To be').chmod(mode)
    data.open_dataset(str(tmp_path), model_1m)
    tokens, = (name for name in file_names(tmp_path) if name.startswith('tokens-'))
    assert stat.S_IMODE((tmp_path / tokens).stat().st_mode) == expected


def test_where_the_folder_is_read_only_the_tokens_go_to_the_cache(model_1m, tmp_path, monkeypatch):
    path = write(tmp_path / 'text.txt', 'To be')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    elsewhere = tmp_path / 'cache' / 'gpt2'
    really_open = os.open

    def refuse(name, flags, *args, **kwargs):
        if os.path.dirname(str(name)) == str(tmp_path) and flags & os.O_CREAT:
            raise PermissionError(13, 'Permission denied', name)
        return really_open(name, flags, *args, **kwargs)
    monkeypatch.setattr(data.files.os, 'open', refuse)
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')
    assert file_names(elsewhere)[0].startswith('tokens-')
    monkeypatch.setattr(data, 'encode_files', None)
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')


def planted(path, model_dir, tokens):
    """Replace the tokens of a text by others; return the file."""
    data.open_dataset(str(path), model_dir)
    file, = path.parent.glob('*tokens-*')
    file.write_bytes(tokens)
    return file


@pytest.mark.parametrize('tokens', [b'\xff\xff', b'\0\0\0', b'\0' * 10 + b'\xff' * 2], ids=repr)
def test_tokens_that_cannot_be_are_encoded_again(model_1m, tmp_path, tokens):
    """An id that is not in the vocabulary, half an id."""
    path = write(tmp_path / 'text.txt', 'To be')
    file = planted(path, model_1m, tokens)
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')
    assert file.read_bytes() != tokens


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give files away')
def test_the_tokens_of_somebody_else_are_encoded_again(model_1m, tmp_path):
    """Unless the text is theirs, too."""
    path = write(tmp_path / 'text.txt', 'To be')
    os.chown(str(planted(path, model_1m, b'\1\0')), 12345, 12345)
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')
    os.chown(str(planted(path, model_1m, b'\1\0')), 12345, 12345)
    os.chown(str(path), 12345, 12345)
    assert open_tokens(path, model_1m) == [1]


def test_a_link_to_tokens_is_not_followed(model_1m, tmp_path):
    path = write(tmp_path / 'text.txt', 'To be')
    file = planted(path, model_1m, b'\1\0')
    file.rename(tmp_path / 'target')
    file.symlink_to('target')
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')
    assert (tmp_path / 'target').read_bytes() == b'\1\0'


def test_nothing_is_looked_for_in_the_shared_temporary_folder(model_1m, tmp_path, monkeypatch):
    path = write(tmp_path / 'text.txt', 'To be')
    file = planted(path, model_1m, b'\1\0')
    (tmp_path / 'tmp').mkdir()
    file.rename(tmp_path / 'tmp' / file.name[len('text.txt.'):])
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'tmp'))
    assert open_tokens(path, model_1m) == encoded(model_1m, 'To be')


@pytest.mark.parametrize('kind', ['fifo', '/dev/zero', '/dev/stdin'])
def test_a_text_must_be_a_regular_file(model_1m, tmp_path, kind):
    """A pipe can be read only once, a device for ever."""
    path = kind
    if kind == 'fifo':
        path = str(tmp_path / 'fifo')
        os.mkfifo(path)
    reading, writing = os.pipe()
    stdin = os.dup(0)
    try:
        os.dup2(reading, 0)
        with pytest.raises(UserError, match='it is not a regular file'):
            data.open_dataset(path, model_1m)
    finally:
        os.dup2(stdin, 0)
        for descriptor in (reading, writing, stdin):
            os.close(descriptor)
    assert file_names(tmp_path) in ([], ['fifo'])


def test_killed_encoding_leaves_no_wrong_tokens(model_1m, tmp_path):
    """What is left is never taken for the tokens of the whole text."""
    path = write(tmp_path / 'text.txt', 'To be, or not to be, that is the question. 猫 ' * 60000)
    process = Command('train.py', path, '--model_name', '1M', '--models_dir', MODELS,
                      '--output', 'x' * 300).start()  # which cannot be made
    while process.poll() is None and len(file_names(tmp_path)) == 1:
        time.sleep(0.01)
    process.kill()
    process.communicate()  # returns once all processes have ended that it started
    assert process.returncode == -signal.SIGKILL
    expected = np.array(encoded(model_1m, path.read_text(encoding='utf-8')))
    assert np.array_equal(data.open_dataset(str(path), model_1m)[0], expected)


def test_a_worker_ends_if_its_parent_was_killed_while_it_started():
    process = multiprocessing.Process(target=wait_as_worker, args=(1,))  # of another parent
    process.start()
    process.join(20)
    assert process.exitcode == 1


def wait_as_worker(parent):
    data.start_worker(None, parent)
    time.sleep(60)


def test_patterns_of_one_folder_keep_their_own_token_files(model_1m, tmp_path):
    for name in ('a.txt', 'z.txt'):
        write(tmp_path / name, f'To be {name}')
    for name in ('a*.txt', 'z*.txt'):
        open_tokens(tmp_path / name, model_1m)
    assert len(file_names(tmp_path)) == 4


def test_token_files_are_not_taken_for_texts(model_1m, tmp_path):
    """Neither are those that a killed process has left half written."""
    path = write(tmp_path / 'text', 'To be')
    for ending in ('', '.0123abcd.partial'):
        for prefix in ('', 'text.', '.text.'):
            name = f'{prefix}tokens-01234567-0123456789abcdef{ending}'
            (tmp_path / name).write_bytes(b'\xff\xff')
    for pattern in ('*', '.*', '**'):
        if pattern != '.*':
            assert data.find_files(str(tmp_path / pattern)) == [str(path)]
        else:
            with pytest.raises(UserError, match='no text'):
                data.find_files(str(tmp_path / pattern))


# ---- validation data ---------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.floats(0.01, 0.99),
       st.integers(1, 60))
def test_validation_gets_the_last_bytes(tokens, share, block):
    lengths = np.array([0, 1, 2, 5])
    tokens = np.array(tokens, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, 'BLOCK', block)
        training, validation = data.split(tokens, lengths, share)
    assert np.array_equal(np.concatenate([training, validation]), tokens)
    n_bytes = lengths[tokens].sum()
    assert lengths[validation].sum() <= int(n_bytes * share)
    if len(training):  # it could not have more
        assert lengths[validation].sum() + lengths[training[-1]] >= int(n_bytes * share)


def test_byte_lengths_of_tokens(model_1m):
    lengths = data.byte_lengths(model_1m.encoder)
    text = 'To be, or not to be, 猫'
    assert lengths[model_1m.encoder.encode(text)].sum() == len(text.encode('utf-8'))
    assert lengths[model_1m.encoder.end_of_text] == 0


def open_both(path, validation, model_dir):
    return data.open_training_data(str(path), model_dir, 4, 0.5, str(validation))


def test_a_validation_text_of_its_own(model_1m, tmp_path):
    path = write(tmp_path / 'text.txt', 'To be, or not to be' + END + 'That' + END)
    validation = write(tmp_path / 'validation.jsonl', '{"text": "is the"}\n{"text": "question"}\n')
    found = open_both(path, validation, model_1m)
    assert found.training.tolist() == encoded(model_1m, 'To be, or not to be', 'That', '')
    assert found.validation.tolist() == encoded(model_1m, 'is the', 'question')
    assert (found.validation_bytes, found.n_documents) == (14, 4)
    again = open_both(path, write(tmp_path / 'validation.jsonl', '{"text": "is"}\n'), model_1m)
    assert again.fingerprint == found.fingerprint
    assert again.validation_fingerprint != found.validation_fingerprint


def test_validation_needs_a_text_that_is_not_trained_on(model_1m, tmp_path):
    folder = tmp_path / 'texts'
    folder.mkdir()
    write(folder / 'a.txt', 'To be, or not to be')
    validation = write(folder / 'b.txt', 'That is the question')
    (tmp_path / 'link').symlink_to(validation)
    for path in (validation, tmp_path / 'link', folder / '*b.txt'):
        with pytest.raises(UserError, match='is among the texts of'):
            open_both(folder, path, model_1m)
    open_both(folder / 'a.txt', validation, model_1m)
    with pytest.raises(UserError, match='b.txt is too short to validate on'):
        open_both(folder / 'a.txt', write(validation, END), model_1m)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 9))
def test_documents_that_are_not_empty_are_counted(tokens, block):
    expected = sum(part != '' for part in ''.join(map(str, [0] + tokens)).split('0'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, 'BLOCK', block)
        assert data.count_documents(np.array([0] + tokens, np.uint16), 0) == expected
