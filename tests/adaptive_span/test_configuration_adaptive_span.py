"""The configuration: what it refuses, and that it tells the way out."""

import pytest
import transformers

from longspan import AdaptiveSpanConfig


def test_defaults_are_the_small_model_of_the_paper():
    config = AdaptiveSpanConfig()
    sizes = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)
    assert sizes == (12, 512, 8, 2048) and (config.max_span, config.span_ramp, config.span_loss_weight) == (
        8192,
        32,
        5e-7,
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_spam": 100}, "did you mean 'max_span'"),
        ({"max_span": 0}, "max_span must be at least 1, got 0"),
        ({"span_ramp": 0}, "span_ramp must be at least 1"),
        (
            {"hidden_size": 30, "num_attention_heads": 4},
            "hidden_size = 30 must be a multiple of num_attention_heads = 4",
        ),
        ({"span_init": 64, "max_span": 1024}, "span_init is a fraction of max_span .*say 0.0625"),
        ({"span_loss_weight": -1e-6}, "span_loss_weight must not be negative"),
        ({"attention_dropout": 1.0}, r"attention_dropout must lie in \[0, 1\), got 1.0"),
        ({"hidden_act": "rellu"}, "hidden_act = 'rellu'"),
        ({"pad_token_id": 205}, "pad_token_id = 205"),
        ({"span_renormalise": False, "span_epsilon": 1e-8}, "span_renormalise = False it must be 0"),
        ({"adaptive_io_cutoffs": [100, 50]}, r"adaptive_io_cutoffs = \[100, 50\].*must rise"),
        ({"adaptive_io_cutoffs": [100], "is_decoder": False}, "is_decoder must be True"),
        ({"persistent_memory_size": -1}, "persistent_memory_size must not be negative"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_what_makes_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveSpanConfig(**fields)


def test_named_values():
    for field in ("span_mode", "norm_position", "position_keys"):
        with pytest.raises(Exception, match=field):
            AdaptiveSpanConfig(**{field: "some other"})


def test_round_trip(tmp_path):
    config = AdaptiveSpanConfig(adaptive_io_cutoffs=(20, 100), span_mode="dynamic", max_span=77)
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is AdaptiveSpanConfig and again.to_diff_dict() == config.to_diff_dict()
    assert again.adaptive_io_cutoffs == [20, 100]


def test_the_rows_of_positions():
    assert AdaptiveSpanConfig(max_span=10).position_rows == 10
    encoder = AdaptiveSpanConfig(max_span=10, is_decoder=False)
    assert encoder.position_rows == 19 and not encoder.zero_cache
