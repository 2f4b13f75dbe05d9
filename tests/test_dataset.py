"""Texts to tokens in a file: the right ones, made once, whatever the texts come in."""
import json
import multiprocessing
import os
import pickle
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import cli
import dataset

END = '<|endoftext|>'
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def box():
    """The model in the box, whose words are several letters long."""
    return checkpoint.open_model('1M', os.path.join(ROOT, 'models'))


def write(path, text):
    path.write_bytes(text.encode('utf-8'))
    return path


def tokens_of(box, *documents):
    """What the documents are encoded to, each after <|endoftext|>."""
    return [token for document in documents
            for token in [box.encoder.encoder[END]] + box.encoder.encode(document)]


def tokens_in(path, box):
    return dataset.open_dataset(str(path), box).tokens.tolist()


# ---- what is read ------------------------------------------------------------------------------


def test_documents_are_separated_by_the_special_token(box, tmp_path):
    path = write(tmp_path / 'text.txt', 'one' + END + ' two' + END + END + '<|endoftext| >')
    assert tokens_in(path, box) == tokens_of(box, 'one', ' two', '', '<|endoftext| >')


def test_a_byte_order_mark_is_no_text_and_line_ends_stay(box, tmp_path):
    path = write(tmp_path / 'text', '\ufeffone\r\ntwo\rthree\n')
    assert tokens_in(path, box) == tokens_of(box, 'one\r\ntwo\rthree\n')


def test_json_lines(box, tmp_path):
    lines = [{'text': 'one'}, {'text': 'mät 猫 \ud83d\ude42', 'id': 3}, {'text': ''}]
    path = write(tmp_path / 'text.jsonl', ''.join(json.dumps(line) + '\n' for line in lines))
    assert tokens_in(path, box) == tokens_of(box, 'one', 'mät 猫 🙂', '')


def test_folders_and_patterns(box, tmp_path):
    books = tmp_path / 'my [books]'
    (books / 'old').mkdir(parents=True)
    write(books / 'b.txt', 'second')
    write(books / 'a.jsonl', '{"text": "first"}\n')
    write(books / 'notes.md', 'notes')
    write(books / 'old' / 'c.txt', 'old')
    assert tokens_in(books, box) == tokens_of(box, 'first', 'second')
    assert tokens_in(tmp_path / 'my*' / '*.md', box) == tokens_of(box, 'notes')
    assert tokens_in(tmp_path / 'my*' / '**' / '*.txt', box) == tokens_of(box, 'second', 'old')
    everything = tmp_path / 'my*' / '*'  # but what was made of it before
    assert tokens_in(everything, box) == tokens_in(everything, box) == tokens_of(
        box, 'first', 'second', 'notes')


@pytest.mark.parametrize('content, words', [
    (b'{"text": "a"}\n{"text": 3}\n', 'line 2'), (b'text\n', 'line 1'), (b'[]\n', 'line 1'),
    (b'{"prompt": "a"}\n', 'line 1'), (b'{"text": "\xff"}\n', 'line 1'), (b'\n', 'line 1'),
], ids=repr)
def test_json_lines_that_are_none(box, tmp_path, content, words):
    path = tmp_path / 'text.jsonl'
    path.write_bytes(content)
    with pytest.raises(cli.UserError) as error:
        dataset.open_dataset(str(path), box)
    assert words in str(error.value) and str(path) in str(error.value)
    assert os.listdir(str(tmp_path)) == ['text.jsonl']  # nothing is left behind


@pytest.mark.parametrize('place', [0, 5, 1000])
def test_bytes_that_are_no_text(box, tmp_path, place, monkeypatch):
    monkeypatch.setattr(dataset, 'PIECE', 64)
    path = tmp_path / 'text'
    path.write_bytes('mä tt'.encode()[:place] + b'a ' * (max(0, place - 6) // 2)
                     + b'\xff' + b'more')
    with pytest.raises(cli.UserError) as error:
        dataset.open_dataset(str(path), box)
    assert 'byte %d;' % path.read_bytes().index(b'\xff') in str(error.value)


# ---- pieces ------------------------------------------------------------------------------------

TEXTS = st.lists(st.sampled_from(['a', 'word', ' ', '  ', '\n', '\t', "'s", "'", '12', '.', '猫',
                                  '\u3000', '\x85', '\x1c', END, '<|', '🙂', '\r\n']))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(1, 40))
def test_pieces_encode_as_the_whole(tmp_path_factory, texts, size):
    box = checkpoint.open_model('1M', os.path.join(ROOT, 'models'))
    path = write(tmp_path_factory.getbasetemp() / 'pieces.txt', ''.join(texts))
    before = dataset.PIECE
    dataset.PIECE = size
    try:
        pieces = list(dataset.read_pieces(str(path)))
    finally:
        dataset.PIECE = before
    assert sum(piece.n_bytes for piece in pieces) == path.stat().st_size
    tokens = [token for piece in pieces for token in dataset.encode_piece(box.encoder, piece.text)]
    assert tokens == tokens_of(box, *''.join(texts).split(END))


@pytest.mark.parametrize('ending', ['txt', 'jsonl'])
def test_a_long_text_is_encoded_on_all_cores(box, tmp_path, ending):
    documents = ['Document %d. ' % i + 'It has words and 数字 %d. ' % i * (i % 50)
                 for i in range(8000)]
    if ending == 'txt':
        path = write(tmp_path / 'text.txt', END.join(documents))
    else:
        path = write(tmp_path / 'text.jsonl', ''.join(
            json.dumps({'text': document}) + '\n' for document in documents))
    assert path.stat().st_size > 4 * dataset.PIECE
    made = dataset.open_dataset(str(path), box).tokens
    assert made.dtype == np.uint16 and np.array_equal(made, tokens_of(box, *documents))


def test_an_encoder_travels_to_another_process(box):
    """Where processes are not forked it must."""
    copy = pickle.loads(pickle.dumps(box.encoder))
    assert copy.encode('To be, or not to be') == box.encoder.encode('To be, or not to be')
    with multiprocessing.get_context('spawn').Pool(
            1, initializer=dataset.start_worker, initargs=(box.encoder,)) as pool:
        assert pool.apply(dataset.work, ('To be',)).tolist() == box.encoder.encode('To be')


# ---- the file of tokens ------------------------------------------------------------------------


def test_tokens_are_made_once(box, tiny, tmp_path, monkeypatch):
    path = write(tmp_path / 'text.txt', 'To be, or not to be')
    first = dataset.open_dataset(str(path), box)
    other = dataset.open_dataset(str(path), checkpoint.open_model('tiny', str(tiny.models_dir)))
    assert len(os.listdir(str(tmp_path))) == 3 and first.key != other.key
    with monkeypatch.context() as patch:
        patch.setattr(dataset, 'encode_files', None)  # it is not needed again
        shutil.move(str(tmp_path), str(tmp_path) + '-moved')
        moved = tmp_path.parent / (tmp_path.name + '-moved')
        again = dataset.open_dataset(str(moved / 'text.txt'), box)
    assert again.key == first.key and np.array_equal(again.tokens, first.tokens)
    write(moved / 'text.txt', 'That is the question')
    changed = dataset.open_dataset(str(moved / 'text.txt'), box)
    assert changed.key != first.key
    assert changed.tokens.tolist() == tokens_of(box, 'That is the question')
    assert len(os.listdir(str(moved))) == 3  # the tokens of what the text was before are gone


def test_tokens_of_a_folder_that_cannot_be_written_to(box, tmp_path, monkeypatch):
    path = write(tmp_path / 'text.txt', 'To be')
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.setattr(dataset.tempfile, 'gettempdir', lambda: str(elsewhere))
    really_open = open

    def refuse(name, *args, **kwargs):
        if str(name).startswith(str(path) + '.'):
            raise PermissionError(13, 'Permission denied', name)
        return really_open(name, *args, **kwargs)
    monkeypatch.setattr(dataset, 'open', refuse, raising=False)
    assert tokens_in(path, box) == tokens_of(box, 'To be')
    assert os.listdir(str(elsewhere))[0].startswith('tokens-')
    monkeypatch.setattr(dataset, 'encode_files', None)
    assert tokens_in(path, box) == tokens_of(box, 'To be')


def test_killed_while_it_encodes(command, box, tmp_path):
    """What is left is never taken for the tokens of the whole text."""
    path = write(tmp_path / 'text.txt', 'To be, or not to be, that is the question. 猫 ' * 60000)
    training = command('train.py', path, '--model_name', '1M', '--models_dir',
                       os.path.join(ROOT, 'models'), '--output', 'x' * 300)  # it will not get far
    process = training.start()
    while process.poll() is None and len(os.listdir(str(tmp_path))) == 1:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    whole = np.array(tokens_of(box, path.read_text(encoding='utf-8')))
    assert np.array_equal(dataset.open_dataset(str(path), box).tokens, whole)


# ---- the part that is held out -----------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.floats(0.01, 0.99),
       st.integers(1, 60))
def test_the_last_bytes_are_held_out(tokens, share, block):
    lengths = np.array([0, 1, 2, 5])
    tokens = np.array(tokens, np.uint16)
    before = dataset.BLOCK
    dataset.BLOCK = block
    try:
        first, rest = dataset.split(tokens, lengths, share)
    finally:
        dataset.BLOCK = before
    assert np.array_equal(np.concatenate([first, rest]), tokens)
    n_bytes = lengths[tokens].sum()
    assert lengths[rest].sum() <= int(n_bytes * share)
    if len(first):  # and no more could be
        assert lengths[rest].sum() + lengths[first[-1]] >= int(n_bytes * share)


def test_how_long_tokens_are(box):
    lengths = dataset.byte_lengths(box.encoder)
    text = 'To be, or not to be, 猫'
    assert lengths[box.encoder.encode(text)].sum() == len(text.encode('utf-8'))
    assert lengths[box.encoder.encoder[END]] == 0


def test_the_tokens_of_other_texts_stay(box, tmp_path):
    """Patterns of one folder have their files of tokens side by side."""
    for name in ('a.txt', 'z.txt'):
        write(tmp_path / name, 'To be ' + name)
    for name in ('a*.txt', 'z*.txt'):
        tokens_in(tmp_path / name, box)
    assert len(os.listdir(str(tmp_path))) == 4


def test_files_of_tokens_are_no_texts(box, tmp_path):
    """Nor is what a process that was killed had written of one."""
    path = write(tmp_path / 'text', 'To be')
    for ending in ('', '.0123abcd.partial'):
        for prefix in ('', 'text.'):
            name = prefix + 'tokens-01234567-0123456789abcdef' + ending
            (tmp_path / name).write_bytes(b'\xff\xff')
    assert dataset.find_files(str(tmp_path / '*')) == [str(path)]
