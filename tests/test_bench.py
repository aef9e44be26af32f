"The benchmark: every row is stored as it is measured, and the command says what it can do."
import json
import pytest
from maskbit.base.trees import InputError
from maskbit.use import bench
from maskbit.use.cli import main
from maskbit.use.paths import Case


def names(folder): return sorted(p.name.removesuffix('-seed0.json') for p in folder.glob('bench/*'))


def test_help_names_every_path(capsys):
    with pytest.raises(SystemExit): main(['bench', '--help'])
    said = capsys.readouterr().out
    assert all(path in said for path in bench.ALL)


def test_a_path_from_end_to_end(tmp_path, capsys):
    words = ['bench', 'neighbours', '--scale', 'tiny', '--results', str(tmp_path)]
    main(words)
    assert names(tmp_path) == ['tiny-neighbours-codes-1000']
    file = next(tmp_path.glob('bench/*'))
    row, written = json.loads(file.read_text()), file.stat().st_mtime_ns
    assert row['metrics']['error'] == 0 and row['provenance']['packages']['torch']
    assert {'ours', 'plain', 'ratio', 'bound', 'reach_float32', 'reach_copy'} <= row['metrics'].keys()
    main(words)                                                      # is not measured again
    assert file.stat().st_mtime_ns == written
    assert capsys.readouterr().out.count('neighbours-codes-1000') == 2


def test_a_stop_keeps_the_rows_before_it(tmp_path, monkeypatch):
    def stopped(): raise KeyboardInterrupt
    good, ended = Case(lambda: 1), Case(stopped)
    cases = {'a': lambda: good, 'b': lambda: ended, 'c': lambda: good}
    monkeypatch.setitem(bench.PATHS, 'lfq', lambda scale, device: cases)
    with pytest.raises(KeyboardInterrupt): bench.run_bench(['lfq'], 'tiny', tmp_path)
    assert names(tmp_path) == ['tiny-lfq-a']
    cases['b'] = lambda: good
    bench.run_bench(['lfq'], 'tiny', tmp_path)
    assert names(tmp_path) == ['tiny-lfq-a', 'tiny-lfq-b', 'tiny-lfq-c']


def test_forms_that_differ_are_not_timed(tmp_path, monkeypatch):
    wrong = Case(lambda: 1, lambda: 2, error=lambda: 1.0)
    monkeypatch.setitem(bench.PATHS, 'lfq', lambda scale, device: {'a': lambda: wrong})
    with pytest.raises(InputError, match='differ by 1.0e'): bench.run_bench(['lfq'], 'tiny', tmp_path)
    assert not names(tmp_path)


def test_two_processes_train(tmp_path):
    row = bench.measure_processes(2, steps=3)
    assert row['items'] == 128 and row['ours'] > 0
