"What people have in their folders, by kind: taken rightly, or left out by name."
import io, os, resource, sys, warnings
import numpy as np, pytest, torch
from conftest import SMALL
from PIL import Image
from maskbit.base.config import DataConfig
from maskbit.base.data import open_data
from maskbit.base.images import ImageFolder, scan, walk
from maskbit.base.pixels import augmentation, read_rgb
from maskbit.base.trees import InputError
from maskbit.use.cli import main


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch): monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'home'))


def picture(path, size=(40, 30), **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, 'teal').save(path, **how)
    return path


def found(folder, **how):
    "(names of the pictures, classes, what was said)."
    said = []
    paths, _, classes, _ = scan(folder, quiet=True, say=said.append, **how)
    return [str(p.relative_to(folder)) for p in paths], classes, '\n'.join(said)


def test_links_are_followed_once(tmp_path):
    root = tmp_path/'set'
    for name in ('cat/1', 'dog/1', 'dog/2'): picture(root/f'{name}.png')
    picture(tmp_path/'disk/deep/3.png')
    picture(tmp_path/'disk/4.png')
    (root/'cat/more').symlink_to(tmp_path/'disk')              # a linked folder inside a class
    (root/'bird').symlink_to(tmp_path/'disk2')                 # nowhere
    (root/'cat/gone.png').symlink_to(tmp_path/'gone.png')      # nowhere
    (root/'ape').symlink_to(root/'dog')                        # a class twice, sorted before it
    (root/'cat/up').symlink_to(root)                           # a circle
    (root/'cat/self').symlink_to(root/'cat/self')
    (tmp_path/'disk/back').symlink_to(tmp_path/'disk')
    (root/'dog/linked.png').symlink_to(tmp_path/'disk/4.png')  # a linked file is a file
    names, classes, said = found(root)
    assert names == ['cat/1.png', 'cat/more/4.png', 'cat/more/deep/3.png',
                     'dog/1.png', 'dog/2.png', 'dog/linked.png']
    assert classes == ['cat', 'dog']
    for name in ('bird', 'cat/gone.png', 'cat/self'):
        assert f'Left out {name}: a link to nowhere.' in said
    for name in ('ape', 'cat/up', 'cat/more/back'):
        assert f'Left out {name}: a folder that is read already.' in said


def test_what_programs_hid_is_not_trained_on(tmp_path):
    hidden = ['cat/.ipynb_checkpoints/1.png', 'cat/.thumbnails/1.png', 'cat/@eaDir/1.png',
              'cat/.1.png', '.git/1.png', '__MACOSX/cat/1.png', 'dog/__MACOSX/1.png']
    for name in ('cat/1.png', 'dog/1.png', *hidden): picture(tmp_path/'set'/name)
    names, classes, said = found(tmp_path/'set')
    assert (names, classes) == (['cat/1.png', 'dog/1.png'], ['cat', 'dog'])
    assert said.count(': hidden.') == len(hidden)


def test_a_pipe_is_not_opened(tmp_path):
    picture(tmp_path/'set/1.png')
    os.mkfifo(tmp_path/'set/2.png')
    names, _, said = found(tmp_path/'set')
    assert names == ['1.png'] and 'Left out 2.png: not a file.' in said


def test_numbers_are_sorted_as_numbers(tmp_path):
    for name in ('10', '2', '1', '100', 'x9', 'x10', '007'): picture(tmp_path/'set'/name/'1.png')
    assert found(tmp_path/'set')[1] == ['1', '2', '007', '10', '100', 'x9', 'x10']


NAMES = [b'caf\xe9.png', 'café.png'.encode(), b'\x1b[2J.png', b'a\nb.png', '日本.png'.encode(),
         b'-rf.png', b'\xff\xfe.txt', b'a b.jpg', '\u202egnp.png'.encode()]


def test_any_name_is_said_on_any_terminal(tmp_path, monkeypatch):
    for folder in (b'set/good', b'set/\xe9l\xe8ve', 'set/élève'.encode()):
        os.makedirs(os.path.join(os.fsencode(tmp_path), folder))
        picture(tmp_path/os.fsdecode(folder)/'1.png')
    for name in NAMES: (tmp_path/'set/good'/os.fsdecode(name)).write_bytes(b'nothing')
    _, classes, said = found(tmp_path/'set')
    assert said.isprintable() or all(line.isprintable() for line in said.split('\n'))
    assert said.count('Left out') == len(NAMES) and all(c.isprintable() for c in classes)
    for code in ('ascii', 'latin-1', 'utf-8'):
        monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), code))
        main(['shards', '--images', f'{tmp_path}/set', '--out', f'{tmp_path}/élèves {code}'])
        sys.stdout.flush()
        printed = sys.stdout.buffer.getvalue().decode(code)
        assert printed.count('Left out') == len(NAMES) and '3 images of 3 classes' in printed


def test_many_of_one_kind_are_counted(tmp_path):
    picture(tmp_path/'set/1.png')
    for i in range(50): (tmp_path/'set'/f'{i}.txt').touch()
    said = found(tmp_path/'set')[2]
    assert said.count('Left out') == 11 and 'Left out 40 more: not an image.' in said


def test_a_scan_remembers(tmp_path, monkeypatch):
    looked = []
    def fault(path):
        looked.append(path.name)
        return 'broken' if path.name == '3.png' else None
    monkeypatch.setattr('maskbit.base.images._fault', fault)
    for i in range(5): picture(tmp_path/'set'/f'{i}.png')
    def looks():
        looked.clear()
        assert len(found(tmp_path/'set')[0]) == len(list((tmp_path/'set').iterdir())) - 1
        return sorted(looked)
    assert len(looks()) == 5 and looks() == []
    picture(tmp_path/'set/2.png', (41, 30))
    picture(tmp_path/'set/7.png')
    os.utime(tmp_path/'set/4.png', ns=(1, 1))
    assert looks() == ['2.png', '4.png', '7.png'] and looks() == []
    (notes,) = (tmp_path/'home/maskbit').glob('seen-*.json')
    for broken in (b'', b'[1]', b'{"eyes": 3}', b'\xff', notes.read_bytes()[:-9]):
        notes.write_bytes(broken)
        assert len(looks()) == 6 and looks() == []
    monkeypatch.setattr('maskbit.base.images._eyes', lambda: 'another Pillow')
    assert len(looks()) == 6 and looks() == []
    monkeypatch.setenv('XDG_CACHE_HOME', '/proc/nowhere')        # a disk that cannot be written
    assert len(looks()) == 6 and len(looks()) == 6


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    "A line of 4 million pixels asked for 12 GB; a black square of 9,400 took 1.8 GB."
    def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10      # MB
    def png(mode, *size):
        out = io.BytesIO()
        Image.new(mode, size).save(out, 'png')
        assert len(out.getvalue()) < 2e5
        return out
    small = [png('1', 1, 4_000_000), png('1', 4_000_000, 1)]
    large = {png('L', 9400, 9400): '337 MB', png('1', 14_000, 14_000): 'exceeds limit'}
    before = most()
    for file in small:
        im = read_rgb(file)
        for kind in ('eval', 'stage1', 'stage2'):
            assert augmentation(kind, 256)(im).shape == (3, 256, 256)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')         # Pillow's own, at half of its limit
        for file, says in large.items():
            with pytest.raises(ValueError, match=says): read_rgb(file)
    assert most() - before < 300


def test_a_photograph_is_unpacked_small(tmp_path):
    "In training a draft is enough, in evaluation every pixel counts."
    noise = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((2000, 1500), Image.Resampling.BICUBIC)
    (tmp_path/'set').mkdir()
    photo.save(tmp_path/'set/photo.jpg', quality=95)
    train, evaluation = (ImageFolder(tmp_path/'set', 64, k, quiet=True) for k in ('stage2', 'eval'))
    assert train.read(0).size == (250, 188) and evaluation.read(0).size == (2000, 1500)
    small = read_rgb(tmp_path/'set/photo.jpg', 128).resize((64, 48))
    error = np.abs(np.asarray(small, float) - np.asarray(photo.resize((64, 48)), float)).mean()
    assert error < 2, error


def test_evaluation_pixels_are_those_of_torchvision(photos):
    from torchvision.transforms import v2
    plain = v2.Compose([v2.ToImage(), v2.Resize(32, v2.InterpolationMode.BILINEAR, antialias=True),
                        v2.CenterCrop(32), v2.ToDtype(torch.float32, scale=True)])
    data = open_data(DataConfig(str(photos)), 32, 'eval', quiet=True)
    for i, path in enumerate(data.paths):
        assert torch.equal(data.image(i, 0), plain(Image.open(path).convert('RGB')))


def test_stage_two_is_bicubic_and_can_be_as_released(photos, tmp_path):
    (tmp_path/'wide').mkdir()
    for path in photos.glob('left/?.png'):
        read_rgb(path).resize((160, 120)).save(tmp_path/'wide'/path.name)
    views = {}
    for crop in ('square', 'released'):
        data = open_data(DataConfig(f'{tmp_path}/wide', crop=crop), 32, 'stage2', quiet=True)
        views[crop] = len({data.image(0, n).numpy().tobytes() for n in range(40)})
    assert views['square'] == 40 and views['released'] == 2, views     # 4:3: the middle, mirrored
    words = ['tokenize', '--tokenizer', 'shapes', '--data.images', str(photos), '--out']
    main([*words, f'{tmp_path}/a'])
    main([*words, f'{tmp_path}/b', '--data.interpolation', 'bilinear', '--data.workers', '0'])
    tokens = [(tmp_path/name/'part-00000'/'tokens.npy').read_bytes() for name in 'ab']
    about = (tmp_path/'a/about.json').read_text()
    assert '"bicubic"' in about and tokens[0] != tokens[1]


def test_a_training_says_what_it_learns_from(photos, tmp_path, capsys):
    words = ['train-tokenizer', 'tiny', '--out', f'{tmp_path}/t', '--data.images', str(photos)]
    main([*words, *SMALL])
    assert '12 pictures of 2 classes: left (6), right (6).' in capsys.readouterr().out


def test_prepared_photographs_are_the_same_set(photos, tmp_path, capsys):
    words = ['prepare', '--images', str(photos), '--resolution', '32', '--out']
    main([*words, f'{tmp_path}/small'])
    assert '12 pictures are in' in capsys.readouterr().out
    big, small = (ImageFolder(f, 32, 'eval', quiet=True) for f in (photos, tmp_path/'small'))
    assert small.classes == big.classes and torch.equal(small.targets, big.targets)
    assert {min(read_rgb(p).size) for p in small.paths} == {36}
    assert (small.fetch(range(12), range(12))['images']
            - big.fetch(range(12), range(12))['images']).abs().mean() < 0.02
    with pytest.raises(SystemExit): main([*words, f'{tmp_path}/small'])
    with pytest.raises(SystemExit): main([*words, f'{photos}/small'])
    assert len(list(walk(tmp_path/'small', print))) == 12


def test_an_upload_says_what_is_wrong():
    from maskbit.use.widgets import read_upload
    def png(*size):
        out = io.BytesIO()
        Image.new('1', size).save(out, 'png')
        return out.getvalue()
    with pytest.raises(InputError, match='337 MB'): read_upload('big.png', png(9400, 9400), 32)
    assert read_upload('line.png', png(1, 300_000), 32).shape == (3, 32, 32)
