import random

import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizer,
)

from longspan import LongformerConfig, LongformerForQuestionAnswering, LongformerForSequenceClassification
from longspan.longformer.tokenization_longformer import to_longformer_tokenizer

POSITIONS = 48  # of every tiny model here
WORDS = "alpha beta gamma delta law governs state which the of agreement york café 法 naïve ##s ?"
PIECES = [
    "alpha",
    "beta",
    "Gamma",
    "DELTA",
    "laws",
    "law",
    "the",
    "of",
    "café",
    "cafe\u0301",
    "法",
    "律",
    "naïve",
    "🙂",
    "?",
]


@pytest.fixture(scope="session")
def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: index for index, word in enumerate([*special, *WORDS.split()])}
    return BertTokenizer(vocab=vocab, strip_accents=False, model_max_length=512)


@pytest.fixture(scope="session")
def long_tokenizer(tokenizer):
    return to_longformer_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def document():
    """Text of about so many tokens: accents, composed and not, ideographs, astral symbols, odd spaces."""

    def build(tokens, seed=0):
        draw = random.Random(seed)
        parts = [draw.choice(PIECES) + draw.choice([" ", " ", "\n\n", "\t", "\u00a0 "]) for _ in range(tokens)]
        return "  " + "".join(parts)

    return build


def _config(config_class, **fields):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    # a wide initialisation: else all positions of a random model score nearly the same
    return config_class(vocab_size=32, initializer_range=0.6, **{**sizes, **fields})


def _build(model_class, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():  # position rows and the head start at a small scale, biases at 0
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def _bert(model_class, **fields):
    return _build(model_class, _config(BertConfig, max_position_embeddings=POSITIONS, **fields))


def _longformer(model_class, **fields):
    config = _config(
        LongformerConfig,
        max_position_embeddings=POSITIONS + 1,
        attention_window=8,
        pad_token_id=0,
        sep_token_id=3,
        **fields,
    )
    return _build(model_class, config)


@pytest.fixture
def bert():
    return _bert(BertForQuestionAnswering)


@pytest.fixture(params=["bert", "longformer"])
def question_model(request):
    if request.param == "bert":
        return _bert(BertForQuestionAnswering)
    return _longformer(LongformerForQuestionAnswering)


@pytest.fixture(params=["bert", "longformer"])
def class_model(request):
    if request.param == "bert":
        return _bert(BertForSequenceClassification, num_labels=4)
    return _longformer(LongformerForSequenceClassification, num_labels=4)
