"""The tokenizer in a SentencePiece ``.model`` file, beside which nothing else is read."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from birdie_zmq.errors import TokenizerError, UnknownModelTag
from birdie_zmq.models.checkpoint_policy import process_policy
from birdie_zmq.models.fingerprint import CheckpointFile, Fingerprint

SUFFIX = ".model"


class SentencePieceFile(SentencePieceProcessor):
    """A processor with what the engine needs to know of its file.

    Args:
        path: The file.
        add_bos_token: Whether special tokens that are added include BOS; None stands for True if the file has a BOS, as
            in the tokenizers of Llama and Gemma.

    Attributes:
        checkpoint: The fingerprint of the local checkpoint that this tokenizer was loaded for, if there is one.

    Raises:
        TokenizerError: The file is damaged.
    """

    def __init__(self, path: Path, add_bos_token: bool | None) -> None:
        self._content = Fingerprint([CheckpointFile("sentencepiece", path)])
        try:
            has_bos = SentencePieceProcessor(model_file=str(path)).bos_id() >= 0
        except (OSError, RuntimeError) as error:
            raise TokenizerError(f"{path} is not a complete SentencePiece file: {error}") from error
        if add_bos_token and not has_bos:
            raise TokenizerError(f"{path} has no BOS, so add_bos_token=True in model_args cannot add it")
        self._adds_bos = has_bos if add_bos_token is None else add_bos_token
        super().__init__(model_file=str(path), add_bos=self._adds_bos)
        self.checkpoint: Fingerprint | None = None

    @property
    def fingerprint(self) -> str:
        """A string that distinguishes this file from others with the same name."""
        return f"{self._content.result()} {self._adds_bos}"

    @property
    def checkpoint_fingerprint(self) -> str | None:
        """The fingerprint of the local checkpoint that this tokenizer was loaded for, if there is one.

        Raises:
            ModelLoadError: The checkpoint has changed since the tokenizer was loaded.
        """
        return None if self.checkpoint is None else self.checkpoint.result()


def read_sentencepiece(name: str, add_bos_token: bool | None) -> SentencePieceFile:
    """Read the file that ``tokenizer=`` names.

    Args:
        name: Its path, absolute or in one of the folders of the checkpoint policy.
        add_bos_token: As in `SentencePieceFile`.

    Raises:
        UnknownModelTag: There is no such file, or the checkpoint policy does not allow it.
        TokenizerError: The file is damaged.
    """
    path = process_policy().find(name)
    if path is None or not path.is_file():
        raise UnknownModelTag(
            f"there is no SentencePiece file {name} (tokenizer= in model_args) on the worker's machine, or its options do "
            "not allow it"
        )
    return SentencePieceFile(path, add_bos_token)
