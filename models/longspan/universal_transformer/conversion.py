"""Weights of tensor2tensor: a table of variable names, both ways, and what becomes of each array.

The published Universal Transformers were trained with tensor2tensor. Its dense kernels are [in, out], ours [out, in];
the rows of its embedding are cut into several variables, which we join.

V words, C channels of a signal, k kernel size.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Transform:
    """What becomes of an array of tensor2tensor's, and back.

    Args:
        inward: theirs -> ours.
        outward: ours -> theirs.
    """

    inward: Callable[[Tensor], Tensor]
    outward: Callable[[Tensor], Tensor]


COPY = Transform(lambda x: x, lambda x: x)
TRANSPOSE = Transform(lambda x: x.T, lambda x: x.T)
STEPS = Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None])  # [steps, 1, 1, C] <-> [steps, C]
DEPTHWISE = Transform(
    lambda x: x[:, 0].permute(1, 2, 0), lambda x: x.permute(2, 0, 1)[:, None]
)  # [k,1,C,1] <-> [C,1,k]
POINTWISE = Transform(lambda x: x[0, 0].T, lambda x: x.T[None, None])  # [1, 1, in, out] <-> [out, in]

# Names below ``encoder.`` and ``decoder.``: ours as a pattern, theirs, transform; the first that fits counts. What a
# named group found is translated by `_TRANSLATIONS`; "{ut}" is the scope of the recurrence, as
# "universal_transformer_act", "{gates}" that of its gates, and "{norm}" is "layer_prepostprocess" or
# "layer_postprocess", by the place of the norm.
_GATE = r"recurrence\.(?P<gate>update|reset|candidate|input|forget|output|modulation)"
_ATTENTION = r"(?P<layer>.+)\.(?P<attention>self|cross)_attn"
_FFN = r"(?P<layer>.+)\.ffn"
_NORM, _CONV = "layer_norm/layer_norm_{part}", "{layer}/ffn/sepconv_relu_sepconv/conv{number}_single"
STACK_NAMES: tuple[tuple[str, str, Transform], ...] = (
    (r"final_norm\.(?P<part>\w+)", f"layer_prepostprocess/{_NORM}", COPY),
    (r"coordinates\.step_embedding\.weight", "{ut}/layer_embedding", STEPS),
    (r"coordinates\.projection\.weight", "{ut}/{signals}/kernel", TRANSPOSE),
    (r"recurrence\.halting\.weight", "{ut}/sigmoid_activation_for_pondering/dense/kernel", TRANSPOSE),
    (r"recurrence\.halting\.bias", "{ut}/sigmoid_activation_for_pondering/dense/bias", COPY),
    (
        r"recurrence\.(?P<norms>\w+_norms?(?:\.\d+)?)\.(?P<part>\w+)",
        f"{{ut}}/layer_prepostprocess{{norms}}/{_NORM}",
        COPY,
    ),
    (r"recurrence\.weigh\.weight", "{ut}/dense/kernel", TRANSPOSE),
    (r"recurrence\.weigh\.bias", "{ut}/dense/bias", COPY),
    (r"recurrence\.depth_embedding\.weight", "{ut}/depth_embedding", STEPS),
    (r"recurrence\.(?P<gate>transform|carry)\.weight", "{ut}/{gate}/kernel", TRANSPOSE),
    (r"recurrence\.(?P<gate>transform|carry)\.bias", "{ut}/{gate}/bias", COPY),
    (rf"{_GATE}\.weight", "{ut}/{gates}/{gate}/kernel", TRANSPOSE),
    (rf"{_GATE}\.bias", "{ut}/{gates}/{gate}/bias", COPY),
    (
        rf"{_ATTENTION}\.(?P<projection>\w)_proj\.weight",
        "{layer}/{attention}/multihead_attention/{projection}/kernel",
        TRANSPOSE,
    ),
    (rf"{_ATTENTION}_norm\.(?P<part>\w+)", f"{{layer}}/{{attention}}/{{norm}}/{_NORM}", COPY),
    (rf"{_FFN}_norm\.(?P<part>\w+)", f"{{layer}}/ffn/{{norm}}/{_NORM}", COPY),
    (rf"{_FFN}\.fc(?P<number>\d)\.weight", "{layer}/ffn/conv{number}/kernel", TRANSPOSE),
    (rf"{_FFN}\.fc(?P<number>\d)\.bias", "{layer}/ffn/conv{number}/bias", COPY),
    (rf"{_FFN}\.conv(?P<number>\d)\.depthwise\.weight", f"{_CONV}/depthwise_kernel", DEPTHWISE),
    (rf"{_FFN}\.conv(?P<number>\d)\.pointwise\.weight", f"{_CONV}/pointwise_kernel", POINTWISE),
    (rf"{_FFN}\.conv(?P<number>\d)\.pointwise\.bias", f"{_CONV}/bias", COPY),
)
_TRANSLATIONS = {
    "attention": {"self": "self_attention", "cross": "encdec_attention"},
    "projection": {"o": "output_transform"},
    "part": {"weight": "scale"},
    "gate": {"modulation": "input_modulation"},
    # Norms of gates are numbered in the order in which the code makes them; the first has no number.
    "norms": {"input_norm": "", "output_norm": "_1", "gate_norms.0": "", "gate_norms.1": "_1", "gate_norms.2": "_2"},
}
TABLES = {  # tables of words, whose rows are cut into variables ``<table>/weights_0``, ``weights_1``, ...
    "embeddings.word_embeddings.weight": ("shared", "input_emb", "target_emb"),  # one for all, or one for each use
    "target_embeddings.word_embeddings.weight": ("target_emb",),
    "lm_head.decoder.weight": ("softmax",),
}
TARGET_SPACE = ("embeddings.target_space.weight", "target_space_embedding/kernel")


def stack_variable(name: str, recurrence: str, norm_position: str) -> tuple[str, Transform]:
    """tensor2tensor's name of a parameter of a stack, and what becomes of it.

    Args:
        name: ours, below ``encoder.`` or ``decoder.``
        recurrence: of the configuration.
        norm_position: of the configuration.

    Raises:
        ValueError: for a parameter that tensor2tensor does not have.
    """
    slots = {
        "ut": f"universal_transformer_{recurrence}",
        "gates": recurrence,
        "signals": "dense_1" if recurrence == "dwa" else "dense",  # unnamed there, and behind the weights of depth
        "norm": "layer_prepostprocess" if norm_position == "pre" else "layer_postprocess",
    }
    for pattern, theirs, transform in STACK_NAMES:
        found = re.fullmatch(pattern, name)
        if found is not None:
            for group, value in found.groupdict().items():
                translated = _TRANSLATIONS.get(group, {}).get(value, value)
                slots[group] = _layer_scope(value, recurrence) if group == "layer" else translated
            return theirs.format(**slots), transform
    raise ValueError(f"tensor2tensor has no variable for the parameter {name!r}")


def _layer_scope(ours: str, recurrence: str) -> str:
    """Scope of a layer: "block.0" -> "universal_transformer_act/rec_layer_0"; with gates the block has none."""
    kind, _, number = ours.partition(".")
    scopes = {"block": "rec_layer_", "prelude": "before_ut_layer_", "coda": "after_ut_layer_"}
    inner = "" if kind == "block" and recurrence in ("gru", "lstm") else f"/{scopes.get(kind, kind)}{number}"
    return f"universal_transformer_{recurrence}{inner}"


def _entries(model: nn.Module) -> Iterator[tuple[str, str, str, Transform]]:
    """Each parameter's name, "stack" | "table" | "space", its variable below the scope of those, and the transform."""
    config: Any = model.config
    prefix = f"{config.model_type.removeprefix('longspan_')}."
    for name in model.state_dict():
        own = name.removeprefix(prefix)
        if own.startswith(("encoder.", "decoder.")):
            stack, _, inner = own.partition(".")
            variable, transform = stack_variable(inner, config.recurrence, config.norm_position)
            yield name, "stack", f"{stack}/{variable}", transform
        elif own in TABLES:
            tied = own == "lm_head.decoder.weight" and config.tie_word_embeddings
            own_table = config.is_encoder_decoder and not config.share_embeddings
            scored_by = f"{'target_' if own_table else ''}embeddings.word_embeddings.weight"
            yield name, "table", scored_by if tied else own, COPY
        elif own == TARGET_SPACE[0]:
            yield name, "space", TARGET_SPACE[1], COPY
        else:
            raise ValueError(
                f"{type(model).__name__} has the parameter {name!r}, which tensor2tensor's models have not"
            )


def from_tensor2tensor(variables: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Variables of a tensor2tensor checkpoint -> state dict of ``model``.

    Variables that belong to none of its parameters (of the optimizer, counters) are passed over. Where the checkpoint
    has no embeddings, or one stack of two, nor has the state dict: load it with ``strict=False``.

    Args:
        variables: arrays by name; the scope before ``encoder/`` or ``decoder/`` is found out.
        model: a Universal Transformer of the shape that `hyperparameters.fields_from_hparams` tells, bare or with a
            head that scores words; its weights are not read. For other heads save the bare model, and load its folder
            with theirs.

    Raises:
        ValueError: when a variable is missing, or its shape does not fit.
    """
    scope, stacks = _body_scope(variables)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    has_tables = any(re.search(r"/weights_\d+$", name) for name in variables)
    state_dict = {}
    for name, kind, variable, transform in _entries(model):
        if kind == "table":
            if not has_tables:
                continue
            array = _read_table(variables, TABLES[variable], name)
        elif (kind == "space" and not has_tables) or (kind == "stack" and variable.split("/")[0] not in stacks):
            continue
        else:
            full = scope + variable
            if full not in variables:
                raise ValueError(f"variables has no {full!r}, which {name} is made of")
            array = torch.as_tensor(np.asarray(variables[full]))
        array = transform.inward(array).contiguous()
        if tuple(array.shape) != shapes[name]:
            raise ValueError(f"{name} has the shape {list(shapes[name])}, {variable} makes {list(array.shape)}")
        state_dict[name] = array
    return state_dict


def to_tensor2tensor(model: nn.Module, scope: str = "universal_transformer", shards: int = 16) -> dict[str, np.ndarray]:
    """Weights of ``model`` -> tensor2tensor's variables.

    Args:
        model: a Universal Transformer.
        scope: what all names begin with.
        shards: into how many variables the rows of an embedding are cut.
    """
    config: Any = model.config
    one_table = config.tie_word_embeddings and (config.share_embeddings or not config.is_encoder_decoder)
    state_dict, variables = model.state_dict(), {}
    for name, kind, variable, transform in _entries(model):
        tensor = state_dict[name].detach().cpu()
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which numpy lacks
        array = transform.outward(tensor).contiguous().numpy()
        if kind == "table":
            rows = f"{scope}/symbol_modality_{array.shape[0]}_{array.shape[1]}"
            names = [table for table in TABLES[variable] if one_table or table != "shared"]
            for shard, part in enumerate(np.array_split(array, shards)):
                variables[f"{rows}/{names[0]}/weights_{shard}"] = part
        else:
            variables[f"{scope}/body/{variable}"] = array
    return variables


def _body_scope(variables: Mapping[str, Any]) -> tuple[str, set[str]]:
    """What stands before ``encoder/`` and ``decoder/``, and which of the two there are."""
    pattern = re.compile(r"((?:.*/)?)(encoder|decoder)/universal_transformer_\w+/")
    found = [match for name in variables if (match := pattern.match(name))]
    scopes = {match[1] for match in found}
    if len(scopes) != 1:
        raise ValueError(
            "variables must hold encoder/universal_transformer_... or decoder/universal_transformer_... below one "
            f"scope, got {len(scopes)} such scopes among {len(variables)} variables"
        )
    return scopes.pop(), {match[2] for match in found}


def _read_table(variables: Mapping[str, Any], tables: tuple[str, ...], name: str) -> Tensor:
    """Rows of an embedding, joined in the order of the variables' numbers."""
    for table in tables:
        found = {}
        for variable in variables:
            match = re.search(rf"(?:^|/){table}/weights_(\d+)$", variable)
            if match:
                found[int(match[1])] = torch.as_tensor(np.asarray(variables[variable]))
        if found:
            return torch.cat([found[number] for number in sorted(found)])
    raise ValueError(
        f"variables has no {' or '.join(f'{table}/weights_0' for table in tables)}, which {name} is made of"
    )
