"""A small Reformer with weights that matter, and inputs that have everything in them."""

import pytest
import torch

import longspan

SMALL = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_attention_heads": 2,
    "attention_head_size": 8,
    "feed_forward_size": 40,
    "attn_layers": ["local", "lsh", "local", "lsh"],
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "axial_pos_shape": [16, 8],
    "axial_pos_embds_dim": [8, 16],
    "max_position_embeddings": 128,
    "num_hashes": 2,
    "hash_seed": 5,
    "hidden_dropout_prob": 0.0,
    "lsh_attention_probs_dropout_prob": 0.0,
    "local_attention_probs_dropout_prob": 0.0,
}


def randomise(model, std=0.2):
    """Biases and LayerNorms too, which a new model has at 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if name.endswith("layer_norm.weight") else 0.0, std, generator=generator)
    return model.eval()


@pytest.fixture
def small():
    return dict(SMALL)


@pytest.fixture
def make_model():
    def make(name="Model", **fields):
        fields.setdefault("is_decoder", name == "ModelWithLMHead")
        model_class = getattr(longspan, f"Reformer{name}")
        return randomise(model_class(longspan.ReformerConfig(**SMALL | fields)))

    return make


@pytest.fixture
def ids():
    return torch.randint(1, 60, (3, 45), generator=torch.Generator().manual_seed(1))
