"Trainings so small that a test can afford to kill twenty of them, in child processes that need not import torch again."
import multiprocessing, os, socket, time
import torch
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.trees import change

CONTEXT = multiprocessing.get_context('forkserver')                # children are forked from a process that has imported everything and started nothing
CONTEXT.set_forkserver_preload(['maskbit.stage1.tokenizer_training', 'maskbit.stage2.generator_training', 'maskbit.base.shapes', 'maskbit.use.cli',
                                'maskbit.base.judges', 'accelerate', 'tqdm.auto',
                                'torchmetrics.functional.image', 'torch_fidelity.metric_fid', 'torch_fidelity.metric_prc', 'torch.utils.tensorboard'])
TRAIN = {'train.batch': 4, 'train.microbatch': 4, 'train.steps': 60, 'train.save_every': 2, 'train.log_every': 1, 'train.precision': 'float32'}
TOKENIZER = change(STAGE1['tiny'], TRAIN | {'model.bits': 6, 'model.resolution': 16, 'model.base_channels': 8, 'model.channel_mult': (1, 2), 'model.blocks': 1, 'model.embedding': 8,
                                            'discriminator.base_channels': 8, 'discriminator.stages': 1, 'loss.perceptual': 'none', 'loss.gan_start': 4, 'optim.warmup': 4})
GENERATOR = change(STAGE2['tiny'], TRAIN | {'model.width': 32, 'model.heads': 2, 'model.depth': 1, 'model.mlp': 64, 'optim.warmup': 4})
CONFIG = {'tokenizer': TOKENIZER, 'generator': GENERATOR}


def train(kind, run, config, cache, workers=0, valid=None, data=None, quiet=True):
    "One training in this process."
    from maskbit.stage2.generator_training import train_generator
    from maskbit.base.shapes import Shapes
    from maskbit.stage1.tokenizer_training import train_tokenizer
    from maskbit.stage2.token_cache import TokenCache
    if kind == 'tokenizer': return train_tokenizer(config, data or Shapes(16, length=64), run, workers=workers, quiet=quiet, valid=valid)
    return train_generator(config, data or TokenCache(cache), run, workers=workers, quiet=quiet, valid=valid)


def child(kind, run, config, cache, workers=0, tell=None, slow=0.0, env=None, data=None, valid=None):
    "The same in a child; tells `step` before each step and `fsync` before each flush to the disk, which then takes `slow` seconds longer."
    from maskbit.base import storage, training
    from maskbit.base.training import Stopped
    multiprocessing.set_start_method('fork', force=True)             # for the loader's workers
    torch.set_num_threads(1); os.environ.update(env or {})
    step, fsync = training.train_step, storage._fsync
    if tell:
        def told_step(*args): tell.send('step'); return step(*args)
        def told_fsync(path): tell.send('fsync'); time.sleep(slow); fsync(path)
        training.train_step, storage._fsync = told_step, told_fsync
    try: train(kind, run, config, cache, workers, data=data, valid=valid)
    except Stopped as e: os._exit(128 + e.signal)


def start(*args, **kwargs):
    p = CONTEXT.Process(target=child, args=args, kwargs=kwargs); p.start(); return p


def together(*args, **kwargs):
    "Two processes of one run, to their end; returns their exit codes."
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = [dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)) for r in range(2)]
    both = [start(*args, env=e, **kwargs) for e in env]
    for p in both: p.join()
    return [p.exitcode for p in both]


def state(run, step):
    "All tensors of a checkpoint."
    from safetensors.torch import load_file
    return {k: v.clone() for k, v in load_file(run/f'checkpoints/step-{step:08d}/tensors.safetensors').items()}    # load_file maps the file


def losses(run):
    "The rows of the log without what depends on the clock."
    from maskbit.base.monitor import read_log
    return [{k: v for k, v in r.items() if k not in ('seconds', 'images_per_s', 'memory_gib')} for r in read_log(run)]


def differing(a, b): return [k for k in a | b if k not in a or k not in b or not torch.equal(a[k], b[k])]     # names of the tensors that are not the same to the last bit
