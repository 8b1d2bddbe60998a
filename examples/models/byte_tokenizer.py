"""A tokenizer of bytes for the pages of this folder: a page may import what lies beside it."""

BOS = 256
VOCABULARY = 257


class Bytes:
    """One token a byte of UTF-8."""

    bos_token_id = BOS

    def encode(self, text):
        """The bytes of a text."""
        return list(text.encode())

    def decode(self, ids):
        """The text of bytes; other tokens are left out."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")
