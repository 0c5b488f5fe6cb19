"""Word, position and token-type embeddings with a LayerNorm (Devlin et al. 2019), positions as RoBERTa counts them.

B batch, T tokens, E hidden size.
"""

import torch
from torch import Tensor, nn


def positions_from_ids(input_ids: Tensor, padding_idx: int) -> Tensor:
    """Padding gets ``padding_idx``, the other tokens of a row ``padding_idx`` + 1, + 2, ...; int64 ``[B, T]``."""
    is_token = (input_ids != padding_idx).long()
    return is_token.cumsum(1) * is_token + padding_idx


def positions_from_mask(batch: int, length: int, mask: Tensor | None, padding_idx: int, device) -> Tensor:
    """Where no ids are known: ``padding_idx`` + 1, + 2, ... from the first token on; int64 ``[B, T]``.

    Args:
        batch: B.
        length: T.
        mask: bool ``[B, T]``, False at padding, or None. Padding on the left gets ``padding_idx``, so that the tokens
            keep the positions that they have without it.
        padding_idx: the reserved row of the position table.
        device: of the result.
    """
    position = torch.arange(1, length + 1, device=device).expand(batch, length)
    if mask is not None:
        position = (position - mask.int().argmax(1, keepdim=True)).clamp(min=0)
    return position + padding_idx


class TextEmbeddings(nn.Module):
    """LayerNorm(word + position + token type), then dropout."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        *,
        max_positions: int,
        num_token_types: int,
        padding_idx: int,
        layer_norm_eps: float,
        dropout: float,
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx)
        self.position_embeddings = nn.Embedding(max_positions, hidden_size, padding_idx)
        self.token_type_embeddings = nn.Embedding(num_token_types, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """``[B, T, E]`` from ``input_ids`` or ``inputs_embeds``; without ``token_type_ids`` all are of type 0."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_types = self.token_type_embeddings.weight[0]
        else:
            token_types = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + self.position_embeddings(position_ids) + token_types))
