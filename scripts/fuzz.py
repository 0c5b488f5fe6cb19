"""Random banded-attention problems against the dense float64 definition, until the time is up or one fails.

    python scripts/fuzz.py [--seconds 120] [--seed 0]

Draws shapes, windows, dilations, masks, caches, dropout, dtypes, strides and instruction sets. A failing case is
printed as the call that makes it again.
"""

import argparse
import random
import time

import torch

from longspan.ops import HAS_EXTENSION, banded_attention
from longspan.ops.dropout import keep_mask
from longspan.testing import CPU_ISAS, limited_cpu_isa

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


def draw_case(rng: random.Random) -> dict:
    heads = rng.choice([1, 1, 2, 3, 4, 12])
    tokens = rng.choice([0, 1, 2, rng.randint(3, 60), rng.randint(60, 400)])

    def side(low: int) -> int | None:
        return rng.choice([low, 0, None, rng.randint(1, 8), rng.randint(8, 80), rng.randint(80, 500)])

    window = [(side(0), side(-1)) for _ in range(heads)]
    dilation = [rng.choice([1, 1, 2, 3, rng.randint(4, 50), 10**9]) for _ in range(heads)]
    if rng.random() < 0.4:
        window, dilation = window[:1] * heads, dilation[:1] * heads
    return dict(
        batch=rng.choice([0, 1, 1, 2, 3]),
        heads=heads,
        tokens=tokens,
        cached=rng.choice([0, 0, 1, rng.randint(2, 200)]),
        head_size=rng.choice([1, 3, 8, 16, 17, 32, 40, 64, 80, 96, 128, 256]),
        scale=rng.choice([None, None, 0.5, 0.0, -0.3]),
        window=window,
        dilation=dilation,
        masked=rng.choice([0.0, 0.1, 0.7, 1.0]),
        dropout_p=rng.choice([0.0, 0.0, 0.1, 0.6]),
        dtype=rng.choice(list(TOLERANCE)),
        layout=rng.choice(["BHTD", "BTHD", "BHDT"]),
        isa=rng.choice(CPU_ISAS),
        seed=rng.getrandbits(62),
    )


def tensors_of(case: dict) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(case["seed"])
    lengths = [case["tokens"]] + [case["tokens"] + case["cached"]] * 2
    inputs = []
    for length in [*lengths, case["tokens"]]:
        x = torch.randn(case["batch"], case["heads"], length, case["head_size"], generator=generator)
        if case["layout"] == "BTHD":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        elif case["layout"] == "BHDT":
            x = x.transpose(2, 3).contiguous().transpose(2, 3)
        inputs.append(x.to(case["dtype"]))
    mask = None
    if case["masked"]:
        mask = torch.rand(case["batch"], lengths[1], generator=generator) > case["masked"]
    return inputs[:3], inputs[3], mask


def definition(case: dict, inputs: list[torch.Tensor], mask: torch.Tensor | None):
    query, key, value = inputs
    T, S = query.shape[2], key.shape[2]
    offset = torch.arange(S) - (torch.arange(T) + S - T)[:, None]
    visible = torch.empty(case["heads"], T, S, dtype=torch.bool)
    for head, ((left, right), step) in enumerate(zip(case["window"], case["dilation"], strict=True)):
        steps = torch.div(offset, step, rounding_mode="floor")
        visible[head] = (offset % step == 0) & (steps >= -(S if left is None else left))
        visible[head] &= steps <= (S if right is None else right)
    visible = visible[None].expand(case["batch"], -1, -1, -1)
    if mask is not None:
        visible = visible & mask[:, None, None]
    scale = query.shape[3] ** -0.5 if case["scale"] is None else case["scale"]
    scores = (query @ key.mT * scale).masked_fill(~visible, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    if case["dropout_p"]:
        keep = keep_mask(
            torch.tensor(case["seed"]), case["dropout_p"], case["batch"], list(range(case["heads"])), torch.arange(T),
            torch.arange(S),
        )  # fmt: skip
        weights = weights * keep / (1 - case["dropout_p"])
    return weights @ value, scores.logsumexp(-1)


def worst_gap(case: dict) -> float:
    """Largest error of output and gradients, relative to the largest entry of each."""
    inputs, grad_out, mask = tensors_of(case)
    ours = [x.detach().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    out, lse = banded_attention(
        *ours, window=case["window"], dilation=case["dilation"], key_mask=mask, scale=case["scale"],
        dropout_p=case["dropout_p"], dropout_seed=case["seed"], return_lse=True,
    )  # fmt: skip
    wanted, wanted_lse = definition(case, theirs, mask)
    seen = wanted_lse != -torch.inf
    assert torch.equal(lse != -torch.inf, seen), case
    got = [out, lse[seen], *torch.autograd.grad(out, ours, grad_out)]
    right = [wanted, wanted_lse[seen], *torch.autograd.grad(wanted, theirs, grad_out.double())]
    gaps = [0.0]
    for a, b in zip(got, right, strict=True):
        if a.numel():
            b = b.nan_to_num(0.0)
            gaps.append(((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).nan_to_num(torch.inf).item())
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # uninitialised memory reads as NaN
    rng, end, count, worst = random.Random(options.seed), time.monotonic() + options.seconds, 0, {}
    while time.monotonic() < end:
        case = draw_case(rng)
        if HAS_EXTENSION:
            with limited_cpu_isa(case["isa"]):
                gap = worst_gap(case)
        else:
            gap = worst_gap(case)
        count += 1
        worst[case["dtype"]] = max(worst.get(case["dtype"], 0.0), gap)
        if gap > TOLERANCE[case["dtype"]]:
            raise SystemExit(f"case {count} is off by {gap:.1e}:\n  worst_gap({case!r})")
    print(f"{count} cases agree; largest relative errors: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


if __name__ == "__main__":
    main()
