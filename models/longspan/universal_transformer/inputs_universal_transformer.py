"""What goes into Universal Transformers: texts, checked, and their embeddings.

B batch, T tokens, E hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longspan.base import check_token_inputs, token_mask
from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig
from longspan.universal_transformer.generation_universal_transformer import newest_columns


class WordEmbedding(nn.Embedding):
    """Word vectors, scaled; padding has a zero vector, although its row scores words."""

    def __init__(self, vocab_size: int, hidden_size: int, padding: int | None, scale: float):
        super().__init__(vocab_size, hidden_size)
        self.padding, self.scale = padding, scale

    def forward(self, input: Tensor) -> Tensor:
        vectors = super().forward(input) * self.scale
        return vectors if self.padding is None else vectors * (input != self.padding)[..., None]


class UniversalTransformerEmbeddings(nn.Module):
    """Words, in a source what is asked of it, and dropout. Places and steps come later, at every step.

    Args:
        config: of the model.
        spaces: rows of the table of target spaces, or 0.
    """

    def __init__(self, config: UniversalTransformerConfig, spaces: int = 0):
        super().__init__()
        scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
        self.word_embeddings = WordEmbedding(config.vocab_size, config.hidden_size, config.pad_token_id, scale)
        self.target_space = nn.Embedding(spaces, config.hidden_size) if spaces else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, space: Tensor | None = None) -> Tensor:
        """``[B, T]`` or ``[B, T, E]``, and of a source ``space``, ``[]`` or ``[B]`` -> ``[B, T, E]``."""
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.target_space is not None and space is not None:
            hidden = hidden + self.target_space(space).view(-1, 1, hidden.shape[-1])
        return self.dropout(hidden)


@dataclass
class Text:
    """One text of each row, as ids or vectors, and where its padding is."""

    input_ids: Tensor | None  # [B, T]
    inputs_embeds: Tensor | None  # [B, T, E]
    attention_mask: Tensor | None  # [B, T], as given
    mask: Tensor | None  # bool [B, T], False at padding; None: no padding
    position_ids: Tensor | None  # [1 or B, T], as given

    @classmethod
    def checked(
        cls,
        config: UniversalTransformerConfig,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        *,
        prefix: str = "",
        cached: bool = False,
    ) -> "Text":
        """Of a model's arguments, or ValueError that names one by ``prefix`` and its name.

        With ``cached`` tokens before these, a mask of all of them is cut to these.
        """
        batch, length = check_token_inputs(input_ids, inputs_embeds, config.vocab_size, prefix=prefix)
        if cached:
            attention_mask = newest_columns(attention_mask, length)
        check_token_inputs(input_ids, inputs_embeds, config.vocab_size, prefix=prefix, attention_mask=attention_mask)
        if inputs_embeds is not None and inputs_embeds.shape[2] != config.hidden_size:
            raise ValueError(
                f"{prefix}inputs_embeds must have hidden_size = {config.hidden_size} features, "
                f"got {list(inputs_embeds.shape)}"
            )
        if position_ids is not None:
            if list(position_ids.shape) not in ([length], [1, length], [batch, length]):
                raise ValueError(f"position_ids must be [batch, tokens] = [{batch}, {length}], got "
                                 f"{list(position_ids.shape)}")  # fmt: skip
            position_ids = torch.atleast_2d(position_ids)
        return cls(input_ids, inputs_embeds, attention_mask, token_mask(attention_mask), position_ids)

    @property
    def given(self) -> Tensor:
        """Ids or vectors."""
        return self.input_ids if self.input_ids is not None else self.inputs_embeds  # type: ignore[return-value]

    @property
    def batch(self) -> int:
        return self.given.shape[0]

    @property
    def length(self) -> int:
        return self.given.shape[1]

    @property
    def device(self) -> torch.device:
        return self.given.device

    def positions(self) -> Tensor:
        """int64 ``[1 or B, T]``, where not given: tokens count from 0, padding behind a text goes on."""
        if self.position_ids is not None:
            return self.position_ids
        columns = torch.arange(self.length, device=self.device)[None]
        if self.mask is None:
            return columns
        before = self.mask.int().argmax(1, keepdim=True) if self.length else columns
        return torch.where(self.mask, self.mask.cumsum(1) - 1, (columns - before).clamp(min=0))
