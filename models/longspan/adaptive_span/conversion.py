"""Weights of other code, both ways: the released models, fairseq's port, and transformer-sequential.

All three grew out of one code and share its names behind a prefix. Tensors are as ours, but for the shape of spans and
a table of distances that is no parameter; so this is a table of names.

V vocabulary, E hidden size, H heads, D head size, S maximum span, n layer, i cluster of words.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan.adaptive_span.configuration_adaptive_span import AdaptiveSpanConfig
from longspan.adaptive_span.modeling_adaptive_span import AdaptiveSpanForCausalLM

RELEASED, FAIRSEQ = "module.", "decoder.model."  # what names begin with

NAMES = {  # theirs -> ours, in a model with the language model head
    "in_emb.weight": "model.embed_tokens.weight",
    "in_emb.emb_layers.{i}.weight": "model.embed_tokens.clusters.{i}.weight",
    "in_emb.emb_projs.{i}": "model.embed_tokens.clusters.{i}.projection",
    "key_pe": "model.key_position_embeddings",
    "layers.{n}.attn.key_pe": "model.layers.{n}.self_attn.key_position_embeddings",
    "layers.{n}.attn.proj_query.weight": "model.layers.{n}.self_attn.q_proj.weight",
    "layers.{n}.attn.proj_key.weight": "model.layers.{n}.self_attn.k_proj.weight",
    "layers.{n}.attn.proj_val.weight": "model.layers.{n}.self_attn.v_proj.weight",
    "layers.{n}.attn.proj_out.weight": "model.layers.{n}.self_attn.o_proj.weight",
    "layers.{n}.attn.attn.adaptive_span._mask.current_val": "model.layers.{n}.self_attn.span.span_fraction",
    "layers.{n}.attn.attn.persistent_memory.key": "model.layers.{n}.self_attn.persistent_key",
    "layers.{n}.attn.attn.persistent_memory.val": "model.layers.{n}.self_attn.persistent_value",
    "layers.{n}.norm1.{w}": "model.layers.{n}.attention_norm.{w}",
    "layers.{n}.norm2.{w}": "model.layers.{n}.ffn_norm.{w}",
    "layers.{n}.ff.fc1.{w}": "model.layers.{n}.mlp.up_proj.{w}",
    "layers.{n}.ff.fc2.{w}": "model.layers.{n}.mlp.down_proj.{w}",
    "norm.{w}": "model.norm.{w}",
    "out_emb.weight": "lm_head.decoder.weight",
    "out_emb.bias": "lm_head.bias",
    "out_emb.out_layers.{i}.{w}": "lm_head.clusters.{i}.{w}",
    "out_emb.out_projs.{i}": "lm_head.clusters.{i}.projection",
    "out_emb.cluster_proj.{w}": "lm_head.cluster_scores.{w}",
}
# Other names of the same: transformer-sequential's, wherever in a layer it keeps them.
OTHER_NAMES = {
    r"layers\.(?P<n>\d+)\.attn\.(\w+\.)*size_ratio": NAMES["layers.{n}.attn.attn.adaptive_span._mask.current_val"],
    r"layers\.(?P<n>\d+)\.(\w+\.)*key_pe": NAMES["layers.{n}.attn.key_pe"],
    r"\w*norm\w*\.(?P<w>weight|bias)": NAMES["norm.{w}"],
}
# Distances, and a second copy of all that is the span's.
CONSTANTS = r"layers\.\d+\.(\w+\.)*mask_template"
REPEATED = r"layers\.\d+\.attn\.attn\.persistent_memory\.adaptive_span\..*"

_GROUPS = {"i": r"(?P<i>\d+)", "n": r"(?P<n>\d+)", "w": r"(?P<w>weight|bias)"}
_PATTERNS = {
    re.compile(re.sub(r"\\{(\w)\\}", lambda group: _GROUPS[group[1]], re.escape(theirs))): ours
    for theirs, ours in NAMES.items()
} | {re.compile(theirs): ours for theirs, ours in OTHER_NAMES.items()}

FAIRSEQ_FIELDS = {
    "attn_span": "max_span",
    "adapt_span_ramp": "span_ramp",
    "adapt_span_init": "span_init",
    "aux_loss_scaler": "span_loss_weight",
    "emb_dropout": "embedding_dropout",
}


def load_original(path: str | Path, **changes: Any) -> AdaptiveSpanForCausalLM:
    """A model of a checkpoint of other code, ready to be used, or saved with ``save_pretrained``.

    Args:
        path: of a released file (``enwik8.pt``), or of one of fairseq or transformer-sequential. Files are read without
            running code that they may hold.
        changes: fields of the configuration that files do not say: ``span_ramp`` where it is not 32, ``block_size``,
            dropout ...

    Raises:
        ValueError: for a file that holds more than weights and numbers, or weights that are not such a model's.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" not in str(error).lower() and "unsupported" not in str(error).lower():
            raise
        raise ValueError(
            f"{path} holds more than weights, and reading that could run any code. If you trust it, write its weights "
            "alone to another file: torch.save({'model': torch.load(path, weights_only=False)['model']}, other)"
        ) from error
    weights = checkpoint.get("model", checkpoint)
    config = infer_config(weights, **(_fairseq_fields(checkpoint) | changes))
    with torch.device("meta"):
        model = AdaptiveSpanForCausalLM(config)
    model.load_state_dict(from_original(weights, config), assign=True)
    model.tie_weights()
    return model.eval()


def infer_config(weights: Mapping[str, Tensor], **changes: Any) -> AdaptiveSpanConfig:
    """The configuration that the shapes of weights tell.

    They do not tell ``span_ramp``, which all published models have at 32, nor dropout, the weight of the span loss or
    ``block_size``. Weights named as fairseq's get its attention, which does not renormalise.

    Args:
        weights: of any of the three.
        changes: fields to set beside what the shapes tell.
    """
    ours = _as_ours(weights)
    layers = 1 + max((int(name.split(".")[2]) for name in ours if name.startswith("model.layers.")), default=-1)
    first = "model.layers.0."
    table = _first_of(ours, "model.key_position_embeddings", f"{first}self_attn.key_position_embeddings")
    query = _first_of(ours, f"{first}self_attn.q_proj.weight")
    hidden_size, head_size, max_span = query.shape[1], table.shape[1], table.shape[2]
    fields: dict[str, Any] = dict(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // head_size,
        max_span=max_span,
        position_keys="shared" if "model.key_position_embeddings" in ours else "per_layer",
        norm_position="pre" if "model.norm.weight" in ours else "post",
        span_renormalise=_prefix(weights) != FAIRSEQ,
    )
    span = ours.get(f"{first}self_attn.span.span_fraction")
    fields["span_mode"] = "none" if span is None else "static" if span.numel() > 1 else "static_layer"
    if span is not None and span.numel() == hidden_size // head_size == 1:
        fields["span_mode"] = "static"
    persistent = ours.get(f"{first}self_attn.persistent_key")
    fields["persistent_memory_size"] = 0 if persistent is None else persistent.shape[2]
    if persistent is None:
        fields["intermediate_size"] = _first_of(ours, f"{first}mlp.up_proj.weight").shape[0]
    return AdaptiveSpanConfig(**(fields | _words(ours) | changes))


def from_original(weights: Mapping[str, Tensor], config: AdaptiveSpanConfig) -> dict[str, Tensor]:
    """Weights of other code -> state dict of ``AdaptiveSpanForCausalLM``.

    Args:
        weights: names, with or without their prefix, and tensors.
        config: of the model.

    Raises:
        ValueError: for a name that is none of such a model, or a table of distances that means something else.
    """
    ours = _as_ours(weights)
    for name, tensor in weights.items():
        if re.fullmatch(CONSTANTS, name.removeprefix(_prefix(weights))) and not torch.equal(
            tensor.flatten().float(), _distances(config)
        ):
            raise ValueError(f"{name} must hold the distances {1 - config.max_span} to 0: nearest key last")
    return {name: tensor.reshape(-1) if name.endswith("span_fraction") else tensor for name, tensor in ours.items()}


def to_original(
    state_dict: Mapping[str, Tensor],
    config: AdaptiveSpanConfig,
    prefix: str = RELEASED,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """State dict of ``AdaptiveSpanForCausalLM`` -> weights of other code.

    Args:
        state_dict: of the model.
        config: of the model.
        prefix: what names begin with: ``module.`` in released files, ``decoder.model.`` in fairseq's.
        names: the other model's, with their prefix, to write no others; None: those of the released code.

    Raises:
        ValueError: when a parameter is missing, or for a model that other code has no names for.
    """
    if config.span_mode == "dynamic" or not config.is_decoder:
        raise ValueError(
            "other code has causal models with static spans; this one has "
            f"span_mode = {config.span_mode!r}, is_decoder = {config.is_decoder}"
        )
    names = [prefix + name for name in _names_of(config)] if names is None else list(names)
    prefix = _prefix(names)
    written = {}
    for name in names:
        bare = name.removeprefix(prefix)
        if re.fullmatch(CONSTANTS, bare):
            written[name] = _distances(config)
            continue
        if re.fullmatch(REPEATED, bare):
            bare = bare.replace("persistent_memory.", "", 1)
        ours = _our_name(bare) or ""
        found = ours
        if config.tie_word_embeddings and ours not in state_dict:  # a saved file holds what is shared once
            found = ours.replace("lm_head.decoder.", "lm_head.").replace("lm_head.", "model.embed_tokens.")
        if found not in state_dict:
            raise ValueError(f"state_dict has no {ours or 'parameter'!r}, which would be {name!r}")
        tensor = state_dict[found].detach().cpu().clone()
        if ours.endswith("span_fraction") and config.span_mode == "static":
            tensor = tensor.view(-1, 1, 1)
        written[name] = tensor
    return written


def _as_ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = _prefix(weights)
    ours = {}
    for name, tensor in weights.items():
        bare = name.removeprefix(prefix)
        if re.fullmatch(CONSTANTS, bare) or re.fullmatch(REPEATED, bare):
            continue
        known = _our_name(bare)
        if known is None:
            raise ValueError(f"weights hold {name!r}, which is none of the names of such a model")
        ours[known] = tensor
    return ours


def _prefix(names: Iterable[str]) -> str:
    """What stands before ``in_emb``."""
    for name in names:
        before, found, _ = name.partition("in_emb.")
        if found:
            return before
    raise ValueError("weights hold no 'in_emb.', with which the names of such a model begin")


def _our_name(bare: str) -> str | None:
    for pattern, ours in _PATTERNS.items():
        match = pattern.fullmatch(bare)
        if match:
            return ours.format(**match.groupdict())
    return None


def _names_of(config: AdaptiveSpanConfig) -> list[str]:
    """The names of the released code, for a model like this one."""
    clusters = range(len(config.adaptive_io_cutoffs or ()) + 1)
    absent = {"layers.{n}.attn.key_pe"} if config.position_keys == "shared" else {"key_pe"}
    if config.norm_position == "post":
        absent.add("norm.{w}")
    if config.span_mode == "none":
        absent.add("layers.{n}.attn.attn.adaptive_span._mask.current_val")
    absent |= {
        name
        for name in NAMES
        if ("persistent" in name and not config.persistent_memory_size)
        or (("norm2" in name or ".ff." in name) and config.persistent_memory_size)
        or (name.startswith(("in_emb.", "out_emb.")) and (name.count(".") == 1) == (len(clusters) > 1))
    }
    names = []
    for name in NAMES:
        if name in absent:
            continue
        for n in range(config.num_hidden_layers) if "{n}" in name else [0]:
            for i in clusters if "{i}" in name else [0]:
                for w in ("weight", "bias") if "{w}" in name else [""]:
                    names.append(name.format(n=n, i=i, w=w))
    masks = [name for name in names if name.endswith("current_val")]
    names += [name.replace("current_val", "mask_template") for name in masks]
    if config.persistent_memory_size:
        twice = [name for name in names if ".adaptive_span." in name]
        names += [name.replace("attn.attn.", "attn.attn.persistent_memory.") for name in twice]
    return names


def _distances(config: AdaptiveSpanConfig) -> Tensor:
    return torch.arange(1 - config.max_span, 1, dtype=torch.float32)


def _words(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the embeddings tell."""
    if "model.embed_tokens.weight" in ours:
        return dict(vocab_size=ours["model.embed_tokens.weight"].shape[0])
    tables = [value for name, value in sorted(ours.items()) if re.fullmatch(r"model\.embed_tokens.*\d\.weight", name)]
    ends = torch.tensor([len(table) for table in tables]).cumsum(0).tolist()
    tied = all(
        torch.equal(ours[f"lm_head.clusters.{i}.{name}"], ours[f"model.embed_tokens.clusters.{i}.{name}"])
        for i in range(len(tables))
        for name in ("weight", "projection")
    )
    return dict(
        vocab_size=ends[-1],
        adaptive_io_cutoffs=ends[:-1],
        adaptive_io_factor=tables[0].shape[1] // tables[1].shape[1],
        tie_word_embeddings=tied,
    )


def _first_of(ours: Mapping[str, Tensor], *names: str) -> Tensor:
    for name in names:
        if name in ours:
            return ours[name]
    raise ValueError(f"weights hold nothing that is {names[0]!r} here")


def _fairseq_fields(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of fairseq says beside its weights."""
    model = (checkpoint.get("cfg") or {}).get("model") or {}
    fields = {ours: model[theirs] for theirs, ours in FAIRSEQ_FIELDS.items() if theirs in model}
    if "dropout" in model:
        fields |= dict(relu_dropout=model["dropout"], attention_dropout=model["dropout"])
    return fields
