"""A GPU where there is none: its tensors are computed on the CPU, and say that they lie elsewhere.

The first command on a real one dies of tensors on two devices, and is slow because a step waits for
a value. Both can be seen here. What cannot: kernels, their rounding, their memory, their speed."""
import collections, math, traceback
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

# operations whose result, or its size, the host has to wait for
WAITING = {'_local_scalar_dense', 'is_nonzero', 'equal', 'nonzero', 'masked_select', 'bincount',
           '_unique2', 'unique_dim', 'unique_consecutive', 'repeat_interleave', 'multinomial'}
INDEXING = {'index', 'index_put', 'index_put_', '_index_put_impl_'}
COPIES = {'copy_', '_to_copy'}
# beside those that go value by value, what takes a number from the CPU as it is
TAKES_NUMBERS = INDEXING | COPIES | {'fill_', 'fill', 'masked_fill', 'masked_fill_', 'index_fill',
                                     '_foreach_lerp_', '_foreach_mul_', '_foreach_div_'}


class Pretended(torch.Tensor):
    "A tensor that says it lies on a GPU; what it `held` lies on the CPU."
    @staticmethod
    def __new__(cls, held):
        return cls._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(),
                                          dtype=held.dtype, device='gpu:0')

    def __init__(self, held): self.held, self.seat = held, Seat(held.untyped_storage())

    def __repr__(self): return f'Pretended({self.held})'

    # with these two, Module.to keeps the parameters that an optimizer holds
    def __tensor_flatten__(self): return ['held'], None

    @staticmethod
    def __tensor_unflatten__(inner, *_): return Pretended(inner['held'])

    # these do not come by `compute`
    def tolist(self):
        wait('tolist')
        return self.held.tolist()

    def numpy(self): raise TypeError('A tensor on a GPU cannot become an array.')

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Gpu(TorchDispatchMode):
    "While it is entered, `torch.device('gpu')` is there; `waits` are those so far, with their place."
    waits, users = [], collections.Counter()
    used, peak, room = 0, 0, math.inf       # bytes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    @classmethod
    def taken(cls):
        "{what was waited for, and where: how often} since the last time."
        found = dict(collections.Counter(cls.waits))
        cls.waits.clear()
        return found


class Seat:
    "Counts the memory of a tensor until the last one that shares it is gone."
    def __init__(self, storage):
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        Gpu.users[self.key] += 1
        if Gpu.users[self.key] == 1: Gpu.used += self.size
        if Gpu.used > Gpu.room: raise torch.OutOfMemoryError
        Gpu.peak = max(Gpu.peak, Gpu.used)

    def __del__(self):
        Gpu.users[self.key] -= 1
        if not Gpu.users[self.key]: Gpu.used -= self.size


def wait(what):
    ours = [f for f in traceback.extract_stack() if 'maskbit' in f.filename]
    at = f', {ours[-1].name}: {ours[-1].line}' if ours else ''
    Gpu.waits.append(f'{what}{at}')


def register():
    "Make the device known to torch, for good: in a process that does nothing else."
    _setup_privateuseone_for_python_backend('gpu')
    torch.gpu.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._C._set_only_lift_cpu_tensors(True)       # torch.tensor(..., device='gpu') is a copy


def note_waits(name, func, args, kwargs, here, there, to):
    "Write down what a real GPU would have waited for."
    if here and name in WAITING: wait(name)
    if name in INDEXING and here:
        for i in args[1]:
            if i is None: continue
            if i.dtype in (torch.bool, torch.uint8): wait('an index that is a mask')
            if not isinstance(i, Pretended): wait('an index on the CPU')
    across = name == 'copy_' and here and there or name == '_to_copy' and to not in (None, bool(here))
    asked = kwargs.get('non_blocking') or name == 'copy_' and len(args) > 2 and args[2]
    if across and not asked: wait('a copy between devices')


def check_devices(name, func, args, here, there):
    "Refuse what a real GPU would refuse: tensors on both devices, but for single numbers."
    if not here or not there or name in COPIES: return
    numbers = torch.Tag.pointwise in func.tags or name in TAKES_NUMBERS
    if name in INDEXING: there = [t for t in there if not any(t is i for i in args[1])]
    into = func._schema.is_mutable and not isinstance(args[0], (Pretended, list, tuple))
    if into or any(t.ndim for t in there) or there and not numbers:
        shapes = [(type(t).__name__, tuple(t.shape)) for t in [*here, *there]]
        raise RuntimeError(f'{func} has tensors on two devices: {shapes}')


def compute(func, args, kwargs):
    "An operation, on the CPU; its result lies on the GPU if it was asked to, or its inputs do."
    name, kwargs = func.overloadpacket.__name__, dict(kwargs)
    tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, Pretended)]
    there = [t for t in tensors if not isinstance(t, Pretended)]
    asked = kwargs.get('device')
    to = None if asked is None else torch.device(asked).type == 'gpu'
    note_waits(name, func, args, kwargs, here, there, to)
    check_devices(name, func, args, here, there)
    if name == '_fused_sdp_choice': return 0        # attention by its formula
    if to: kwargs['device'] = torch.device('cpu')
    known = {id(t.held): t for t in here}
    def held(t): return t.held if isinstance(t, Pretended) else t
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if name == 'copy_': return args[0]
    def given(t):
        if not isinstance(t, torch.Tensor): return t
        if id(t) in known: return known[id(t)]
        return Pretended(t) if (here if to is None else to) else t
    return tree_map(given, out)
