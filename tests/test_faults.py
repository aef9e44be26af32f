"""What a training survives, and what it refuses.
`pytest tests/test_faults.py --record nbs/results/faults` writes down what happened."""
import json, os, shutil, signal, subprocess, sys, time
import pytest, torch
from children import CONFIG, CONTEXT, differing, losses, start, state, together, train
from conftest import SMALL
from maskbit.base.config import Stage2Config
from maskbit.base.monitor import read_log
from maskbit.base.state import latest_checkpoint
from maskbit.base.storage import read_sealed
from maskbit.base.trees import InputError, change, from_json
from maskbit.use.cli import main


def command(text, *more):
    "The command `maskbit`, with the words of a text and more of them."
    main([*text.split(), *more])


def until(tell, event, count):
    "Listen to a child until it has spoken of an event so many times."
    while count: count -= tell.recv() == event


def finish(*args):
    p = start(*args)
    p.join()
    assert p.exitcode == 0


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_signal_saves_within_a_step(sent, cache, tmp_path, fault):
    "Also when, as a queue does it, the loader's processes get the signal too."
    config, (get, tell) = change(CONFIG['generator'], {'train.save_every': 1000}), CONTEXT.Pipe(duplex=False)
    p = start('generator', tmp_path/'run', config, cache, workers=2, tell=tell)
    tell.close()
    until(get, 'step', 5)
    ps = ['ps', '-o', 'pid=', '--ppid', str(p.pid)]
    workers = subprocess.run(ps, capture_output=True, text=True).stdout.split()
    assert len(workers) >= 2
    os.kill(p.pid, signal.SIGSTOP)                          # held still, to count the steps it has begun
    time.sleep(0.1)
    begun = 5
    while get.poll(): begun += get.recv() == 'step'
    for pid in [*workers, p.pid]: os.kill(int(pid), sent)
    os.kill(p.pid, signal.SIGCONT)
    p.join()
    assert p.exitcode == 128 + sent
    saved = latest_checkpoint(tmp_path/'run')[0]
    assert saved in (begun, begun + 1), 'after the step it was in, or after the next if it was between two'
    for name in 'run', 'whole': train('generator', tmp_path/name, config, cache)
    tensors = differing(state(tmp_path/'run', 60), state(tmp_path/'whole', 60))
    assert not tensors
    fault(f'{sent.name}, one process',
          f'saved within a step, exit code {p.exitcode}; continued to the same weights',
          steps_begun=begun, saved_step=saved, exit_code=p.exitcode, differing_tensors=len(tensors))


def run_launch(run, words, after=3, sent=None, victim=None):
    """`maskbit launch` on two CPU processes; once it has logged `after` steps, `sent` goes to it, or SIGKILL
    to the worker that `victim` picks. Returns exit code, the steps logged at that moment, and what it
    printed."""
    launch = '-m maskbit launch --gpus 0 --processes 2 --restarts 1 --'.split()
    p = subprocess.Popen([sys.executable, *launch, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    first, deadline = len(read_log(run)), time.time() + 120
    while len(read_log(run)) < first + after and p.poll() is None and time.time() < deadline: time.sleep(0.01)
    reached = len(read_log(run))
    if sent: p.send_signal(sent)
    if victim: os.kill(victim(), signal.SIGKILL)
    said, _ = p.communicate(timeout=120)
    return p.returncode, reached, said


def test_signals_and_a_killed_worker_under_torchrun(tmp_path, fault):
    "Nothing is saved on schedule here, only because of the signals and at the end."
    run, whole, tokens, steps = tmp_path/'run', tmp_path/'whole', tmp_path/'tokens', 150
    words = [*f'train-generator tiny --out {run} --tokens {tokens} --train.steps {steps}'.split(),
             *'--train.save-every 1000 --train.log-every 1 --train.batch 4 --train.precision float32'.split(),
             *'--model.width 32 --model.heads 2 --model.depth 1 --model.mlp 64'.split()]
    command(f'tokenize --tokenizer shapes --out {tokens} --data.train_size 64')
    for sent in signal.SIGUSR1, signal.SIGTERM:
        code, reached, said = run_launch(run, words, sent=sent)
        saved = latest_checkpoint(run)[0]
        assert code == 128 + sent and 'Traceback' not in said
        assert 'continues a training from its last checkpoint' in said
        assert reached <= saved < steps
        fault(f'{sent.name}, two processes under torchrun',
              f'both saved the same step and ended; exit code {code} of launch',
              sent_after_step=reached, saved_step=saved, exit_code=code)

    def first_worker(): return int((run/'lock').read_text().split()[0])     # it holds the lock of the run
    code, killed_after, said = run_launch(run, words, victim=first_worker)
    assert code == 0 and 'exitcode: -9' in said
    config = from_json(Stage2Config, json.dumps(read_sealed(run/'run.json')['config']))
    assert together('generator', whole, config, tokens) == [0, 0]
    tensors = differing(state(run, steps), state(whole, steps))
    assert not tensors and losses(run) == losses(whole)
    fault('kill -9 of one of two workers', 'torchrun started both again; they continued from the last '
          'checkpoint to the weights and losses of an uninterrupted run of two processes, to the last bit',
          checkpoint=saved, killed_after_step=killed_after, steps=steps, differing_tensors=len(tensors))


class OneBad:
    "A data set of which one image has a NaN in it."
    def __init__(self, data, bad): self.data, self.bad = data, bad
    def __len__(self): return len(self.data)
    def fetch(self, indices, numbers):
        b = self.data.fetch(indices, numbers)
        b['images'][torch.as_tensor(indices) == self.bad] = torch.nan
        return b


def test_two_processes_skip_a_bad_batch_together(cache, tmp_path, fault):
    """One image of one process is broken; tokenizer, discriminator with its batch normalization, and LeCam
    stay as they were."""
    from maskbit.base.counters import Order
    from maskbit.base.shapes import Shapes
    config = change(CONFIG['tokenizer'], {'train.steps': 6, 'train.save_every': 1, 'train.keep': 6,
                                          'loss.gan_start': 0, 'discriminator.kind': 'patchgan'})
    bad = Order(64)[4 * 4 + 3]                      # the last sample of step 5: of the second process
    data = OneBad(Shapes(16, length=64), bad)
    assert together('tokenizer', tmp_path/'run', config, cache, data=data) == [0, 0]
    states = [state(tmp_path/'run', n) for n in range(1, 7)]
    moved = [[k for k in differing(a, b) if k != 'ema.n_averaged'] for a, b in zip(states, states[1:])]
    assert [bool(m) for m in moved] == [True, True, True, False, True]
    assert {k.split('.')[0] for k in moved[-1]} == {'extra', 'ema', 'tokenizer', 'discriminator'}
    assert 'discriminator.model.main.3.running_mean' in moved[-1]
    row = losses(tmp_path/'run')[4]
    assert row['step'] == 5 and bad in row['skipped']['5'] and 'reconstruction' not in row
    fault('a batch with a NaN', 'skipped by both processes of two, though only one had seen it; nothing '
          'moved; named in the log with its samples',
          tensors_moved=len(moved[3]), tensors_moved_in_the_next_step=len(moved[4]))


def test_too_many_bad_batches_end_the_run(tmp_path, cache, capsys, fault):
    from maskbit.base.shapes import Shapes
    class AllBad(Shapes):
        def fetch(self, indices, numbers):
            b = super().fetch(indices, numbers)
            if numbers[0] >= 12: b['images'] = b['images'] + torch.nan
            return b
    config = change(CONFIG['tokenizer'], {'train.steps': 40, 'train.max_skipped': 5})
    says = ('Training stopped at step 9: 6 steps in a row .* the last good checkpoint is step-00000004: '
            'try a lower learning rate')
    with pytest.raises(InputError, match=says):
        train('tokenizer', tmp_path/'run', config, cache, data=AllBad(16, length=64))
    assert 'Step 4 was skipped' in capsys.readouterr().out
    fault('more than max_skipped bad batches in a row',
          'the run ended, with the reason and the last good checkpoint', max_skipped=5, ended_at_step=9)


def test_a_second_process_is_refused(cache, tmp_path, fault):
    from maskbit.base.runs import lock_run
    config, (get, tell) = change(CONFIG['generator'], {'train.steps': 100_000}), CONTEXT.Pipe(duplex=False)
    first = start('generator', tmp_path/'run', config, cache, workers=2, tell=tell)
    tell.close()
    until(get, 'step', 2)
    with pytest.raises(InputError, match=f'Another process \\({first.pid} on .*\\) is training in'):
        train('generator', tmp_path/'run', config, cache)
    first.kill()
    first.join()
    train('generator', tmp_path/'other', change(config, {'train.steps': 2}), cache)
    with lock_run(tmp_path/'run'): pass
    fault('a second process on the same folder', 'refused, with the number of the first; free again as soon '
          'as the first was killed, with its loader processes still alive')


@pytest.mark.skipif(not os.path.isdir('/sys'), reason='needs a file system that refuses to write')
def test_a_read_only_folder(cache, capsys, fault):
    with pytest.raises(SystemExit) as e: command('train-tokenizer tiny --out /sys/maskbit')
    assert e.value.code == 2 and 'Cannot write to /sys/maskbit' in capsys.readouterr().err
    fault('a folder that cannot be written', 'refused before anything was trained, exit code 2',
          exit_code=2)


FULL = """
import os, sys, torch
from maskbit.base.shapes import Shapes
from maskbit.use.cli import main
fetch = Shapes.fetch
def full_later(self, indices, numbers=None):
    if numbers[0] >= 12:                                    # from step 4 on the disk is full
        with open(os.path.join(sys.argv[1], 'ballast'), 'wb', buffering=0) as f:
            try:
                while f.write(bytes(4096)): pass
            except OSError as e: assert e.errno == 28
    return fetch(self, indices, numbers)
Shapes.fetch = full_later
main(sys.argv[2:])
"""


def test_a_full_disk(tmp_path, fault):
    "A real one of 8 MB where a file system may be mounted; test_job limits the size of files for everybody."
    disk, words = tmp_path/'disk', ['train-tokenizer', 'tiny', '--out', f'{tmp_path}/disk/t', *SMALL]
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'maskbit', str(disk)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted: pytest.skip('may not mount a file system')
    try:
        full = [sys.executable, '-c', FULL, str(disk), *words]
        failed = subprocess.run(full, capture_output=True, text=True)
        assert failed.returncode == 2 and 'Traceback' not in failed.stderr
        assert 'No space left on device' in failed.stderr
        assert 'the last good checkpoint is step-00000002' in failed.stderr
        assert latest_checkpoint(disk/'t')[0] == 2
        (disk/'ballast').unlink()
        main(words)
        assert latest_checkpoint(disk/'t')[0] == 6
    finally: subprocess.run(['umount', str(disk)], check=True)
    fault('a full disk', 'the run ended with exit code 2 and named the last good checkpoint; with space '
          'again it continued to its end', exit_code=2, last_good_step=2)


def test_leftovers_go_when_nothing_is_left_to_write(cache, tmp_path):
    "A writer that was killed after another had put its part in place; every part is there then."
    from maskbit.base.shapes import Shapes
    from maskbit.base.storage import HOST
    from maskbit.stage1.tokenizer import Tokenizer
    from maskbit.stage2.token_cache import write_cache
    tok, data, folder = Tokenizer.from_pretrained('shapes'), Shapes(length=48), tmp_path/'tokens'
    write_cache(tok, data, folder, part=32, quiet=True)
    gone = subprocess.Popen(['true'])
    gone.wait()
    left = folder/f'.part-00001.{HOST}.{gone.pid}.0123abcd.maskbit.tmp'
    shutil.copytree(folder/'part-00001', left)
    write_cache(tok, data, folder, part=32, quiet=True)
    assert not left.exists() and (folder/'part-00001').is_dir()
