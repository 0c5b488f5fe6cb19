from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from longspan import LongformerConfig, LongformerForQuestionAnswering
from longspan.pipelines import LongQuestionAnsweringPipeline
from longspan.pipelines.answers import log_probabilities, rank_spans
from longspan.pipelines.windows import encode_document, forward_arguments, plan_windows, position_limit

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def test_positions_of_a_plain_table_and_of_one_with_reserved_rows():
    bert = BertForQuestionAnswering(BertConfig(max_position_embeddings=20, **SMALL))
    assert position_limit(bert) == 20
    roberta = RobertaForQuestionAnswering(RobertaConfig(max_position_embeddings=20, pad_token_id=1, **SMALL))
    assert position_limit(roberta) == 18
    roberta(input_ids=torch.full((1, 18), 5))  # the limit is the model's own: one token more fails
    with pytest.raises((IndexError, RuntimeError)):
        roberta(input_ids=torch.full((1, 19), 5))
    assert position_limit(nn.Linear(2, 2)) is None


def test_a_model_of_longspan_names_its_limit():
    config = LongformerConfig(max_position_embeddings=50, pad_token_id=1, attention_window=4, **SMALL)
    assert position_limit(LongformerForQuestionAnswering(config)) == config.max_tokens == 48


def test_the_smaller_of_two_limits_holds(tokenizer):
    model = BertForQuestionAnswering(BertConfig(max_position_embeddings=600, **SMALL))
    ask = LongQuestionAnsweringPipeline(model=model, tokenizer=tokenizer, device="cpu")
    assert ask._window_size(None) == 512 == tokenizer.model_max_length
    assert ask._window_size(600) == 600  # what the tokenizer says is advice, the position table is not


def test_windows_hold_question_separators_and_all_of_the_document(bert, tokenizer, document):
    text = document(90)
    encoded = encode_document(tokenizer, bert, text, "which law ?")
    whole = tokenizer("which law ?", text)
    assert encoded.fields["input_ids"] == whole["input_ids"]
    seen = set()
    for first, last in plan_windows(encoded, 30, 5, 0):
        window = encoded.window(first, last)
        ids = window["input_ids"]
        assert len(ids) == 30 == len(window["token_type_ids"]) == len(window["attention_mask"])
        assert ids[:5] == whole["input_ids"][:5] and ids[-1] == tokenizer.sep_token_id
        assert window["token_type_ids"] == [0] * 5 + [1] * 25
        assert ids[5:-1] == whole["input_ids"][5:-1][first:last]
        seen |= set(range(first, last))
    assert seen == set(range(len(encoded)))


def test_the_usual_overlap_gives_way_to_small_windows(bert, tokenizer, document):
    encoded = encode_document(tokenizer, bert, document(90), "which law ?")
    windows = plan_windows(encoded, 26, None, 128)  # room for 20 tokens of the document
    assert windows[:2] == [(0, 20), (10, 30)]
    assert plan_windows(encoded, None, None, 128) == [(0, len(encoded))]


def test_only_what_the_model_takes_is_made(tokenizer):
    sizes: dict[str, Any] = {
        "vocab_size": 40,
        "dim": 8,
        "n_layers": 1,
        "n_heads": 1,
        "hidden_dim": 8,
        "max_position_embeddings": 32,
    }
    model = DistilBertForQuestionAnswering(DistilBertConfig(**sizes))
    assert "token_type_ids" not in forward_arguments(model)
    encoded = encode_document(tokenizer, model, "the law", "which law ?")
    assert set(encoded.fields) == {"input_ids", "attention_mask"}
    answer = LongQuestionAnsweringPipeline(model=model, tokenizer=tokenizer, device="cpu")(
        "which law ?", "the law " * 40
    )
    assert answer["answer"]


def test_shared_tokens_count_once_in_the_normaliser():
    one, two = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 4.0])  # tokens 0-2 and 2-3: token 2 is shared
    scores, null = log_probabilities([one, two], [(0, 3), (2, 4)], torch.tensor(0.25))
    total = torch.tensor([1.0, 2.0, 3.0, 4.0, 0.25], dtype=torch.float64).logsumexp(0)
    torch.testing.assert_close(scores[0], one.double() - total)
    torch.testing.assert_close(scores[1], two.double() - total)
    torch.testing.assert_close(null, 0.25 - total)
    alone, none = log_probabilities([one], [(0, 3)])
    assert none is None
    torch.testing.assert_close(alone[0].float(), one.log_softmax(0))


def test_spans_are_ranked_greedily_over_all_windows():
    windows, longest = [(0, 9), (5, 14), (10, 19)], 4
    for seed in range(20):
        torch.manual_seed(seed)
        starts, ends = ([torch.randn(last - first) for first, last in windows] for _ in range(2))
        spans = []
        for (first, last), start, end in zip(windows, starts, ends, strict=True):
            for i in range(last - first):
                spans += [
                    (float(start[i] + end[j]), first + i, first + j) for j in range(i, min(i + longest, last - first))
                ]
        wanted = []
        for span in sorted(spans, reverse=True):
            if all(span[2] < first or last < span[1] for _, first, last in wanted):
                wanted.append(span)
        found = rank_spans(starts, ends, windows, max_answer_tokens=longest, top_k=100)
        assert [(span.first, span.last) for span in found] == [span[1:] for span in wanted]
        assert [span.score for span in found] == pytest.approx([span[0] for span in wanted], abs=1e-5)
