import pytest
import torch

from longspan.data.stories import ANSWERS, StoryCollator, StoryDataset, encode_story, make_story
from longspan.training.halting_picture import draw_halting, ponder_story
from longspan.training.story_reader import StoryReader, read, reader_config
from longspan.universal_transformer import UniversalTransformerConfig


def make_reader(**fields):
    torch.manual_seed(0)
    small = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_recurrent_steps=5)
    act = dict(recurrence="act", recurrence_options={"halting_bias": -1.0, "force_halt_at_max": True, "mix": "sum"})
    return StoryReader(UniversalTransformerConfig(**small | act | reader_config() | fields)).eval()


def batch_of(*stories):
    return StoryCollator()([encode_story(story) for story in stories])


@torch.no_grad()
def test_a_story_is_read_alike_alone_and_beside_a_longer_one():
    model = make_reader()
    short, long = make_story(4, 0), next(s for s in (make_story(3, i) for i in range(50)) if len(s.sentences) > 12)
    alone, beside = batch_of(short), batch_of(long, short)
    ours, theirs = (model(batch["input_ids"], batch["attention_mask"]) for batch in (alone, beside))
    torch.testing.assert_close(theirs.logits[1], ours.logits[0], atol=1e-5, rtol=0)
    assert ours.logits.shape == (1, len(ANSWERS))
    assert torch.equal(theirs.n_updates[1, :3], ours.n_updates[0]) and (theirs.n_updates[1, 3:] == 0).all()


@torch.no_grad()
def test_the_order_of_sentences_counts_and_the_loss_ponders():
    model = make_reader()
    batch = batch_of(make_story(1, 0), make_story(2, 1))
    swapped = batch["input_ids"].clone()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    mask = batch["attention_mask"]
    assert not torch.allclose(model(swapped, mask).logits, model(batch["input_ids"], mask).logits)
    outputs = model(**batch)
    task = torch.nn.functional.cross_entropy(outputs.logits, batch["labels"])
    tokens = mask.bool()
    cost = (outputs.n_updates + outputs.remainders)[tokens].mean()
    torch.testing.assert_close(outputs.loss, task + 0.01 * cost)


def test_reads_all_stories_by_task():
    model, stories = make_reader().train(), StoryDataset((1, 3, 18), 31, seed=2)
    found = read(model, stories, batch_size=7)
    assert model.training and list(found) == [1, 3, 18]
    assert [reading.stories for reading in found.values()] == [11, 10, 10]
    for task, reading in found.items():
        own = [stories.story(i) for i in range(31) if stories.story(i).task == task]
        assert reading.supporting == [story.supporting for story in own]
        batch = batch_of(*own)
        with torch.no_grad():
            outputs = model.eval()(batch["input_ids"], batch["attention_mask"])
        wrong = int((outputs.logits.argmax(-1) != batch["labels"]).sum())
        assert reading.wrong == wrong and reading.error == 100 * wrong / len(own)
        assert reading.steps == [ponder_story(model, story)[0] for story in own]
        assert [len(steps) for steps in reading.steps] == [len(story.sentences) + 1 for story in own]
        assert {count for steps in reading.steps for count in steps} <= set(range(1, 6))
        answers = [ponder_story(model, story)[1] for story in own]
        assert sum(said != story.answer for said, story in zip(answers, own, strict=True)) == wrong


def test_without_adaptive_computation_there_are_no_steps():
    model = make_reader(recurrence="basic", recurrence_options={})
    assert read(model, StoryDataset((1,), 3, seed=0))[1].steps == []
    with pytest.raises(ValueError, match="recurrence must be 'act'"):
        ponder_story(model, make_story(1, 0))


@pytest.mark.parametrize("tasks", [(1,), (1, 2, 3), (4, 4, 16, 20)])
def test_draws_a_picture(tmp_path, tasks):
    path = tmp_path / "halting.png"
    series = {"all": {1: (2.0, 0.5), 3: (3.0, 1.0)}, "the paper": {1: (2.3, 0.8), 2: (3.1, 1.1)}}
    draw_halting(path, make_reader(), [make_story(task, 1) for task in tasks], series)
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000
    assert list(tmp_path.iterdir()) == [path]
