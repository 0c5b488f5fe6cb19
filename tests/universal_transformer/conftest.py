"""Small Universal Transformers with weights that matter, and texts padded on either side."""

import pytest
import torch

import longspan
from tests.universal_transformer.small_models import FORMS, SMALL, randomise


@pytest.fixture
def make_model():
    def make(name="Model", form="encoder", **fields):
        model_class = getattr(longspan, f"UniversalTransformer{name}")
        return randomise(model_class(longspan.UniversalTransformerConfig(**SMALL | FORMS[form] | fields)))

    return make


@pytest.fixture
def ids():
    return torch.randint(2, 50, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask(ids):
    """Padding on the left, on the right, none."""
    mask = torch.ones_like(ids)
    mask[0, :3], mask[1, 8:] = 0, 0
    return mask
