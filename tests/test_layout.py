"""The layout: what imports what, and README's map, flag table and commands against the code."""
import ast
import dataclasses
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from helpers import SRC

ROOT = SRC.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
MODULES = {'.'.join(path.relative_to(SRC).with_suffix('').parts).replace('.__init__', ''): path
           for path in SRC.rglob('*.py')}
TRIO = ('encoder', 'model', 'sample')
COMMANDS = sorted(name for name, path in MODULES.items() if 'cli.run(' in path.read_text('utf-8')
                  and '.' not in name)
OPTIONAL_PACKAGES = {'sklearn'}  # for a flag; imported by the function that needs it
RUN_TIME_PACKAGES = {'tensorflow', 'numpy', 'regex', 'requests', 'tqdm', 'fire'}
STANDARD = {'readline', 'msvcrt', 'fcntl'} | set(sys.builtin_module_names) | (
    set(getattr(sys, 'stdlib_module_names', ())))

pytestmark = pytest.mark.pure


def imported(path, at_start=False):
    """Return the names of what a file imports, `from x import y` as x.y too: anywhere, or at once.
    """
    names, tree = set(), ast.parse(path.read_text('utf-8'))
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are absolute'
            names.add(node.module)
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


def own_imports(name):
    """Return the modules of ours, packages excepted, that a module of ours imports."""
    found = {other for other in imported(MODULES[name]) if other in MODULES and other != name}
    # `from gpt2.x import y` runs gpt2/__init__.py, too, which every module of gpt2 can rely on.
    return {other for other in found if not (name.startswith(other + '.') or other in PACKAGES)}


PACKAGES = {name for name, path in MODULES.items() if path.name == '__init__.py'}


def test_no_modules_import_each_other_in_a_circle():
    finished, path = set(), []

    def visit(name):
        assert name not in path, f'a circle: {" -> ".join(path[path.index(name):] + [name])}'
        if name not in finished:
            path.append(name)
            for other in own_imports(name):
                visit(other)
            finished.add(path.pop())

    for name in MODULES:
        visit(name)
    assert len(finished) == len(MODULES)


def test_imports_run_downwards():
    """From commands to gpt2 to model, sample and encoder; nothing imports a command."""
    for name in MODULES:
        others = own_imports(name)
        assert not others & set(COMMANDS)
        if name in TRIO:
            assert others <= set(TRIO)


def test_the_three_modules_of_other_peoples_scripts_import_nothing_else_of_ours():
    for name in TRIO:
        packages = {other.split('.')[0] for other in imported(MODULES[name])}
        assert packages & {path.split('.')[0] for path in MODULES} <= set(TRIO)


def test_no_test_imports_another():
    for path in (ROOT / 'tests').glob('*.py'):
        assert not re.search(r'^ *(from|import) test_', path.read_text('utf-8'), re.MULTILINE), path


@pytest.mark.skipif(not hasattr(sys, 'stdlib_module_names'), reason='needs Python 3.10')
def test_only_the_six_run_time_packages_are_imported():
    for path in [*MODULES.values(), ROOT / 'download_model.py']:
        packages = {name.split('.')[0] for name in imported(path)}
        assert packages <= (RUN_TIME_PACKAGES | OPTIONAL_PACKAGES | STANDARD
                            | {'gpt2', *TRIO}), path
        assert not OPTIONAL_PACKAGES & {name.split('.')[0] for name in imported(path, True)}, path


def test_no_function_passes_its_locals_on():
    for path in MODULES.values():
        assert not re.search(r'\b(locals|vars)\(\)', path.read_text('utf-8')), path


# ---- README ------------------------------------------------------------------------------------


def test_the_tree_in_readme_is_the_tree_on_disk():
    tree = re.search(r'\n    src/\n((?:    .*\n)+)', README).group(1)
    folders, named = [], set()
    for line in tree.splitlines():
        indent, name = re.match(r'    ( *)(\S+)', line).groups()
        depth = len(indent) // 2 - 1
        folders[depth:] = [name]
        named.add(''.join(folders))
    on_disk = {str(path.relative_to(SRC)) + '/' * path.is_dir() for path in SRC.rglob('*')
               if '__pycache__' not in str(path) and path.name != '__init__.py'}
    assert named - {'gpt2/__init__.py'} == on_disk


def test_every_file_that_readme_names_exists():
    names = re.findall(r'`((?:src|tests|benchmarks)/[\w./]*)`', README)
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists(), name


def flag_rows():
    """Return the rows that README's table of flags should have."""
    from gpt2 import model_dir
    from gpt2.sampling import options
    defaults = {None: '', True: 'on', False: 'off'}
    fields = {}
    for cls in (model_dir.ModelOptions, options.GenerationOptions, options.SamplingOptions,
                options.EngineOptions, options.ConditionalOptions, options.UnconditionalOptions):
        fields.update((field.name, field) for field in dataclasses.fields(cls))
    for field in fields.values():
        is_value = type(field.default) in (int, float, str)
        default = f'`{field.default}`' if is_value else defaults[field.default]
        text = field.metadata['help'].replace('|', '\\|')
        yield f'| `--{field.name}` | {default} | {text} |'


def test_the_flag_table_in_readme_is_the_help_of_the_flags():
    table = README[README.index('| flag | default |'):].partition('\n\n')[0].splitlines()[2:]
    assert table == list(flag_rows())


def test_every_flag_that_readme_shows_exists():
    known = {field.name for command in COMMANDS
             for cls in importlib.import_module(command).OPTIONS
             for field in dataclasses.fields(cls)}
    shown = {flag for line in README.splitlines() if line.startswith('    python3 src/')
             for flag in re.findall(r'--(\w+)', line)}
    assert len(shown) > 15
    assert shown <= known


def test_pip_refuses_to_install_the_project(tmp_path):
    (tmp_path / 'pyproject.toml').write_bytes((ROOT / 'pyproject.toml').read_bytes())
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', '--no-index', str(tmp_path)],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode != 0
    assert b'run from its clone' in done.stdout


def test_the_commands_are_the_nine():
    assert [pathlib.Path(MODULES[name]).name for name in COMMANDS] == [
        'convert.py', 'evaluate.py', 'generate_conditional_samples.py',
        'generate_output_dataset.py', 'generate_unconditional_samples.py',
        'interactive_conditional_samples.py',
        'learn_vocabulary.py', 'train.py', 'worker.py']
