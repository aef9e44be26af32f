"What is cited of the paper is there, and formulas are raw LaTeX."
import re
import pytest
from book import NOTEBOOKS, cells, name

HEADINGS = set('1 2 2.1 2.2 2.3 3 4 4.1 4.2 5 6 A B B.1 B.2 B.3 B.4 C D D.1 D.2 E F G H'.split())
NUMBER = r'(?:\d|[A-Z])(?:\.\d+)*\b'
LIST = rf'{NUMBER}(?:(?:, and |, | and | to ){NUMBER})*'
CITATION = re.compile(rf'\b(?:Secs?\.|Sections?|App\.|Appendix|Appendices)\s+({LIST})')


def cited(text): return [n for m in CITATION.finditer(text) for n in re.findall(NUMBER, m[1])]


def test_citations_are_found():
    assert cited('(Sec. 2.3, *An Embedding-Free Variant*)') == ['2.3']
    assert cited('App. B.1, B.2 and B.3') == ['B.1', 'B.2', 'B.3']
    assert cited('Sections 4 and 4.2, step 4b, Appendix G.') == ['4', '4.2', 'G']
    assert cited('App. B on A100, in Sec. 3, Table 3a, and of Sec. 3.2.') == ['B', '3', '3.2']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_cited_sections_are_in_the_paper(path):
    wrong = [f'{id}: {n}' for id, text in cells(path) for n in cited(text) if n not in HEADINGS]
    assert not wrong, 'the paper has no such heading'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_formulas_are_raw(path):
    doubled = re.compile(r'\\\\[A-Za-z]\w*')
    wrong = {id: doubled.findall(text) for id, text in cells(path, 'markdown') if doubled.search(text)}
    assert not wrong, 'text cells are raw: write one backslash'
