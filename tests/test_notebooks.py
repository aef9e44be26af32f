"What is committed of a notebook: its static outputs. A widget is nothing without its kernel."
import json
from pathlib import Path
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent/'nbs').rglob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_no_widget_state(path):
    nb = json.loads(path.read_text())
    assert 'widgets' not in nb['metadata']
    left = [c['id'] for c in nb['cells'] for o in c.get('outputs', []) if any('widget' in kind for kind in o.get('data', {}))]
    assert not left, f'clear the output of {", ".join(left)} in {path.name}'
