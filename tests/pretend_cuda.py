"""A GPU that is not there: tensors that say they lie on "cuda", with the rules of a GPU and the values of the CPU.

``with pretend_cuda() as gpu:`` makes ``device="cuda"`` work without one, and ``gpu.put`` moves tensors and modules.
What would fail on a GPU fails here: an operator that is given tensors of both devices, numbers drawn there from the
CPU's generator, ``.numpy()``. What would make the host wait is noted in ``gpu.waits``: reading a value, indexing with a
mask or a list, copying without ``non_blocking``. Control flow that depends on values works, and results can be compared
with those of the CPU. ``torch.autocast("cuda")`` casts as torch documents it. Kernels are those of the CPU, or with
``references=True`` the operators' PyTorch references, as on a GPU that no kernels were built for.

torch's own FakeTensorMode cannot do it: it has no values, and without a CUDA build of torch no backward pass.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PACKAGE = Path(__file__).parents[1] / "models" / "longspan"

# What autocast does on CUDA (torch's documentation, "CUDA Ops that can autocast"), by name of function.
NARROW = {
    "__matmul__", "__rmatmul__", "addbmm", "addmm", "addmv", "addr", "baddbmm", "bmm", "chain_matmul", "conv1d",
    "conv2d", "einsum", "linear", "matmul", "mm", "mv", "prelu", "scaled_dot_product_attention",
}  # fmt: skip
WIDE = {
    "__pow__", "__rdiv__", "__rpow__", "__rtruediv__", "acos", "asin", "binary_cross_entropy_with_logits", "cdist",
    "cosh", "cosine_embedding_loss", "cosine_similarity", "cross_entropy", "cumprod", "cumsum", "dist", "erfinv",
    "exp", "expm1", "group_norm", "huber_loss", "kl_div", "l1_loss", "layer_norm", "log", "log10", "log1p", "log2",
    "log_softmax", "logsumexp", "mse_loss", "native_layer_norm", "nll_loss", "norm", "pow", "prod", "reciprocal",
    "renorm", "rsqrt", "sinh", "smooth_l1_loss", "soft_margin_loss", "softmax", "softplus", "sum", "tan",
}  # fmt: skip
PROMOTED = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cat", "cross", "dot", "index_put", "scatter_add", "stack",
    "tensordot", "vdot",
}  # fmt: skip


class PretendTensor(Tensor):
    """What torch sees is a tensor without values, on "meta"; the values are those of ``inner``, on the CPU."""

    inner: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = is_meta = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor):
        layout = dict(strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype)
        made = Tensor._make_wrapper_subclass(cls, inner.shape, device="meta", **layout)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"pretend_cuda({self.inner})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func.name()} outside of pretend_cuda()")


class Gpu:
    """What happened on the GPU.

    Attributes:
        waits: "module.function: operator" of the package, one for each time that the host waited.
        generator: state of the GPU's random numbers; at first that of the CPU's.
    """

    def __init__(self, references: bool):
        self.references = references
        self.waits: list[str] = []
        self.generator = torch.get_rng_state()
        self.autocast: torch.dtype | None = None  # of the function that runs

    def put(self, what: Any) -> Any:
        """A tensor, a dict of tensors, or a module in place: its parameters and buffers, as ``.to`` moves them."""
        if isinstance(what, dict):
            return {name: self.put(value) for name, value in what.items()}
        if isinstance(what, Tensor):
            return PretendTensor(what)
        moved: dict[int, Tensor] = {}

        def move(x: Tensor | None) -> Tensor | None:
            if x is not None and id(x) not in moved:
                there = PretendTensor(x.detach())
                moved[id(x)] = nn.Parameter(there, x.requires_grad) if isinstance(x, nn.Parameter) else there
            return None if x is None else moved[id(x)]

        for module in what.modules():
            for table in (module._parameters, module._buffers):
                table.update({name: move(x) for name, x in table.items()})
        return what

    def note(self, operator: str) -> None:
        """The host waits: note the function of the package that made it, and none of the code outside."""
        frame: Any = sys._getframe(1)
        while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        if frame is not None:
            self.waits.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}: {operator}")

    def seed(self) -> None:
        """The GPU's generator goes on from the state of the CPU's."""
        self.generator = torch.get_rng_state()

    def set_generator(self, state: Tensor, device: Any = None) -> None:
        self.generator = state.clone()


def _is_there(x: Any) -> bool:
    return isinstance(x, PretendTensor)


def _masks(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _waits(name: str, args: tuple, kwargs: dict, there: bool, target: bool) -> bool:
    """Whether the host waits for an operator; ``there``: it reads the GPU, ``target``: its result lies there."""
    if name in ("aten::_to_copy", "aten::copy_"):
        source = _is_there(args[1]) if name == "aten::copy_" else there
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return source != target and (blocking or source)
    if name in ("aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"):
        return there and _masks(args[1])
    if name == "aten::repeat_interleave.Tensor":
        return there and kwargs.get("output_size") is None
    return there and name in (
        "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::bincount",
        "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
    )  # fmt: skip


@cache
def _autocast_rules() -> set[str]:
    """Functions that torch has a rule for (private in torch)."""
    operators = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    return {name.split("::")[1].split(".")[0] for name in operators}


class _Operators(TorchDispatchMode):
    """Below autograd: checks where tensors lie, and computes."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._can_decompose():  # under no_grad and in kernels, functions made of operators come here too
            with self:
                return func.decompose(*args, **kwargs)
        name = func.name()
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = any(map(_is_there, tensors))
        if there and name not in ("aten::_to_copy", "aten::copy_"):
            self._check_devices(func, tensors)
        device = kwargs.get("device")
        target = there if device is None else torch.device(device).type != "cpu"
        if name == "aten::copy_":
            target = _is_there(args[0])
        if target and kwargs.get("generator") is not None:
            raise RuntimeError(f"{name}: expected a generator of cuda, got one of the cpu")
        if there and name.startswith("longspan::") and self.gpu.references:
            # torch turns autocast off for modes, but not for kernels.
            dtype = self.gpu.autocast
            with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None), _Functions(self.gpu), self:
                # A key that no kernel is registered for.
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.XLA), *args, **kwargs)
        if _waits(name, args, kwargs, there, target):
            self.gpu.note(name)
        out = self._compute(func, args, kwargs, draws=target and torch.Tag.nondeterministic_seeded in func.tags)
        if not target:
            return out
        out = tree_map(lambda x: PretendTensor(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _check_devices(self, func, tensors: list[Tensor]) -> None:
        for x in tensors:
            scalar = x.dim() == 0 and torch.Tag.pointwise in func.tags
            if not _is_there(x) and not scalar:
                given = ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in tensors)
                raise RuntimeError(f"{func.name()}: expected all tensors on one device, got {given}")

    def _compute(self, func, args: tuple, kwargs: dict, draws: bool) -> Any:
        def here(x: Any) -> Any:
            return x.inner if _is_there(x) else CPU if isinstance(x, torch.device) else x

        args, kwargs = tree_map(here, args), tree_map(here, kwargs)
        if not draws:
            return func(*args, **kwargs)
        outside = torch.get_rng_state()
        torch.set_rng_state(self.gpu.generator)
        try:
            return func(*args, **kwargs)
        finally:
            self.gpu.generator = torch.get_rng_state()
            torch.set_rng_state(outside)


class _Functions(TorchFunctionMode):
    """Above autograd: autocast, and what Python gives to tensors that are no tensors."""

    def __init__(self, gpu: Gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and not _is_there(args[0]):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                return func(*args, **kwargs | {"device": CPU}).to(CUDA)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _is_there(args[0]):
            args = (args[0], self._index(args[1]), *args[2:])
        self.gpu.autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        if self.gpu.autocast is not None and kwargs.get("out") is None:
            args, kwargs = self._autocast(getattr(func, "__name__", ""), args, kwargs)
        return func(*args, **kwargs)

    def _index(self, index: Any) -> Any:
        if isinstance(index, tuple):
            return tuple(map(self._index, index))
        return torch.tensor(index).to(CUDA) if isinstance(index, list) else index

    def _autocast(self, name: str, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        def can(x: Any) -> bool:
            return _is_there(x) and x.is_floating_point() and x.dtype != torch.float64

        dtype = None
        if name in NARROW:
            dtype = torch.get_autocast_dtype("cuda")
        elif name in WIDE:
            dtype = torch.float32 if kwargs.get("dtype") is None else None
        elif name in PROMOTED:
            mixed = len({x.dtype for x in tree_leaves((args, kwargs)) if can(x)}) > 1
            dtype = torch.float32 if mixed else None
        else:
            assert name not in _autocast_rules(), f"autocast has a rule for {name}: add it here"
        if dtype is None:
            return args, kwargs
        return tree_map(lambda x: x.to(dtype) if can(x) else x, (args, kwargs))


@contextmanager
def pretend_cuda(*, references: bool = False) -> Iterator[Gpu]:
    """A GPU for the block. ``references``: operators run as PyTorch references, not by the CPU's kernels."""
    gpu = Gpu(references)
    replaced = [
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "get_rng_state", lambda device=None: gpu.generator.clone()),
        (torch.cuda, "set_rng_state", gpu.set_generator),
        (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        # A mode is off while one of its functions runs, and all of a backward pass would be such a function.
        (torch.autograd, "has_torch_function", lambda tensors: False),
        (torch._tensor, "has_torch_function_unary", lambda tensor: False),
    ]
    with ExitStack() as stack:
        for place, name, value in replaced:
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(_Functions(gpu))
        stack.enter_context(_Operators(gpu))
        yield gpu
