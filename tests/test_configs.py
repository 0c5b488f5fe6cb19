"""Every published size in ``configs/``: it loads, has its number of parameters, and survives a round trip."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from longspan.registry import ARCHITECTURES

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*/*.json"))
SEPARABLE_TINY = 3 * 128 + 5 * 512  # what separable convolutions have beside dense layers: a filter for each channel
SEPARABLE_BASE = 3 * 1024 + 5 * 4096
# A layer of the encoder and one of the decoder, which has attention and a norm more.
LAYERS_BASE = 3 * (4 * 1024**2) + 5 * 2 * 1024 + 2 * (2 * 1024 * 4096 + 4096 + 1024 + SEPARABLE_BASE)
PARAMETERS = {  # of the backbone, pooler included
    "adaptive_span/all-attention-enwik8": 113_912_608,
    "adaptive_span/all-attention-enwik8-small": 38_396_560,
    "adaptive_span/all-attention-wiki103": 132_224_472,
    "adaptive_span/enwik8": 38_433_376,
    "adaptive_span/enwik8-large": 208_752_576,
    "adaptive_span/enwik8-small": 6_427_936,
    "adaptive_span/text8": 38_342_752,
    "adaptive_span/text8-large": 208_616_640,
    "biblosan/disan-600d": 30_000 * 300 + 1_624_200,
    "biblosan/sick": 30_000 * 300 + 3_427_200,
    "biblosan/simplified-squad": 30_000 * 100 + 382_400,
    "biblosan/snli-480d": 30_000 * 300 + 2_223_360,
    "biblosan/snli-600d": 30_000 * 300 + 3_427_200,
    "biblosan/sst": 30_000 * 300 + 3_427_200,
    "biblosan/trec": 30_000 * 300 + 3_427_200,
    "longformer/base-4096": 148_659_456,
    "longformer/large-4096": 434_600_960,
    "reformer/crime-and-punishment": 2_584_064,
    "reformer/enwik8": 148_654_080,
    # Rows of words, and of tensor2tensor's 32 target spaces; then encoder and decoder.
    "universal_transformer/tiny": 32_800 * 128 + 463_872,
    "universal_transformer/adaptive-tiny": 32_800 * 128 + 463_106,
    "universal_transformer/adaptive-sepconv-tiny": 32_800 * 128 + 463_106 + 2 * SEPARABLE_TINY,
    "universal_transformer/adaptive-concat-tiny": 32_800 * 128 + 463_106 + 2 * (4 * 128 + 4 * 128 * 128),
    "universal_transformer/teeny": 32_800 * 128 + 267_008,
    "universal_transformer/adaptive-teeny": 32_800 * 128 + 267_778,
    "universal_transformer/small": 32_800 * 512 + 7_358_464,
    "universal_transformer/adaptive-small": 32_800 * 512 + 7_365_634,
    "universal_transformer/tall": 32_800 * 512 + 7_358_464 + 2 * 10 * 512,
    "universal_transformer/adaptive-tall": 32_800 * 512 + 7_365_634 + 2 * 12 * 512,
    "universal_transformer/base": 32_800 * 1024 + 29_396_992,
    "universal_transformer/adaptive-base": 32_800 * 1024 + 29_411_330,
    "universal_transformer/adaptive-global-base": 32_800 * 1024 + 29_411_330,
    "universal_transformer/sepconv-base": 32_800 * 1024 + 29_396_992 + 2 * SEPARABLE_BASE,
    # Four layers in each stack, no table of steps, a norm behind the stack, a halting unit.
    "universal_transformer/adaptive-multilayer": 32_800 * 1024 + 4 * LAYERS_BASE + 2 * (2 * 1024 + 1025),
    "universal_transformer/big": 32_800 * 2048 + 117_514_240,
    "universal_transformer/adaptive-big": 32_800 * 2048 + 117_542_914,
    "universal_transformer/babi": 192 * 128 + 197_760 + 256 + 8 * 128 + 129,
    "universal_transformer/algorithmic": 13 * 128 + 463_872,
}


def test_all_sizes_are_listed():
    assert {str(file.relative_to(CONFIGS).with_suffix("")) for file in FILES} == set(PARAMETERS)
    assert {file.parent.name for file in FILES} <= {architecture.name for architecture in ARCHITECTURES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_size(file, tmp_path):
    config = AutoConfig.from_pretrained(file)
    (architecture,) = [entry for entry in ARCHITECTURES if entry.name == file.parent.name]
    assert type(config) is architecture.config_class
    with torch.device("meta"):
        model = architecture.model_classes[0](config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS[f"{file.parent.name}/{file.stem}"]
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    given = json.loads(file.read_text())
    assert given.items() <= written.items()
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()
