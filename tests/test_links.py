"A book of links: each leads somewhere, and every notebook says what it needs and what comes next."
import re
from urllib.parse import unquote
import pytest
from book import CHAPTERS, IDEA, NOTEBOOKS, ROOT, cells, name

PAGES = [*NOTEBOOKS, ROOT/'README.md', ROOT/'CONTRIBUTING.md']
FIRST_LINE = re.compile(r'^Needs (nothing|.*\]\(.+\)).* · Next .*\[[^\]]+\]\(([^)]+)\)', re.M)


def page(path):
    "The text of a page."
    if path.suffix == '.md': return path.read_text()
    return '\n\n'.join(text for _, text in cells(path, 'markdown'))


def links(text):
    "Where a text leads, code and formulas left out."
    text = re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)
    text = re.sub(r'`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$', '', text, flags=re.S)
    return re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(r'(?:src|href)="([^"]+)"', text)


def anchor(text): return re.sub(r'[^\w-]', '', text.strip().lower().replace(' ', '-'))


def anchors(path):
    "What a link may name after its #: the headings of a page."
    return {anchor(heading) for heading in re.findall(r'^#+ (.+)$', page(path), re.M)}


def broken(path, link):
    "What is wrong with a link of a page, or None."
    file, _, fragment = unquote(link).partition('#')
    target = path.parent/file if file else path
    if not target.exists(): return f'{link}: there is no such file'
    if fragment and anchor(fragment) not in anchors(target): return f'{link}: no such heading'


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_links_lead_somewhere(path):
    near = [link for link in links(page(path)) if not re.match(r'https?:', link)]
    assert not [wrong for link in near if (wrong := broken(path, link))]


def test_a_broken_link_is_noticed():
    text = 'Here [a](nowhere.md), `[b](code.md)`, $[c](x)$, [`d`](README.md#nothing), <img src="e.png">'
    found = links(text)
    assert found == ['nowhere.md', 'README.md#nothing', 'e.png']
    assert all(broken(ROOT/'CONTRIBUTING.md', link) for link in found)
    assert not broken(ROOT/'CONTRIBUTING.md', 'README.md#try-it')
    assert not broken(ROOT/'nbs/index.ipynb', '../CONTRIBUTING.md')


def first_line(path):
    "What it needs, and the link to what comes next."
    _, title = cells(path, 'markdown')[0]
    found = FIRST_LINE.search('\n'.join(title.splitlines()[:8]))
    assert found, f'{name(path)} has no line "Needs [...](...) · Next [...](...)" below its title'
    return found[2]


@pytest.mark.parametrize('path', [IDEA, *CHAPTERS], ids=name)
def test_it_says_what_it_needs_and_what_comes_next(path):
    part = [p for p in [IDEA, *CHAPTERS] if p.parent == path.parent]
    after = (path.parent/first_line(path)).resolve()
    if path == part[-1]: assert after.is_file() and after.parent != path.parent, 'the last leads on'
    else: assert after == part[part.index(path) + 1], 'the next of its part comes next'


@pytest.mark.parametrize('path', PAGES, ids=name)
def test_no_notebook_is_called_by_its_number(path):
    texts = [('text', path.read_text())] if path.suffix == '.md' else cells(path)
    said = [(id, m[0]) for id, text in texts for m in re.finditer(r'notebooks? \d\d\b', text, re.I)]
    assert not said, 'make it a link, or say what is meant in words'
