#!/usr/bin/env bash
# Every check there is, for people and for CI: lint, layers, notebooks clean, export without a diff, README in step,
# notebooks run, tests pass (tests/test_site.py builds the site and reads it in a browser).
set -eu
cd "$(dirname "$0")"
export OMP_NUM_THREADS=1 MPLBACKEND=agg
before=$(git status --porcelain; git diff)
ruff check -q
lint-imports
nbdev_clean
nbdev_export
python tests/readme.py --write
after=$(git status --porcelain; git diff)
if [ "$before" != "$after" ]; then
    echo 'Notebooks, maskbit/ or README.md were out of step and have been updated: see git diff, and commit it.'
    git status --short; exit 1
fi
unset MPLBACKEND
nbdev_test --n_workers 2 --do_print
pytest -q tests
