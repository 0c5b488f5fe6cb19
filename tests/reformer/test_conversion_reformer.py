import numpy as np
import pytest
import torch
from torch.testing import assert_close

from longspan import ReformerConfig, ReformerModelWithLMHead
from longspan.reformer.conversion import from_trax, to_trax, trax_entries, trax_shapes


def make_config(**changes):
    fields = dict(
        vocab_size=20,
        hidden_size=12,
        num_attention_heads=3,
        attention_head_size=5,
        feed_forward_size=7,
        attn_layers=["local", "lsh"],
        lsh_attn_chunk_length=16,
        local_attn_chunk_length=16,
        num_buckets=4,
        is_decoder=True,
        axial_pos_shape=[4, 8],
        axial_pos_embds_dim=[5, 7],
        lsh_semantics="original",
    )
    return ReformerConfig(**(fields | changes))


CONFIGS = {
    "axial": {},
    "three axes": dict(axial_pos_shape=[2, 4, 4], axial_pos_embds_dim=[3, 4, 5]),
    "learned positions": dict(axial_pos_embds=False, max_position_embeddings=32),
    "other layers": dict(attn_layers=["lsh", "lsh", "local"]),
}


def random_weights(config, seed=0):
    """Arrays as trax has them, flat."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=shape).astype(np.float32) * 0.5 for shape in trax_shapes(config)]


def nest(arrays, config):
    """As trax nests them: empty tuples for layers without weights, tuples in tuples for residual blocks."""
    left = iter(arrays)

    def take(number):
        return tuple(next(left) for _ in range(number))

    words = next(left)
    positions = take(len(config.axial_pos_shape)) if config.axial_pos_embds else next(left)
    blocks = []
    for kind in config.attn_layers:
        attention = ((take(2),), take(3 if kind == "lsh" else 4))
        chunked = ((), (), (take(2), take(2), (), (), take(2), ()), ())
        blocks += [attention, (), (((), chunked),), ()]
    return ((), words, (), positions, (), tuple(blocks), (), take(2), (), take(2), ())


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * weight + bias


def attend(x, weights):
    """One attention layer of a text of up to one chunk, from weights per head: [T, E] -> [T, E]."""
    *projections, output = (w.astype(np.float64) for w in weights)
    T, D = len(x), output.shape[1]
    earlier = np.tril(np.ones((T, T), dtype=bool))
    total = 0.0
    for head in range(len(output)):
        rows = [x @ w[head] for w in projections]
        if len(rows) == 2:
            query, value = rows
            key = query / np.sqrt((query**2).sum(-1, keepdims=True) + D * 1e-6)
            scores = np.where(earlier, query @ key.T, -1e9)
            scores[np.arange(T), np.arange(T)] = -1e5
        else:
            query, key, value = rows
            scores = np.where(earlier, query @ key.T / np.sqrt(D), -1e9)
        total = total + softmax(scores) @ value @ output[head]
    return total


def forward(tree, ids):
    """What trax's ReformerLM computes after its shift of the input, in NumPy: logits [T, V]."""
    _, words, _, positions, _, blocks, _, last_norm, _, head, _ = tree
    if isinstance(positions, tuple):
        shape = tuple(max(sizes) for sizes in zip(*(table.shape[1:-1] for table in positions), strict=True))
        grids = [np.broadcast_to(table[0], (*shape, table.shape[-1])) for table in positions]
        table = np.concatenate(grids, -1).reshape(-1, words.shape[1])
    else:
        table = positions[0]
    one = two = words[ids].astype(np.float64) + table[: len(ids)]
    for index in range(0, len(blocks), 4):
        (norm,), attention = blocks[index]
        one = one + attend(layer_norm(two, *norm), attention)
        feed_norm, wide, _, _, narrow, _ = blocks[index + 2][0][1][2]
        hidden = np.maximum(layer_norm(one, *feed_norm) @ wide[0] + wide[1], 0)
        two = two + hidden @ narrow[0] + narrow[1]
    return layer_norm(np.concatenate([one, two], -1), *last_norm) @ head[0] + head[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_converted_models_compute_what_the_weights_say(name):
    config = make_config(**CONFIGS[name])
    tree = nest(random_weights(config), config)
    model = ReformerModelWithLMHead(config).eval()
    missing = model.load_state_dict(from_trax(tree, config))
    assert not missing.missing_keys and not missing.unexpected_keys
    ids = np.random.default_rng(1).integers(0, 20, 11)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None]).logits[0]
    assert_close(logits.double(), torch.from_numpy(forward(tree, ids)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back(name):
    config = make_config(**CONFIGS[name])
    arrays = random_weights(config)
    tree = nest(arrays, config)
    state_dict = from_trax(tree, config)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, to_trax(state_dict, config), strict=True))
    again = to_trax(state_dict, config, like=tree)
    assert str(again) == str(tree)
    assert list(from_trax(arrays, config)) == list(state_dict)

    model = ReformerModelWithLMHead(config)
    returned = from_trax(to_trax(model.state_dict(), config), config)
    assert returned.keys() == model.state_dict().keys()
    assert all(torch.equal(returned[key], value) for key, value in model.state_dict().items())


def test_the_table_names_every_parameter_once():
    config = make_config()
    names = [entry.name for entry in trax_entries(config)]
    assert len(set(names)) == len(names) == len(trax_shapes(config))
    assert set(names) == set(ReformerModelWithLMHead(config).state_dict())


def test_converted_folder_loads(tmp_path):
    config = make_config()
    model = ReformerModelWithLMHead.from_pretrained(
        None, config=config, state_dict=from_trax(random_weights(config), config)
    )
    model.save_pretrained(tmp_path)
    loaded = ReformerModelWithLMHead.from_pretrained(tmp_path).eval()
    ids = torch.arange(9)[None]
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_old_files_of_transformers_load(tmp_path):
    """They hold constants of the masks, and the bias of the head twice."""
    from safetensors.torch import save_file

    config = make_config()
    model = ReformerModelWithLMHead(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    old = {key: value.clone() for key, value in model.state_dict().items()}
    old["lm_head.decoder.bias"] = old["lm_head.bias"].clone()
    for layer, names in ((0, ("mask_value",)), (1, ("mask_value", "self_mask_value"))):
        for name in names:
            for width in (16, 32):
                key = f"reformer.encoder.layers.{layer}.attention.self_attention.{name}_float{width}"
                old[key] = torch.tensor(-1e4)
    config.save_pretrained(tmp_path)
    save_file(old, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    loaded, report = ReformerModelWithLMHead.from_pretrained(tmp_path, output_loading_info=True)  # type: ignore[misc]
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(9)[None]
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    model.lm_head.bias.data.zero_()  # pyright: ignore
    assert not torch.allclose(loaded(ids).logits, model(ids).logits), "the bias counts"


def test_errors_name_what_does_not_fit():
    config = make_config()
    arrays = random_weights(config)
    with pytest.raises(ValueError, match=r"weights holds 29 arrays, a model with attn_layers = .* has 30"):
        from_trax(arrays[:-1], config)
    wrong = list(arrays)
    wrong[5] = np.zeros((3, 5, 12), dtype=np.float32)
    with pytest.raises(ValueError, match=r"query.weight is made of an array \[3, 12, 5\], got \[3, 5, 12\]"):
        from_trax(wrong, config)
    state_dict = from_trax(arrays, config)
    with pytest.raises(ValueError, match="like holds 2 arrays"):
        to_trax(state_dict, config, like=tuple(arrays[:2]))
    del state_dict["lm_head.bias"]
    with pytest.raises(ValueError, match=r"state_dict has no 'lm_head.bias'"):
        to_trax(state_dict, config)
    with pytest.raises(ValueError, match="nested tuples of arrays"):
        from_trax("model.pkl.gz", config)
