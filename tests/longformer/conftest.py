"""A small Longformer with weights that matter, and inputs that have everything in them."""

import pytest
import torch

import longspan

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "attention_window": [8, 16],
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def randomise(model):
    """Biases and LayerNorms too, which a new model has at 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.15, generator=generator)
    return model.eval()


@pytest.fixture
def small():
    return dict(SMALL)


@pytest.fixture
def make_model():
    def make(name="Model", **fields):
        model_class = getattr(longspan, f"Longformer{name}")
        return randomise(model_class(longspan.LongformerConfig(**SMALL | fields)))

    return make


@pytest.fixture
def batch():
    """Three texts of 50 tokens: whole, padded on the right, padded on the left; 5, 0 and 2 global tokens."""
    torch.manual_seed(1)
    ids = torch.randint(3, 100, (3, 50))
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    mask[2, :7] = 0
    is_global = torch.zeros_like(ids)
    is_global[0, :5] = 1
    is_global[2, [9, 30]] = 1
    is_global[2, 3] = 1  # padding: global is nothing to it
    ids[:, [15, 16, 38]] = 2
    ids = ids.where(mask.bool(), 1)
    return {"input_ids": ids, "attention_mask": mask, "global_attention_mask": is_global}
