"""Whether Python and the packages are of the versions that the installed metadata asks for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from birdie_zmq.tools.doctor.finding import Finding

DISTRIBUTION = "birdie-zmq"
_LM_EVAL = "lm-eval"
InstalledVersion = Callable[[str], str | None]


def installed_version(name: str) -> str | None:
    """The version of an installed distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def metadata_finding(running: str, installed: str | None) -> Finding:
    """Whether the metadata are of the code that runs: those of a checkout stay as they were when it was installed.

    Args:
        running: The version of the imported package.
        installed: The version in the installed metadata, None if there are none.
    """
    if installed is None:
        return Finding(
            "birdie-zmq",
            "warning",
            f"{running} runs from a folder and is not installed, so what it requires cannot be checked",
            "pip install .   in the checkout",
        )
    if installed != running:
        return Finding(
            "birdie-zmq",
            "warning",
            f"{running} runs, and {installed} is what is installed",
            "pip install .   in the checkout, or pip install --upgrade birdie-zmq",
        )
    return Finding("birdie-zmq", "ok", running)


def python_finding(version: str, requires: str | None) -> Finding:
    """Whether Python is new enough.

    Args:
        version: Python's.
        requires: ``Requires-Python`` of the metadata, such as ``>=3.11``.
    """
    if requires is None or SpecifierSet(requires).contains(version, prereleases=True):
        return Finding("python", "ok", f"{version}{'' if requires is None else f', as required ({requires})'}")
    return Finding(
        "python",
        "wrong",
        f"{version} is not what birdie-zmq requires ({requires})",
        "make an environment of another Python: python3.12 -m venv venv && venv/bin/pip install birdie-zmq",
    )


def package_findings(requires: Sequence[str], version_of: InstalledVersion = installed_version) -> list[Finding]:
    """Whether each required package is there in a version that will do; lm_eval has a finding of its own.

    Args:
        requires: ``Requires-Dist`` of the metadata; those of extras are left out.
        version_of: The installed version of a distribution, None if there is none.
    """
    wanted = [Requirement(line) for line in requires]
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    lm_eval = [one for one in wanted if canonicalize_name(one.name) == _LM_EVAL]
    others = [one for one in wanted if one not in lm_eval]
    bad = [_fault("packages", one, version_of) for one in others]
    faults = [finding for finding in bad if finding is not None]
    if not faults:
        what = ", ".join(f"{one.name} {version_of(one.name)}" for one in others)
        faults = [Finding("packages", "ok", f"{len(others)} as required: {what}")]
    for one in lm_eval:
        fault = _fault("lm_eval", one, version_of)
        faults.append(fault or Finding("lm_eval", "ok", f"{version_of(one.name)}, as required ({one.specifier})"))
    return faults


def _fault(name: str, wanted: Requirement, version_of: InstalledVersion) -> Finding | None:
    found = version_of(wanted.name)
    cure = f"pip install {shlex.quote(f'{wanted.name}{wanted.specifier}')}"
    if found is None:
        return Finding(name, "wrong", f"{wanted.name} is not installed", cure)
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding(name, "wrong", f"{wanted.name} is {found}, and {wanted.specifier} is required", cure)
    return None


def check(python: str, running: str) -> list[Finding]:
    """All of these checks.

    Args:
        python: Python's version.
        running: That of the imported package.
    """
    try:
        installed = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return [metadata_finding(running, None), python_finding(python, None)]
    requires = installed.metadata.json.get("requires_python")
    return [
        metadata_finding(running, installed.version),
        python_finding(python, requires if isinstance(requires, str) else None),
        *package_findings(installed.requires or []),
    ]
