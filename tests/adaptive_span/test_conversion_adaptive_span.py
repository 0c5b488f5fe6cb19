"""Weights of other code: what files of the released layout hold, there and back; sizes that shapes tell."""

from pathlib import Path

import pytest
import torch

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM
from longspan.adaptive_span.conversion import FAIRSEQ, from_original, infer_config, load_original, to_original

CONFIGS = Path(__file__).parents[2] / "configs" / "adaptive_span"
PUBLISHED = {  # millions of parameters, head included
    "enwik8": 38.54,
    "text8": 38.36,
    "enwik8-large": 208.91,
    "text8-large": 208.64,
    "enwik8-small": 6.48,
    "all-attention-enwik8": 114.02,
    "all-attention-enwik8-small": 38.50,
    "all-attention-wiki103": 132.49,
}
SHAPES = {
    "plain": {},
    "one head": dict(num_attention_heads=1),
    "a span for each layer": dict(span_mode="static_layer"),
    "no span": dict(span_mode="none"),
    "all attention": dict(persistent_memory_size=6),
    "adaptive io": dict(vocab_size=60, adaptive_io_cutoffs=[10, 25, 30], adaptive_io_factor=2),
    "adaptive io, tied": dict(
        vocab_size=60, adaptive_io_cutoffs=[20, 40], adaptive_io_factor=2, tie_word_embeddings=True
    ),
    "tables per layer, norms before": dict(position_keys="per_layer", norm_position="pre"),
    "eleven layers": dict(num_hidden_layers=11),
}


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    fields = dict(
        vocab_size=11,
        hidden_size=16,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=24,
        max_span=40,
        span_ramp=8,
        span_init=0.3,
    )
    model = AdaptiveSpanForCausalLM(AdaptiveSpanConfig(**(fields | changes))).eval()
    with torch.no_grad():
        for parameter in model.span_parameters():
            parameter.uniform_(0, 1)
    return model


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.json")))
def test_published_sizes(name):
    config = AdaptiveSpanConfig.from_json_file(CONFIGS / f"{name}.json")
    with torch.device("meta"):
        model = AdaptiveSpanForCausalLM(config)
        model.tie_weights()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == PUBLISHED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back(name):
    """Shapes tell the configuration, and the weights give the same logits."""
    model = make_model(**SHAPES[name])
    weights = to_original(model.state_dict(), model.config)
    assert all(key.startswith("module.") for key in weights)
    fields = dict(span_ramp=8)
    config = infer_config(weights, **fields)
    told = set(config.to_diff_dict()) | set(model.config.to_diff_dict())
    for field in told - {"span_init", "transformers_version", "dtype", "architectures"}:
        if field != "intermediate_size" or not config.persistent_memory_size:
            assert getattr(config, field) == getattr(model.config, field), field
    again = AdaptiveSpanForCausalLM(config).eval()
    again.load_state_dict(from_original(weights, config))
    again.tie_weights()
    ids = torch.randint(11, (2, 30))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    back = to_original(again.state_dict(), config)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


@pytest.mark.parametrize("form", [{}, SHAPES["adaptive io, tied"]], ids=["one table", "clusters"])
def test_shared_weights_may_be_stored_once(form):
    model = make_model(**(form | dict(tie_word_embeddings=True)))
    state = model.state_dict()
    once = {
        name: value
        for name, value in state.items()
        if not name.startswith("lm_head") or not name.endswith(("weight", "projection")) or "cluster_scores" in name
    }
    assert len(once) < len(state)
    whole, short = to_original(state, model.config), to_original(once, model.config)
    assert whole.keys() == short.keys() and all(torch.equal(whole[name], short[name]) for name in whole)


def test_names_of_the_released_code():
    weights = to_original(make_model().state_dict(), make_model().config)
    span = "module.layers.1.attn.attn.adaptive_span._mask."
    assert weights[f"{span}current_val"].shape == (4, 1, 1)
    assert weights[f"{span}mask_template"].tolist() == list(range(-39, 1))
    assert weights["module.key_pe"].shape == (1, 4, 40)
    assert {key for key in weights if ".layers." not in key} == {
        "module.in_emb.weight", "module.key_pe", "module.out_emb.weight", "module.out_emb.bias",
    }  # fmt: skip
    model = make_model(persistent_memory_size=6)
    weights = to_original(model.state_dict(), model.config)
    again = "module.layers.0.attn.attn.persistent_memory."
    assert weights[f"{again}key"].shape == (4, 4, 6) and weights[f"{again}val"].shape == (4, 6, 4)
    copied = weights[f"{again}adaptive_span._mask.current_val"]
    assert torch.equal(copied, weights["module.layers.0.attn.attn.adaptive_span._mask.current_val"])


def test_released_file(tmp_path):
    """The layout of a released checkpoint: weights beside the state of its training."""
    model = make_model()
    weights = to_original(model.state_dict(), model.config)
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "sum": torch.ones(2)}}, "param_groups": [{"lr": 0.07}]}
    file = {"iter_no": 4, "model": weights, "logger": {"train_bpc": [2.5]}, "optimizer": optimizer}
    torch.save(file, tmp_path / "enwik8.pt")
    loaded = load_original(tmp_path / "enwik8.pt", span_ramp=8, block_size=64)
    assert (loaded.config.block_size, loaded.config.span_renormalise, loaded.training) == (64, True, False)
    assert load_original(tmp_path / "enwik8.pt").config.span_ramp == 32
    ids = torch.randint(11, (2, 30))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    loaded.save_pretrained(tmp_path / "saved")
    again = AdaptiveSpanForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_fairseq_file(tmp_path):
    """Its weights do not renormalise, and the file says what shapes do not."""
    model = make_model(span_mode="static_layer", span_renormalise=False)
    weights = to_original(model.state_dict(), model.config, prefix=FAIRSEQ)
    assert weights["decoder.model.layers.0.attn.attn.adaptive_span._mask.current_val"].shape == (1,)
    said = dict(adapt_span_ramp=8, dropout=0.2, emb_dropout=0.1, aux_loss_scaler=2e-6, d_model=16, n_head=4)
    torch.save({"cfg": {"model": said}, "args": None, "model": weights}, tmp_path / "checkpoint_best.pt")
    loaded = load_original(tmp_path / "checkpoint_best.pt")
    config = loaded.config
    assert (config.span_renormalise, config.span_ramp, config.span_mode) == (False, 8, "static_layer")
    assert (config.relu_dropout, config.attention_dropout, config.embedding_dropout) == (0.2, 0.2, 0.1)
    assert config.span_loss_weight == 2e-6
    ids = torch.randint(11, (2, 30))
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_transformer_sequential_names():
    """Spans under another name, a table in every layer, a norm at the end; back under the names that were there."""
    model = make_model(position_keys="per_layer", norm_position="pre")
    weights = to_original(model.state_dict(), model.config, prefix="")
    other = {
        key.replace("adaptive_span._mask.current_val", "adaptive_span.size_ratio")
        .replace("attn.key_pe", "attn.attn.key_pe")
        .replace("norm.weight" if key == "norm.weight" else "norm.bias", "out_norm." + key[5:])
        if not key.endswith("mask_template") and (key.startswith("layers") or "norm" in key)
        else key: value
        for key, value in weights.items()
        if not key.endswith("mask_template")
    }
    config = infer_config(other, span_ramp=8)
    assert (config.position_keys, config.norm_position, config.max_span) == ("per_layer", "pre", 40)
    again = AdaptiveSpanForCausalLM(config)
    again.load_state_dict(from_original(other, config))
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    back = to_original(again.state_dict(), config, names=other)
    assert back.keys() == other.keys()
    assert all(torch.equal(back[key], other[key]) for key in other)


class Anything:
    """What a pickle could hold beside weights."""


def test_files_that_could_run_code_are_refused(tmp_path):
    torch.save({"model": {}, "args": Anything()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"holds more than weights.*torch\.save\(\{'model'"):
        load_original(tmp_path / "bad.pt")
    with pytest.raises(FileNotFoundError):
        load_original(tmp_path / "absent.pt")


def test_weights_of_something_else():
    model = make_model()
    weights = to_original(model.state_dict(), model.config)
    with pytest.raises(ValueError, match=r"hold no 'in_emb\.'"):
        infer_config(model.state_dict())
    with pytest.raises(ValueError, match=r"'module\.layers\.0\.mlp\.weight', which is none of the names"):
        infer_config(weights | {"module.layers.0.mlp.weight": torch.zeros(1)})
    lacking = {key: value for key, value in weights.items() if key != "module.key_pe"}
    with pytest.raises(ValueError, match=r"nothing that is 'model\.key_position_embeddings'"):
        infer_config(lacking)
    name = "module.layers.0.attn.attn.adaptive_span._mask.mask_template"
    with pytest.raises(ValueError, match=r"must hold the distances -39 to 0: nearest key last"):
        from_original(weights | {name: weights[name].flip(0)}, model.config)
    with pytest.raises(ValueError, match=r"state_dict has no 'lm_head\.bias'"):
        state = {key: value for key, value in model.state_dict().items() if key != "lm_head.bias"}
        to_original(state, model.config)
    dynamic = make_model(span_mode="dynamic")
    with pytest.raises(ValueError, match="span_mode = 'dynamic'"):
        to_original(dynamic.state_dict(), dynamic.config)
