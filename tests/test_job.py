"""The main job through the command line: on a folder of photographs, stopped and continued, and with
everything wrong that can be."""
import json, os, signal, subprocess, sys, time
from dataclasses import replace
import pytest
from PIL import Image
from safetensors.torch import load_file
from conftest import SMALL, SMALL_GENERATOR
from maskbit.base.monitor import read_log
from maskbit.use.cli import main


def command(text, *more):
    "The command `maskbit`, with the words of a text and more of them."
    main([*text.split(), *more])


def same(a, b):
    "Are the weights of two runs the same?"
    return (a/'model/model.safetensors').read_bytes() == (b/'model/model.safetensors').read_bytes()


def test_folder_of_photographs(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command('train-tokenizer tiny --out t --data.images photos', *SMALL)
    said = capsys.readouterr().out
    assert '12 images, 3 files or folders left out.' in said and 'empty.jpg: empty file' in said
    command('tokenize --tokenizer t/model --data.images photos --out tokens --views 2')
    command('train-generator tiny --tokens tokens --out g', *SMALL_GENERATOR)
    models = '--generator g/model --tokenizer t/model'
    command(f'sample {models} --out grid.png --columns 3 --steps 4')
    width, height = Image.open('grid.png').size
    assert width > 3 * 129 + 1 and height == 2 * 129 + 1                  # names stand before the rows
    command(f'sample {models} --out one --columns 2 --steps 2 --labels right')
    assert sorted(p.name for p in (tmp_path/'one').iterdir()) == ['001-right-0000.png', '001-right-0001.png']
    config = json.loads((tmp_path/'g/model/config.json').read_text())
    assert config['class_names'] == ['left', 'right']
    how = '--tokenizer t/model --data.images photos --count 12 --networks shapes'
    command(f'evaluate {how} --out t.json')
    command(f'evaluate {how} --generator g/model --save drawn --cache cache --out g.json')
    of_t, of_g = (json.loads((tmp_path/f'{k}.json').read_text()) for k in 'tg')
    assert of_t['metrics']['images'] == of_g['metrics']['images'] == 12
    assert of_t['metrics']['psnr'] > 0 and of_g['metrics']['frechet_shapes'] > 0
    a, b = (r['settings']['reference']['hash'] for r in (of_t, of_g))
    assert a == b and len(list((tmp_path/'drawn/png').iterdir())) == 12
    capsys.readouterr()
    with pytest.raises(SystemExit) as e: command('compare t.json g.json')
    assert e.value.code == 1 and 'Not comparable' in capsys.readouterr().out
    command('convert --source g/model --out g.safetensors')
    assert 'prediction_layer.weight' in load_file('g.safetensors')


def test_one_folder_has_one_name_and_no_path_is_published(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ('photos', './photos/', str(photos)):
        command(f'train-tokenizer tiny --out t --data.images {folder}', *SMALL)
        command(f'tokenize --tokenizer t --data.images {folder} --out tokens')
    for file in ('README.md', 'about.json', 'config.json'):
        assert str(tmp_path) not in (tmp_path/'t/model'/file).read_text()
    assert json.loads((tmp_path/'t/model/about.json').read_text())['training']['data']['images'] == 'photos'


def test_a_finished_run_takes_more_steps(tmp_path, capsys):
    "The discriminator, which was to join after the end, joins now."
    def train(steps): command(f'train-tokenizer tiny --out {tmp_path}/t', *SMALL, '--train.steps', steps,
                              '--train.log_every', '1')
    train('3'); train('6')
    log = read_log(tmp_path/'t')
    assert [r['step'] for r in log] == [1, 2, 3, 4, 5, 6]
    assert ['discriminator' in r for r in log] == [False] * 3 + [True] * 3
    with pytest.raises(SystemExit): train('5')
    assert 'another train.steps' in capsys.readouterr().err


def test_a_training_starts_from_a_model(tmp_path, capsys):
    few = '--train.steps 1 --train.batch 8 --train.microbatch 8 --train.log_every 1 --optim.warmup 1'.split()
    for name, more in (('new', []), ('from', ['--start-from', 'shapes'])):
        command(f'train-tokenizer tiny --out {tmp_path}/{name}', *few, '--loss.perceptual', 'none', *more)
    new, started = (read_log(tmp_path/name)[0]['reconstruction'] for name in ('new', 'from'))
    assert 'A new run takes 100.0% of its weights from shapes.' in capsys.readouterr().out
    assert started < new / 4
    command(f'tokenize --tokenizer {tmp_path}/from --data.train_size 16 --out {tmp_path}/tokens')
    command(f'train-generator tiny --tokens {tmp_path}/tokens --out {tmp_path}/g --start-from shapes', *few,
            '--model.width', '192', '--model.heads', '6', '--model.mlp', '64')
    said = capsys.readouterr().out
    assert 'layers.0.mlp.0.weight' in said and 'start anew' in said


def test_progress_is_lines_where_there_is_no_terminal(tmp_path):
    words = f'-m maskbit train-tokenizer tiny --out {tmp_path}/t'.split()
    done = subprocess.run([sys.executable, *words, *SMALL], capture_output=True, text=True, check=True)
    assert '\r' not in done.stderr and 'step/s, reconstruction=' in done.stderr
    assert len(done.stderr.splitlines()) < 12


def test_no_sub_folders_means_one_class(photos, tmp_path):
    command(f'tokenize --tokenizer shapes --data.images {photos}/left --out {tmp_path}/tokens')
    from maskbit.stage2.token_cache import TokenCache
    assert TokenCache(tmp_path/'tokens').classes == ['left']


def test_a_stopped_run_continues_to_the_same_weights(tmp_path):
    whole, stopped, env = tmp_path/'whole', tmp_path/'stopped', os.environ | {'OMP_NUM_THREADS': '1'}
    def training(out):
        return [sys.executable, '-m', 'maskbit', 'train-tokenizer', 'tiny', '--out', str(out), *SMALL,
                '--train.steps', '40', '--loss.gan_start', '10']
    subprocess.run(training(whole), check=True, env=env, capture_output=True)
    heard = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = subprocess.Popen(training(stopped), env=env, **heard)
    deadline = time.time() + 120
    while len(list(stopped.glob('checkpoints/*'))) < 2 and time.time() < deadline: time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=60)
    assert not (stopped/'checkpoints/step-00000040').exists(), 'stopped too late to be a test'
    assert run.returncode == 130 and 'continues a training from its last checkpoint' in said
    subprocess.run(training(stopped), check=True, env=env, capture_output=True)
    assert same(whole, stopped)


def test_a_stopped_generator_continues_to_the_same_weights(tmp_path):
    command(f'tokenize --tokenizer shapes --out {tmp_path}/tokens --data.train_size 64')
    from maskbit.base.presets import STAGE2
    from maskbit.stage2.generator_training import train_generator
    from maskbit.stage2.token_cache import TokenCache
    c = STAGE2['tiny']
    c = replace(c, model=replace(c.model, width=32, heads=2, depth=1, mlp=64),
                train=replace(c.train, steps=6, batch=4, microbatch=2, save_every=2))
    cache = TokenCache(tmp_path/'tokens')
    train_generator(c, cache, tmp_path/'whole', quiet=True)

    class Interrupted(TokenCache):
        asked = 0
        def fetch(self, *args):
            self.asked += 1
            if self.asked > 7: raise KeyboardInterrupt
            return super().fetch(*args)

    with pytest.raises(KeyboardInterrupt):
        train_generator(c, Interrupted(tmp_path/'tokens'), tmp_path/'stopped', quiet=True)
    assert not (tmp_path/'stopped/checkpoints/step-00000006').exists()
    train_generator(c, cache, tmp_path/'stopped', quiet=True)
    assert same(tmp_path/'whole', tmp_path/'stopped')


WRONG = {
    'no folder': ('tokenize --tokenizer shapes --out x --data.images nowhere', 'nowhere: give a folder'),
    'no preset': ('train-tokenizer paper-11bit --out x', 'paper-11bit'),
    'no field': ('train-tokenizer tiny --out x --model.bit 10', '--model.bit'),
    'not a number': ('train-tokenizer tiny --out x --model.bits ten', 'ten'),
    'groups': ('train-generator tiny --tokens x --out y --model.groups 5', 'choose a divisor of 12'),
    'stride': ('train-tokenizer tiny --out x --model.resolution 30', 'choose a multiple of 4'),
    'no tokenizer': ('tokenize --tokenizer nowhere --out x', "There is no tokenizer 'nowhere'"),
    'no cache': ('train-generator tiny --tokens nowhere --out x', 'nowhere'),
    'no such label': ('sample --generator shapes --tokenizer shapes --out x.png --labels 10', '10'),
    'nothing released': ('convert --source maskbit_tokenizer_11bit --out x', 'maskbit_tokenizer_12bit'),
    'no command': ('trian-tokenizer tiny --out x', 'did you mean train-tokenizer?'),
    'no preset given': ('train-generator --tokens x --out y', 'Name a preset after maskbit train-generator'),
    'no such preset': ('train-tokenizer tinny --out x', 'did you mean tiny?'),
    'no such option': ('sample --generators shapes', 'did you mean --generator?'),
    'no out': ('sample --generator shapes --tokenizer shapes', 'maskbit sample needs --out'),
    'launch without --': ('launch --gpus 2 train-tokenizer tiny --out x', 'Put -- between'),
    'no such name': ('sample --generator shapes --tokenizer shapes --out x.png --labels hart', 'mean heart?'),
    'no such GPU': ('plan tokenizer tiny --gpu h101', 'did you mean H100?'),
    'no such field': ('plan generator tiny --model.depht 3', 'did you mean --model.depth?'),
    'no device': ('tokenize --tokenizer shapes --out x --device gpu', 'choose cuda'),
    'no start': ('train-tokenizer tiny --out x --start-from shaped', "There is no tokenizer 'shaped'"),
    'no picture': ('reconstruct nowhere.png', 'There is no file nowhere.png'),
    'too few': ('evaluate --tokenizer shapes --count 5', 'ask for a multiple of 10'),
    'no reference': ('evaluate --tokenizer shapes --generator shapes --reference nowhere.npz', 'nowhere.npz'),
    'other classes': (f'evaluate --tokenizer shapes --generator shapes --data.images {__file__}',
                      'There is no folder'),
    'no result': ('compare a.json b.json', 'a.json is no result'),
    'no inception': ('evaluate --tokenizer shapes --inception nowhere.pth', 'nowhere.pth'),
}


@pytest.mark.parametrize('words, says', WRONG.values(), ids=WRONG)
def test_one_sentence_that_says_what_to_do(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: command(words)
    assert e.value.code == 2
    said = capsys.readouterr()
    assert says in said.err and 'Traceback' not in said.err and said.err.count('\n') == 1
    assert not list(tmp_path.iterdir()), 'nothing may be written before the input is checked'


def test_an_empty_class_is_named(photos, tmp_path, capsys):
    (photos/'none').mkdir()
    with pytest.raises(SystemExit):
        command(f'tokenize --tokenizer shapes --out {tmp_path}/x --data.images {photos}')
    assert 'The class none' in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_loaded(tmp_path, capsys):
    command(f'train-tokenizer tiny --out {tmp_path}/t', *SMALL)
    file = tmp_path/'t/model/model.safetensors'
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(SystemExit):
        command(f'tokenize --tokenizer {tmp_path}/t/model --out {tmp_path}/x')
    assert 'model.safetensors' in capsys.readouterr().err


FULL = """
import resource, signal, sys
from maskbit.base.shapes import Shapes
from maskbit.use.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fetch = Shapes.fetch
def full_later(self, indices, numbers=None):
    if numbers[0] >= 12:                        # from step 4 on no file grows beyond 20 kB
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return fetch(self, indices, numbers)
Shapes.fetch = full_later
main(sys.argv[1:])
"""


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    "A limit on the size of files stands in for the full disk: the write fails half-way, as it would there."
    from maskbit.base.state import latest_checkpoint
    words = ['train-tokenizer', 'tiny', '--out', f'{tmp_path}/t', *SMALL]
    failed = subprocess.run([sys.executable, '-c', FULL, *words], capture_output=True, text=True)
    assert failed.returncode == 2 and 'Traceback' not in failed.stderr
    assert 'the last good checkpoint is step-00000002' in failed.stderr
    assert latest_checkpoint(tmp_path/'t')[0] == 2
    main(words)
    assert latest_checkpoint(tmp_path/'t')[0] == 6


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path/'file').touch()
    with pytest.raises(SystemExit): command(f'train-tokenizer tiny --out {tmp_path}/file/t', *SMALL)
    assert 'Cannot write to' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(f'tokenize --tokenizer shapes --out {tmp_path}/file/x --data.train_size 8')
    assert 'could not be read or written' in capsys.readouterr().err
