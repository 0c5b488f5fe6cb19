"""A few tokens at a time gives what all at once gives."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from longspan.layers.chunked import apply_chunked, head_cross_entropy, linear_cross_entropy, pieces

F64 = torch.float64


def test_pieces_cover_a_length():
    def spans(length, rows):
        return [(piece.start, piece.stop) for piece in pieces(length, rows)]

    assert spans(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert spans(6, 3) == [(0, 3), (3, 6)]
    assert spans(5, 0) == spans(5, 5) == spans(5, 9) == [(0, 5)]
    assert spans(0, 0) == spans(0, 4) == [(0, 0)]
    with pytest.raises(ValueError, match="rows must be the number of tokens to take at a time, or 0 for all, got -2"):
        spans(5, -2)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("length", [0, 1, 7, 12])
@pytest.mark.parametrize("rows", [0, 1, 4, 7, 50])
def test_apply_chunked(rows, length, grad):
    torch.manual_seed(0)
    layer, lengths = nn.Linear(3, 5).double(), []
    hidden = torch.randn(2, length, 3, dtype=F64, requires_grad=grad)

    def function(piece):
        lengths.append(piece.shape[1])
        return layer(piece)

    with torch.set_grad_enabled(grad):
        out = apply_chunked(function, hidden, rows)
    torch.testing.assert_close(out, layer(hidden))
    assert sum(lengths) == length and max(lengths) <= (rows or length)
    if grad:
        actual, expected = (torch.autograd.grad(x.sin().sum(), hidden)[0] for x in (out, layer(hidden)))
        torch.testing.assert_close(actual, expected)


def inputs(dtype=F64, vocab_size=9, size=4, shape=(2, 11)):
    torch.manual_seed(0)
    hidden = torch.randn(*shape, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab_size, size, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocab_size, dtype=dtype, requires_grad=True)
    labels = torch.randint(vocab_size, shape)
    labels[torch.rand(shape) < 0.3] = -100
    return hidden, weight, bias, labels


def plain(hidden, weight, bias, labels, num_items_in_batch=None):
    """transformers' loss, of labels that are shifted already."""
    logits = F.linear(hidden, weight, bias)
    wide = ForCausalLMLoss  # .float(): its own arithmetic would be too coarse for float64
    if logits.dtype != F64:
        return wide(logits, None, logits.shape[-1], num_items_in_batch, shift_labels=labels)
    reduction = "mean" if num_items_in_batch is None else "sum"
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction) / (num_items_in_batch or 1)


class Plain(nn.Module):
    """A head that is not nn.Linear."""

    def __init__(self, weight, bias):
        super().__init__()
        self.call = lambda x: F.linear(x, weight, bias)

    def forward(self, x):
        return self.call(x)


def through_head(hidden, weight, bias, labels, **options):
    return head_cross_entropy(Plain(weight, None), hidden, labels, bias=bias, **options)


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
@pytest.mark.parametrize("items", [None, 5, torch.tensor(30)])
@pytest.mark.parametrize("rows", [0, 1, 4, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients(loss, rows, items, with_bias):
    hidden, weight, bias, labels = inputs()
    bias = bias if with_bias else None
    wanted = [x for x in (hidden, weight, bias) if x is not None]
    actual = loss(hidden, weight, bias, labels, rows=rows, num_items_in_batch=items)
    expected = plain(hidden, weight, bias, labels, items)
    assert actual.dim() == 0
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual * 3, wanted), torch.autograd.grad(expected * 3, wanted), strict=True):
        torch.testing.assert_close(a, e)


def test_gradcheck():
    hidden, weight, bias, labels = inputs(shape=(5,))
    function = lambda *x: linear_cross_entropy(*x, labels, rows=2)  # noqa: E731
    assert torch.autograd.gradcheck(function, [hidden, weight, bias])


def test_only_what_wants_a_gradient_gets_one():
    hidden, weight, bias, labels = inputs()
    weight.requires_grad_(False)
    linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert weight.grad is None and hidden.grad is not None and bias.grad is not None
    hidden, weight, bias, labels = inputs()
    linear_cross_entropy(hidden.detach(), weight, None, labels).backward()
    assert weight.grad is not None


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
def test_bfloat16_has_float32_statistics(loss):
    hidden, weight, bias, labels = inputs(torch.bfloat16, vocab_size=600, size=32, shape=(64,))
    actual = loss(hidden, weight, bias, labels, rows=10)
    expected = plain(hidden, weight, bias, labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)  # bfloat16 sums: 4e-3
    exact = torch.autograd.grad(
        plain(*(x.double() for x in (hidden, weight, bias)), labels), (hidden, weight, bias), retain_graph=True
    )
    for a, e in zip(torch.autograd.grad(actual, (hidden, weight, bias)), exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - e).abs().max() < 0.02 * e.abs().max()


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
def test_autocast(loss):
    hidden, weight, bias, labels = inputs(torch.float32, vocab_size=60, size=32)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = loss(hidden, weight, bias, labels, rows=3), plain(hidden, weight, bias, labels)
    assert actual.dtype == torch.float32 and actual != plain(hidden, weight, bias, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=0)  # bfloat16 sums: 4e-3
    grads = (torch.autograd.grad(x, (hidden, weight, bias)) for x in (actual, expected))
    for a, e in zip(*grads, strict=True):
        assert a.dtype == torch.float32 and (a - e).abs().max() < 0.02 * e.abs().max()


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
def test_nothing_to_predict(loss):
    hidden, weight, bias, labels = inputs()
    labels.fill_(-100)
    assert loss(hidden, weight, bias, labels).isnan() and plain(hidden, weight, bias, labels).isnan()
    total = loss(hidden, weight, bias, labels, num_items_in_batch=4)
    assert total == 0
    grads = torch.autograd.grad(total, (hidden, weight, bias), allow_unused=True)
    assert all(grad is None or not grad.any() for grad in grads)


def test_another_label_to_ignore():
    hidden, weight, bias, labels = inputs()
    changed = labels.masked_fill(labels == -100, 3)
    actual = linear_cross_entropy(hidden, weight, bias, changed, ignore_index=3)
    expected = F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, 1), changed.flatten(), ignore_index=3)
    torch.testing.assert_close(actual, expected)


def test_a_head_is_called_unless_it_is_linear():
    hidden, _, bias, labels = inputs(torch.float32)
    head = nn.Linear(4, 9)
    plainly = head_cross_entropy(head, hidden, labels, bias=bias)
    torch.testing.assert_close(plainly, plain(hidden, head.weight, head.bias + bias, labels))
    calls = []
    head.register_forward_hook(lambda module, args, out: calls.append(len(out)) or out * 2)
    hooked = head_cross_entropy(head, hidden, labels, rows=4)
    torch.testing.assert_close(hooked, plain(hidden, head.weight * 2, head.bias * 2, labels))
    assert max(calls) == 4 and sum(calls) == (labels != -100).sum()
    dropping = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 9))
    torch.manual_seed(0)
    loss = head_cross_entropy(dropping, hidden, labels)
    torch.manual_seed(0)
    expected = plain(dropping(hidden[labels != -100]), torch.eye(9), None, labels[labels != -100])
    torch.testing.assert_close(torch.autograd.grad(loss, hidden), torch.autograd.grad(expected, hidden))


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
def test_compilation(loss):
    hidden, weight, bias, labels = inputs()
    whole = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        torch.autograd.grad(whole(hidden, weight, bias, labels, rows=4), weight),
        torch.autograd.grad(loss(hidden, weight, bias, labels), weight),
    )


@pytest.mark.parametrize("loss", [linear_cross_entropy, through_head])
def test_errors_say_what_is_wrong(loss):
    hidden, weight, bias, labels = inputs()
    with pytest.raises(ValueError, match=r"labels must be \[2, 11\] for hidden \[2, 11, 4\], got \[2, 10\]"):
        loss(hidden, weight, bias, labels[:, 1:])
    labels[0, 0], labels[1, 1] = 9, -1
    with pytest.raises(ValueError, match=r"labels must be words, 0 to 8, or -100 \(ignored\); got -1 to 9"):
        loss(hidden, weight, bias, labels)
    with pytest.raises(ValueError, match="got -3"):
        loss(hidden, weight, bias, labels.clamp(0, 8), rows=-3)
    with pytest.raises(ValueError, match=r"weight must be \[words, 4\] for hidden \[2, 11, 4\], got \[9, 3\]"):
        linear_cross_entropy(hidden, weight[:, :3], bias, labels)


MEMORY = """
import torch
from longspan.layers.chunked import linear_cross_entropy
from longspan.training.memory import PeakMemory

torch.set_num_threads(1)
hidden = torch.randn(20_000, 8, requires_grad=True)
weight = torch.randn(4_000, 8, requires_grad=True)
labels = torch.randint(4_000, (20_000,))
linear_cross_entropy(hidden[:10], weight, None, labels[:10]).backward()
with PeakMemory() as memory:
    linear_cross_entropy(hidden, weight, None, labels, rows=ROWS).backward()
print(memory.mib)
"""


@pytest.mark.parametrize("rows", [0, 500])
def test_logits_never_exist_all_at_once(rows):
    """They would take 305 MiB."""
    program = MEMORY.replace("ROWS", str(rows))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "None":
        pytest.skip("this system does not tell a process its peak memory")
    assert float(done.stdout) < 80
