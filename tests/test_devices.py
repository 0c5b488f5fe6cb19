"""The models on a GPU: every class trains and generates there, and computes what it computes on the CPU.

The GPU is the one of ``pretend_cuda``. What that cannot show: whether torch has a CUDA kernel for a dtype, rounding,
memory, and our own kernels, which have their tests in ``tests/cuda``.
"""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import longspan
from longspan.base import check_range, token_mask
from longspan.layers.decisions import Decisions, SeededDropout
from longspan.layers.multihead_attention import MultiheadAttention
from longspan.layers.reversible import reversible
from longspan.registry import ARCHITECTURES

from .pretend_cuda import CUDA, pretend_cuda

WORDS, LABELS, LENGTH = 60, 3, 13
COMMON: dict[str, Any] = {"vocab_size": WORDS, "hidden_size": 32, "num_attention_heads": 4, "num_labels": LABELS}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
SAVING = {"halted_state": "copy", "halted_kv": "reuse", "mix": "sum", "force_halt_at_max": True, "halting_bias": -1.0}
PACKED = {"recurrence": "act", "recurrence_options": SAVING | {"packed": True}}
DEFAULTS: dict[str, dict[str, Any]] = {
    "longformer": COMMON | DROPOUT | {
        "num_hidden_layers": 1, "intermediate_size": 40, "max_position_embeddings": 64, "attention_window": 4,
    },
    "reformer": COMMON | {
        "num_hidden_layers": 2, "attention_head_size": 8, "feed_forward_size": 40, "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_hashes": 2, "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [12, 20], "hidden_dropout_prob": 0.1, "lsh_attention_probs_dropout_prob": 0.1,
        "local_attention_probs_dropout_prob": 0.1,
    },
    "biblosan": {
        "vocab_size": WORDS, "num_labels": LABELS, "num_hidden_layers": 1, "hidden_size": 12, "embedding_size": 24,
        "block_length": 3, "hidden_dropout_prob": 0.1,
    },
    "adaptive_span": COMMON | {
        "num_hidden_layers": 2, "intermediate_size": 40, "max_span": 200, "span_ramp": 3, "block_size": 8,
        "span_loss_weight": 1e-3, "relu_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1,
    },
    "universal_transformer": COMMON | DROPOUT | {
        "num_recurrent_steps": 3, "intermediate_size": 40, "activation_dropout_prob": 0.1,
    },
}  # fmt: skip
# What else there is of an architecture, tried on its first language model, or on its first class.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "longformer": {"causal": {"is_decoder": True, "attention_dilation": [[1, 2, 1, 3]]}},
    "reformer": {
        "original": {"lsh_semantics": "original", "num_buckets": [2, 4]},
        "strict": {"lsh_semantics": "strict", "hash_seed": 3, "chunk_size_feed_forward": 5},
    },
    "biblosan": {"one-block": {"attention": "full", "block_length": None}},
    "adaptive_span": {
        "dynamic": {"span_mode": "dynamic"},
        "all-attention": {"persistent_memory_size": 4, "span_epsilon": 1e-8},
        "clusters": {"adaptive_io_cutoffs": [10, 30], "chunk_size_lm_head": 5},
    },
    "universal_transformer": {
        "act": {"recurrence": "act"},
        "act-packed": PACKED,
        "highway": {"recurrence": "highway"},
        "gru": {"recurrence": "gru", "step_signal": "none"},
        "dwa": {"recurrence": "dwa", "step_signal": "learned"},
        "window": {"window": 3},
    },
}
CAUSAL = ("LMHead", "CausalLM")
LANGUAGE_MODELS = (*CAUSAL, "MaskedLM", "ConditionalGeneration")


def fields_of(architecture: str, name: str) -> dict[str, Any]:
    fields = dict(DEFAULTS[architecture])
    if architecture in ("reformer", "universal_transformer"):
        fields["is_decoder"] = name.endswith(CAUSAL)
    if architecture == "adaptive_span":
        fields["is_decoder"] = not name.endswith("MaskedLM")
    if architecture == "universal_transformer":
        fields["is_encoder_decoder"] = name.endswith("ConditionalGeneration")
    return fields


def language_model(architecture: Any) -> type:
    models = architecture.model_classes
    return next((model for model in models[1:] if model.__name__.endswith(LANGUAGE_MODELS)), models[1])


CASES = [
    pytest.param(model, fields_of(architecture.name, model.__name__), id=model.__name__)
    for architecture in ARCHITECTURES
    for model in architecture.model_classes
]
OTHERS = [
    pytest.param(model, fields_of(architecture.name, model.__name__) | fields, id=f"{model.__name__}-{name}")
    for architecture in ARCHITECTURES
    for model in [language_model(architecture)]
    for name, fields in VARIANTS[architecture.name].items()
]
SOME = [case for case in CASES if case.values[0] in [*map(language_model, ARCHITECTURES)]] + OTHERS  # type: ignore
OTHER_OPERATORS = [case for case in SOME if not str(case.id).endswith(("-act", "-highway", "-gru", "-dwa"))]


def make(model_class: Any, fields: dict[str, Any]) -> Any:
    """A model with weights that matter, and heads whose spans differ."""
    model = model_class(model_class.config_class(**fields))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("span_fraction"):
            parameter.data.copy_(torch.linspace(0, 0.9, parameter.numel()))
        elif "norm" not in name.lower():
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def batch_for(name: str) -> dict[str, Tensor]:
    """Two texts, the first with padding, and labels of the head's task."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    shape = (2, 3, LENGTH) if name.endswith(("MultipleChoice", "SentenceSelection")) else (2, LENGTH)
    batch = {"input_ids": 3 + draw(WORDS - 3, *shape), "attention_mask": torch.ones(shape, dtype=torch.int64)}
    batch["attention_mask"][0, ..., -4:] = 0
    if name.endswith("SentenceSelection"):
        batch["question_input_ids"] = 3 + draw(WORDS - 3, 2, 5)
    if "SentencePair" in name:
        batch["token_type_ids"] = (torch.arange(LENGTH) > 5).long().expand(shape)
    if name.endswith(LANGUAGE_MODELS):
        labels = batch["input_ids"].clone()
        labels[:, -5:] = -100
        return batch | {"labels": labels}
    if name.endswith("QuestionAnswering"):
        return batch | {"start_positions": draw(LENGTH, 2), "end_positions": draw(LENGTH, 2)}
    if name.endswith("Regression"):
        return batch | {"labels": torch.tensor([1.5, 2.0])}
    if name.endswith(("Classification", "MultipleChoice", "SentenceSelection")):
        return batch | {"labels": draw(LABELS, *shape) if "Token" in name else draw(LABELS, 2)}
    return batch


def loss_of(outputs: Any) -> Tensor:
    """A loss to differentiate; of a backbone, one that reads all it returns."""
    if outputs.get("loss") is not None:
        return outputs.loss
    return sum(x.float().square().mean() for x in outputs.values() if isinstance(x, Tensor))  # type: ignore


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for part in values for tensor in tensors_in(part)]


def train_once(model: Any, batch: dict[str, Any], gpu: Any = None, dtype: Any = None) -> tuple[Any, list[str]]:
    """One step but for the update, on a GPU if one is given. Returns the outputs, and the waits of the backward."""
    torch.manual_seed(1)
    if gpu is not None:
        gpu.seed()
    with torch.autocast("cpu" if gpu is None else "cuda", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        outputs = model(**batch)
        loss = loss_of(outputs)
    before = 0 if gpu is None else len(gpu.waits)
    loss.backward()
    return outputs, [] if gpu is None else gpu.waits[before:]


def assert_on_gpu(model: Any, outputs: Any) -> None:
    assert all(x.device == CUDA for x in tensors_in(outputs))
    assert all(p.grad is None or p.grad.device == CUDA for p in model.parameters())


def assert_same(model: Any, outputs: Any, twin: Any, expected: Any, rtol: float = 1e-4) -> None:
    """Outputs and gradients of a model on the GPU are those of its twin on the CPU."""
    options = dict(rtol=rtol, atol=rtol * 0.1)
    for here, there in zip(tensors_in(expected), tensors_in(outputs), strict=True):
        torch.testing.assert_close(there.cpu(), here, **options)
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if q.grad is not None:
            torch.testing.assert_close(p.grad.cpu(), q.grad, **options, msg=lambda text, name=name: f"{name}: {text}")


# Where a forward pass looks at what the GPU holds, and why; a backward pass never does.
WAITS = {
    "transfers.bounds": "ids and positions out of range would end the process: errors first",
    "base.token_mask": "whether anything is padding, and zeros and ones alone",
    "heads_biblosan.relatedness_loss": "scores out of range",
    "arrangement.needed": "whether padding stands in the middle",
    "global_tokens.collect_global_tokens": "how many tokens are global",
    "segments.__init__": "the longest of the texts in a row",
    "lsh_self_attention._rows_by_buckets": "numbers of buckets follow the lengths of the texts",
    "encoder_adaptive_span.host_reaches": "how far heads look",
    "adaptive_softmax.loss": "which tokens are of which cluster",
    "adaptive_softmax._check": "labels out of range",
    "chunked._counted": "which tokens count",
    "step_tokens.more": "whether all tokens have halted",
    "packed_rows.of": "which tokens have not",
    "packed_rows.__init__": "how many of each text have not",
}


@pytest.mark.parametrize(("model_class", "fields"), CASES + OTHERS)
def test_trains_as_on_the_cpu(model_class, fields):
    """Dropout too: all is drawn from the GPU's generator, in the same order."""
    twin, batch = make(model_class, fields), batch_for(model_class.__name__)
    expected, _ = train_once(twin, batch)
    with pretend_cuda() as gpu:
        model = gpu.put(make(model_class, fields))
        outputs, waits = train_once(model, gpu.put(batch), gpu)
        assert_on_gpu(model, outputs)
        assert_same(model, outputs, twin, expected)
    assert not waits, "the backward pass waits"
    strange = {wait for wait in gpu.waits if wait.split(":")[0] not in WAITS}
    assert not strange, "waits for the GPU: use longspan.ops.transfers, or give the reason in WAITS"


@pytest.mark.parametrize(("model_class", "fields"), OTHER_OPERATORS)
def test_trains_where_no_kernels_were_built(model_class, fields):
    """The operators' references on a GPU, forward and backward."""
    twin, batch = make(model_class, fields), batch_for(model_class.__name__)
    expected, _ = train_once(twin, batch)
    with pretend_cuda(references=True) as gpu:
        model = gpu.put(make(model_class, fields))
        outputs, _ = train_once(model, gpu.put(batch), gpu)
        assert_on_gpu(model, outputs)
        assert_same(model, outputs, twin, expected, rtol=1e-3)


@pytest.mark.parametrize(("model_class", "fields"), SOME)
def test_trains_under_autocast(model_class, fields):
    """float16, which has the smaller range. LayerNorms, softmax and losses are float32 on CUDA, unlike on the CPU."""
    with pretend_cuda() as gpu:
        model = gpu.put(make(model_class, fields))
        outputs, _ = train_once(model, gpu.put(batch_for(model_class.__name__)), gpu, torch.float16)
        assert_on_gpu(model, outputs)
        assert loss_of(outputs).dtype == torch.float32
        for x in [*tensors_in(outputs), *(p.grad for p in model.parameters() if p.grad is not None)]:
            assert x.isfinite().all() or (x == -torch.inf).any()  # scores of what cannot be chosen


GENERATING = [
    pytest.param(
        model, fields_of(architecture.name, model.__name__) | fields, beams, id=f"{model.__name__}-{name}-{beams}"
    )
    for architecture in ARCHITECTURES
    for model in architecture.model_classes
    if model.can_generate()
    for name, fields in ({"default": {}} | VARIANTS[architecture.name]).items()
    if name not in ("highway", "dwa")  # which keep what the default keeps
    for beams in ([1, 3] if name == "default" else [1])
]


@pytest.mark.parametrize(("model_class", "fields", "num_beams"), GENERATING)
def test_generates_as_on_the_cpu(model_class, fields, num_beams):
    """Past the chunks and into the windows, from prompts of two lengths; beams move rows of the cache."""
    fields = fields | SPECIAL | ({"decoder_start_token_id": 0} if fields.get("is_encoder_decoder") else {})
    batch = {name: batch_for("CausalLM")[name] for name in ("input_ids", "attention_mask")}
    if not fields.get("is_encoder_decoder"):
        batch = {name: x.flip(1) for name, x in batch.items()}  # padding on the left
    options = dict(max_new_tokens=5, min_new_tokens=5, num_beams=num_beams, do_sample=False)
    expected = make(model_class, fields).eval().generate(**batch, **options)
    with pretend_cuda() as gpu:
        model = gpu.put(make(model_class, fields).eval())
        assert torch.equal(model.generate(**gpu.put(batch), **options).cpu(), expected)


@pytest.mark.parametrize("persistent", [0, 4])
def test_streams_of_text_stay_on_the_gpu(persistent):
    """Memories of earlier blocks; heads whose spans differ project their keys apart."""
    fields = fields_of("adaptive_span", "CausalLM") | {"persistent_memory_size": persistent, "span_trim_multiple": 8}
    model, twin = (make(longspan.AdaptiveSpanForCausalLM, fields) for _ in range(2))
    ids = torch.arange(3, 51).view(2, 24)

    def read(model: Any, ids: Tensor) -> Any:
        mems = outputs = None
        for block in ids.split(8, 1):
            outputs = model(input_ids=block, next_ids=block, mems=mems, use_mems=True)
            mems = outputs.mems
        assert outputs is not None
        outputs.loss.backward()
        return outputs

    torch.manual_seed(1)
    expected = read(twin, ids)
    with pretend_cuda() as gpu:
        torch.manual_seed(1)
        gpu.seed()
        outputs = read(gpu.put(model), gpu.put(ids))
        assert_on_gpu(model, outputs)
        assert_same(model, outputs, twin, expected)
        assert {wait.split(":")[0] for wait in gpu.waits} <= {"transfers.bounds", "encoder_adaptive_span.host_reaches"}


@pytest.mark.parametrize(("model_class", "fields"), SOME)
def test_backward_may_run_in_another_thread(model_class, fields):
    """As it does on a GPU: what a layer remembers for its backward pass must not belong to the thread."""
    model, twin = (make(model_class, fields) for _ in range(2))
    batch = batch_for(model_class.__name__)
    expected, _ = train_once(twin, batch, dtype=torch.bfloat16)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch)
    thread = threading.Thread(target=outputs.loss.backward)
    thread.start()
    thread.join()
    assert_same(model, outputs, twin, expected)


def test_gradient_checkpointing_computes_again_on_the_gpu():
    fields = fields_of("longformer", "MaskedLM")
    model, twin = (make(longspan.LongformerForMaskedLM, fields).train() for _ in range(2))
    for each in (model, twin):
        each.activation_checkpointing_enable({"use_reentrant": False})
    batch = batch_for("MaskedLM")
    expected, _ = train_once(twin, batch)
    with pretend_cuda() as gpu:
        outputs, waits = train_once(gpu.put(model), gpu.put(batch), gpu)
        assert_on_gpu(model, outputs)
    assert not waits
    assert expected.loss.isfinite()


class Drawing(nn.Module):
    """A reversible block with dropout of its own and, as an adapter brings one, dropout that knows of nothing."""

    def __init__(self, foreign: float):
        super().__init__()
        self.mix, self.own, self.foreign = nn.Linear(8, 8), SeededDropout(0.3), nn.Dropout(foreign)

    def attention(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        return self.own(self.mix(self.foreign(hidden)), decisions)

    def feed_forward(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        return self.foreign(self.mix(hidden).tanh())


@pytest.mark.parametrize("foreign", [0.0, 0.3], ids=["own", "foreign"])
def test_reversible_layers_draw_the_same_twice(foreign):
    """Both generators: what other modules draw on the GPU is drawn again from there."""
    hidden = torch.linspace(-1, 1, 2 * 7 * 8).view(2, 7, 8)
    torch.manual_seed(0)
    blocks = nn.ModuleList(Drawing(foreign) for _ in range(2))
    twin = copy.deepcopy(blocks)
    torch.manual_seed(1)
    reversible(twin, hidden, keep_activations=True)[1].square().sum().backward()
    with pretend_cuda() as gpu:
        torch.manual_seed(1)
        gpu.seed()
        reversible(gpu.put(blocks), gpu.put(hidden))[1].square().sum().backward()
        for p, q in zip(blocks.parameters(), twin.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad.cpu(), q.grad, rtol=1e-4, atol=1e-5)


def test_masked_attention_keeps_away_from_cudnn(monkeypatch):
    enabled, attention = [], F.scaled_dot_product_attention

    def record(*args, **kwargs):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    layer = MultiheadAttention(8, 2)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with pretend_cuda() as gpu:
        x, mask = gpu.put(x), gpu.put(mask)
        layer.core(x, x, x, mask, None)
        layer.core(x, x, x, None, None)
    assert enabled == [False, True]


def test_checks_wait_once():
    with pretend_cuda() as gpu:
        ids = gpu.put(torch.arange(12).view(2, 6))
        check_range("input_ids", ids, 12, "vocab_size")
        assert len(gpu.waits) == 1
        assert token_mask(torch.ones_like(ids)) is None
        assert len(gpu.waits) == 2
        with pytest.raises(ValueError, match="got 11"):
            check_range("input_ids", ids, 11, "vocab_size")
        with pytest.raises(ValueError, match="0 to 11"):
            token_mask(ids)
