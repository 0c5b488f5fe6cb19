"""Attention to vectors that are parameters: what every token sees beside the text (Sukhbaatar et al. 2019b).

B batch, H heads, T tokens, D head size, N vectors.
"""

from torch import Tensor

from longspan.ops import dense_attention


def persistent_attention(
    query: Tensor, key: Tensor, value: Tensor, *, dropout_p: float = 0.0, dropout_seed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention to N vectors that are the same for all examples, to be merged with that to the text.

    All examples' queries go together, so the vectors are read once and not copied.

    Args:
        query: ``[B, H, T, D]``.
        key: ``[H, N, D]``.
        value: ``[H, N, D]``.
        dropout_p: probability of dropping a weight.
        dropout_seed: 0-dim int64 tensor.

    Returns:
        ``out [B, H, T, D]``, ``lse [B, H, T]``.
    """
    together = query.transpose(0, 1).flatten(1, 2)[None]  # [1, H, B * T, D]
    out, lse = dense_attention(
        together,
        key[None].to(query.dtype),
        value[None].to(query.dtype),
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        return_lse=True,
    )
    shape = (query.shape[0], query.shape[2])
    return out[0].unflatten(1, shape).transpose(0, 1), lse[0].unflatten(1, shape).transpose(0, 1)
