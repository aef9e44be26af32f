"What several tests share: small trainings as words of the command line, photographs, a token cache."
import json, re
from pathlib import Path
import matplotlib.cbook, pytest, torch
from PIL import Image
from chromium import chromium

torch.set_num_threads(1)
TRAIN = '--train.steps 6 --train.batch 4 --train.microbatch 4 --train.save_every 2'.split()
SMALL = [*'--model.resolution 32 --model.base_channels 8 --discriminator.base_channels 8'.split(),
         *'--loss.gan_start 3 --loss.perceptual none'.split(), *TRAIN]
SMALL_GENERATOR = [*'--model.width 32 --model.heads 2 --model.depth 1 --model.mlp 64'.split(), *TRAIN]


@pytest.fixture
def photos(tmp_path):
    "Twelve crops of a photograph in two classes, and three files that are not pictures."
    folder, file = tmp_path/'photos', matplotlib.cbook.get_sample_data('grace_hopper.jpg')
    with Image.open(file) as photo: photo = photo.convert('RGB').resize((128, 150))
    for k, c in enumerate(('left', 'right')):
        (folder/c).mkdir(parents=True)
        for i in range(6):
            photo.crop((60 * k, 15 * i, 60 * k + 60, 15 * i + 50)).save(folder/c/f'{i}.png')
    (folder/'left'/'notes.txt').write_text('not a picture')
    (folder/'left'/'empty.jpg').touch()
    whole = (folder/'right'/'0.png').read_bytes()
    (folder/'right'/'cut.png').write_bytes(whole[:len(whole) // 2])
    return folder


def pytest_addoption(parser):
    parser.addoption('--record', help='folder for what happened to the faults, one JSON file each')
    parser.addoption('--full', action='store_true', help='do to a run all that was ever done to one')
    parser.addoption('--count', type=int, help='how often each fault is tried, instead')
    parser.addoption('--seed', type=int, default=0, help='of what is drawn when faults are tried')


@pytest.fixture
def times(request):
    "How often to try a fault: a few times, or as often as asked for."
    def count(few, many):
        asked = request.config.getoption('--count')
        return asked or (many if request.config.getoption('--full') else few)
    return count


@pytest.fixture
def seed(request): return request.config.getoption('--seed')


@pytest.fixture
def fault(request):
    "Write down what happened to a fault, if that was asked for."
    def record(name, happened, **figures):
        from maskbit.base.storage import provenance
        if not (folder := request.config.getoption('--record')): return
        row = dict(name=name, happened=happened, test=request.node.nodeid, figures=figures,
                   provenance=provenance())
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = re.sub(r'\W+', '-', name.lower()).strip('-') + '.json'
        (Path(folder)/file).write_text(json.dumps(row, indent=1))
    return record


@pytest.fixture(scope='session')
def cache(tmp_path_factory):
    "A token cache of 64 Shapes."
    from maskbit.base.shapes import Shapes
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.token_cache import write_cache
    folder = tmp_path_factory.mktemp('cache')/'tokens'
    write_cache(Tokenizer.from_pretrained('shapes'), Shapes(length=64), folder, quiet=True)
    return folder


@pytest.fixture(scope='module')      # while it runs, no other code may use asyncio
def browser():
    with chromium() as b: yield b


@pytest.fixture
def figures(request):
    "Put figures of a test into the table at the end."
    def note(**found): request.node.user_properties.extend(found.items())
    return note


def pytest_terminal_summary(terminalreporter):
    "A table of what tests on a GPU measured, with the card's name."
    reports = [r for kind in ('passed', 'failed') for r in terminalreporter.stats.get(kind, [])]
    rows = [r for r in reports if r.when == 'call' and 'cuda' in r.keywords]
    if not rows: return
    terminalreporter.section(torch.cuda.get_device_name())
    for r in rows:
        shown = ', '.join(f'{k} {v:.4g}' for k, v in r.user_properties)
        terminalreporter.line(f'{r.outcome:7} {r.duration:6.1f} s  {r.nodeid.split("::")[1]}  {shown}')
