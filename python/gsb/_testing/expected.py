# SPDX-License-Identifier: BSD-3-Clause
"""The list of expected failures: a YAML file of groups of test ids that share a reason.

::

    - reason: looks at the private memory of the estimator, which is in the server
      strict: true                      # default: passing is a failure
      run: true                         # default; false: not even started
      condition: scikit-learn<1.9       # optional: the group counts only where this holds
      tests:
        - sklearn.cluster.tests.test_k_means::test_something[float32]

An id is the test's module and name, or pytest's node id.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gsb.errors import GSBError

_KEYS = {"reason", "tests", "strict", "run", "condition", "marker"}


class ExpectedFailuresError(GSBError, ValueError):
    """The list of expected failures is malformed, or names tests that are not there."""

    hint = "correct the file given to --gsb-xfail-list"


class ExpectedFailure(NamedTuple):
    """One entry of the list."""

    test: str
    reason: str
    strict: bool = True
    run: bool = True
    marker: str | None = None


def load(path: Path) -> dict[str, ExpectedFailure]:
    """Read a list.

    Returns
    -------
    dict of str to ExpectedFailure
        By test id; only groups whose condition holds.

    Raises
    ------
    ExpectedFailuresError
        The file cannot be read, a group lacks its reason, has an unknown key, or an id stands there twice.
    """
    try:
        import yaml
    except ImportError as error:
        raise ExpectedFailuresError(
            "PyYAML is needed to read a list of expected failures", hint="pip install 'shmpool[pytest]'"
        ) from error
    try:
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExpectedFailuresError(f"{path}: {error}") from error
    if groups is None:
        return {}
    if not isinstance(groups, list):
        raise ExpectedFailuresError(f"{path}: a list of groups was expected, not a {type(groups).__name__}")
    found: dict[str, ExpectedFailure] = {}
    for number, group in enumerate(groups, 1):
        for entry in _read_group(group, f"{path}: group {number}"):
            if entry.test in found:
                raise ExpectedFailuresError(f"{path}: group {number}: {entry.test} stands there twice")
            found[entry.test] = entry
    return found


def _read_group(group: Any, where: str) -> list[ExpectedFailure]:
    if not isinstance(group, dict):
        raise ExpectedFailuresError(f"{where}: a mapping was expected, not a {type(group).__name__}")
    unknown = sorted(str(key) for key in group if key not in _KEYS)
    if unknown:
        raise ExpectedFailuresError(f"{where}: unknown key {unknown[0]!r}")
    reason, tests = group.get("reason"), group.get("tests")
    if not isinstance(reason, str) or not reason.strip():
        raise ExpectedFailuresError(f"{where}: no reason is given")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise ExpectedFailuresError(f"{where}: 'tests' must be a list of test ids")
    switches = {name: group.get(name, True) for name in ("strict", "run")}
    for name, value in switches.items():
        if type(value) is not bool:
            raise ExpectedFailuresError(f"{where}: {name!r} must be true or false")
    marker = group.get("marker")
    if marker is not None and not (isinstance(marker, str) and marker.isidentifier()):
        raise ExpectedFailuresError(f"{where}: 'marker' must be the name of a marker")
    if not _holds(group.get("condition"), where):
        return []
    return [ExpectedFailure(test, " ".join(reason.split()), **switches, marker=marker) for test in tests]


def _holds(condition: object, where: str) -> bool:
    if condition is None:
        return True
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(str(condition))
    except InvalidRequirement as error:
        raise ExpectedFailuresError(f"{where}: malformed condition {condition!r}") from error
    if requirement.marker is not None and not requirement.marker.evaluate():
        return False
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def unmatched(expected: Iterable[str], matched: set[str], modules: set[str]) -> list[str]:
    """Give the ids that are wrong, of those that no collected test has.

    An id whose module was not collected is right if that module exists: the run is a part of the suite.

    Parameters
    ----------
    expected : iterable of str
        All ids of the list.
    matched : set of str
        Those that a test has.
    modules : set of str
        Names of all modules that were collected, and the files of node ids.
    """
    return sorted(
        test for test in set(expected) - matched if (home := test.partition("::")[0]) in modules or not _exists(home)
    )


def _exists(home: str) -> bool:
    if home.endswith(".py"):
        return Path(home).exists()
    try:
        return importlib.util.find_spec(home) is not None
    except (ImportError, ValueError):
        return False
