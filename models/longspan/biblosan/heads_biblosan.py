"""What the heads of Bi-BloSAN compute from vectors of texts and tokens: the layers of the authors' experiments.

B batch, T tokens, S sentences, E width of word vectors, D features of one direction, L labels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.base import can_inspect
from longspan.biblosan.configuration_biblosan import BiBloSanConfig
from longspan.biblosan.modeling_biblosan import ACTIVATIONS, BiBloSanLayer
from longspan.layers.arrangement import Arrangement
from longspan.layers.fusion import Highway
from longspan.layers.source2token import Source2TokenPooling


def compared(first: Tensor, second: Tensor) -> Tensor:
    """[a; b; a - b; a * b]: ``[..., D]`` twice -> ``[..., 4 D]``."""
    return torch.cat([first, second, first - second, first * second], -1)


class TextClassifier(nn.Module):
    """Dense, ReLU, and scores of labels without a bias (TREC, SST, CR, MPQA, SUBJ)."""

    def __init__(self, config: BiBloSanConfig, num_labels: int):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense = nn.Linear(config.feature_size, config.head_size)
        self.logits = nn.Linear(config.head_size, num_labels, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, 2 D]`` -> ``[B, L]``."""
        return self.logits(self.dropout(F.relu(self.dense(self.dropout(text)))))


class PairClassifier(nn.Module):
    """Dense over a comparison of two texts, a highway layer, and scores of labels (SNLI)."""

    def __init__(self, config: BiBloSanConfig, num_labels: int):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense = nn.Linear(4 * config.feature_size, config.head_size)
        self.highway = Highway(config.head_size, activation=self.activation, dropout=config.hidden_dropout_prob)
        self.logits = nn.Linear(config.head_size, num_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``[B, 2 D]`` twice -> ``[B, L]``."""
        hidden = self.activation(self.dense(self.dropout(compared(first, second))))
        return self.logits(self.dropout(self.highway(hidden)))


class RelatednessRegressor(nn.Module):
    """How related two texts are, as a distribution over the scores 1 to L (SICK)."""

    def __init__(self, config: BiBloSanConfig, num_labels: int):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.product = nn.Linear(config.feature_size, config.head_size, bias=False)
        self.difference = nn.Linear(config.feature_size, config.head_size)
        self.logits = nn.Linear(config.head_size, num_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """``[B, 2 D]`` twice -> logits of the scores, ``[B, L]``."""
        product, difference = self.dropout(first * second), self.dropout((first - second).abs())
        return self.logits(self.dropout(F.relu(self.product(product) + self.difference(difference))))


def expected_scores(logits: Tensor) -> Tensor:
    """The mean of a distribution over 1 to L: ``[B, L]`` -> ``[B]``."""
    scores = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    return logits.softmax(-1) @ scores


def relatedness_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """KL(target || prediction), each clipped to [1e-10, 1]; a score is shared between the two integers around it.

    Args:
        logits: ``[B, L]``.
        scores: floats ``[B]`` from 1 to L.

    Raises:
        ValueError: for scores beyond that.
    """
    num_scores = logits.shape[-1]
    scores = scores.to(logits.device).float().flatten()
    if can_inspect(scores) and scores.numel() and not bool(((scores >= 1) & (scores <= num_scores)).all()):
        low, high = (value.item() for value in scores.aminmax())
        raise ValueError(f"labels must be scores from 1 to num_labels = {num_scores}, got {low} to {high}")
    floor = scores.floor().clamp(max=num_scores - 1)
    upper = (scores - floor)[:, None]
    place = F.one_hot(floor.long() - 1, num_scores)
    target = (1 - upper) * place + upper * place.roll(1, -1)
    target, predicted = target.clamp(1e-10, 1), logits.float().softmax(-1).clamp(1e-10, 1)
    return (target * (target / predicted).log()).sum(-1).mean()


class SentenceSelector(nn.Module):
    """Which sentence of a document answers a question (the paper's simplified SQuAD)."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        size = config.head_size
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.question_pooling = Source2TokenPooling(
            config.embedding_size,
            activation=F.relu,
            dropout=config.hidden_dropout_prob,
            average_empty=not config.mask_padding_blocks,
        )
        self.question = nn.Linear(config.embedding_size, size)
        self.sentence = nn.Linear(config.feature_size, size)
        self.context = BiBloSanLayer(config, 4 * size, config.sentence_block_length)
        self.dense = nn.Linear(config.feature_size, size)
        self.logits = nn.Linear(size, 1)

    def forward(
        self, sentences: Tensor, sentence_mask: Tensor | None, question: Tensor, question_mask: Tensor | None
    ) -> Tensor:
        """Score sentences.

        Args:
            sentences: their vectors, ``[B, S, 2 D]``.
            sentence_mask: bool ``[B, S]``, True = a sentence, or None: all are.
            question: its word vectors, ``[B, Q, E]``.
            question_mask: bool ``[B, Q]``, or None.

        Returns:
            ``[B, S]``, the lowest number there is at padding.
        """
        asked = self._dense(self.question, self.question_pooling(question, question_mask))
        sentences = self._dense(self.sentence, sentences)
        fused = compared(sentences, asked[:, None].expand_as(sentences))
        arrangement, mask = None, sentence_mask
        if Arrangement.needed(mask):
            assert mask is not None
            arrangement = Arrangement(mask)
            fused, mask = arrangement.inward(fused), arrangement.inward(mask)
        context, _, _ = self.context(fused, mask)
        logits = self.logits(self.dropout(self._dense(self.dense, context))).squeeze(-1)
        logits = logits if arrangement is None else arrangement.outward(logits)
        return logits if sentence_mask is None else logits.masked_fill(~sentence_mask, torch.finfo(logits.dtype).min)

    def _dense(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.relu(layer(self.dropout(x)))


class SpanScorer(nn.Module):
    """Where in a text the answer to a question begins and ends."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense = nn.Linear(4 * config.feature_size, config.head_size)
        self.logits = nn.Linear(config.head_size, 2)

    def forward(self, tokens: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, 2 D]`` and ``[B, 2 D]`` -> scores of the first and the last token, ``[B, T]`` each."""
        fused = compared(tokens, question[:, None].expand_as(tokens))
        scores = self.logits(self.dropout(self.activation(self.dense(self.dropout(fused)))))
        start, end = scores.unbind(-1)
        return start.contiguous(), end.contiguous()
