"Rows of Tables 3 and 4 from nothing to their JSON files, with next to no training, and again after a stop."
from unittest.mock import patch
import pytest
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.trees import InputError, change
from maskbit.studies.table_claims import claim_table, read_tables
from maskbit.studies.table_runs import jobs, run_tables
from maskbit.studies.tables import BUDGETS, TABLES, Budget, Study

TRAIN = {'train.batch': 4, 'train.save_every': 2, 'train.steps': 2}
SMALL = Budget(change(STAGE1['tiny'], TRAIN | {
    'model.base_channels': 8, 'model.embedding': 16, 'discriminator.base_channels': 8}),
    change(STAGE2['tiny'], TRAIN | {'model.width': 32, 'model.heads': 2, 'model.depth': 1, 'model.mlp': 64}),
    {}, 16, 20, 20, 10, (1e-3,), (2.0,), (1.0,))


@pytest.fixture(autouse=True)
def small():
    "A budget of next to nothing, and no trial of what it costs."
    with patch.dict(BUDGETS, core=SMALL), patch.object(Study, 'cost', lambda self, tables: {}), \
         patch.object(Study, 'minutes', lambda self, name, cost: 0): yield


def run(tmp_path, tables, seeds=(0, 1)):
    run_tables(tables, seeds, out=tmp_path/'runs', results=tmp_path/'results', quiet=True)


def test_rows_are_run_once_and_can_be_read(tmp_path):
    tables = ('4b',)
    run(tmp_path, tables)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob('results/tables-core/*.json')}
    names = {f'{name}-seed{s}.json' for s in (0, 1) for name, *_ in jobs(Study(), tables, s)}
    assert {p.name for p in files} == names
    next(p for p in files if 'seed1' in p.name).unlink()
    run(tmp_path, tables)
    assert sum(p.stat().st_mtime_ns == t for p, t in files.items()) == len(files) - 1
    assert 'not run (1 of 2 seeds)' in claim_table(read_tables(results=tmp_path/'results'))


def test_what_is_not_tuned_is_not_measured(tmp_path):
    with pytest.raises(InputError, match='--seeds 0 first'): run(tmp_path, ('4b',), (1,))


def test_another_budget_in_the_same_folder_is_refused(tmp_path):
    run(tmp_path, ('4b',), (0,))
    with patch.dict(BUDGETS, core=change(SMALL, {'count': 30})):
        with pytest.raises(InputError, match='count'): read_tables(results=tmp_path/'results')


def test_every_table_has_its_rows():
    assert [len(rows) for rows in TABLES.values()] == [5, 7, 5, 3, 5]


def test_a_suspect_has_the_rate_of_the_row_that_it_changes(tmp_path):
    with patch.dict(TABLES, {'3a': TABLES['3a'][1:3]}): run(tmp_path, ('3a', 'suspects'))
    rows = read_tables(results=tmp_path/'results')
    for r in TABLES['suspects']:
        assert set(rows[r.generator]) == {1} and r.name not in rows
        own, changed = (rows[n][1]['config']['stage2'] for n in (r.tuner.generator, r.generator))
        assert own['optim']['lr'] == changed['optim']['lr'] and own != changed
    assert rows['lfq-12-bits-2-long'][1]['config']['stage2']['train']['steps'] == 4


def test_a_renumbered_row_has_what_was_tuned_for_the_row_that_it_renumbers(tmp_path):
    with patch.dict(TABLES, {'3b': TABLES['3b'][5:]}): run(tmp_path, ('3b',))
    rows = read_tables(results=tmp_path/'results')
    vq, other = TABLES['3b'][5:]
    assert set(rows[other.generator]) == set(rows[other.name]) == {1}
    assert rows[other.name][1]['config']['sample'] == rows[vq.name][1]['config']['sample']
    assert set(rows[f'{vq.name}-tuning']) == {0} and f'{other.name}-tuning' not in rows
