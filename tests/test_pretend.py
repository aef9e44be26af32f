"On a pretended GPU both stages do what they do on the CPU, and no step waits for a value."
import json, multiprocessing, traceback
import pytest, torch
from children import CONFIG, CONTEXT, losses, state, train
from maskbit.base.trees import change

backends = pytest.importorskip('torch.utils.backend_registration')
if not hasattr(backends, '_setup_privateuseone_for_python_backend'):
    pytest.skip('this torch has no devices made of Python', allow_module_level=True)

SHORT = {'train.steps': 6, 'train.log_every': 3, 'train.save_every': 3, 'train.keep': 3,
         'optim.warmup': 0, 'optim.lr': 1e-5, 'optim.schedule': 'constant'}
RUNS = {
    'lfq': ('tokenizer', {'loss.perceptual': 'shapes'}),
    'lfq, slices': ('tokenizer', {'train.microbatch': 2, 'loss.entropy_block': 2,
                                  'loss.perceptual': 'shapes-both',
                                  'loss.perceptual_size': 24}),
    'vq, patchgan': ('tokenizer', {
        'model.quantizer': 'vq', 'loss.gan_adaptive': True, 'loss.gan_loss': 'non-saturating',
        'discriminator.kind': 'patchgan', 'loss.gan_start': 2}),
    'vq, unquantized first': ('tokenizer', {'model.quantizer': 'vq', 'loss.unquantized': 4}),
    'lfq, ahead': ('tokenizer', {'loss.gan_start': 4, 'loss.gan_ahead': 2}),
    'taming': ('tokenizer', {'model.autoencoder': 'taming', 'loss.norm': 'l1', 'loss.entropy': 0.0}),
    'maskbit': ('generator', {'model.dropout': 0.0}),
    'maskbit, dropout': ('generator', {}),
    'maskbit, all': ('generator', {'model.dropout': 0.0, 'loss.over': 'all', 'model.norm': 'pre'}),
    'joint': ('generator', {'model.dropout': 0.0, 'model.head': 'joint'}),
    'maskgit': ('generator', {'model.dropout': 0.0, 'model.input': 'embedding'}),
    'maskbit, images': ('generator', {'model.dropout': 0.0})}


def make_gpu():
    "In a process of its own: a GPU, and what the project and its libraries would do on one."
    import pretend
    from maskbit.base import storage, training
    pretend.register()
    real, save_file = training._accelerator, storage.save_file
    def accelerator():
        found = real()
        found.state.device = torch.device('gpu')
        return found
    # it reads the memory of tensors, which these do not have
    def save(tensors, path): save_file({k: v.to('cpu') for k, v in tensors.items()}, path)
    training._accelerator, storage.save_file = accelerator, save
    return pretend.Gpu()


def child(what, file, args, kwargs):
    torch.set_num_threads(1)
    multiprocessing.set_start_method('fork', force=True)
    try:
        with make_gpu(): found = {'found': what(*args, **kwargs)}
    except Exception: found = {'failed': traceback.format_exc()[-4000:]}
    file.write_text(json.dumps(found))


def on_gpu(folder, what, *args, **kwargs):
    "What a function finds on a pretended GPU."
    folder.mkdir(exist_ok=True)
    p = CONTEXT.Process(target=child, args=(what, folder/'found.json', args, kwargs))
    p.start()
    p.join()
    found = json.loads((folder/'found.json').read_text())
    assert 'found' in found, found['failed']
    return found['found']


def each_kind():
    "{what is done: what it waits for, or is refused for}."
    from pretend import Gpu
    gpu, x, i = torch.device('gpu'), torch.rand(3, 4, device='gpu'), torch.tensor([0, 1])
    done = {
        'item': lambda: x.sum().item(), 'if': lambda: bool((x > 0).all()), 'list': x.tolist,
        'nonzero': x.nonzero, 'mask': lambda: x[x > 0], 'place': lambda: x[i], 'equal': lambda: x.equal(x),
        'there': lambda: torch.tensor([1.0], device=gpu), 'back': x.cpu,
        'sum': lambda: x + torch.ones(4), 'stack': lambda: torch.stack([x.sum(), torch.ones(())]),
        'into': lambda: torch.ones(()).add_(x.sum()), 'array': x.numpy,
        'fine': lambda: (x * torch.tensor(2.0)).masked_fill(x > 0, 0.0)[i.to(gpu, non_blocking=True)]}
    found = {}
    for name, act in done.items():
        Gpu.taken()
        try: act()
        except (RuntimeError, TypeError) as e: found[name] = str(e)
        else: found[name] = ''.join(Gpu.taken())
    return found


def test_the_pretended_gpu_sees_what_it_should(tmp_path):
    "Without this the tests below could not fail."
    found = on_gpu(tmp_path, each_kind)
    refused = {k for k, v in found.items() if 'two devices' in v or 'an array' in v}
    assert refused == {'sum', 'stack', 'into', 'array'}
    assert {k for k, v in found.items() if not v} == {'fine'}


def train_there(kind, run, config, cache, data, valid):
    "[what each step waited for]."
    from pretend import Gpu
    from maskbit.base import training
    step, waits = training.train_step, []
    def watched(*args):
        Gpu.taken()
        out = step(*args)
        waits.append(Gpu.taken())
        return out
    training.train_step = watched
    stop = {'train.steps': 3}
    if valid is None: train(kind, run, change(config, stop), cache, data=data)    # is continued
    train(kind, run, config, cache, data=data, valid=valid)
    return waits


def data_of(name):
    "Images, where they are encoded in the step; else what `train` takes."
    if name != 'maskbit, images': return None
    from maskbit.base.shapes import Shapes
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.token_cache import OnTheFly
    return OnTheFly(Tokenizer.from_pretrained('shapes'), Shapes(length=64))


@pytest.mark.parametrize('name', RUNS)
def test_a_run_there_is_the_run_here(name, cache, tmp_path):
    "Stopped and continued; losses and weights agree but for rounding, and no step waits."
    kind, changes = RUNS[name]
    config = change(CONFIG[kind], SHORT | changes)
    train(kind, tmp_path/'here', config, cache, data=data_of(name))
    waits = on_gpu(tmp_path/'there', train_there, kind, tmp_path/'there'/'run', config, cache,
                   data_of(name), None)
    assert waits == [{}] * 6
    if getattr(config.model, 'dropout', 0): return      # its draws are those of the device
    for a, b in zip(losses(tmp_path/'here'), losses(tmp_path/'there'/'run'), strict=True):
        assert a.keys() == b.keys()
        for k in a: assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-4), k
    a, b = state(tmp_path/'here', 6), state(tmp_path/'there'/'run', 6)
    assert a.keys() == b.keys()
    assert any(k.startswith('discriminator.') for k in a) == (kind == 'tokenizer')
    for k in a:
        if 'optimizer' not in k: torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=1e-3)


COMMANDS = {
    'sample': 'sample --generator shapes --tokenizer shapes --out OUT/samples.png --columns 1 '
              '--labels 0 1 --steps 3',
    'reconstruct': 'reconstruct IN/picture.png --out OUT/both.png',
    'edit': 'edit IN/picture.png --generator shapes --tokenizer shapes --out OUT/edits.png --rows 0 4 '
            '--columns 0 8 --labels 3 --steps 3',
    'tokenize': 'tokenize --tokenizer shapes --out OUT/tokens --data.train_size 40 --data.workers 0',
    'evaluate-tokenizer': 'evaluate --tokenizer shapes --count 20 --out OUT/t.json --quiet',
    'evaluate': 'evaluate --tokenizer shapes --generator shapes --count 20 --out OUT/g.json --quiet '
                '--steps 2 --floors 2 --cache OUT/cache'}


def command(words): # on a device that is called as the real one is
    from maskbit.use import cli, draw, jobs, measure
    for module in (draw, jobs, measure): module.device = lambda wanted='': 'gpu'
    cli.main(words)


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_there_does_what_it_does_here(name, tmp_path):
    "The files that it writes are the same to the last byte, but for the clock."
    from maskbit.base.shapes import Shapes
    from maskbit.base.storage import write_picture
    from maskbit.use.cli import main
    write_picture(tmp_path/'picture.png', Shapes(length=1).fetch([0], [0])['images'])
    def words(out): return COMMANDS[name].replace('OUT', str(out)).replace('IN', str(tmp_path)).split()
    main(words(tmp_path/'here'))
    on_gpu(tmp_path/'there', command, words(tmp_path/'there'))
    files = [p for p in (tmp_path/'here').rglob('*') if p.is_file() and p.parent.name != 'locks']
    assert files
    for a in files:
        b = tmp_path/'there'/a.relative_to(tmp_path/'here')
        if a.suffix == '.json' and a.parent == tmp_path/'here': assert report(a) == report(b)
        else: assert a.read_bytes() == b.read_bytes(), a.name


def report(file):
    found = json.loads(file.read_text())
    return {k: v for k, v in found.items() if k != 'provenance'}


@pytest.mark.parametrize('kind', CONFIG)
def test_a_run_there_is_evaluated(kind, cache, tmp_path):
    "Held-out metrics and pictures, as here; what is written down needs values, and may wait."
    from maskbit.base.shapes import Shapes
    from maskbit.stage2.token_cache import TokenCache
    valid = Shapes(16, 'validation', length=20) if kind == 'tokenizer' else TokenCache(cache)
    config = change(CONFIG[kind], {'train.steps': 2, 'train.eval_every': 1, 'train.eval_size': 20,
                                   'train.monitor': ('tensorboard',), 'optim.lr': 1e-5})
    if kind == 'generator': config = change(config, {'model.dropout': 0.0})
    train(kind, tmp_path/'here', config, cache, valid=valid)
    waits = on_gpu(tmp_path/'there', train_there, kind, tmp_path/'there'/'run', config, cache, None, valid)
    assert waits == [{}] * 2
    for a, b in zip(losses(tmp_path/'here'), losses(tmp_path/'there'/'run'), strict=True):
        assert any(k.startswith('eval/') for k in a)
        for k in a: assert a[k] == pytest.approx(b[k], rel=1e-3, abs=1e-4), k


def draw_there(labels, steps, **settings):
    "[what `sample_tokens` waits for with so many steps], and the tokens of the last time."
    from pretend import Gpu
    from maskbit.stage2.generator import Generator
    from maskbit.stage2.sampling import sample_tokens
    from maskbit.base.trees import change
    gen, waits = Generator.from_pretrained('shapes').to('gpu'), []
    for n in steps:
        Gpu.taken()
        cfg = change(gen.config.sample, settings | {'steps': n})
        tokens = sample_tokens(gen, torch.tensor(labels), cfg)
        waits.append(sum(Gpu.taken().values()))
    return waits, tokens.tolist()


@pytest.mark.parametrize('guidance', ['power-cosine', 'none'])
def test_no_step_of_sampling_waits(guidance, tmp_path):
    "However many steps, the host waits as often; and the tokens are those drawn here."
    from maskbit.stage2.generator import Generator
    from maskbit.stage2.sampling import sample_tokens
    waits, tokens = on_gpu(tmp_path, draw_there, [0, 3, 10], [2, 4, 8], guidance=guidance)
    gen = Generator.from_pretrained('shapes')
    cfg = change(gen.config.sample, {'steps': 8, 'guidance': guidance})
    assert tokens == sample_tokens(gen, torch.tensor([0, 3, 10]), cfg).tolist()
    assert len(set(waits)) == 1 and waits[0] < 12, waits


def draw_in_little_room(labels):
    "The batches that `sample` tries in the room of six pictures, and their pictures."
    from pretend import Gpu
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2 import sampling
    from maskbit.stage2.generator import Generator
    gen, tok = Generator.from_pretrained('shapes').to('gpu'), Tokenizer.from_pretrained('shapes').to('gpu')
    draw, sizes, empty = sampling.sample_tokens, [], Gpu.used
    def counted(gen, labels, *more):
        sizes.append(len(labels))
        return draw(gen, labels, *more)
    sampling.sample_tokens = counted
    Gpu.peak = empty
    sampling.sample(gen, tok, labels[:4], steps=2)
    Gpu.room = empty + (Gpu.peak - empty) * 6 // 4
    sizes.clear()
    images = sampling.sample(gen, tok, labels, batch=16, steps=2)
    return sizes, images.tolist()


def test_sampling_halves_its_batch_until_it_fits(tmp_path):
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.generator import Generator
    from maskbit.stage2.sampling import sample
    labels = [i % 10 for i in range(12)]
    sizes, images = on_gpu(tmp_path, draw_in_little_room, labels)
    assert sizes == [12, 8, 4, 4, 4]
    gen, tok = Generator.from_pretrained('shapes'), Tokenizer.from_pretrained('shapes')
    torch.testing.assert_close(torch.tensor(images), sample(gen, tok, labels, steps=2), atol=1e-4, rtol=0)


@pytest.fixture
def channels_last(monkeypatch):
    "Networks and pictures lie in memory as on a GPU."
    from maskbit.base import training
    to_device, resume, last = training.to_device, training.resume, torch.channels_last
    def moved(*args):
        return {k: v.contiguous(memory_format=last) if v.ndim == 4 else v
                for k, v in to_device(*args).items()}
    def resumed(stage, *more):
        for p in stage.parts.values(): p.model.to(memory_format=last)
        return resume(stage, *more)
    def on():
        monkeypatch.setattr(training, 'to_device', moved)
        monkeypatch.setattr(training, 'resume', resumed)
    return on


def test_channels_last_is_only_a_layout(channels_last, tmp_path):
    "A run and a stopped one, what is saved, and the name of a model."
    from maskbit.base.pretrained import fingerprint
    from maskbit.stage1.tokenizer import Tokenizer
    config = change(CONFIG['tokenizer'], SHORT)
    train('tokenizer', tmp_path/'plain', config, None)
    channels_last()
    model = train('tokenizer', tmp_path/'whole', config, None)
    assert model.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    train('tokenizer', tmp_path/'halves', change(config, {'train.steps': 3}), None)
    train('tokenizer', tmp_path/'halves', config, None)
    a, b = state(tmp_path/'whole', 6), state(tmp_path/'halves', 6)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    for k, v in state(tmp_path/'plain', 6).items():
        if 'optimizer' not in k: torch.testing.assert_close(a[k], v, atol=1e-4, rtol=1e-3)
    loaded = Tokenizer.from_pretrained(tmp_path/'whole'/'model')
    assert loaded.decoder.conv_in.weight.is_contiguous() and fingerprint(loaded) == fingerprint(model)


def test_every_preset_is_built_and_runs_without_memory():
    "The shapes of all networks fit, from the images to the logits."
    from maskbit.base.presets import STAGE1, STAGE2
    from maskbit.stage1.discriminator import DISCRIMINATORS
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.generator import make_generator
    with torch.device('meta'):
        for name, c in STAGE1.items():
            tok, images = Tokenizer(c.model), torch.empty(1, 3, c.model.resolution, c.model.resolution)
            latent = tok.encoder(images)
            assert latent.shape == (1, c.model.latent, c.model.side, c.model.side), name
            assert tok.decoder(latent).shape == images.shape
            assert DISCRIMINATORS[c.discriminator.kind](c.discriminator)(images).shape[1] == 1
        for name, c in STAGE2.items():
            g = c.model
            groups = torch.zeros(1, g.positions, g.groups, dtype=torch.long)
            logits = make_generator(g)(groups, groups.bool(), torch.zeros(1, dtype=torch.long))
            assert logits.shape == (1, g.positions, g.groups, g.codes) and logits.is_meta, name


def peaks_there(kind, run, config, cache, data):
    "[the most bytes that were held in each step]."
    from pretend import Gpu
    from maskbit.base import training
    step, peaks = training.train_step, []
    def watched(*args):
        Gpu.peak = Gpu.used
        out = step(*args)
        peaks.append(Gpu.peak)
        return out
    training.train_step = watched
    train(kind, run, config, cache, data=data)
    return peaks


@pytest.mark.parametrize('kind', CONFIG)
def test_the_planners_memory(kind, cache, tmp_path):
    "An estimate from above of the second step, in which the moments are there; an image's share is right."
    from maskbit.base.presets import STAGE1, STAGE2
    from maskbit.base.shapes import Shapes
    from maskbit.use.plan import memory
    tiny = {'tokenizer': change(STAGE1['tiny'], {'loss.gan_start': 0, 'loss.entropy_block': 4}),
            'generator': STAGE2['tiny']}[kind]
    peaks, said = {}, {}
    for n in (4, 8):
        config = change(tiny, {'train.batch': n, 'train.microbatch': n, 'train.steps': 2,
                               'train.precision': 'float32'})
        fixed, each, _ = memory(kind, config)
        data = Shapes(length=8) if kind == 'tokenizer' else None
        peaks[n] = on_gpu(tmp_path/str(n), peaks_there, kind, tmp_path/str(n)/'run', config, cache, data)[1]
        said[n] = fixed + n * each
        assert 0.7 < peaks[n] / said[n] < 1, (peaks, said)
    assert (peaks[8] - peaks[4]) / (said[8] - said[4]) == pytest.approx(1, abs=0.1)
