"Rows of Tables 3 and 4 from nothing to their JSON files, with next to no training, and again after a stop."
import json
from unittest.mock import patch
import pytest
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.storage import sealed
from maskbit.base.trees import InputError, change
from maskbit.studies.ablation import run_roadmap
from maskbit.studies.table_claims import claim_table, read_tables
from maskbit.studies.table_runs import jobs, run_tables
from maskbit.studies.study import Study
from maskbit.studies.tables import BUDGETS, TABLES, Budget

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
        with pytest.raises(InputError, match='another conf|counts'): read_tables(results=tmp_path/'results')
        for seeds in ((0,), (1,)):          # nor is anything tuned by it
            with pytest.raises(InputError, match='another configuration'): run(tmp_path, ('4b',), seeds)


def test_suspects_alone_tune_the_rows_that_they_change(tmp_path):
    with patch.dict(TABLES, {'suspects': TABLES['suspects'][:1]}): run(tmp_path, ('suspects',))
    rows = read_tables(results=tmp_path/'results')
    assert {n: set(seeds) for n, seeds in rows.items()} == {
        'lfq-12': {0, 1}, 'lfq-12-embedding-1-lr0.001': {0}, 'lfq-12-embedding-1-one_bias': {1}}


def test_what_is_not_tuned_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match='--seeds 0 first'): run(tmp_path, ('3a',), (1,))
    assert not (tmp_path/'runs').exists()


def test_shapes_have_validation_pictures_of_their_own(tmp_path):
    for command in (run_tables, run_roadmap):
        with pytest.raises(InputError, match='both, or neither'):
            command(validation=str(tmp_path), out=tmp_path, results=tmp_path)


def test_rows_on_other_pictures_or_by_another_judge_are_refused(tmp_path):
    run(tmp_path, ('4b',), (0, 1))
    path = tmp_path/'results/tables-core/lfq-14-seed1.json'
    row, known = json.loads(path.read_text()), json.loads(path.read_text())['metrics']['pictures']
    others = {r['metrics'].get('pictures') for seeds in read_tables(results=tmp_path/'results').values()
              for r in seeds.values()}
    assert others == {known, None}                     # the same for tokenizers and samples
    for key, value, said in (('metrics', {'pictures': 'other'}, 'different pictures'),
                             ('config', {'judges': ['inception', 'shapes']}, 'several judges')):
        path.write_text(sealed({k: v for k, v in row.items() if k != 'seal'} | {key: row[key] | value}))
        with pytest.raises(InputError, match=said): read_tables(results=tmp_path/'results')


def test_a_judge_that_is_not_here_can_be_read(tmp_path):
    with patch('maskbit.studies.study.judge_of', lambda small: 'efficientnet-lite1'):
        run(tmp_path, ('4b',), (0, 1))
    with patch('maskbit.studies.study.judge_of', lambda small: 'inception'):
        assert len(read_tables(results=tmp_path/'results')) == 9


def test_every_table_has_its_rows():
    assert [len(rows) for rows in TABLES.values()] == [5, 7, 5, 3, 6]


def test_a_suspect_has_the_rate_of_the_row_that_it_changes(tmp_path):
    with patch.dict(TABLES, {'3a': TABLES['3a'][1:3] + TABLES['3b'][:1]}): run(tmp_path, ('3a', 'suspects'))
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
