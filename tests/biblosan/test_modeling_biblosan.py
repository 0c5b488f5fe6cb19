"""What users meet: padding that changes nothing, block lengths, clear errors, precision, saving, training."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import longspan

AUTO = {
    "Model": AutoModel,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForMultipleChoice": AutoModelForMultipleChoice,
}
HEADS = [*AUTO, "ForSentencePairClassification", "ForSentencePairRegression"]
KINDS = {
    "reference": {},
    "paper": {"variant": "paper"},
    "full": {"attention": "full", "block_length": None},
    "stacked": {"num_hidden_layers": 3},
    "relu": {"hidden_act": "relu", "score_scale": 2.0},
}
FILL = {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0}


def result(outputs):
    for name in ("logits", "start_logits", "last_hidden_state"):
        if name in outputs:
            return outputs[name]
    raise AssertionError(outputs.keys())


def choices(head, inputs):
    return {name: tensor[None] for name, tensor in inputs.items()} if head == "ForMultipleChoice" else inputs


def pad(inputs, left, right, id_at_padding=0):
    fill = FILL | {"input_ids": id_at_padding}
    return {name: torch.nn.functional.pad(x, (left, right), value=fill[name]) for name, x in inputs.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", HEADS)
def test_padding_changes_nothing(head, kind, make_model):
    torch.manual_seed(0)
    model = make_model(head, **KINDS[kind])
    ids = torch.randint(3, 100, (2, 14))
    types = torch.zeros_like(ids)
    types[:, 5:] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
    with torch.no_grad():
        expected = result(model(**choices(head, inputs)))
        for left, right in ((0, 9), (9, 0), (3, 5)):
            for id_at_padding in (0, 77):
                actual = result(model(**choices(head, pad(inputs, left, right, id_at_padding))))
                if actual.shape[1:2] == (14 + left + right,):
                    actual = actual[:, left : left + 14]
                torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_alone_and_in_company(kind, make_model, batch):
    model = make_model(**KINDS[kind])
    with torch.no_grad():
        together = model(**batch)
        for row, mask in enumerate(batch["attention_mask"].bool()):
            alone = model(batch["input_ids"][row, mask][None])
            torch.testing.assert_close(together.last_hidden_state[row, mask], alone.last_hidden_state[0])
            torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0])
            assert not together.last_hidden_state[row, ~mask].any()


def test_tokens_around_a_hole_stand_side_by_side(make_model, batch):
    model = make_model()
    ids, mask = batch["input_ids"][:1], torch.ones(1, 19, dtype=torch.long)
    mask[0, 5:9] = 0
    with torch.no_grad():
        holed = model(ids, attention_mask=mask)
        whole = model(ids[mask.bool()][None])
    torch.testing.assert_close(holed.last_hidden_state[mask.bool()], whole.last_hidden_state[0])
    torch.testing.assert_close(holed.pooler_output, whole.pooler_output)


def test_the_parity_switch_makes_padding_count(make_model, batch):
    model = make_model(mask_padding_blocks=False)
    text = {name: batch[name][:1] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        plain, padded = (model(**inputs).pooler_output for inputs in (text, pad(text, 0, 9)))
        left = model(**pad(text, 9, 0)).pooler_output
    assert (plain - padded).abs().max() > 1e-4
    torch.testing.assert_close(left, padded)  # yet its side does not


@pytest.mark.parametrize("kind", ["reference", "paper", "full"])
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_short_texts(kind, length, make_model):
    model = make_model(**KINDS[kind])
    ids = torch.randint(3, 100, (2, length))
    outputs = model(ids)
    assert outputs.last_hidden_state.shape == (2, length, 20) and outputs.pooler_output.shape == (2, 20)
    assert outputs.last_hidden_state.isfinite().all() and outputs.pooler_output.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_padding_alone(kind, make_model, batch):
    model = make_model(**KINDS[kind]).train()
    batch["attention_mask"][1] = 0
    outputs = model(**batch)
    assert not outputs.last_hidden_state[1].any() and not outputs.pooler_output[1].any()
    (outputs.last_hidden_state.sum() + outputs.pooler_output.sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def differences(model, ids, place):
    """How far each token's forward and backward half moves when the token at ``place`` is another: ``[T]`` each."""
    changed = ids.clone()
    changed[:, place] = 99 - ids[:, place]
    with torch.no_grad():
        moved = (model(ids).last_hidden_state - model(changed).last_hidden_state).abs().sum(0)
    return moved[:, :10].sum(1), moved[:, 10:].sum(1)


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_lengths_of_blocks(variant, make_model):
    """Blocks longer than the text all say the same. A block of one token has nothing to tell, to itself or others."""
    ids = torch.randint(50, 100, (2, 9))
    with torch.no_grad():
        nine, ninety = (make_model(variant=variant, block_length=r)(ids).last_hidden_state for r in (9, 90))
    torch.testing.assert_close(nine, ninety)
    for moved in differences(make_model(variant=variant, block_length=1), ids, 4):
        assert moved.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_who_sees_whom(variant, make_model):
    """Forward: later tokens of its block, which spread it to their block's context and on to later blocks."""
    ids = torch.randint(50, 100, (2, 16))
    forward, backward = differences(make_model(variant=variant), ids, 5)  # the second of the second block
    assert forward.nonzero().flatten().tolist() == list(range(4, 16))
    assert backward.nonzero().flatten().tolist() == list(range(8))
    full = make_model(attention="full", block_length=None)
    forward, backward = differences(full, ids, 5)
    assert forward.nonzero().flatten().tolist() == list(range(5, 16))
    assert backward.nonzero().flatten().tolist() == list(range(6))


@pytest.mark.parametrize("kind", ["reference", "paper", "full"])
def test_backward_is_forward_on_the_reversed_text(kind, make_model):
    model = make_model(**KINDS[kind])
    layer = model.encoder.layer[0]
    layer.backward_attention.load_state_dict(layer.forward_attention.state_dict())
    ids = torch.randint(3, 100, (2, 16))  # a multiple of the block length
    with torch.no_grad():
        there, back = model(ids).last_hidden_state, model(ids.flip(1)).last_hidden_state.flip(1)
    torch.testing.assert_close(there[..., 10:], back[..., :10])


@pytest.mark.parametrize("kind", KINDS)
def test_attention_weights_are_those_that_were_used(kind, make_model, batch):
    """Rows sum to 1 where a token sees any other of its block, and give back what attention found."""
    model = make_model(**KINDS[kind])
    found = {}
    for index, layer in enumerate(model.encoder.layer):
        attention = layer.forward_attention
        attention = attention.attention if kind == "full" else attention.within
        attention.register_forward_hook(lambda _, inputs, out, index=index: found.update({index: (inputs[0], out[0])}))
    ids = batch["input_ids"][:, :16]
    with torch.no_grad():
        outputs = model(ids, output_attentions=True)
        torch.testing.assert_close(outputs.last_hidden_state, model(ids).last_hidden_state)
    blocks = 1 if kind == "full" else 4
    for index, weights in enumerate(outputs.attentions):
        assert weights.shape == (3, 20, 16, 16)
        seen = 16 // blocks
        sees_any = torch.arange(16) % seen != 0
        torch.testing.assert_close(weights[:, :10].sum(-1), sees_any.float().expand(3, 10, 16))
        values, out = (x.reshape(3, 16, 10) for x in found[index])
        torch.testing.assert_close(torch.einsum("bdqk,bkd->bqd", weights[:, :10], values), out)
    if kind == "full":
        assert outputs.global_attentions is None
    else:
        assert [weights.shape for weights in outputs.global_attentions] == [(3, 20, 4, 4)] * len(outputs.attentions)


@pytest.mark.parametrize("head", HEADS)
def test_embeddings_in_place_of_ids(head, make_model, batch):
    model = make_model(head)
    inputs = choices(head, batch)
    embedded = dict(inputs)
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids"))
    with torch.no_grad():
        torch.testing.assert_close(result(model(**embedded)), result(model(**inputs)))


@pytest.mark.parametrize("head", AUTO)
def test_saved_and_found_again(head, make_model, batch, tmp_path):
    model = make_model(head, variant="paper", num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    again = AUTO[head].from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.block_length == 4 and again.config.variant == "paper"
    inputs = choices(head, batch)
    with torch.no_grad():
        torch.testing.assert_close(result(again(**inputs)), result(model(**inputs)), atol=0, rtol=0)


def test_new_weights(make_model):
    model = longspan.BiBloSanModel(longspan.BiBloSanConfig(block_length=4, vocab_size=50, embedding_size=12))
    words = model.get_input_embeddings().weight
    assert not words[:2].any() and words[2:].abs().max() <= 0.05 and words[2:].std() > 0.02
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "word" not in name:
            bound = (6 / sum(parameter.shape)) ** 0.5  # Glorot
            assert bound * 0.95 < parameter.abs().max() <= bound, name


def test_fixed_rows_get_no_gradient(make_model):
    model = make_model(num_fixed_embeddings=30)
    ids = torch.arange(20, 40)[None]
    model(ids).pooler_output.sum().backward()
    moved = model.get_input_embeddings().weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == list(range(30, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind, make_model, batch):
    model = make_model("ForSequenceClassification", **KINDS[kind])
    expected = model(**batch).logits
    actual = model.to(torch.bfloat16)(**batch, labels=torch.tensor([0, 1, 1]))
    actual.loss.backward()
    assert actual.logits.dtype == torch.bfloat16
    assert (actual.logits.float() - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        model.float()(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_and_dropout(kind, make_model, batch):
    grads = []
    for checkpointing in (False, True):
        model = make_model("ForTokenClassification", **KINDS[kind] | {"hidden_dropout_prob": 0.3}).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model(**batch, labels=batch["token_type_ids"]).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_whole_model_gradients(make_model):
    model = make_model("ForSentencePairClassification", num_labels=3, variant="paper").double()
    embeds = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1]])

    def logits(x):
        return model(inputs_embeds=x, attention_mask=mask, token_type_ids=types).logits

    assert torch.autograd.gradcheck(logits, (embeds,))


class TestErrors:
    def test_names_and_values(self, make_model):
        config = longspan.BiBloSanConfig
        with pytest.raises(ValueError, match="suggest_block_length"):
            config()
        with pytest.raises(ValueError, match="did you mean 'block_length'"):
            config(block_lenght=4)
        for fields, name in (
            ({"block_length": 0}, "block_length"),
            ({"attention": "full"}, "block_length must be None"),
            ({"attention": "full", "block_length": None, "variant": "paper"}, "variant"),
            ({"variant": "paper", "mask_padding_blocks": False}, "variant"),
            ({"score_scale": 50}, "score_scale"),
            ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob"),
            ({"num_fixed_embeddings": 101}, "num_fixed_embeddings"),
            ({"pad_token_id": 100}, "pad_token_id"),
            ({"hidden_size": 0}, "hidden_size"),
            ({"head_hidden_size": 0}, "head_hidden_size"),
            ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ):
            with pytest.raises(ValueError, match=name):
                config(**{"block_length": 4, "vocab_size": 100} | fields)

    def test_inputs(self, make_model, batch):
        model = make_model()
        with pytest.raises(ValueError, match="vocab_size"):
            model(torch.tensor([[100]]))
        with pytest.raises(ValueError, match="inputs_embeds must be 12 wide"):
            model(inputs_embeds=torch.zeros(1, 3, 13))
        with pytest.raises(ValueError, match="attention_mask must be"):
            model(batch["input_ids"], attention_mask=batch["attention_mask"][:, :5])
        with pytest.raises(ValueError, match="exactly one"):
            model()


def test_statistics_of_a_corpus_give_the_block_length():
    lengths = [10, 12, 8, 10]
    assert (
        longspan.biblosan.suggest_block_length(lengths, batch_size=32) == 4 + 1
    )  # (2 (10 + 1.41 * 2.63))^(1/3) = 3.02
    assert longspan.biblosan.suggest_block_length([108], batch_size=1) == 6 + 1  # an exact cube
    assert [longspan.biblosan.block_length_for(n) for n in (1, 4, 5, 108, 109, 256, 500)] == [2, 2, 3, 6, 7, 8, 10]
    with pytest.raises(ValueError, match="at least one text"):
        longspan.biblosan.suggest_block_length([], batch_size=32)
    with pytest.raises(ValueError, match="batch_size"):
        longspan.biblosan.suggest_block_length([3], batch_size=0)


@pytest.mark.parametrize("variant", ["reference", "paper"])
def test_shared_attention_is_apart_with_equal_weights(variant, make_model, batch):
    shared, apart = (make_model(variant=variant, share_attention=value) for value in (True, False))
    state = shared.state_dict()
    wanted = {name: value for name, value in apart.state_dict().items() if ".between.attention." not in name}
    assert state.keys() == wanted.keys()
    names = apart.state_dict().keys()
    apart.load_state_dict({name: state[name.replace(".between.attention.", ".within.")] for name in names})
    outputs = [model(**batch) for model in (shared, apart)]
    torch.testing.assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state)
    outputs[0].pooler_output.sum().backward()
    outputs[1].pooler_output.sum().backward()
    together, within, between = (
        model.get_parameter(f"encoder.layer.0.forward_attention.{name}.projection.weight").grad
        for model, name in ((shared, "within"), (apart, "within"), (apart, "between.attention"))
    )
    torch.testing.assert_close(together, within + between)
