"""Reformer behind the document pipelines: other inputs than Longformer's, and texts beyond its positions."""

from typing import Any

import pytest
import torch
import transformers

import longspan

TEXT = "This agreement shall be governed by the laws of Norway. " * 12


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = longspan.ReformerConfig(
        vocab_size=258, hidden_size=16, num_attention_heads=2, attention_head_size=8, feed_forward_size=32,
        attn_layers=["local", "lsh"], lsh_attn_chunk_length=16, local_attn_chunk_length=16, is_decoder=False,
        axial_pos_shape=[16, 16], axial_pos_embds_dim=[8, 8], max_position_embeddings=256, num_labels=3,
    )  # fmt: skip
    tokenizer = longspan.ReformerTokenizer()
    for task in ("QuestionAnswering", "SequenceClassification"):
        getattr(longspan, f"ReformerFor{task}")(config).save_pretrained(tmp_path / task)
        tokenizer.save_pretrained(tmp_path / task)
    return tmp_path


def test_long_question_answering(folder):
    pipeline: Any = transformers.pipeline
    answer = pipeline("long-question-answering", model=str(folder / "QuestionAnswering"))
    found = answer(question="Which law governs?", context=TEXT)
    assert TEXT[found["start"] : found["end"]] == found["answer"]


def test_long_text_classification(folder):
    pipeline: Any = transformers.pipeline
    classify = pipeline("long-text-classification", model=str(folder / "SequenceClassification"))
    scores = classify(TEXT, top_k=3)
    assert sum(label["score"] for label in scores) == pytest.approx(1, abs=1e-5)
