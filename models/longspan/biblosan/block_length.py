"""How long blocks should be: per feature, scores take n r + (n / r)^2 values, least near r = (2 n)^(1/3).

n tokens of a text, r tokens of a block.
"""

import math
from collections.abc import Iterable


def block_length_for(length: int) -> int:
    """ceil((2 n)^(1/3)), exactly: the block length for texts of ``length`` tokens.

    The authors' code takes it in float32 from the padded length of each batch, where 108, 256 and 500 tokens give one
    more. A model wants one block length for all texts: see ``suggest_block_length``.

    Raises:
        ValueError: for fewer than one token.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    root = round((2 * length) ** (1 / 3))
    while root**3 < 2 * length:
        root += 1
    while (root - 1) ** 3 >= 2 * length:
        root -= 1
    return root


def block_length_from_statistics(mean: float, std: float, batch_size: int) -> int:
    """The authors' rule for a data set: n is the expected longest text of a batch, r = ceil((2 n)^(1/3)) + 1.

    Lengths are taken as Gaussian: n = mean + std * sqrt(2 ln batch_size).

    Args:
        mean: mean length of the training texts, in tokens.
        std: its standard deviation.
        batch_size: texts in a batch.

    Raises:
        ValueError: where these are no statistics of texts.
    """
    if not (mean > 0 and std >= 0 and math.isfinite(mean) and math.isfinite(std)):
        raise ValueError(f"mean must be positive and std not negative, got mean = {mean}, std = {std}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    longest = mean + std * math.sqrt(2 * math.log(batch_size))
    cube_root = (2 * longest) ** (1 / 3)
    nearest = round(cube_root)
    exact = math.isclose(cube_root, nearest, rel_tol=1e-12)  # a cube root of a cube may come out a little above
    return (nearest if exact else math.ceil(cube_root)) + 1


def suggest_block_length(lengths: Iterable[int], batch_size: int) -> int:
    """The block length for a corpus, by the authors' rule; ``BiBloSanConfig(block_length=...)`` takes it.

    Args:
        lengths: number of tokens of each training text.
        batch_size: texts in a training batch.

    Raises:
        ValueError: for an empty corpus.
    """
    values = list(lengths)
    if not values:
        raise ValueError("lengths must hold the number of tokens of at least one text, got none")
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return block_length_from_statistics(mean, std, batch_size)
