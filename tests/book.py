"The notebooks of the book, as the tests read them."
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT/'nbs').glob('[!.]*/*.ipynb'))
IDEA = ROOT/'nbs/idea.ipynb'
NOTEBOOKS = [ROOT/'nbs/index.ipynb', IDEA, *CHAPTERS]


def cells(path, kind=None):
    "(id, source) of the cells of a notebook: all, or those of one kind, markdown or code."
    every = json.loads(path.read_text())['cells']
    return [(c['id'], ''.join(c['source'])) for c in every if kind in (None, c['cell_type'])]


def name(path): return str(path.relative_to(ROOT))
