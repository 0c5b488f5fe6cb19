"""Adaptive Span against its reference data: outputs and gradients of the released code, run in float64.

The kinds of cases are explained in ``adaptive_span/README.md``. Rows of tensors there are batch * heads, the nearest
key stands last, spans are stored as fractions of the maximum. The released code adds 1e-8 to the sum of weights: the
comparisons do, too, and where that matters little they are made without it as well.
"""

import pytest
import torch

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM, AdaptiveSpanModel
from longspan.adaptive_span.conversion import from_original, load_original
from longspan.adaptive_span.encoder_adaptive_span import host_reaches, span_loss
from longspan.layers.span import DynamicSpan, StaticSpan, head_windows, memory_rows, reach, trimmed_rows
from longspan.layers.span_self_attention import SpanReach, SpanSelfAttention, by_distance
from longspan.ops import soft_mask, span_attention
from longspan.training.adagrad import ClippedAdagrad, linear_warmup

DTYPES = [torch.float64, torch.float32]
EPSILON = 1e-8  # of the released code
SLACK = TRIM_MULTIPLE = 64  # of the released code


def assert_agrees(actual, expected, name):
    """float64 within 1e-6 of the largest number, since data are rounded; float32 within 1e-5, gradients 5e-5."""
    expected = expected.double().reshape(actual.shape)
    size = max(1.0, expected.abs().max().item()) if expected.numel() else 1.0
    tolerance = 1e-6 if actual.dtype == torch.float64 else 5e-5 if "grad/" in name else 1e-5
    torch.testing.assert_close(
        actual.detach().double(), expected, atol=tolerance * size, rtol=0, msg=lambda text: f"{name}: {text}"
    )


def settings(case):
    return case.meta["config"]


def prefixed(case, prefix):
    return {name.removeprefix(prefix): x for name, x in case.tensors.items() if name.startswith(prefix)}


def with_gradient(case, dtype, *names):
    return [case.tensors[name].to(dtype).requires_grad_() for name in names]


def check_gradients(case, leaves, given=None):
    """Every gradient that is given, by default those of the case, of the leaf of that name."""
    given = prefixed(case, "grad/") if given is None else given
    assert given.keys() <= leaves.keys(), given.keys() - leaves.keys()
    for name, expected in given.items():
        leaf = leaves[name]
        actual, expected = leaf.grad, expected.reshape(leaf.shape)
        if name.endswith(("current_val", "span_fraction")):
            off = rounded_to_a_kink(leaf, settings(case)["max_span"])
            actual, expected = actual[~off], expected[~off]
        assert_agrees(actual, expected, f"grad/{name}")


def rounded_to_a_kink(fractions, max_span):
    """Spans that float32 makes whole numbers of tokens and float64 does not: one more key is on the ramp's end."""
    tokens = fractions.detach() * max_span
    return (tokens == tokens.round()) & (tokens.double() != fractions.detach().double() * max_span)


def check_skew(case, dtype):
    """From distances to places of keys and back: what attention that sees L keys before each query does by itself."""
    given = {name: x.to(dtype) for name, x in case.tensors.items()}
    by_place, by_offset = given["input/full"], given["input/by_distance"]  # [B, M, M + L], [B, M, L]
    batch, queries, window = by_offset.shape
    keys = by_place.shape[2]
    one_hot = torch.eye(queries, dtype=dtype).expand(1, batch, -1, -1)  # examples are heads, queries are features
    values = torch.eye(keys, dtype=dtype).expand(1, batch, -1, -1)
    form = dict(span=torch.full((batch,), float(window)), max_span=window, ramp=1, scale=1.0, return_lse=True)

    def scores(key, position_key):
        """What attention sees, by place: the logarithm of its weights, read off unit vectors M at a time."""
        columns = []
        for some in values.split(queries, -1):
            value = torch.nn.functional.pad(some, (0, queries - some.shape[-1]))
            out, lse = span_attention(one_hot, key, value, position_key, **form)
            columns.append(out[..., : some.shape[-1]])
        return torch.cat(columns, -1)[0].log() + lse[0][..., None]

    no_keys = torch.zeros(1, batch, keys, queries, dtype=dtype)
    skewed = scores(no_keys, by_offset.flip(2).transpose(1, 2).contiguous())
    place = torch.arange(keys) - torch.arange(queries)[:, None]
    inside = (place >= 0) & (place < window)
    assert (skewed.isfinite() == inside).all()
    assert_agrees(skewed.masked_fill(~inside, 0.0), case.tensors["output/skewed"], "output/skewed")
    seen = scores(by_place.mT[None].contiguous(), None)
    assert (seen.isfinite() == inside).all()
    assert_agrees(seen[:, inside].view(batch, queries, window), case.tensors["output/unskewed"], "output/unskewed")


def check_mask(case, dtype):
    config = settings(case)
    (x,) = with_gradient(case, dtype, "input/x")
    fractions = case.tensors["weight/current_val"].flatten()
    heads, max_span, ramp = len(fractions), config["max_span"], config["ramp"]
    span = StaticSpan(heads, max_span).to(dtype)
    span.load_state_dict({"span_fraction": fractions})
    distance = torch.arange(x.shape[-1]).flip(0)
    y = x * soft_mask(span(x)[:, None, None], distance, ramp=ramp)
    assert_agrees(y, case.tensors["output/y"], "output/y")
    (y * case.tensors["grad_out/y"]).sum().backward()
    check_gradients(case, {"x": x, "current_val": span.span_fraction})
    tokens = span.tokens()
    longest, mean = max(tokens), sum(tokens) / heads
    for name, span_of, more in (("max_size", longest, ramp), ("avg_size", mean, ramp),
                                ("max_size_noramp", longest, 0), ("avg_size_noramp", mean, 0)):  # fmt: skip
        if name in config:
            assert reach(span_of, more, max_span) == config[name], name


def check_table(case, dtype):
    """Settings and the trimming, memory, reported spans and loss that follow, of whole models."""
    models = {}
    for row in case.meta["rows"]:
        heads, max_span, ramp = row["heads"], row["max_span"], row["ramp"]
        if (heads, max_span, ramp) not in models:
            config = AdaptiveSpanConfig(
                vocab_size=2, hidden_size=heads, num_attention_heads=heads, num_hidden_layers=1, intermediate_size=1,
                max_span=max_span, span_ramp=ramp, span_trim_multiple=TRIM_MULTIPLE, cache_slack=SLACK,
            )  # fmt: skip
            models[heads, max_span, ramp] = AdaptiveSpanModel(config).to(dtype)
        model = models[heads, max_span, ramp]
        model.config.span_loss_weight = row["coeff"]
        fractions = torch.tensor(row["frac"])
        for parameter in model.span_parameters():
            parameter.data.copy_(fractions)
        ((found, rows),) = host_reaches(model.config, model.layers) or []
        assert (found.trimmed, rows) == (row["trim_len"], row["cache_size"]), row
        spans = model.spans()
        tokens = [max_span * float(fraction) for fraction in fractions]
        assert reach(max(tokens), ramp, max_span) == row["max"], row
        assert reach(max_span * float(fractions.mean()), ramp, max_span) == row["avg"], row
        assert_agrees(spans[0] / max_span, fractions, "fractions")
        loss = span_loss(model.config, [*spans], None)
        assert loss is not None
        torch.testing.assert_close(loss.double(), torch.tensor(row["loss"]).double(), rtol=1e-6, atol=0)


def attention_of(config, dtype, **fields):
    """The layer of a case; ``spans`` of fixed-span cases do not exist."""
    layer = SpanSelfAttention(
        config["H"] * config["D"], config["H"], max_span=config["max_span"], ramp=config["ramp"], **fields
    )
    return layer.to(dtype)


def in_heads(x, config):
    """``[B * H, T, D]`` -> ``[B, H, T, D]``."""
    return x if x.dim() == 4 else x.unflatten(0, (config["B"], config["H"]))


def attend(case, layer, dtype, span=None):
    """Run the layer between its projections; returns its output, the leaves by their names in the case, the spans."""
    config = settings(case)
    leaves = dict(zip(["q", "k", "v", "key_pe"], with_gradient(case, dtype, "input/q", "input/k", "input/v",
                                                               "input/key_pe"), strict=True))  # fmt: skip
    query, key, value = (in_heads(leaves[name], config) for name in ("q", "k", "v"))
    max_span, ramp = config["max_span"], config["ramp"]
    span = layer.span(query) if span is None else span
    if span.dim() == 1:
        longest = span.tolist()
        trimmed = trimmed_rows(max(longest), ramp, max_span, TRIM_MULTIPLE) if config.get("enabled", True) else 0
        assert config.get("trim_len", trimmed) == trimmed
        if "cache_size" in config:
            assert memory_rows(trimmed, max_span, SLACK) == config["cache_size"]
        far = SpanReach(head_windows(longest, config["H"], ramp, max_span), trimmed)
    else:
        far = None
    rows = max_span if far is None else layer.rows_read(far)
    position_key = by_distance(leaves["key_pe"], max_span, rows, bidirectional=False)
    return layer.attend(query, key, value, position_key, span, reach=far), leaves


def check_static(case, dtype, **fields):
    """The layer with what the case says of spans, weights and persistent vectors; outputs and gradients."""
    config = settings(case)
    layer = attention_of(config, dtype, zero_cache=True, persistent=config.get("pers_mem", 0), **fields)
    weights = {name.split(".")[-1]: x for name, x in prefixed(case, "weight/").items()}
    state = {}
    if "current_val" in weights:
        state["span.span_fraction"] = weights["current_val"].flatten()
    if "val" in weights:
        state |= {"persistent_key": weights["key"], "persistent_value": weights["val"]}
    missing, unexpected = layer.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("_proj.weight") for name in missing), missing
    out, leaves = attend(case, layer, dtype)
    expected = in_heads(case.tensors["output/o"], config)
    assert_agrees(out, expected, "output/o")
    (out * in_heads(case.tensors["grad_out/o"], config)).sum().backward()
    if "current_val" in weights:
        leaves |= dict.fromkeys(("current_val", "adaptive_span._mask.current_val"), layer.span.span_fraction)
    leaves |= {"persistent_memory.key": layer.persistent_key, "persistent_memory.val": layer.persistent_value}
    check_gradients(case, leaves)
    if layer.epsilon:
        layer.epsilon = 0.0
        exact, _ = attend(case, layer, dtype)
        if (exact - out).abs().max() < 1e-6:  # elsewhere most weight lies beyond the span, and the epsilon shows
            assert_agrees(exact, expected, "output/o, exact")


def check_attention(case, dtype):
    enabled = settings(case).get("enabled", True)
    check_static(case, dtype, span_mode="static" if enabled else "none", epsilon=EPSILON)


def check_fairseq(case, dtype):
    """Weights that keep their share of the softmax over the whole window; perhaps one span for all heads."""
    config = settings(case)
    check_static(
        case,
        dtype,
        span_mode="static_layer" if config["layer_span"] else "static",
        renormalise=config["renormalise"],
        epsilon=EPSILON if config["renormalise"] else 0.0,
    )


def check_dynamic(case, dtype):
    """No zero cache, no epsilon: keys that do not exist take no part."""
    config = settings(case)
    (x,) = with_gradient(case, dtype, "input/x")
    layer = attention_of(config, dtype, span_mode="dynamic")
    layer.span = DynamicSpan(x.shape[-1], config["H"], config["max_span"], ramp=config["ramp"])
    layer.span.load_state_dict({"weight": case.tensors["weight/v"], "bias": case.tensors["weight/b"]})
    layer.span.to(dtype)
    span = layer.span(x)
    assert_agrees(span, case.tensors["output/z"], "output/z")
    out, leaves = attend(case, layer, dtype, span)
    assert_agrees(out, case.tensors["output/o"], "output/o")
    ((out * case.tensors["grad_out/o"]).sum() + config["z_loss_coeff"] * span.mean()).backward()
    check_gradients(case, leaves | {"x": x, "weight_v": layer.span.weight, "weight_b": layer.span.bias})


def model_of(case, dtype):
    config = settings(case)
    clusters = config.get("adaptive_io")
    options = {}
    if clusters:
        options = {
            "adaptive_io_cutoffs": clusters["cutoffs"],
            "adaptive_io_factor": clusters["div"],
            "tie_word_embeddings": clusters["tied"],
        }
    enabled = config.get("enabled", True)
    model = AdaptiveSpanForCausalLM(
        AdaptiveSpanConfig(
            vocab_size=config["vocab"],
            hidden_size=config["d_model"],
            num_attention_heads=config["heads"],
            num_hidden_layers=config["layers"],
            intermediate_size=config["d_ff"],
            max_span=config["max_span"],
            span_ramp=config["ramp"],
            span_loss_weight=config["span_loss"],
            span_mode="static" if enabled else "none",
            span_epsilon=EPSILON,
            span_trim_multiple=TRIM_MULTIPLE,
            cache_slack=SLACK,
            adapt_cache=config.get("adapt_cache", True) and enabled,
            persistent_memory_size=config.get("pers_mem", 0),
            relu_dropout=0.0,
            attention_dropout=0.0,
            chunk_size_lm_head=64,  # this loss keeps float64
            **options,
        )
    )
    model.load_state_dict(from_original(prefixed(case, "weight/"), model.config))
    return model.to(dtype).train()


def set_spans(model, spans):
    for parameter, of_heads in zip(model.span_parameters(), spans, strict=True):
        parameter.data.copy_(torch.tensor(of_heads, dtype=torch.float64) / model.config.max_span)


def check_model(case, dtype):
    """Consecutive blocks with memories; gradients of some."""
    config, given = settings(case), case.tensors
    model = model_of(case, dtype)
    tokens, block = given["input/tokens"], config["block"]
    mems = None
    for index in range(config["blocks"]):
        if str(index) in config.get("z_change", {}):
            set_spans(model, config["z_change"][str(index)])
        info = (config.get("blocks_info") or [{}] * config["blocks"])[index]
        begin = index * block
        ids, next_ids = tokens[:, begin : begin + block], tokens[:, begin + 1 : begin + block + 1]
        if mems is not None and "cache_in" in info:
            assert [memory.shape[1] for memory in mems] == info["cache_in"]
        if "trim" in info:
            assert [far.trimmed for far, _ in host_reaches(model.config, model.model.layers) or []] == info["trim"]
        model.zero_grad()
        out = model(ids, next_ids=next_ids, mems=mems, use_mems=True)
        extra = torch.zeros(()) if out.span_loss is None else out.span_loss.detach()
        name = f"output/block{index}"
        assert_agrees(out.loss - extra, given[f"{name}/nll"], f"{name}/nll")
        assert_agrees(extra, given[f"{name}/span_loss"], f"{name}/span_loss")
        gradients = prefixed(case, f"grad/block{index}/")
        if gradients:
            out.loss.backward()
            parameters = dict(model.named_parameters(remove_duplicate=False))
            check_gradients(case, parameters, from_original(gradients, model.config))
        with torch.no_grad():
            log_probs = model.eval()(ids, mems=mems).logits.log_softmax(-1)
            model.train()
        if f"{name}/log_probs" in given:
            assert_agrees(log_probs, given[f"{name}/log_probs"], f"{name}/log_probs")
        if f"{name}/nll_per_token" in given:
            per_token = -log_probs.gather(-1, next_ids[..., None])[..., 0]
            assert_agrees(per_token, given[f"{name}/nll_per_token"], f"{name}/nll_per_token")
        mems = out.mems
        if "cache_out" in info:
            assert [memory.shape[1] for memory in mems] == info["cache_out"]
    assert mems is not None
    for index, expected in prefixed(case, "output/final_cache/").items():
        assert_agrees(mems[int(index)], expected, f"output/final_cache/{index}")


def check_training(case, dtype):
    """Steps of the original's optimiser over a stream; every number of every step, and the weights at the end."""
    config, given = settings(case), case.tensors
    model = model_of(case, dtype)
    optimizer = ClippedAdagrad(model.parameters(), lr=config["lr"], clip=config["grad_clip"] or None)
    schedule = linear_warmup(optimizer, config["warmup"])
    tokens, block = given["input/tokens"], config["block"]
    mems = None
    for step in range(config["steps"]):
        row = (config.get("rows") or [{}] * config["steps"])[step]
        begin = step * block
        out = model(
            tokens[:, begin : begin + block],
            next_ids=tokens[:, begin + 1 : begin + block + 1],
            mems=mems,
            use_mems=True,
        )
        mems = out.mems
        if row:
            loss = out.loss - out.span_loss
            assert_agrees(loss, torch.tensor(row["nll"]), f"nll of step {step}")
            assert_agrees(out.span_loss, torch.tensor(row["span_loss"]), f"span loss of step {step}")
            assert optimizer.param_groups[0]["lr"] == pytest.approx(row["lr"])
        model.zero_grad()
        out.loss.backward()
        if row:
            norms = [x.grad.norm().item() for x in model.parameters() if x.grad is not None]
            if config["grad_clip"]:
                assert sum(norm > config["grad_clip"] for norm in norms) == row["n_clipped"]
        optimizer.step()
        schedule.step()
        model.clamp_spans()
        fractions = torch.stack([*model.span_parameters()])
        assert_agrees(fractions, given[f"output/z_frac/step{step}"], f"output/z_frac/step{step}")
        if row:
            longest = (fractions.double().amax(1) * config["max_span"]).tolist()
            assert [reach(span, config["ramp"], config["max_span"]) for span in longest] == row["spans"]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, expected in from_original(prefixed(case, "output/final/"), model.config).items():
        parameter = parameters[name].detach()
        if dtype == torch.float64:
            assert_agrees(parameter, expected, f"output/final/{name}")
            continue
        # Adagrad takes long steps where gradients are small. Where one was nothing but rounding, so is its step.
        root = optimizer.state[parameters[name]]["sum"].sqrt()
        told = root > 0.03 * root.max()
        torch.testing.assert_close(parameter[told], expected[told], atol=5e-4, rtol=0, msg=f"output/final/{name}")


def check_checkpoint(case, dtype):
    """A file as released: what its shapes tell, and log-probabilities over consecutive blocks."""
    config, given = settings(case), case.tensors
    model = load_original(case.path, span_ramp=config["ramp"], span_epsilon=EPSILON).to(dtype)
    found = model.config
    sizes = (found.vocab_size, found.hidden_size, found.num_attention_heads, found.num_hidden_layers, found.max_span)
    assert sizes == tuple(config[name] for name in ("vocab", "d_model", "heads", "layers", "max_span"))
    assert found.persistent_memory_size or found.intermediate_size == config["d_ff"]
    expected = prefixed(case, "output/log_probs_block")
    assert expected
    mems = None
    for index in range(len(expected)):
        begin = index * config["block"]
        with torch.no_grad():
            out = model(given["input/tokens"][:, begin : begin + config["block"]], mems=mems, use_mems=True)
        mems = out.mems
        log_probs = out.logits.float().log_softmax(-1)  # the data were made in float32
        assert_agrees(log_probs, expected[str(index)], f"output/log_probs_block{index}")


def kind_of(case):
    names, config = case.tensors.keys(), case.meta.get("config", {})
    if "rows" in case.meta:
        return check_table
    if "model" in case.meta:
        return check_checkpoint
    if "input/by_distance" in names:
        return check_skew
    if "output/y" in names:
        return check_mask
    if "weight/v" in names:
        return check_dynamic
    if "renormalise" in config:
        return check_fairseq
    if "input/q" in names:
        return check_attention
    if "steps" in config:
        return check_training
    assert "blocks" in config, f"{case.path}: no kind of case that is known here"
    return check_model


@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
def test_case(case, dtype):
    kind_of(case)(case, dtype)
