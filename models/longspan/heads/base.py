"""What heads share: their outputs, and a backbone to read.

B batch, T tokens, L labels.
"""

from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from longspan.base import BackboneOutput, LongspanPreTrainedModel

IGNORED = -100  # the label of a token that has none


@dataclass
class LogitsOutput(ModelOutput):
    """``loss`` (with labels), ``logits``, and what the backbone was asked to return (see ``BackboneOutput``).

    ``loss`` has ``auxiliary_loss`` in it.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


@dataclass
class SpanOutput(ModelOutput):
    """``loss`` (with positions), ``start_logits`` and ``end_logits [B, T]``, and what the backbone was asked for.

    ``loss`` has ``auxiliary_loss`` in it.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


class Head(LongspanPreTrainedModel):
    """A backbone under ``base_model_prefix`` and, from ``build_head``, what reads it."""

    needs_pooler = False  # whether the head reads the backbone's pooler, where the architecture has one
    output_class: type[ModelOutput] = LogitsOutput  # fields that are not the head's own are the backbone's

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        of_output = fields(self.output_class)  # pyright: ignore[reportArgumentType]
        self._output_names = [field.name for field in of_output]  # a compiled graph cannot ask for them
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

    def answer(self, outputs: BackboneOutput, **results: Any) -> Any:
        """What the head returns: its ``results``, and what else its output has of the backbone's."""
        names = [name for name in self._output_names if name not in results]
        return self.output_class(**results, **{name: getattr(outputs, name, None) for name in names})


def with_auxiliary(
    loss: Tensor | None,
    outputs: BackboneOutput,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor | None:
    """A task's loss and what the architecture adds to it.

    Args:
        loss: None without labels; then there is nothing to add to.
        outputs: of the backbone.
        labels: of tokens, -100 where one does not count.
        num_items_in_batch: tokens that count in all batches of a step, where the loss was divided by them: the
            architecture's part is weighted by this batch's share, so that a step has it once.
    """
    extra = outputs.auxiliary_loss
    if loss is None or extra is None:
        return loss
    if num_items_in_batch is not None and labels is not None:
        extra = extra * ((labels != IGNORED).sum() / num_items_in_batch).to(extra)
    return loss + extra.to(loss.device)
