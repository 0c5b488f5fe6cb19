"""A small Bi-BloSAN with weights that matter, and texts with padding on either side."""

import pytest
import torch

import longspan

SMALL = {
    "block_length": 4,
    "vocab_size": 100,
    "embedding_size": 12,
    "hidden_size": 10,
    "hidden_dropout_prob": 0.0,
}


def randomise(model):
    """Biases too, which a new model has at 0, and the rows of padding and of the unknown word."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return model.eval()


@pytest.fixture
def make_model():
    def make(name="Model", **fields):
        model_class = getattr(longspan, f"BiBloSan{name}")
        return randomise(model_class(longspan.BiBloSanConfig(**SMALL | fields)))

    return make


@pytest.fixture
def batch():
    """Three texts of 19 tokens: whole, padded on the right, padded on the left; first texts are 6 tokens long."""
    torch.manual_seed(1)
    ids = torch.randint(3, 100, (3, 19))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    mask[2, :9] = 0
    types = torch.zeros_like(ids)
    types[:2, 6:] = 1
    types[2, 15:] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
