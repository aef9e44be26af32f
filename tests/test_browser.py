"""The explorers in a real browser: JupyterLab on localhost, Debian's chromium, and what the page shows
against what the classes compute."""
import base64, contextlib, io, os, re, socket, statistics, subprocess, sys, tempfile, time
import urllib.request
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from chromium import PIP, chromium
from maskbit.stage2.sampling import to_uint8
from maskbit.use.explore import explorer, write_notebook
from maskbit.use.marking import png
from maskbit.use.widgets import read_upload

playwright = pytest.importorskip('playwright.sync_api', reason=PIP)


def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]


def private(folder):
    "The environment of a JupyterLab that has its settings in FOLDER, and asks no questions."
    names = ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'IPYTHONDIR',
             'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')
    extension = folder/'.JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension'
    extension.mkdir(parents=True)
    quiet = extension/'notification.jupyterlab-settings'
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    return os.environ | {k: str(folder/f'.{k}') for k in names} | {'OMP_NUM_THREADS': '1'}


def wait_for(server, url, log):
    "Until the server answers."
    for _ in range(300):
        try: return urllib.request.urlopen(url, timeout=2)
        except OSError: time.sleep(0.2)
        assert server.poll() is None, log.read_text()


@contextlib.contextmanager
def served(folder):
    "`maskbit explore bits` and the notebooks of the other explorers; gives the address of each."
    port, token = free_port(), 'a-token-for-the-tests'
    for kind in ('sampling', 'editing'): write_notebook(kind, folder)
    write_notebook('neighbours', folder, count=200)
    lab = (f'--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token={token} '
           '--LabApp.expose_app_in_browser=True')
    explore = [sys.executable, '-m', 'maskbit', 'explore', 'bits', '--out', str(folder), f'--lab={lab}']
    log = folder/'.log'
    with open(log, 'w') as f:
        server = subprocess.Popen(explore, stdout=f, stderr=f, cwd=folder, env=private(folder))
    try:
        wait_for(server, f'http://127.0.0.1:{port}/api?token={token}', log)
        yield lambda kind: f'http://127.0.0.1:{port}/lab/tree/{kind}.ipynb?token={token}&reset'
    finally: server.terminate(); server.wait(30)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    with served(tmp_path_factory.mktemp('explore')) as address: yield address


IDLE = """(c => c && c.isReady && c.session.kernel && c.session.kernel.status === 'idle')(
    window.jupyterapp?.shell.currentWidget?.sessionContext)"""
FIGURES = """all => all.map(f => [f.querySelector('figcaption').innerText,
                             f.querySelector('img').src.split(',')[1]])"""
WIDE = """() => {
    const area = document.querySelector('.jp-OutputArea').getBoundingClientRect()
    const right = Math.min(innerWidth, area.right)
    const parts = 'figure, canvas, button, .widget-slider, .widget-dropdown, .widget-text, .widget-label'
    return [...document.querySelectorAll(parts)]
        .filter(e => e.closest('.jp-OutputArea-output'))
        .filter(e => e.getBoundingClientRect().right > right + 1 || e.scrollWidth > e.clientWidth + 1)
        .map(e => e.outerHTML.slice(0, 200)) }"""


def pixels(data): # a PNG file in base 64
    "(3, H, W) uint8."
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(data))))).permute(2, 0, 1)


class Page:
    "An explorer's notebook in the browser, with all its cells run."
    def __init__(self, browser, address):
        self.page = page = browser.new_page(viewport=dict(width=1280, height=900))
        page.goto(address)
        page.wait_for_function(IDLE, timeout=60_000)
        page.locator('.jp-CodeCell .cm-content').first.click()
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector('figure img', timeout=60_000)

    def figures(self):
        "{caption: (3, H, W) uint8} as the page shows it."
        found = self.page.locator('figure').evaluate_all(FIGURES)
        return {caption: pixels(data) for caption, data in found}

    def shows(self, pictures):
        "Wait until the page shows these pictures of a class, pixel for pixel."
        wanted, until = {c: to_uint8(im) for c, im in pictures.items()}, time.time() + 15
        while True:
            seen = self.figures()
            missing = seen.keys() ^ wanted.keys()
            wrong = [c for c in seen.keys() & wanted.keys() if not torch.equal(seen[c], wanted[c])]
            if not missing and not wrong: return
            assert time.time() < until, f'not as computed: {missing or wrong}; on the page: {list(seen)}'
            time.sleep(0.05)

    def says(self, words):
        said = self.page.locator('p[role=status]', has_text=re.compile(re.escape(words)))
        said.wait_for(timeout=20_000)

    def drag(self, first, last, side=8):
        "Press the mouse on a token, (row, column) of side x side, and let it go on another."
        box = self.page.locator('canvas').bounding_box()
        across, down = box['width'] / side, box['height'] / side
        points = [(box['x'] + (c + .5) * across, box['y'] + (r + .5) * down) for r, c in (first, last)]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        self.page.mouse.move(*points[1], steps=5)
        self.page.mouse.up()

    def press(self, name): self.page.get_by_role('button', name=name, exact=True).click()

    def choose(self, name, value): self.page.get_by_label(name, exact=True).select_option(value)

    def slider(self, name):
        return self.page.locator('.widget-slider', has=self.page.get_by_text(name, exact=True))

    def slide(self, name, *keys, handle=0):
        """Move a slider by keyboard, at the pace of a person: a key that is pressed before the kernel has
        answered the last one can be lost."""
        knob = self.slider(name).locator('.noUi-handle').nth(handle)
        knob.focus()
        for key in keys:
            before = knob.get_attribute('aria-valuenow')
            self.page.keyboard.press(key)
            playwright.expect(knob).not_to_have_attribute('aria-valuenow', before)
            self.page.wait_for_timeout(200)

    def upload(self, name, content):
        button = self.page.get_by_role('button', name=re.compile('Upload a picture'))
        with self.page.expect_file_chooser() as chooser: button.click()
        file = dict(name=name, mimeType='application/octet-stream', buffer=content)
        chooser.value.set_files(file)

    def shot(self, kind):
        "With SHOTS=folder, the picture of the explorer that the book shows."
        if 'SHOTS' not in os.environ: return
        self.page.set_viewport_size(dict(width=1280, height=1200))
        self.page.wait_for_timeout(500)
        figure = self.page.locator('figure')
        whole = self.page.locator('.jp-OutputArea-output', has=figure).screenshot()
        few = Image.open(io.BytesIO(whole)).convert('RGB').quantize(128)
        few.save(f'{os.environ["SHOTS"]}/explorer-{kind}.png', optimize=True)

    def fits(self, kind):
        "At both widths, nothing of the explorer reaches beyond its cell and no label is cut short."
        for width in (1280, 800):
            self.page.set_viewport_size(dict(width=width, height=900))
            self.page.wait_for_timeout(500)
            shots = os.environ.get('SHOTS')
            if shots: self.page.screenshot(path=f'{shots}/{kind}-{width}.png')
            assert self.page.evaluate(WIDE) == []


@pytest.fixture
def opened(browser, lab):
    pages = []
    def open_page(kind): pages.append(Page(browser, lab(kind))); return pages[-1]
    yield open_page
    for p in pages:
        p.page.evaluate('window.jupyterapp.serviceManager.sessions.shutdownAll()')
        p.page.close()


def upload_mine(page, here):
    "Give the same new picture, of another size, to the page and to the class."
    y, x = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 48), indexing='ij')
    content = png(torch.stack([y, x, (y - x).abs()]))
    page.upload('mine.png', content)
    here.add('mine.png', read_upload('mine.png', content, here.tokenizer.config.resolution))


def refuses_a_letter(page):
    page.upload('letter.txt', b'Dear reader')
    page.says('letter.txt is not an image that can be read')


def test_bits(opened):
    page, here = opened('bits'), explorer('bits')
    now = dict(towards='picture 1')
    page.shows(here.pictures('picture 1', **now))
    page.press('bit 3')
    page.shows(here.pictures('picture 1', bits=(3,), **now))

    page.page.get_by_role('button', name='bit 7', exact=True).focus()
    page.page.keyboard.press('Space')
    now |= dict(bits=(3, 7))
    page.shows(here.pictures('picture 1', **now))

    side = here.side
    page.drag((side // 4, 0), (side - 1, side - 2), side)
    now |= dict(marked=[side * r + c for r in range(side // 4, side) for c in range(side - 1)])
    page.shows(here.pictures('picture 1', **now))

    page.shot('bits')
    page.choose('towards', 'picture 2')
    page.slide('walk, %', *['PageUp'] * 3)
    percent = int(page.slider('walk, %').locator('.widget-readout').inner_text())
    assert percent > 0
    now |= dict(towards='picture 2', percent=percent)
    page.shows(here.pictures('picture 1', **now))

    page.page.get_by_label('every bit alone').check()
    now |= dict(singles=True)
    page.shows(here.pictures('picture 1', **now))
    refuses_a_letter(page)
    page.shows(here.pictures('picture 1', **now))
    upload_mine(page, here)
    page.shows(here.pictures('mine.png', **now))

    page.press('Save picture and tokens')
    page.says('Saved flipped.png and flipped.npy.')
    page.press('Save picture and tokens')
    page.says('choose another name')
    page.fits('bits')


def test_sampling(opened):
    page, here = opened('sampling'), explorer('sampling')
    page.shows(here.pictures())
    page.choose('class', 'star')
    page.shows(here.pictures(label=6))
    page.shot('sampling')
    page.slide('steps', 'ArrowLeft', 'ArrowLeft')
    page.shows(here.pictures(label=6, steps=14))
    page.slide('guidance', 'Home')
    page.shows(here.pictures(label=6, steps=14, guidance_scale=0.0))
    page.slide('steps', 'End')
    page.press('Stop')
    page.says('Stopped after')
    page.slide('steps', 'Home')
    page.shows(here.pictures(label=6, steps=1, guidance_scale=0.0))
    page.fits('sampling')


def test_neighbours(opened):
    page, here = opened('neighbours'), explorer('neighbours', count=200)
    page.shows(here.pictures('sample 1'))
    page.slide('neighbour', 'ArrowRight', 'ArrowRight')
    page.shows(here.pictures('sample 1', neighbour=3))
    page.choose('nearest by', 'perception')
    page.shows(here.pictures('sample 1', 'perception', 3))
    page.shot('neighbours')
    page.choose('picture', 'sample 5')
    page.shows(here.pictures('sample 5', 'perception', 3))
    refuses_a_letter(page)
    upload_mine(page, here)
    page.shows(here.pictures('mine.png', 'perception', 3))
    page.fits('neighbours')


def test_editing(opened):
    page, here = opened('editing'), explorer('editing')
    page.shows(here.before('picture 1'))
    page.drag((1, 2), (1, 2))
    page.shows(here.before('picture 1', [10]))
    page.drag((0, 4), (7, 1))                                  # a drag to the left
    page.drag((7, 4), (0, 4))                                  # begun on a marked token: unmarks
    middle = [8 * r + c for r in range(8) for c in (1, 2, 3)]
    page.shows(here.before('picture 1', middle))
    for _ in range(3): page.page.keyboard.press('ArrowLeft')   # from the end of the last drag
    for key in ('ArrowLeft', 'Shift+ArrowDown', 'Space'): page.page.keyboard.press(key)
    page.shows(here.before('picture 1', sorted(middle + [0])))
    page.page.get_by_text('row 2, column 1: not marked; 25 of 64 are').wait_for(timeout=20_000)
    page.page.keyboard.down('Shift')
    for _ in range(6): page.page.keyboard.press('ArrowDown')
    page.page.keyboard.up('Shift')
    left = [8 * r + c for r in range(8) for c in range(4)]
    page.shows(here.before('picture 1', left))
    page.press('keep bits 0 to 5')
    page.choose('class', 'ring')
    page.shows(here.before('picture 1', left, [0]))
    page.press('Draw')
    page.shows(here.pictures('picture 1', left, [0], label=1))
    page.shot('editing')
    upload_mine(page, here)
    page.shows(here.before('mine.png', left, [0]))
    page.fits('editing')


PRESS = """async n => {
    const buttons = [...document.querySelectorAll('.widget-toggle-button')], times = []
    const picture = () => document.querySelectorAll('figure img')[2]
    const changed = before => new Promise(done => {
        const look = () => {
            const im = picture()
            requestAnimationFrame(im && im.src !== before && im.complete ? done : look)
        }
        look() })
    for (let i = 0; i < n; i++) {
        const before = picture().src, start = performance.now()
        buttons[i % buttons.length].click()
        await changed(before)
        times.push(performance.now() - start)
        await new Promise(done => setTimeout(done, 200))
    }
    return times }"""


def latency(presses):
    """Milliseconds from the press of a toggle to the frame that shows the new picture, and those of
    `update` alone."""
    with tempfile.TemporaryDirectory() as d, served(Path(d)) as address, chromium() as b:
        pressed = Page(b, address('bits')).page.evaluate(PRESS, presses)
    here, times = explorer('bits'), []
    here.show()
    for i in range(presses):
        start = time.perf_counter()
        button = here.inputs['bits'].children[i % here.bits]
        button.value = not button.value
        times.append(1000 * (time.perf_counter() - start))
    return dict(median_ms=statistics.median(pressed), slowest_ms=max(pressed), presses=presses,
                update_ms=statistics.median(times))


if __name__ == '__main__':      # measures: nbs/results/explore
    from maskbit.base.results import record
    torch.set_num_threads(1)
    config = dict(explorer='bits', tokenizer='photos', presses=48)
    print(record('explore/latency', 0, config, lambda: latency(48))['metrics'])
