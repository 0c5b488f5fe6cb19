import pytest
import torch

from longspan import info
from longspan.ops import HAS_EXTENSION


def test_names_every_operator_and_what_it_runs_on():
    said = info.summary()
    for operator in ("banded_attention", "lsh_attention", "span_attention", "multidim_attention"):
        (line,) = [line for line in said.splitlines() if line.startswith(f"{operator} ")]
        assert line.split()[1] == "yes" and line.split()[2] == ("yes" if HAS_EXTENSION else "-")


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [
        ((7, 5), "too old"),
        ((8, 0), "kernels run here"),
        ((8, 9), "kernels run here"),
        ((9, 0), "kernels run here"),
        ((10, 0), "compiled by the driver"),
        ((12, 0), "compiled by the driver"),
    ],
)
def test_which_gpus_are_served(capability, wanted):
    """Machine code runs on newer GPUs of its generation; intermediate code on all newer ones."""
    said = info.serving(capability, [(8, 0), (9, 0)])
    assert wanted in said and ("driver" in said) == (wanted == "compiled by the driver")


def test_an_old_gpu_beside_a_new_one():
    """The kernels stay, for the new one."""
    assert "CUDA_VISIBLE_DEVICES" in info.serving((6, 1), [(8, 0)], here=[(6, 1), (8, 6)])
    assert "references" in info.serving((6, 1), [(8, 0)], here=[(6, 1), (7, 5)])


def test_nothing_compiled(monkeypatch):
    """On a CUDA torch it says what runs instead, and how to get the kernels."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(info, "cuda_architectures", lambda: [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    said = "\n".join(info.cuda_lines())
    assert "references" in said and "nvcc" in said and "GPU 0: H100, 9.0: the PyTorch references run here" in said
