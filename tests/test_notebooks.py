"What is committed of a notebook: its static outputs. A widget is nothing without its kernel."
import json, re
import pytest
from book import NOTEBOOKS, name


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_no_widget_state(path):
    nb = json.loads(path.read_text())
    assert 'widgets' not in nb['metadata']
    outputs = [(c['id'], o) for c in nb['cells'] for o in c.get('outputs', [])]
    left = [id for id, o in outputs if any('widget' in kind for kind in o.get('data', {}))]
    assert not left, f'clear the output of {", ".join(left)} in {path.name}'


LEFT = re.compile(r'\w*Warning: |site-packages|dist-packages|ipykernel|'
                  r'(?<![\w.:/])/(?:tmp|home|root|Users|work|opt|var)/')


def leaks(output):
    "What an output tells of the machine that it was made on: warnings, and paths."
    texts = {k: v for k, v in output.get('data', {}).items() if not k.startswith('image/')}
    said = [output.get('text', ''), *texts.values(), output.get('traceback', '')]
    return [m[0] for m in LEFT.finditer('\n'.join(''.join(s) for s in said if not isinstance(s, dict)))]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_no_warning_and_no_path_of_a_machine(path):
    outputs = [(c['id'], o) for c in json.loads(path.read_text())['cells'] for o in c.get('outputs', [])]
    left = {id: found for id, o in outputs if (found := leaks(o))}
    assert not left, f'mend the cause, or filter the warning, and run {path.name} again'


def test_a_leak_is_noticed():
    for text in ('/tmp/ipykernel_1/2.py:5: UserWarning: no', '  /home/me/a.py', 'FutureWarning: old',
                 'in /venv/lib/python3.12/site-packages/x.py'):
        assert leaks(dict(text=[text])) and leaks(dict(data={'text/html': text}))
    assert not leaks(dict(text=['.../run/model, https://a.b/tmp/c, --out runs/var/x']))
