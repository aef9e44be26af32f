"""Data that is far away, cut, altered or hostile, and writers that are killed.
`pytest tests/test_data.py --record nbs/results/faults` writes down what happened."""
import functools, http.server, io, multiprocessing, os, pickle, random, signal, subprocess, sys, tarfile
import threading, time
import pytest, torch
from PIL import Image
from conftest import SMALL, SMALL_GENERATOR
from maskbit.base.config import TrainConfig
from maskbit.base.loader import batches
from maskbit.base.shapes import Shapes
from maskbit.base.shard_files import scan_shard, write_shards
from maskbit.base.shards import Shards
from maskbit.base.trees import InputError
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.stage2.token_cache import TokenCache, write_cache
from maskbit.use.cli import main

fork = multiprocessing.get_context('fork')     # children that need not import torch again


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')


@pytest.fixture
def shards(photos, tmp_path):
    write_shards(photos, tmp_path/'shards', per_shard=5, quiet=True, say=lambda s: None)
    return tmp_path/'shards'


@pytest.fixture
def served(tmp_path):
    "The address that serves tmp_path."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def command(text, *more):
    "The command `maskbit`, with the words of a text and more of them."
    main([*text.split(), *more])


def train(out, images, *more):
    command(f'train-tokenizer tiny --out {out} --data.images', str(images), *SMALL, *more)


def weights(run): return (run/'model/model.safetensors').read_bytes()


def files(folder):
    "{name: bytes} of all files in a folder but the locks."
    found = [p for p in folder.rglob('*') if p.is_file() and p.parent.name != 'locks']
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def flipped(data, at, bit=1):
    "The same bytes but for one bit."
    return data[:at] + bytes([data[at] ^ bit]) + data[at + 1:]


def test_the_same_run_from_a_folder_of_shards_a_url_and_a_command(photos, tmp_path, served, capsys):
    command(f'shards --images {photos} --out {tmp_path}/shards --per-shard 5')
    said = capsys.readouterr().out
    assert '12 images of 2 classes are in 3 shards' in said and 'cut.png' in said
    train(tmp_path/'local', tmp_path/'shards')
    train(tmp_path/'url', f'{served}/shards', '--data.workers', '2')
    train(tmp_path/'pipe', f'pipe:cat {tmp_path}/shards/index.json')
    assert len(list((tmp_path/'home/maskbit').glob('*.tar'))) == 3
    assert weights(tmp_path/'local') == weights(tmp_path/'url') == weights(tmp_path/'pipe')


def test_shards_of_others_by_their_names(shards, tmp_path, served):
    "Without our index: a range of names, here and over the network; labels from .cls."
    (shards/'index.json').unlink()
    names = 'shards/{000000..000002}.tar'
    here, there = (Shards(f'{where}/{names}', 32, quiet=True) for where in (tmp_path, served))
    assert len(here) == len(there) == 12 and here.classes == ['0', '1']
    assert torch.equal(here.fetch([7], [7])['images'], there.fetch([7], [7])['images'])
    assert not (shards/'index.json').exists()
    assert len(Shards(str(shards), 32, quiet=True)) == 12 and (shards/'index.json').exists()
    with pytest.raises(InputError, match='000003.tar cannot be copied to .* .exit 22'):
        Shards(f'{served}/shards/{{000000..000003}}.tar', 32, quiet=True)


def test_a_class_is_a_folder_where_there_is_no_cls(photos, tmp_path):
    (tmp_path/'s').mkdir()
    with tarfile.open(tmp_path/'s'/'a.tar', 'w') as tar: tar.add(photos, 'set')
    data = Shards(str(tmp_path/'s'), 32, quiet=True, say=lambda s: None)
    assert data.classes == ['left', 'right'] and len(data) == 12


def test_cut_and_missing_shards_are_named(shards, tmp_path, fault):
    "With the index by their size, without it by how they end."
    os.truncate(shards/'000001.tar', (shards/'000001.tar').stat().st_size // 3)
    (shards/'000002.tar').unlink()
    says = '2 of the 3 shards of .* .000001.tar has .*, 000002.tar is missing'
    with pytest.raises(InputError, match=says): Shards(str(shards), 32)
    (shards/'index.json').unlink()
    says = '2 of 3 shards cannot be used .000001.tar: .*000002.tar: '
    with pytest.raises(InputError, match=says):
        Shards(f'{shards}/{{000000..000002}}.tar', 32, quiet=True)
    assert not list((tmp_path/'home').rglob('*.json'))
    fault('shard cut or missing', 'named with its size when the data set is opened, '
          'before anything is trained; no index is made of it')


def test_a_shard_cut_anywhere_is_noticed(shards, tmp_path, fault):
    whole, silent, cuts = (shards/'000000.tar').read_bytes(), 0, 300
    want = scan_shard(shards/'000000.tar', print, decode=False)
    for k in range(cuts):
        (tmp_path/'cut.tar').write_bytes(whole[:random.Random(k).randrange(len(whole))])
        try: silent += scan_shard(tmp_path/'cut.tar', lambda *a: None, decode=False) != want
        except InputError: pass
    assert silent == 0
    fault('shard of others, cut anywhere', 'refused, or cut in the padding and complete',
          cuts=cuts, silently_short=silent)


def test_a_flipped_bit_is_noticed(shards, fault):
    data, path, flips, refused = Shards(str(shards), 32), shards/'000000.tar', 300, 0
    whole, indices = path.read_bytes(), range(5)
    want = data.fetch(indices, indices)['images']
    for k in range(flips):
        path.write_bytes(flipped(whole, random.Random(k).randrange(len(whole)), 1 << k % 8))
        try: assert torch.equal(data.fetch(indices, indices)['images'], want)
        except InputError: refused += 1
    assert refused > flips // 2
    fault('shard with a flipped bit', 'refused when a picture with it is read; elsewhere in the file it '
          'does not matter', flips=flips, refused=refused, other_pictures=0)


class Bomb:
    def __reduce__(self): return open, ('executed', 'w')


def file(image, kind):
    "A picture as the bytes of a file."
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


GOOD = file(Image.new('RGB', (40, 40), 'red'), 'JPEG')
SCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file'
MEMBERS = {'ok.jpg': GOOD, 'ok.cls': b'1',
           '../up.jpg': GOOD, '../up.cls': b'1', '/tmp/abs.jpg': GOOD,
           'run.pkl': pickle.dumps(Bomb()), 'run.pth': pickle.dumps(Bomb()),
           'run.pyd': b'open("executed", "w")',
           'bomb.png': file(Image.new('1', (20_000, 20_000)), 'PNG'), 'bomb.cls': b'1',
           'script.jpg': SCRIPT, 'huge.cls': b'9' * 40, 'e\x1b[2J.jpg': GOOD}
SPECIAL = {'link.jpg': tarfile.SYMTYPE, 'hard.jpg': tarfile.LNKTYPE,
           'dev.jpg': tarfile.CHRTYPE, 'fifo.jpg': tarfile.FIFOTYPE}


def write_hostile(path):
    "A tar file of which one picture is good."
    with tarfile.open(path, 'w') as tar:
        for name, data in MEMBERS.items():
            m = tarfile.TarInfo(name)
            m.size = len(data)
            tar.addfile(m, io.BytesIO(data))
        for name, kind in SPECIAL.items():
            m = tarfile.TarInfo(name)
            m.type, m.linkname = kind, '/etc/passwd'
            tar.addfile(m)


def test_hostile_members_are_left_out(tmp_path, monkeypatch, fault):
    for name in 's', 'work': (tmp_path/name).mkdir()
    monkeypatch.chdir(tmp_path/'work')
    write_hostile(tmp_path/'s/a.tar')
    before, said = {p for p in tmp_path.rglob('*')}, []
    data = Shards(str(tmp_path/'s'), 32, quiet=True, say=said.append)
    assert len(data) == 1 and data.fetch([0], [0])['labels'].tolist() == [1]
    left = sum(int(part.split()[0]) for part in said[-1].split('indexed: ')[1].split(', '))
    counted = len(MEMBERS) + len(SPECIAL) - 3       # ok.jpg, ok.cls, and bomb.cls, whose picture counts
    assert left == counted and not any('\x1b' in line for line in said)
    written = {p.name for p in set(tmp_path.rglob('*')) - before}
    assert written <= {'index.json', 'home', 'maskbit'} | {p.name for p in tmp_path.rglob('*.lock')}
    monkeypatch.undo()
    fault('hostile members', '.. and absolute names, links, devices, pickles, a decompression bomb, a '
          'script named .jpg: left out and counted; none run, nothing written outside the folder',
          members=len(MEMBERS) + len(SPECIAL), left_out=left, used=1)


@pytest.mark.parametrize('workers', ['0', '2'])
def test_an_altered_shard_stops_the_run_and_the_right_one_continues_it(shards, tmp_path, capsys, workers,
                                                                       fault):
    train(tmp_path/'whole', shards)
    right = {p: p.read_bytes() for p in shards.glob('*.tar')}
    for p, data in right.items(): p.write_bytes(flipped(data, data.index(b'IDAT') + 9))
    with pytest.raises(SystemExit) as e: train(tmp_path/'stopped', shards, '--data.workers', workers)
    said = capsys.readouterr().err
    assert e.value.code == 2 and 'Traceback' not in said
    last = said.splitlines()[-1]
    assert last.startswith('maskbit: ') and 'was altered' in last
    words = f'-m maskbit train-tokenizer tiny --out {tmp_path}/stopped --data.images {shards}'.split()
    again = [sys.executable, *words, *SMALL, '--data.workers', workers]
    ended = subprocess.run(again, capture_output=True, timeout=120)         # and its loaders with it
    assert ended.returncode == 2
    for p, data in right.items(): p.write_bytes(data)
    train(tmp_path/'stopped', shards, '--data.workers', workers)
    assert weights(tmp_path/'stopped') == weights(tmp_path/'whole')
    fault('altered shard in a run', 'the run stops with a sentence that names it; with the right file '
          'the same command continues to the same weights', exit_code=e.value.code)


def test_a_bad_copy_in_the_cache_is_fetched_again(shards, tmp_path, served, fault):
    data = Shards(f'{served}/shards', 32)
    want = data.fetch(range(12), range(12))['images']
    for p in (tmp_path/'home/maskbit').glob('*.tar'): p.write_bytes(bytes(p.stat().st_size))
    assert torch.equal(data.fetch(range(12), range(12))['images'], want)
    fault('local copy of a shard, altered', 'fetched again; the same pictures', shards=3)


def test_the_cache_of_shards_stays_small(shards, tmp_path, served, monkeypatch):
    "Room for one shard of three, and two workers that fetch them from under each other."
    monkeypatch.setattr('maskbit.base.shards._KEEP', 1)
    config = TrainConfig(steps=9, batch=4, microbatch=4)
    def seen(source, workers):
        return torch.cat([b['images'] for b in batches(Shards(source, 32), config, workers=workers)])
    assert torch.equal(seen(f'{served}/shards', 2), seen(str(shards), 0))
    assert len(list((tmp_path/'home/maskbit').glob('*.tar'))) == 1


def test_a_killed_writer_of_shards_leaves_nothing_that_looks_finished(photos, tmp_path, monkeypatch,
                                                                      fault):
    out, unfinished, addfile = tmp_path/'shards', tmp_path/'shards.maskbit.tmp', tarfile.TarFile.addfile
    monkeypatch.setattr(tarfile.TarFile, 'addfile', lambda *args: (time.sleep(0.05), addfile(*args)))
    child = fork.Process(target=write_shards, args=(photos, out, 5), kwargs=dict(quiet=True, say=str))
    child.start()
    while not (unfinished/'000001.tar').exists(): time.sleep(0.01)
    child.kill()
    child.join()
    assert not out.exists()
    monkeypatch.undo()
    write_shards(photos, out, 5, quiet=True, say=str)
    assert len(Shards(str(out), 32)) == 12 and not unfinished.exists()
    fault('kill -9 while shards are written', 'no folder of shards; the same command writes it whole')


def write(folder, workers=0):
    torch.set_num_threads(1)
    tok, data = Tokenizer.from_pretrained('shapes'), Shapes(length=400)
    write_cache(tok, data, folder, part=32, batch=8, quiet=True, say=str, workers=workers)


def test_a_killed_tokenization_continues(tmp_path, fault):
    write(tmp_path/'whole')
    want, left = files(tmp_path/'whole'), []
    for k in range(8):
        child = fork.Process(target=write, args=(tmp_path/'killed',))
        child.start()
        time.sleep(random.Random(k).uniform(0.1, 1.0))
        child.kill()
        child.join()
        left.append(len(list((tmp_path/'killed').glob('part-?????'))))
        if left[-1] < 13:
            with pytest.raises(InputError): TokenCache(tmp_path/'killed')
    assert left[0] < 13, 'killed too late to be a test'
    write(tmp_path/'killed', workers=2)
    assert files(tmp_path/'killed') == want
    fault('kill -9 while tokens are written', 'refused as unfinished until the same command has finished '
          'it; then every file equals that of the uninterrupted run',
          kills=len(left), parts=13, finished_after_each=left)


def test_processes_share_the_parts_and_do_those_of_one_that_dies(tmp_path, fault):
    write(tmp_path/'one')
    children = [fork.Process(target=write, args=(tmp_path/'three',)) for _ in range(3)]
    for c in children: c.start()
    while not list((tmp_path/'three').glob('part-?????.maskbit.tmp')): time.sleep(0.005)
    children[0].kill()
    for c in children: c.join()
    assert [c.exitcode for c in children] == [-signal.SIGKILL, 0, 0]
    assert files(tmp_path/'three') == files(tmp_path/'one')
    fault('one of three writers of tokens is killed',
          'the other two write its parts; every file equals that of one process')


def test_a_damaged_part_is_named_and_made_again(tmp_path, fault):
    one, flips = tmp_path/'one', 30
    write(one)
    want = files(one)
    for k in range(flips):
        name = random.Random(k).choice([n for n in want if 'part' in n])
        data, at = want[name], random.Random(k).randrange(len(want[name]))
        (one/name).write_bytes(data[:at] if k % 2 else flipped(data, at))
        with pytest.raises(InputError, match=name.split('/')[0]): TokenCache(one)
        if k % 10 == 0:
            write(one)
            assert files(one) == want
        else: (one/name).write_bytes(data)
    fault('token cache, cut or altered',
          'refused, the part named; the same command makes that part again',
          damaged=flips, noticed=flips)


def test_ranks_of_one_torchrun_share_the_parts(tmp_path):
    words = 'tokenize --tokenizer shapes --data.train_size 40 --out'
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2']
    subprocess.run([*torchrun, '-m', 'maskbit', *words.split(), f'{tmp_path}/two'],
                   check=True, capture_output=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    command(words, f'{tmp_path}/one')
    assert files(tmp_path/'two') == files(tmp_path/'one')


def test_a_run_refuses_the_cache_of_another_tokenizer(tmp_path, capsys):
    train(tmp_path/'t', 'shapes', '--data.train_size', '64', '--model.channel_mult', '1', '2', '2')
    ours, other, few = 'shapes', f'{tmp_path}/t/model', '--data.train_size 64'
    for name, tokenizer in {'a': ours, 'b': other}.items():
        command(f'tokenize --tokenizer {tokenizer} --out {tmp_path}/{name} {few}')
    def generator(source): command(f'train-generator tiny --out {tmp_path}/g {source}', *SMALL_GENERATOR)
    generator(f'--tokens {tmp_path}/a')
    for source in f'--tokens {tmp_path}/b', f'--tokenizer {other} {few}':
        with pytest.raises(SystemExit): generator(source)
        assert 'another model.tokenizer' in capsys.readouterr().err
    with pytest.raises(SystemExit): generator('')
    assert 'give --tokens, or else --tokenizer' in capsys.readouterr().err
    with pytest.raises(SystemExit): command(f'tokenize --tokenizer {other} --out {tmp_path}/a {few}')
    assert 'another tokenizer' in capsys.readouterr().err


def test_a_generator_learns_from_images_too(tmp_path):
    command(f'tokenize --tokenizer shapes --out {tmp_path}/tokens --data.train_size 64')
    def generator(source): command(f'train-generator tiny {source}', *SMALL_GENERATOR)
    generator(f'--out {tmp_path}/cached --tokens {tmp_path}/tokens')
    generator(f'--out {tmp_path}/fly --tokenizer shapes --data.train_size 64 --data.workers 2')
    assert weights(tmp_path/'cached') == weights(tmp_path/'fly')


def test_a_plan(capsys):
    command('plan tokenizer tiny --gpus 2 --gpu H100')
    assert '32 = 2 GPUs x 16 images x 1 slices' in capsys.readouterr().out
    with pytest.raises(SystemExit): command('plan generator tiny --gpus 7')
    assert 'choose a multiple of 7' in capsys.readouterr().err
