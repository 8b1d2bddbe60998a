"""The project speaks the language of its field: private names and phrases that were replaced do not come back."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

IDENTIFIERS = {
    # The old name, and the term that replaced it.
    "ApiPage": "UserModule",
    "Advance": "ProgressDelta",
    "Ability": "ExecutionMode",
    "Beat": "ModelHeartbeat",
    "Beginnings": "PrefixAffinity",
    "Crew": "WorkerPool",
    "Cut": "ShardSpec",
    "Drawing": "SamplingMetadata",
    "Growing": "IncrementalDetokenizer",
    "GroupPlace": "RankInfo",
    "Happening": "HistoryEntry",
    "Held": "ActiveLease",
    "Holder": "Principal",
    "How": "StepKind",
    "Meeting": "Rendezvous",
    "Offer": "CheckpointPolicy",
    "Part": "SubBatch",
    "Piece": "PrefillChunk",
    "Places": "ScorePositions",
    "Queues": "Scheduler",
    "Reading": "PrefillPlan",
    "Stored": "TensorSpec",
    "StateStore": "PrefixCache",
    "Tally": "Counters",
    "Word": "ModelArg",
    "carry_on": "decode_with_cache",
    "reread": "decode_without_cache",
    "late_s": "stall_s",
    "patience_s": "switch_delay_s",
    "round_cost": "decode_step_cost",
    "trunk": "backbone",
    "knock": "wait_for_port",
    "beginnings": "prefixes",
    "mend": "fix",
    "crew": "worker pool",
}

MODULES = {
    *("advances", "api_page", "branching", "crew", "cutting", "drawing", "forking", "helping", "lifeline", "lifetimes"),
    *("locate", "meeting", "offer", "placement", "printable", "prompts", "quarantine", "queues", "restraint", "tally"),
}

PHRASES = (
    r"\bcrews?\b",
    r"\bpatience\b",
    r"\btrunks?\b",
    r"\bwords? of (?:``)?model_args",
    r"\bwhat stands (?:before|behind|in)\b",
    r"\b(?:did|does|do) not come on\b",
    r"\bcome(?:s)? on for\b",
    r"\bcarr(?:y|ies|ied) on\b",
    r"\b(?:is|are|was|were) let in\b",
    r"\btakes? over from\b",
    r"\btokens (?:that )?are drawn\b",
    r"\bdraw(?:s|n)? tokens\b",
    r"\bmend(?:s|ed|ing)?\b",
    r"\bwhose like\b",
    r"\bsuch as have\b",
    r"\ba \d+(?:\.\d+)?(?:rd|th) of its\b",
    r"\bchanges? of models?\b",
    r"\bhappenings?\b",
    r"\b(?:long|shared|common) beginnings?\b",
    r"\bdoes? harm\b",
)
"""At most twenty: each stands for a way of writing, not for one sentence."""

_LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout.split("\n")
FILES = sorted(
    path
    for name in _LISTED
    if name.endswith((".py", ".md", ".html", ".cfg", ".ini", ".toml", ".yml", ".yaml", ".sbatch"))
    and (path := ROOT / name).is_file()
    and path != Path(__file__).resolve()
)
if not FILES:  # an unpacked archive
    FILES = sorted(path for kind in ("*.py", "*.md", "*.html") for path in ROOT.rglob(kind) if path != Path(__file__))


def names_in(source: str) -> dict[str, int]:
    """Map each identifier of a Python source to the first line that has it."""
    found: dict[str, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            found.setdefault(token.string, token.start[0])
    return found


def phrases_in(text: str) -> list[str]:
    """Each private phrase of a text, with its line; a phrase may run over the end of a line."""
    return [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())}"
        for phrase in PHRASES
        for match in re.finditer(phrase.replace(" ", r"[\s#]+"), text, re.IGNORECASE)
    ]


def test_old_identifiers_do_not_come_back() -> None:
    found = []
    for path in FILES:
        if path.suffix == ".py":
            names = names_in(path.read_text(encoding="utf-8"))
            found += [
                f"{path.relative_to(ROOT)}:{names[old]}: {old} is called {new}"
                for old, new in IDENTIFIERS.items()
                if old in names
            ]
    assert found == []


def test_old_module_names_do_not_come_back() -> None:
    assert [path for path in (ROOT / "birdie_zmq").rglob("*.py") if path.stem in MODULES] == []


def test_private_phrases_do_not_come_back() -> None:
    found = [
        f"{path.relative_to(ROOT)}, {one}" for path in FILES for one in phrases_in(path.read_text(encoding="utf-8"))
    ]

    assert found == []


def test_the_test_would_see_them() -> None:
    assert len(PHRASES) <= 20
    assert names_in("def carry_on(): pass") == {"def": 1, "carry_on": 1, "pass": 1}
    assert sorted(phrases_in("one\nthat did not come\non for 900 s, which a crew\n# takes over\n# from another")) == [
        "line 2: come on for",
        "line 2: did not come on",
        "line 3: crew",
        "line 4: takes over # from",
    ]
