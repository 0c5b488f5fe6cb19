import pytest
import torch

from longspan.layers.sentence_sum import SentenceSum


def test_sums_words_by_place_and_leaves_padding_out():
    torch.manual_seed(0)
    layer = SentenceSum(10, 4, 5).double()
    torch.nn.init.normal_(layer.places)
    torch.nn.init.normal_(layer.word_embeddings.weight)  # row 0 too: padding adds nothing whatever it holds
    ids = torch.tensor([[[3, 4, 0], [5, 0, 0], [0, 0, 0]]])
    table, places = layer.word_embeddings.weight, layer.places
    expected = torch.stack([2 * (table[3] * places[0] + table[4] * places[1]), 2 * table[5] * places[0], 0 * table[0]])
    torch.testing.assert_close(layer(ids)[0], expected)
    assert torch.equal(layer(torch.nn.functional.pad(ids, (0, 2))), layer(ids))


def test_begins_as_a_plain_sum_and_order_matters_once_learnt():
    layer = SentenceSum(10, 4, 5)
    swapped = [torch.tensor([[[3, 4]]]), torch.tensor([[[4, 3]]])]
    torch.testing.assert_close(layer(swapped[0]), layer(swapped[1]))
    layer(swapped[0]).square().sum().backward()
    layer.places.data -= layer.places.grad  # pyright: ignore
    assert not torch.allclose(layer(swapped[0]), layer(swapped[1]))


def test_too_long_a_sentence():
    with pytest.raises(ValueError, match="at most max_words = 2 words, got 3"):
        SentenceSum(10, 4, 2)(torch.ones(1, 1, 3, dtype=torch.int64))
