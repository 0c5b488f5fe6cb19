"""The character that `tokenizers` writes for each byte: a vocabulary of bytes is one of characters."""


def _printable_bytes() -> list[str]:
    """A byte's character: itself if printable, else one from U+0100 on, in order."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in itself else chr(next(others)) for byte in range(256)]


BYTE_CHARACTERS = _printable_bytes()
