"""Documents, questions about them, windows and batches. Imports no model.

`spans` and `collators` need torch alone; `agreements` and `questions` need the `train` extra (`datasets`).
"""

from longspan.data.collators import LongDocumentCollator
from longspan.data.spans import (
    Span,
    best_spans,
    char_span_to_tokens,
    merge_spans,
    split_windows,
    token_span_to_chars,
)
from longspan.data.word_vectors import read_word_vectors

__all__ = [
    "LongDocumentCollator",
    "Span",
    "best_spans",
    "char_span_to_tokens",
    "merge_spans",
    "read_word_vectors",
    "split_windows",
    "token_span_to_chars",
]
