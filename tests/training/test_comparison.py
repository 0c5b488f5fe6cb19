import argparse

import pytest

from longspan.training.comparison import (
    KINDS,
    Setting,
    accuracy_table,
    add_setting_options,
    chosen_setting,
    comparison_config,
)
from longspan.training.sequence_accuracy import Accuracy
from longspan.universal_transformer import UniversalTransformerModel


def test_models_of_one_width_and_depth():
    setting = Setting(hidden=16, heads=2, depth=3)
    models = {kind: UniversalTransformerModel(comparison_config(kind, setting, vocab_size=10)) for kind in KINDS}
    assert all(model.config.hidden_size == 16 and model.config.intermediate_size == 64 for model in models.values())
    sizes = {kind: sum(parameter.numel() for parameter in model.parameters()) for kind, model in models.items()}
    assert sizes["UT"] < sizes["UT + ACT"] < 1.1 * sizes["UT"] < 2 * sizes["UT"] < sizes["Transformer"]
    plain = models["Transformer"].config
    assert (plain.num_inner_layers, plain.num_recurrent_steps, plain.step_signal) == (3, 1, "none")
    act = models["UT + ACT"].config
    assert (act.recurrence, act.num_recurrent_steps) == ("act", 6)
    assert act.recurrence_options == {"mix": "sum", "force_halt_at_max": True, "halting_bias": -1.0}
    more = comparison_config("UT + ACT", setting, act_options={"halting_bias": -3.0, "mix": "interpolate"})
    assert more.recurrence_options == {"mix": "interpolate", "force_halt_at_max": True, "halting_bias": -3.0}
    with pytest.raises(ValueError, match=r"kind must be one of UT, UT [+] ACT, Transformer, got 'LSTM'"):
        comparison_config("LSTM", setting)


def test_options_change_single_fields():
    small, large = Setting(), Setting(hidden=512, updates=9)

    def chosen(*arguments):
        parser = argparse.ArgumentParser()
        add_setting_options(parser, small, large)
        return chosen_setting(parser.parse_args(arguments), small, large)

    assert chosen() == small and chosen("--full") == large
    assert chosen("--full", "--hidden", "8", "--rate", "0.5") == Setting(hidden=8, updates=9, rate=0.5)


def test_table_with_and_without_the_papers_figures():
    found = {"UT": {"copy": Accuracy(0.9, 0.5)}, "UT + ACT": {"copy": Accuracy(1.0, 1.0)}}
    assert "0.90 / 0.50" in accuracy_table(found, ["copy"]) and "|" not in accuracy_table(found, ["copy"])
    lines = accuracy_table(found, ["copy"], {"UT": {"copy": (0.91, 0.35)}}).splitlines()
    assert lines[2].split() == ["UT", "0.90", "/", "0.50", "|", "0.91", "/", "0.35"]
    assert lines[3].endswith("1.00 / 1.00 | -")
