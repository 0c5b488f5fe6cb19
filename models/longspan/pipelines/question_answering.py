"""Questions about documents of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from longspan.data.spans import token_span_to_chars
from longspan.pipelines.answers import log_probabilities, rank_spans
from longspan.pipelines.base import LongDocumentPipeline, Window, is_many, is_streamed, positive, text_of

MAX_ANSWER_TOKENS = 64
USUAL_OVERLAP = 128  # document tokens


class LongQuestionAnsweringPipeline(LongDocumentPipeline):
    """Answers questions with spans of a document of any length (task ``long-question-answering``).

    ```python
    import longspan
    from transformers import pipeline

    ask = pipeline("long-question-answering", model="folder")
    ask("Which law governs this agreement?", agreement)
    # {"score": 0.98, "start": 70412, "end": 70430, "answer": "the State of Texas"}
    ```

    Any model for `AutoModelForQuestionAnswering` serves. A document that is longer than the model goes through it in
    overlapping windows, and the answer is the best span of all of them: ``start`` and ``end`` are characters of the
    document as given, ``document[start:end] == answer``.

    **Scores.** ``score`` is the probability of the start times the probability of the end. Each is a softmax over the
    whole document, all windows together, in which a token counts once (with the highest logit that a window gave it);
    question and padding do not count. So answers of different windows compare, and for a document that fits in one
    window it is the usual softmax over the document.

    **No answer.** With ``handle_impossible_answer=True`` the first token (``[CLS]``) is one more outcome, "no answer";
    the window where it is least likely speaks for the document (an answer in one window is an answer). The empty
    answer is then ranked with the others, and each answer carries ``no_answer_score``. It means something only for a
    model that was trained with unanswerable questions.

    Parameters, here or in a call:

    * ``top_k`` (1): that many answers, best first, not overlapping; more than 1 gives a list.
    * ``max_answer_len`` (64): longest answer in tokens of the model.
    * ``handle_impossible_answer`` (False): see above.
    * ``max_seq_len``: longest model input in tokens, question included; the model's length unless named.
    * ``stride``: document tokens that neighbouring windows share; unless named 128, or ``max_answer_len`` if that is
      more, but at most half of a window.
    * ``batch_size`` (1): windows per forward pass, over all documents of the call.
    * ``progress``: a progress bar over windows; unless named, on a terminal once the work takes some seconds.
    """

    output_names = ("start_logits", "end_logits")

    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **params: Any) -> Any:
        """Answer one question or many.

        Args:
            inputs: a question, or a list of questions, with ``context`` beside it; or a dict with the keys
                ``question`` and ``context``, a list, a dataset or a generator of such dicts.
            context: the document, or one for each question. One document serves many questions, and one question is
                put to many documents.
            question: the question or questions by name, in place of ``inputs``.
            params: see the class.

        Returns:
            For one question a dict with ``score``, ``start``, ``end``, ``answer`` (with ``top_k`` > 1 a list of such),
            for several a list of these in their order, for a generator or a torch dataset an iterator.

        Raises:
            ValueError: for a missing, empty or mistyped question or document, a question longer than a window, or a
                parameter out of range.
        """
        if inputs is not None and question is not None:
            raise ValueError("question was given twice: name it, or put it first, not both")
        asked = inputs if question is None else question
        if asked is None:
            raise ValueError("question is missing: wanted a str, a list of str, or dicts with question and context")
        if context is not None:
            asked = _pairs(asked, context)
        elif not is_many(asked):
            asked = _checked(asked)
        elif not is_streamed(asked):
            asked = [_checked(item, f"inputs[{index}]") for index, item in enumerate(asked)]
        return [] if asked == [] else super().__call__(asked, **params)

    def _sanitize_parameters(
        self,
        *,
        top_k: int | None = None,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
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
        if top_k is not None:
            after["top_k"] = positive("top_k", top_k)
        if max_answer_len is not None:
            before["max_answer_len"] = after["max_answer_len"] = positive("max_answer_len", max_answer_len)
        if handle_impossible_answer is not None:
            after["handle_impossible_answer"] = bool(handle_impossible_answer)
        return before, {} if progress is None else {"progress": progress}, after

    def preprocess(
        self,
        inputs: Any,
        max_seq_len: int | None = None,
        stride: int | None = None,
        max_answer_len: int = MAX_ANSWER_TOKENS,
    ) -> Iterator[Window]:
        """Windows of one document behind one question."""
        pair = _checked(inputs)
        overlap = max(USUAL_OVERLAP, max_answer_len)
        yield from self._windows(pair["context"], pair["question"], max_seq_len, stride, overlap)

    def postprocess(
        self,
        windows: list[Window],
        top_k: int = 1,
        max_answer_len: int = MAX_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
    ) -> Any:
        """The ranked answers of one document from all its windows."""
        document = windows[0].document
        text, offsets = document.text, document.offsets
        visible = torch.tensor([bool(text[start:end].strip()) for start, end in offsets])  # [D]
        nulls = [{name: values[0] for name, values in window.outputs.items()} for window in windows]
        null = min(nulls, key=lambda logits: float(sum(logits.values())))
        spans = [(window.first, window.last) for window in windows]

        scores: dict[str, list[Tensor]] = {}
        no_answer = 0.0  # log-probability
        for name in self.output_names:
            logits = []
            for window in windows:
                values = window.outputs[name][document.start :][: window.last - window.first]  # [N]
                logits.append(values.masked_fill(~visible[window.first : window.last], -torch.inf))
            scores[name], left = log_probabilities(logits, spans, null[name] if handle_impossible_answer else None)
            no_answer += 0.0 if left is None else float(left)

        found = rank_spans(
            scores["start_logits"], scores["end_logits"], spans, max_answer_tokens=max_answer_len, top_k=top_k
        )
        if not found:
            raise ValueError(
                f"model {type(self.model).__name__} returned no finite logit for this document: load it in a wider "
                f"dtype than {self.dtype}, or look for NaN in its weights"
            )
        answers = []
        for span in found:
            start, end = token_span_to_chars(offsets, span.first, span.last)
            start += len(text[start:end]) - len(text[start:end].lstrip())  # tokens of some vocabularies hold spaces
            end = start + len(text[start:end].rstrip())
            answers.append({"score": math.exp(span.score), "start": start, "end": end, "answer": text[start:end]})
        if handle_impossible_answer:
            answers.append({"score": math.exp(no_answer), "start": 0, "end": 0, "answer": ""})
            answers.sort(key=lambda answer: -answer["score"])
            answers = [{**answer, "no_answer_score": math.exp(no_answer)} for answer in answers[:top_k]]
        return answers[0] if top_k == 1 else answers


def _pairs(question: Any, context: Any) -> Any:
    """Questions and documents side by side; one of either serves all of the other."""
    many_questions, many_contexts = is_many(question), is_many(context)
    if not many_questions and not many_contexts:
        return _checked({"question": question, "context": context})
    questions = list(question) if many_questions else [question]
    contexts = list(context) if many_contexts else [context]
    if many_questions and many_contexts and len(questions) != len(contexts):
        raise ValueError(
            f"question and context must be equally many, or one of them a single str, got {len(questions)} questions "
            f"and {len(contexts)} contexts"
        )
    if not many_contexts:
        contexts = contexts * len(questions)
    if not many_questions:
        questions = questions * len(contexts)
    return [
        _checked({"question": one, "context": other}, f"inputs[{index}]")
        for index, (one, other) in enumerate(zip(questions, contexts, strict=True))
    ]


def _checked(item: Any, place: str = "") -> dict[str, str]:
    """The question and the document of one input.

    Raises:
        ValueError: naming what is missing, mistyped or empty.
    """
    where = f"{place}: " if place else ""
    if isinstance(item, str):
        raise ValueError(f"{where}context is missing: wanted a document beside the question {item[:40]!r}")
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}wanted a dict with the keys question and context, got {type(item).__name__}")
    missing = [key for key in ("question", "context") if key not in item]
    if missing:
        raise ValueError(f"{where}{' and '.join(missing)} missing: wanted question and context, got {sorted(item)}")
    return {key: text_of(f"{where}{key}", item[key]) for key in ("question", "context")}
