"""Reformer's weights elsewhere: in trax, where it comes from, and in old files of transformers.

Our names are transformers' own. trax has no names: its weights are nested tuples in the order of the layers, and how
they nest has changed between releases (chunked feed-forward adds levels). The order of the arrays has not, so the table
is one of that order: for each array our name, and the steps that turn it into ours.

V vocabulary, E hidden size, H heads, D head size, F feed-forward size, S_a cells of axis a of the positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longspan.reformer.configuration_reformer import ReformerConfig

# Names in older files of transformers that stand for nothing: constants of the masks, and a second lm_head.bias.
UNUSED_NAMES = (r"self_attention\.(self_)?mask_value_float(16|32)$", r"^lm_head\.decoder\.bias$")

# copy: as it is; transpose: swaps the last two dimensions; stack: puts the parts of the first dimension below each
# other, [parts, n, ...] -> [parts * n, ...]; split: undoes stack.
Step = Literal["copy", "transpose", "stack", "split"]
COPY: tuple[Step, ...] = ("copy",)
DENSE: tuple[Step, ...] = ("transpose",)  # [in, out] -> [out, in]
TO_HEADS: tuple[Step, ...] = ("transpose", "stack")  # [H, E, D] -> [H * D, E]
FROM_HEADS: tuple[Step, ...] = ("stack", "transpose")  # [H, D, E] -> [E, H * D]
TABLE: tuple[Step, ...] = ("stack",)  # [1, ...] -> [...]: positions are added to a batch
UNDO: dict[Step, Step] = {"copy": "copy", "transpose": "transpose", "stack": "split", "split": "stack"}


@dataclass(frozen=True)
class Entry:
    """One array.

    Args:
        name: of our parameter, in a model with the language model head.
        steps: what makes of trax's array our tensor, in order.
        parts: how many parts ``stack`` puts together.
    """

    name: str
    steps: tuple[Step, ...] = COPY
    parts: int = 1


ATTENTION = {
    "lsh": (("self_attention.query_key", TO_HEADS), ("self_attention.value", TO_HEADS), ("output.dense", FROM_HEADS)),
    "local": (
        ("self_attention.query", TO_HEADS),
        ("self_attention.key", TO_HEADS),
        ("self_attention.value", TO_HEADS),
        ("output.dense", FROM_HEADS),
    ),
}
FEED_FORWARD = (
    ("layer_norm.weight", COPY),
    ("layer_norm.bias", COPY),
    ("dense.dense.weight", DENSE),
    ("dense.dense.bias", COPY),
    ("output.dense.weight", DENSE),
    ("output.dense.bias", COPY),
)
HEAD = (
    ("reformer.encoder.layer_norm.weight", COPY),
    ("reformer.encoder.layer_norm.bias", COPY),
    ("lm_head.decoder.weight", DENSE),
    ("lm_head.bias", COPY),
)


def trax_entries(config: ReformerConfig) -> list[Entry]:
    """The arrays of trax's ``ReformerLM``, in its order, for a model of these layers and positions."""
    embeddings = "reformer.embeddings"
    entries = [Entry(f"{embeddings}.word_embeddings.weight")]
    if config.axial_pos_embds:
        axes = range(len(config.axial_pos_shape))
        entries += [Entry(f"{embeddings}.position_embeddings.weights.{axis}", TABLE) for axis in axes]
    else:
        entries.append(Entry(f"{embeddings}.position_embeddings.embedding.weight", TABLE))
    for index, kind in enumerate(config.attn_layers):
        layer = f"reformer.encoder.layers.{index}"
        entries += [Entry(f"{layer}.attention.layer_norm.{name}") for name in ("weight", "bias")]
        heads = config.num_attention_heads
        entries += [Entry(f"{layer}.attention.{name}.weight", steps, heads) for name, steps in ATTENTION[kind]]
        entries += [Entry(f"{layer}.feed_forward.{name}", steps) for name, steps in FEED_FORWARD]
    return entries + [Entry(name, steps) for name, steps in HEAD]


def from_trax(weights: Any, config: ReformerConfig) -> dict[str, Tensor]:
    """Weights of trax's ``ReformerLM`` -> state dict of ``ReformerModelWithLMHead``.

    trax shifts its input by one token: to compute what it computes, put one token 0 before a text.

    Args:
        weights: ``model.weights`` with its nested tuples, or the flat list of a trax file ("flat_weights").
        config: of the model, with the layers, sizes and positions of the trax model.

    Raises:
        ValueError: when the number of arrays or the shape of one is not what the configuration calls for.
    """
    arrays, entries = list(_leaves(weights)), trax_entries(config)
    if len(arrays) != len(entries):
        raise ValueError(
            f"weights holds {len(arrays)} arrays, a model with attn_layers = {config.attn_layers} has {len(entries)}"
        )
    shapes = trax_shapes(config)
    state_dict = {}
    for array, entry, shape in zip(arrays, entries, shapes, strict=True):
        tensor = torch.from_numpy(np.array(array))
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{entry.name} is made of an array {list(shape)}, got {list(tensor.shape)}")
        state_dict[entry.name] = _apply(tensor, entry.steps, entry.parts)
    return state_dict


def to_trax(state_dict: Mapping[str, Tensor], config: ReformerConfig, like: Any = None) -> Any:
    """State dict of ``ReformerModelWithLMHead`` -> trax's weights.

    Args:
        state_dict: of the model.
        config: of the model.
        like: weights of a trax model of the same configuration, whose nested tuples the result takes on. None: the
            flat list.

    Raises:
        ValueError: when a parameter is missing, or ``like`` holds another number of arrays.
    """
    arrays = []
    for entry in trax_entries(config):
        if entry.name not in state_dict:
            raise ValueError(f"state_dict has no {entry.name!r}")
        steps: tuple[Step, ...] = tuple(UNDO[step] for step in reversed(entry.steps))
        arrays.append(_apply(state_dict[entry.name].detach().cpu(), steps, entry.parts).float().numpy())
    if like is None:
        return arrays
    wanted = sum(1 for _ in _leaves(like))
    if wanted != len(arrays):
        raise ValueError(f"like holds {wanted} arrays, the model has {len(arrays)}")
    return _fill(like, iter(arrays))


def trax_shapes(config: ReformerConfig) -> list[tuple[int, ...]]:
    """Shapes of trax's arrays, in the order of ``trax_entries``."""
    E, H, D, F = (
        config.hidden_size,
        config.num_attention_heads,
        config.attention_head_size,
        config.feed_forward_size,
    )
    shapes: list[tuple[int, ...]] = [(config.vocab_size, E)]
    if config.axial_pos_embds:
        cells, widths = config.axial_pos_shape, config.axial_pos_embds_dim
        for axis, (size, width) in enumerate(zip(cells, widths, strict=True)):
            shapes.append((1, *(size if other == axis else 1 for other in range(len(cells))), width))
    else:
        shapes.append((1, config.max_position_embeddings, E))
    for kind in config.attn_layers:
        projections = len(ATTENTION[kind]) - 1
        shapes += [(E,), (E,), *[(H, E, D)] * projections, (H, D, E)]
        shapes += [(E,), (E,), (E, F), (F,), (F, E), (E,)]
    return [*shapes, (2 * E,), (2 * E,), (2 * E, config.vocab_size), (config.vocab_size,)]


def _apply(tensor: Tensor, steps: tuple[Step, ...], parts: int) -> Tensor:
    for step in steps:
        if step == "transpose":
            tensor = tensor.transpose(-1, -2)
        elif step == "stack":
            tensor = tensor.flatten(0, 1)
        elif step == "split":
            tensor = tensor.unflatten(0, (parts, -1))
    return tensor.contiguous()


def _leaves(tree: Any) -> Iterator[Any]:
    """Arrays of nested tuples, lists and dicts, in order; layers without weights have empty tuples."""
    if isinstance(tree, Mapping):
        tree = [tree[key] for key in sorted(tree)]
    if isinstance(tree, str | bytes):
        raise ValueError(f"weights must be nested tuples of arrays, got {tree!r}")
    if isinstance(tree, Sequence):
        for part in tree:
            yield from _leaves(part)
    elif getattr(tree, "ndim", 0) > 0:
        yield tree


def _fill(tree: Any, arrays: Iterator[Any]) -> Any:
    if isinstance(tree, Mapping):
        filled = {key: _fill(tree[key], arrays) for key in sorted(tree)}
        return {key: filled[key] for key in tree}
    if isinstance(tree, Sequence):
        return type(tree)(_fill(part, arrays) for part in tree)  # type: ignore[call-arg]
    return next(arrays) if getattr(tree, "ndim", 0) > 0 else tree
