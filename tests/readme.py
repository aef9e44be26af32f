"README.md is the rendered text of nbs/index.ipynb. `python tests/readme.py --write` renders it again."
import sys
from pathlib import Path
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def render():
    text, _ = MarkdownExporter().from_filename(str(root/'nbs/index.ipynb'))
    return text.replace('](images/', '](nbs/images/').strip() + '\n'


if __name__ == '__main__' and '--write' in sys.argv: (root/'README.md').write_text(render())
