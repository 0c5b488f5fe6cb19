"""What a Bi-BloSAN is compared with: the same model with another way to give words their context, and linear models.

B batch, T tokens, E width of word vectors, D features of one direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from longspan.base import BackboneOutput
from longspan.biblosan import BiBloSanConfig


class BiLstmEncoder(nn.Module):
    """One layer of LSTMs in both directions, D features each, in place of Bi-BloSA."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.lstm = nn.LSTM(config.embedding_size, config.hidden_size, batch_first=True, bidirectional=True)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, *_: Any) -> BackboneOutput:
        """``[B, T, E]`` -> ``last_hidden_state [B, T, 2 D]``; padding, which the mask names, stands behind the text."""
        length = hidden_states.shape[1]
        x = self.dropout(hidden_states)
        if mask is None:
            return _tokens(self.lstm(x)[0])
        lengths = mask.sum(1).clamp(min=1).cpu()  # an empty text is read as one word, which is zero
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=length)[0]
        return _tokens(out.masked_fill(~mask[..., None], 0.0))


class WordEncoder(nn.Module):
    """A dense layer on each word by itself: no word knows of another."""

    def __init__(self, config: BiBloSanConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.dense = nn.Linear(config.embedding_size, config.feature_size)

    def forward(self, hidden_states: Tensor, mask: Tensor | None, *_: Any) -> BackboneOutput:
        """``[B, T, E]`` -> ``last_hidden_state [B, T, 2 D]``."""
        out = torch.relu(self.dense(self.dropout(hidden_states)))
        return _tokens(out if mask is None else out.masked_fill(~mask[..., None], 0.0))


def _tokens(states: Any) -> BackboneOutput:
    return BackboneOutput(last_hidden_state=states)


class MeanPooling(nn.Module):
    """The mean of a text's words, in place of attention."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``[B, T, 2 D]`` -> ``[B, 2 D]``; zero for a text without words."""
        if mask is None:
            return x.mean(1)
        return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def with_bi_lstm(model: Any) -> Any:
    """A model for Bi-BloSAN's tasks with a Bi-LSTM in place of its encoder; word vectors, pooling and head are kept."""
    model.biblosan.encoder = BiLstmEncoder(model.config)
    return model


def with_mean_of_words(model: Any) -> Any:
    """The mean of word vectors, each through a dense layer, in place of encoder and pooling."""
    model.biblosan.encoder = WordEncoder(model.config)
    model.biblosan.pooler = MeanPooling()
    return model


ENCODERS = ("mean of words", "Bi-LSTM", "DiSAN", "Bi-BloSAN")
"""Names that `build_model` knows."""


def build_model(encoder: str, head_class: Any, *, block_length: int | None, **fields: Any) -> Any:
    """A model with a head of Bi-BloSAN's and one of the encoders of `ENCODERS`, with new weights.

    Args:
        encoder: one of `ENCODERS`; "DiSAN" is attention over the whole text.
        head_class: e.g. ``BiBloSanForSequenceClassification``.
        block_length: of Bi-BloSAN.
        fields: of the configuration.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}")
    if encoder == "DiSAN":
        return head_class(BiBloSanConfig(attention="full", **fields))
    model = head_class(BiBloSanConfig(block_length=block_length, **fields))
    return {"mean of words": with_mean_of_words, "Bi-LSTM": with_bi_lstm}.get(encoder, lambda model: model)(model)


def freeze_fixed_words(model: Any) -> None:
    """Leave the table of words out of training where all its rows are fixed; its gradient would be zeros."""
    table = model.get_input_embeddings()
    if table.num_fixed >= table.num_embeddings:
        table.requires_grad_(False)


def count_parameters(model: nn.Module) -> int:
    """Trained parameters without word vectors."""
    table = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in table)


class LinearBaseline:
    """TF-IDF of words and pairs of words and a linear support vector machine, its cost chosen on the validation part.

    Args:
        costs: to choose from.
    """

    def __init__(self, costs: Sequence[float] = (0.1, 0.3, 1.0, 3.0)):
        self.costs = costs

    def fit(self, train: Sequence[str], labels: Sequence[int], validation: Sequence[str], wanted: Sequence[int]):
        """Learn from ``train`` with ``labels``; choose by ``validation`` with ``wanted``; learn again from both."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC

        vectorizer = TfidfVectorizer(
            lowercase=True, token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True
        )
        x: Any = vectorizer.fit_transform(train)
        held: Any = vectorizer.transform(validation)
        scores = [LinearSVC(C=cost).fit(x, labels).score(held, wanted) for cost in self.costs]
        self.cost = self.costs[scores.index(max(scores))]
        x = vectorizer.fit_transform([*train, *validation])
        self.vectorizer: Any = vectorizer
        self.classifier: Any = LinearSVC(C=self.cost).fit(x, [*labels, *wanted])
        return self

    def predict(self, texts: Sequence[str]) -> list[int]:
        """A label for each text."""
        return self.classifier.predict(self.vectorizer.transform(texts)).tolist()


class WordOverlapBaseline:
    """How much two texts have in common, by TF-IDF of their words.

    Args:
        learns: False: the cosine of the two, with the threshold that is best on the validation part. True: a logistic
            regression over words in common (products) and words that only one has (differences), each with a weight of
            its own, beside the cosine.
    """

    def __init__(self, *, learns: bool):
        self.learns = learns

    def fit(self, train: tuple[Any, Any, Any], validation: tuple[Any, Any, Any]) -> WordOverlapBaseline:
        """Learn from first texts, second texts and labels (1: they belong together)."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self.vectorizer: Any = TfidfVectorizer(sublinear_tf=True).fit([*train[0], *train[1]])
        self.threshold, self.classifier = 0.0, None
        if self.learns:
            self.classifier: Any = LogisticRegression(max_iter=500).fit(self._features(*train[:2]), train[2])
            return self
        cosines, labels = self._cosines(*validation[:2]), np.asarray(validation[2])
        candidates = np.quantile(cosines, np.linspace(0, 1, 201))
        self.threshold = max(candidates, key=lambda value: float(((cosines > value) == labels).mean()))
        return self

    def scores(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Positive where the texts are said to belong together."""
        if self.classifier is None:
            return self._cosines(first, second) - self.threshold
        return self.classifier.decision_function(self._features(first, second))

    def _cosines(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        one, other = (self.vectorizer.transform(side) for side in (first, second))
        return np.asarray(one.multiply(other).sum(1)).ravel()

    def _features(self, first: Sequence[str], second: Sequence[str]) -> Any:
        from scipy import sparse

        one, other = (self.vectorizer.transform(side) for side in (first, second))
        cosine = sparse.csr_matrix(self._cosines(first, second)[:, None])
        return sparse.hstack([cosine * 10, one.multiply(other) * 10, abs(one - other)]).tocsr()
