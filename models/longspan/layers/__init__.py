"""Modules that know neither transformers nor a configuration: they take numbers and tensors."""

from longspan.layers.embeddings import TextEmbeddings, positions_from_ids, positions_from_mask
from longspan.layers.global_tokens import GlobalTokens, collect_global_tokens
from longspan.layers.post_norm import PostNorm
from longspan.layers.sliding_window import SlidingWindowSelfAttention

__all__ = [
    "GlobalTokens",
    "PostNorm",
    "SlidingWindowSelfAttention",
    "TextEmbeddings",
    "collect_global_tokens",
    "positions_from_ids",
    "positions_from_mask",
]
