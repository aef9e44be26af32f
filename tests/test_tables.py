"Every row of Tables 3 and 4 from nothing to its JSON file, with next to no training, and again after a stop."
import json
import pytest
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.trees import InputError, change
from maskbit.studies.tables import TABLES, run_tables

TRAIN = {'train.batch': 4, 'train.save_every': 1}
STAGE1_SMALL = change(STAGE1['tiny'], TRAIN | {
    'model.base_channels': 8, 'model.embedding': 16, 'discriminator.base_channels': 8})
STAGE2_SMALL = change(STAGE2['tiny'], TRAIN | {
    'model.width': 32, 'model.heads': 2, 'model.depth': 1, 'model.mlp': 64, 'model.sample.steps': 2})


def run(tmp_path, steps=2, tables=tuple(TABLES)):
    run_tables(tables, (0,), 2, steps, STAGE1_SMALL, STAGE2_SMALL, 16, 20,
               tmp_path/'runs', tmp_path/'results', quiet=True)


def test_all_rows_and_none_twice(tmp_path):
    run(tmp_path)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob('results/*/*.json')}
    rows = {r.name for rows in TABLES.values() for r in rows} | {'lfq-12', 'vq-12'}
    assert {p.name for p in files} == {f'{name}-seed0.json' for name in rows}
    for p in files:
        metrics = json.loads(p.read_text())['metrics']
        assert all(isinstance(v, float) for v in metrics.values())
    next(iter(files)).unlink()
    run(tmp_path)
    assert sum(p.stat().st_mtime_ns == t for p, t in files.items()) == len(files) - 1


def test_another_budget_under_the_same_name_is_refused(tmp_path):
    run(tmp_path, tables=['4b'])
    with pytest.raises(InputError, match='another configuration'):
        run(tmp_path, 3, ['4b'])
