"""A table of word vectors of which the first rows stay as they are.

V words, E features.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class WordVectors(nn.Embedding):
    """An embedding whose first rows never change: padding, the unknown word, and words with vectors from elsewhere.

    They get no gradient. Weight decay would still shrink them: leave the table out of it.

    Args:
        num_words: V.
        size: E.
        num_fixed: rows ``[0, num_fixed)`` get no gradient.
        padding_idx: of padding, or None.
    """

    def __init__(self, num_words: int, size: int, *, num_fixed: int = 0, padding_idx: int | None = None):
        super().__init__(num_words, size, padding_idx)
        self.num_fixed = num_fixed

    def forward(self, input: Tensor) -> Tensor:
        """Word ids ``[...]`` -> ``[..., E]``."""
        rows = F.embedding(input, self.weight, self.padding_idx)
        if self.num_fixed == 0:
            return rows
        return rows.detach().where((input < self.num_fixed)[..., None], rows)
