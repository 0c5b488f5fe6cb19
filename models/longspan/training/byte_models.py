"""Byte-level language models to train: small ones for minutes on two cores, and the published recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ByteModel:
    """How to train one architecture on bytes. Options are named as those of ``scripts/train_lm.py``.

    Args:
        shape: configuration of the small model.
        small: its recipe.
        full: the published recipe; ``config`` is a file below ``configs/``.
        full_shape: what is changed in that file, for a vocabulary of all bytes.
    """

    shape: dict[str, Any]
    small: dict[str, Any]
    full: dict[str, Any]
    full_shape: dict[str, Any] = field(default_factory=dict)


BYTE_MODELS = {
    "adaptive_span": ByteModel(
        shape={
            "vocab_size": 258,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "hidden_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "intermediate_size": 768,
            "max_span": 1024,
            "span_loss_weight": 2e-6,  # as published for this maximum
            "relu_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        small={  # Adam: the published recipe's warm-up alone is longer than this run
            "steps": 2000,
            "window": 256,
            "batch_size": 8,
            "rate": 2e-3,
            "span_rate": 2e-2,
            "measure_every": 500,
        },
        full={
            "corpus": "mixed",
            "config": "adaptive_span/enwik8.json",
            "steps": 600_000,
            "window": 512,
            "batch_size": 64,
            "rate": 0.07,
            "warmup": 32_000,
            "schedule": "constant",
            "optimizer": "adagrad",
            "clip": 0.03,
            "measure_every": 5000,
            "save_every": 1000,
        },
        full_shape={"vocab_size": 258, "pad_token_id": 0, "eos_token_id": 1},
    ),
    "reformer": ByteModel(
        shape={
            "vocab_size": 258,
            "eos_token_id": 1,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "attention_head_size": 64,
            "attn_layers": ["local", "lsh"],
            "feed_forward_size": 1024,
            "local_attn_chunk_length": 64,
            "lsh_attn_chunk_length": 64,
            "num_hashes": 2,
            "axial_pos_shape": [32, 64],
            "axial_pos_embds_dim": [64, 192],
            "axial_norm_std": 0.02,  # as small as the words' embeddings, else positions drown them for a long time
            "max_position_embeddings": 2048,
            "is_decoder": True,
            "hidden_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
        },
        small={},
        full={
            "corpus": "mixed",
            "config": "reformer/enwik8.json",
            "steps": 100_000,
            "window": 65536,
            "batch_size": 1,
            "accumulate": 8,
            "rate": 1e-3,
            "warmup": 2000,
            "schedule": "inverse_sqrt",
            "measure_every": 1000,
            "save_every": 500,
        },
    ),
}
