"""The configuration takes transformers' fields, and refuses nonsense when it is made."""

import json
import logging
from typing import Any

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from longspan import LongformerConfig


def test_defaults_are_those_of_transformers():
    ours, theirs = LongformerConfig(), transformers.LongformerConfig()
    for name, value in theirs.to_dict().items():
        if name not in ("model_type", "onnx_export", "transformers_version"):
            assert getattr(ours, name) == value, name


def test_windows_are_two_sided_and_halved_once():
    assert LongformerConfig(num_hidden_layers=2, attention_window=8).layer_windows == [(4, 4), (4, 4)]
    assert LongformerConfig(num_hidden_layers=2, attention_window=[2, 6]).layer_windows == [(1, 1), (3, 3)]
    causal = LongformerConfig(num_hidden_layers=2, attention_window=[3, 6], is_decoder=True)
    assert causal.layer_windows == [(3, 0), (6, 0)]


def test_dilations_per_layer_and_head():
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8}
    assert LongformerConfig(**sizes).layer_dilations == [1, 1]
    assert LongformerConfig(**sizes, attention_dilation=3).layer_dilations == [3, 3]
    assert LongformerConfig(**sizes, attention_dilation=[1, [1, 2, 2, 4]]).layer_dilations == [1, [1, 2, 2, 4]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_window": 7}, "attention_window must be even.*got 7; nearest: 8"),
        ({"attention_window": 0}, "attention_window must be positive"),
        ({"attention_window": [4, 4]}, "attention_window has 2 entries, num_hidden_layers = 12"),
        ({"attention_dilation": 0}, "attention_dilation must be at least 1"),
        ({"attention_dilation": [1, 2]}, "attention_dilation has 2 entries, num_hidden_layers = 12"),
        (
            {"attention_dilation": [[1, 2]] * 12},
            "attention_dilation has a layer of 2 entries, num_attention_heads = 12",
        ),
        ({"hidden_size": 100}, "hidden_size = 100 must be a multiple of num_attention_heads = 12"),
        ({"hidden_act": "glue"}, "hidden_act = 'glue'"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must lie in \[0, 1\)"),
        ({"pad_token_id": None}, "pad_token_id must be a number"),
        ({"pad_token_id": 30522}, "pad_token_id = 30522 must lie in .* vocab_size = 30522"),
        ({"max_position_embeddings": 2}, "max_position_embeddings = 2 leaves no position"),
        ({"max_global_tokens": 0}, "max_global_tokens must be at least 1"),
        ({"attention_widnow": 8}, "no field 'attention_widnow'; did you mean 'attention_window'?"),
    ],
)
def test_nonsense_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        LongformerConfig(**fields)


def test_types_are_checked():
    with pytest.raises(StrictDataclassFieldValidationError, match="attention_window"):
        LongformerConfig(attention_window="512")  # pyright: ignore[reportArgumentType]


def test_saving_checks_again(tmp_path):
    config = LongformerConfig(attention_window=8)
    config.attention_window = 9
    with pytest.raises(Exception, match="attention_window must be even"):
        config.save_pretrained(tmp_path)


def test_round_trip(tmp_path):
    fields: dict[str, Any] = {"num_labels": 5, "output_attentions": True}
    config = LongformerConfig(num_hidden_layers=2, attention_window=[4, 8], attention_dilation=[1, 2], **fields)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is LongformerConfig and loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_labels == 5 and loaded.output_attentions


def test_files_of_other_code_load_with_one_line_about_what_is_unused(tmp_path, caplog):
    file = transformers.LongformerConfig(attention_window=[64] * 12).to_dict()
    file |= {"attention_mode": "longformer", "ignore_attention_mask": False, "gradient_checkpointing": True}
    (tmp_path / "config.json").write_text(json.dumps(file))
    with caplog.at_level(logging.WARNING):
        config = LongformerConfig.from_pretrained(tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    for name in ("attention_mode", "ignore_attention_mask", "gradient_checkpointing", "onnx_export"):
        assert name in lines[0] and not hasattr(config, name)
    assert config.model_type == "longspan_longformer" and config.attention_window == [64] * 12


def test_overrides_of_a_file_are_checked_with_it(tmp_path):
    LongformerConfig(attention_window=[8] * 12).save_pretrained(tmp_path)
    config = LongformerConfig.from_pretrained(tmp_path, num_hidden_layers=2, attention_window=[4, 6])
    assert config.layer_windows == [(2, 2), (3, 3)]
    with pytest.raises(ValueError, match="12 entries, num_hidden_layers = 2"):
        LongformerConfig.from_pretrained(tmp_path, num_hidden_layers=2)
