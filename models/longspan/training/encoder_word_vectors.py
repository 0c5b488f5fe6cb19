"""Word vectors out of a text encoder, where no file of word vectors is at hand: each word is read by itself.

V words, E features.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

SPREAD = 0.4  # standard deviation of a number in a vector, about that of GloVe's


@torch.no_grad()
def encoder_word_vectors(
    words: Iterable[str], encoder: Path | str, *, keep: Path | None = None, batch_size: int = 256
) -> dict[str, Tensor]:
    """Word -> ``[E]``: a static vector, whatever text the word then stands in.

    Every feature has mean 0 over the words, and all of them together a standard deviation of `SPREAD`, as files of
    word vectors have it: what encoders return for single words has most of its length in common.

    Args:
        words: to read.
        encoder: folder of a BERT-like model whose texts are the mean of their tokens, e.g.
            ``longspan.data.packages.minilm_folder()``.
        keep: a file in which vectors are kept from run to run; it is read where it holds the same words.
        batch_size: words in a pass.
    """
    words = sorted(set(words), key=lambda word: (len(word), word))  # words of about as many pieces are read together
    if keep is not None and keep.exists():
        kept = torch.load(keep, weights_only=True)
        if kept["words"] == words:
            return dict(zip(words, kept["vectors"], strict=True))
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    found = []
    for begin in range(0, len(words), batch_size):
        some = words[begin : begin + batch_size]
        batch = tokenizer(some, padding=True, truncation=True, max_length=32, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        states = model(**batch).last_hidden_state
        found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    vectors = torch.cat(found)  # [V, E]
    vectors = vectors - vectors.mean(0)
    vectors = vectors * (SPREAD / vectors.std())
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"words": words, "vectors": vectors}, keep)
    return dict(zip(words, vectors, strict=True))
