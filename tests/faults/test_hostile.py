"""Files by somebody who does not wish us well, disks that are full, and writers that meet. Wanted is one
sentence: nothing run, nothing written elsewhere, no traceback, no hour of work for 200 bytes."""
import contextlib, io, json, os, pickle, random, resource, shutil, signal, subprocess, time, traceback
import pytest
from children import CONTEXT
from conftest import SMALL, SMALL_GENERATOR
from maskbit.base.pretrained import find_model
from maskbit.base.storage import damage, sealed, write_atomic
from maskbit.base.trees import InputError
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.use.checkpoints import convert
from maskbit.use.cli import main


class Bomb:
    def __reduce__(self): return open, ('executed', 'w')


def huge(text):
    "The same JSON with every whole number a thousand million times as large."
    def grow(v):
        if isinstance(v, dict): return {k: grow(x) for k, x in v.items() if k != 'seal'}
        if isinstance(v, list): return [grow(x) for x in v]
        return v if isinstance(v, (bool, float, str, type(None))) else v * 10 ** 9 + 8
    try: return json.dumps(grow(json.loads(text))).encode()
    except ValueError: return (2 ** 62).to_bytes(8, 'little') + text[8:]


def resealed(text):
    "The same, sealed by somebody who knows how."
    try: return sealed(json.loads(huge(text))).encode()
    except ValueError: return huge(text)


CONTENTS = {
    'a pickle': lambda text: pickle.dumps(Bomb()), 'nothing': lambda text: b'',
    'a list': lambda text: b'[1]', 'no seal': lambda text: b'{}',
    'a hundred thousand brackets': lambda text: b'[' * 100_000,
    'no text': lambda text: b'\xff\xfe\x00',
    'a number of 5000 digits': lambda text: b'{"step": ' + b'9' * 5000 + b'}',
    'numbers too large': huge, 'numbers too large, sealed': resealed,
    'half': lambda text: text[:len(text) // 2],
    'an escape sequence': lambda text: b'{"\\u001b[2J\\n": "\x1b[2J"}'}

# the file that is hostile, and the command that reads it
PLACES = {
    'model/config.json': 'sample --generator shapes --tokenizer {d}/model --out {d}/out.png',
    'model/manifest.json': 'sample --generator shapes --tokenizer {d}/model --out {d}/out.png',
    'model/model.safetensors': 'sample --generator shapes --tokenizer {d}/model --out {d}/out.png',
    'weights.bin': 'convert --source {d}/weights.bin --out {d}/out',
    'tokens/about.json': 'train-generator tiny --tokens {d}/tokens --out {d}/out',
    'tokens/part-00000/labels.npy': 'train-generator tiny --tokens {d}/tokens --out {d}/out',
    'shards/index.json': 'train-tokenizer tiny --data.images {d}/shards --out {d}/out',
    'run/run.json': 'train-generator tiny --tokens {d}/good --out {d}/run'}


@pytest.fixture(scope='module')
def things(tmp_path_factory):
    "One of everything that is read."
    d = tmp_path_factory.mktemp('things')
    shutil.copytree(find_model('shapes', 'tokenizer'), d/'model')
    convert(d/'model', d/'weights.bin')
    for name in ('tokens', 'good'):
        command(f'tokenize --tokenizer shapes --out {d}/{name} --data.train_size 8')
    (d/'photos/one').mkdir(parents=True)
    from PIL import Image
    for k in range(4): Image.new('RGB', (40, 40), (60 * k, 0, 0)).save(d/f'photos/one/{k}.png')
    command(f'shards --images {d}/photos --out {d}/shards')
    command(f'train-generator tiny --tokens {d}/good --out {d}/run', *SMALL_GENERATOR)
    return d


def command(text, *more): main([*text.split(), *more])


@pytest.mark.parametrize('place', PLACES)
def test_a_hostile_file_is_one_sentence(place, things, tmp_path, capsys, monkeypatch, times, seed, fault):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    (tmp_path/'work').mkdir()
    monkeypatch.chdir(tmp_path/'work')
    presets = {'train-generator': SMALL_GENERATOR, 'train-tokenizer': SMALL}
    more = presets.get(PLACES[place].split()[0], [])
    names = random.Random(f'{seed} {place}').sample(list(CONTENTS), min(len(CONTENTS), times(2, 99)))
    slow, loud = 0.0, 0
    for name in names:
        content, d = CONTENTS[name], tmp_path/'d'
        shutil.copytree(things, d)
        (d/place).write_bytes(content((d/place).read_bytes()))
        before, begun = {p for p in d.rglob('*')}, time.time()
        with pytest.raises(SystemExit) as e: command(PLACES[place].format(d=d), *more)
        slow = max(slow, time.time() - begun)
        said = capsys.readouterr()
        assert e.value.code == 2 and 'Traceback' not in said.err, (name, said.err)
        loud += '\x1b' in said.err + said.out
        assert not list((tmp_path/'work').iterdir()), f'{name}: run, or written elsewhere'
        assert {p for p in d.rglob('*') if p.is_file()} <= before, f'{name}: something was written'
        shutil.rmtree(d)
    fault(f'hostile {place}', 'one sentence and exit code 2; nothing run, nothing written',
          files=len(names), executed=0, tracebacks=0, escape_sequences=loud, most_seconds=round(slow, 1))
    assert not loud


def test_weights_decide_how_large_a_model_may_be(tmp_path, fault):
    "A configuration of 200 bytes, in a folder without a manifest that somebody loads all the same."
    shutil.copytree(find_model('shapes', 'tokenizer'), tmp_path/'m')
    (tmp_path/'m/manifest.json').unlink()
    whole, tried = json.loads((tmp_path/'m/config.json').read_text()), 0
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2 ** 30, most))
    try:
        for field, values in {'blocks': (10 ** 9, 100), 'base_channels': (2 ** 40, 8192),
                              'bits': (10 ** 9, 24), 'resolution': (10 ** 12,),
                              'channel_mult': ([10 ** 9], [64] * 12, [])}.items():
            for value in values:
                (tmp_path/'m/config.json').write_text(json.dumps(whole | {field: value}))
                tried += 1
                with pytest.raises(InputError): Tokenizer.from_pretrained(tmp_path/'m', unchecked=True)
    finally: resource.setrlimit(resource.RLIMIT_AS, (most, most))
    fault('sizes that a configuration only claims',
          'refused, compared with the weights before memory is taken', tried=tried)


def refused(capsys, text, *more):
    with pytest.raises(SystemExit) as e: command(text, *more)
    assert e.value.code == 2
    return capsys.readouterr().err


def test_the_smallest_lies(things, tmp_path, capsys, fault):
    "One number in a description, a checkpoint under another name, shards over something else."
    d = tmp_path/'d'
    shutil.copytree(things, d)
    about = d/'tokens/about.json'
    about.write_text(about.read_text().replace('"bits": 12', '"bits": 14'))
    assert 'about.json is not what was written' in refused(
        capsys, f'train-generator tiny --tokens {d}/tokens --out {d}/out', *SMALL_GENERATOR)
    (d/'run/checkpoints/step-00000004').rename(d/'run/checkpoints/step-00000008')
    model = (d/'run/model/model.safetensors').read_bytes()
    command(f'train-generator tiny --tokens {d}/good --out {d}/run', *SMALL_GENERATOR)
    assert 'step-00000008 belongs to another step' in capsys.readouterr().out
    assert (d/'run/model/model.safetensors').read_bytes() == model
    shutil.copytree(d/'photos', d/'others')
    for out in ('model', 'shards', 'run/model'):
        assert 'would be lost' in refused(capsys, f'shards --images {d}/others --out {d}/{out}')
        assert damage(d/out) is None
    fault('small lies', 'a bit number in about.json, a renamed checkpoint, shards over other shards and '
          'over models: each named', lies=5)


def test_data_that_changed_between_stop_and_resume(things, tmp_path, capsys, fault):
    d, photo = tmp_path/'d', 'one/0.png'
    shutil.copytree(things, d)
    train = f'train-tokenizer tiny --data.images {d}/photos --out {d}/t', *SMALL
    command(*train)
    shutil.copy(d/'photos'/photo, d/'photos/one/new.png')
    assert 'classes one was 4 and is 5' in refused(capsys, *train)
    (d/'photos/one/new.png').rename(d/'photos'/photo)
    (d/'photos/one').rename(d/'photos/two')
    assert 'classes one was 4 and is None' in refused(capsys, *train)
    (d/'photos/two').rename(d/'photos/one')
    (d/'photos'/photo).write_bytes((d/'photos/one/1.png').read_bytes() + b'more')
    assert 'names and sizes was' in refused(capsys, *train)
    tokens = f'train-generator tiny --out {d}/run', *SMALL_GENERATOR
    command(f'tokenize --tokenizer shapes --out {d}/more --data.train_size 9')
    assert 'seal of the cache was' in refused(capsys, *tokens, '--tokens', f'{d}/more')
    fault('data that changed between stop and resume', 'a picture more, a class renamed, another size, '
          'another cache: refused, and said what', changes=4)


def on_a_full_disk(limit, words, tell):
    "A command whose files cannot grow beyond `limit` bytes; tells its exit code and what it said."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try: main(words)
        except SystemExit as e: tell.send((e.code, said.getvalue()))
        except BaseException: tell.send((1, traceback.format_exc()))


SAMPLE = 'sample --generator shapes --tokenizer shapes --labels 0 --columns 1 --steps 1'


@pytest.mark.parametrize('what', [
    'convert --source {m} --out {d}/a.bin', 'convert --source {m} --out {d}/a.safetensors',
    'convert --source {m} --out {d}/a', 'shards --images {p} --out {d}/a', SAMPLE + ' --out {d}/a.png'])
def test_a_full_disk_leaves_nothing(what, things, tmp_path, monkeypatch, fault):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))
    (tmp_path/'d').mkdir()
    words = what.format(m=find_model('shapes', 'tokenizer'), p=things/'photos', d=tmp_path/'d').split()
    for limit in (0, 300):
        get, tell = CONTEXT.Pipe(duplex=False)
        p = CONTEXT.Process(target=on_a_full_disk, args=(limit, words, tell))
        p.start()
        code, said = get.recv()
        p.join()
        assert code in (1, 2) and 'Traceback' not in said and 'maskbit: ' in said, said
        assert not list((tmp_path/'d').iterdir())
    fault(f'a full disk, {what.split()[0]} to {what.split("/")[-1]}', 'one sentence, and nothing left behind',
          limits=2, tracebacks=0)


def write_shards(images, out):
    from maskbit.base.shard_files import write_shards
    write_shards(images, out, 2, quiet=True, say=str)


def save_for_ever(folder):
    tok = Tokenizer.from_pretrained('shapes')
    while True: tok.save_pretrained(folder)


def test_two_writers_and_a_reader(things, tmp_path, times, seed, fault):
    rng, tried, out = random.Random(seed), times(2, 20), tmp_path/'shards'
    for _ in range(tried):
        several = [CONTEXT.Process(target=write_shards, args=(things/'photos', out)) for _ in range(3)]
        for p in several:
            p.start()
            time.sleep(rng.uniform(0, 0.02))
        for p in several: p.join()
        assert [p.exitcode for p in several] == [0, 0, 0] and damage(out) is None
        shutil.rmtree(out)
    writer, reads = CONTEXT.Process(target=save_for_ever, args=(tmp_path/'m',)), times(40, 400)
    writer.start()
    while not (tmp_path/'m').exists(): time.sleep(0.01)
    for _ in range(reads): Tokenizer.from_pretrained(tmp_path/'m')
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    Tokenizer.from_pretrained('shapes').save_pretrained(tmp_path/'m')
    assert not list(tmp_path.glob('.*'))
    fault('writers that meet, and a reader', 'three writers of one folder of shards all end with it whole; a '
          'reader of a model that is saved without a pause never hears of damage; nothing is left behind',
          threes=tried, reads=reads)


def test_a_planted_link_is_not_followed(tmp_path, capsys):
    (tmp_path/'precious').write_text('mine')
    for name in ('a.png', 'metrics.json'): (tmp_path/name).symlink_to(tmp_path/'precious')
    command(f'{SAMPLE} --out {tmp_path}/a.png')
    write_atomic(tmp_path/'metrics.json', '{}')
    assert (tmp_path/'precious').read_text() == 'mine' and not (tmp_path/'a.png').is_symlink()


def test_a_name_cannot_end_a_training(tmp_path):
    "What a worker prints is passed on and not believed; a name that reaches a message stays on its line."
    from maskbit.base.runs import StopSignal
    from maskbit.use.launch import _pass_on
    (tmp_path/'errors').touch()
    said = ['echo', 'Left out a\nmaskbit: x.txt: not an image.']
    with subprocess.Popen(said, stdout=subprocess.PIPE) as child, StopSignal() as signals:
        _pass_on(child, signals, tmp_path/'errors')
    assert child.returncode == 0
    assert str(InputError('a\nmaskbit: \x1b[2Jx.txt')) == 'a\\nmaskbit: \\x1b[2Jx.txt'
