"""Weights of the authors' TensorFlow code, both ways: a table of variable names, and of what is done to each matrix.

TensorFlow's matrices are [in, out], ours [out, in]; two that read the same input are one of ours, below each other. The
code gave the published figures; the equations as published (``variant = "paper"``) have no weights elsewhere.

V words, E features of a word vector.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longspan.biblosan.configuration_biblosan import BiBloSanConfig

Task = Literal[
    "Model",
    "ForSequenceClassification",
    "ForSentencePairClassification",
    "ForSentencePairRegression",
    "ForSentenceSelection",
]


@dataclass(frozen=True)
class Entry:
    """One parameter.

    Args:
        name: ours.
        variables: TensorFlow's; several are matrices that stand below each other in ours.
        transpose: whether they are matrices.
    """

    name: str
    variables: tuple[str, ...]
    transpose: bool


def _dense(ours: str, theirs: str, bias: bool = True) -> list[Entry]:
    weight = Entry(f"{ours}.weight", (f"{theirs}/W",), True)
    return [weight, Entry(f"{ours}.bias", (f"{theirs}/bias",), False)] if bias else [weight]


def _vector(ours: str, theirs: str) -> Entry:
    return Entry(ours, (theirs,), False)


def disa_entries(ours: str, theirs: str) -> list[Entry]:
    """``DirectionalSelfAttention``."""
    both = (f"{theirs}/attention/linear_dependent/W", f"{theirs}/attention/linear_head/W")
    return [
        *_dense(f"{ours}.map", f"{theirs}/bn_dense_map/linear_map"),
        Entry(f"{ours}.attention.projection.weight", both, True),
        _vector(f"{ours}.attention.bias", f"{theirs}/attention/f_bias"),
        *_dense(f"{ours}.gate.first", f"{theirs}/output/linear_fusion_i"),
        *_dense(f"{ours}.gate.second", f"{theirs}/output/linear_fusion_a"),
        _vector(f"{ours}.gate.bias", f"{theirs}/output/o_bias"),
    ]


def block_entries(ours: str, theirs: str) -> list[Entry]:
    """``MaskedBlockSelfAttention`` of the reference variant."""
    return [
        *_dense(f"{ours}.map", f"{theirs}/split_seq/bn_dense_map/linear_map"),
        *_dense(f"{ours}.within.projection", f"{theirs}/self_attention/linear_dependent_head", bias=False),
        _vector(f"{ours}.within.bias", f"{theirs}/self_attention/f_bias"),
        *_dense(f"{ours}.pooling.logits", f"{theirs}/source2token_self_attn/bn_dense_map/linear_map"),
        *disa_entries(f"{ours}.between", f"{theirs}/self_attn_inter_block/disa"),
        *_dense(f"{ours}.fusion.dense", f"{theirs}/combination/linear_new_context_and_gate"),
    ]


def layer_entries(config: BiBloSanConfig, ours: str, theirs: str) -> list[Entry]:
    """``BiBloSanLayer``; ``theirs`` is the scope in which the context is fused."""
    if config.attention == "full":
        directions = (("forward", "ct_disa/fw_disa"), ("backward", "ct_disa/bw_disa"))
        make = disa_entries
    else:
        directions = (("forward", "ct_block_attn/forward_attn"), ("backward", "ct_block_attn/backward_attn"))
        make = block_entries
    return [entry for side, scope in directions for entry in make(f"{ours}.{side}_attention", f"{theirs}/{scope}")]


def pooling_entries(ours: str, theirs: str) -> list[Entry]:
    """``Source2TokenPooling`` of two layers."""
    first, second = (f"{theirs}/bn_dense_map{number}/linear_map" for number in (1, 2))
    return _dense(f"{ours}.dense", first) + _dense(f"{ours}.logits", second)


def encoder_entries(config: BiBloSanConfig, ours: str, theirs: str) -> list[Entry]:
    """The layer and the pooler of ``BiBloSanModel``."""
    method = "disa" if config.attention == "full" else "block"
    return [
        *layer_entries(config, f"{ours}encoder.layer.0", f"{theirs}context_fusion_layers"),
        *pooling_entries(f"{ours}pooler", f"{theirs}multi_dim_attn_for_{method}"),
    ]


HEADS: dict[str, list[Entry]] = {
    "ForSequenceClassification": [
        *_dense("classifier.dense", "output/pre_logits_linear"),
        *_dense("classifier.logits", "output/get_output", bias=False),
    ],
    "ForSentencePairClassification": [
        *_dense("classifier.dense", "output/pre_output"),
        *_dense("classifier.highway.map", "output/pre_output1/map/linear_map"),
        *_dense("classifier.highway.gate", "output/pre_output1/gate/linear_map"),
        *_dense("classifier.logits", "output/logits"),
    ],
    "ForSentencePairRegression": [
        *_dense("classifier.product", "output/linear_h1", bias=False),
        *_dense("classifier.difference", "output/linear_h2"),
        *_dense("classifier.logits", "output/logits"),
    ],
    "ForSentenceSelection": [
        *pooling_entries("selector.question_pooling", "prepro/q2coding"),
        *_dense("selector.question", "prepro/q_rep_map/linear_map"),
        *_dense("selector.sentence", "sent_emb/sent_enc_map/linear_map"),
        *_dense("selector.dense", "output/pre_output/linear_map"),
        *_dense("selector.logits", "logits/first"),
    ],
}
WORDS = ("emb/gene_token_emb_mat/emb_mat", "emb/gene_token_emb_mat/extra_emb_mat")  # behind two rows of zeros


def tensorflow_entries(config: BiBloSanConfig, task: Task = "Model") -> list[Entry]:
    """The parameters of ``BiBloSan<task>``, without the word vectors.

    Raises:
        ValueError: for a task or a configuration that the authors' code does not have.
    """
    if task != "Model" and task not in HEADS:
        raise ValueError(f"task must be one of {['Model', *HEADS]}, got {task!r}")
    if config.variant != "reference" or config.num_hidden_layers != 1:
        raise ValueError(
            "the authors' code has variant = 'reference' and num_hidden_layers = 1, got "
            f"{config.variant!r} and {config.num_hidden_layers}"
        )
    if config.share_attention:
        raise ValueError("the authors' code has share_attention = False, got True")
    if task == "Model":
        return encoder_entries(config, "", "")
    selection = task == "ForSentenceSelection"
    scope = "sent_emb/sent2enc/" if selection else "sent_encoding/ct_based_sent2vec/"
    entries = [*encoder_entries(config, "biblosan.", scope), *HEADS[task]]
    return entries + layer_entries(config, "selector.context", "output/out_cf") if selection else entries


def from_tensorflow(
    variables: Mapping[str, Any], config: BiBloSanConfig, task: Task = "Model", scope: str | None = None
) -> dict[str, Tensor]:
    """Variables of a TensorFlow checkpoint -> state dict of ``BiBloSan<task>``.

    Word vectors are converted where the checkpoint has them. It lacks those of GloVe's words, which the authors' code
    keeps as constants: write them with ``load_word_vectors``, and load the rest with ``strict=False``.

    Args:
        variables: arrays by name; others (of the optimiser, averages) are passed over.
        config: of the model.
        task: which class: "Model", "ForSentencePairClassification" ...
        scope: what all names begin with, as "model"; None: find out.

    Raises:
        ValueError: when a variable is missing.
    """
    entries = tensorflow_entries(config, task)
    scope = _common_scope(variables, entries[0].variables[0]) if scope is None else scope.rstrip("/") + "/"
    state_dict = read_entries(variables, entries, scope if scope != "/" else "")
    words = [torch.as_tensor(np.asarray(variables[scope + name])) for name in WORDS if scope + name in variables]
    if words:
        prefix = "" if task == "Model" else "biblosan."
        zeros = words[0].new_zeros(2, words[0].shape[1])
        state_dict[f"{prefix}embeddings.word_embeddings.weight"] = torch.cat([zeros, *words])
    return state_dict


def to_tensorflow(
    state_dict: Mapping[str, Tensor], config: BiBloSanConfig, task: Task = "Model", scope: str = ""
) -> dict[str, np.ndarray]:
    """State dict of ``BiBloSan<task>`` -> TensorFlow's variables.

    All word vectors but the first two rows, which are constants there, become one variable.

    Raises:
        ValueError: when a parameter is missing.
    """
    scope = f"{scope.rstrip('/')}/" if scope else ""
    variables = {}
    for entry in tensorflow_entries(config, task):
        if entry.name not in state_dict:
            raise ValueError(f"state_dict has no {entry.name!r}")
        parts = state_dict[entry.name].detach().cpu().float().chunk(len(entry.variables))
        for name, part in zip(entry.variables, parts, strict=True):
            variables[scope + name] = (part.T if entry.transpose else part).contiguous().numpy()
    table = state_dict.get(("" if task == "Model" else "biblosan.") + "embeddings.word_embeddings.weight")
    if table is not None:
        variables[scope + WORDS[0]] = table[2:].detach().cpu().float().numpy()
    return variables


def read_entries(variables: Mapping[str, Any], entries: Iterable[Entry], scope: str = "") -> dict[str, Tensor]:
    """Our tensors for ``entries``, from variables whose names begin with ``scope``.

    Raises:
        ValueError: when a variable is missing.
    """
    state_dict = {}
    for entry in entries:
        parts = []
        for name in entry.variables:
            if scope + name not in variables:
                raise ValueError(f"variables has no {scope + name!r}, which {entry.name} is made of")
            part = torch.as_tensor(np.asarray(variables[scope + name]))
            parts.append(part.T if entry.transpose else part)
        state_dict[entry.name] = torch.cat(parts).contiguous()
    return state_dict


def _common_scope(variables: Mapping[str, Any], name: str) -> str:
    """What stands before ``name`` in the one variable that ends with it."""
    scopes = [known.removesuffix(name) for known in variables if known == name or known.endswith(f"/{name}")]
    if len(scopes) != 1:
        raise ValueError(
            f"wanted one variable that ends with {name!r}, got {len(scopes)}: "
            + ("name the scope" if scopes else "is this a model of that task, with blocks or without, as configured?")
        )
    return scopes[0]
