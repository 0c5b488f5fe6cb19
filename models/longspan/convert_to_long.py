"""From a short encoder to a Longformer of any length (Beltagy et al. 2020, section 5).

Positions are tiled, the projections of each layer are copied to its global ones, the head is kept. Windows that are as
long as the text reproduce the short model; shorter ones want some training, as the paper does.

E hidden size.
"""

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from longspan import longformer
from longspan.longformer import LongformerConfig, LongformerModel, LongformerPreTrainedModel
from longspan.longformer.conversion import SHORT_MODELS, rename
from longspan.longformer.tokenization_longformer import to_longformer_tokenizer

logger = logging.getLogger(__name__)

# Fields that a Longformer takes over from a short model.
SHARED_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "type_vocab_size", "initializer_range", "layer_norm_eps"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "tie_word_embeddings"),
    *("id2label", "label2id", "problem_type"),
)
LONGFORMER_FIELDS = ("attention_window", "attention_dilation", "max_global_tokens", "is_decoder")


def convert_to_long(
    model: PreTrainedModel | str | PathLike,
    max_length: int,
    attention_window: int | list[int] | None = None,
    *,
    model_class: type[LongformerPreTrainedModel] | None = None,
    tokenizer: Any = None,
    save_to: str | PathLike | None = None,
    **config_fields: Any,
) -> LongformerPreTrainedModel:
    """Make a Longformer of a BERT, RoBERTa, XLM-RoBERTa or CamemBERT model, or a longer one of a Longformer.

    Args:
        model: the short model, or its folder or name.
        max_length: longest text of the new model, in tokens.
        attention_window: see ``LongformerConfig``; by default 512, or what the given Longformer has.
        model_class: class of the new model, by default the one with the head of the short model. Given another one,
            the encoder is kept and the head is new.
        tokenizer: the short model's tokenizer, by default the one in its folder, if there is one.
        save_to: folder for the new model and, if there is one, its tokenizer, which then makes
            ``global_attention_mask`` and takes ``max_length`` tokens. Ready for ``AutoModel`` and ``AutoTokenizer``.
        config_fields: further fields of ``LongformerConfig``, e.g. ``attention_dilation``.

    Returns:
        The new model, in evaluation mode.

    Raises:
        ValueError: where the short model is, or has, something that a Longformer cannot represent.
    """
    if not isinstance(model, PreTrainedModel):
        tokenizer = _find_tokenizer(model) if tokenizer is None else tokenizer
        model = _load(model)
    _check_source(model.config, max_length)
    head = type(model).__name__.removeprefix(_family_prefix(model))
    names = SHORT_MODELS[model.config.model_type].get(head)
    if names is None and model_class is None:
        raise ValueError(
            f"{type(model).__name__} has a head that Longformer lacks; to keep its encoder alone pass "
            "model_class=longspan.LongformerModel"
        )
    if model.config.model_type == "bert" and head == "ForMaskedLM" and model.config.hidden_act != "gelu":
        raise ValueError(
            f"cannot convert {type(model).__name__} with hidden_act = {model.config.hidden_act!r}: the language-model "
            "head of Longformer has 'gelu'"
        )
    same_head = getattr(longformer, f"Longformer{head}", None)
    model_class = model_class or same_head
    assert model_class is not None
    state = _rename_state(model, names or {}, keep_head=model_class is same_head)
    state = _grow(state, model.config, max_length)

    config = _config(model.config, max_length, attention_window, tokenizer, config_fields)
    options = {"add_pooling_layer": "longformer.pooler.dense.weight" in state} if model_class is LongformerModel else {}
    long_model = model_class(config, **options)
    nn.Module.to(long_model, model.dtype).eval()
    _fill(long_model, state, new_head=model_class is not same_head)
    if save_to is not None:
        long_model.save_pretrained(save_to)
        if tokenizer is not None:
            to_longformer_tokenizer(tokenizer, max_length=max_length).save_pretrained(save_to)
    logger.info(
        "%s, %d tokens -> %s, %d tokens, windows %s%s%s",
        type(model).__name__,
        _table(model).shape[0] - _reserved_rows(model.config),
        model_class.__name__,
        config.max_tokens,
        config.attention_window,
        f", saved to {save_to}" if save_to is not None else "",
        "" if tokenizer is not None or save_to is None else " (no tokenizer was found beside the model: none is saved)",
    )
    return long_model


def grow_positions(table: Tensor, new_positions: int, *, reserved: int) -> Tensor:
    """Grow a position table by repeating it.

    Args:
        table: ``[reserved + old positions, E]``.
        new_positions: rows wanted beside the reserved ones.
        reserved: leading rows that stand for no position; kept once.

    Returns:
        ``[reserved + new_positions, E]``; of the last copy as much as fits.
    """
    body = table[reserved:]
    copies = -(-new_positions // len(body))
    return torch.cat([table[:reserved], body.repeat(copies, 1)[:new_positions]])


def _find_tokenizer(folder: str | PathLike) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError):
        return None


def _load(folder: str | PathLike) -> PreTrainedModel:
    """The model of a folder or name, by the class that its configuration names."""
    name = str(folder) if isinstance(folder, str) and not Path(folder).exists() else Path(folder)
    config = AutoConfig.from_pretrained(name)
    _check_family(config)
    class_name = (config.architectures or ["AutoModel"])[0]
    home = longformer if "longformer" in config.model_type else transformers
    model_class = getattr(home, class_name, None)
    if model_class is None:
        raise ValueError(f"{folder} names the class {class_name!r}, which transformers does not have")
    return model_class.from_pretrained(name)


def _check_family(config: PreTrainedConfig) -> None:
    if config.model_type not in SHORT_MODELS:
        raise ValueError(
            f"cannot convert a model of type {config.model_type!r}: its layers are not those of Longformer. "
            f"Convertible: {', '.join(SHORT_MODELS)}"
        )


def _check_source(config: PreTrainedConfig, max_length: int) -> None:
    _check_family(config)
    if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length < 1:
        raise ValueError(f"max_length must be a positive number of tokens, got {max_length!r}")
    position_kind = getattr(config, "position_embedding_type", None) or "absolute"
    if position_kind != "absolute":
        raise ValueError(f"cannot convert position_embedding_type = {position_kind!r}: Longformer has absolute ones")
    is_short = "longformer" not in config.model_type
    if is_short and (getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False)):
        raise ValueError("cannot convert a decoder: is_decoder or add_cross_attention is set")
    if getattr(config, "pad_token_id", None) is None:
        raise ValueError("cannot convert a model without pad_token_id: Longformer counts positions from it")
    old_length = config.max_position_embeddings - _reserved_rows(config)
    if max_length < old_length:
        raise ValueError(f"max_length = {max_length} is shorter than the {old_length} tokens the model takes already")


def _reserved_rows(config: PreTrainedConfig) -> int:
    """Leading rows of the position table that no position uses: BERT has none, RoBERTa's positions follow padding."""
    return 0 if config.model_type == "bert" else config.pad_token_id + 1


def _table(model: PreTrainedModel) -> Tensor:
    return model.base_model.get_parameter("embeddings.position_embeddings.weight")


def _family_prefix(model: PreTrainedModel) -> str:
    """What the class names of a family begin with: "Roberta" for RobertaForMaskedLM."""
    return type(model.base_model).__name__.removesuffix("Model")


def _rename_state(model: PreTrainedModel, names, *, keep_head: bool) -> dict[str, Tensor]:
    """State dict under Longformer's names, always with ``longformer.`` before the encoder."""
    prefix = "" if model is model.base_model else model.base_model_prefix + "."
    state = {}
    for name, tensor in model.state_dict().items():
        encoder = name.startswith(prefix)
        if encoder:
            name = "longformer." + name.removeprefix(prefix)
        elif not keep_head:
            continue
        state[rename(name, names) if keep_head else name] = tensor.detach().clone()
    return state


def _grow(state: dict[str, Tensor], config: PreTrainedConfig, max_length: int) -> dict[str, Tensor]:
    """Tile the positions, and copy projections to global ones where there are none yet."""
    name = "longformer.embeddings.position_embeddings.weight"
    table = grow_positions(state[name], max_length, reserved=_reserved_rows(config))
    missing_rows = config.pad_token_id + 1 - _reserved_rows(config)
    state = state | {name: torch.cat([table.new_zeros(missing_rows, table.shape[1]), table])}
    for name in list(state):
        for projection in ("query", "key", "value"):
            if f".attention.self.{projection}." in name:
                state.setdefault(name.replace(f".{projection}.", f".{projection}_global."), state[name].clone())
    return state


def _config(
    short: PreTrainedConfig, max_length: int, attention_window, tokenizer, fields: dict[str, Any]
) -> LongformerConfig:
    values = {name: getattr(short, name) for name in SHARED_FIELDS if hasattr(short, name)}
    if "longformer" in short.model_type:
        values |= {name: getattr(short, name) for name in LONGFORMER_FIELDS if hasattr(short, name)}
    if tokenizer is not None:
        special = {"bos_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        values |= {name: token for name, token in special.items() if token is not None}
    elif values.get("sep_token_id") is None:
        values["sep_token_id"] = short.eos_token_id  # RoBERTa separates by the token that ends a text
    values["max_position_embeddings"] = max_length + short.pad_token_id + 1
    if attention_window is not None:
        values["attention_window"] = attention_window
    return LongformerConfig(**values | fields)


def _fill(model: LongformerPreTrainedModel, state: dict[str, Tensor], *, new_head: bool) -> None:
    """Load, and accept no missing or superfluous tensor beyond what a change of the head explains."""
    if isinstance(model, LongformerModel):
        state = {name.removeprefix("longformer."): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    model.tie_weights()
    if new_head:
        missing = [name for name in missing if name.startswith("longformer.") and ".pooler." not in name]
        unexpected = [name for name in unexpected if ".pooler." not in name]
    if missing or unexpected:
        raise ValueError(
            "cannot represent this model as a Longformer: "
            f"parameters without a place {sorted(unexpected)}, places without a parameter {sorted(missing)}"
        )
