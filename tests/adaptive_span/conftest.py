"""Small models with weights and spans that matter, and texts with padding on either side."""

import pytest
import torch

import longspan

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_span": 24,
    "span_ramp": 4,
    "span_loss_weight": 1e-3,
    "relu_dropout": 0.0,
    "attention_dropout": 0.0,
}


def randomise(model):
    """Spans from 0 to 0.9 of the maximum, dynamic ones that differ from token to token, and large weights."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("span_fraction"):
            parameter.data.uniform_(0, 0.9, generator=generator)
        else:
            parameter.data.normal_(0, 0.3, generator=generator)
    return model.eval()


@pytest.fixture
def make_model():
    def make(name="Model", **fields):
        model_class = getattr(longspan, f"AdaptiveSpan{name}")
        return randomise(model_class(longspan.AdaptiveSpanConfig(**SMALL | fields)))

    return make


@pytest.fixture
def batch():
    """Three texts of 19 tokens: whole, padded on the right, padded on the left."""
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (3, 19))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    mask[2, :9] = 0
    return {"input_ids": ids, "attention_mask": mask}
