"""What only a GPU can show, in the few minutes that one may be at hand: `pytest -m cuda tests`.

It needs no network and ends with a table. Without a GPU these tests are skipped, and what can be shown
without one is: the same comparisons of float32 and bfloat16 on the CPU here, devices and waiting in
test_pretend.py."""
import os
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')      # sums in one order, where asked for
import pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from children import CONFIG, differing, losses, state, together, train
from maskbit.base.monitor import to_device
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.shapes import Shapes
from maskbit.base.trees import change
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.stage2.generator import Generator

GPU = torch.device('cuda')
cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here')]


def on_a_gpu(test):
    for mark in cuda: test = mark(test)
    return test


@pytest.fixture(autouse=True)
def exact():
    "Products in float32 are float32, and not TF32; memory as at the start."
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# --- both stages, on two devices and in two precisions ---

WHOLE = {'tokenizer': change(STAGE1['tiny'], {'loss.gan_start': 0, 'train.batch': 8,
                                              'loss.entropy_block': 8}),
         'generator': change(STAGE2['tiny'], {'model.dropout': 0.0, 'train.batch': 8})}


def first_step(kind, device, dtype):
    "({term: value}, {weight: gradient}) of a run's first step, in float32 on the CPU."
    from maskbit.stage1.tokenizer_training import TokenizerStage
    from maskbit.stage2.generator_training import GeneratorStage
    torch.manual_seed(0)
    stage = {'tokenizer': TokenizerStage, 'generator': GeneratorStage}[kind](WHOLE[kind], device)
    numbers = torch.arange(8)
    batch = Shapes(length=8).fetch(numbers, numbers) | {'n': numbers}
    if kind == 'generator':
        batch['indices'] = Tokenizer.from_pretrained('shapes').encode(batch.pop('images')).flatten(1)
    batch, terms, gradients = to_device(batch, device), {}, {}
    for name, part in stage.parts.items():
        if device.type == 'cuda': part.model.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
            loss, found = stage.loss(name, batch, 0)
        loss.backward()
        terms |= {k: float(v.detach()) for k, v in found.items()}
        gradients |= {f'{name}.{k}': p.grad.float().cpu() for k, p in part.model.named_parameters()}
        part.model.zero_grad()
    return terms, gradients


WATCHED = {'step', 'codes_used', 'perplexity', 'bit_lowest', 'bit_highest'}   # counts jump


def off(a, b):
    "The largest relative difference of two runs' losses."
    return max(abs(x[k] - y[k]) / (abs(x[k]) + 0.01) for x, y in zip(losses(a), losses(b), strict=True)
               for k in x.keys() - WATCHED)


def apart(a, b):
    "How far two first steps are apart: the furthest terms, relative; the gradients, as a share."
    (a, u), (b, v) = a, b
    terms = max(abs(a[k] - b[k]) / (abs(a[k]) + 0.01) for k in a)
    u, v = (torch.cat([g.flatten() for g in x.values()]) for x in (u, v))
    return {'terms': terms, 'gradients': float((u - v).norm() / u.norm())}


HOW = {('cpu', torch.bfloat16): (), ('cuda', torch.float32): cuda, ('cuda', torch.bfloat16): cuda}
#        on another device in float32           in bfloat16
FAR = {'tokenizer': ({'terms': 1e-3, 'gradients': 1e-2}, {'terms': 0.15, 'gradients': 0.4}),
       'generator': ({'terms': 1e-5, 'gradients': 1e-3}, {'terms': 1e-3, 'gradients': 0.05})}


@pytest.mark.parametrize('where, dtype', [pytest.param(*k, marks=m, id=f'{k[0]}-{str(k[1])[6:]}')
                                          for k, m in HOW.items()])
@pytest.mark.parametrize('kind', WHOLE)
def test_a_first_step_agrees(kind, where, dtype, figures):
    "Losses and gradients against those in float32 on the CPU."
    far = apart(first_step(kind, torch.device('cpu'), torch.float32),
                first_step(kind, torch.device(where), dtype))
    figures(**far)
    most = FAR[kind][dtype is torch.bfloat16]
    assert all(far[k] < most[k] for k in far), far
    assert far['gradients'] > 0, 'the same numbers: nothing was computed in another way'


# --- draws ---

@on_a_gpu
def test_draws_are_those_of_the_cpu():
    "Counters and masks, to the last bit; and tokens, where the logits are."
    from maskbit.base.counters import hash32, uniform
    from maskbit.stage2.masking import draw_mask
    from maskbit.stage2.sampling import sample_tokens
    n = torch.arange(2 ** 16) * 65_537
    assert torch.equal(hash32(3, 'a', n.to(GPU)).cpu(), hash32(3, 'a', n))
    assert torch.equal(uniform(3, 'a', n.to(GPU)).cpu(), uniform(3, 'a', n))
    there = draw_mask(5, n[:64].to(GPU), 256, 2).cpu()
    assert torch.equal(there, draw_mask(5, n[:64], 256, 2))
    gen = Generator.from_pretrained('shapes')
    torch.nn.init.zeros_(gen.head[-1].weight)       # every logit is its bias, whatever is known
    labels = torch.arange(8)
    tokens = sample_tokens(gen, labels, seed=1)
    assert torch.equal(sample_tokens(gen.to(GPU), labels, seed=1).cpu(), tokens)
    assert len(tokens.unique()) > 100


@on_a_gpu
def test_samples_are_those_of_the_cpu(figures):
    "The bundled generator draws the same tokens, but for a few that rounding decides."
    from maskbit.stage2.sampling import sample_tokens
    gen, labels = Generator.from_pretrained('shapes'), torch.arange(10)
    tokens = sample_tokens(gen, labels, seed=1)
    same = (sample_tokens(gen.to(GPU), labels, seed=1).cpu() == tokens).float().mean()
    figures(same_tokens=float(same))
    assert same > 0.9


@on_a_gpu
def test_tokens_are_those_of_the_cpu(figures):
    "The bundled tokenizer gives the same bits, and from the same tokens the same picture."
    tok, images = Tokenizer.from_pretrained('shapes'), Shapes(length=64).fetch(range(64), range(64))['images']
    tokens = tok.encode(images)
    pictures = tok.decode(tokens)
    tok.to(GPU, memory_format=torch.channels_last)
    there = tok.encode(images.to(GPU)).cpu()
    off = float((tok.decode(tokens).cpu() - pictures).abs().max())
    figures(same_tokens=float((there == tokens).float().mean()), largest_difference=off)
    assert (there == tokens).float().mean() > 0.999 and off < 1e-3


# --- runs ---

RUN = {'train.steps': 6, 'train.save_every': 3, 'train.keep': 3, 'train.log_every': 1,
       'optim.schedule': 'constant', 'optim.warmup': 0}


@pytest.fixture
def repeatable():
    "The same sums in the same order each time."
    cudnn = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    with sdpa_kernel(SDPBackend.MATH): yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = cudnn


@on_a_gpu
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kind', CONFIG)
def test_a_stopped_run_goes_on_to_the_last_bit(kind, precision, cache, tmp_path, repeatable):
    config = change(CONFIG[kind], RUN | {'train.precision': precision})
    train(kind, tmp_path/'whole', config, cache)
    train(kind, tmp_path/'halves', change(config, {'train.steps': 3}), cache)
    train(kind, tmp_path/'halves', config, cache)
    assert not differing(state(tmp_path/'whole', 6), state(tmp_path/'halves', 6))


@on_a_gpu
def test_pictures_lie_channels_last(cache, tmp_path, monkeypatch):
    "Batches and filters in training; what is saved is as any other."
    from maskbit.base import training
    from maskbit.base.pretrained import fingerprint
    step, seen = training.train_step, []
    def looked_at(accelerator, stage, ema, micros, *more):
        last = dict(memory_format=torch.channels_last)
        nets = [p.model for p in stage.parts.values()] + [ema.module]
        filters = [w for net in nets for w in net.parameters() if w.ndim == 4]
        seen.append(all(x.is_contiguous(**last) for x in [micros[0]['images'], *filters]))
        return step(accelerator, stage, ema, micros, *more)
    monkeypatch.setattr(training, 'train_step', looked_at)
    train('tokenizer', tmp_path, change(CONFIG['tokenizer'], RUN), cache)
    assert seen == [True] * 6
    there = Tokenizer.from_pretrained(tmp_path/'model').to(GPU, memory_format=torch.channels_last)
    assert fingerprint(there) == fingerprint(Tokenizer.from_pretrained(tmp_path/'model'))
    there.save_pretrained(tmp_path/'again')
    assert fingerprint(Tokenizer.from_pretrained(tmp_path/'again')) == fingerprint(there)


@on_a_gpu
@pytest.mark.parametrize('kind', CONFIG)
def test_no_step_waits(kind, cache, tmp_path, monkeypatch):
    "torch raises where the host would wait for the GPU; the first step may, which sets things up."
    from maskbit.base import training
    step = training.train_step
    def guarded(accelerator, stage, ema, micros, n, *more):
        if n: torch.cuda.set_sync_debug_mode('error')
        try: return step(accelerator, stage, ema, micros, n, *more)
        finally: torch.cuda.set_sync_debug_mode('default')
    monkeypatch.setattr(training, 'train_step', guarded)
    changes = RUN | ({'loss.gan_start': 0, 'loss.perceptual': 'shapes'} if kind == 'tokenizer' else {})
    train(kind, tmp_path, change(CONFIG[kind], changes), cache)
    assert len(losses(tmp_path)) == 6


class Guarded(list):
    "A list of the states of sampling: between the first and the last, the host must not wait."
    def __init__(self, steps): self.steps = steps

    def append(self, state):
        super().append(state)
        torch.cuda.set_sync_debug_mode('error' if len(self) < self.steps else 'default')


@on_a_gpu
@pytest.mark.parametrize('guidance', ['power-cosine', 'none'])
def test_no_step_of_sampling_waits(guidance):
    from maskbit.stage2.sampling import sample_tokens
    gen, states = Generator.from_pretrained('shapes').to(GPU), Guarded(8)
    cfg = change(gen.config.sample, {'steps': 8, 'guidance': guidance})
    try: sample_tokens(gen, torch.arange(10), cfg, states=states)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert len(states) == 8


@on_a_gpu
@pytest.mark.parametrize('kind', CONFIG)
def test_compiled_networks_do_the_same(kind, cache, tmp_path, figures):
    "Losses of a few steps, with `train.compile` and without."
    changes = RUN | ({'model.dropout': 0.0} if kind == 'generator' else {'loss.gan_start': 2})
    config = change(CONFIG[kind], changes | {'train.steps': 3, 'optim.lr': 1e-5})
    train(kind, tmp_path/'plain', config, cache)
    train(kind, tmp_path/'compiled', change(config, {'train.compile': True}), cache)
    far = off(tmp_path/'plain', tmp_path/'compiled')
    figures(terms=far)
    assert far < 1e-2


@on_a_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there is one GPU here, and two are needed')
@pytest.mark.parametrize('kind', CONFIG)
def test_two_gpus_do_what_one_does(kind, cache, tmp_path, figures):
    "One step with the same batch, by NCCL."
    changes = RUN | {'train.steps': 1, 'train.save_every': 1, 'train.batch': 8, 'train.microbatch': 8}
    more = {'model.dropout': 0.0} if kind == 'generator' else {'loss.gan_start': 0, 'loss.entropy_block': 0}
    config = change(CONFIG[kind], changes | more)
    assert together(kind, tmp_path/'two', config, cache) == [0, 0]
    train(kind, tmp_path/'one', config, cache)
    far = off(tmp_path/'one', tmp_path/'two')
    figures(terms=far)
    assert far < 1e-3


@on_a_gpu
def test_the_demo(tmp_path, figures):
    "From nothing to a report, with a few steps of each."
    from maskbit.use.demo import demo
    short = {'train.steps': 20, 'train.save_every': 20, 'optim.warmup': 2}
    found = demo(tmp_path, change(STAGE1['tiny'], short | {'loss.gan_start': 10}),
                 change(STAGE2['tiny'], short), images=128, count=40, quiet=True)
    figures(psnr=found['this demo']['psnr'], agreement_bundled=found['bundled']['agreement'])
    assert (tmp_path/'report.html').is_file() and found['bundled']['agreement'] > 0.9


# --- memory ---

@on_a_gpu
def test_sampling_halves_its_batch_until_it_fits(monkeypatch, figures):
    from maskbit.stage2 import sampling
    gen, tok = Generator.from_pretrained('shapes').to(GPU), Tokenizer.from_pretrained('shapes').to(GPU)
    draw, sizes = sampling.sample_tokens, []
    def counted(gen, labels, *more):
        sizes.append(len(labels))
        return draw(gen, labels, *more)
    monkeypatch.setattr(sampling, 'sample_tokens', counted)
    labels = torch.arange(1024) % 10
    wanted = sampling.sample(gen, tok, labels[:128], batch=128, steps=2)
    torch.cuda.empty_cache()
    room = 2 * torch.cuda.max_memory_allocated()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    sizes.clear()
    try: images = sampling.sample(gen, tok, labels, batch=1024, steps=2)
    finally: torch.cuda.set_per_process_memory_fraction(1.0)
    figures(first=sizes[0], last=sizes[-1])
    assert images.shape == (1024, 3, 32, 32) and images.isfinite().all()
    assert sizes[0] == 1024 and sizes[1] == 512 and sizes[-1] <= 512
    assert (images[:128] - wanted).abs().mean() < 0.05


MOST, LEAST = 1.25, 0.5      # of the planner's memory that a run may take, and takes


@on_a_gpu
@pytest.mark.parametrize('kind', CONFIG)
def test_the_planners_memory(kind, cache, tmp_path, figures):
    "The peak of a run of the paper's networks, against the estimate; weights need not be good."
    from maskbit.use.plan import memory
    size = {'train.batch': 4, 'train.microbatch': 4, 'train.steps': 2, 'train.precision': 'float32',
            'train.save_every': 2, 'loss.gan_start': 0} if kind == 'tokenizer' else {
            'train.batch': 8, 'train.microbatch': 8, 'train.steps': 2, 'train.precision': 'float32',
            'train.save_every': 2, 'model.side': 8, 'model.classes': 10}
    config = change({'tokenizer': STAGE1, 'generator': STAGE2}[kind]['paper-12bit'], size)
    data = None
    if kind == 'tokenizer':
        from torchvision.models import resnet50
        torch.save(resnet50().state_dict(), tmp_path/'resnet50.pth')
        config = change(config, {'loss.perceptual_file': str(tmp_path/'resnet50.pth'),
                                 'loss.entropy_block': 4})
        data = Shapes(256, length=8)
    fixed, each, _ = memory(kind, config)
    train(kind, tmp_path/'run', config, cache, data=data)
    peak, said = torch.cuda.max_memory_allocated(), fixed + each * config.train.microbatch
    figures(peak_gb=peak / 1e9, planned_gb=said / 1e9, share=peak / said)
    assert LEAST < peak / said < MOST
