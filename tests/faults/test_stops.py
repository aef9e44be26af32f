"""Runs that are asked to stop: after any step, with any number of loader processes, alone or as one of two.
They save, end with the code of the signal, and continue to the weights of a run that was left alone."""
import os, random, time
import pytest
from children import CONFIG, CONTEXT, differing, losses, start, start_together, state, train
from maskbit.base.runs import SIGNALS, Stopped
from maskbit.base.state import latest_checkpoint
from maskbit.base.trees import change

STEPS = 12
CONFIGS = {kind: change(c, {'train.steps': STEPS, 'train.save_every': 100}) for kind, c in CONFIG.items()}


class StopsAt:
    "A data set that asks its run to stop when a sample is read."
    def __init__(self, data, number, sent):
        self.data, self.number, self.sent, self.pid = data, number, sent, os.getpid()

    def __len__(self): return len(self.data)
    def __getattr__(self, name): return getattr(self.data, name)
    def identity(self): return self.data.identity()
    def fetch(self, indices, numbers):
        if self.number in numbers: os.kill(self.pid, self.sent)
        return self.data.fetch(indices, numbers)


def open_data(kind, cache):
    from maskbit.base.shapes import Shapes
    from maskbit.stage2.token_cache import TokenCache
    return Shapes(16, length=64) if kind == 'tokenizer' else TokenCache(cache)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_any_cut_continues_to_the_same_weights(workers, cache, tmp_path, times, seed, fault):
    rng, data = random.Random(f'{seed} {workers}'), {k: open_data(k, cache) for k in CONFIGS}
    want, different, tried, before = {}, 0, times(3, 100), []
    for kind in CONFIGS:
        train(kind, tmp_path/kind, CONFIGS[kind], cache)
        want[kind] = state(tmp_path/kind, STEPS), losses(tmp_path/kind)
    for k in range(tried):
        kind, run = rng.choice(list(CONFIGS)), tmp_path/str(k)
        stops = StopsAt(data[kind], rng.randrange(4 * STEPS), rng.choice(SIGNALS))
        try: train(kind, run, CONFIGS[kind], cache, workers, data=stops)
        except Stopped: before.append(latest_checkpoint(run)[0])
        train(kind, run, CONFIGS[kind], cache, workers)
        tensors, rows = want[kind]
        different += bool(differing(state(run, STEPS), tensors) or losses(run)[-1] != rows[-1])
    fault(f'stopped at any step, {workers} loader processes', 'saved, and continued to the same weights, '
          'moments and moving average, to the last bit',
          tried=tried, stopped=len(before), at_steps=len(set(before)), different=different)
    assert len(before) == tried and not different          # also when the last step was the one


@pytest.mark.parametrize('processes', [1, 2])
def test_a_signal_at_any_moment(processes, cache, tmp_path, times, seed, fault):
    "To one process, or to one of two that train together, which must agree on where to stop."
    rng = random.Random(f'{seed} {processes}')
    config = change(CONFIG['generator'], {'train.save_every': 1000})
    tried, different, codes, steps = times(2, 50), 0, [], config.train.steps
    begin = start_together if processes == 2 else lambda *args, **kwargs: [start(*args, **kwargs)]

    def end(run):
        for p in (all := begin('generator', run, config, cache)): p.join()
        assert [p.exitcode for p in all] == [0] * processes

    end(tmp_path/'whole')
    want = state(tmp_path/'whole', steps)
    for k in range(tried):
        get, tell = CONTEXT.Pipe(duplex=False)
        sent, run, left = rng.choice(SIGNALS), tmp_path/str(k), rng.randint(1, 30)
        several = begin('generator', run, config, cache, tell=tell)
        tell.close()
        while left: left -= get.recv() == 'step'
        time.sleep(rng.uniform(0, 0.02))
        os.kill(rng.choice(several).pid, sent)
        for p in several: p.join()
        codes += [p.exitcode == 128 + sent for p in several]
        assert latest_checkpoint(run)[0] < steps
        end(run)
        different += bool(differing(state(run, steps), want))
    fault(f'a signal at any moment, {"one process" if processes == 1 else "one of two processes"}',
          'saved within two steps, ended with the code of the signal, continued to the same weights',
          tried=tried, other_exit_codes=codes.count(False), different=different)
    assert all(codes) and not different
