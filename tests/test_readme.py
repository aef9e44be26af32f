"""README is the rendered index, and what it tells people to type works in a plain install: a copy of the
package without the repository around it, and without what only developers install."""
import os, re, shlex, shutil, subprocess, sys
from functools import partial
import pytest, tyro
from book import NOTEBOOKS, ROOT, cells, name
from conftest import SMALL, SMALL_GENERATOR
from readme import render
from maskbit.base.trees import InputError
from maskbit.use.cli import _WORDS, COMMANDS, main
from maskbit.use.words import understand

DEVELOPERS = ('IPython', 'ipykernel', 'ipywidgets', 'jupyterlab', 'nbdev', 'nbconvert', 'nbformat',
              'execnb', 'pytest', 'playwright', 'ghapi')
PLAIN = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {DEVELOPERS}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Missing())
"""


def blocks(text, *languages):
    found = re.findall(r'^```(\w*)\n(.*?)^```$', text, re.S | re.M)
    return [block for language, block in found if language in languages]


def commands(text):
    "The words of each `maskbit` command that a text shows."
    fenced = [line for block in blocks(text, 'bash', '') for line in block.splitlines()]
    inline = [c.replace('\n', ' ') for c in re.findall(r'(?<!`)`([^`]+)`(?!`)', text)]
    for line in [*fenced, *inline]:
        found = re.match(r'(?:.*&& )?(?:\S*/)?maskbit ([a-z-].*)', line)
        if found and '...' not in line: yield shlex.split(found[1], comments=True)


def test_readme_is_the_rendered_index():
    assert (ROOT/'README.md').read_text() == render(), 'run python tests/readme.py --write'


def test_code_blocks_in_a_plain_install(tmp_path):
    shutil.copytree(ROOT/'maskbit', tmp_path/'site/maskbit')
    code = '\n'.join(blocks((ROOT/'README.md').read_text(), 'python'))
    env = os.environ | {'PYTHONPATH': str(tmp_path/'site')}
    ran = subprocess.run([sys.executable, '-c', PLAIN + code], env=env, cwd=tmp_path,
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_shown_commands_are_understood(path):
    read = partial(tyro.extras.subcommand_cli_from_dict, COMMANDS, prog='maskbit')
    for words in (w for _, text in cells(path, 'markdown') for w in commands(text)):
        if len(words) == 1: assert words[0] in [*COMMANDS, '--help', '--version']
        else:
            try: understand(read, _WORDS, words)
            except InputError as e: assert ' needs ' in str(e)      # what is beside the point is left out


def test_commands_of_readme(photos, tmp_path, monkeypatch, capsys):
    "In their order, with small networks and few steps; not those that need a network or a browser."
    monkeypatch.chdir(tmp_path)
    (tmp_path/'photos').rename(tmp_path/'pictures')
    (tmp_path/'pictures/left').rename(tmp_path/'pictures/cat')
    (tmp_path/'pictures/right').rename(tmp_path/'pictures/dog')
    shutil.copytree('pictures', 'held-out')
    shutil.copytree('pictures', 'imagenet/train')
    shutil.copy('pictures/cat/0.png', 'photo.jpg')
    small = {'train-tokenizer': SMALL, 'train-generator': SMALL_GENERATOR, 'edit': ['--steps', '2'],
             'sample': ['--steps', '2', '--columns', '1'], 'evaluate': ['--count', '12']}
    done = []
    for words in commands((ROOT/'README.md').read_text()):
        command = words[0]
        if len(words) == 1 or command in ('explore', 'publish', 'roadmap'): continue
        if any(w.startswith('maskbit_') for w in words): continue
        if command == 'launch': words.insert(1, '--dry-run')
        steps = words[words.index('--train.steps'):] if '--train.steps' in words else []
        main([*words, *small.get(command, []), *(['--train.steps', '8'] if steps else [])])
        done.append(command)
    assert set(done) >= {'train-tokenizer', 'tokenize', 'train-generator', 'sample', 'evaluate',
                         'reconstruct', 'edit', 'plan', 'shards', 'launch'}
    said = capsys.readouterr().out
    assert 'start anew' in said and 'slices' in said
