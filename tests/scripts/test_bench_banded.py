"""The half of the benchmark that wants a GPU, rehearsed on the CPU with small sizes."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def bench(script, monkeypatch):
    module = script("bench_banded")
    for name, value in dict(GPU="cpu", HEADS=2, LENGTH=256, WINDOW=32).items():
        monkeypatch.setattr(module, name, value)
    product_rate = module.product_rate
    monkeypatch.setattr(module, "product_rate", lambda dtype: product_rate(dtype, 16))
    monkeypatch.setattr(module, "has_kernel", lambda operator, key: key == "CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "no GPU at all")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    options = ["--device", module.GPU, "--rounds", "1", "--quick", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["bench_banded.py", *options])
    return module


def flash_attn_func(query, key, value, *, window_size):
    """As the package's: ``[B, T, H, D]``, 16 bits, the last dimension contiguous."""
    assert query.shape[1:3] == (256, 2) and query.stride(3) == 1 and query.dtype != torch.float32
    offset = torch.arange(256) - torch.arange(256)[:, None]
    seen = (offset >= -window_size[0]) & (offset <= window_size[1])
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2)


def rows_of(shown: str, title: str) -> list[str]:
    """The contenders in the table of that title."""
    lines = shown.split(f"\n{title}")[1].splitlines()[2:]
    return [line[2:28].strip() for line in lines[: lines.index("")] if not line.startswith("  left out")]


def test_all_tables(bench, monkeypatch, capsys):
    """A peer that does not run here is left out and named."""

    def no_triton(*inputs, **options):
        raise NotImplementedError("no Triton here\nand more")

    flash = types.ModuleType("flash_attn")
    flash.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", flash)
    monkeypatch.setattr(bench, "flex_attention", no_triton)
    growth = bench.growth_on_gpu
    monkeypatch.setattr(bench, "growth_on_gpu", lambda lengths: growth([64, 128]))
    bench.main()
    shown = capsys.readouterr().out
    peers = ["longspan", "blocked bmm", "transformers' chunks", "dense SDPA, masked"]
    for dtype in ("float16", "bfloat16", "float32"):
        wanted = peers if dtype == "float32" else [*peers, "FlashAttention's window"]
        for title in ("forward", "forward + backward"):
            assert rows_of(shown, f"{title}, torch.{dtype}, head size 64") == wanted
    assert "left out: FlexAttention, compiled: NotImplementedError: no Triton here\n" in shown
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["64", "128"]


def test_only_what_agrees_is_timed(bench, capsys):
    ours, other = torch.ones(3), torch.full((3,), torch.nan)
    calls = {
        "longspan": lambda: [ours, ours],
        "NaN in the second": lambda: [ours, other],
        "equal": lambda: [ours, ours],
    }
    assert list(bench.agreeing(calls, 1e-3)) == ["longspan", "equal"]
    assert "left out: NaN in the second" in capsys.readouterr().out
    del calls["equal"]
    with pytest.raises(SystemExit, match="agrees with nobody"):
        bench.agreeing(calls, 1e-3)
    with pytest.raises(ZeroDivisionError):
        bench.agreeing(calls | {"longspan": lambda: [ours / (1 // 0)]}, 1e-3)


def test_what_is_missing_is_named(bench, monkeypatch):
    monkeypatch.setattr(bench, "has_kernel", lambda operator, key: key != "CUDA")
    with pytest.raises(SystemExit, match="CUDA kernels are not installed"):
        bench.main()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        bench.main()
