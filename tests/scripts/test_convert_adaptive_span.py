"""From a file as released, and the text it was trained on, to a folder that writes text."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM
from longspan.adaptive_span.conversion import to_original


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.txt").write_text("97 98 \n 99")
    config = AdaptiveSpanConfig(
        vocab_size=4, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8, max_span=16
    )
    model = AdaptiveSpanForCausalLM(config).eval()
    torch.save({"iter_no": 1, "model": to_original(model.state_dict(), config)}, tmp_path / "small.pt")
    return model, tmp_path


def test_folder_is_complete(script, files, capsys):
    model, path = files
    script("convert_adaptive_span").main(
        [str(path / "small.pt"), str(path / "out"), "--train-file", str(path / "train.txt"), "--ramp", "5"]
    )
    shown = capsys.readouterr().out
    assert f"{model.num_parameters():,} parameters" in shown and "mean 5, longest 5 tokens" in shown
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(path / "out"), AutoTokenizer.from_pretrained(path / "out")
    assert loaded.config.span_ramp == 5
    ids = tokenizer("ab\nc", return_tensors="pt").input_ids
    assert ids.tolist() == [[0, 1, 2, 3]]
    model.config.span_ramp = 5
    for layer in model.model.layers:
        layer.self_attn.ramp = 5
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_another_training_file(script, files, capsys):
    _, path = files
    (path / "other.txt").write_text("97 98 99")
    with pytest.raises(SystemExit):
        script("convert_adaptive_span").main(
            [str(path / "small.pt"), str(path / "out"), "--train-file", str(path / "other.txt"), "--without-line-ends"]
        )
    assert "has 3 symbols, the model 4" in capsys.readouterr().err
    assert not (path / "out").exists()
