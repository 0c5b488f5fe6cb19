"""transformers' common model tests on every architecture of the registry, all heads.

A further architecture adds its ``SmallModel`` to ``SMALL_MODELS``. Each of transformers' tests shows as a subtest.
"""

import unittest
from typing import ClassVar

import pytest
import torch

from longspan.registry import ARCHITECTURES


class SmallModel:
    """What transformers' tests ask of a model: a small configuration, inputs, and the sizes of both."""

    values: ClassVar[dict]  # of the configuration
    key_length: int  # columns of the attention weights
    not_applicable: ClassVar[dict[str, str]] = {}  # test of transformers -> why it does not apply here
    batch_size, seq_length, num_labels, num_choices = 13, 7, 3, 4
    is_training = True

    def __init__(self, config_class):
        self.config_class = config_class
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            setattr(self, name, self.values[name])

    def get_config(self):
        return self.config_class(**self.values)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), self.inputs((self.batch_size, self.seq_length))

    def inputs(self, shape):
        input_ids = torch.randint(3, self.values["vocab_size"], shape)  # neither padding nor a separator
        attention_mask = torch.ones(shape, dtype=torch.long)
        attention_mask[:, -1] = 0
        return {"input_ids": input_ids, "attention_mask": attention_mask}


class SmallLongformer(SmallModel):
    values: ClassVar = {
        "vocab_size": 99,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 64,
        "attention_window": 4,
    }
    key_length = 1 + 4 + 1  # one global token, the window, the token itself
    not_applicable: ClassVar = {
        "test_retain_grad_hidden_states_attentions": "attention weights are computed beside attention, for inspection; "
        "the output does not flow through them",
    }

    def inputs(self, shape):
        global_attention_mask = torch.zeros(shape, dtype=torch.long)
        global_attention_mask[:, 1] = 1
        return super().inputs(shape) | {"global_attention_mask": global_attention_mask}


SMALL_MODELS = {"longformer": SmallLongformer}


def common_tests(architecture, upstream) -> type[unittest.TestCase]:
    """transformers' mixin over one architecture."""
    common = upstream("test_modeling_common")
    configuration = upstream("test_configuration_common")

    class CommonTest(common.ModelTesterMixin, unittest.TestCase):
        all_model_classes = architecture.model_classes
        has_attentions = True
        test_can_init_all_missing_weights_before_2023 = True  # the year is not written in our files

        def setUp(self):
            self.model_tester = SMALL_MODELS[architecture.name](architecture.config_class)

        def test_config(self):
            config_class, values = architecture.config_class, self.model_tester.values
            configuration.ConfigTester(self, config_class=config_class, **values).run_common_tests()

    return CommonTest


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_common_model_tests(architecture, upstream, registered_names, subtests):
    assert architecture.name in SMALL_MODELS, f"add a small model of {architecture.name} to SMALL_MODELS"
    cases = common_tests(architecture, upstream)
    names = unittest.TestLoader().getTestCaseNames(cases)
    not_applicable = SMALL_MODELS[architecture.name].not_applicable
    assert not_applicable.keys() <= set(names)
    passed = 0
    for name in names:
        if name in not_applicable:
            continue
        with subtests.test(msg=name):
            result = unittest.TestResult()
            cases(name).run(result)
            problems = [text for _, text in result.failures + result.errors]
            assert not problems, "\n".join(problems)
            passed += not result.skipped
    assert passed > 60, f"only {passed} of {len(names)} tests ran"
