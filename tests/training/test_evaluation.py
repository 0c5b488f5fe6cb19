"""Answers over documents read whole, cut or slid over, and the answers that need no model."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longspan.data.reading import EncodedQuestion
from longspan.training import baselines
from longspan.training.evaluation import answer_questions, cut, judge, slide, whole


def question(context, answers, name="q", text="Which law governs?"):
    offsets, place = [], 0
    for word in context.split():
        start = context.index(word, place)
        offsets.append((start, start + len(word)))
        place = start + len(word)
    first = next(n for n, (start, _) in enumerate(offsets) if start == context.index(answers[0]))
    return EncodedQuestion(
        name=name,
        family="f",
        question=text,
        context=context,
        accepted=answers,
        prefix=[1, 2, 3],
        prefix_types=[0, 0, 0],
        suffix=[3],
        document=np.arange(100, 100 + len(offsets)),
        offsets=np.array(offsets),
        first=first,
        last=first + len(answers[0].split()) - 1,
    )


class Finder(torch.nn.Module):
    """Knows the token ids of the answer; prefers the question where it may, and remembers what it read."""

    device = torch.device("cpu")

    def __init__(self, first, last):
        super().__init__()
        self.first, self.last, self.read = first, last, []

    def forward(self, input_ids, position_ids, global_attention_mask, token_type_ids):
        assert (position_ids[0, 3:] - input_ids[0, 3:])[:-1].eq(3 - 100).all()  # windows at their true places
        self.read.append(input_ids.shape[1])
        start, end = (input_ids == self.first).float(), (input_ids == self.last).float()
        start[0, 1] = end[0, 1] = 9.0  # the question is no answer
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.fixture
def late():
    words = [f"word{n}" for n in range(300)]
    words[250:252] = ["New", "York"]
    return question(" ".join(words), ["New York", "NY"])


@pytest.mark.parametrize(
    ("windows", "right", "read"),
    [(whole(1000), 1.0, [304]), (cut(104), 0.0, [104]), (slide(104, 20), 1.0, [104] * 4), (whole(204), 1.0, [204] * 2)],
    ids=["whole", "cut", "slide", "longer than the model"],
)
def test_ways_to_read(late, windows, right, read):
    model = Finder(350, 351)
    result = answer_questions(model, [late], windows, max_answer_tokens=5)
    assert (result.exact_match, model.read, result.tokens) == (right, read, sum(read))
    if right:
        answered = result.answered[0]
        assert answered.text == "New York"
        assert late.context[answered.start :].startswith("New York")
    assert not model.training


def test_figures_by_place(late):
    early = question("Norway it is", ["Norway"])
    result = baselines.most_frequent([early], [early, late])
    assert (result.exact_match, result.f1) == (0.5, 0.5)
    assert result.by_position((100, 252)) == [(1, 1.0), (1, 0.0), (0, None)]
    assert result.by_position((100, 251))[2] == (1, 0.0)


def test_answers_without_a_model():
    train = [
        question(f"under the law of {place} .", [place]) for place in ("Utah", "Utah", "Ohio", "Iowa", "Ohio", "Ohio")
    ]
    test = question("not the laws of it but the laws of the State of Iowa here , not Utah", ["State of Iowa", "Iowa"])
    assert baselines.most_frequent(train, [test]).answered[0].text == "Ohio"
    assert baselines.most_frequent_present(train, [test]).answered[0].text == "Utah"
    assert baselines.law_rule([test]).answered[0].text == "State of Iowa"
    assert baselines.law_rule([question("nothing Else", ["Else"])]).answered[0].text == ""


@pytest.mark.parametrize(
    "context",
    [
        'The “Licensed Work” as below. "Work" means all that is here; not more.',
        'This "Work" shall mean all that is here. X',
    ],
)
def test_the_rule_for_definitions(context):
    asked = question(context, ["all that is here"], text='What does "Work" mean in this agreement?')
    assert baselines.definition_rule([asked]).answered[0].exact_match == 1.0


def test_judge_takes_the_best_accepted_answer(late):
    assert judge(late, "ny").exact_match == 1.0
    assert judge(late, "York").f1 == pytest.approx(2 / 3)
