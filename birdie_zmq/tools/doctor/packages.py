"""Checks whether Python and the packages have the versions that the installed metadata requires."""

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
    """Return the version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def metadata_finding(running: str, installed: str | None) -> Finding:
    """Check whether the metadata belongs to the running code: a checkout keeps the metadata of its last installation.

    Args:
        running: The version of the imported package.
        installed: The version in the installed metadata, None if there is no metadata.
    """
    if installed is None:
        return Finding(
            "birdie-zmq",
            "warning",
            f"{running} runs from a folder and is not installed, so its requirements cannot be checked",
            "pip install .   in the checkout",
        )
    if installed != running:
        return Finding(
            "birdie-zmq",
            "warning",
            f"version {running} runs, but version {installed} is installed",
            "pip install .   in the checkout, or pip install --upgrade birdie-zmq",
        )
    return Finding("birdie-zmq", "ok", running)


def python_finding(version: str, requires: str | None) -> Finding:
    """Check the version of Python.

    Args:
        version: The version of Python.
        requires: ``Requires-Python`` of the metadata, such as ``>=3.11``.
    """
    if requires is None or SpecifierSet(requires).contains(version, prereleases=True):
        return Finding("python", "ok", f"{version}{'' if requires is None else f', as required ({requires})'}")
    return Finding(
        "python",
        "wrong",
        f"{version} does not meet the requirement of birdie-zmq ({requires})",
        "create an environment with another Python: python3.12 -m venv venv && venv/bin/pip install birdie-zmq",
    )


def package_findings(requires: Sequence[str], version_of: InstalledVersion = installed_version) -> list[Finding]:
    """Check whether the required packages are installed in suitable versions; lm_eval has a separate finding.

    Args:
        requires: ``Requires-Dist`` of the metadata; requirements of extras are ignored.
        version_of: Function that returns the installed version of a distribution, None if it is not installed.
    """
    required = [Requirement(line) for line in requires]
    required = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    lm_eval = [one for one in required if canonicalize_name(one.name) == _LM_EVAL]
    others = [one for one in required if one not in lm_eval]
    checked = [_check_requirement("packages", one, version_of) for one in others]
    findings = [finding for finding in checked if finding is not None]
    if not findings:
        versions = ", ".join(f"{one.name} {version_of(one.name)}" for one in others)
        findings = [Finding("packages", "ok", f"{len(others)} as required: {versions}")]
    for one in lm_eval:
        finding = _check_requirement("lm_eval", one, version_of)
        findings.append(finding or Finding("lm_eval", "ok", f"{version_of(one.name)}, as required ({one.specifier})"))
    return findings


def _check_requirement(name: str, required: Requirement, version_of: InstalledVersion) -> Finding | None:
    found = version_of(required.name)
    fix = f"pip install {shlex.quote(f'{required.name}{required.specifier}')}"
    if found is None:
        return Finding(name, "wrong", f"{required.name} is not installed", fix)
    if not required.specifier.contains(found, prereleases=True):
        return Finding(name, "wrong", f"{required.name} is {found}, but {required.specifier} is required", fix)
    return None


def check(python: str, running: str) -> list[Finding]:
    """Run the checks of Python and the packages.

    Args:
        python: The version of Python.
        running: The version of the imported package.
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
