"""Labels for documents of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longspan.pipelines.base import UNSET, LongDocumentPipeline, Window, is_many, is_streamed, positive, text_of

POOLINGS = ("mean", "max")
FUNCTIONS = ("softmax", "sigmoid", "none")


class LongTextClassificationPipeline(LongDocumentPipeline):
    """Classifies documents of any length (task ``long-text-classification``).

    ```python
    import longspan
    from transformers import pipeline

    classify = pipeline("long-text-classification", model="folder")
    classify(agreement)  # {"label": "Copyleft", "score": 0.97}
    ```

    Any model for `AutoModelForSequenceClassification` serves. A document that is longer than the model goes through it
    in windows, whose logits are pooled before they become scores.

    Parameters, here or in a call:

    * ``pooling`` ("mean"): "mean" averages the windows' logits, each weighted by its document tokens, so that a short
      document end weighs little; "max" takes the highest logit of each label, for labels that one passage decides.
    * ``top_k`` (1): that many labels, best first; ``None`` for all. More than one gives a list.
    * ``function_to_apply``: "softmax", "sigmoid" or "none"; unless named what the model's config says: nothing for
      regression, sigmoid for one label or several that may hold together, else softmax.
    * ``max_seq_len``: longest model input in tokens; the model's length unless named.
    * ``stride`` (0): document tokens that neighbouring windows share.
    * ``batch_size`` (1): windows per forward pass, over all documents of the call.
    * ``progress``: a progress bar over windows; unless named, on a terminal once the work takes some seconds.
    """

    output_names = ("logits",)

    def __call__(self, inputs: Any, **params: Any) -> Any:
        """Classify one document or many.

        Args:
            inputs: a document, a list of documents, or a generator or dataset of them.
            params: see the class.

        Returns:
            For one document a dict with ``label`` and ``score`` (unless ``top_k`` is 1 a list of such), for several a
            list of these in their order, for a generator or a torch dataset an iterator.

        Raises:
            ValueError: for a missing, empty or mistyped document, or a parameter out of range.
        """
        if not is_many(inputs):
            inputs = text_of("inputs", inputs)
        elif not is_streamed(inputs):
            inputs = [text_of(f"inputs[{index}]", text) for index, text in enumerate(inputs)]
        return [] if inputs == [] else super().__call__(inputs, **params)

    def _sanitize_parameters(
        self,
        *,
        pooling: str | None = None,
        top_k: int | None = UNSET,
        function_to_apply: str | None = None,
        max_seq_len: int | None = None,
        stride: int | None = None,
        progress: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        if max_seq_len is not None:
            before["max_seq_len"] = positive("max_seq_len", max_seq_len)
        if stride is not None:
            before["stride"] = positive("stride", stride, least=0)
        if pooling is not None:
            after["pooling"] = _one_of("pooling", pooling, POOLINGS)
        if function_to_apply is not None:
            after["function_to_apply"] = _one_of("function_to_apply", function_to_apply, FUNCTIONS)
        if top_k is not UNSET:
            after["top_k"] = None if top_k is None else positive("top_k", top_k)
        return before, {} if progress is None else {"progress": progress}, after

    def preprocess(self, inputs: Any, max_seq_len: int | None = None, stride: int = 0) -> Iterator[Window]:
        """Windows of one document."""
        yield from self._windows(text_of("inputs", inputs), None, max_seq_len, stride, 0)

    def postprocess(
        self,
        windows: list[Window],
        pooling: str = "mean",
        top_k: int | None = 1,
        function_to_apply: str | None = None,
    ) -> Any:
        """The ranked labels of one document from all its windows."""
        logits = torch.stack([window.outputs["logits"] for window in windows])  # [windows, labels]
        if pooling == "max":
            pooled = logits.amax(0)
        else:
            tokens = torch.tensor([window.last - window.first for window in windows], dtype=logits.dtype)
            pooled = (tokens / tokens.sum()) @ logits
        scores = _scores(pooled, function_to_apply or self._usual_function()).tolist()
        names: Any = self.model.config.id2label
        labels = [{"label": names[index], "score": score} for index, score in enumerate(scores)]
        labels.sort(key=lambda label: -label["score"])
        return labels[0] if top_k == 1 else labels[:top_k]

    def _usual_function(self) -> str:
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"


def _scores(logits: Tensor, function: str) -> Tensor:
    if function == "softmax":
        return logits.softmax(-1)
    return logits.sigmoid() if function == "sigmoid" else logits


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")
    return value
