"""A sentence as one vector: its word vectors, weighted by their places and summed.

B texts, S sentences, W words of the longest sentence, E hidden size.
"""

import torch
from torch import Tensor, nn


class SentenceSum(nn.Module):
    """Word vectors times a learned mask of their places, summed: how Universal Transformers read bAbI.

    Args:
        vocab_size: number of word ids; 0 is padding and adds nothing.
        hidden_size: E.
        max_words: words of the longest sentence that can come.
    """

    def __init__(self, vocab_size: int, hidden_size: int, max_words: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.places = nn.Parameter(torch.ones(max_words, hidden_size))
        nn.init.normal_(self.word_embeddings.weight, std=0.5 * hidden_size**-0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """``[B, S, W]`` -> ``[B, S, E]``; word vectors are multiplied by the root of E.

        New word vectors are half as large as a word's elsewhere, so that a sum of a few is about as large as the
        signal of the place that is added to it.

        Raises:
            ValueError: for sentences longer than the mask.
        """
        words, most = input_ids.shape[-1], len(self.places)
        if words > most:
            raise ValueError(f"input_ids must have sentences of at most max_words = {most} words, got {words}")
        vectors = self.word_embeddings(input_ids) * self.places.shape[1] ** 0.5
        return (vectors * self.places[:words] * (input_ids != 0)[..., None]).sum(-2)
