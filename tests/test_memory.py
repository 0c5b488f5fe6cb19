"""Nothing quadratic: peak memory of a small model from 16 384 to 65 536 tokens, each in a process of its own."""

import subprocess
import sys

import pytest

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


def peak_mib(length, mode):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(length), mode], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = done.stdout.strip()
    if answer == "None":
        pytest.skip("this system does not tell a process its peak memory")
    return float(answer)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_memory_is_linear(mode):
    short, long = peak_mib(16_384, mode), peak_mib(65_536, mode)
    assert short < 120, f"{short:.0f} MiB at 16 384 tokens"
    assert long <= 4.5 * short, f"{short:.0f} MiB at 16 384 tokens, {long:.0f} MiB at 65 536"
