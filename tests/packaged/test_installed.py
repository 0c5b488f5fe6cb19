"""Run against an installed longspan, away from its sources: what a user gets from pip."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

import longspan
from longspan.info import summary
from longspan.ops import banded_attention
from longspan.registry import ARCHITECTURES

SMALL = {
    "longformer": dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
    ),
    "reformer": dict(
        hidden_size=32, attn_layers=["local", "lsh"], num_attention_heads=2, attention_head_size=16,
        feed_forward_size=64, lsh_attn_chunk_length=8, axial_pos_embds_dim=[8, 24], vocab_size=50,
    ),
    "biblosan": dict(hidden_size=16, embedding_size=24, block_length=5, vocab_size=50),
    "adaptive_span": dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_span=64, vocab_size=50
    ),
    "universal_transformer": dict(
        hidden_size=32, num_recurrent_steps=2, num_attention_heads=2, intermediate_size=64, vocab_size=50,
        recurrence="act", is_encoder_decoder=False,
    ),
}  # fmt: skip


def test_it_is_the_installed_package():
    assert "site-packages" in longspan.__file__


def test_info():
    report = summary()
    assert longspan.__version__ in report and "banded_attention" in report


def test_an_operator():
    query = torch.randn(1, 2, 100, 16)
    assert torch.isfinite(banded_attention(query, query, query, window=(4, 4))).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_every_architecture_saves_and_loads(architecture, tmp_path):
    assert architecture.name in SMALL, f"add a small configuration of {architecture.name}"
    config = architecture.config_class(**SMALL[architecture.name])
    model = architecture.model_classes[0](config).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is type(model) and type(AutoConfig.from_pretrained(tmp_path)) is architecture.config_class
    ids = torch.randint(2, 50, (1, 40))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).last_hidden_state, model(ids).last_hidden_state)
