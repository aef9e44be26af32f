"What is committed of a notebook: its static outputs. A widget is nothing without its kernel."
import json
import pytest
from book import NOTEBOOKS, name


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_no_widget_state(path):
    nb = json.loads(path.read_text())
    assert 'widgets' not in nb['metadata']
    outputs = [(c['id'], o) for c in nb['cells'] for o in c.get('outputs', [])]
    left = [id for id, o in outputs if any('widget' in kind for kind in o.get('data', {}))]
    assert not left, f'clear the output of {", ".join(left)} in {path.name}'
