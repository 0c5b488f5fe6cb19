"""The model: padding and company change nothing, steps beyond training, long texts, and what users run into."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import longspan
from longspan.layers.halting import ponder_summary
from longspan.layers.step_tokens import StepTokens
from longspan.universal_transformer.stack_universal_transformer import StackCall
from tests.universal_transformer.small_models import FORMS, RECURRENCES, SMALL, act


@pytest.mark.parametrize("fields", [{}, {"transition": "sepconv"}, {"window": 2}], ids=["fc", "sepconv", "window"])
@pytest.mark.parametrize("form", ["encoder", "decoder"])
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_padding_and_company_change_nothing(recurrence, form, fields, make_model, ids, mask):
    model = make_model(form=form, **RECURRENCES[recurrence] | fields | {"num_prelude_layers": 1, "num_coda_layers": 1})
    with torch.no_grad():
        together = model(ids, attention_mask=mask, output_halting=True)
        for row, tokens in enumerate(mask != 0):
            alone = model(ids[row][tokens][None])
            torch.testing.assert_close(together[0][row][tokens], alone[0][0], atol=1e-5, rtol=0)
            if together.n_updates is not None and together.n_updates.dim() == 2:
                assert torch.equal(together.n_updates[row][tokens], alone.n_updates[0])
    if together.n_updates is not None and together.n_updates.dim() == 2:
        assert (together.n_updates[mask == 0] == 0).all()
        assert len(set(together.n_updates[mask != 0].tolist())) > 1
        assert len(together.halting_probabilities) == together.n_updates.max()


@pytest.mark.parametrize("recurrence", [name for name in RECURRENCES if name != "act-global"])
def test_a_decoder_sees_nothing_later(recurrence, make_model, ids):
    """Although the loop may go on for later tokens."""
    for fields in ({}, {"transition": "sepconv"}, {"window": 2}):
        model = make_model(form="decoder", **RECURRENCES[recurrence] | fields)
        other = ids.clone()
        other[:, 6:] = torch.randint(2, 50, other[:, 6:].shape)
        with torch.no_grad():
            torch.testing.assert_close(model(ids)[0][:, :6], model(other)[0][:, :6], atol=1e-6, rtol=0)
            assert not torch.allclose(model(ids)[0][:, 6:], model(other)[0][:, 6:])


def test_one_step_is_an_ordinary_layer(make_model, ids):
    """The block applied once computes what the same weights compute as a layer before the recurrence."""
    model = make_model(num_recurrent_steps=1, step_signal="none", num_prelude_layers=1)
    with torch.no_grad():
        hidden = model.embeddings(ids, None)
        places = torch.arange(ids.shape[1])[None]
        tokens, call = StepTokens(None, places), StackCall(None, places, 1)
        stack = model.encoder
        stack.prelude[0].load_state_dict(stack.block[0].state_dict())
        ordinary = stack._plain("prelude", hidden, tokens, stack.coordinates.places(places), call)
        stack.prelude = nn.ModuleList()
        features, recurred = stack(hidden, StackCall(None, places, 1))
        torch.testing.assert_close(recurred, ordinary)
        torch.testing.assert_close(features, stack.final_norm(ordinary))


def test_post_norm_is_the_papers(make_model, ids):
    """Z = H + P; A = LayerNorm(Z + attention(Z)); H = LayerNorm(A + transition(A)); no norm behind."""
    model = make_model(norm_position="post", position_signal="paper", step_signal="sinusoid").double()
    stack, layer = model.encoder, model.encoder.block[0]
    state, places = model.embeddings(ids, None), torch.arange(11)[None]
    tokens = StepTokens(None, places)
    signals = stack.coordinates.places(places)
    for step in range(4):
        at = tokens.begin(step)
        z = stack.coordinates(state, at, signals, 4)
        a = layer.self_attn_norm(z + layer.self_attn(z, at, "name"))
        state = layer.ffn_norm(a + layer.ffn(a, at, "name"))
    assert stack.final_norm is None
    torch.testing.assert_close(model(ids).last_hidden_state, state)


@pytest.mark.parametrize("force", [True, False])
def test_ponder_cost_reaches_tokens_that_never_halt(force, make_model, ids):
    """Without a forced end such tokens have no remainder, so the cost could not call them back."""
    options = act(halting_bias=-9.0, force_halt_at_max=force)
    model = make_model(**options)
    nn.init.zeros_(model.encoder.recurrence.halting.weight)
    outputs = model(ids)
    assert (outputs.n_updates == 4).all()
    outputs.ponder_loss.backward() if outputs.ponder_loss.requires_grad else None
    gradient = model.encoder.recurrence.halting.bias.grad
    assert (gradient is not None and gradient.item() < 0) if force else (gradient is None or gradient.item() == 0)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_every_parameter_learns(recurrence, make_model, ids, mask):
    fields = RECURRENCES[recurrence] | {"num_inner_layers": 1 if "step_signal" in RECURRENCES[recurrence] else 2}
    model = make_model("ForConditionalGeneration", "both", **fields, num_coda_layers=1, num_target_spaces=3).train()
    model(ids, attention_mask=mask, labels=ids, target_space_id=torch.tensor([0, 2, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or "depth_embedding" in name, name


@pytest.mark.parametrize("recurrence", ["basic", "act", "act-packed", "gru"])
def test_checkpointing_changes_no_gradient(recurrence, make_model, ids, mask):
    """With dropout; whatever kind of checkpoint is asked for."""
    fields = RECURRENCES[recurrence] | {"hidden_dropout_prob": 0.2, "activation_dropout_prob": 0.2}
    model = make_model("ForConditionalGeneration", "both", **fields).train()
    gradients = []
    for kind in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        if kind is not None:
            model.activation_checkpointing_enable(kind)
        model.zero_grad()
        torch.manual_seed(0)
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)


def test_more_steps_than_in_training(make_model, ids):
    fixed = make_model("ForMaskedLM", step_signal="sinusoid")
    assert len(fixed(ids, max_recurrent_steps=9, output_hidden_states=True).hidden_states) == 10
    torch.testing.assert_close(fixed(ids, max_recurrent_steps=4).logits, fixed(ids).logits)
    assert not torch.allclose(fixed(ids, max_recurrent_steps=2).logits, fixed(ids).logits)
    learned = make_model("ForMaskedLM")
    assert len(learned(ids, max_recurrent_steps=2, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(ValueError, match="max_recurrent_steps = 5, but this model has learned signals for 4 steps"):
        learned(ids, max_recurrent_steps=5)
    with pytest.raises(ValueError, match="learned signals for 4 steps"):
        make_model("ForMaskedLM", recurrence="dwa", step_signal="none")(ids, max_recurrent_steps=5)
    for wrong in (0, 2.5, True, "3"):
        with pytest.raises(ValueError, match="max_recurrent_steps must be an integer of at least 1"):
            fixed(ids, max_recurrent_steps=wrong)
    halting = make_model(step_signal="sinusoid", **act(halting_bias=-20.0, force_halt_at_max=True))
    nn.init.zeros_(halting.encoder.recurrence.halting.weight)
    assert (halting(ids, max_recurrent_steps=30).n_updates == 30).all()


@pytest.mark.parametrize(("offset", "limit"), [("random", 40), ("random", None), ("random_each_step", None)])
def test_places_move_in_training_only(offset, limit, make_model, ids):
    model = make_model("ForConditionalGeneration", "both", position_offset=offset, max_position_offset=limit)
    assert torch.equal(model(ids, labels=ids).logits, model(ids, labels=ids).logits)
    model.train()
    assert not torch.equal(model(ids, labels=ids).logits, model(ids, labels=ids).logits)


def test_encoder_and_decoder_move_alike_and_texts_apart(make_model, ids, monkeypatch):
    model = make_model("ForConditionalGeneration", "both", position_offset="random", max_position_offset=1000).train()
    seen = []
    for stack in (model.universal_transformer.encoder, model.universal_transformer.decoder):
        stack.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].positions))
    model(ids, labels=ids)
    assert torch.equal(*seen) and seen[0].shape == (3, 11)
    assert torch.equal(seen[0] - seen[0][:, :1], torch.arange(11).expand(3, -1))
    assert len(set(seen[0][:, 0].tolist())) == 3 and seen[0].max() < 1011


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("recurrence", ["basic", "act-packed"])
@pytest.mark.parametrize("name", ["ForTokenClassification", "ForCausalLM"])
def test_a_long_text_with_a_window(name, recurrence, make_model):
    """8,192 tokens in training: nothing of the size of a square of the length exists."""
    form = "decoder" if name == "ForCausalLM" else "encoder"
    model = make_model(name, form, window=16, num_recurrent_steps=2, **RECURRENCES[recurrence]).train()
    ids = torch.randint(2, 50, (1, 8192))
    labels = ids if form == "decoder" else ids % 2
    with _LargestTensor() as largest:
        model(ids, labels=labels).loss.backward()
    assert largest.elements <= 8192 * 64


@pytest.mark.parametrize("form", FORMS)
def test_explicit_attention_and_weights(form, make_model, ids, mask):
    """All implementations agree; weights are those of every layer and step."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if form == "both":
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    for window in (None, 3):
        model = make_model(form=form, window=window, num_prelude_layers=1, num_inner_layers=2)
        assert model.config._attn_implementation == "sdpa"
        outputs = model(**inputs)
        with_weights = model(**inputs, output_attentions=True)
        model.set_attn_implementation("eager")
        for other in (with_weights, model(**inputs)):
            expected, actual = (x.last_hidden_state[mask != 0] for x in (outputs, other))
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        names = ["attentions"] if form != "both" else ["encoder_attentions", "decoder_attentions", "cross_attentions"]
        for name in names:
            weights = with_weights[name]
            assert len(weights) == 1 + 2 * 4 and weights[0].shape == (3, 4, 11, 11)
            sums = torch.stack(weights).sum(-1)[:, 2]
            torch.testing.assert_close(sums, torch.ones_like(sums))


def test_states_are_of_each_layer_and_step(make_model, ids):
    outputs = make_model(num_prelude_layers=2, num_coda_layers=1)(ids, output_hidden_states=True)
    assert len(outputs.hidden_states) == 1 + 2 + 4 + 1
    halting = make_model(**act(halting_bias=9.0))
    nn.init.zeros_(halting.encoder.recurrence.halting.weight)
    assert len(halting(ids, output_hidden_states=True).hidden_states) == 2  # one step, then all have halted


def test_word_vectors(make_model, ids):
    """Scaled, zero for padding, shared by source, target and scores; the row of padding still scores."""
    model = make_model("ForConditionalGeneration", "both")
    table = model.get_input_embeddings()
    torch.testing.assert_close(table(torch.tensor([[0, 5]]))[0], torch.stack([torch.zeros(16), table.weight[5] * 4]))
    assert model.get_output_embeddings().weight is table.weight
    assert make_model(scale_embedding=False).get_input_embeddings()(torch.tensor([5])).equal(table.weight[5][None])
    apart = make_model("ForConditionalGeneration", "both", share_embeddings=False)
    tables = apart.universal_transformer
    assert apart.get_output_embeddings().weight is tables.target_embeddings.word_embeddings.weight
    assert tables.embeddings.word_embeddings.weight is not tables.target_embeddings.word_embeddings.weight
    untied = make_model("ForConditionalGeneration", "both", tie_word_embeddings=False)
    assert untied.get_output_embeddings().weight is not untied.get_input_embeddings().weight


def test_new_weights():
    torch.manual_seed(0)
    fields = SMALL | {"hidden_size": 64, "intermediate_size": 256, "vocab_size": 5000} | act()
    model = longspan.UniversalTransformerModel(longspan.UniversalTransformerConfig(**fields))
    assert abs(model.get_input_embeddings().weight.std() * 8 - 1) < 0.05
    fc1 = model.encoder.block[0].ffn.fc1
    bound = (6 / (64 + 256)) ** 0.5
    assert bound * 0.98 < fc1.weight.abs().max() <= bound and (fc1.bias == 0).all()
    assert model.encoder.recurrence.halting.bias.item() == -1
    highway = longspan.UniversalTransformerConfig(
        **SMALL, recurrence="highway", recurrence_options={"couple_gates": False}
    )
    gates = longspan.UniversalTransformerModel(highway).encoder.recurrence
    assert (gates.transform.bias == -1).all() and (gates.carry.bias == 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recurrence", ["basic", "act", "act-packed", "lstm"])
def test_half_precision(recurrence, dtype, make_model, ids, mask):
    """Bookkeeping stays float32."""
    model = make_model("ForConditionalGeneration", "both", **RECURRENCES[recurrence]).train().to(dtype)
    outputs = model(ids, attention_mask=mask, labels=ids)
    assert outputs.logits.dtype == dtype and outputs.logits.isfinite().all()
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    if outputs.ponder_loss is not None:
        assert outputs.encoder_remainders.dtype == torch.float32
    model.float()
    with torch.autocast("cpu", dtype):
        model(ids, attention_mask=mask, labels=ids).loss.backward()


def test_what_was_pondered_over(make_model, ids, mask):
    outputs = make_model(**act())(ids, attention_mask=mask)
    summary = ponder_summary(outputs.n_updates, mask)
    expected = [outputs.n_updates[row][tokens].mean() for row, tokens in enumerate(mask != 0)]
    torch.testing.assert_close(summary.mean, torch.stack(expected))


def test_bad_inputs_are_named(make_model, ids):
    encoder, both = make_model(), make_model(form="both", num_target_spaces=4)
    for call, message in [
        (lambda: encoder(), "give exactly one of input_ids and inputs_embeds, got neither"),
        (lambda: both(ids), "give exactly one of decoder_input_ids and decoder_inputs_embeds, got neither"),
        (lambda: both(ids, decoder_input_ids=ids + 40), r"decoder_input_ids must lie in \[0, 50\)"),
        (lambda: encoder(ids, attention_mask=torch.ones(3, 10)), "attention_mask must be"),
        (lambda: both(ids, decoder_input_ids=ids, decoder_attention_mask=torch.ones(3, 4)), "decoder_attention_mask"),
        (lambda: encoder(inputs_embeds=torch.zeros(2, 3, 5)), "inputs_embeds must have hidden_size = 16 features"),
        (lambda: encoder(ids, position_ids=torch.zeros(2, 11, dtype=torch.long)), "position_ids must be"),
        (lambda: encoder(ids, decoder_input_ids=ids), "decoder_input_ids means nothing to an encoder alone"),
        (lambda: encoder(ids, use_cache=True), "use_cache means nothing to an encoder alone"),
        (lambda: encoder(ids, target_space_id=1), "no table of target spaces"),
        (lambda: both(ids, decoder_input_ids=ids, target_space_id=4), r"target_space_id must lie in \[0, 4\)"),
        (lambda: both(ids, decoder_input_ids=ids, target_space_id=torch.ones(2, 2)), "target_space_id must be an int"),
        (lambda: both(ids, decoder_input_ids=ids[:2]), "the source has 3 rows, the target 2"),
        (
            lambda: both(encoder_outputs=(torch.zeros(3, 4, 16),), attention_mask=ids, decoder_input_ids=ids),
            r"attention_mask must be \[batch, source tokens\] = \[3, 4\], got \[3, 11\]",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (1, 1)])
def test_no_text_and_one_token(shape, make_model):
    for recurrence in ("basic", "act", "act-packed", "act-global"):
        model = make_model(**RECURRENCES[recurrence])
        assert model(torch.full(shape, 5)).last_hidden_state.shape == (*shape, 16)
    mask = torch.zeros(2, 4, dtype=torch.long)
    assert make_model(**act())(torch.full((2, 4), 5), attention_mask=mask)[0].isfinite().all()
