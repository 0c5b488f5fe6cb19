"""transformers' common model tests on every architecture of the registry, all heads.

A further architecture adds its ``SmallModel`` to ``SMALL_MODELS``, or several where no one configuration fits all its
heads. Each of transformers' tests shows as a subtest.
"""

import unittest
from typing import ClassVar

import pytest
import torch

from longspan.registry import ARCHITECTURES


class SmallModel:
    """What transformers' tests ask of a model: a small configuration, inputs, and the sizes of both."""

    values: ClassVar[dict]  # of the configuration
    heads: ClassVar[tuple[str, ...] | None] = None  # ends of the names of the classes that it fits; None: all
    key_length: int  # columns of the attention weights
    not_applicable: ClassVar[dict[str, str]] = {}  # test of transformers -> why it does not apply here
    batch_size, seq_length, num_labels, num_choices = 13, 7, 3, 4
    is_training = True
    least_tests = 60  # of transformers' that must have run

    def __init__(self, config_class):
        self.config_class = config_class
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
            setattr(self, name, self.values[name])

    @staticmethod
    def with_defaults(config_class):
        """The configuration class, or one of it that can be made without any arguments."""
        return config_class

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


class SmallReformer(SmallModel):
    values: ClassVar = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "attention_head_size": 8,
        "feed_forward_size": 37,
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_hashes": 2,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [12, 20],
        "hash_seed": 1,
    }
    heads: ClassVar = ("ReformerModel", *(f"For{task}" for task in (
        "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
    )))  # fmt: skip
    key_length = SmallModel.seq_length  # attention weights are shown for all pairs
    not_applicable: ClassVar = SmallLongformer.not_applicable | dict.fromkeys(
        (
            "test_gradient_checkpointing_enable_disable",
            "test_training_gradient_checkpointing",
            "test_training_gradient_checkpointing_use_reentrant_false",
            "test_training_gradient_checkpointing_use_reentrant_true",
        ),
        "reversible layers compute activations again by themselves: no layer is checkpointed",
    )


class SmallCausalReformer(SmallReformer):
    values: ClassVar = SmallReformer.values | {"is_decoder": True}
    heads: ClassVar = ("ReformerModel", "WithLMHead")


class SmallBiBloSan(SmallModel):
    values: ClassVar = {
        "vocab_size": 99,
        "block_length": 3,
        "embedding_size": 24,
        "hidden_size": 12,
        "num_hidden_layers": 2,
    }
    heads: ClassVar = ("BiBloSanModel", *(f"BiBloSanFor{task}" for task in (
        "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
    )))  # fmt: skip
    hidden_size = 24  # of what comes out: both directions
    num_attention_heads = 24  # every feature has weights of its own
    key_length = SmallModel.seq_length
    not_applicable: ClassVar = SmallLongformer.not_applicable

    def __init__(self, config_class):
        self.config_class = config_class
        self.num_hidden_layers, self.vocab_size = self.values["num_hidden_layers"], self.values["vocab_size"]

    @staticmethod
    def with_defaults(config_class):
        class WithBlockLength(config_class):
            block_length: int | None = 5

        return WithBlockLength


class SmallSentencePairs(SmallBiBloSan):
    heads: ClassVar = ("SentencePairClassification", "SentencePairRegression")

    def inputs(self, shape):
        types = torch.zeros(shape, dtype=torch.long)
        types[..., 3:] = 1
        # transformers' tests know no labels for these heads
        return super().inputs(shape) | {"token_type_ids": types, "labels": torch.ones(shape[0], dtype=torch.long)}


class SmallAdaptiveSpan(SmallModel):
    values: ClassVar = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_span": 16,
        "span_ramp": 3,
        "span_init": 0.1,
        "block_size": 8,
    }
    heads: ClassVar = ("SpanModel", *(f"SpanFor{task}" for task in (
        "CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
    )))  # fmt: skip
    key_length = SmallModel.seq_length
    not_applicable: ClassVar = SmallLongformer.not_applicable


class SmallSpanEncoder(SmallAdaptiveSpan):
    values: ClassVar = SmallAdaptiveSpan.values | {"is_decoder": False}
    heads: ClassVar = ("SpanModel", *(f"SpanFor{task}" for task in (
        "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
    )))  # fmt: skip


class SmallUniversalTransformer(SmallModel):
    values: ClassVar = {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_recurrent_steps": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "is_encoder_decoder": False,
    }
    heads: ClassVar = ("TransformerModel", *(f"For{task}" for task in (
        "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
    )))  # fmt: skip
    key_length = SmallModel.seq_length
    encoder_seq_length = decoder_seq_length = SmallModel.seq_length
    num_hidden_layers = 2  # transformers' name for steps

    def __init__(self, config_class):
        self.config_class = config_class
        for name in ("hidden_size", "num_attention_heads", "vocab_size", "is_encoder_decoder"):
            setattr(self, name, self.values[name])


class SmallTextEncoder(SmallUniversalTransformer):
    heads: ClassVar = ("EncoderModel",)
    is_training = False  # no head, no loss
    least_tests = 50


class SmallCausalUniversalTransformer(SmallUniversalTransformer):
    values: ClassVar = SmallUniversalTransformer.values | {"is_decoder": True}
    heads: ClassVar = ("TransformerModel", "CausalLM", "SequenceClassification")


class SmallSequenceToSequence(SmallUniversalTransformer):
    values: ClassVar = SmallUniversalTransformer.values | {"is_encoder_decoder": True}
    heads: ClassVar = ("TransformerModel", "ConditionalGeneration")

    def inputs(self, shape):
        targets = super().inputs(shape)
        return super().inputs(shape) | {f"decoder_{name}": value for name, value in targets.items()}


class SmallPondering(SmallUniversalTransformer):
    heads: ClassVar = ("TransformerModel", "ForTokenClassification")
    values: ClassVar = SmallUniversalTransformer.values | {
        "recurrence": "act",
        "recurrence_options": {"halted_state": "copy", "halted_kv": "reuse", "mix": "sum", "force_halt_at_max": True,
                               "halting_bias": -3.0, "packed": True},
    }  # fmt: skip


SMALL_MODELS = {
    "longformer": [SmallLongformer],
    "reformer": [SmallReformer, SmallCausalReformer],
    "biblosan": [SmallBiBloSan, SmallSentencePairs],
    "adaptive_span": [SmallAdaptiveSpan, SmallSpanEncoder],
    "universal_transformer": [
        SmallUniversalTransformer,
        SmallTextEncoder,
        SmallCausalUniversalTransformer,
        SmallSequenceToSequence,
        SmallPondering,
    ],
}
OTHER_INPUTS = {  # heads whose inputs transformers' tests cannot make: their own tests cover them
    "BiBloSanForSentenceSelection": "a document's sentences [B, S, T], and a question",
}
CASES = [
    pytest.param(architecture, small, id=small.__name__)
    for architecture in ARCHITECTURES
    for small in SMALL_MODELS.get(architecture.name, [])
]


def common_tests(architecture, small, upstream) -> type[unittest.TestCase]:
    """transformers' mixin over those classes of an architecture that a small model fits."""
    common = upstream("test_modeling_common")
    configuration = upstream("test_configuration_common")

    models = tuple(
        model for model in architecture.model_classes if small.heads is None or model.__name__.endswith(small.heads)
    )
    mixins = [common.ModelTesterMixin]
    if any(model.can_generate() for model in models):
        mixins.append(upstream("generation.test_utils").GenerationTesterMixin)

    class CommonTest(*mixins, unittest.TestCase):
        all_model_classes = models
        has_attentions = True
        is_encoder_decoder = small.values.get("is_encoder_decoder", False)
        test_can_init_all_missing_weights_before_2023 = True  # the year is not written in our files

        def setUp(self):
            self.model_tester = small(architecture.config_class)

        def test_config(self):
            config_class, values = architecture.config_class, self.model_tester.values
            config_class = small.with_defaults(config_class)
            configuration.ConfigTester(self, config_class=config_class, **values).run_common_tests()

    return CommonTest


def test_every_class_is_covered():
    for architecture in ARCHITECTURES:
        smalls = SMALL_MODELS.get(architecture.name, [])
        for model in architecture.model_classes:
            if model.__name__ in OTHER_INPUTS:
                continue
            fits = any(small.heads is None or model.__name__.endswith(small.heads) for small in smalls)
            assert fits, f"add a small model that fits {model.__name__} to SMALL_MODELS"


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "small"), CASES)
def test_common_model_tests(architecture, small, upstream, registered_names, subtests):
    cases = common_tests(architecture, small, upstream)
    names = unittest.TestLoader().getTestCaseNames(cases)
    assert small.not_applicable.keys() <= set(names)
    passed = 0
    for name in names:
        if name in small.not_applicable:
            continue
        with subtests.test(msg=name):
            result = unittest.TestResult()
            cases(name).run(result)
            problems = [text for _, text in result.failures + result.errors]
            assert not problems, "\n".join(problems)
            passed += not result.skipped
    assert passed > small.least_tests, f"only {passed} of {len(names)} tests ran"
