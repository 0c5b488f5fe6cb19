"""Problems of attention with soft spans, and their results from the operator and from the definition."""

from typing import Any

import torch

from longspan.ops import span_attention

from .brute_force import largest, random_inputs
from .brute_force_span import every_pair

NAMES = ("out", "lse", "dq", "dk", "dv", "dspan", "dposition")
FORMS = {
    "causal": {},
    "zero-cache": dict(zero_cache=True),
    "both-sides": dict(bidirectional=True),
    "both-sides-signed": dict(bidirectional=True),
}
TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]


def case(
    shape, dtype=torch.float32, form="causal", dynamic=False, masked=False, positions="shared"
) -> tuple[Any, dict[str, Any], Any]:
    """Inputs (query, key, value, span, position_key or None), options, and gradients of out and lse."""
    B, H, T, S, D, max_span, ramp, spans = shape
    query, key, value = random_inputs(B, H, T, S, D, dtype)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    span = torch.tensor(spans, dtype=statistics)
    if dynamic:
        span = span[None, :, None] * (0.5 + torch.rand(B, H, T, dtype=statistics))
    rows = 2 * max_span - 1 if form == "both-sides-signed" else max_span
    tables = {"shared": 1, "per-head": H, "none": 0}[positions]
    position_key = torch.randn(tables, rows, D, dtype=torch.float64).to(dtype) if tables else None
    options = dict(max_span=max_span, ramp=ramp, **FORMS[form])
    if masked:
        options["key_mask"] = torch.rand(B, S) > 0.3
        options["key_mask"][:, S // 2 :] &= torch.rand(B, 1) > 0.5  # some rows lose half their keys in one piece
    grads = torch.randn(B, H, T, D, dtype=torch.float64), torch.randn(B, H, T, dtype=torch.float64)
    return (query, key, value, span, position_key), options, grads


def results(function, inputs, grads, options):
    """Output, lse and all gradients."""
    inputs = [x if x is None else x.detach().requires_grad_() for x in inputs]
    query, key, value, span, position_key = inputs
    out, lse = function(query, key, value, position_key, span, **options)
    loss = (out.double() * grads[0]).sum() + (lse.double() * grads[1]).masked_fill(lse == -torch.inf, 0).sum()
    wanted = [x for x in inputs if x is not None]
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    found = [torch.zeros_like(x) if grad is None else grad for x, grad in zip(wanted, found, strict=True)]
    return [out.detach(), lse.detach(), *found]


def ours(inputs, grads, options):
    return results(lambda *args, **kwargs: span_attention(*args, return_lse=True, **kwargs), inputs, grads, options)


def brute_force(inputs, grads, options):
    return results(every_pair, [x if x is None else x.double() for x in inputs], grads, options)


def assert_all_close(got, wanted, tolerance):
    for name, a, b in zip(NAMES, got, wanted, strict=False):
        assert a.shape == b.shape, name
        finite = b != -torch.inf
        assert torch.equal(a != -torch.inf, finite), name
        gap = largest((a.double() - b.double())[finite])
        assert gap <= tolerance * max(1.0, largest(b[finite])), f"{name}: off by {gap:.1e}"
