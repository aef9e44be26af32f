"README.md is the rendered text of nbs/index.ipynb. `python tests/readme.py --write` renders it again."
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def render():
    notebook = nbformat.read(root/'nbs/index.ipynb', 4)
    notebook.metadata['language_info'] = {'name': 'python'} # names the code blocks; nbdev_clean removes it
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r'\]\((?!\w+:|#|/)', '](nbs/', text)       # links of the index are relative to nbs/
    return re.sub('\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__' and '--write' in sys.argv:
    (root/'README.md').write_text(render())
