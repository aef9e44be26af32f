"Debian's chromium, driven by playwright. What needs it is skipped where it is missing, and says so."
import contextlib, shutil
import pytest

NAMES = 'chromium', 'chromium-browser', 'google-chrome'
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update']
READY = 'this is tested in a browser where '
PIP = READY + '`pip install playwright` was done'
APT = READY + 'chromium is installed (apt-get install chromium)'


@contextlib.contextmanager
def chromium():
    playwright = pytest.importorskip('playwright.sync_api', reason=PIP)
    if not CHROMIUM: pytest.skip(APT)
    with playwright.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()
