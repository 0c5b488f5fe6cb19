"""What Universal Transformers return: as other models, and what adaptive computation time did.

B batch, T tokens, E hidden size.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from longspan.base import BackboneOutput
from longspan.heads import CausalLMOutput, LogitsOutput, SequenceToSequenceOutput, SpanOutput


@dataclass
class UniversalTransformerOutput(BackboneOutput):
    """As ``BackboneOutput``; ``hidden_states`` are the embedded text and the state after every layer or step done.

    Args:
        past_key_values: the cache, where one is kept.
        ponder_loss: what adaptive computation time adds to a loss, weighted; None without it. Also ``auxiliary_loss``.
        n_updates: steps of each token, ``[B, T]``; of each text, ``[B]``, where texts halt as a whole.
        remainders: weight of each one's last step, shaped alike; 0 where it never halted.
        halting_probabilities: for each step, the probabilities to halt, shaped alike; when asked for.
    """

    past_key_values: Any = None
    ponder_loss: Tensor | None = None
    n_updates: Tensor | None = None
    remainders: Tensor | None = None
    halting_probabilities: tuple[Tensor, ...] | None = None


@dataclass
class UniversalTransformerSequenceToSequenceOutput(ModelOutput):
    """What an encoder and a decoder return; fields as in ``UniversalTransformerOutput``, of each part.

    Args:
        last_hidden_state: ``[B, T, E]``, the decoder's.
        ponder_loss: of both parts together, weighted. Also ``auxiliary_loss``.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None
    ponder_loss: Tensor | None = None
    encoder_n_updates: Tensor | None = None
    encoder_remainders: Tensor | None = None
    encoder_halting_probabilities: tuple[Tensor, ...] | None = None
    decoder_n_updates: Tensor | None = None
    decoder_remainders: Tensor | None = None
    decoder_halting_probabilities: tuple[Tensor, ...] | None = None


@dataclass
class PonderingLogitsOutput(LogitsOutput):
    """As ``LogitsOutput``; the rest as in ``UniversalTransformerOutput``."""

    ponder_loss: Tensor | None = None
    n_updates: Tensor | None = None
    remainders: Tensor | None = None


@dataclass
class PonderingSpanOutput(SpanOutput):
    """As ``SpanOutput``; the rest as in ``UniversalTransformerOutput``."""

    ponder_loss: Tensor | None = None
    n_updates: Tensor | None = None
    remainders: Tensor | None = None


@dataclass
class PonderingCausalLMOutput(CausalLMOutput):
    """As ``CausalLMOutput``; the rest as in ``UniversalTransformerOutput``."""

    ponder_loss: Tensor | None = None
    n_updates: Tensor | None = None
    remainders: Tensor | None = None


@dataclass
class PonderingSequenceToSequenceOutput(SequenceToSequenceOutput):
    """As ``SequenceToSequenceOutput``; the rest as in ``UniversalTransformerSequenceToSequenceOutput``."""

    ponder_loss: Tensor | None = None
    encoder_n_updates: Tensor | None = None
    encoder_remainders: Tensor | None = None
    decoder_n_updates: Tensor | None = None
    decoder_remainders: Tensor | None = None
