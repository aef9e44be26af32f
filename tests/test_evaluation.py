"One evaluator: the same numbers on one and two processes, during training and after it; no file runs code."
import json, pickle
import pytest, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from children import CONFIG, losses, train
from maskbit.base.judges import evaluate_tokenizer
from maskbit.base.monitor import CHUNK, share
from maskbit.base.references import choose, pictures, reference_of
from maskbit.base.shapes import Shapes
from maskbit.base.trees import InputError, change
from maskbit.stage1.tokenizer import Tokenizer
from maskbit.stage2.evaluation import evaluate_generator, plan_labels
from maskbit.stage2.generator import Generator


def gather(mine):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    return [x for part in every for x in part]


def both(count, rank=0, world=1, gather=list):
    "Metrics of the bundled tokenizer and generator on `count` pictures."
    torch.set_num_threads(1)
    data = Shapes(split='validation', length=1000)
    tok, gen = Tokenizer.from_pretrained('shapes'), Generator.from_pretrained('shapes')
    numbers, how = choose(data, count, 'natural'), dict(rank=rank, world=world, gather=gather)
    of_tok = evaluate_tokenizer(tok, pictures(data, numbers, rank=rank, world=world), gather=gather)
    reference = reference_of(['shapes'], data, numbers, **how)
    labels, cfg = plan_labels('natural', 10, count, data, numbers), change(gen.config.sample,
        {'steps': 2})
    return of_tok, reference.hash, evaluate_generator(gen, tok, labels, reference, cfg=cfg, **how)


COUNTS = {'a chunk each': CHUNK + 10, 'one process without pictures': 20}


def worker(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
    found = {name: both(count, rank, 2, gather) for name, count in COUNTS.items()}
    with open(f'{folder}/{rank}.json', 'w') as f: json.dump(found, f)
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    zero, one = (json.loads((tmp_path/f'{r}.json').read_text()) for r in range(2))
    assert zero == one
    for name, count in COUNTS.items():
        of_tok, reference, of_gen = both(count)
        assert reference == zero[name][1]
        for ours, theirs in ((of_tok, zero[name][0]), (of_gen, zero[name][2])):
            assert ours['hash'] == theirs['hash'] and ours['metrics'].keys() == theirs['metrics'].keys()
            for k, v in ours['metrics'].items():
                assert v == pytest.approx(theirs['metrics'][k], rel=1e-9, abs=1e-9), k


def test_eval_every_says_what_evaluate_says(cache, tmp_path):
    held_out = Shapes(16, 'validation', length=100)
    config = change(CONFIG['tokenizer'], {'train.steps': 4, 'train.eval_every': 4,
                                          'train.eval_size': 40})
    train('tokenizer', tmp_path/'run', config, cache, valid=held_out)
    during = {k[5:]: v for k, v in losses(tmp_path/'run')[-1].items() if k.startswith('eval/')}
    numbers = choose(held_out, 40, 'natural')
    after = evaluate_tokenizer(Tokenizer.from_pretrained(tmp_path/'run/model'),
                               pictures(held_out, numbers))['metrics']
    assert during.keys() == after.keys()
    for k, v in after.items(): assert v == pytest.approx(during[k], rel=1e-9, abs=1e-9), k


def test_the_step_is_saved_before_its_evaluation(cache, tmp_path):
    class Broken(Shapes):
        def fetch(self, *args): raise InputError('the held-out pictures are gone')
    config = change(CONFIG['tokenizer'], {'train.steps': 4, 'train.eval_every': 4,
                                          'train.eval_size': 40, 'train.save_every': 100})
    with pytest.raises(InputError):
        train('tokenizer', tmp_path/'run', config, cache, valid=Broken(16, 'validation',
            length=100))
    assert (tmp_path/'run/checkpoints/step-00000004/manifest.json').is_file()


class Hostile:
    def __reduce__(self): return exec, ("open('ran', 'w')",)


@pytest.mark.parametrize('name', ['inception', 'dinov2', 'vgg', 'resnet50'])
def test_no_file_of_weights_runs_code(name, tmp_path, monkeypatch, capsys):
    "As an option of the command line, and as a file that somebody left among torch's downloads."
    from maskbit.base.judges import lpips_at_hand
    from maskbit.base.networks import ResNet50, hub_file, lpips_vgg
    from maskbit.use.cli import main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path/'hub'))
    planted = {'inception': 'weights-inception-2015-12-05-6726825d.pth',
               'vgg': 'vgg16-397923af.pth', 'resnet50': 'resnet50-0676ba61.pth'}
    path = hub_file('https://x/' + planted.get(name, 'x.pth')); path.parent.mkdir(parents=True)
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(Hostile(), protocol))
        if name in ('inception', 'dinov2'):
            for option in ([f'--{name}', str(path)], []):
                if name == 'dinov2' and not option: continue
                with pytest.raises(SystemExit) as e:
                    main(['evaluate', '--tokenizer', 'shapes', '--networks', name, *option])
                assert e.value.code == 2 and path.name in capsys.readouterr().err
        else:
            lpips_at_hand.cache_clear()
            made = {'vgg': (lpips_vgg, lpips_at_hand), 'resnet50': (ResNet50,)}[name]
            for make in made:
                with pytest.raises(InputError): make()
            with pytest.raises(InputError): made[0](str(path))
    lpips_at_hand.cache_clear()
    assert not (tmp_path/'ran').exists()


def test_shares_are_whole_chunks():
    for count in (1, 31, 32, 100):
        for world in (1, 2, 7):
            assert sorted(n for r in range(world) for c in share(count, r, world)
                          for n in c) == list(range(count))
