"""Reformer's configuration: values that make no sense together fail when it is made, naming the field."""

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from longspan import ReformerConfig


def test_defaults_are_transformers():
    import transformers

    ours, theirs = ReformerConfig().to_dict(), transformers.ReformerConfig().to_dict()
    different = {name for name in theirs if name in ours and _plain(ours[name]) != _plain(theirs[name])}
    assert different <= {"model_type", "transformers_version", "axial_norm_std"}
    assert set(theirs) <= set(ours)
    of_file = ReformerConfig.from_dict({"model_type": "reformer"})
    assert of_file.axial_norm_std == theirs["axial_norm_std"] == 1.0
    assert of_file.lsh_semantics == "original"


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


BAD = {
    "unknown name": (dict(num_hash=2), "did you mean 'num_hashes'"),
    "axes that do not fit": (dict(axial_pos_shape=[64]), "1 axes"),
    "widths that do not sum up": (dict(axial_pos_embds_dim=[64, 64]), "must sum to hidden_size = 256, got 128"),
    "an empty axis": (dict(axial_pos_shape=[64, 0]), "positive"),
    "odd buckets": (dict(num_buckets=5), "even"),
    "an odd factor": (dict(num_buckets=[4, 3]), "even"),
    "no factor": (dict(num_buckets=[]), "even"),
    "no round": (dict(num_hashes=0), "num_hashes must be at least 1"),
    "an unknown layer": (dict(attn_layers=["lsh", "full"]), "'full'"),
    "no layer": (dict(attn_layers=[]), "attn_layers"),
    "two numbers of layers": (dict(num_hidden_layers=3), "num_hidden_layers = 3, but attn_layers has 6"),
    "strict and bidirectional": (dict(lsh_semantics="strict"), "is_decoder"),
    "strict with look-ahead": (dict(lsh_semantics="strict", is_decoder=True, lsh_num_chunks_after=1), "must be 0"),
    "no chunk": (dict(lsh_attn_chunk_length=0), "lsh_attn_chunk_length"),
    "no chunk length for layers in use": (dict(lsh_attn_chunk_length=None), "lsh_attn_chunk_length"),
    "chunks backwards": (dict(local_num_chunks_before=-1), "local_num_chunks_before"),
    "an activation nobody knows": (dict(hidden_act="rely"), "hidden_act"),
    "certain dropout": (dict(hidden_dropout_prob=1.0), "hidden_dropout_prob"),
    "a padding token outside": (dict(pad_token_id=320), "pad_token_id"),
    "words cannot be tied": (dict(tie_word_embeddings=True), "tie_word_embeddings"),
    "negative chunk": (dict(chunk_size_lm_head=-1), "chunk_size_lm_head"),
    "a seed too large": (dict(hash_seed=2**63), "hash_seed"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_bad_values_name_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        ReformerConfig(**fields)


def test_semantics_have_names():
    with pytest.raises(StrictDataclassFieldValidationError):
        ReformerConfig(lsh_semantics="exact")


def test_integers_serve_as_floats():
    """transformers refuses 0 for a dropout."""
    config = ReformerConfig(
        lsh_attention_probs_dropout_prob=0,
        local_attention_probs_dropout_prob=0,
        hidden_dropout_prob=0,
        axial_norm_std=1,
        initializer_range=0,
        classifier_dropout=0,
    )
    assert config.options_of("lsh")["dropout"] == 0


def test_what_layers_not_in_use_would_be_is_nobodys_business():
    config = ReformerConfig(attn_layers=["local"], lsh_attn_chunk_length=None, lsh_num_chunks_before=None)
    assert config.padded_multiple == 64


def test_saved_and_read_again(tmp_path):
    config = ReformerConfig(num_buckets=(4, 8), lsh_semantics="strict", is_decoder=True, attn_layers=("lsh", "local"))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is ReformerConfig
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.num_buckets == [4, 8]
    assert again.num_hidden_layers == 2


def test_layers_other_than_the_files(tmp_path):
    ReformerConfig().save_pretrained(tmp_path)
    config = ReformerConfig.from_pretrained(tmp_path, attn_layers=["lsh", "local"])
    assert config.num_hidden_layers == 2
    config.attn_layers = ["lsh"]
    config.save_pretrained(tmp_path)
    assert ReformerConfig.from_pretrained(tmp_path).num_hidden_layers == 1


def test_the_longest_text():
    assert ReformerConfig(axial_pos_shape=[4, 5, 6], axial_pos_embds_dim=[100, 100, 56]).max_tokens == 120
    assert ReformerConfig(axial_pos_embds=False, max_position_embeddings=77).max_tokens == 77
