"Trainings so small that a test can kill twenty of them, in children that need not import torch again."
import multiprocessing, os, socket, sys
import torch
from maskbit.base.presets import STAGE1, STAGE2
from maskbit.base.trees import change

# children are forked from a process that has imported everything and started nothing
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload([
    'maskbit.base.judges', 'maskbit.base.shapes', 'maskbit.stage1.tokenizer_training',
    'maskbit.stage2.generator_training', 'maskbit.use.cli', 'accelerate', 'tqdm.auto',
    'torchmetrics.functional.image', 'torch_fidelity.metric_fid', 'torch_fidelity.metric_prc',
    'torch.utils.tensorboard'])

TRAIN = {'train.batch': 4, 'train.microbatch': 4, 'train.steps': 60, 'train.save_every': 2,
         'train.log_every': 1, 'train.precision': 'float32', 'optim.warmup': 4}
TOKENIZER = change(STAGE1['tiny'], TRAIN | {
    'model.bits': 6, 'model.resolution': 16, 'model.base_channels': 8, 'model.channel_mult': (1, 2),
    'model.blocks': 1, 'model.embedding': 8, 'discriminator.base_channels': 8,
    'discriminator.stages': 1, 'loss.perceptual': 'none', 'loss.gan_start': 4})
GENERATOR = change(STAGE2['tiny'], TRAIN | {
    'model.width': 32, 'model.heads': 2, 'model.depth': 1, 'model.mlp': 64})
CONFIG = {'tokenizer': TOKENIZER, 'generator': GENERATOR}


def train(kind, run, config, cache, workers=0, valid=None, data=None, quiet=True):
    "One training in this process."
    from maskbit.base.shapes import Shapes
    from maskbit.stage1.tokenizer_training import train_tokenizer
    from maskbit.stage2.generator_training import train_generator
    from maskbit.stage2.token_cache import TokenCache
    how = dict(workers=workers, quiet=quiet, valid=valid)
    if kind == 'tokenizer': return train_tokenizer(config, data or Shapes(16, length=64), run, **how)
    return train_generator(config, data or TokenCache(cache), run, **how)


def speak(tell):
    "Tell of each step, before it."
    from maskbit.base import training
    step = training.train_step

    def told_step(*args):
        tell.send('step')
        return step(*args)

    training.train_step = told_step


def die_at(n, root, seed): # the how-manieth change, the folder that it is in, how a write is torn
    "Be killed just before the n-th change of the disk under `root`; half the writes are torn then."
    import random, signal
    from maskbit.base import storage
    rng, seen, root, fsync, swap = random.Random(seed), [], str(root), os.fsync, storage._exchange

    def before(path, written=None):
        if not str(path).startswith(root): return
        seen.append(path)
        if len(seen) < n: return
        if written and os.path.isfile(written) and rng.random() < 0.5:
            os.truncate(written, rng.randrange(os.path.getsize(written) + 1))
        os.kill(os.getpid(), signal.SIGKILL)

    def changes(event, args):
        if event == 'open':
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): before(path)
        elif event in ('os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.truncate', 'os.chmod'):
            before(name(args[0]))

    def name(path): # or a file's number
        return os.readlink(f'/proc/self/fd/{path}') if isinstance(path, int) else os.fspath(path)

    def told_fsync(fd):
        before(name(fd), name(fd))
        fsync(fd)

    def told_swap(a, b):
        before(a)
        return swap(a, b)

    os.fsync, storage._exchange = told_fsync, told_swap
    sys.addaudithook(changes)


def doomed(n, root, seed, what, *args):
    "Do something as a child that is killed at its n-th change of the disk; 0 for never."
    multiprocessing.set_start_method('fork', force=True)             # for the loader's workers
    torch.set_num_threads(1)
    if n: die_at(n, root, seed)
    what(*args)


def kill(*args):
    "Its exit code."
    p = CONTEXT.Process(target=doomed, args=args)
    p.start()
    p.join()
    return p.exitcode


def child(kind, run, config, cache, workers=0, tell=None, env=None, data=None, valid=None):
    "The same in a child, which may speak of what it does."
    from maskbit.base.runs import Stopped
    multiprocessing.set_start_method('fork', force=True)             # for the loader's workers
    torch.set_num_threads(1)
    os.environ.update(env or {})
    if tell: speak(tell)
    try: train(kind, run, config, cache, workers, data=data, valid=valid)
    except Stopped as e: os._exit(128 + e.signal)


def start(*args, **kwargs):
    p = CONTEXT.Process(target=child, args=args, kwargs=kwargs)
    p.start()
    return p


def start_together(*args, **kwargs):
    "Two processes of one run."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    world = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    return [start(*args, env=world | dict(RANK=r, LOCAL_RANK=r), **kwargs) for r in ('0', '1')]


def together(*args, **kwargs):
    "Two processes of one run, to their end; returns their exit codes."
    both = start_together(*args, **kwargs)
    for p in both: p.join()
    return [p.exitcode for p in both]


def state(run, step):
    "All tensors of a checkpoint."
    from safetensors.torch import load_file
    tensors = load_file(run/f'checkpoints/step-{step:08d}/tensors.safetensors')     # maps the file
    return {k: v.clone() for k, v in tensors.items()}


def losses(run):
    "The rows of the log without what depends on the clock."
    from maskbit.base.monitor import read_log
    clock = 'seconds', 'images_per_s', 'memory_gib'
    return [{k: v for k, v in row.items() if k not in clock} for row in read_log(run)]


def differing(a, b):
    "Names of the tensors that are not the same to the last bit."
    return [k for k in a | b if k not in a or k not in b or not torch.equal(a[k], b[k])]
