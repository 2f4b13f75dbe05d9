"""gpt2.files: files and folders that are there in whole or not at all, locks, and JSON."""
import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

from gpt2 import files
from gpt2.errors import UserError
from helpers import SRC, contents

pytestmark = pytest.mark.pure


@contextlib.contextmanager
def umask(mask):
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def mode_of(path):
    return stat.S_IMODE(os.stat(str(path)).st_mode)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def start_python(code, *args):
    """Start a Python process that can import gpt2.files, with pipes."""
    return subprocess.Popen([sys.executable, '-c', f'from gpt2 import files\n{code}',
                             *map(str, args)], env=dict(os.environ, PYTHONPATH=str(SRC)),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# ---- writers -----------------------------------------------------------------------------------

# Each writes "new" to a path.


def write_with_new_file(path):
    with files.new_file(str(path)) as file:
        file.write(b'ne')
        file.write(b'w')


def write_with_write_file(path):
    files.write_file(str(path), iter(['n', 'ew']))


def write_with_copy_file(path):
    source = path.parent.parent / 'source'
    source.write_text('new')
    files.copy_file(str(source), str(path))


WRITERS = [write_with_new_file, write_with_write_file, write_with_copy_file]
writers = pytest.mark.parametrize('write', WRITERS, ids=lambda write: write.__name__)


@pytest.fixture
def folder(tmp_path):
    """An empty folder with a folder around it."""
    (tmp_path / 'folder').mkdir()
    return tmp_path / 'folder'


@pytest.fixture
def path(folder):
    """The path of a file to write, in a folder that is empty otherwise."""
    return folder / 'file'


@writers
def test_a_new_file_and_a_replaced_one(path, write):
    for _ in range(2):
        write(path)
        assert contents(path.parent) == {'file': b'new'}
    path.write_text('old')
    write(path)
    assert contents(path.parent) == {'file': b'new'}


def test_a_file_in_the_current_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    files.write_file('file', ['new'])
    files.copy_file('file', 'copy')
    with files.new_folder('sub'):
        pass
    assert names(path.parent) == ['copy', 'file', 'sub']


def test_text_is_written_as_utf8_with_newlines_as_they_are(path):
    files.write_file(str(path), ['naïve\n', '漢字\r\n'])
    assert path.read_bytes() == 'naïve\n漢字\r\n'.encode()


def test_json_ends_with_a_newline(path):
    files.write_json(str(path), {'a': [1, 'ü']})
    assert path.read_text() == '{"a": [1, "\\u00fc"]}\n'
    files.write_json(str(path), {'a': 1}, indent=2)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert files.read_json(str(path)) == {'a': 1}


def test_a_value_that_is_not_json_leaves_the_old_file(path):
    files.write_json(str(path), 'old')
    with pytest.raises(TypeError):
        files.write_json(str(path), {'a': object()})
    assert contents(path.parent) == {'file': b'"old"\n'}


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('old', [None, b'old'])
def test_an_error_in_the_block_leaves_what_was_there(path, old, error):
    if old:
        path.write_bytes(old)
    with pytest.raises(error):
        with files.new_file(str(path)) as file:
            file.write(b'new')
            raise error
    assert contents(path.parent) == ({'file': old} if old else {})


def test_an_error_in_the_parts_leaves_what_was_there(path):
    def parts():
        yield 'new'
        raise ValueError('no more')

    path.write_text('old')
    with pytest.raises(ValueError, match='no more'):
        files.write_file(str(path), parts())
    assert contents(path.parent) == {'file': b'old'}


def test_a_folder_is_not_replaced_by_a_file(path):
    path.mkdir()
    with pytest.raises(OSError):
        write_with_new_file(path)
    assert names(path.parent) == ['file'] and path.is_dir()


def test_a_folder_that_does_not_exist(path):
    with pytest.raises(FileNotFoundError):
        write_with_new_file(path / 'deeper')
    assert names(path.parent) == []


def test_a_source_that_does_not_exist_leaves_the_target(path):
    path.write_text('old')
    with pytest.raises(FileNotFoundError):
        files.copy_file(str(path) + '2', str(path))
    assert contents(path.parent) == {'file': b'old'}


# ---- interruptions -----------------------------------------------------------------------------


class Interruption(BaseException):
    """Stands for Ctrl-C, a crash or a power cut."""


class Interrupter:
    """Interrupts at a place: before a call of a function that changes files, or after it.

    Place 1 is before the first call, 2 after it, 3 before the second call, and so on. There is no
    interruption after `open` and `mkdir`: it could only leave an empty partial file or folder. If
    the interrupter kills, no such call does anything from then on.
    """

    FUNCTIONS = [(os, 'open'), (os, 'fsync'), (os, 'replace'), (os, 'rename'), (os, 'mkdir'),
                 (os, 'remove'), (shutil, 'rmtree'), (shutil, 'copyfileobj')]

    def __init__(self, monkeypatch):
        self.place, self.calls, self.kills, self.dead = None, 0, False, False
        for module, name in self.FUNCTIONS:
            monkeypatch.setattr(module, name, self.watched(getattr(module, name)))

    def watched(self, function):
        def call(*args, **kwargs):
            if self.place is None or self.dead and not self.kills:
                return function(*args, **kwargs)
            if self.dead:
                raise Interruption
            self.calls += 1
            self.dead = self.place == 2 * self.calls - 1
            if self.dead:
                raise Interruption
            result = function(*args, **kwargs)
            self.dead = self.place == 2 * self.calls and function.__name__ not in ('open', 'mkdir')
            if self.dead:
                raise Interruption
            return result

        return call

    def places(self, function, *args):
        """Return the places in a function, which is called, and one that comes after its end."""
        self.run(0, function, *args)
        return range(1, 2 * self.calls + 2)

    def run(self, place, function, *args):
        """Call a function, interrupted at a place; return whether it was interrupted."""
        self.place, self.calls, self.dead = place, 0, False
        with contextlib.suppress(Interruption):
            function(*args)
        self.place = None
        return self.dead


@pytest.fixture
def interrupter(monkeypatch):
    return Interrupter(monkeypatch)


@pytest.mark.parametrize('kills', [False, True])
@pytest.mark.parametrize('old', [None, b'old'])
@writers
def test_a_file_is_whole_after_an_interruption_at_any_place(interrupter, path, write, old, kills):
    interrupter.kills = kills
    seen = []
    for place in interrupter.places(write, path):
        for leftover in path.parent.iterdir():
            leftover.unlink()
        if old:
            path.write_bytes(old)
        interrupted = interrupter.run(place, write, path)
        there = contents(path.parent)
        if interrupted:
            seen.append(there.pop('file', None))
        else:
            assert there.pop('file') == b'new'
        assert kills or not there, place
        assert all(name.endswith('.partial') for name in there)
    assert len(seen) > 6 and set(seen) == {old, b'new'}
    assert seen.index(b'new') == seen.count(old)  # first the old file, then the new one


def write_folder(path):
    with files.new_folder(str(path)) as folder:
        for name in ['a', 'b']:
            with open(os.path.join(folder, name), 'w') as file:
                file.write('new')
        files.write_json(os.path.join(folder, 'c'), {})


@pytest.mark.parametrize('kills', [False, True])
def test_a_folder_is_whole_after_an_interruption_at_any_place(interrupter, path, kills):
    interrupter.kills = kills
    for place in interrupter.places(write_folder, path):
        for leftover in list(path.parent.iterdir()):
            shutil.rmtree(str(leftover))
        interrupter.run(place, write_folder, path)
        there = names(path.parent)
        if 'file' in there:
            assert contents(path) == {'a': b'new', 'b': b'new', 'c': b'{}\n'}
            there.remove('file')
        assert kills or not there, place
        assert all(name.endswith('.partial') for name in there)
    assert path.exists() and place > 20


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
def test_an_error_in_the_block_leaves_no_folder(path, error):
    with pytest.raises(error):
        with files.new_folder(str(path)) as folder:
            open(os.path.join(folder, 'a'), 'w').close()
            raise error
    assert names(path.parent) == []


def test_a_folder_that_exists_meanwhile_is_kept(path):
    with pytest.raises(OSError):
        with files.new_folder(str(path)):
            path.mkdir()
            (path / 'mine').write_text('mine')
    assert names(path.parent) == ['file'] and contents(path) == {'mine': b'mine'}


def test_all_data_are_synchronized_before_the_new_name(path, monkeypatch):
    """fsync of each file, rename, fsync of the folder: in this order."""
    log = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def logged_fsync(descriptor):
        log.append('sync folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 'sync')
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', logged_fsync)
    monkeypatch.setattr(os, 'replace', lambda *names: (log.append('rename'), replace(*names)))
    monkeypatch.setattr(os, 'rename', lambda *names: (log.append('rename'), rename(*names)))
    write_with_new_file(path)
    assert log == ['sync', 'rename', 'sync folder']
    path.unlink()
    del log[:]
    with files.new_folder(str(path)) as folder:
        for name in ['a', 'b']:
            open(os.path.join(folder, name), 'w').close()
    assert log == ['sync', 'sync', 'sync folder', 'rename', 'sync folder']


def test_a_disk_that_cannot_synchronize_folders(path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, 'folders cannot be synchronized')
        fsync(descriptor)

    monkeypatch.setattr(os, 'fsync', refuse_folders)
    write_with_new_file(path)
    assert contents(path.parent) == {'file': b'new'}


def test_a_killed_process_leaves_the_old_file(path):
    path.write_text('old')
    process = start_python("""
import sys, time
with files.new_file(sys.argv[1]) as file:
    file.write(b'new')
    file.flush()
    print('written', flush=True)
    time.sleep(60)
""", path)
    assert process.stdout.readline() == b'written\n'
    process.kill()
    process.communicate()
    assert path.read_text() == 'old'
    write_with_new_file(path)  # what it left does no harm
    assert path.read_text() == 'new'


def test_a_full_disk_leaves_the_old_file(path):
    resource = pytest.importorskip('resource')
    path.write_text('old')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(OSError):
            files.write_file(str(path), ['x' * 10000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert contents(path.parent) == {'file': b'old'}


# ---- planted links and permissions -------------------------------------------------------------


@pytest.fixture
def victim(tmp_path):
    """A file that nothing may change, whatever links point to it."""
    victim = tmp_path / 'victim'
    victim.write_text('mine')
    yield victim
    assert victim.read_text() == 'mine'


@writers
@pytest.mark.parametrize('dangling', [False, True])
def test_a_link_at_the_target_is_replaced_and_not_followed(path, victim, write, dangling):
    path.symlink_to(str(victim) + ('2' if dangling else ''))
    write(path)
    assert not path.is_symlink() and contents(path.parent) == {'file': b'new'}
    assert names(victim.parent).count('victim2') == 0


@writers
@pytest.mark.parametrize('kind', ['link', 'dangling link', 'file', 'fifo'])
def test_something_planted_at_the_partial_name_is_not_touched(monkeypatch, path, victim, write,
                                                              kind):
    """Its name cannot be guessed; if it could, nothing would be lost."""
    monkeypatch.setattr(secrets, 'token_hex', lambda size: 'guessed')
    planted = path.parent / '.guessed.partial'
    if kind == 'file':
        planted.write_text('mine')
    elif kind == 'fifo':
        os.mkfifo(str(planted))
    else:
        planted.symlink_to(str(victim) + ('' if kind == 'link' else '2'))
    path.write_text('old')
    with pytest.raises(FileExistsError):
        write(path)
    assert path.read_text() == 'old' and names(path.parent) == [planted.name, 'file']
    assert kind != 'file' or planted.read_text() == 'mine'
    assert not (victim.parent / 'victim2').exists()


@pytest.mark.parametrize('kind', ['link', 'folder'])
def test_something_planted_at_the_partial_name_of_a_folder(monkeypatch, path, tmp_path, kind):
    monkeypatch.setattr(secrets, 'token_hex', lambda size: 'guessed')
    planted = path.parent / '.guessed.partial'
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'mine').write_text('mine')
    planted.symlink_to(str(tmp_path / 'mine')) if kind == 'link' else planted.mkdir()
    with pytest.raises(FileExistsError):
        with files.new_folder(str(path)):
            raise AssertionError('the block ran')
    assert names(path.parent) == [planted.name]
    assert contents(tmp_path / 'mine') == {'mine': b'mine'}


def test_partial_names_cannot_be_guessed():
    partials = {files.partial_name('folder/file') for _ in range(100)}
    assert len(partials) == 100
    for partial in partials:
        assert partial.startswith('folder/.') and partial.endswith('.partial')
        assert len(partial) >= len('folder/..partial') + 16  # 64 bits


@pytest.mark.parametrize('mask, expected', [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_the_umask(folder, mask, expected):
    with umask(mask):
        files.write_file(str(folder / 'new'), ['new'])
        (folder / 'old').write_text('old')
        os.chmod(str(folder / 'old'), 0o604)
        files.write_file(str(folder / 'old'), ['new'])
        with files.new_folder(str(folder / 'sub')):
            pass
    assert mode_of(folder / 'new') == mode_of(folder / 'old') == expected
    assert mode_of(folder / 'sub') == 0o777 & ~mask


def test_a_private_file_is_private_from_its_start(path):
    with umask(0o022):
        with files.new_file(str(path), mode=0o600):
            partial, = path.parent.iterdir()
            assert mode_of(partial) == 0o600
    assert mode_of(path) == 0o600


@pytest.mark.parametrize('mode', [0o600, 0o640, 0o755, 0o400])
def test_a_copy_has_the_permissions_of_its_source(folder, mode):
    (folder / 'source').write_text('new')
    os.chmod(str(folder / 'source'), mode)
    with umask(0o022):
        files.copy_file(str(folder / 'source'), str(folder / 'copy'))
    assert mode_of(folder / 'copy') == mode
    assert (folder / 'copy').read_text() == 'new'


# ---- opening -----------------------------------------------------------------------------------


def test_a_regular_file_is_opened(path):
    path.write_text('old')
    with open(files.open_regular(str(path), os.O_RDONLY)) as file:
        assert file.read() == 'old'
    with umask(0o022), open(files.open_regular(str(path) + '2', os.O_WRONLY | os.O_CREAT), 'w'):
        assert mode_of(str(path) + '2') == 0o644


def test_a_link_is_followed_only_where_that_is_wanted(path, victim):
    path.symlink_to(str(victim))
    for flags in [os.O_RDONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT]:
        with pytest.raises(OSError):
            files.open_regular(str(path), flags)
    with open(files.open_regular(str(path), os.O_RDONLY, follow_links=True)) as file:
        assert file.read() == 'mine'


@pytest.mark.parametrize('flags', [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT], ids=str)
@pytest.mark.parametrize('kind', ['fifo', 'folder', 'link to a fifo', 'device', 'dangling link'])
def test_what_is_no_regular_file_is_refused_at_once(path, kind, flags):
    """A FIFO without a writer would block; /dev/zero never ends."""
    target = path.parent / 'target'
    if 'fifo' in kind:
        os.mkfifo(str(target if 'link' in kind else path))
    if 'link' in kind:
        path.symlink_to(str(target))
    if kind == 'folder':
        path.mkdir()
    began, path = time.time(), '/dev/zero' if kind == 'device' else str(path)
    descriptors = len(os.listdir('/proc/self/fd')) if os.path.exists('/proc/self/fd') else 0
    for follow_links in [False, True] if kind != 'dangling link' else [False]:
        with pytest.raises(OSError):
            files.open_regular(path, flags, follow_links)
    assert time.time() - began < 5
    assert descriptors == 0 or len(os.listdir('/proc/self/fd')) == descriptors
    assert not os.path.isfile(str(target))


# ---- locks -------------------------------------------------------------------------------------


def test_a_lock_excludes_other_processes_until_it_is_closed(path):
    pytest.importorskip('fcntl')
    code = """
import sys
with open(sys.argv[1], 'a') as file:
    try:
        print(files.lock(file), flush=True)
    except BlockingIOError:
        print('locked', flush=True)
    sys.stdin.readline()
"""
    first, second = start_python(code, path), None
    try:
        assert first.stdout.readline() == b'True\n'
        second = start_python(code, path)
        assert second.communicate(b'\n')[0] == b'locked\n'
        with open(str(path), 'a') as file:
            with pytest.raises(BlockingIOError):
                files.lock(file)
            first.kill()  # ends the lock, too
            first.wait()
            assert files.lock(file) is True
        second = start_python(code, path)
        assert second.communicate(b'\n')[0] == b'True\n'
    finally:
        for process in filter(None, [first, second]):
            process.kill()
            process.communicate()


@pytest.mark.parametrize('error', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_lets_everybody_in(path, monkeypatch, error):
    def flock(file, operation):
        raise OSError(error, os.strerror(error))

    fcntl = pytest.importorskip('fcntl')
    monkeypatch.setattr(fcntl, 'flock', flock)
    with open(str(path), 'a') as file:
        assert files.lock(file) is False
    with files.locked(str(path)) as status:
        assert status is None
    monkeypatch.setattr(files, 'fcntl', None)  # Windows
    with open(str(path), 'a') as file:
        assert files.lock(file) is False
    with files.locked(str(path)) as status:
        assert status is None


# ---- leftovers ---------------------------------------------------------------------------------


@pytest.fixture
def leftovers(path):
    """A function that makes a partial file or folder, as old as it says; returns its path."""
    files.remove_leftovers.cache_clear()

    def make(name, seconds, is_folder=False):
        made = path.parent / name
        if is_folder:
            made.mkdir()
            (made / 'file').write_text('half')
        else:
            made.write_text('half')
        os.utime(str(made), (time.time() - seconds,) * 2)
        return made

    return make


def test_the_next_run_removes_what_a_killed_one_left(leftovers, path):
    old = [leftovers(f'.{"0" * 15}{n}.partial', 3600, is_folder=n > 1) for n in range(3)]
    kept = [leftovers(name, seconds) for name, seconds in [
        (f'.{"1" * 16}.partial', 10), ('.mine.partial', 3600), (f'{"2" * 16}.partial', 3600),
        (f'.{"3" * 16}.partial2', 3600), (f'.{"G" * 16}.partial', 3600)]]
    files.write_file(str(path), ['x'])
    assert not any(map(os.path.exists, map(str, old))) and all(map(os.path.exists, map(str, kept)))


@pytest.mark.parametrize('is_folder', [False, True])
def test_what_another_process_is_writing_is_no_leftover(leftovers, path, is_folder):
    pytest.importorskip('fcntl')
    old = leftovers(f'.{"0" * 16}.partial', 3600, is_folder)
    code = """
import sys
with files.locked(sys.argv[1]):
    print('locked', flush=True)
    sys.stdin.readline()
"""
    other = start_python(code, old)
    try:
        assert other.stdout.readline() == b'locked\n'
        files.write_file(str(path), ['x'])
        assert old.exists()
    finally:
        other.communicate(b'\n')
    files.remove_leftovers.cache_clear()
    files.write_file(str(path), ['x'])
    assert not old.exists()


def test_a_link_in_the_place_of_a_leftover_is_left_alone(leftovers, path):
    target = leftovers('target', 3600)
    link = path.parent / f'.{"0" * 16}.partial'
    link.symlink_to(str(target))
    files.write_file(str(path), ['x'])
    assert link.is_symlink() and target.read_text() == 'half'


def test_a_file_is_locked_while_it_is_written(path):
    pytest.importorskip('fcntl')
    with files.new_file(str(path)) as file, pytest.raises(BlockingIOError):
        with files.locked(file.name):
            pass
    folder = path.parent / 'folder'
    with files.new_folder(str(folder)) as partial, pytest.raises(BlockingIOError):
        with files.locked(partial):
            pass


# ---- the cache folder --------------------------------------------------------------------------


def test_the_cache_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert files.cache_folder() == str(tmp_path / 'cache' / 'gpt2')
    assert stat.S_IMODE(os.stat(files.cache_folder()).st_mode) == 0o700
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert files.cache_folder() == str(tmp_path / '.cache' / 'gpt2')


def test_the_cache_folder_of_somebody_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    files.cache_folder()
    monkeypatch.setattr(os, 'getuid', lambda: 12345)
    with pytest.raises(OSError, match='another user'):
        files.cache_folder()


# ---- files that users name ---------------------------------------------------------------------


def test_devices_are_not_read(tmp_path):
    for name in ('/dev/zero', os.devnull):
        with pytest.raises(UserError, match='neither a file nor a pipe'):
            files.read_bytes(name)
    with pytest.raises(UserError, match='directory'):
        files.read_bytes(str(tmp_path))


def test_pipes_are_read_to_their_end_and_never_waited_for(path):
    os.mkfifo(str(path))
    assert files.read_bytes(str(path)) == b''
    reading, writing = os.pipe()
    thread = threading.Thread(target=lambda: (time.sleep(0.2), os.write(writing, b'late'),
                                              os.close(writing)))
    thread.start()
    assert files.read_bytes(f'/dev/fd/{reading}') == b'late'
    thread.join()
    os.close(reading)


# ---- JSON --------------------------------------------------------------------------------------


@pytest.mark.parametrize('line', ['{"text": "ü", "n": 1}', '{"text": "\\u00fc", "n": 1}\n'])
def test_an_object_in_a_line(line):
    expected = {'text': 'ü', 'n': 1}
    assert files.parse_object(line) == files.parse_object(line, 'text') == expected
    assert files.parse_object(line.encode('utf-8'), 'text') == expected


NOT_JSON = ['', ' ', '{', '{"a": 1}{', '{"a": 1,}', "{'a': 1}", 'text', '[' * 100000,
            '{"a": ' * 100000]
NOT_OBJECTS = ['[]', '[{}]', '"{}"', '1', '1.5', 'null', 'true', 'NaN']


@pytest.mark.parametrize('line, problem', [
    *[(line, 'it is not JSON') for line in NOT_JSON],
    *[(line, 'it is not a JSON object') for line in NOT_OBJECTS],
    (b'{"a": "\xff"}', 'it is not UTF-8')], ids=lambda value: repr(value[:20]))
def test_lines_that_are_not_objects(line, problem):
    with pytest.raises(ValueError) as caught:
        files.parse_object(line)
    assert str(caught.value) == problem


@pytest.mark.parametrize('value', [{}, {'b': ''}, {'a': None}, {'a': 1}, {'a': ['x']}, {'a': True}],
                         ids=str)
def test_objects_that_lack_a_text(value):
    assert files.parse_object(json.dumps(value)) == value
    with pytest.raises(ValueError, match='it has no text as its "a"'):
        files.parse_object(json.dumps(value), 'a')


def test_a_json_file_may_begin_with_a_byte_order_mark(path):
    for content in [b'{"a": "\xc3\xbc"}', b'\xef\xbb\xbf{"a": "\xc3\xbc"}\r\n']:
        path.write_bytes(content)
        assert files.read_json(str(path)) == {'a': 'ü'}


@pytest.mark.parametrize('content, problem', [
    *[(line.encode(), 'it is not JSON') for line in NOT_JSON],
    *[(line.encode(), 'it is not a JSON object') for line in NOT_OBJECTS],
    (b'{"a": "\xff"}', 'it is not UTF-8'), (b'\xff\xfe{}', 'it is not UTF-8'),
    ('{"a": ' + '1' * 5000 + '}', None)], ids=lambda value: repr(value and value[:20]))
def test_files_that_are_not_json_objects(path, content, problem):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if problem is None and not hasattr(sys, 'set_int_max_str_digits'):  # any length is read
        assert files.read_json(str(path))['a'] > 0
        return
    with pytest.raises(ValueError) as caught:
        files.read_json(str(path))
    assert str(caught.value) == (problem or 'it is not JSON')


def test_files_that_cannot_be_read(path):
    with pytest.raises(FileNotFoundError):
        files.read_json(str(path))
    with pytest.raises(UserError, match='file: No such file or directory'):
        files.read_bytes(str(path))
    path.mkdir()
    with pytest.raises(UserError, match='file: Is a directory'):
        files.read_bytes(str(path))
    (path / 'bytes').write_bytes(b'\x00\xff')
    assert files.read_bytes(str(path / 'bytes')) == b'\x00\xff'
