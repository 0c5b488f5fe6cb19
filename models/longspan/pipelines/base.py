"""What the pipelines over long documents share: windows in batches, limits, saving.

Shapes: B windows in a batch, T tokens of the longest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import GeneratorType, SimpleNamespace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers.pipelines.base import ChunkPipeline

from longspan.data.collators import LongDocumentCollator
from longspan.pipelines.windows import EncodedDocument, encode_document, forward_arguments, plan_windows, position_limit

LOOKAHEAD = 16  # batches of windows that are sorted by length together, so that little of a batch is padding
PROGRESS_DELAY = 3.0  # seconds of work before a progress bar appears
NO_LIMIT = 10**9  # a tokenizer that knows no longest input says 10**30
UNSET: Any = object()  # a parameter the caller did not name, where None means something


@dataclass
class Window:
    """The document tokens [first, last) as one input of the model; ``outputs`` once the model has seen it."""

    document: EncodedDocument
    first: int
    last: int
    outputs: dict[str, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the model input."""
        return self.document.extra + self.last - self.first


class LongDocumentPipeline(ChunkPipeline):
    """Documents of any length through a model of limited length; a subclass says what is asked and what comes out.

    Windows of one call are batched across documents, longest first, and padded on the right whatever the tokenizer
    says: the positions of the tokens, and with them the result, are then those of the unpadded window.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    output_names: tuple[str, ...] = ()  # what is read from the model's output

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.tokenizer is None or not getattr(self.tokenizer, "is_fast", False):
            raise ValueError(
                "tokenizer must be one that runs on `tokenizers`, which alone gives character offsets, got "
                f"{None if self.tokenizer is None else type(self.tokenizer).__name__}"
            )
        pad = self.tokenizer.pad_token_id
        self._collate = LongDocumentCollator(
            SimpleNamespace(
                padding_side="right",
                pad_token_id=0 if pad is None else pad,
                pad_token_type_id=self.tokenizer.pad_token_type_id,
            )
        )

    def _windows(
        self, text: str, question: str | None, max_seq_len: int | None, stride: int | None, usual_overlap: int
    ) -> list[Window]:
        document = encode_document(self.tokenizer, self.model, text, question)
        spans = plan_windows(document, self._window_size(max_seq_len), stride, usual_overlap)
        return [Window(document, first, last) for first, last in spans]

    def _window_size(self, max_seq_len: int | None) -> int | None:
        """Longest model input in tokens: as asked, else the smaller of the position table and the tokenizer's limit."""
        positions = position_limit(self.model)
        if max_seq_len is not None:
            if positions is not None and max_seq_len > positions:
                raise ValueError(f"max_seq_len must be at most {positions}, the model's positions, got {max_seq_len}")
            return max_seq_len
        assert self.tokenizer is not None
        limits = [limit for limit in (positions, self.tokenizer.model_max_length) if limit and limit < NO_LIMIT]
        return min(limits) if limits else None

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Results in the order of the inputs. ``num_workers`` has no effect: the tokenizer is never the slow part."""
        progress = forward_params.get("progress")
        hidden = None if progress is None else not progress  # None: shown on a terminal
        bar = tqdm(desc=self.task, unit="window", total=0, disable=hidden, delay=0 if progress else PROGRESS_DELAY)
        try:
            for documents in self._groups(inputs, batch_size, preprocess_params):
                windows = sorted((w for document in documents for w in document), key=lambda w: -w.length)
                bar.total = (bar.total or 0) + len(windows)
                for start in range(0, len(windows), batch_size):
                    batch = windows[start : start + batch_size]
                    self._run(batch)
                    bar.update(len(batch))
                for document in documents:
                    outputs: Any = document
                    yield self.postprocess(outputs, **postprocess_params)
        finally:
            bar.close()

    def _groups(self, inputs: Any, batch_size: int, params: dict[str, Any]) -> Iterator[list[list[Window]]]:
        """The windows of as many whole documents as are batched together."""
        if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a torch Dataset need not be iterable
            items: Iterable[Any] = (inputs[index] for index in range(len(inputs)))
        else:
            items = inputs
        documents: list[list[Window]] = []
        for item in items:
            windows: Any = self.preprocess(item, **params)
            documents.append(list(windows))
            if batch_size == 1 or sum(map(len, documents)) >= LOOKAHEAD * batch_size:
                yield documents
                documents = []
        if documents:
            yield documents

    def _run(self, batch: list[Window]) -> None:
        """Fill ``outputs`` of the windows, in float32."""
        inputs = self._collate([window.document.window(window.first, window.last) for window in batch])
        outputs: Any = self.forward(inputs)
        for row, window in enumerate(batch):
            window.outputs = {name: value[row].float() for name, value in outputs.items()}

    def _forward(self, input_tensors: dict[str, Tensor], **forward_parameters: Any) -> dict[str, Tensor]:
        accepted = forward_arguments(self.model)
        inputs: dict[str, Any] = {name: value for name, value in input_tensors.items() if name in accepted}
        if "use_cache" in accepted:
            inputs["use_cache"] = False
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()  # a model straight from training still has its dropout on
        try:
            outputs = self.model(**inputs)
        finally:
            for module in training:
                module.training = True
        missing = [name for name in self.output_names if getattr(outputs, name, None) is None]
        if missing:
            raise ValueError(
                f"model must return {' and '.join(self.output_names)} for the task {self.task}; "
                f"{type(self.model).__name__} has no {' and no '.join(missing)}"
            )
        return {name: outputs[name] for name in self.output_names}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and tokenizer, and no code: ``import longspan`` makes the task known where they are loaded."""
        self.model.save_pretrained(save_directory, **kwargs)
        assert self.tokenizer is not None
        self.tokenizer.save_pretrained(save_directory, **kwargs)


def positive(name: str, value: Any, least: int = 1) -> int:
    """The value if it is an integer of at least ``least``.

    Raises:
        ValueError: otherwise, naming the parameter.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def text_of(name: str, value: Any) -> str:
    """The value if it is a text with something in it.

    Raises:
        ValueError: otherwise, naming the argument.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a str, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} must hold some text, got {value[:20]!r}")
    return value


def is_many(inputs: Any) -> bool:
    """Whether these are several inputs (list, dataset, generator ...) rather than one."""
    return not isinstance(inputs, str | Mapping) and (isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"))


def is_streamed(inputs: Any) -> bool:
    """Whether these inputs are taken one by one, with an iterator as the result."""
    return isinstance(inputs, Dataset | GeneratorType)
