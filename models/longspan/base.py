"""What every architecture of the zoo shares: the configuration base, the model base, and the checks of model inputs.

B batch, T tokens, E hidden size.
"""

import difflib
import logging
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from longspan.ops.transfers import bounds

logger = logging.getLogger(__name__)

# Names that transformers itself gives to configurations, beside the fields it declares.
_INHERITED_NAMES = {
    *("_attn_implementation", "_commit_hash", "_name_or_path", "attn_implementation", "auto_map", "custom_pipelines"),
    *("experts_implementation", "model_type", "name_or_path", "num_labels", "output_attentions", "per_layer_config"),
    *("quantization_config", "task_specific_params", "tie_last_hidden_states", "tokenizer_class", "torch_dtype"),
    "transformers_weights",
}
_WRITTEN_BY_TRAINER = {"use_cache"}  # into every configuration, whether the model generates or not


@strict
class LongspanConfig(PreTrainedConfig):
    """Configuration base: unknown names fail, values that make no sense together fail, both when it is constructed.

    What a *file* says beyond the known fields is left out, with one log line that names it: files come from other
    versions and other code. A subclass declares annotated fields and, in ``check``, what must hold between them.
    """

    file_model_types = ()  # ``model_type`` of other code whose files this configuration reads as its own
    file_defaults: ClassVar[dict[str, Any]] = {}  # what those files mean where they leave a field of ours out

    @classmethod
    def known_names(cls) -> set[str]:
        """Every name the constructor takes."""
        return {field.name for field in fields(cls)} | set(cls.attribute_map) | _INHERITED_NAMES

    @property
    def feature_size(self) -> int:
        """Width of the backbone's last hidden state, which heads read."""
        return self.hidden_size  # type: ignore[attr-defined]

    @property
    def head_dropout(self) -> float:
        """Dropout inside of classification heads."""
        return self.hidden_dropout_prob  # type: ignore[attr-defined]

    @property
    def text_token(self) -> str:
        """Where heads read a whole text: its "first" token, or, where no token sees a later one, its "last"."""
        return "last" if getattr(self, "is_decoder", False) else "first"

    def __post_init__(self, **kwargs):
        known = self.known_names()
        for name in kwargs:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise ValueError(f"{type(self).__name__} has no field {name!r}{hint}")
        kwargs.pop("model_type", None)  # a class attribute
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming the fields, where values make no sense together."""

    def validate_architecture(self):
        """Called by transformers after construction and before saving."""
        super().validate_architecture()
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, but fields that nothing here uses are left out, and overrides are checked as a whole."""
        known = cls.known_names()
        config_dict = cls._as_ours(config_dict)
        unused = sorted(config_dict.keys() - known - _WRITTEN_BY_TRAINER)
        if unused:
            logger.warning("%s does not use these fields of the file: %s", cls.__name__, ", ".join(unused))
        values = {name: value for name, value in config_dict.items() if name in known}
        own = {field.name for field in fields(cls)} - {"dtype"}
        values |= {name: kwargs.pop(name) for name in list(kwargs) if name in own}
        return super().from_dict(values, **kwargs)

    @classmethod
    def from_json_file(cls, json_file):
        return cls.from_dict(cls._dict_from_json_file(json_file))

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return cls._as_ours(values), kwargs

    @classmethod
    def _as_ours(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A file of other code as one of ours."""
        if values.get("model_type") not in cls.file_model_types:
            return values
        return cls.file_defaults | values | {"model_type": cls.model_type}


class LongspanPreTrainedModel(PreTrainedModel):
    """Model base. A subclass sets ``config_class``, ``base_model_prefix`` and ``backbone_class``."""

    supports_gradient_checkpointing = True
    has_pooler = True  # whether the backbone takes ``add_pooling_layer``
    _can_compile_fullgraph = True
    backbone_class: type  # the architecture's model without a head, which longspan.heads builds

    def complete_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What a head passes to the backbone, with the architecture's defaults filled in (e.g. global tokens)."""
        return inputs


@dataclass
class BackboneOutput(ModelOutput):
    """What a backbone returns.

    Args:
        last_hidden_state: ``[B, T, E]``.
        pooler_output: ``[B, E]``, where the model has a pooler.
        hidden_states: input of the first layer and output of each, every one ``[B, T, E]``; when asked for.
        attentions: one tensor per layer; its layout is the architecture's. When asked for.
        global_attentions: one tensor per layer, for architectures with global tokens. When asked for.
        auxiliary_loss: what the architecture adds to a task's loss in training, weighted already; else None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


def can_inspect(tensor: Tensor) -> bool:
    """Whether Python may look at the values: not while compiling or exporting, not on the meta device."""
    return not torch.compiler.is_compiling() and tensor.device.type != "meta"


def check_range(name: str, ids: Tensor, limit: int, meaning: str) -> None:
    """Raise ValueError unless all of ``ids`` lie in ``[0, limit)``. A compiled graph checks its own lookups."""
    if not can_inspect(ids) or ids.numel() == 0:
        return
    low, high = bounds(ids)
    if low < 0 or high >= limit:
        raise ValueError(f"{name} must lie in [0, {limit}) ({meaning}), got {low if low < 0 else high}")


def check_token_inputs(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    vocab_size: int,
    *,
    prefix: str = "",
    **per_token: Tensor | None,
) -> tuple[int, int]:
    """Check the inputs of a text model before anything runs.

    Args:
        input_ids: int ``[B, T]``, or None where ``inputs_embeds`` is given.
        inputs_embeds: float ``[B, T, E]``, or None.
        vocab_size: token ids lie in ``[0, vocab_size)``.
        prefix: of the arguments' names in messages, e.g. "decoder_".
        per_token: masks and the like by name, each None or ``[B, T]``.

    Returns:
        ``(B, T)``.

    Raises:
        ValueError: naming the argument, what came and what was wanted.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError(
            f"give exactly one of {prefix}input_ids and {prefix}inputs_embeds, got "
            + ("both" if input_ids is not None else "neither")
        )
    if input_ids is not None:
        if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise ValueError(
                f"{prefix}input_ids must be integers [batch, tokens], got {input_ids.dtype} {list(input_ids.shape)}"
            )
        check_range(f"{prefix}input_ids", input_ids, vocab_size, "vocab_size; was the tokenizer made for this model?")
        batch, length = input_ids.shape
    else:
        assert inputs_embeds is not None
        if inputs_embeds.dim() != 3:
            raise ValueError(
                f"{prefix}inputs_embeds must be [batch, tokens, hidden size], got {list(inputs_embeds.shape)}"
            )
        batch, length = inputs_embeds.shape[:2]
    for name, tensor in per_token.items():
        if tensor is not None and tensor.shape != (batch, length):
            advice = ": one value per token, not per pair of tokens" if tensor.dim() > 2 and "mask" in name else ""
            raise ValueError(
                f"{prefix}{name} must be [batch, tokens] = [{batch}, {length}], got {list(tensor.shape)}{advice}"
            )
    return batch, length


def token_mask(attention_mask: Tensor | None) -> Tensor | None:
    """``attention_mask [B, T]`` of zeros and ones -> bool, True = a token; None where nothing is padding.

    Dropping an all-ones mask lets kernels run unmasked. Other values are refused: they mean different things to
    different code (a 2 once meant "global", a large negative number "hidden").
    """
    if attention_mask is None:
        return None
    mask = attention_mask != 0
    if not can_inspect(mask):
        return mask
    strange = mask & (attention_mask != 1)
    any_strange, complete = torch.stack([strange.any(), mask.all()]).tolist()  # one look: a GPU is waited for
    if any_strange:
        raise ValueError(
            "attention_mask must hold only 1 (a token) and 0 (padding); "
            f"got values from {attention_mask.min().item()} to {attention_mask.max().item()}"
        )
    return None if complete else mask


def text_token(hidden_states: Tensor, attention_mask: Tensor | None, which: str) -> Tensor:
    """``[B, T, E]`` -> ``[B, E]``: each example's "first" or "last" token that is no padding, wherever that stands."""
    last = which == "last"
    if attention_mask is None:
        return hidden_states[:, -1 if last else 0]
    tokens = (attention_mask != 0).int()
    place = tokens.shape[1] - 1 - tokens.flip(1).argmax(1) if last else tokens.argmax(1)
    return hidden_states[torch.arange(place.shape[0], device=place.device), place]
