"""Adaptive input and softmax: against the definition, word by word; the loss against the log-probabilities."""

import math

import pytest
import torch
from torch.nn import functional as F

from longspan.layers.adaptive_softmax import AdaptiveInput, AdaptiveLogSoftmax, cluster_sizes

SHAPES = [(60, 16, (20, 40), 2), (60, 32, (10, 25), 4), (7, 4, (1,), 1), (9, 8, (2, 3, 8), 2)]
SHAPE_IDS = [f"V{vocab}-E{size}-{'-'.join(map(str, cutoffs))}-by{factor}" for vocab, size, cutoffs, factor in SHAPES]


def random_(module, dtype=torch.float64):
    for parameter in module.parameters():
        parameter.data.normal_()
    return module.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_embeds_a_word_with_its_cluster(shape):
    torch.manual_seed(0)
    vocab_size, hidden_size, cutoffs, _ = shape
    embed = random_(AdaptiveInput(*shape))
    embedded = embed(torch.arange(vocab_size))
    for word in range(vocab_size):
        i = sum(word >= cutoff for cutoff in cutoffs)
        row = embed.clusters[i].weight[word - (0, *cutoffs)[i]]
        expected = embed.clusters[i].projection @ row * math.sqrt(hidden_size)
        torch.testing.assert_close(embedded[word], expected)


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_log_probability_of_every_word(shape):
    """A rare word's is that of its cluster, the i-th entry from the end of the first softmax, plus its own in it."""
    torch.manual_seed(0)
    vocab_size, hidden_size, cutoffs, _ = shape
    head = random_(AdaptiveLogSoftmax(*shape))
    hidden = torch.randn(2, 3, hidden_size, dtype=torch.float64)
    log_probs = head(hidden)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
    projected = hidden @ head.clusters[0].projection
    scores = torch.cat(
        [
            projected @ head.clusters[0].weight.T + head.clusters[0].bias,
            projected @ head.cluster_scores.weight.T + head.cluster_scores.bias,
        ],
        -1,
    )
    first = scores.log_softmax(-1)
    for word in range(vocab_size):
        i = sum(word >= cutoff for cutoff in cutoffs)
        if i == 0:
            expected = first[..., word]
        else:
            cluster = head.clusters[i]
            within = (hidden @ cluster.projection) @ cluster.weight.T + cluster.bias
            expected = first[..., -i] + within.log_softmax(-1)[..., word - cutoffs[i - 1]]
        torch.testing.assert_close(log_probs[..., word], expected)


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=SHAPE_IDS)
def test_loss_is_that_of_the_log_probabilities(shape, rows):
    torch.manual_seed(0)
    vocab_size, hidden_size, *_ = shape
    head = random_(AdaptiveLogSoftmax(*shape))
    hidden = torch.randn(2, 11, hidden_size, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(vocab_size, (2, 11))
    labels[0, :3] = -100
    parameters = [hidden, *head.parameters()]
    expected = F.nll_loss(head(hidden).flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss = head.loss(hidden, labels, rows)
    torch.testing.assert_close(loss, expected)
    for name, got, wanted in zip(
        ["hidden", *(name for name, _ in head.named_parameters())],
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, msg=lambda text, name=name: f"{name}: {text}")
    divided = head.loss(hidden, labels, num_items_in_batch=38)
    torch.testing.assert_close(divided, expected * 19 / 38)


def test_every_cluster_gets_a_gradient_whatever_words_occur():
    """Else processes that share a batch would wait for each other."""
    head = AdaptiveLogSoftmax(60, 16, (20, 40))
    head.loss(torch.randn(1, 5, 16), torch.full((1, 5), 3)).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_untrained_scale():
    """Embedded words and the scores of unit hidden states start near unit variance in every cluster."""
    torch.manual_seed(0)
    embed, head = AdaptiveInput(3000, 256, (1000, 2000)), AdaptiveLogSoftmax(3000, 256, (1000, 2000))
    embedded = embed(torch.arange(3000)).unflatten(0, (3, 1000))
    for i, cluster in enumerate(embed.clusters):
        assert 0.7 < embedded[i].std() < 1.5
        assert 0.7 < (torch.randn(500, 256) @ head.clusters[i].projection @ cluster.weight.T).std() < 1.6


def test_bfloat16_sums_in_float32():
    torch.manual_seed(0)
    head = random_(AdaptiveLogSoftmax(60, 16, (20, 40), 2), torch.float32)
    hidden = torch.randn(4, 16)
    log_probs = head(hidden)
    head.bfloat16()
    narrow = head(hidden.bfloat16())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.exp().sum(-1), torch.ones(4))
    torch.testing.assert_close(narrow, log_probs, atol=0.5, rtol=0.05)
    assert head.loss(hidden.bfloat16(), torch.tensor([1, 30, 50, -100])).dtype == torch.float32


def test_compiles_as_one_graph():
    torch.manual_seed(0)
    embed, head = AdaptiveInput(60, 16, (20, 40), 2), AdaptiveLogSoftmax(60, 16, (20, 40), 2)
    words = torch.randint(60, (2, 9))

    def step(words):
        hidden = embed(words)
        return head(hidden), head.loss(hidden, words)

    for got, expected in zip(torch.compile(step, fullgraph=True, backend="aot_eager")(words), step(words), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((60, 16, (40, 20), 4), "cutoffs must rise between 0 and the vocabulary size 60"),
        ((60, 16, (20, 60), 4), "cutoffs must rise"),
        ((60, 16, (), 4), "cutoffs must rise"),
        ((60, 16, (20, 40, 50), 4), "4 clusters, each 4 times narrower, leave the last no width at hidden size 16"),
        ((60, 16, (20,), 0), "factor must be at least 1, got 0"),
    ],
)
def test_impossible_clusters(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluster_sizes(*arguments)


@pytest.mark.parametrize("label", [60, -1])
def test_label_that_is_no_word(label):
    head = AdaptiveLogSoftmax(60, 16, (20, 40), 2)
    with pytest.raises(ValueError, match=rf"labels must be words, 0 to 59, or -100 \(ignored\); got {label}"):
        head.loss(torch.randn(1, 2, 16), torch.tensor([[3, label]]))
