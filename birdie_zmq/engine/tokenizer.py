"""One small interface to any tokenizer.

``load_tokenizer`` may return a tokenizer of transformers, a ``tokenizers.Tokenizer``, a ``tiktoken.Encoding``, a
``SentencePieceProcessor``, or any object with ``encode`` (of a string or of a list of strings) and ``decode``.
`birdie_zmq.engine.tokenizers` has one class for each kind; here is what they share.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from birdie_zmq.engine.tokenizers.hugging_face import TransformersTokenizer
from birdie_zmq.engine.tokenizers.kind import SpecialName, checked_ids
from birdie_zmq.engine.tokenizers.recognition import recognise
from birdie_zmq.errors import BirdieError, TokenizerError
from birdie_zmq.types import ChatTemplates

_HF_INFINITY = 10**20
"""A length of this or more means no limit: transformers uses int(1e30) for a tokenizer without a maximum length."""

NO_TEMPLATE_ARGS: Mapping[str, Any] = MappingProxyType({})

_SPECIAL_ATTRIBUTES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class _Usage:
    """One use of a tokenizer at a time, and the seconds of all uses.

    The next batch is encoded while answers of this one are decoded, and not every tokenizer is thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clock: Callable[[], float] = float  # It stands still at 0.0.
        self.seconds = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        with self._lock:
            began = self.clock()
            try:
                yield
            finally:
                self.seconds += self.clock() - began


class TokenizerAdapter:
    """A user's tokenizer behind one interface; it may be called from several threads.

    Args:
        tokenizer: The tokenizer that ``load_tokenizer`` returned.
        add_bos: Whether a BOS token is added before texts. None leaves it to a tokenizer of transformers or of
            SentencePiece, and is False for the others.
        prefix_token_id: The token that precedes a text without context; None takes BOS, or EOS if there is no BOS.

    Attributes:
        bos_token_id: The BOS token; None if there is none.
        eos_token_id: The EOS token; None if there is none.
        eos_token_ids: All tokens that end generation: EOS, and the tokenizer's own ``eos_token_ids``, which chat models
            use to end a turn.

    Raises:
        TokenizerError: The tokenizer has no ``encode`` or no ``decode``, no token to use as the prefix token, or no BOS
            token although `add_bos` is True. A tokenizer of transformers then adds nothing, as in lm_eval's ``hf``.
    """

    def __init__(self, tokenizer: Any, add_bos: bool | None = None, prefix_token_id: int | None = None) -> None:
        for method in ("encode", "decode"):
            if not callable(getattr(tokenizer, method, None)):
                raise TokenizerError(
                    f"load_tokenizer returned a {type(tokenizer).__name__} without {method}(); it must have "
                    "encode(str) -> list[int] and decode(list[int]) -> str"
                )
        self._tokenizer = tokenizer
        self._usage = _Usage()
        self._add_bos = add_bos
        self._kind = recognise(tokenizer)
        self._is_transformers = isinstance(self._kind, TransformersTokenizer)
        self.bos_token_id = self._special_id("bos_token_id")
        self.eos_token_id = self._special_id("eos_token_id")
        self._prefix_token_id = self._checked_prefix_token(prefix_token_id)
        if add_bos and self.bos_token_id is None and not isinstance(self._kind, TransformersTokenizer):
            raise TokenizerError(
                f"add_bos_token=True, but the {type(tokenizer).__name__} has no BOS token; set tokenizer.bos_token_id = N "
                "in load_tokenizer, or leave add_bos_token out"
            )
        more_eos = getattr(tokenizer, "eos_token_ids", None)
        if more_eos is None or isinstance(more_eos, int):  # transformers answers with the one id of eos_token
            more_eos = () if more_eos is None else (more_eos,)
        self.eos_token_ids = frozenset(int(id) for id in (self.eos_token_id, *more_eos) if id is not None)

    def with_prefix_token(self, prefix_token_id: int | None) -> Self:
        """Return an adapter of the same tokenizer with another prefix token; None takes BOS, or EOS if there is no BOS.

        Raises:
            TokenizerError: There is no token to use as the prefix token.
        """
        other = copy.copy(self)
        other._prefix_token_id = self._checked_prefix_token(prefix_token_id)
        return other

    def _checked_prefix_token(self, prefix_token_id: int | None) -> int | None:
        if prefix_token_id is None and self.bos_token_id is None and self.eos_token_id is None:
            raise TokenizerError(
                f"the {type(self._tokenizer).__name__} has neither bos_token_id nor eos_token_id; one of them is needed "
                "to score a text without context, so set tokenizer.eos_token_id = N in load_tokenizer, or prefix_token_id=N "
                "in model_args"
            )
        return prefix_token_id

    @property
    def seconds(self) -> float:
        """The seconds in which the tokenizer was called, in all threads and for all prefix tokens; 0 without a clock."""
        return self._usage.seconds

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Count the seconds of later calls by a monotonic clock."""
        self._usage.clock = clock

    @property
    def prefix_token_id(self) -> int:
        """The token that precedes a text without context."""
        prefix = next(id for id in (self._prefix_token_id, self.bos_token_id, self.eos_token_id) if id is not None)
        assert prefix is not None  # the constructor has rejected a tokenizer without any
        return prefix

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """The fingerprint of the files that the tokenizer was loaded from, if it has one."""
        found = getattr(self._tokenizer, "fingerprint", None)
        return found if isinstance(found, str) else None

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """The content of the checkpoint's ``generation_config.json``; empty for a tokenizer that has none."""
        found = getattr(self._tokenizer, "generation_config", None)
        return found if isinstance(found, Mapping) else MappingProxyType({})

    @functools.cached_property
    def checkpoint_fingerprint(self) -> str | None:
        """The fingerprint of the model's checkpoint, if the tokenizer knows it: for a model that has none itself."""
        found = getattr(self._tokenizer, "checkpoint_fingerprint", None)
        return found if isinstance(found, str) else None

    @property
    def max_length(self) -> int | None:
        """The maximum length of the model in tokens, if the tokenizer has one."""
        length = getattr(self._tokenizer, "model_max_length", None)
        return int(length) if isinstance(length, int | float) and 0 < length < _HF_INFINITY else None

    def encode(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Encode each text into token ids.

        Args:
            texts: Any number of texts.
            special: Whether BOS may be added, by `add_bos`; False for a text that continues another.

        Raises:
            TokenizerError: The tokenizer raised, or returned something other than token ids.
        """
        if not texts:
            return []
        if special and self._is_transformers and self._add_bos is not False:
            return self._encode_with_special_tokens(texts)
        add_special = special and self._add_bos is None
        encoded = self._encode(texts, add_special)
        bos = self.bos_token_id
        if special and self._add_bos and bos is not None:
            encoded = [[bos, *ids] for ids in encoded]
        if special and bos is not None and (self._add_bos or (self._kind.adds_special and self._add_bos is None)):
            # A text that already begins with BOS, as chat templates write it, gets no second one.
            encoded = [ids[1:] if ids[:2] == [bos, bos] else ids for ids in encoded]
        return encoded

    def _encode_with_special_tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode texts with the special tokens that a tokenizer of transformers adds, as lm_eval's hf backend does.

        A text that begins with the text of the prefix token, as chat templates write it, gets none of them.
        """
        prefix = self.decode([self.prefix_token_id], skip_special=False)
        begun = [bool(prefix) and text.startswith(prefix) for text in texts]
        plain, added = (
            iter(self._encode([text for text, it in zip(texts, begun, strict=True) if it == wanted], not wanted))
            for wanted in (True, False)
        )
        encoded = [next(plain if is_begun else added) for is_begun in begun]
        bos = self.bos_token_id if self._add_bos else None
        if bos is None:
            return encoded
        # A tokenizer of a user's own may add none although add_bos_token=True asks for it.
        return [
            ids if is_begun or ids[:1] == [bos] else [bos, *ids] for ids, is_begun in zip(encoded, begun, strict=True)
        ]

    def encode_token(self, text: str) -> list[int]:
        """Encode a text that may spell one special token, which is then its only id; nothing is added.

        Raises:
            TokenizerError: As in `encode`.
        """
        return self._checked(lambda: [self._kind.encode_token(text)], [text])[0]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Decode token ids into text; ids that the tokenizer does not have add nothing, as in transformers.

        Args:
            ids: The token ids.
            skip_special: Whether to leave out special tokens, if the tokenizer can do that.

        Raises:
            TokenizerError: The tokenizer raised, or did not return a string.
        """
        try:
            with self._usage.call():
                text = self._kind.decode(list(ids), skip_special=skip_special)
        except Exception as error:
            raise TokenizerError(
                f"the tokenizer failed to decode {len(ids)} tokens: {_describe_error(error)}"
            ) from error
        if not isinstance(text, str):
            raise TokenizerError(f"the tokenizer's decode returned a {type(text).__name__}, not a string")
        return text

    def chat_templates(self) -> ChatTemplates:
        """Return the chat templates and special tokens that a client needs to render conversations itself."""
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, str):
            templates = {"default": template}
        elif isinstance(template, dict):
            templates = {str(name): text for name, text in template.items() if isinstance(text, str)}
        else:
            templates = {}
        special = {name: str(getattr(self._tokenizer, name, None) or "") for name in _SPECIAL_ATTRIBUTES}
        # transformers also passes the special tokens that a model has by other names, such as image_token.
        named = getattr(self._tokenizer, "special_tokens_map", None)
        special |= {name: text for name, text in dict(named or {}).items() if isinstance(text, str)}
        return ChatTemplates(
            templates=templates,
            special_tokens={name: text for name, text in special.items() if text},
            has_method=callable(getattr(self._tokenizer, "apply_chat_template", None)),
        )

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        add_generation_prompt: bool,
        template_args: Mapping[str, Any] = NO_TEMPLATE_ARGS,
    ) -> str:
        """Render one conversation with the tokenizer's own ``apply_chat_template``.

        Args:
            conversation: The messages.
            add_generation_prompt: Whether the text ends with the start of the assistant's turn; if not, the last
                message is left open to be continued.
            template_args: Further keyword arguments for the template.

        Raises:
            TokenizerError: There is no such method, it raised, or it did not return a string.
        """
        method = getattr(self._tokenizer, "apply_chat_template", None)
        if not callable(method):
            raise TokenizerError(
                f"the {type(self._tokenizer).__name__} has neither a chat_template nor an apply_chat_template method"
            )
        try:
            with self._usage.call():
                text = method(
                    conversation,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                    **template_args,
                )
        except Exception as error:
            raise TokenizerError(f"apply_chat_template failed: {_describe_error(error)}") from error
        if not isinstance(text, str):
            raise TokenizerError(f"apply_chat_template returned a {type(text).__name__}, not a string")
        return text

    def _encode(self, texts: Sequence[str], add_special: bool) -> list[list[int]]:
        if not texts:
            return []
        return self._checked(lambda: self._kind.encode(list(texts), add_special=add_special), texts)

    def _checked(self, encode: Callable[[], Any], texts: Sequence[str]) -> list[list[int]]:
        try:
            with self._usage.call():
                return checked_ids(encode(), list(texts))
        except BirdieError:
            raise
        except Exception as error:
            raise TokenizerError(f"the tokenizer failed to encode a text: {_describe_error(error)}") from error

    def _special_id(self, attribute: SpecialName) -> int | None:
        value = getattr(self._tokenizer, attribute, None)
        if value is None:
            value = self._kind.special_id(attribute)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise TokenizerError(f"the tokenizer's {attribute} is {value!r}, which is not a token id")
        return int(value)


def _describe_error(error: Exception) -> str:
    """Describe an error without its message, which may repeat a text; the run that caused it gets it in the traceback."""
    return f"{type(error).__name__} (its message is in the traceback)"
