"""Universal Transformer against its reference data: tensor2tensor run under TensorFlow, and float64 brute force.

The kinds of cases are explained in ``universal_transformer/README.md``. ``out`` is tensor2tensor's, computed in
float32; ``ref`` is the brute force, which we equal in float64.
"""

import pytest
import torch

from longspan.layers.coordinates import sinusoid
from longspan.layers.halting import HaltingState, mix, ponder_cost
from longspan.universal_transformer import (
    UniversalTransformerConfig,
    UniversalTransformerForCausalLM,
    UniversalTransformerForConditionalGeneration,
    UniversalTransformerModel,
)
from longspan.universal_transformer.conversion import from_tensor2tensor
from longspan.universal_transformer.generation_universal_transformer import why_no_cache
from longspan.universal_transformer.hyperparameters import fields_from_hparams

DTYPES = [torch.float64, torch.float32]
TEXTS = {"enc", "dec", "deconly", "full", "fulllm"}
ONLY_HERE = {"halted_state", "halted_kv", "mix", "force_halt_at_max", "skip_padding"}  # what "ext" may say
RANDOM = "draws at random with a generator of its own: there is nothing to compare with"


def assert_close(actual, expected, name, tolerance, where=None):
    """``where``: bool, which entries to compare."""
    actual, expected = actual.detach().double(), expected.double().reshape(actual.shape)
    if where is not None:
        actual, expected = actual[where], expected[where]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}")


def prefixed(case, prefix):
    return {name.removeprefix(prefix): x for name, x in case.tensors.items() if name.startswith(prefix)}


def config_of(case):
    meta, variables = case.meta, prefixed(case, "param.")
    kind = meta["kind"]
    if meta["recurrence_type"] == "act" and meta["act_type"] == "random":
        pytest.xfail(f"act_type random {RANDOM}")
    if meta.get("position_start_index") == "random":
        pytest.xfail("position_start_index random: in evaluation we do not move texts at random")
    if meta.get("gate_ffn_layer", "dense") != "dense":
        pytest.xfail(f"gates are one dense layer here, not {meta['gate_ffn_layer']}")
    ext = meta.get("ext") or {}
    if unknown := ext.keys() - ONLY_HERE:
        pytest.xfail(f"extensions without a counterpart: {sorted(unknown)}")
    fields = fields_from_hparams(meta)
    fields["recurrence_options"] = {**fields["recurrence_options"], **ext}
    spaces = [x.shape[0] for name, x in variables.items() if "target_space_embedding" in name]
    tables = [name for name in variables if "/symbol_modality_" in name]
    words = int(tables[0].split("/symbol_modality_")[1].split("_")[0]) if tables else 2
    return UniversalTransformerConfig.tensor2tensor(
        **fields,
        vocab_size=words,
        num_target_spaces=spaces[0] if spaces else 0,
        target_space_id=meta.get("target_space_id", 1) if spaces else 0,  # what these files were made with
        is_encoder_decoder=kind in ("dec", "full"),
        is_decoder=kind in ("deconly", "fulllm"),
    )


def model_of(case, dtype):
    """The model with the case's weights; of a decoder's case the encoder has any."""
    config = config_of(case)
    kinds = {"full": UniversalTransformerForConditionalGeneration, "fulllm": UniversalTransformerForCausalLM}
    model = kinds.get(case.meta["kind"], UniversalTransformerModel)(config)
    missing, unexpected = model.load_state_dict(from_tensor2tensor(prefixed(case, "param."), model), strict=False)
    allowed = ("embeddings.", "encoder.") if case.meta["kind"] == "dec" else ("embeddings.",)
    complete = case.meta["kind"] in ("full", "fulllm")
    assert not unexpected and not (complete and set(missing) - {"lm_head.decoder.weight"}), missing
    assert complete or all(name.startswith(allowed) for name in missing), missing
    return model.to(dtype).eval()


def bool_mask(case, name):
    mask = case.tensors.get(name)
    return None if mask is None else mask != 0


def check_stack(case, dtype):
    """An encoder or a decoder on embedded tokens."""
    given, kind, model = case.tensors, case.meta["kind"], model_of(case, dtype)
    x = given["in.x"].to(dtype).requires_grad_()
    before_norm = []
    stack = model.encoder if kind == "enc" else model.decoder
    if stack.final_norm is not None:
        stack.final_norm.register_forward_pre_hook(lambda module, inputs: before_norm.append(inputs[0]))
    if kind == "dec":
        mask, source = None, given["in.encoder_output"].to(dtype)
        outputs = model(
            encoder_outputs=(source,),
            attention_mask=bool_mask(case, "in.encoder_nonpadding"),
            decoder_inputs_embeds=x,
            output_halting=True,
        )
        n_updates, remainders = outputs.decoder_n_updates, outputs.decoder_remainders
        probabilities = outputs.decoder_halting_probabilities
    else:
        mask = bool_mask(case, "in.nonpadding")
        outputs = model(inputs_embeds=x, attention_mask=mask, output_halting=True)
        n_updates, remainders, probabilities = outputs.n_updates, outputs.remainders, outputs.halting_probabilities
    y = outputs.last_hidden_state
    results = {"y": y, "y_nonorm": before_norm[0] if before_norm else y}
    if n_updates is not None:
        results |= {"n_updates": n_updates, "remainders": remainders}
    check(case, results, dtype, mask)
    if probabilities is not None:
        check_trace(case, probabilities, dtype)
    check_gradients(case, model, x, y, n_updates, remainders)


def check(case, results, dtype, mask=None):
    """Everything there is to compare: ``ref`` in float64, ``out`` in both."""
    wanted = prefixed(case, "ref.")
    faint = faint_tokens(case, results["y"].shape[:2])
    for prefix, tolerance in (("ref.", 1e-9 if dtype == torch.float64 else None), ("out.", 2e-5)):
        for name, expected in prefixed(case, prefix).items():
            if name not in results or tolerance is None:
                continue
            where = mask if results[name].dim() == 3 else None
            if prefix == "out." and name == "y" and faint is not None:
                where = ~faint if where is None else where & ~faint  # the last LayerNorm magnifies their rounding
            if name == "n_updates":
                assert torch.equal(results[name].double(), expected.double()), name
            else:
                at_most = 2e-6 if (prefix, name) == ("out.", "remainders") else tolerance
                assert_close(results[name], expected, prefix + name, at_most, where)
    if dtype == torch.float32 and "y_nonorm" in wanted:
        size = max(1.0, wanted["y_nonorm"].abs().max().item())  # sums of steps, of any size
        assert_close(results["y_nonorm"], wanted["y_nonorm"], "y_nonorm", 2e-6 * size + 2e-5, mask)


def faint_tokens(case, shape):
    """Tokens whose outcome is scaled almost to nothing: the weights of their steps sum to less than 0.1."""
    weights = case.tensors.get("ref.trace.w")
    return None if weights is None or weights.shape[1:] != shape else weights.sum(0) < 0.1


def check_trace(case, probabilities, dtype):
    given = case.tensors
    if "ref.trace.p" not in given or dtype != torch.float64:
        return
    assert len(probabilities) == int(given["ref.steps"])
    for step, p in enumerate(probabilities):
        running = given["ref.trace.running"][step] != 0
        assert_close(p, given["ref.trace.p"][step] * running, f"p of step {step}", 1e-9)


def check_gradients(case, model, x, y, n_updates, remainders):
    """Of ``sum(y * in.r)`` and the ponder cost, where the case has them."""
    wanted = prefixed(case, "grad.")
    if not wanted:
        return
    loss = (y * case.tensors["in.r"].to(y.dtype)).sum()
    if n_updates is not None:
        loss = loss + case.meta["act_loss_weight"] * ponder_cost(n_updates, remainders)
    loss.backward()
    assert_close(loss, case.tensors["out.loss"], "out.loss", 1e-5 * max(1.0, loss.item()))
    for name, parameter in from_tensor2tensor({k: v for k, v in wanted.items() if k != "in.x"}, model).items():
        size = max(1.0, parameter.abs().max().item())
        assert_close(model.get_parameter(name).grad, parameter, f"grad.{name}", 2e-5 * size)
    if "in.x" in wanted:
        assert_close(x.grad, wanted["in.x"], "grad.in.x", 2e-5)


def start_with_zero(ids):
    """What a decoder reads to predict ``ids``: the zero vector, which padding has, and all but the last."""
    return torch.nn.functional.pad(ids[:, :-1], (1, 0))


def check_whole_model(case, dtype):
    """Token ids to logits and losses. Id 0 is padding."""
    given, model = case.tensors, model_of(case, dtype)
    targets = given["in.targets"].long()
    labels = targets.masked_fill(targets == 0, -100)
    if case.meta["kind"] == "fulllm":
        outputs = model(start_with_zero(targets), shift_labels=labels)
    else:
        sources = given["in.inputs"].long()
        outputs = model(
            sources,
            attention_mask=sources != 0,
            decoder_input_ids=start_with_zero(targets),
            labels=labels,
        )
        if "ref.encoder_output" in given and dtype == torch.float64:
            encoded = outputs.encoder_last_hidden_state
            assert_close(encoded, given["ref.encoder_output"], "encoder_output", 1e-9, sources != 0)
    ponder = torch.zeros(()) if outputs.ponder_loss is None else outputs.ponder_loss
    results = {"logits": outputs.logits, "xent": outputs.loss - ponder, "act_loss": ponder}
    if outputs.ponder_loss is not None and case.meta["act_loss_weight"]:
        results["ponder_mean"] = ponder / case.meta["act_loss_weight"]
    tolerances = {torch.float64: (1e-9, 2e-5), torch.float32: (2e-5, 2e-5)}[dtype]
    for name, actual in results.items():
        if f"ref.{name}" in given:
            assert_close(actual, given[f"ref.{name}"], f"ref.{name}", tolerances[0])
    named = {"out.logits": "logits", "out.loss.training": "xent", "out.loss.act_loss": "act_loss"}
    for theirs, ours in named.items():
        if theirs in given:
            assert_close(results[ours], given[theirs], theirs, tolerances[1])


@torch.no_grad()
def check_generation(case, dtype):
    """Token after token, the whole prefix anew, and with a cache where the model can have one."""
    given, model = case.tensors, model_of(case, dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-5
    source = {}
    if "in.inputs" in given:
        source = {"attention_mask": given["in.inputs"] != 0}
        source["encoder_outputs"] = model.get_encoder()(given["in.inputs"].long(), source["attention_mask"])
    name = "decoder_input_ids" if source else "input_ids"
    wanted = given["ref.ids"]
    whole, cache = torch.zeros(wanted.shape[0], 1, dtype=torch.long), None
    for step in range(wanted.shape[1]):
        passes = [model(**source, **{name: whole})]
        if why_no_cache(model.config) is None:
            passes += [model(**source, **{name: whole[:, -1:]}, past_key_values=cache, use_cache=True)]
            cache = passes[-1].past_key_values
        for outputs in passes:
            assert_close(outputs.logits[:, -1], given["ref.logits"][:, step], f"logits of step {step}", tolerance)
            n_updates = getattr(outputs, "decoder_n_updates", getattr(outputs, "n_updates", None))
            if "ref.n_updates" in given and n_updates is not None:
                assert torch.equal(n_updates.double()[:, -1], given["ref.n_updates"][:, step])
        scores = passes[-1].logits[:, -1] + given["in.noise"][:, step].to(dtype)
        scores[:, 0] = -torch.inf
        ids = scores.argmax(-1)
        assert torch.equal(ids, wanted[:, step])
        whole = torch.cat([whole, ids[:, None]], 1)


def check_coordinates(case, dtype):
    for name, expected in case.tensors.items():
        kind, *sizes = name.split(".")
        sizes = {size.rstrip("0123456789"): int(size.lstrip("LdTstar")) for size in sizes}
        places = torch.arange(sizes["L"])
        if kind == "t2t_timing":
            actual = sinusoid(places + sizes["start"], sizes["d"], "tensor2tensor", dtype)
        else:
            steps = sinusoid(torch.arange(sizes["T"]), sizes["d"], "paper", dtype)
            actual = sinusoid(places, sizes["d"], "paper", dtype) + steps[:, None]
        assert_close(actual, expected, name, 1e-9 if dtype == torch.float64 else 2e-6)


def check_bookkeeping(case, dtype):
    """Given probabilities and states: weights, counts, remainders and outputs."""
    probabilities, states = case.tensors["p"].to(dtype), case.tensors["state"].to(dtype)
    for epsilon, steps, force in case.meta["sets"]:
        held = HaltingState.begin(torch.ones(probabilities.shape[1:], dtype=torch.bool), dtype)
        outputs = {how: torch.zeros_like(states[0]) for how in ("sum", "interpolate")}
        weights = torch.zeros_like(probabilities)
        for step in range(min(steps, len(probabilities))):
            last = force and step == steps - 1
            held, weights[step] = held.advance(probabilities[step], epsilon, last)
            outputs = {how: mix(output, states[step], weights[step], how) for how, output in outputs.items()}
        results = {
            "weights": weights,
            "n_updates": held.n_updates,
            "remainders": held.remainders,
            "halting_probability": held.probability,
            "sum_state": outputs["sum"],
            "interp_state": outputs["interpolate"],
        }
        prefix = f"ref.eps{epsilon:g}.max{steps}.{'force' if force else 'noforce'}."
        expected = prefixed(case, prefix)
        assert expected and expected.keys() <= results.keys(), (prefix, expected.keys())
        for name, value in expected.items():
            assert_close(results[name], value, prefix + name, 1e-9 if dtype == torch.float64 else 2e-6)


def checker(case):
    tensors = case.tensors
    if "p" in tensors and "sets" in case.meta:
        return check_bookkeeping
    if any(name.startswith(("t2t_timing.", "paper_coordinate.")) for name in tensors):
        return check_coordinates
    if case.meta.get("kind") not in TEXTS:
        pytest.xfail(f"no such kind of case is known: {case.meta.get('kind')!r}")
    if "ref.ids" in tensors:
        return check_generation
    return check_whole_model if "in.targets" in tensors else check_stack


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_case(case, dtype):
    checker(case)(case, dtype)
