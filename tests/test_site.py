"""The site: it builds without a warning, asks no other host, its links lead somewhere and its formulas are
set; and the explorer in the page shows what PyTorch decodes."""
import ast, functools, http.server, importlib.util, json, os, re, shutil, statistics, subprocess, sys
import threading, time
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote
import numpy as np, pytest, torch
from PIL import Image
from book import CHAPTERS, IDEA, NOTEBOOKS, ROOT, cells
from chromium import chromium
from test_links import first_line
from maskbit.base.shapes import Shapes
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.stage2.generator import Generator
from maskbit.stage2.sampling import to_uint8

SITE, VENDORED = ROOT/'build/site', ROOT/'build/npm/node_modules/onnxruntime-web'


@pytest.fixture(scope='module')
def site():
    "The folder of the site, built anew."
    if not importlib.util.find_spec('sphinx'): pytest.skip("the site needs pip install '.[site]'")
    if not shutil.which('npm') and not VENDORED.exists(): pytest.skip('the site needs npm')
    done = subprocess.run([sys.executable, 'site/build.py'], cwd=ROOT, capture_output=True, text=True)
    if 'npm is needed' in done.stderr: pytest.skip(done.stderr)      # and a network, once
    assert done.returncode == 0, done.stdout + done.stderr       # a warning of Sphinx is an error
    return SITE


class Page(HTMLParser):
    "What a page links to, loads and names, and its text outside code."
    def __init__(self, path):
        super().__init__()
        self.path = path
        self.links, self.loads, self.ids, self.text, self.skip = [], [], set(), '', 0
        self.alts, self.code, self.next = [], '', None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if 'id' in a: self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag == 'a' and a.get('class') == 'right-next': self.next = (self.path.parent/a['href']).resolve()
        if tag == 'img': self.alts.append(a.get('alt'))
        if tag in ('script', 'img', 'iframe', 'source') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') in ('stylesheet', 'icon', 'preload', 'preconnect'):
            self.loads.append(a['href'])
        if tag in ('pre', 'code', 'script', 'style'): self.skip += 1

    def handle_endtag(self, tag):
        if tag in ('pre', 'code', 'script', 'style'): self.skip -= 1

    def handle_data(self, data):
        if self.skip: self.code += data
        else: self.text += data


@pytest.fixture(scope='module')
def pages(site): return {p: Page(p) for p in site.rglob('*.html') if '_static' not in p.parts}


def test_every_notebook_is_a_page(site):
    assert all((site/p.relative_to(ROOT/'nbs').with_suffix('.html')).exists() for p in CHAPTERS)
    text = (site/'stage1/50_lfq.html').read_text()
    assert '#|' not in text and 'hide-imports' not in text


def test_links_lead_somewhere(pages):
    wrong, seen = [], 0
    for path, page in pages.items():
        for link in page.links:
            if re.match(r'\w+:', link): continue
            file, _, fragment = unquote(link).partition('#')
            target = (path.parent/file.partition('?')[0]).resolve() if file else path
            seen += 1
            if not target.exists(): wrong.append((path.name, link))
            elif target in pages and fragment and fragment not in pages[target].ids:
                wrong.append((path.name, link))
    assert seen > 5000 and not wrong


def test_names_lead_to_their_definitions(site):
    text = (site/'stage1/50_lfq.html').read_text()
    assert re.search(r'href="../base/14_bits.html#indices_to_bits"><span class="n">indices_to_bits', text)
    assert 'id="indices_to_bits"' in (site/'base/14_bits.html').read_text()
    assert 'id="Tokenizer.encode"' in (site/'stage1/55_tokenizer.html').read_text()


def public():
    "How often each name is in an `__all__` of the package."
    trees = [ast.parse(p.read_text()) for p in (ROOT/'maskbit').glob('*/*.py')]
    lists = [n.value for t in trees for n in t.body
             if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == '__all__']
    return Counter(name for each in lists for name in ast.literal_eval(each))


WORDS = re.compile(r'<a class="name" href="([^"#]*)#([^"]+)"><code[^>]*><span class="pre">([\w.]+)')


def test_words_of_the_text_lead_to_public_definitions(pages):
    names = public()
    away = [(p.name, anchor) for p in pages for where, anchor, _ in WORDS.findall(p.read_text()) if where]
    assert len(away) > 30 and not [x for x in away if not names[x[1].partition('.')[0]]]
    plain = {p.stem.partition('_')[2] for p in CHAPTERS} | {p.parent.name for p in CHAPTERS}
    found = {word for _, _, word in WORDS.findall((SITE/'index.html').read_text())}
    assert found and not found & plain, 'the index speaks of parts and modules'


def test_a_word_with_two_meanings_leads_nowhere(monkeypatch):
    monkeypatch.syspath_prepend(ROOT/'site')
    import pages as making
    words = making.everywhere(making.definitions())
    assert words['Tokenizer.encode'] == ('stage1/55_tokenizer', 'Tokenizer.encode')
    assert not {'stage1', 'stage2', 'sampling', 'neighbours', 'pictures', 'device', 'torchrun'} & words.keys()
    jobs = making.in_scope(ROOT/'nbs/use/40_jobs.ipynb', making.definitions())
    assert 'device' not in jobs and 'TrainTokenizer' in jobs     # there also a field


def test_the_footer_leads_on_as_the_text_does(pages):
    order, wrong = [SITE/'index.html'], []
    while (after := pages[order[-1]].next) and after not in order: order.append(after)
    for path in (IDEA, *CHAPTERS):
        said = (path.parent/first_line(path)).resolve()
        page, to = (SITE/p.relative_to(ROOT/'nbs').with_suffix('.html') for p in (path, said))
        if page != order[-1] and pages[page].next != to: wrong.append((path.name, pages[page].next))
    assert not wrong and len(order) == len(NOTEBOOKS) + 1               # and play
    assert [*dict.fromkeys(p.parent.name for p in order[3:])] == 'stage1 stage2 studies use base'.split()


def test_pictures_have_words(pages):
    alts = [(p.name, alt) for p, page in pages.items() for alt in page.alts]
    assert len(alts) > 50
    assert not [(p, alt) for p, alt in alts if not alt or re.search(r'\.(png|jpg)|_images', alt)]


def test_what_a_cell_prints_is_one_box(pages):
    two = re.compile(r'<div class="output stream [^>]*><div class="highlight"><pre>(?:(?!</pre>).)*</pre>'
                     r'</div>\s*</div>\s*<div class="output stream', re.S)
    assert not [p.name for p in pages if two.search(p.read_text())]


def test_cells_without_echo_show_no_code(pages):
    hidden = [(p, text) for p in NOTEBOOKS for _, text in cells(p, 'code') if '#| echo: false' in text]
    assert hidden
    for path, text in hidden:
        shown = pages[SITE/path.relative_to(ROOT/'nbs').with_suffix('.html')].code
        assert not [line for line in text.splitlines() if len(line) > 20 and line in shown
                    and 'import' not in line], path.name


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loads = [(p.name, url) for p, page in pages.items() for url in page.loads]
    assert loads and not [(p, url) for p, url in loads if re.match(r'(\w+:)?//', url)]
    away, styles = re.compile(r'(url\(|@import )\s*["\']?(https?:)?//'), [*site.rglob('*.css')]
    assert styles and not [p for p in styles if away.search(p.read_text())]


def test_no_formula_or_table_is_left_as_it_was_typed(pages):
    typed = re.compile(r'\$[^$\n]+\$|\|\s*:?[-—–]+:?\s*\|')
    assert not [(p.name, m[0]) for p, page in pages.items() for m in typed.finditer(page.text)]


# In the browser

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


class Site:
    "The site in a browser; what is asked of another host is refused, and counted."
    def __init__(self, browser, folder):
        handler = functools.partial(Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base, self.browser, self.elsewhere = f'http://127.0.0.1:{self.server.server_port}/', browser, []

    def open(self, name, width=1280, theme='light', **options):
        page = self.browser.new_page(viewport=dict(width=width, height=900), color_scheme=theme, **options)
        page.route(lambda url: not url.startswith((self.base, 'data:', 'blob:')), self.refuse)
        page.goto(f'{self.base}{name}.html', wait_until='load')
        return page

    def refuse(self, route):
        self.elsewhere.append(route.request.url)
        route.abort()


@pytest.fixture(scope='module')
def served(browser, site):
    s = Site(browser, site)
    yield s
    s.server.shutdown()
    assert s.elsewhere == [], 'another host was asked'


TYPESET = """async () => {
    await MathJax.startup.promise
    const all = [...document.querySelectorAll('.math')]
    return [all.length, all.filter(e => !e.querySelector('mjx-container')).map(e => e.textContent),
            [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(e => e.textContent)] }"""
CUT = """[...document.querySelectorAll('.bd-article pre')].filter(e => e.scrollWidth > e.clientWidth)
    .map(e => e.textContent)"""
BEYOND = 'document.documentElement.scrollWidth - innerWidth'


def test_every_page_fits_and_its_formulas_are_set(served, pages):
    formulas, page = 0, served.open('index')
    for path, read in pages.items():
        page.goto(served.base + str(path.relative_to(SITE)))
        for width in (1280, 400):
            page.set_viewport_size(dict(width=width, height=900))
            assert page.evaluate(BEYOND) <= 0, f'{path} is wider than {width} pixels'
            if width == 1280: assert not page.evaluate(CUT), f'{path} has lines that are cut off'
        if 'class="math' not in path.read_text(): continue
        count, raw, errors = page.evaluate(TYPESET)
        assert not raw and not errors, path
        formulas += count
    assert formulas > 100


LIGHT = """() => {
    const light = c => c.match(/[\\d.]+/g).slice(0, 3).reduce((sum, x) => sum + Number(x) / 765, 0)
    return [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('article p')).color].map(light) }"""


def test_both_themes(served):
    for theme in ('light', 'dark'):
        paper, ink = served.open('stage1/50_lfq', theme=theme).evaluate(LIGHT)
        assert (paper - ink if theme == 'light' else ink - paper) > 0.6


def test_search(served):
    page = served.open('search')
    page.goto(f'{served.base}search.html?q=entropy')
    first = page.locator('#search-results li a').first
    first.wait_for()
    page.goto(first.evaluate('a => a.href'))
    assert 'entropy' in page.locator('article').inner_text().lower()


# The explorer in the page

PIXELS = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"


def opened(served):
    page = served.open('play')
    page.wait_for_selector('#flip-bits:not([hidden])', timeout=60_000)
    return page


def shows(page, tok, tokens):
    "Wait until the page shows what PyTorch decodes, to 2 grey levels."
    wanted, until = to_uint8(tok.decode(tokens))[0].int(), time.time() + 20
    while True:
        data = torch.tensor(page.locator('#flip-bits .flipped').evaluate(PIXELS)).view(32, 32, 4)
        far = int((data[..., :3].permute(2, 0, 1) - wanted).abs().max())
        if far <= 2: return
        assert time.time() < until, f'{far} grey levels from what PyTorch decodes'
        time.sleep(0.05)


def tokens_of(tok, file):
    pixels = torch.from_numpy(np.array(Image.open(file).convert('RGB'))).permute(2, 0, 1)
    return tok.encode(pixels[None] / 255)


def drag(page, start, end): # (row, column) of tokens
    area = page.locator('#flip-bits .tokens')
    size = area.bounding_box()['width'] / 8
    for (row, column), act in ((start, page.mouse.down), (end, page.mouse.up)):
        area.hover(position=dict(x=(column + 0.5) * size, y=(row + 0.5) * size))
        act()


@pytest.fixture(scope='module')
def tok(): return Tokenizer.from_pretrained('shapes')


def test_bits_flipped_in_the_page(served, tok):
    page, star = opened(served), tokens_of(tok, SITE/'_static/pictures/star.png')
    def bit(b): return page.get_by_role('button', name=f'bit {b}', exact=True)
    shows(page, tok, star)
    bit(3).click()
    shows(page, tok, star ^ 8)
    drag(page, (2, 1), (4, 3))
    bit(11).click()
    inside = torch.zeros(8, 8, dtype=torch.long)
    inside[2:5, 1:4] = 1
    shows(page, tok, star ^ 8 ^ (inside << 11))
    assert bit(11).get_attribute('aria-pressed') == 'true'

    page.locator('#flip-bits .tokens').focus()
    for key in ('ArrowRight', 'Shift+ArrowDown', 'Space'): page.keyboard.press(key)
    inside[4:6, 4] = 1                      # rows 4 and 5 of column 4, and the bit that was used last
    shows(page, tok, star ^ 8 ^ (inside << 11))
    page.keyboard.press('a')
    assert bit(11).get_attribute('aria-pressed') == 'mixed'


def test_a_walk_and_an_upload_in_the_page(served, tok, tmp_path):
    page = opened(served)
    page.get_by_label('walk').focus()
    page.keyboard.press('End')
    shows(page, tok, tokens_of(tok, SITE/'_static/pictures/heart.png'))

    mine, letter = tmp_path/'mine.png', tmp_path/'letter.png'
    picture = Shapes(split='validation').batch(torch.tensor([77]))[0][0]
    Image.fromarray(to_uint8(picture).permute(1, 2, 0).numpy()).save(mine)
    letter.write_text('Dear reader')
    page.get_by_label('Your own picture').set_input_files(mine)
    shows(page, tok, tokens_of(tok, mine))
    page.get_by_label('Your own picture').set_input_files(letter)
    page.get_by_text('letter.png is not a picture that this browser can read.').wait_for()
    if shots := os.environ.get('SHOTS'): page.screenshot(path=f'{shots}/play.png')


def test_drawing(served):
    page, gen = opened(served), Generator.from_pretrained('shapes')
    groups, mask, star_or_none = torch.arange(128) % 64, torch.arange(128) % 3 == 0, torch.tensor([6, 10])
    ask = f"""import('./_static/model.js').then(m => m.predict({groups.tolist()}, {mask.int().tolist()}, 6))
        .then(all => all.map(x => [...x]))"""
    found = torch.tensor(page.evaluate(ask)).view(2, 64, 2, 64)
    both = (x.view(1, 64, 2).repeat(2, 1, 1) for x in (groups, mask))
    with torch.no_grad(): wanted = gen(*both, star_or_none)
    assert (found - wanted).abs().max() < 1e-3
    page.get_by_label('steps').fill('4')
    page.get_by_role('button', name='Draw').click()
    page.get_by_text(re.compile('A star, in 4 steps')).wait_for(timeout=60_000)
    assert page.locator('#draw-picture canvas').count() == 4
    assert page.get_by_text('step 4, 0 % hidden').is_visible()


def test_without_scripts_there_is_a_picture(served):
    page = served.open('play', java_script_enabled=False)
    assert page.locator('#flip-bits-still img').is_visible()
    assert not page.locator('#flip-bits').is_visible()


PRESS = """async n => {
    const box = document.getElementById('flip-bits'), times = []
    const buttons = [...box.querySelectorAll('.toggles button')]
    for (let i = 0; i < n; i++) {
        const shown = new Promise(done => box.addEventListener('shown', done, {once: true}))
        const start = performance.now()
        buttons[i % buttons.length].click()
        await shown
        await new Promise(requestAnimationFrame)
        times.push(performance.now() - start)
    }
    return times }"""


def latency(presses):
    "Milliseconds from the press of a bit to the frame that shows its picture, and until all is loaded."
    with chromium() as browser:
        page = opened(Site(browser, SITE))
        ready = page.evaluate('performance.now()')
        times = page.evaluate(PRESS, presses)
        weight = page.evaluate("""performance.getEntriesByType('resource')
            .reduce((sum, r) => sum + r.encodedBodySize, 0)""")
    return dict(median_ms=statistics.median(times), slowest_ms=max(times), presses=presses,
                ready_ms=ready, loaded_mb=weight / 1e6)


if __name__ == '__main__': print(json.dumps(latency(48)))      # of the site that was built last
