"""The configuration: presets, round trips, and values that make no sense."""

import pytest
from transformers import AutoConfig

from longspan import UniversalTransformerConfig


def test_presets():
    original = UniversalTransformerConfig.tensor2tensor(recurrence="act", recurrence_options={"epsilon": 0.05})
    assert original.recurrence_options == {"skip_padding": False, "epsilon": 0.05}
    assert (original.label_smoothing, original.num_target_spaces, original.norm_position) == (0.1, 32, "pre")
    assert UniversalTransformerConfig.tensor2tensor().recurrence == "basic"
    saving = UniversalTransformerConfig.efficient(hidden_size=64, recurrence_options={"epsilon": 0.05})
    assert saving.recurrence == "act" and saving.hidden_size == 64
    assert saving.recurrence_options == {
        "halted_state": "copy", "halted_kv": "reuse", "mix": "sum", "force_halt_at_max": True, "skip_padding": True,
        "packed": True, "epsilon": 0.05,
    }  # fmt: skip


def test_round_trip(tmp_path):
    config = UniversalTransformerConfig.efficient(window=7, conv_kernels=(5, 7), position_offset="random")
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is UniversalTransformerConfig and again.to_diff_dict() == config.to_diff_dict()
    assert again.recurrence_options == config.recurrence_options and again.conv_kernels == [5, 7]


def test_transformers_names():
    config = UniversalTransformerConfig(num_hidden_layers=3)
    assert config.num_recurrent_steps == config.num_hidden_layers == 3
    assert UniversalTransformerConfig(is_encoder_decoder=False, is_decoder=True).text_token == "last"
    assert UniversalTransformerConfig(is_encoder_decoder=False).text_token == "first"
    assert UniversalTransformerConfig(text_reading="mean").text_token == "mean"


def test_options_are_not_shared():
    options = {"epsilon": 0.05}
    first = UniversalTransformerConfig(recurrence="act", recurrence_options=options)
    assert first.recurrence_options is not None
    first.recurrence_options["mix"] = "sum"
    assert options == {"epsilon": 0.05} and UniversalTransformerConfig().recurrence_options == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 7}, "num_attention_heads = 7 must divide hidden_size = 512"),
        ({"num_recurrent_steps": 0}, "num_recurrent_steps must be at least 1, got 0"),
        ({"num_coda_layers": -1}, "num_coda_layers must not be negative"),
        ({"hidden_act": "rely"}, "hidden_act = 'rely' is none of"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\)"),
        ({"conv_kernels": [3]}, "conv_kernels must be two positive numbers"),
        ({"window": -1}, "window must be a number of tokens to each side"),
        ({"is_decoder": True}, "is_encoder_decoder must be False"),
        ({"pad_token_id": 40000}, "pad_token_id = 40000 must be None or lie in"),
        ({"num_target_spaces": 4, "target_space_id": 4}, r"target_space_id = 4 must lie in \[0, num_target_spaces\)"),
        ({"max_position_offset": 9}, "is for position_offset = 'random', got None"),
        ({"position_offset": "random", "max_position_offset": 0}, "max_position_offset must be at least 1"),
        ({"position_offset": "step", "position_signal": "none"}, "needs a position_signal"),
        ({"recurrence": "rnn"}, "recurrence must be one of basic, act, highway, skip, gru, lstm, dwa, got 'rnn'"),
        ({"recurrence": "act", "recurrence_options": {"epsilom": 1}}, "has no option 'epsilom'; did you mean"),
        ({"recurrence_options": {"mix": "sum"}}, "recurrence = 'basic' has no option 'mix'"),
        ({"recurrence": "gru"}, "counts steps by itself: step_signal must be 'none', got 'learned'"),
        ({"recurrence": "lstm", "step_signal": "none", "num_inner_layers": 2}, "num_inner_layers must be 1, got 2"),
        ({"recurence": "act"}, "no field 'recurence'; did you mean 'recurrence'"),
        ({"transition": "conv"}, "transition"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_named(fields, message):
    with pytest.raises(Exception, match=message) as caught:
        UniversalTransformerConfig(**fields)
    assert isinstance(caught.value, ValueError | TypeError) or "Strict" in type(caught.value).__name__
