"""Short models become long ones: same function inside the window, positions tiled, head and tokenizer kept."""

from pathlib import Path
from runpy import run_path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoTokenizer

import longspan
from longspan import convert_to_long

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "type_vocab_size": 2,
    "initializer_range": 0.2,
}
HEADS = [
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
]
FAMILIES = {"Bert": 20, "Roberta": 22, "XLMRoberta": 22, "Camembert": 22}  # rows of a position table for 20 tokens


def make_short(family, head, **fields):
    config = getattr(transformers, f"{family}Config")(**SIZES | {"max_position_embeddings": FAMILIES[family]} | fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{head}")(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)  # biases and LayerNorms too, which a new model has at 0 and 1
    return model


def inputs_for(head, length=20):
    torch.manual_seed(1)
    shape = (2, 3, length) if head == "ForMultipleChoice" else (3, length)
    mask = torch.ones(shape, dtype=torch.long)
    mask[..., -1, -4:] = 0
    ids = torch.randint(5, 60, shape).where(mask.bool(), 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def results(outputs):
    wanted = ("logits", "start_logits", "end_logits", "pooler_output")
    return {name: outputs[name] for name in wanted if name in outputs}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_windows_as_long_as_the_text_change_nothing(family, head):
    short = make_short(family, head)
    long = convert_to_long(short, 64, attention_window=40)
    assert type(long) is getattr(longspan, f"Longformer{head}")
    inputs = inputs_for(head)
    if family == "Bert":
        inputs["input_ids"] = inputs["input_ids"].where(inputs["attention_mask"].bool(), 0)
    nothing_global = torch.zeros_like(inputs["input_ids"])
    with torch.no_grad():
        expected = results(short(**inputs))
        actual = results(long(**inputs, global_attention_mask=nothing_global))
        everything_local = results(long(**inputs))  # globals by default: copies of the projections, so the same again
    assert expected and expected.keys() == actual.keys()
    seen = inputs["attention_mask"].bool()
    for name, tensor in expected.items():
        for other in (actual[name], everything_local[name]):
            if tensor.shape[:2] == seen.shape[:2] and head not in ("ForMultipleChoice", "ForSequenceClassification"):
                torch.testing.assert_close(other[seen], tensor[seen], atol=1e-5, rtol=1e-5)
            else:
                torch.testing.assert_close(other, tensor, atol=1e-5, rtol=1e-5)


def test_positions_are_tiled_and_reserved_rows_kept():
    short = make_short("Roberta", "Model")
    table = short.get_parameter("embeddings.position_embeddings.weight")
    long = convert_to_long(short, 50)
    grown = long.get_parameter("embeddings.position_embeddings.weight")
    assert grown.shape == (52, 24) and long.config.max_tokens == 50
    torch.testing.assert_close(grown[:22], table)
    torch.testing.assert_close(grown[22:42], table[2:])
    torch.testing.assert_close(grown[42:], table[2:12])


def test_bert_gets_the_reserved_row_that_it_lacks():
    short = make_short("Bert", "Model")
    table = short.get_parameter("embeddings.position_embeddings.weight")
    grown = convert_to_long(short, 50).get_parameter("embeddings.position_embeddings.weight")
    assert grown.shape == (51, 24)
    torch.testing.assert_close(grown[1:], torch.cat([table, table, table[:10]]))


def test_global_projections_are_copies_of_their_own():
    short = make_short("Roberta", "Model")
    attention = convert_to_long(short, 50).get_submodule("encoder.layer.1.attention.self")
    local, distant = attention.get_parameter("query.weight"), attention.get_parameter("query_global.weight")
    torch.testing.assert_close(distant, local)
    local.data.zero_()
    assert distant.abs().min() > 0
    assert short.get_parameter("encoder.layer.1.attention.self.query.weight").abs().min() > 0


def test_a_longformer_grows_too():
    short = convert_to_long(make_short("Roberta", "ForTokenClassification"), 30, attention_window=[4, 8])
    short.get_parameter("longformer.encoder.layer.0.attention.self.key_global.weight").data.normal_()
    long = convert_to_long(short, 64)
    assert long.config.attention_window == [4, 8] and long.config.max_tokens == 64
    inputs = inputs_for("ForTokenClassification")
    is_global = torch.zeros_like(inputs["input_ids"])
    is_global[:, :3] = 1
    with torch.no_grad():
        expected = short(**inputs, global_attention_mask=is_global).logits
        torch.testing.assert_close(long(**inputs, global_attention_mask=is_global).logits, expected)
        assert long(torch.full((1, 64), 7)).logits.shape == (1, 64, 2)


def test_another_head_keeps_the_encoder():
    short = make_short("Bert", "ForMaskedLM")
    long = convert_to_long(short, 50, model_class=longspan.LongformerForQuestionAnswering, hidden_dropout_prob=0.0)
    weight = "encoder.layer.0.output.dense.weight"
    torch.testing.assert_close(long.get_parameter(f"longformer.{weight}"), short.get_parameter(f"bert.{weight}"))
    assert long.config.hidden_dropout_prob == 0.0


def test_half_precision_stays_so():
    assert convert_to_long(make_short("Roberta", "Model").to(torch.bfloat16), 50).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "head", "fields", "options", "message"),
    [
        ("Bert", "ForNextSentencePrediction", {}, {}, "ForNextSentencePrediction has a head"),
        ("Bert", "ForPreTraining", {}, {}, "ForPreTraining has a head"),
        ("Roberta", "ForCausalLM", {"is_decoder": True}, {}, "decoder"),
        ("Bert", "Model", {"position_embedding_type": "relative_key"}, {}, "relative_key"),
        ("Bert", "Model", {"pad_token_id": None}, {}, "pad_token_id"),
        ("Bert", "Model", {}, {"max_length": 10}, "max_length = 10 is shorter than the 20 tokens"),
        ("Bert", "Model", {}, {"max_length": 0}, "max_length must be a positive number"),
        ("Bert", "Model", {}, {"attention_window": 7}, "attention_window must be even"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(family, head, fields, options, message):
    config = getattr(transformers, f"{family}Config")(**SIZES | {"max_position_embeddings": FAMILIES[family]} | fields)
    short = getattr(transformers, f"{family}{head}")(config)
    with pytest.raises(ValueError, match=message):
        convert_to_long(short, **{"max_length": 50} | options)


def test_other_architectures_are_refused_by_name():
    config = transformers.DistilBertConfig(vocab_size=60, dim=24, hidden_dim=32, n_layers=1, n_heads=4)
    with pytest.raises(ValueError, match=r"'distilbert'.*Convertible: roberta"):
        convert_to_long(transformers.DistilBertModel(config), 50)


def test_an_activation_that_the_head_cannot_have_is_refused():
    with pytest.raises(ValueError, match="hidden_act = 'relu'"):
        convert_to_long(make_short("Bert", "ForMaskedLM", hidden_act="relu"), 50)


def test_real_weights_reproduce_hidden_states(minilm, tmp_path):
    convert_to_long(minilm, 2048, attention_window=512, save_to=tmp_path)
    long, short = AutoModel.from_pretrained(tmp_path).eval(), AutoModel.from_pretrained(minilm).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(long) is longspan.LongformerModel and tokenizer.model_max_length == 2048
    words = "The licensee may, under the laws of Delaware, copy and distribute the software. "
    batch = tokenizer([words * 14, words * 4], padding=True, return_tensors="pt")
    assert 200 < batch["input_ids"].shape[1] <= 256
    with torch.no_grad():
        actual = long(**batch, output_hidden_states=True)
        batch.pop("global_attention_mask")
        expected = short(**batch, output_hidden_states=True)
    tokens = batch["attention_mask"].bool()
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours[tokens], theirs[tokens], atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    with torch.no_grad():  # and it takes what the short model cannot
        text = tokenizer(words * 130, truncation=True, return_tensors="pt")
        assert long(**text).last_hidden_state.shape == (1, 2048, 384)


def test_command_line(minilm, tmp_path, monkeypatch):
    script = str(Path(__file__).parents[1] / "scripts" / "convert_to_long.py")
    options = ["--max-length", "1000", "--attention-window", "64", "--head", "ForQuestionAnswering"]
    monkeypatch.setattr("sys.argv", [script, minilm, str(tmp_path), *options])
    run_path(script, run_name="__main__")
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(model) is longspan.LongformerForQuestionAnswering and model.config.max_tokens == 1000
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 1000
