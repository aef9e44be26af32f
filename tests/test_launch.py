"The launcher without a cluster, and the options of the loop that need a GPU to be of use."
import contextlib, os, subprocess, sys
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from children import CONFIG, losses, state, train
from maskbit.base.config import Machines
from maskbit.base.trees import change
from maskbit.use.cli import main
from maskbit.use.launch import launch, slurm_script

WORDS = 'train-tokenizer tiny --out r --train.batch 64 --optim.betas 0.5 0.9'.split()
MEET = '--nnodes 2 --rdzv-backend c10d --rdzv-endpoint node0:29500 --rdzv-id maskbit'


def test_dry_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*'launch --gpus 8 --nodes 2 --rendezvous node0:29500 --dry-run --'.split(), *WORDS])
    said = capsys.readouterr().out
    assert f'--nproc-per-node 8 --max-restarts 3 {MEET} -m maskbit {" ".join(WORDS)}' in said
    assert '64 images a step = 16 processes x 1 slice x 4 images' in said
    assert '"batch": 64' in said and '#SBATCH --requeue' in said
    launch('train-tokenizer', 'tiny', 'r', {'train.batch': 64, 'optim.betas': (0.5, 0.9)},
           gpus=8, nodes=2, rendezvous='node0:29500', dry_run=True)
    assert capsys.readouterr().out == said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('machines, words, says', [
    ('--gpus 64', WORDS, 'gpus is 64 and this machine has'),
    ('--gpus 0 --processes 3', WORDS, 'cannot be shared by 3 processes'),
    ('--gpus 0 --nodes 2', WORDS, 'give rendezvous'),
    ('', [*WORDS, '--train.bach', '3'], '--train.bach'),
    ('', ['sample'], 'sample')])
def test_wrong_before_anything_starts(machines, words, says, capsys):
    with pytest.raises(SystemExit) as e: main(['launch', *machines.split(), '--', *words])
    said = capsys.readouterr()
    assert e.value.code == 2 and says in said.err + said.out


def test_a_mistake_in_the_workers_is_one_sentence(tmp_path):
    words = f'launch --gpus 0 --processes 2 -- train-tokenizer tiny --out {tmp_path}/t --data.images nowhere'
    done = subprocess.run([sys.executable, '-m', 'maskbit', *words.split()], capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stdout + done.stderr
    assert done.stderr.count('maskbit: There is no folder') == 1 and 'There is no' not in done.stdout


@pytest.mark.parametrize('code, again', [(0, False), (2, False), (138, True), (143, False)])
def test_slurm_script_requeues_what_was_interrupted(code, again, tmp_path):
    "With programs in the place of SLURM's that note how they are called."
    nodes = f'if [ $1 = show ]; then echo node0; echo node1; else echo "$@" > {tmp_path}/again; fi'
    programs = {'srun': f'echo "$@" > {tmp_path}/ran; exit {code}', 'scontrol': nodes}
    for name, text in programs.items():
        (tmp_path/name).write_text(f'#!/bin/sh\n{text}\n')
        (tmp_path/name).chmod(0o755)
    words = ['train-tokenizer', 'tiny', '--out', 'my runs/t']
    (tmp_path/'job.sh').write_text(slurm_script(words, Machines(gpus=8, nodes=2)))
    env = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}',
                        'SLURM_JOB_NODELIST': 'node[0-1]', 'SLURM_JOB_ID': '7'}
    assert subprocess.run(['bash', str(tmp_path/'job.sh')], env=env).returncode == code
    machines = '--gpus 8 --nodes 2 --rendezvous node0:29500 --restarts 3'
    assert (tmp_path/'ran').read_text().strip() == f'python -m maskbit launch {machines} -- {" ".join(words)}'
    assert (tmp_path/'again').exists() == again
    if again: assert (tmp_path/'again').read_text() == 'requeue 7\n'


def assert_near(a, b, most):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=most, rtol=most)


@pytest.mark.parametrize('kind', CONFIG)
def test_compiled_networks_train_and_are_stored_under_the_same_names(kind, cache, tmp_path, monkeypatch):
    compile = nn.Module.compile             # below the tracing, without minutes of code generation
    monkeypatch.setattr(nn.Module, 'compile', lambda self: compile(self, backend='eager'))
    quiet = {'model.dropout': 0.0} if kind == 'generator' else {}     # compiled, it draws in another way
    config = change(CONFIG[kind], {'train.steps': 6} | quiet)
    for name, on in ('plain', False), ('compiled', True):
        train(kind, tmp_path/name, change(config, {'train.compile': on}), cache)
    a, b = state(tmp_path/'plain', 6), state(tmp_path/'compiled', 6)
    assert a.keys() == b.keys()
    key = {'tokenizer': 'reconstruction', 'generator': 'loss'}[kind]
    plain, compiled = ([row[key] for row in losses(tmp_path/name)] for name in ('plain', 'compiled'))
    assert_near(compiled, plain, 1e-4)


def channels_last(x): return x.to(memory_format=torch.channels_last)


KINDS = {'blur': {}, 'patchgan': {'discriminator.kind': 'patchgan', 'discriminator.stages': 1},
         'taming': {'model.quantizer': 'vq', 'model.autoencoder': 'taming'}}


@pytest.mark.parametrize('changes', KINDS.values(), ids=KINDS)
def test_channels_last(changes, cache, tmp_path, monkeypatch):
    """What is done on a GPU, done on the CPU: the same losses, also after a stop, with weights and moments
    laid out channels last."""
    from maskbit import training
    config = change(CONFIG['tokenizer'], {'train.steps': 4, 'loss.gan_start': 1} | changes)
    train('tokenizer', tmp_path/'plain', config, cache)
    resume, move, step, seen = training.resume, training.to_device, training.train_step, []
    class Stops(Exception): pass

    def on_gpu(stage, run, config, device):
        for p in stage.parts.values(): channels_last(p.model)
        out = resume(stage, run, config, device)
        seen.append(stage)
        return out

    def to_gpu(batch, device):
        return {k: channels_last(v) if v.ndim == 4 else v for k, v in move(batch, device).items()}

    def stops(*args):
        if args[4] == 2 and len(seen) == 1: raise Stops
        return step(*args)

    for name, f in ('resume', on_gpu), ('to_device', to_gpu), ('train_step', stops):
        monkeypatch.setattr(training, name, f)
    with pytest.raises(Stops): train('tokenizer', tmp_path/'last', config, cache)
    train('tokenizer', tmp_path/'last', config, cache)
    for p in seen[-1].parts.values():
        for w, moments in p.optimizer.state.items():
            assert all(m.stride() == w.stride() for k, m in moments.items() if k != 'step')
    plain, last = ([r['reconstruction'] for r in losses(tmp_path/name)] for name in ('plain', 'last'))
    assert_near(last, plain, 2e-3)
    assert plain[0] == pytest.approx(last[0], abs=1e-6)


WAITS = '_local_scalar_dense', 'is_nonzero', 'equal', 'nonzero', 'masked_select', 'unique'


class NothingReadBack(TorchDispatchMode):
    "Refuses what makes the host wait for a GPU: the value of a tensor, or a shape that depends on one."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in WAITS, f'{func} in a step'
        return func(*args, **(kwargs or {}))


def small_stage(kind, device):
    "A stage, its configuration, and a batch for it."
    from maskbit.stage1.tokenizer_training import TokenizerStage
    from maskbit.stage2.generator_training import GeneratorStage
    batch = {'n': torch.arange(4), 'labels': torch.zeros(4, dtype=torch.long)}
    if kind == 'generator':
        config = CONFIG[kind]
        return GeneratorStage(config, device), config, batch | {'indices': torch.randint(0, 64, (4, 64))}
    adaptive = {'loss.gan_start': 0, 'discriminator.kind': 'patchgan', 'loss.gan_adaptive': True}
    config = change(CONFIG[kind], adaptive)
    return TokenizerStage(config, device), config, batch | {'images': torch.rand(4, 3, 16, 16)}


@pytest.mark.parametrize('kind', CONFIG)
def test_no_step_reads_a_value_back(kind, monkeypatch):
    "Apart from the seed and the average's counter, which are on the CPU anyway."
    from maskbit import inputs, training
    from maskbit.base.state import moving_average
    monkeypatch.setattr(inputs, '_visible', lambda x, wait: wait)   # as if all were on a GPU
    monkeypatch.setattr(training, 'seed_of', lambda *_: 0)
    here = SimpleNamespace(device=torch.device('cpu'), process_index=0,
                           no_sync=lambda _: contextlib.nullcontext(),
                           backward=lambda loss: loss.backward(),
                           clip_grad_norm_=nn.utils.clip_grad_norm_)
    stage, config, batch = small_stage(kind, here.device)
    ema = moving_average(stage.parts[kind].model, 0.9)
    ema.update_parameters = lambda model: None       # its counter is on the CPU: see test_pretend
    with NothingReadBack():
        for step in range(2):
            _, bad = training.train_step(here, stage, ema, [dict(batch), dict(batch)], step, config.train)
        with pytest.raises(AssertionError, match='_local_scalar_dense'): bool(bad)
