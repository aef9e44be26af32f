"The pace of the book's core: a chapter says what it answers, runs what it defines, and ends with exercises."
import ast
import pytest
from book import CHAPTERS, IDEA, cells, name

CORE = [p for p in CHAPTERS if p.parent.name in ('stage1', 'stage2', 'studies')]
TAUGHT = [p for p in CORE if p.parent.name != 'studies']     # which explain what they define


@pytest.mark.parametrize('path', CORE, ids=name)
def test_it_opens_with_what_it_answers(path):
    _, title = cells(path, 'markdown')[0]
    assert '**It answers**: ' in title or '| question |' in title


@pytest.mark.parametrize('path', [IDEA, *CORE], ids=name)
def test_it_ends_with_what_one_has_and_exercises_with_answers(path):
    text = '\n'.join(text for _, text in cells(path, 'markdown'))
    have, _, exercises = text.partition('## What you have now\n')[2].partition('## Exercises\n')
    assert have.count('\n- ') == 3
    assert 2 <= exercises.count('<details><summary>Answer</summary>') == exercises.count('</details>') <= 3


def pace(sources):
    "{definition of an exported cell: whether a cell within the next three runs it}, of sources in order."
    found = {}
    for i, text in enumerate(sources):
        if not text.startswith('#| export'): continue
        soon = [s for s in sources[i + 1:i + 4] if s and not s.startswith('#| export')]
        nodes = [n for s in soon for n in ast.walk(ast.parse(s))]
        used = {getattr(n, 'id', getattr(n, 'attr', None)) for n in nodes}
        kinds = ast.FunctionDef, ast.ClassDef
        found |= {d.name: d.name in used for d in ast.parse(text).body if isinstance(d, kinds)}
    return found


def test_definitions_are_run_soon():
    every = {}
    for path in TAUGHT:
        code = dict(cells(path, 'code'))
        of = pace([code.get(id, '') for id, _ in cells(path)])
        every |= {f'{name(path)} {definition}': soon for definition, soon in of.items()}
    late = [k for k, soon in every.items() if not soon]
    assert len(late) <= 0.15 * len(every), f'run these within three cells: {", ".join(late)}'


def test_a_late_run_is_noticed():
    define, run = '#| export\ndef f(): return 1', 'assert f() == 1'
    assert pace([define, '', '', run]) == {'f': True}
    assert pace([define, '', '', '', run]) == {'f': False}
    assert pace([define, '#| export\nf()']) == {'f': False}
