"""Adaptive input and softmax: frequent words get wide vectors, rare words narrow ones (Grave et al. 2017; Baevski and
Auli 2019).

Words are numbered by frequency and cut into clusters. Vectors of cluster i are E / factor^i wide, and a projection
brings every cluster to the hidden size. On the way out, the words of cluster 0 and one score for each other cluster
share a first softmax; each other cluster has a softmax of its own, so that a rare word's log-probability is a sum of
two and the loss computes no scores of clusters that do not occur.

E hidden size, V vocabulary, c clusters, V_i words of cluster i, E_i width of their vectors.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.layers.chunked import linear_cross_entropy

IGNORED = -100  # the label of a token that does not count


def cluster_sizes(vocab_size: int, hidden_size: int, cutoffs: Sequence[int], factor: int) -> list[tuple[int, int]]:
    """Number of words and width of each cluster: ``[(V_0, E_0), (V_1, E_1), ...]``.

    Args:
        vocab_size: V.
        hidden_size: E.
        cutoffs: the first word of each cluster but the first, rising, inside of ``(0, V)``.
        factor: by which each cluster is narrower than the one before.

    Raises:
        ValueError: for cutoffs that do not rise, or more clusters than widths.
    """
    ends = [0, *cutoffs, vocab_size]
    sizes = [end - begin for begin, end in itertools.pairwise(ends)]
    if not cutoffs or min(sizes) < 1:
        raise ValueError(f"cutoffs must rise between 0 and the vocabulary size {vocab_size}, got {list(cutoffs)}")
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    widths = [hidden_size // factor**i for i in range(len(sizes))]
    if widths[-1] < 1:
        raise ValueError(
            f"{len(sizes)} clusters, each {factor} times narrower, leave the last no width at hidden size {hidden_size}"
        )
    return list(zip(sizes, widths, strict=True))


class WordCluster(nn.Module):
    """Vectors of one cluster's words, and how they relate to hidden states.

    Attributes:
        weight: ``[V_i, E_i]``.
        projection: ``[E, E_i]``.
        bias: ``[V_i]`` on the output side, else None.
    """

    def __init__(self, num_words: int, width: int, hidden_size: int, *, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_words, width))
        self.projection = nn.Parameter(torch.empty(hidden_size, width))
        self.bias = nn.Parameter(torch.empty(num_words)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both sides of a tied pair start at about unit variance: embedded words, and scores of unit hidden states."""
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.xavier_uniform_(self.projection)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class _Clusters(nn.Module):
    """What both sides share."""

    def __init__(self, vocab_size: int, hidden_size: int, cutoffs: Sequence[int], factor: int, *, bias: bool):
        super().__init__()
        sizes = cluster_sizes(vocab_size, hidden_size, cutoffs, factor)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.cutoffs, self.factor = tuple(cutoffs), factor
        self.clusters: Any = nn.ModuleList(WordCluster(words, width, hidden_size, bias=bias) for words, width in sizes)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """First word, and first word no more, of each cluster."""
        return zip((0, *self.cutoffs), (*self.cutoffs, self.vocab_size), strict=True)


class AdaptiveInput(_Clusters):
    """Word embeddings of width by frequency, times sqrt(E).

    Args:
        vocab_size: V; words are numbered by frequency, the most frequent first.
        hidden_size: E.
        cutoffs: the first word of each cluster but the first.
        factor: cluster i is E / factor^i wide.
    """

    def __init__(self, vocab_size: int, hidden_size: int, cutoffs: Sequence[int], factor: int = 4):
        super().__init__(vocab_size, hidden_size, cutoffs, factor, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Word ids ``[...]`` -> ``[..., E]``.

        Every token goes through every cluster: that costs at most E^2 (1 + 1/factor + ...) products, and what a graph
        holds does not depend on the words.
        """
        embedded = None
        for (begin, end), cluster in zip(self._ranges(), self.clusters, strict=True):
            rows = F.embedding((input_ids - begin).clamp(0, end - begin - 1), cluster.weight)
            rows = F.linear(rows, cluster.projection)  # [..., E]
            embedded = rows if embedded is None else torch.where((input_ids >= begin)[..., None], rows, embedded)
        assert embedded is not None
        return embedded * math.sqrt(self.hidden_size)


class AdaptiveLogSoftmax(_Clusters):
    """Log-probabilities of words, and their cross entropy without computing them all.

    The first softmax has the words of cluster 0 and then one entry for each other cluster, the last cluster first.

    Args:
        vocab_size: V; words are numbered by frequency, the most frequent first.
        hidden_size: E.
        cutoffs: the first word of each cluster but the first.
        factor: cluster i is E / factor^i wide.
    """

    def __init__(self, vocab_size: int, hidden_size: int, cutoffs: Sequence[int], factor: int = 4):
        super().__init__(vocab_size, hidden_size, cutoffs, factor, bias=True)
        self.cluster_scores = nn.Linear(self.clusters[0].weight.shape[1], len(cutoffs))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[..., E]`` -> log-probabilities of all words ``[..., V]``, float32 at least."""
        first = self._log_softmax(hidden, 0, *self._first())
        parts = [first[..., : self.cutoffs[0]]]
        for i, cluster in enumerate(self.clusters):
            if i:
                within = self._log_softmax(hidden, i, cluster.weight, cluster.bias)
                parts.append(first[..., self._place(i), None] + within)
        return torch.cat(parts, -1)

    def loss(
        self, hidden: Tensor, labels: Tensor, rows: int = 0, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Cross entropy of ``labels``; scores exist for ``rows`` tokens at a time, and for the clusters that occur.

        Args:
            hidden: ``[..., E]``.
            labels: integers ``[...]``, -100 where a token does not count.
            rows: tokens at a time; 0 chooses. It changes time and memory alone.
            num_items_in_batch: what to divide the sum by; None: the mean over the tokens that count.

        Returns:
            A number: 0-dim, at least float32.

        Raises:
            ValueError: if shapes do not fit or a label is neither a word nor -100.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self._check(labels)
        first_labels, inside = labels, []
        for i, (begin, end) in enumerate(self._ranges()):
            inside.append((labels >= begin) & (labels < end))
            if i:
                first_labels = first_labels.masked_fill(inside[i], self._place(i))
        counted = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        total = self._cluster_loss(hidden, 0, *self._first(), first_labels, rows)
        for i, (begin, _) in enumerate(self._ranges()):
            if i:
                within = torch.where(inside[i], labels - begin, IGNORED)
                chosen = hidden
                if not compiling:  # a cluster projects its own tokens alone
                    own = inside[i].nonzero(as_tuple=True)  # once: a GPU is waited for
                    chosen, within = hidden[own], within[own]
                cluster = self.clusters[i]
                total = total + self._cluster_loss(chosen, i, cluster.weight, cluster.bias, within, rows)
        return total / (counted.to(total.device) if isinstance(counted, Tensor) else counted)

    def _check(self, labels: Tensor) -> None:
        wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= self.vocab_size))]
        if len(wrong):
            raise ValueError(
                f"labels must be words, 0 to {self.vocab_size - 1}, or {IGNORED} (ignored); got {int(wrong[0])}"
            )

    def _place(self, i: int) -> int:
        """Where the first softmax has the score of cluster ``i``: cluster 1 comes last."""
        return self.cutoffs[0] + len(self.cutoffs) - i

    def _first(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the first softmax."""
        cluster = self.clusters[0]
        weight = torch.cat([cluster.weight, self.cluster_scores.weight])
        return weight, torch.cat([cluster.bias, self.cluster_scores.bias])

    def _cluster_loss(self, hidden: Tensor, i: int, weight: Tensor, bias: Tensor, labels: Tensor, rows: int) -> Tensor:
        """Sum over tokens."""
        return linear_cross_entropy(
            self._project(hidden, i), weight, bias, labels, rows=rows, ignore_index=IGNORED, num_items_in_batch=1
        )

    def _log_softmax(self, hidden: Tensor, i: int, weight: Tensor, bias: Tensor) -> Tensor:
        scores = F.linear(self._project(hidden, i), weight, bias)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(-1)

    def _project(self, hidden: Tensor, i: int) -> Tensor:
        """``[..., E]`` -> ``[..., E_i]``."""
        return F.linear(hidden, self.clusters[i].projection.t())
