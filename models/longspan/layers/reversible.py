"""A reversible stack: activations are computed again from the output instead of kept (Gomez et al. 2017).

Layer l maps two streams by ``Y1 = X1 + attention(X2)``, ``Y2 = X2 + feed_forward(Y1)`` and is inverted by
``X2 = Y2 - feed_forward(Y1)``, ``X1 = Y1 - attention(X2)`` (Kitaev et al. 2020, section 3). Memory for activations is
that of one sublayer, whatever the number of layers.

B batch, T tokens, E hidden size.
"""

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from longspan.layers.chunked import apply_chunked, pieces
from longspan.layers.decisions import Decisions, Seeds
from longspan.layers.recomputation import AutocastState, GradientSums, graph_is_retained, wide, without_hooks


class ReversibleBlock(Protocol):
    """What ``reversible`` asks of an nn.Module: two sublayers, each with its norm inside and no residual of its own.

    ``hidden [B, T, E]`` comes in the dtype that the stack was given; a sublayer may return another one (autocast). It
    is called twice in training and must compute the same both times: whatever it draws comes from ``decisions``, and
    it changes neither its arguments nor itself. ``feed_forward`` works token by token: it may be given a part of the
    tokens, with ``decisions`` of its own.
    """

    def attention(self, hidden: Tensor, decisions: Decisions, *args: Any) -> Tensor: ...

    def feed_forward(self, hidden: Tensor, decisions: Decisions) -> Tensor: ...


def reversible(
    blocks: Sequence[Any] | nn.ModuleList,
    hidden: Tensor,
    *args: Any,
    rows: int = 0,
    states: list[Tensor] | None = None,
    keep_activations: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the stack; both streams start as ``hidden``.

    It is one autograd function whose inputs are all parameters and which returns their gradients: hooks, distributed
    wrappers and gradient scalers see what they see in any model. Backward leaves the default generators as they are.

    Args:
        blocks: nn.Modules, each a ``ReversibleBlock``.
        hidden: ``[B, T, E]``.
        *args: passed on to every ``attention``: tensors (gradients reach those that want one) or anything else
            (a tensor inside another argument is a constant).
        rows: tokens that ``feed_forward`` is given at a time, 0 = all; any number, in the backward pass too.
        states: a list that receives the second stream: what goes in, then what leaves each layer (layers + 1 tensors).
            Then activations are kept.
        keep_activations: plain autograd, e.g. to differentiate twice, or if sublayers collect attention weights.

    Returns:
        Both streams ``[B, T, E]``, float32, or float64 for float64: rounding to 16 bits would grow from layer to layer
        when sublayers are subtracted again.

    Raises:
        ValueError: if ``rows`` is negative, or FSDP shards parts of the stack instead of the stack.
        RuntimeError: in backward, if parameters, arguments, streams or the training mode were changed since the
            forward pass, or with ``create_graph``.
    """
    parameters = _parameters(blocks)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in [hidden, *tensors, *parameters]) and len(blocks)
    # The copies that nn.DataParallel makes hold tensors that no list of parameters names.
    copied = any(getattr(block, "_is_replica", False) for block in blocks)
    if not wanted or keep_activations or states is not None or copied or torch.compiler.is_compiling():
        return _keep_activations(blocks, hidden, args, rows, states)
    _refuse_shards(blocks)
    call = _Call(blocks, hidden, args, rows)
    return _Reversible.apply(call, hidden, *tensors, *parameters)


def _keep_activations(blocks, hidden, args, rows, states) -> tuple[Tensor, Tensor]:
    seeds = Seeds()
    x1 = x2 = hidden.to(wide(hidden.dtype))
    if states is not None:
        states.append(x2)
    for block in blocks:
        x1 = x1 + block.attention(x2.to(hidden.dtype), Decisions(seeds), *args)

        def feed_forward(piece: Tensor, block=block) -> Tensor:
            return block.feed_forward(piece, Decisions(seeds))

        x2 = x2 + apply_chunked(feed_forward, x1.to(hidden.dtype), rows)
        if states is not None:
            states.append(x2)
    return x1, x2


class _Call:
    """One pass through the stack: what its backward pass needs beside the tensors that autograd itself saves."""

    def __init__(self, blocks, hidden: Tensor, args: tuple, rows: int):
        self.blocks, self.rows, self.dtype = blocks, rows, hidden.dtype
        self.args = [None if isinstance(arg, Tensor) else arg for arg in args]
        self.places = [place for place, arg in enumerate(args) if isinstance(arg, Tensor)]
        self.autocast = AutocastState(hidden.device.type)
        self.conditions = self._conditions()
        self.decisions: list[tuple[Decisions, list[Decisions]]] | None = None  # attention, pieces of the feed-forward
        self.streams: tuple[Tensor, Tensor] | None = None

    def with_tensors(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The arguments of ``attention``; autograd keeps those that are tensors."""
        args = list(self.args)
        for place, tensor in zip(self.places, tensors, strict=True):
            args[place] = tensor
        return args

    def keep(self, x1: Tensor, x2: Tensor, decisions: list[tuple[Decisions, list[Decisions]]]) -> None:
        # Aliases, which share the count of changes in place: the outputs themselves would make a cycle.
        self.streams = x1.detach(), x2.detach()
        self.versions = x1._version, x2._version
        self.decisions = decisions

    def release(self, retain: bool) -> tuple[Tensor, Tensor, list[tuple[Decisions, list[Decisions]]]]:
        """Hand over streams and decisions; unless ``retain``, nothing holds them here any longer."""
        assert self.streams is not None and self.decisions is not None
        if tuple(stream._version for stream in self.streams) != self.versions:
            raise RuntimeError("the output of reversible layers was changed in place before backward")
        if self._conditions() != self.conditions:
            raise RuntimeError(
                "parameters of reversible layers were changed or replaced, or the layers were switched between "
                "training and evaluation, after the forward pass and before backward"
            )
        x1, x2 = self.streams
        decisions = list(self.decisions)
        if not retain:
            self.streams = self.decisions = None
        return x1, x2, decisions

    def _conditions(self) -> list[tuple[int, int]]:
        parameters = [(id(p), p._version) for p in _parameters(self.blocks)]
        return [*parameters, *((id(module), module.training) for block in self.blocks for module in block.modules())]


class _Reversible(torch.autograd.Function):
    """Inputs: a ``_Call``, ``hidden``, the tensors among its arguments, the parameters of all blocks."""

    @staticmethod
    def forward(ctx, call: _Call, hidden: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.call = call
        ctx.save_for_backward(*tensors[: len(call.places)])
        args = call.with_tensors(tensors[: len(call.places)])
        decisions, seeds = [], Seeds()
        x1 = x2 = hidden.to(wide(hidden.dtype))
        for block in call.blocks:
            attention, parts = Decisions(seeds), []
            decisions.append((attention, parts))
            with attention.recording(hidden.device):
                x1 = x1 + block.attention(x2.to(call.dtype), attention, *args)

            def feed_forward(piece: Tensor, block=block, parts=parts) -> Tensor:
                parts.append(Decisions(seeds))
                with parts[-1].recording(piece.device):
                    return block.feed_forward(piece, parts[-1])

            x2 = x2 + apply_chunked(feed_forward, x1.to(call.dtype), call.rows)
        call.keep(x1, x2, decisions)
        return x1, x2

    @staticmethod
    def backward(ctx, *grads: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "reversible layers are differentiated once: for create_graph=True call them with keep_activations=True"
            )
        call: _Call = ctx.call
        tensors = [  # leaves of their own
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=False)
        ]
        parameters = _parameters(call.blocks)
        trainable = [[p for p in _parameters([block]) if p.requires_grad] for block in call.blocks]
        last = 0  # layer to undo: nothing below wants a gradient
        if not ctx.needs_input_grad[1] and not any(tensor.requires_grad for tensor in tensors):
            last = next(layer for layer, wanted in enumerate(trainable) if wanted)
        sums = GradientSums([*tensors, *parameters])
        way_back = _WayBack(call, grads, tensors, sums, retain=graph_is_retained())
        with without_hooks(parameters):
            for layer in reversed(range(last, len(call.blocks))):
                way_back.undo_feed_forward(call.blocks[layer], trainable[layer])
                way_back.undo_attention(call.blocks[layer], trainable[layer])
        grad_hidden = way_back.grad_hidden() if ctx.needs_input_grad[1] else None
        return None, grad_hidden, *(sums.take(variable) for variable in [*tensors, *parameters])


class _WayBack:
    """Both streams and their gradients on the way from the output to the input.

    They live here and nowhere else, so that each is given back as soon as the next one is there.
    """

    def __init__(self, call: _Call, grads: Sequence[Tensor], tensors: list[Tensor], sums: GradientSums, retain: bool):
        self.call, self.sums = call, sums
        self.args = call.with_tensors(tensors)
        self.variables = [tensor for tensor in tensors if tensor.requires_grad]
        self.x1, self.x2, self.decisions = call.release(retain)
        self.grad1, self.grad2 = grads

    def undo_feed_forward(self, block, parameters: list[Tensor]) -> None:
        """Find ``X2`` and the gradient of ``Y1``."""
        x2, grad1 = torch.empty_like(self.x2), torch.empty_like(self.grad1)
        _, parts = self.decisions[-1]
        for piece, decisions in zip(pieces(x2.shape[-2], self.call.rows), parts, strict=True):
            at = (..., piece, slice(None))
            x, out, root = self._compute(block.feed_forward, self.x1[at], decisions)
            grad = self._differentiate(root, x, self.grad2[at].to(out.dtype), parameters)
            torch.sub(self.x2[at], out, out=x2[at])
            torch.add(self.grad1[at], grad, out=grad1[at])
        self.x2, self.grad1 = x2, grad1

    def undo_attention(self, block, parameters: list[Tensor]) -> None:
        """Find ``X1`` and the gradient of ``X2``."""
        decisions, _ = self.decisions.pop()
        x, out, root = self._compute(block.attention, self.x2, decisions, *self.args)
        self.x1 = self.x1 - out
        grad_out = self.grad1.to(out.dtype)
        del out
        self.grad2 = self.grad2 + self._differentiate(root, x, grad_out, self.variables + parameters)

    def grad_hidden(self) -> Tensor:
        return (self.grad1 + self.grad2).to(self.call.dtype)

    def _compute(self, function, x: Tensor, decisions: Decisions, *args) -> tuple[Tensor, Tensor, GradientEdge | None]:
        """A leaf with the values of x, ``function`` of it without a history, and where the history begins."""
        x = x.to(self.call.dtype).detach().requires_grad_()
        with decisions.replaying(), torch.enable_grad(), self.call.autocast.restored():
            out = function(x, decisions, *args)
        return x, out.detach(), get_gradient_edge(out) if out.requires_grad else None

    def _differentiate(self, root: GradientEdge | None, x: Tensor, grad_out: Tensor, variables: list[Tensor]) -> Tensor:
        """The gradient of x; those of ``variables`` go into the sums."""
        grads = (None,)
        if root is not None:
            grads = torch.autograd.grad(root, [x, *variables], grad_out, allow_unused=True)
            for variable, grad in zip(variables, grads[1:], strict=True):
                self.sums.add(variable, grad)
        return torch.zeros_like(x) if grads[0] is None else grads[0]


def _parameters(blocks) -> list[Tensor]:
    """Of all blocks, each once."""
    return list({id(p): p for block in blocks for p in block.parameters()}.values())


def _refuse_shards(blocks) -> None:
    """FSDP inside the stack would replace parameters under way, and their gradients would reach nobody."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for module in (module for block in blocks for module in block.modules()):
            if isinstance(module, (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)):
                raise ValueError(
                    f"FSDP wraps {type(module).__name__} inside a reversible stack: "
                    "wrap the module that holds all of its layers, or one around it"
                )
