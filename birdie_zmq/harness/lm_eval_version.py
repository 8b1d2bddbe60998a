"""The versions of lm_eval that birdie-zmq supports, which a run checks before it uses lm_eval."""

from __future__ import annotations

from importlib import metadata

from packaging.version import InvalidVersion, Version

from birdie_zmq.errors import UsageError

OLDEST = Version("0.4.12")
NEWEST = Version("0.5.0.dev1")
"""The tests run with both, and with the versions between them."""


def check_version(installed: str | None = None) -> None:
    """Check whether the version of lm_eval is supported.

    Another version may pass requests and read answers in another form: 0.5 passes rolling requests as ``("", text)``, so that
    an older birdie-zmq would score the empty text.

    Args:
        installed: The version; None for the installed one.

    Raises:
        UsageError: It is older or newer than the supported versions.
    """
    if installed is None:
        installed = metadata.version("lm_eval")
    try:
        supported = OLDEST <= Version(installed) <= NEWEST
    except InvalidVersion:
        supported = False
    if not supported:
        raise UsageError(
            f"lm_eval {installed} is not supported: this version of birdie-zmq works with lm_eval {OLDEST} to {NEWEST}. "
            'Install one of these, such as pip install "lm-eval>=0.4.12,<0.5", or a newer birdie-zmq'
        )
