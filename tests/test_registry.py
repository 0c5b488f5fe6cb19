"""The registry is complete and consistent: everything public derives from it."""

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel

import longspan
from longspan.registry import ARCHITECTURES, register_auto_classes

REQUIRED = {"biblosan": {"block_length": 4}}  # fields without a default


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_architecture(architecture):
    config_class = architecture.config_class
    assert config_class.model_type == f"longspan_{architecture.name}"
    assert (Path(longspan.__file__).parent / architecture.name).is_dir()
    config = AutoConfig.for_model(config_class.model_type, **REQUIRED.get(architecture.name, {}))
    assert type(config) is config_class
    assert AutoModel._model_mapping[config_class] is architecture.model_classes[0]
    for name, model_class in architecture.auto_classes().items():
        assert model_class.config_class is config_class, name
        assert getattr(longspan, model_class.__name__) is model_class
        assert model_class.__name__ in longspan.__all__
    assert architecture.auto_classes().keys() >= {"AutoModel"}


def test_registering_twice_is_harmless():
    register_auto_classes()


def test_public_names_exist():
    for name in longspan.__all__:
        assert hasattr(longspan, name), name
