"""Heads that read two texts, or a document of sentences: which text counts as which, losses, and what goes wrong."""

import math

import pytest
import torch

import longspan
from longspan.biblosan.heads_biblosan import expected_scores, relatedness_loss

PAIR_HEADS = ["ForSentencePairClassification", "ForSentencePairRegression"]


def apart(batch):
    """The first and the second text of each row as batches of their own, padded."""
    for kind in (0, 1):
        mask = batch["attention_mask"] * (batch["token_type_ids"] == kind)
        yield batch["input_ids"], mask


@pytest.mark.parametrize("head", PAIR_HEADS)
def test_one_row_or_two(head, make_model, batch):
    model = make_model(head, num_labels=5)
    (first, first_mask), (second, second_mask) = apart(batch)
    with torch.no_grad():
        joined = model(**batch)
        two = model(input_ids=first, attention_mask=first_mask, pair_input_ids=second, pair_attention_mask=second_mask)
    torch.testing.assert_close(joined.logits, two.logits)
    assert joined.logits.shape == (3, 5)


@pytest.mark.parametrize("head", PAIR_HEADS)
def test_the_second_text_is_asked_for(head, make_model, batch):
    model = make_model(head)
    del batch["token_type_ids"]
    with pytest.raises(ValueError, match="pair_input_ids"):
        model(**batch)
    with pytest.raises(ValueError, match="as many second texts"):
        model(**batch, pair_input_ids=batch["input_ids"][:2])
    with pytest.raises(ValueError, match="token_type_ids must lie"):
        model(**batch, token_type_ids=torch.full((3, 19), 2))


def test_traces_stand_where_the_tokens_stand(make_model, batch):
    model = make_model("ForSentencePairClassification")
    (first, first_mask), _ = apart(batch)
    with torch.no_grad():
        joined = model(**batch, output_hidden_states=True, output_attentions=True)
        alone = model.biblosan(first, attention_mask=first_mask, output_hidden_states=True, output_attentions=True)
    own = first_mask.bool()
    torch.testing.assert_close(joined.hidden_states[1][own], alone.hidden_states[1][own])
    pairs = own[:, :, None] & own[:, None, :]
    torch.testing.assert_close(
        joined.attentions[0].permute(0, 2, 3, 1)[pairs], alone.attentions[0].permute(0, 2, 3, 1)[pairs]
    )
    other = own[:, :, None] & ~own[:, None, :]
    assert not joined.attentions[0].permute(0, 2, 3, 1)[other].any()


class TestRelatedness:
    def test_a_score_lies_between_its_neighbours(self):
        logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.2, 0.2]]))
        assert math.isclose(expected_scores(logits).item(), 0.1 + 0.4 + 0.9 + 0.8 + 1.0, rel_tol=1e-6)
        # 3.6 is 0.4 of a 3 and 0.6 of a 4
        expected = 0.4 * math.log(0.4 / 0.3) + 0.6 * math.log(0.6 / 0.2)
        assert math.isclose(relatedness_loss(logits, torch.tensor([3.6])).item(), expected, rel_tol=1e-5)

    @pytest.mark.parametrize("score", [1.0, 2.0, 4.5, 5.0])
    def test_the_loss_is_least_at_the_score(self, score):
        logits = torch.zeros(1, 5, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.3)
        for _ in range(150):
            optimizer.zero_grad()
            loss = relatedness_loss(logits, torch.tensor([score]))
            loss.backward()
            optimizer.step()
        assert loss < 1e-2 and abs(expected_scores(logits).item() - score) < 0.05

    def test_scores_beyond_the_scale(self, make_model, batch):
        model = make_model("ForSentencePairRegression", num_labels=5)
        assert model(**batch, labels=torch.tensor([1.0, 3.3, 5.0])).loss.isfinite()
        with pytest.raises(ValueError, match="1 to num_labels = 5"):
            model(**batch, labels=torch.tensor([0.0, 3.3, 5.0]))
        with pytest.raises(ValueError, match="at least 2"):
            make_model("ForSentencePairRegression", num_labels=1)


class TestSentenceSelection:
    @pytest.fixture
    def document(self):
        """Two documents of 5 sentences of 7 tokens; the second has 3, of which one stands behind padding."""
        torch.manual_seed(0)
        ids = torch.randint(3, 100, (2, 5, 7))
        mask = torch.ones_like(ids)
        mask[0, 1, 4:] = 0
        mask[0, 2, :3] = 0
        mask[1, 1] = mask[1, 4] = 0
        question = torch.randint(3, 100, (2, 6))
        question_mask = torch.ones_like(question)
        question_mask[1, :2] = 0
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "question_input_ids": question,
            "question_attention_mask": question_mask,
        }

    @pytest.mark.parametrize("kind", [{}, {"variant": "paper"}, {"attention": "full", "block_length": None}], ids=str)
    def test_padding_changes_nothing(self, kind, make_model, document):
        model = make_model("ForSentenceSelection", sentence_block_length=2, **kind)
        with torch.no_grad():
            logits = model(**document).logits
            kept = {name: x[1:, [0, 2, 3]] if x.dim() == 3 else x[1:, 2:] for name, x in document.items()}
            alone = model(**kept).logits
            padded = {
                name: torch.nn.functional.pad(x, (3, 1, 2, 4) if x.dim() == 3 else (1, 2))
                for name, x in document.items()
            }
            wide = model(**padded).logits[:, 2:7]
        torch.testing.assert_close(logits[1, [0, 2, 3]], alone[0])
        torch.testing.assert_close(logits, wide)
        assert (logits[1, [1, 4]] == torch.finfo(torch.float32).min).all()

    def test_learns(self, make_model, document):
        torch.manual_seed(0)
        model = longspan.BiBloSanForSentenceSelection(make_model().config).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        labels = torch.tensor([4, 2])
        for _ in range(30):
            optimizer.zero_grad()
            loss = model(**document, labels=labels).loss
            loss.backward()
            optimizer.step()
        assert loss < 0.05 and model(**document).logits.argmax(1).tolist() == [4, 2]
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_errors(self, make_model, document):
        model = make_model("ForSentenceSelection")
        with pytest.raises(ValueError, match=r"batch, sentences, tokens"):
            model(**document | {"input_ids": document["input_ids"][0]})
        with pytest.raises(ValueError, match="attention_mask must be"):
            model(**document | {"attention_mask": document["attention_mask"][:, :2]})
        with pytest.raises(ValueError, match="question_attention_mask"):
            model(**document | {"question_attention_mask": document["question_attention_mask"][:, :2]})
        with pytest.raises(ValueError, match="one question for each document"):
            model(**document | {"question_input_ids": torch.ones(3, 6, dtype=torch.long),
                                "question_attention_mask": None})  # fmt: skip


class TestQuestions:
    def test_the_question_decides(self, make_model, batch):
        """The document's scores depend on the question, but on its vector alone: the two see nothing of each other."""
        model = make_model("ForQuestionAnswering")
        other = dict(batch, input_ids=batch["input_ids"].clone())
        other["input_ids"][0, 2] = 99 - batch["input_ids"][0, 2]
        with torch.no_grad():
            before, after = (model(**inputs, output_hidden_states=True) for inputs in (batch, other))
        assert (before.start_logits[0, 6:] - after.start_logits[0, 6:]).abs().min() > 1e-6
        torch.testing.assert_close(before.hidden_states[-1][0, 6:], after.hidden_states[-1][0, 6:], atol=0, rtol=0)

    def test_separator_in_place_of_types(self, make_model, batch):
        model = make_model("ForQuestionAnswering", sep_token_id=2)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        ids[:2, 5] = ids[2, 14] = 2  # the last token of what is type 0
        with torch.no_grad():
            typed = model(**batch).start_logits
            separated = model(input_ids=ids, attention_mask=mask).start_logits
            torch.testing.assert_close(separated, typed)
            single = model(input_ids=batch["input_ids"][:, 6:10])  # one text: question and document
        assert single.start_logits.isfinite().all() and single.start_logits.std() > 0

    def test_padding_is_no_answer(self, make_model, batch):
        """Neither the scores nor the loss change with padding."""
        model = make_model("ForQuestionAnswering")
        positions = {"start_positions": torch.tensor([7]), "end_positions": torch.tensor([9])}
        row = {name: x[:1] for name, x in batch.items()}
        with torch.no_grad():
            plain = model(**row, **positions).loss
            padded = {name: torch.nn.functional.pad(x, (0, 30)) for name, x in row.items()}
            torch.testing.assert_close(model(**padded, **positions).loss, plain)
            beyond = {"start_positions": torch.tensor([19]), "end_positions": torch.tensor([19])}
            assert model(**row, **beyond).loss.isnan() or model(**row, **beyond).loss == 0


def test_choices_are_compared_with_what_they_complete(make_model, batch):
    """Each choice by itself; without types the text alone."""
    model = make_model("ForMultipleChoice")
    choices = {name: x[None] for name, x in batch.items()}
    with torch.no_grad():
        logits = model(**choices, labels=torch.tensor([2])).logits
        for choice in range(3):
            alone = model(**{name: x[:, choice : choice + 1] for name, x in choices.items()}).logits
            torch.testing.assert_close(alone[:, 0], logits[:, choice])
        untyped = {name: x for name, x in choices.items() if name != "token_type_ids"}
        zeros = torch.zeros_like(choices["token_type_ids"])
        torch.testing.assert_close(model(**untyped).logits, model(**untyped, token_type_ids=zeros).logits)
    assert logits.shape == (1, 3)


def test_parameters_of_the_snli_model():
    """ "480D, 2.8M" of the paper's table: without word vectors."""
    config = longspan.BiBloSanConfig.from_json_file("configs/biblosan/snli-480d.json")
    with torch.device("meta"):
        model = longspan.BiBloSanForSentencePairClassification(config)
    encoder = sum(p.numel() for name, p in model.named_parameters() if "biblosan" in name and "word" not in name)
    every = sum(p.numel() for name, p in model.named_parameters() if "word" not in name)
    assert (encoder, every) == (2_223_360, 2_800_803)


@pytest.mark.parametrize(("size", "encoder", "every"), [(300, 3_427_200, 4_329_003), (150, 903_600, 1_129_503)])
def test_parameters_of_other_sizes(size, encoder, every):
    config = longspan.BiBloSanConfig(block_length=5, hidden_size=size, num_labels=3)
    with torch.device("meta"):
        model = longspan.BiBloSanForSentencePairClassification(config)
    counts = {name: p.numel() for name, p in model.named_parameters() if "word" not in name}
    assert sum(count for name, count in counts.items() if "biblosan" in name) == encoder
    assert sum(counts.values()) == every
