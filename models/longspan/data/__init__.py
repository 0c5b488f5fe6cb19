"""Documents, questions about them, windows and batches. Imports no model.

`spans`, `collators` and `text_collators` need torch alone; what loads a data set (`agreements`, `questions`, `verses`,
`verse_pairs`, `trec`, `genres`) needs the `train` extra (`datasets`).
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
from longspan.data.text_collators import RandomWindowCollator, SentenceSelectionCollator, TextPairCollator
from longspan.data.word_vectors import read_word_vectors

__all__ = [
    "LongDocumentCollator",
    "RandomWindowCollator",
    "SentenceSelectionCollator",
    "Span",
    "TextPairCollator",
    "best_spans",
    "char_span_to_tokens",
    "merge_spans",
    "read_word_vectors",
    "split_windows",
    "token_span_to_chars",
]
