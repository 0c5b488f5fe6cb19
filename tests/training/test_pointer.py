"""The pointer head: formula, masks, loss; it can learn which question is which."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longspan import LongformerConfig
from longspan.data.reading import EncodedQuestion
from longspan.data.several import QuestionGroup
from longspan.training.evaluation import whole
from longspan.training.pointer import LongformerForSeveralQuestions, answer_groups


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        attention_window=8,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return LongformerForSeveralQuestions(config)


def question(name, token, first):
    document = np.array([40 + place for place in range(12)])
    return EncodedQuestion(
        name=name,
        family="f",
        question=name,
        context="abcdefghijkl",
        accepted=["abcdefghijkl"[first : first + 2]],
        prefix=[1, token, 2],
        prefix_types=[0, 0, 0],
        suffix=[2],
        document=document,
        offsets=np.array([(place, place + 1) for place in range(12)]),
        first=first,
        last=first + 1,
        first_position=1,
    )


def batch(group):
    return {name: torch.tensor([row]) for name, row in group.reading(0, group.length).items()}


def test_starts_as_a_cosine_with_the_question(model):
    assert torch.equal(model.start_head.question.weight, torch.eye(16))
    assert model.end_head.temperature.item() == 1.0
    inputs = batch(QuestionGroup((question("a", 5, 3), question("b", 6, 8))))
    output = model.eval()(**inputs)
    states = model.longformer(**{name: row for name, row in inputs.items() if name != "question_index"})
    states = states.last_hidden_state[0]
    mean = states[inputs["question_index"][0] == 1].mean(0)
    head = model.end_head
    wanted = 10 * F.cosine_similarity(mean[None], states, dim=-1) + states @ head.edge.weight[0] + head.edge.bias
    document = inputs["token_type_ids"][0] == 1
    torch.testing.assert_close(output.end_logits[0, 1, document], wanted[document])
    assert torch.isneginf(output.start_logits[0, :, ~document]).all()


def test_loss_ignores_missing_questions_and_padding_is_never_an_answer(model):
    inputs = batch(QuestionGroup((question("a", 5, 3), question("b", 6, 8))))
    start, end = torch.tensor([[9, 14]]), torch.tensor([[10, 15]])
    output = model(**inputs, start_positions=start, end_positions=end)
    one = model(**inputs, start_positions=torch.tensor([[9, -100]]), end_positions=torch.tensor([[10, -100]]))
    other = model(**inputs, start_positions=torch.tensor([[-100, 14]]), end_positions=torch.tensor([[-100, 15]]))
    torch.testing.assert_close(output.loss, (one.loss + other.loss) / 2)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, -2:] = 0
    assert torch.isneginf(model(**inputs, attention_mask=mask).start_logits[0, :, -2:]).all()


def test_learns_which_question_is_which_and_survives_saving(model, tmp_path):
    one, other = question("a", 5, 3), question("b", 6, 8)
    groups = [QuestionGroup(questions) for questions in ((one, other), (other, one), (other,))]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        losses = []
        for group in groups:
            starts = torch.tensor([[q.first + group.before for q in group.questions]])
            losses.append(model(**batch(group), start_positions=starts, end_positions=starts + 1).loss)
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    for asked in (model, LongformerForSeveralQuestions.from_pretrained(tmp_path)):
        result = answer_groups(asked, groups, whole(60), max_answer_tokens=4)
        assert [one.text for one in result.answered] == ["de", "ij", "ij", "de", "ij"]
        assert result.exact_match == 1.0


def test_every_parameter_of_the_head_learns(model):
    group = QuestionGroup((question("a", 5, 3),))
    model(**batch(group), start_positions=torch.tensor([[6]]), end_positions=torch.tensor([[7]])).loss.backward()
    for name, parameter in model.named_parameters():
        if "head" in name:
            assert parameter.grad is not None, name
