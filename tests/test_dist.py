"Two processes see the entropy of their common batch, and together move the weights as one process with the whole batch does."
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from maskbit.codebook import VQ
from maskbit.quantize import LFQ

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
