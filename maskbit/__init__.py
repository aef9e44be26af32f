"MaskBit: embedding-free image generation from bit tokens. Names are imported when they are first used, so that `import maskbit` is quick."
__version__ = "0.1.0"

_HOME = {'Tokenizer': 'tokenizer', 'Generator': 'generator', 'Shapes': 'shapes', 'sample': 'sampling'}


def __getattr__(name):
    from importlib import import_module
    if name in _HOME: return getattr(import_module(f'maskbit.{_HOME[name]}'), name)
    raise AttributeError(f'module maskbit has no attribute {name!r}')
