import pytest
import torch

from longspan.data.sequence_pairs import SequencePairCollator


def test_pads_inputs_labels_and_mask():
    pairs = [{"input_ids": torch.tensor([5, 0, 7]), "labels": [1]}, {"input_ids": [4], "labels": torch.tensor([2, 3])}]
    batch = SequencePairCollator()(pairs)
    assert batch["input_ids"].tolist() == [[5, 0, 7], [4, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]], "a 0 in the text is a token"
    assert batch["labels"].tolist() == [[1, -100], [2, 3]]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_other_padding_and_round_lengths():
    batch = SequencePairCollator(pad_token_id=9, label_pad=-1, pad_to_multiple_of=4)(
        [{"input_ids": [1], "labels": [2] * 5}]
    )
    assert batch["input_ids"].tolist() == [[1, 9, 9, 9]] and batch["labels"].tolist() == [[2] * 5 + [-1] * 3]


def test_errors():
    with pytest.raises(ValueError, match="at least one pair"):
        SequencePairCollator()([])
    with pytest.raises(ValueError, match=r"pair 1 has no labels, only \['input_ids'\]"):
        SequencePairCollator()([{"input_ids": [1], "labels": [1]}, {"input_ids": [1]}])
