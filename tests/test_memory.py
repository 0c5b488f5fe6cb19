"""Peak memory of small models, each in a process of its own: linear in the length; reversible, whatever the depth."""

import subprocess
import sys

import pytest

from longspan.ops import HAS_EXTENSION

PROGRAM = """
import sys, torch, longspan
from longspan.training.memory import PeakMemory

length, training = int(sys.argv[1]), sys.argv[2] == "training"
torch.set_num_threads(1)
config = longspan.LongformerConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    attention_window=64, max_position_embeddings=70000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
model = longspan.LongformerForSequenceClassification(config)

def run(length):
    ids = torch.randint(3, 50, (1, length))
    mask = torch.ones_like(ids)
    mask[:, -5:] = 0
    if training:
        model.train()(ids, mask, labels=torch.tensor([1])).loss.backward()
        model.zero_grad(set_to_none=True)
    else:
        with torch.no_grad():
            model.eval()(ids, mask)

run(64)  # what the first call of each operator takes
with PeakMemory() as memory:
    run(length)
print(memory.mib)
"""


REVERSIBLE = """
import sys, torch, longspan
from longspan.training.memory import PeakMemory

layers, length = int(sys.argv[1]), 8192
torch.set_num_threads(1)
config = longspan.ReformerConfig(
    vocab_size=50, hidden_size=32, attention_head_size=16, num_attention_heads=2, feed_forward_size=64, num_hashes=1,
    attn_layers=["local", "lsh"] * (layers // 2), axial_pos_embds=False, max_position_embeddings=length,
    is_decoder=True, hidden_dropout_prob=0.1,
    lsh_attention_probs_dropout_prob=0.1, local_attention_probs_dropout_prob=0.1,
)
model = longspan.ReformerModel(config).train()

def run(length):
    model(torch.randint(3, 50, (1, length))).last_hidden_state.sum().backward()
    model.zero_grad(set_to_none=True)

run(256)  # what the first call of each operator takes
with PeakMemory() as memory:
    run(length)
print(memory.mib)
"""


MULTIDIM = """
import torch
from longspan.ops import multidim_attention
from longspan.training.memory import PeakMemory

torch.set_num_threads(1)

def inputs(blocks):
    rows = [torch.randn(blocks, 26, 300, requires_grad=True) for _ in range(3)]
    return [*rows, torch.randn(300, requires_grad=True)], torch.randn(blocks, 26, 300)

def run(tensors, grad_out):
    torch.autograd.grad(multidim_attention(*tensors, direction="forward"), tensors, grad_out)

run(*inputs(2))  # what the first call takes
arguments = inputs(316)
with PeakMemory() as memory:
    run(*arguments)
print(memory.mib)
"""


def peak_mib(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip()
    if answer == "None":
        pytest.skip("this system does not tell a process its peak memory")
    return float(answer)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_memory_is_linear(mode):
    short, long = peak_mib(PROGRAM, 16_384, mode), peak_mib(PROGRAM, 65_536, mode)
    assert short < 120, f"{short:.0f} MiB at 16 384 tokens"
    assert long <= 4.5 * short, f"{short:.0f} MiB at 16 384 tokens, {long:.0f} MiB at 65 536"


def test_memory_of_a_reversible_stack_does_not_grow_with_depth():
    """Kept activations would take 40 MiB for 2 layers and 350 MiB for 24."""
    peaks = {layers: peak_mib(REVERSIBLE, layers) for layers in (2, 8, 24)}
    assert max(peaks.values()) < 55 and max(peaks.values()) <= 1.6 * peaks[2], peaks


def test_memory_of_multidim_attention_holds_no_scores():
    """8192 tokens in blocks, 300 features: 9.4 MiB for each tensor of tokens, 245 MiB for one of scores."""
    peak = peak_mib(MULTIDIM)
    assert peak < (60 if HAS_EXTENSION else 190), f"{peak:.0f} MiB"
