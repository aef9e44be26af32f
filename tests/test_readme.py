from readme import render, root


def test_readme_is_the_rendered_index():
    assert (root/'README.md').read_text() == render(), 'run python tests/readme.py --write'
