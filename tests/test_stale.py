"The tables of the pages are those that the rows in nbs/results give today."
import ast, json
import pytest
import maskbit
from book import NOTEBOOKS, name
from maskbit.stage1 import steps
from maskbit.stage1.steps import PUBLISHED, result_table
from maskbit.studies.ablation import STARTS, planned
from maskbit.studies.semantics import show_semantics
from maskbit.studies.table_claims import (claim_table, contrast_table, read_tables, share_table,
                                          show_table)
from maskbit.studies.verdicts import (beside_table, control_table, read_roadmap, two_sets_table,
                                      verdict_table)

TABLES = {f.__name__: f for f in (result_table, show_table, share_table, claim_table, contrast_table,
                                  show_semantics, verdict_table, beside_table, control_table,
                                  two_sets_table)}
# what the calls name
GIVEN = {'maskbit': maskbit, 'PUBLISHED': PUBLISHED, 'STARTS': STARTS, 'planned': planned}


def last_call(source):
    "The call of a table that a cell ends in, on however many lines; else nothing."
    if not any(f'{t}(' in source for t in TABLES): return None
    last = ast.parse(source).body[-1]
    called = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and last.value.func
    return ast.unparse(last) if getattr(called, 'id', '') in TABLES else None


def tables(path):
    "(call, the table that is committed) of the cells of a notebook that end in such a call."
    for cell in json.loads(path.read_text())['cells']:
        call = last_call(''.join(cell['source'])) if cell['cell_type'] == 'code' else None
        shown = [''.join(o['data']['text/markdown']) for o in cell.get('outputs', [])
                 if 'text/markdown' in o.get('data', {})]
        if call and shown: yield call, shown[-1]


FOUND = [(path, *table) for path in NOTEBOOKS for table in tables(path)]


@pytest.mark.parametrize('path, call, shown', FOUND, ids=[f'{name(p)}-{c}' for p, c, _ in FOUND])
def test_a_table_is_not_older_than_its_rows(path, call, shown):
    rows = read_tables() if path.stem == '34_table_claims' else read_roadmap()
    now = eval(call, TABLES | GIVEN | {'rows': rows, 'emoji': read_roadmap('roadmap-two-phase-emoji')})
    assert str(now) == shown, f'Run {name(path)} again.'


def test_tables_are_found():
    assert {call.split('(')[0] for _, call, _ in FOUND} == TABLES.keys()


@pytest.mark.parametrize('seeds, shown', [(0, 'not run'), (1, '0.500'), (2, '0.550 ± 0.050')])
def test_a_range_needs_two_seeds(monkeypatch, seeds, shown):
    metrics = ('kid_lite1', 'frechet_lite1', 'psnr', 'ssim', 'features_lite1', 'codes_used')
    rows = [{'metrics': dict.fromkeys(metrics, 0.5 + seed / 10)} for seed in range(seeds)]
    monkeypatch.setattr(steps, 'rows_of', lambda *_: rows)
    cells = result_table('ema').splitlines()[-1].split(' | ')
    assert cells[2] == shown and cells[-1].strip(' |') == str(seeds)


def test_a_table_names_its_judge(monkeypatch):
    metrics = ('kid_inception', 'frechet_inception', 'psnr', 'ssim', 'codes_used')
    monkeypatch.setattr(steps, 'rows_of', lambda *_: [{'metrics': dict.fromkeys(metrics, 0.5)}])
    header, _, row = result_table('ema', group='roadmap-paper').splitlines()
    assert 'measured: KID, Inception' in header and row.count('not run') == 1
