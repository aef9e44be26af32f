"README.md is the rendered text of nbs/index.ipynb. `python tests/readme.py --write` renders it again."
import sys
from pathlib import Path
from nbconvert import MarkdownExporter
from traitlets.config import Config

root = Path(__file__).parent.parent


def render():
    config = Config({'TagRemovePreprocessor': {'remove_cell_tags': ['hide'], 'enabled': True}})
    text, _ = MarkdownExporter(config=config).from_filename(str(root/'nbs/index.ipynb'))
    return text.strip() + '\n'


if __name__ == '__main__' and '--write' in sys.argv: (root/'README.md').write_text(render())
