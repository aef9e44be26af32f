"The front door: every module by its short name, and nothing heavy before it is used."
import re, subprocess, sys
from collections import Counter
from importlib import import_module
import pytest
import maskbit
from book import CHAPTERS, ROOT, cells, name

PARTS = 'base', 'stage1', 'stage2', 'studies', 'use'
FILES = [f for part in PARTS for f in sorted((ROOT/'maskbit'/part).glob('[!_]*.py'))]


def test_short_names_are_unique():
    names = Counter([*(f.stem for f in FILES), *PARTS, 'Tokenizer', 'Generator', 'Shapes', 'sample'])
    assert not [n for n, times in names.items() if times > 1]


@pytest.mark.parametrize('file', FILES, ids=name)
def test_a_module_by_its_short_name(file):
    assert getattr(maskbit, file.stem) is import_module(f'maskbit.{file.parent.name}.{file.stem}')
    assert file.stem in dir(maskbit)


def test_the_front_door():
    from maskbit.base.shapes import Shapes
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.generator import Generator
    from maskbit.stage2.sampling import sample
    assert maskbit.Shapes is Shapes and maskbit.Tokenizer is Tokenizer
    assert maskbit.Generator is Generator and maskbit.sample is sample
    assert {'Tokenizer', 'Generator', 'Shapes', 'sample', '__version__', *PARTS} <= set(dir(maskbit))
    for part in PARTS: assert getattr(maskbit, part).__name__ == f'maskbit.{part}'


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError) as e: maskbit.road_map
    said = set(re.findall(r'\w+', str(e.value)))
    assert {'road_map', 'Tokenizer', 'sample', *(f.stem for f in FILES)} <= said
    assert not hasattr(maskbit, '__path_of_nothing__')


LIGHT = {'import': 'import maskbit; dir(maskbit)',
         'help': 'from maskbit.use.cli import main; main(["--help"])'}


@pytest.mark.parametrize('code', LIGHT.values(), ids=LIGHT)
def test_torch_is_loaded_when_it_is_used(code):
    watch = 'import atexit, sys; atexit.register(lambda: print("loaded:", "torch" in sys.modules))'
    command = [sys.executable, '-c', f'{watch}; {code}']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith('loaded: False\n')


def sources(file):
    "The notebooks that an exported module names above its cells."
    named = re.findall(r'^# %% (\S+\.ipynb) #', file.read_text(), re.M)
    return {(file.parent/n).resolve() for n in named}


EXPORTED = {f: sources(f) for f in FILES}
STEPS = EXPORTED[ROOT/'maskbit/stage1/roadmap.py']      # each adds its function to the roadmap


@pytest.mark.parametrize('path', CHAPTERS, ids=name)
def test_a_notebook_exports_the_module_of_its_name(path):
    modules = [f for f, notebooks in EXPORTED.items() if path in notebooks]
    part, (_, _, own) = path.parent.name, path.stem.partition('_')
    if not any(text.startswith('#| export') for _, text in cells(path, 'code')): assert modules == []
    elif path in STEPS: assert part == 'stage1' and {f.parent.name for f in modules} == {'stage1'}
    else: assert modules == [ROOT/'maskbit'/part/f'{own}.py']


@pytest.mark.parametrize('file', FILES, ids=name)
def test_a_module_has_a_notebook(file):
    notebooks = EXPORTED[file]
    assert notebooks and all(n.is_file() for n in notebooks), 'nbdev_export makes it from a notebook'
    assert len(notebooks) == 1 or file.name == 'roadmap.py'


def test_bundled_photographs_are_small_and_name_their_author():
    assets = ROOT/'maskbit/assets'
    pictures, credits = [*(assets/'photographs').iterdir()], (assets/'photographs.md').read_text()
    assert 4 <= len(pictures) <= 8 and sum(p.stat().st_size for p in pictures) <= 300_000
    lines = [line for line in credits.splitlines() if re.search(r'\[CC[^]]+\]\(https', line)]
    assert sorted(re.search('`(.+?)`', line)[1] for line in lines) == sorted(p.name for p in pictures)


def test_bundled_models_are_whole_small_and_carry_a_card():
    from maskbit.base.storage import damage
    folders = [d for d in (ROOT/'maskbit/assets').iterdir() if (d/'config.json').is_file()]
    assert {d.name for d in folders} == {'shapes-classifier', 'shapes-perceptual', 'shapes-tokenizer',
                                         'shapes-generator', 'photos-tokenizer'}
    for d in folders:
        assert not damage(d, 'model')
        assert (d/'model.safetensors').stat().st_size < 6_000_000
    card = (ROOT/'maskbit/assets/photos-tokenizer/README.md').read_text()
    assert all(words in card for words in ('gnome-backgrounds', 'CC BY', 'Held out', 'psnr'))
