"Two processes together do what one process does with the whole batch."
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from children import CONFIG, differing, losses, state, together, train
from maskbit.stage1.codebook import VQ
from maskbit.base.trees import change
from maskbit.stage1.lfq import LFQ

QUANTIZERS = {'lfq': lambda: LFQ(6), 'vq': lambda: VQ(4, 6)}
# pictures of a block, of twelve: six on each of two processes
BLOCKS = {'all pictures': 0, 'on one process': 2, 'across, shared': 4, 'across, all': 12}


def entropy_step(name, x, block):
    "Entropy loss of a linear layer's latents, and its gradient with respect to the layer."
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(5, 6), QUANTIZERS[name]()
    losses = quantizer(layer(x).mT[..., None], 0.1, block).losses      # (B, 6, places, 1)
    loss = losses['token_entropy'] - losses['mean_entropy']
    loss.backward()
    return loss.detach(), layer.weight.grad


def worker(rank, x, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    both = {(name, kind): entropy_step(name, x.chunk(2)[rank], block)
            for name in QUANTIZERS for kind, block in BLOCKS.items()}
    for pair in both.values():
        for t in pair:                       # what DistributedDataParallel does to gradients
            dist.all_reduce(t)
            t /= 2
    if rank == 0: torch.save(both, f'{folder}/both.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def pictures(): return torch.randn(12, 8, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope='module')
def both(pictures, tmp_path_factory):
    "{quantizer, kind of block: loss and gradient} of two processes."
    folder = tmp_path_factory.mktemp('both')
    mp.spawn(worker, (pictures, str(folder)), nprocs=2)
    return torch.load(folder/'both.pt', weights_only=True)


def close(a, b): torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize('kind', BLOCKS)
@pytest.mark.parametrize('name', QUANTIZERS)
def test_two_processes_equal_one(name, kind, both, pictures):
    "Loss and gradient are those of one process, and the means of those of each block by itself."
    (loss, grad), block = both[name, kind], BLOCKS[kind]
    want_loss, want_grad = entropy_step(name, pictures, block)
    close(loss, want_loss)
    close(grad, want_grad)
    each = [entropy_step(name, b, 0) for b in pictures.split(block or len(pictures))]
    close(loss, torch.stack([l for l, _ in each]).mean())
    close(grad, torch.stack([g for _, g in each]).mean(0))
    if kind == 'on one process': return
    alone = torch.stack([entropy_step(name, part, 0)[1] for part in pictures.chunk(2)]).mean(0)
    off = (alone - want_grad).abs().max()
    assert off > 1e-4, 'each process by itself would have done something else'


ONE_STEP = {'train.steps': 1, 'train.batch': 8, 'train.microbatch': 8,
            'optim.clip': 0.0, 'optim.warmup': 0, 'optim.lr': 1e-4}
LECAM = {'loss.gan_start': 0, 'loss.lecam': 1.0, 'loss.lecam_decay': 0.5}
STEPS = {
    'lfq': ('tokenizer', LECAM),
    'lfq, block of one process': ('tokenizer', LECAM | {'loss.entropy_block': 2}),
    'vq, adaptive weight': ('tokenizer', LECAM | {
        'model.quantizer': 'vq', 'loss.gan_adaptive': True, 'loss.gan_loss': 'non-saturating'}),
    'maskbit': ('generator', {'model.dropout': 0.0}),
    'joint': ('generator', {'model.dropout': 0.0, 'model.head': 'joint'}),
    'maskgit': ('generator', {'model.dropout': 0.0, 'model.input': 'embedding'})}


def apart(a, b, scale=1): # tensors
    "Their largest difference, as a share of the largest value of `a` if that is above 1."
    return scale * float((a - b).abs().max()) / max(1, scale * float(a.abs().max()))


@pytest.mark.parametrize('name', STEPS)
def test_one_step_on_two_processes(name, cache, tmp_path, fault):
    "Losses, gradients and running means after a step; the discriminator is there from its start."
    kind, changes = STEPS[name]
    config = change(CONFIG[kind], ONE_STEP | changes)
    assert together(kind, tmp_path/'two', config, cache) == [0, 0]
    train(kind, tmp_path/'one', config, cache)
    (one,), (two,) = losses(tmp_path/'one'), losses(tmp_path/'two')
    terms = {k: abs(one[k] - two[k]) / max(1, abs(one[k])) for k in one}
    a, b = state(tmp_path/'one', 1), state(tmp_path/'two', 1)
    first = 1 / (1 - config.optim.betas[0])    # after one step the moment is the gradient, scaled
    gradients = {k: apart(a[k], b[k], first) for k in a if k.endswith('exp_avg')}
    means = {k: float((a[k] - b[k]).abs()) for k in a if 'lecam' in k}
    assert one.keys() == two.keys() and max(terms.values()) < 1e-5
    most = 5e-5 if 'adaptive' in name else 1e-5     # of rounding, which that weight multiplies
    assert max(gradients.values()) < most and all(v < 1e-5 for v in means.values())
    if kind == 'tokenizer':
        assert len(means) == 2 and all(abs(float(a[k])) > 1e-3 for k in means)
        assert one['lecam'] > 0 and 'discriminator/grad_norm' in one
    fault(f'two processes against one, {name}',
          'one step with the same batch of 8: losses, gradients and running means agree',
          largest_difference_of_a_loss=max(terms.values()),
          of_a_gradient=max(gradients.values()), of_lecams_means=max(means.values(), default=None),
          of_a_weight=max(float((a[k] - b[k]).abs().max()) for k in a if '.model.' in k))


def test_each_by_itself_would_differ(cache, tmp_path):
    "The test above can fail: two slices of four pictures see other mean assignments than eight."
    config = change(CONFIG['tokenizer'], ONE_STEP | LECAM | {'loss.entropy_block': 0})
    train('tokenizer', tmp_path/'one', config, cache)
    train('tokenizer', tmp_path/'slices', change(config, {'train.microbatch': 4}), cache)
    (one,), (two,) = losses(tmp_path/'one'), losses(tmp_path/'slices')
    assert abs(one['mean_entropy'] - two['mean_entropy']) > 1e-3
    a, b = state(tmp_path/'one', 1), state(tmp_path/'slices', 1)
    moments = [k for k in a if k.endswith('exp_avg')]
    assert max(float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in moments) > 1e-3
    for k in ('extra.lecam.real', 'extra.lecam.fake'):
        assert abs(float(a[k] - b[k])) < 1e-7, 'they move once, by the mean over all slices'


@pytest.mark.parametrize('kind', CONFIG)
def test_evaluation_is_shared_out_and_changes_nothing(kind, cache, tmp_path):
    from maskbit.base.shapes import Shapes
    from maskbit.stage2.token_cache import TokenCache
    held_out = Shapes(16, 'validation', length=40) if kind == 'tokenizer' else TokenCache(cache)
    config = change(CONFIG[kind], {'train.steps': 6, 'train.eval_every': 2, 'train.eval_size': 40,
                                   'train.keep': 1, 'train.save_every': 6})
    train(kind, tmp_path/'one', config, cache, valid=held_out)
    assert together(kind, tmp_path/'two', config, cache, valid=held_out) == [0, 0]
    train(kind, tmp_path/'without', change(config, {'train.eval_every': 0}), cache)
    assert not differing(state(tmp_path/'one', 6), state(tmp_path/'without', 6))
    rows = [{k: v for k, v in r.items() if k.startswith('eval/')} for r in losses(tmp_path/'one')]
    assert [bool(r) for r in rows] == [False, True] * 3
    first, shared = rows[1], next(r for r in losses(tmp_path/'two') if r['step'] == 2)
    for k, v in first.items():
        torch.testing.assert_close(torch.tensor(shared[k]), torch.tensor(v), atol=2e-3, rtol=2e-3)
    score = next(iter(first))
    best = min((r for r in losses(tmp_path/'one') if score in r), key=lambda r: r[score])['step']
    kept = {p.name for p in (tmp_path/'one/checkpoints').iterdir()}
    # a step is saved before it is measured: step 6 went in beside the best of the earlier ones
    before = min((r for r in losses(tmp_path/'one')[:5] if score in r), key=lambda r: r[score])['step']
    assert kept == {f'step-{n:08d}' for n in {before, 6}} and best in {before, 6}
    from safetensors.torch import load_file
    model, stored = load_file(tmp_path/'one/best/model.safetensors'), state(tmp_path/'one', best)
    assert all(torch.equal(v, stored[f'ema.module.{k}']) for k, v in model.items())


class Account:
    "Stands in for the package wandb, which needs an account."
    class Image:
        def __init__(self, tensor): self.shape = tuple(tensor.shape)
    def __init__(self): self.opened, self.rows = [], []
    def init(self, **kwargs): self.opened.append(kwargs)
    def log(self, row, step): self.rows.append((step, row))


def test_weights_and_biases(cache, tmp_path, monkeypatch):
    "The lines of log.jsonl and samples of the average; one name, continued after a stop."
    import sys
    from importlib.machinery import ModuleSpec
    from maskbit.stage2.generator_training import train_generator
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.token_cache import TokenCache
    account = Account()
    account.__spec__ = ModuleSpec('wandb', None)
    monkeypatch.setitem(sys.modules, 'wandb', account)
    tokens, tok = TokenCache(cache), Tokenizer.from_pretrained('shapes')
    config = change(CONFIG['generator'], {
        'train.steps': 4, 'train.eval_every': 2, 'train.eval_size': 16,
        'train.monitor': ('wandb',), 'model.sample.steps': 2})
    for _ in range(2):
        train_generator(config, tokens, tmp_path/'run', valid=tokens, tokenizer=tok, quiet=True)
    first, again = account.opened
    assert first['id'] == again['id'] and first['resume'] == 'allow'
    rows = {}
    for step, row in account.rows: rows.setdefault(step, {}).update(row)     # an evaluation has its own
    assert list(rows) == [1, 2, 3, 4] and all('loss' in row for row in rows.values())
    assert rows[2]['eval/loss'] == losses(tmp_path/'run')[1]['eval/loss']
    shown = [(step, row['pictures'].shape) for step, row in account.rows if 'pictures' in row]
    assert shown == [(2, (3, 36, 274)), (4, (3, 36, 274))]
