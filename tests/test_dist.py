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


def entropy_step(name, x):
    "Entropy loss of a linear layer's latents, and its gradient with respect to the layer."
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(5, 6), QUANTIZERS[name]()
    losses = quantizer(layer(x).mT[..., None], 0.5).losses             # (B, 6, places, 1)
    loss = losses['token_entropy'] - losses['mean_entropy']
    loss.backward()
    return loss.detach(), layer.weight.grad


def worker(rank, name, x, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    loss, grad = entropy_step(name, x.chunk(2)[rank])
    for t in (loss, grad): dist.all_reduce(t); t /= 2                  # what DistributedDataParallel does to gradients
    if rank == 0: torch.save((loss, grad), f'{folder}/both.pt')
    dist.destroy_process_group()


@pytest.mark.parametrize('name', QUANTIZERS)
def test_two_processes_equal_one(name, tmp_path):
    x = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(1))
    mp.spawn(worker, (name, x, str(tmp_path)), nprocs=2)
    loss, grad = torch.load(tmp_path/'both.pt', weights_only=True)
    want_loss, want_grad = entropy_step(name, x)
    torch.testing.assert_close(loss, want_loss, atol=1e-5, rtol=0); torch.testing.assert_close(grad, want_grad, atol=1e-5, rtol=0)
    alone = torch.stack([entropy_step(name, part)[1] for part in x.chunk(2)]).mean(0)
    assert (alone - want_grad).abs().max() > 1e-4, 'each process by itself would have done something else'


ONE_STEP = {'train.steps': 1, 'train.batch': 8, 'train.microbatch': 8, 'optim.clip': 0.0, 'optim.warmup': 0, 'optim.lr': 1e-4}
LECAM = {'loss.gan_start': 0, 'loss.lecam': 1.0, 'loss.lecam_decay': 0.5}
STEPS = {
    'lfq': ('tokenizer', LECAM),
    'vq, adaptive weight': ('tokenizer', LECAM | {'model.quantizer': 'vq', 'loss.gan_adaptive': True, 'loss.gan_loss': 'non-saturating'}),
    'maskbit': ('generator', {'model.dropout': 0.0}),
    'maskgit': ('generator', {'model.dropout': 0.0, 'model.input': 'embedding'})}


@pytest.mark.parametrize('name', STEPS)
def test_one_step_on_two_processes(name, cache, tmp_path, fault):
    "Every loss, gradient and running mean after the first step, with the discriminator and LeCam from its start; four samples of a process are the eight of the other."
    kind, changes = STEPS[name]
    config = change(CONFIG[kind], ONE_STEP | changes)
    assert together(kind, tmp_path/'two', config, cache) == [0, 0]
    train(kind, tmp_path/'one', config, cache)
    (one,), (two,) = losses(tmp_path/'one'), losses(tmp_path/'two')
    terms = {k: abs(one[k] - two[k]) / max(1, abs(one[k])) for k in one}
    a, b = state(tmp_path/'one', 1), state(tmp_path/'two', 1)
    scale = 1 / (1 - config.optim.betas[0])                                                                      # after one step the first moment is the gradient, scaled
    gradients = {k: scale * float((a[k] - b[k]).abs().max()) / max(1, scale * float(a[k].abs().max())) for k in a if k.endswith('exp_avg')}
    means = {k: float((a[k] - b[k]).abs()) for k in a if 'lecam' in k}
    assert one.keys() == two.keys() and max(terms.values()) < 1e-5 and max(gradients.values()) < 1e-5 and all(v < 1e-5 for v in means.values())
    assert kind == 'generator' or (len(means) == 2 and one['lecam'] > 0 and all(abs(float(a[k])) > 1e-3 for k in means) and 'discriminator/grad_norm' in one)
    weights = max(float((a[k] - b[k]).abs().max()) for k in a if '.model.' in k)
    fault(f'two processes against one, {name}', 'one step with the same batch of 8: losses, gradients and running means agree', largest_difference_of_a_loss=max(terms.values()), of_a_gradient=max(gradients.values()),
          of_lecams_means=max(means.values(), default=None), of_a_weight=weights)


def test_each_by_itself_would_differ(cache, tmp_path):
    "The test above can fail: two slices of four in one process see other mean assignments than one slice of eight."
    config = change(CONFIG['tokenizer'], ONE_STEP | STEPS['lfq'][1])
    train('tokenizer', tmp_path/'one', config, cache); train('tokenizer', tmp_path/'slices', change(config, {'train.microbatch': 4}), cache)
    (one,), (two,) = losses(tmp_path/'one'), losses(tmp_path/'slices')
    assert abs(one['mean_entropy'] - two['mean_entropy']) > 1e-3
    a, b = state(tmp_path/'one', 1), state(tmp_path/'slices', 1)
    assert max(float((a[k] - b[k]).abs().max() / a[k].abs().max()) for k in a if k.endswith('exp_avg')) > 1e-3
    for k in ('extra.lecam.real', 'extra.lecam.fake'): assert abs(float(a[k] - b[k])) < 1e-7, 'but the running means move once, by the mean over all slices'


@pytest.mark.parametrize('kind', CONFIG)
def test_evaluation_is_shared_out_and_changes_nothing(kind, cache, tmp_path):
    from maskbit.base.shapes import Shapes
    from maskbit.stage2.token_cache import TokenCache
    held_out = Shapes(16, 'validation', length=40) if kind == 'tokenizer' else TokenCache(cache)
    config = change(CONFIG[kind], {'train.steps': 6, 'train.eval_every': 2, 'train.eval_size': 40, 'train.keep': 1, 'train.save_every': 6})
    train(kind, tmp_path/'one', config, cache, valid=held_out)
    assert together(kind, tmp_path/'two', config, cache, valid=held_out) == [0, 0]
    train(kind, tmp_path/'without', change(config, {'train.eval_every': 0}), cache)
    assert not differing(state(tmp_path/'one', 6), state(tmp_path/'without', 6))
    rows = [{k: v for k, v in r.items() if k.startswith('eval/')} for r in losses(tmp_path/'one')]
    assert [bool(r) for r in rows] == [False, True] * 3
    first, shared = rows[1], next(r for r in losses(tmp_path/'two') if r['step'] == 2)
    for k, v in first.items(): torch.testing.assert_close(torch.tensor(shared[k]), torch.tensor(v), atol=2e-3, rtol=2e-3)
    score = next(iter(first))
    best = min((r for r in losses(tmp_path/'one') if score in r), key=lambda r: r[score])['step']
    assert {p.name for p in (tmp_path/'one/checkpoints').iterdir()} == {f'step-{n:08d}' for n in {best, 6}}
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
    "The same lines as log.jsonl and samples of the averaged generator; continued under the same name after a stop."
    import sys
    from importlib.machinery import ModuleSpec
    from maskbit.stage2.generator_training import train_generator
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.token_cache import TokenCache
    account = Account(); account.__spec__ = ModuleSpec('wandb', None)
    monkeypatch.setitem(sys.modules, 'wandb', account)
    tokens, tok = TokenCache(cache), Tokenizer.from_pretrained('shapes')
    config = change(CONFIG['generator'], {'train.steps': 4, 'train.eval_every': 2, 'train.eval_size': 16, 'train.monitor': ('wandb',), 'model.sample.steps': 2})
    for steps in (4, 4): train_generator(change(config, {'train.steps': steps}), tokens, tmp_path/'run', valid=tokens, tokenizer=tok, quiet=True)
    assert account.opened[0]['id'] == account.opened[1]['id'] and account.opened[0]['resume'] == 'allow'
    rows = {step: row for step, row in account.rows if 'loss' in row}
    assert list(rows) == [1, 2, 3, 4] and rows[2]['eval/loss'] == losses(tmp_path/'run')[1]['eval/loss']
    assert [(step, row['pictures'].shape) for step, row in account.rows if 'pictures' in row] == [(2, (3, 36, 274)), (4, (3, 36, 274))]
