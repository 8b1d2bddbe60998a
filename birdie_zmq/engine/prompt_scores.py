"""Scores of the tokens of shared prefixes, kept across batches.

A prompt with log-probabilities is scored from its first token on. Without these scores, a cached state of its prefix would be
of no use: the positions of a cached prefix are not computed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from birdie_zmq.engine.planning.steps import Tokens
from birdie_zmq.engine.position_scores import SequenceScores

_LIMIT_BYTES = 2**26


class PromptScores:
    """The scores of prefixes, least recently used first; they belong to one set of weights.

    A cached state of n tokens comes with the scores of n + 1 tokens: the last position of the state predicts one more.

    Args:
        limit_bytes: The size beyond which entries are dropped.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._entries: OrderedDict[bytes, SequenceScores] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, tokens: Tokens, top: int) -> SequenceScores | None:
        """Return the scores of the longest known prefix of a text int32[n], without its first token; None if none is known.

        Args:
            tokens: The text.
            top: The number of most likely tokens that each position must have at least.
        """
        text = tokens.tobytes()
        known = [key for key, scores in self._entries.items() if text.startswith(key) and scores.top_count >= top]
        if not known:
            return None
        best = max(known, key=len)
        self._entries.move_to_end(best)
        return self._entries[best]

    def learn(self, tokens: Tokens, scores: SequenceScores, states: Iterable[bytes]) -> None:
        """Keep the scores of the prefixes of a text that have a cached state.

        Args:
            tokens: The text int32[n].
            scores: The scores of its tokens but the first.
            states: The prefixes with a state, as the bytes of their tokens.
        """
        text = tokens.tobytes()
        for state in states:
            length = len(state) // 4 + 1
            if length <= len(tokens) and text.startswith(state):
                self._put(text[: 4 * length], scores.cut(0, length - 1))

    def _put(self, key: bytes, scores: SequenceScores) -> None:
        known = self._entries.get(key)
        if known is not None and known.top_count >= scores.top_count:
            return
        if known is not None:
            self._size_bytes -= known.size_bytes
        kept = scores.copy()  # a part would keep the whole array
        self._entries[key] = kept
        self._entries.move_to_end(key)
        self._size_bytes += kept.size_bytes
        while self._size_bytes > self._limit_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._size_bytes -= dropped.size_bytes
