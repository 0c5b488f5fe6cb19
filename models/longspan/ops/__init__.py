"""Attention operators: functions on tensors ``[B, H, T, D]``, each with a PyTorch reference on every device.

``longspan._C`` (built from ``csrc/``), where it is installed, adds faster kernels for the same operators. Absent, the
references run; broken, its import error is raised here.
"""

import os
from importlib import import_module
from importlib.util import find_spec

from longspan.ops.banded import banded_attention, banded_scores
from longspan.ops.block import block_attention
from longspan.ops.dense import dense_attention
from longspan.ops.dropout import seeded_dropout
from longspan.ops.gpus import look_at_gpus
from longspan.ops.hashing import lsh_buckets
from longspan.ops.lsh import bucket_attention, lsh_attention
from longspan.ops.lsh_decode import bucket_decode, lsh_decode
from longspan.ops.merge import merge
from longspan.ops.multidim import multidim_attention, multidim_weights, source2token_pooling
from longspan.ops.span import soft_mask, span_attention, span_reach

HAS_EXTENSION = find_spec("longspan._C") is not None and not os.environ.get("LONGSPAN_NO_EXT")
"""Whether the compiled kernels are in use. The environment variable LONGSPAN_NO_EXT turns them off."""

if HAS_EXTENSION:
    import_module("longspan._C")
    look_at_gpus()

__all__ = [
    "HAS_EXTENSION",
    "banded_attention",
    "banded_scores",
    "block_attention",
    "bucket_attention",
    "bucket_decode",
    "dense_attention",
    "lsh_attention",
    "lsh_buckets",
    "lsh_decode",
    "merge",
    "multidim_attention",
    "multidim_weights",
    "seeded_dropout",
    "soft_mask",
    "source2token_pooling",
    "span_attention",
    "span_reach",
]
