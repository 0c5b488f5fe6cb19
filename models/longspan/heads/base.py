"""What heads share: their outputs, and a backbone to read.

B batch, T tokens, L labels.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from longspan.base import BackboneOutput, LongspanPreTrainedModel


@dataclass
class LogitsOutput(ModelOutput):
    """``loss`` (with labels), ``logits``, and what the backbone was asked to return (see ``BackboneOutput``)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SpanOutput(ModelOutput):
    """``loss`` (with positions), ``start_logits`` and ``end_logits [B, T]``, and what the backbone was asked for."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


class Head(LongspanPreTrainedModel):
    """A backbone under ``base_model_prefix`` and, from ``build_head``, what reads it."""

    needs_pooler = False  # whether the head reads the backbone's pooler, where the architecture has one

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        options = {"add_pooling_layer": self.needs_pooler} if self.has_pooler else {}
        setattr(self, self.base_model_prefix, self.backbone_class(config, **options))
        self.build_head(config)
        self.post_init()

    def build_head(self, config) -> None:
        raise NotImplementedError

    def encode(self, **inputs: Any) -> BackboneOutput:
        """Run the backbone on those inputs that are given, and on the architecture's defaults."""
        inputs = self.complete_inputs(inputs)
        return self.base_model(**{name: value for name, value in inputs.items() if value is not None}, return_dict=True)


def traces(outputs: BackboneOutput) -> dict[str, Any]:
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", "global_attentions")}
