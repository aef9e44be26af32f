"""Writers that are killed just before a change of the disk, at changes drawn at random, half of them with
the file that was being written torn. `pytest tests/faults --full --record nbs/results/faults` does it all."""
import json, random, shutil, signal, time
import pytest
from children import CONFIG, differing, kill, losses, state, train
from maskbit.base.shapes import Shapes
from maskbit.base.storage import damage, write_atomic
from maskbit.stage1.tokenizer import Tokenizer


def training(kind, workers):
    def write(folder, cache): train(kind, folder/'run', CONFIG[kind], cache, workers)
    return write


def tokens(folder, cache):
    from maskbit.stage2.token_cache import write_cache
    write_cache(Tokenizer.from_pretrained('shapes'), Shapes(length=96), folder/'tokens', part=32, quiet=True)


def shards(folder, cache):
    from maskbit.base.shard_files import write_shards
    write_shards(cache.parent/'photos', folder/'shards', 5, quiet=True, say=str)


def rows(folder, cache):
    from maskbit.base.results import record
    for k in range(4): record('a/b', k, {'x': k}, lambda: {'loss': k / 3}, folder)


def convert(folder, cache):
    from maskbit.base.pretrained import find_model
    from maskbit.use.checkpoints import convert
    ours = find_model('shapes', 'tokenizer')
    for name in ('a.bin', 'b.safetensors', 'c'):
        if not (folder/name).exists(): convert(ours, folder/name)
    write_atomic(folder/'done', 'yes')        # clears up after a kill, as any later write does


def trained(folder):
    steps, run = 60, folder/'run'
    weights = (run/'model/model.safetensors').read_bytes()
    return {**state(run, steps)}, losses(run), weights


def same_run(a, b): return not differing(a[0], b[0]) and a[1:] == b[1:]


def written(folder):
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    return {k: v for k, v in files.items() if 'locks/' not in k}


def measured(folder):
    rows = [json.loads(p.read_text()) for p in sorted(folder.rglob('*.json'))]
    return [(r['name'], r['seed'], r['metrics'], r['config']) for r in rows]


def equal(a, b): return a == b


# how it writes, what is there in the end, when that is the same, changes until a kill, kills: few and many
KINDS = {
    'tokenizer': (training('tokenizer', 0), trained, same_run, 120, 4, 50),
    'generator, 2 loader processes': (training('generator', 2), trained, same_run, 120, 4, 60),
    'tokens': (tokens, written, equal, 40, 3, 35),
    'shards': (shards, written, equal, 40, 3, 25),
    'rows of results': (rows, measured, equal, 12, 3, 15),
    'converted models': (convert, written, equal, 20, 2, 15)}


def write(kind, *args): KINDS[kind][0](*args)


@pytest.fixture
def cache(cache, photos):
    "The token cache, with the photographs beside it."
    if not (cache.parent/'photos').exists(): shutil.copytree(photos, cache.parent/'photos')
    return cache


@pytest.mark.parametrize('kind', KINDS)
def test_a_killed_writer_ends_like_one_that_was_not(kind, cache, tmp_path, times, seed, fault):
    _, read, same, changes, few, many = KINDS[kind]
    rng, killed, whole, begun = random.Random(seed), 0, tmp_path/'whole', time.time()
    for folder in (whole, tmp_path/'killed'): folder.mkdir()
    assert kill(0, whole, 0, write, kind, whole, cache) == 0
    want, wrong, finished, folder = read(whole), 0, 0, tmp_path/'killed'

    def finish():
        assert kill(0, folder, 0, write, kind, folder, cache) == 0
        left = [p for p in folder.rglob('*') if p.name.endswith('.tmp')]
        return int(not same(read(folder), want) or bool(left))

    while killed < times(few, many):
        code = kill(rng.randint(1, changes), folder, rng.random(), write, kind, folder, cache)
        if code == -signal.SIGKILL:
            killed += 1
            for manifest in folder.rglob('manifest.json'):
                if not manifest.parent.name.endswith('.tmp'): wrong += bool(damage(manifest.parent))
            continue
        assert code == 0
        wrong += finish()
        finished += 1
        shutil.rmtree(folder)
        folder.mkdir()
    wrong += finish()
    fault(f'kill -9 inside a call that changes the disk, {kind}', 'what was in place was whole; the same '
          'command continued each time, and in the end every byte was that of the uninterrupted run',
          kills=killed, times_finished=finished + 1, different=wrong, seconds=round(time.time() - begun, 1))
    assert wrong == 0
