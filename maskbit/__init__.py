"MaskBit: embedding-free image generation from bit tokens. Names are imported when they are first used, so that `import maskbit` is quick."
__version__ = "0.1.0"

_HOME = {'Tokenizer': 'tokenizer', 'Generator': 'generator', 'Shapes': 'shapes', 'sample': 'sampling'}


def __getattr__(name):
    from importlib import import_module
    from importlib.util import find_spec
    if name in _HOME: return getattr(import_module(f'maskbit.{_HOME[name]}'), name)
    if not name.startswith('_') and find_spec(f'maskbit.{name}'): return import_module(f'maskbit.{name}')
    raise AttributeError(f'module maskbit has no attribute {name!r}')
