"""A byte tokenizer shared by the examples: a model file can import modules from its own folder."""

BOS = 256
VOCABULARY = 257


class Bytes:
    """One token a byte of UTF-8."""

    bos_token_id = BOS

    def encode(self, text):
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, ids):
        """Return the text of the byte tokens; other tokens are omitted."""
        return bytes(i for i in ids if i < 256).decode(errors="replace")
