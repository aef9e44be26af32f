"""Files that are damaged at random, and folders that are put together wrongly. Whoever reads them must say
so, or read what was written: nothing else, and no traceback."""
import collections, hashlib, json, os, random, shutil
import numpy as np
import pytest, torch
from children import CONFIG, train
from maskbit.base.presets import STAGE2
from maskbit.base.pretrained import fingerprint
from maskbit.base.results import read_results, record
from maskbit.base.runs import open_run
from maskbit.base.shapes import Shapes
from maskbit.base.shard_files import write_shards
from maskbit.base.shards import Shards
from maskbit.base.state import latest_checkpoint
from maskbit.base.trees import InputError, change
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.stage2.generator import Generator
from maskbit.stage2.token_cache import TokenCache, write_cache


def digest(*tensors):
    h = hashlib.sha256()
    for t in tensors: h.update(np.ascontiguousarray(t).tobytes())
    return h.hexdigest()


# Each target: how a folder of it is made, in two forms that differ, and what its reader makes of the folder.
def run_config(k): return change(CONFIG['generator'], {'train.steps': 6 + 2 * k})


def make_run(folder, k, cache): train('generator', folder/'run', run_config(k), cache)


def read_run(folder, said, k, cache):
    "The newest checkpoint, and the run's name for itself."
    tokens = TokenCache(cache)
    learned = {'model.tokenizer': tokens.tokenizer, 'model.class_names': tuple(map(str, tokens.classes))}
    config = change(run_config(k), learned)
    with open_run(folder/'run', config, tokens, said.append) as name: pass
    found = latest_checkpoint(folder/'run', name, said.append)
    if not found: return None
    step, tensors, scalars = found
    return step, {n: digest(v) for n, v in tensors.items()}, scalars


def make_model(folder, k, cache):
    config = change(STAGE2['tiny'].model, {'width': 32, 'heads': 2, 'depth': 1, 'mlp': 64})
    torch.manual_seed(k)
    Generator(config).save_pretrained(folder/'model', about={'data': f'None, of {k}.'})


def read_model(folder, said, k, cache):
    model = Generator.from_pretrained(folder/'model')
    return fingerprint(model), model.config, model.about


def make_cache(folder, k, cache):
    tok = Tokenizer.from_pretrained('shapes')
    write_cache(tok, Shapes(length=96, seed=k), folder/'cache', part=32, quiet=True)


def read_cache(folder, said, k, cache):
    c = TokenCache(folder/'cache')
    return digest(c.packed[:], c.labels), c.classes, c.bits, c.side, c.tokenizer


def make_shards(folder, k, cache):
    write_shards(cache.parent/'photos', folder/'shards', 5, seed=k, quiet=True, say=str)


def read_shards(folder, said, k, cache):
    data = Shards(str(folder/'shards'), 32, quiet=True, say=said.append)
    b = data.fetch(range(len(data)), range(len(data)))
    return digest(b['images'], b['labels']), data.classes


def make_rows(folder, k, cache):
    for seed in range(2): record('a/b', seed, {'x': k}, lambda: {'loss': 0.25 + seed}, folder)


def read_rows(folder, said, k, cache):
    if not (folder/'a/b-seed0.json').exists(): raise InputError('It would be measured.')
    return record('a/b', 0, {'x': k}, dict, folder), read_results('a', folder)['a/b'][:1]


TARGETS = {'runs and checkpoints': (make_run, read_run), 'models': (make_model, read_model),
           'token caches': (make_cache, read_cache), 'shards and indices': (make_shards, read_shards),
           'rows of results': (make_rows, read_rows)}


# What may happen to a file: a function of the file, the same file of another folder, and a generator.
def flip(file, other, rng):
    raw = bytearray(file.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file.write_bytes(raw)


def cut(file, other, rng): os.truncate(file, rng.randrange(file.stat().st_size))
def grow(file, other, rng): file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 99)))
def lose(file, other, rng): file.unlink()


def exchange(file, other, rng):
    "The same file of another; where there is none, a flipped bit."
    flip(file, other, rng) if other == file else shutil.copy(other, file)


def empty(file, other, rng): file.write_bytes(rng.choice([b'', b'{}', b'[]', b'null', b'7', b'\xff']))
def nest(file, other, rng): file.write_bytes(b'[' * 100_000)


def wipe(file, other, rng):
    raw = bytearray(file.read_bytes())
    at = rng.randrange(len(raw))
    raw[at:at + 512] = bytes(len(raw[at:at + 512]))
    file.write_bytes(raw)


def digit(file, other, rng):
    "Another number in a text."
    raw = bytearray(file.read_bytes())
    places = [i for i, c in enumerate(raw) if c in b'0123456789']
    raw[rng.choice(places)] = rng.choice(b'0123456789')
    file.write_bytes(raw)


def entry(file, other, rng):
    "One value fewer, or another one, anywhere in JSON."
    if file.suffix != '.json': return flip(file, other, rng)
    values = json.loads(file.read_text())
    inside = values
    while isinstance(inside, (dict, list)) and inside:
        key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        if not isinstance(inside[key], (dict, list)) or not inside[key] or rng.random() < 0.3:
            if rng.random() < 0.5: del inside[key]
            else: inside[key] = rng.choice([None, -1, 10 ** 30, 'x', [], {}, 0.5])
            break
        inside = inside[key]
    file.write_text(json.dumps(values))


# What may happen to a folder: a function of it, another one, and a generator.
def parts(folder): return sorted(p for p in folder.rglob('*') if p.is_dir() and (p/'manifest.json').is_file())


def add_file(folder, other, rng): (rng.choice(parts(folder))/'more.json').write_text('{}')


def lose_folder(folder, other, rng):
    "Not a checkpoint: a run that lost its newest whole continues from the one before, to the same end."
    some = [p for p in parts(folder) if p.parent.name != 'checkpoints']
    shutil.rmtree(rng.choice(some)) if some else add_file(folder, other, rng)


def swap_folders(folder, other, rng):
    a, b = rng.sample(parts(folder), 2) if len(parts(folder)) > 1 else parts(folder) * 2
    for x, y in ((a, folder/'x'), (b, a), (folder/'x', b)):
        if x.exists(): x.rename(y)


def take_folder(folder, other, rng):
    "One of several: all of them would be another thing, and whole."
    if len(parts(folder)) == 1: return add_file(folder, other, rng)
    there = rng.choice(parts(other))
    here = folder/there.relative_to(other)
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(there, here)


def rename_folder(folder, other, rng):
    old = rng.choice(parts(folder))
    old.rename(old.with_name(old.name[:-1] + '9'))


FILES = [flip, cut, grow, lose, exchange, empty, nest, wipe, digit, entry]
FOLDERS = [add_file, lose_folder, swap_folders, take_folder, rename_folder]


def damaged(folder, other, rng):
    "Do one thing to a folder; its name, and that of the file."
    if rng.random() < 0.25 and parts(folder):
        how = rng.choice(FOLDERS)
        how(folder, other, rng)
        return how.__name__, folder.name
    inside = [p for p in sorted(folder.rglob('*')) if p.is_file() and p.stat().st_size
              and p.name not in ('lock', 'log.jsonl', 'README.md') and 'locks' not in p.parts]
    file, how = rng.choice(inside), rng.choice(FILES)
    there = other/file.relative_to(folder)
    if how is exchange and file.suffix == '.json' and len(inside) == 2: there = inside[1 - inside.index(file)]
    how(file, there if there.exists() else file, rng)
    return how.__name__, file.name


@pytest.mark.parametrize('target', TARGETS)
def test_no_damage_is_silent(target, cache, photos, tmp_path, times, seed, fault, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    if not (cache.parent/'photos').exists(): shutil.copytree(photos, cache.parent/'photos')
    make, read = TARGETS[target]
    for k, name in enumerate(('whole', 'other')):
        (tmp_path/name).mkdir()
        make(tmp_path/name, k, cache)
    want, happened = read(tmp_path/'whole', [], 0, cache), collections.Counter()
    tried, bad = times(30, 400), []
    for k in range(tried):
        rng, folder, said = random.Random(f'{seed} {k}'), tmp_path/'damaged', []
        shutil.copytree(tmp_path/'whole', folder)
        what = damaged(folder, tmp_path/'other', rng)
        try: found = read(folder, said, 0, cache)
        except InputError: end = 'refused'
        except Exception as e: end, what = 'traceback', (*what, f'{type(e).__name__}: {e}')
        else: end = 'the same' if found == want else 'another, and said' if said else 'silent'
        happened[end] += 1
        if end in ('silent', 'traceback'): bad.append((k, end, *what))
        shutil.rmtree(folder)
    fault(f'damage to {target}', 'refused, or passed over and said, or without effect', tried=tried,
          silent=happened.pop('silent', 0), tracebacks=happened.pop('traceback', 0), **happened)
    assert not bad
