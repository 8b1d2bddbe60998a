"""A prompt of a completion with what is known of its answer, and the record that answers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from birdie_zmq.completions import Completion, CompletionParams, TokenLogprobs
from birdie_zmq.engine.backend import NextTokens, TopTokens
from birdie_zmq.engine.decode_row import Row
from birdie_zmq.engine.generation_settings import GenerationSettings
from birdie_zmq.engine.planning.steps import Tokens
from birdie_zmq.engine.position_scores import SequenceScores
from birdie_zmq.engine.streamed_text import StreamedText
from birdie_zmq.engine.token_texts import TokenTexts


@dataclass(eq=False, kw_only=True)
class CompletionRow(Row):
    """A row that answers with a `Completion`.

    Attributes:
        params: The parameters of the request.
        texts: The texts of single tokens.
        prompt_text: The text of a prompt that came as token ids, if it is wanted.
        prompt_scores: The scores of all tokens of the prompt but the first, once they are known.
        streamed: The text that is certain, if parts of the answer are wanted.
        shown: The number of tokens in the last part.
        ids: The tokens that were generated, including one that ends the answer; without those of earlier leases.
        logprobs: The log-probability of each of these, if wanted.
        top: The most likely tokens in place of each, [k] each.
    """

    params: CompletionParams
    texts: TokenTexts
    prompt_text: str = ""
    prompt_scores: SequenceScores | None = None
    streamed: StreamedText | None = None
    shown: int = 0
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        """The maximum number of tokens to generate from now on."""
        return self.max_tokens - len(self.answer.tokens)

    def add(self, chosen: NextTokens, at: int | tuple[int, int], settings: GenerationSettings) -> None:
        """Append the token at a position of a result with its log-probabilities.

        Raises:
            ItemFailed: The logits were not finite.
        """
        super().add(chosen, at, settings)
        self.ids.append(int(chosen.tokens[at]))
        if self.params.logprobs is not None and chosen.logprobs is not None and chosen.top is not None:
            self.logprobs.append(float(chosen.logprobs[at]))
            self.top.append(TopTokens(chosen.top.ids[at], chosen.top.logprobs[at]))

    def result(self) -> Completion:
        """Return the whole answer."""
        return self._completion(self.answer.text(), "stop" if self.is_stopped else "length")

    def part(self) -> Completion | None:
        """Return what there is of the answer so far, if parts are wanted and it has tokens; else None."""
        if self.streamed is None or len(self.ids) - self.shown < self.params.part_tokens:
            return None
        self.shown = len(self.ids)
        return self._completion(self.streamed.extend(self.answer.tokens), None)

    def _completion(self, text: str, reason: str | None) -> Completion:
        params, is_part = self.params, reason is None
        prompt = None if params.prompt_logprobs is None or is_part else self._prompt_logprobs(params.prompt_logprobs)
        logprobs = None if params.logprobs is None else self._logprobs(params.logprobs)
        table: Tokens = np.zeros(0, np.int32)
        if params.with_texts:
            arrays = [np.array(self.ids, np.int32)] if is_part else [self.prompt, np.array(self.ids, np.int32)]
            arrays += [np.frombuffer(each.top_ids, np.int32) for each in (prompt, logprobs) if each is not None]
            table = np.unique(np.concatenate(arrays)).astype(np.int32)
        return Completion(
            prompt_ids=b"" if is_part else pack_ids(self.prompt),
            prompt_text="" if is_part else self.prompt_text,
            ids=pack_ids(self.ids),
            text=text,
            finish_reason="stop" if reason == "stop" else "length" if reason else None,
            prompt_logprobs=prompt,
            logprobs=logprobs,
            token_ids=table.tobytes(),
            token_texts=self.texts.of(table.tolist()),
        )

    def _prompt_logprobs(self, count: int) -> TokenLogprobs:
        scores = SequenceScores.empty(0, count) if self.prompt_scores is None else self.prompt_scores
        return packed_logprobs(scores, count)

    def _logprobs(self, count: int) -> TokenLogprobs:
        scores = SequenceScores.empty(len(self.logprobs), count)
        for at, (logprob, top) in enumerate(zip(self.logprobs, self.top, strict=True)):
            one = TopTokens(top.ids[None], top.logprobs[None])
            scores.put(at, SequenceScores(np.array([logprob], np.float32), one))
        return packed_logprobs(scores, count)


def packed_logprobs(scores: SequenceScores, count: int) -> TokenLogprobs:
    """Return scores as bytes, with at most `count` most likely tokens of each position."""
    ids, logprobs = scores.top.ids[:, :count], scores.top.logprobs[:, :count]
    return TokenLogprobs(
        top=ids.shape[1],
        logprobs=scores.logprobs.astype("<f4").tobytes(),
        top_ids=ids.astype("<i4").tobytes(),
        top_logprobs=logprobs.astype("<f4").tobytes(),
    )


def first_of(scores: SequenceScores) -> NextTokens:
    """Return the most likely token after a text, from the scores [1] of the position after its last token."""
    top = TopTokens(scores.top.ids, scores.top.logprobs)
    return NextTokens(top.ids[:, 0], np.ones(len(top.ids), np.bool_), top.logprobs[:, 0], top)


def pack_ids(ids: Sequence[int] | Tokens) -> bytes:
    """Return token ids as bytes of int32."""
    return np.asarray(ids, "<i4").tobytes()


def unpack_ids(data: bytes) -> Tokens:
    """Return token ids int32[n] from bytes, whose number is a multiple of four."""
    return np.frombuffer(data, "<i4").astype(np.int32)
