"README.md is the rendered text of nbs/index.ipynb. `python tests/readme.py --write` renders it again."
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).parent.parent


def render():
    notebook = nbformat.read(root/'nbs/index.ipynb', 4)
    notebook.metadata['language_info'] = {'name': 'python'} # names the code blocks; nbdev_clean removes it
    for cell in notebook.cells:
        if cell.cell_type == 'markdown':                    # links of the index are relative to nbs/
            cell.source = re.sub(r'\]\((?!\w+:|#|/)', '](nbs/', cell.source)
        if cell.source.startswith('#| echo: false'): cell.source = ''
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r'```python\n\s*```\n', '', text)         # of a cell that shows its result only
    return re.sub('\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__' and '--write' in sys.argv:
    (root/'README.md').write_text(render())
