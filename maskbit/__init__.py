"""MaskBit: embedding-free image generation from bit tokens.

Names are imported when they are first used, so that `import maskbit` is quick: the front door (`Tokenizer`,
`Generator`, `Shapes`, `sample`), and every module by its short name, as in `maskbit.roadmap`."""
__version__ = "0.1.0"

_FRONT_DOOR = {'Tokenizer': 'tokenizer', 'Generator': 'generator', 'Shapes': 'shapes', 'sample': 'sampling'}
_PARTS = 'base', 'stage1', 'stage2', 'studies', 'use'


def _modules():
    "{short name: full name} of the modules of all parts."
    from pathlib import Path
    files = [f for part in _PARTS for f in sorted((Path(__file__).parent/part).glob('[!_]*.py'))]
    return {f.stem: f'maskbit.{f.parent.name}.{f.stem}' for f in files}


def __getattr__(name):
    from importlib import import_module
    if name in _PARTS: return import_module(f'maskbit.{name}')
    if name.startswith('_'): raise AttributeError(f'module maskbit has no attribute {name!r}')
    modules = _modules()
    if name in _FRONT_DOOR: return getattr(import_module(modules[_FRONT_DOOR[name]]), name)
    if name in modules: return import_module(modules[name])
    raise AttributeError(f'maskbit has no {name!r}; it has {", ".join(sorted([*_FRONT_DOOR, *modules]))}')


def __dir__(): return sorted({'__version__', *_FRONT_DOOR, *_PARTS, *_modules()})
