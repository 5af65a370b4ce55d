# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's shipped tests, plain and through the bridge, compared case by case: ``make test-sklearn``.

Every case that passes plain must pass through the bridge, or stand in ``xfail-sklearn.yaml`` with the reason. The
table goes to ``docs/scikit-learn.md``. The plain run is done once per version of scikit-learn and kept in ``build/``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy
import scipy
import sklearn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGE = Path(sklearn.__file__).parent
EXPECTED = HERE / "xfail-sklearn.yaml"
PAGE = ROOT / "docs" / "scikit-learn.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"

MODULES = (
    "sklearn.decomposition",
    "sklearn.cluster",
    "sklearn.linear_model",
    "sklearn.tests.test_common",
    "sklearn.tests.test_pipeline",
    "sklearn.model_selection.tests.test_search",
)

# One thread each: the pools of client and server would fight for the cores, and results must not depend on it.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "SKLEARN_SKIP_NETWORK_TESTS": "1",
    "PYTHONHASHSEED": "0",
}

Case = tuple[str, str]


def pytest_command(modules: Sequence[str], *options: str) -> list[str]:
    """Give the command line that runs modules of scikit-learn's suite."""
    return [
        *(sys.executable, "-m", "pytest", "--pyargs", *modules, "-q", "--tb=short", "-rfE"),
        *("-c", str(HERE / "suite.ini"), "--rootdir", str(PACKAGE)),
        *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:benchmark", *options),
    ]


def outcomes(report: Path) -> dict[Case, str]:
    """Read a JUnit report.

    Returns
    -------
    dict
        ``passed``, ``failed``, ``skipped`` or ``xfailed`` by module and name of the case.
    """
    found: dict[Case, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        key = (case.get("classname", ""), case.get("name", ""))
        outcome = "passed"
        for child in case:
            if child.tag in ("failure", "error"):
                outcome = "failed"
            elif child.tag == "skipped" and outcome != "failed":
                outcome = "xfailed" if child.get("type") == "pytest.xfail" else "skipped"
        # Setup and teardown of one case are reported apart where one of them fails.
        found[key] = "failed" if found.get(key) == "failed" else outcome
    return found


def run(modules: Sequence[str], report: Path, *options: str) -> dict[Case, str]:
    """Run modules and give the outcomes; ends the program if pytest could not run."""
    command = pytest_command(modules, "--junitxml", str(report), *options)
    print("+", " ".join(command), flush=True)
    status = subprocess.run(command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=False).returncode
    if status not in (0, 1) or not report.exists():
        raise SystemExit(f"pytest has ended with exit status {status}")
    return outcomes(report)


def compare(plain: dict[Case, str], through: dict[Case, str]) -> list[str]:
    """Say what is worse through the bridge and not expected to be."""
    worse = []
    for case, before in sorted(plain.items()):
        after = through.get(case, "missing")
        # xfailed after passed: the list of expected failures says so, and is strict.
        as_good = {"passed": ("passed", "xfailed"), "skipped": ("skipped", "passed"), "xfailed": ("xfailed", "passed")}
        if after not in as_good.get(before, (after,)):
            worse.append(f"{'::'.join(case)}: {before} plain, {after} through the bridge")
    worse += [f"{'::'.join(case)}: only through the bridge" for case in sorted(through.keys() - plain.keys())]
    return worse


def group_of(case: Case, modules: Sequence[str]) -> str:
    """Give the module of the command line that a case belongs to."""
    name = f"sklearn.{case[0]}"
    return max((module for module in modules if f"{name}.".startswith(f"{module}.")), key=len, default=name)


def table(plain: dict[Case, str], through: dict[Case, str], stats: dict[str, object], modules: Sequence[str]) -> str:
    """Give the table for the documentation."""
    versions = f"scikit-learn {sklearn.__version__}, NumPy {numpy.__version__}, SciPy {scipy.__version__}"
    rows = [
        f"{versions}, Python {platform.python_version()}, CPU backend.",
        "",
        "| tests | cases | passed plain | of these passed through the bridge | expected failures | skipped |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    totals: Counter[str] = Counter()
    for module in modules:
        counts: Counter[str] = Counter()
        for case, before in plain.items():
            if group_of(case, modules) != module:
                continue
            counts["cases"] += 1
            counts["skipped"] += before == "skipped"
            if before == "passed":
                counts["plain"] += 1
                counts[through.get(case, "missing")] += 1
        rows.append(_row(f"`{module}`", counts))
        totals += counts
    rows.append(_row("all", totals))
    share = f"{100 * float(str(stats['share_sent'])):.1f} %"
    rows += ["", f"Calls of estimators: {stats['calls_sent']:,} answered by the server ({share}),"]
    rows += [f"{stats['calls_local']:,} carried out in the process of the tests, for these reasons:", ""]
    rows += ["| calls | reason |", "|--:|---|"]
    reasons = stats["reasons"]
    assert isinstance(reasons, dict)
    rows += [f"| {calls:,} | {reason} |" for reason, calls in reasons.items()]
    return "\n".join(rows)


def _row(name: str, counts: Counter[str]) -> str:
    cells = [counts[key] for key in ("cases", "plain", "passed", "xfailed", "skipped")]
    return " | ".join([f"| {name}", *(f"{cell:,}" for cell in cells)]) + " |"


def expected_failures() -> str:
    """Give the list of expected failures with their reasons, for the documentation."""
    import yaml

    groups = yaml.safe_load(EXPECTED.read_text()) or []
    if not groups:
        return "No failure is expected."
    rows = ["Expected failures, each strict:", ""]
    for group in groups:
        tests = group["tests"]
        names = dict.fromkeys(test.partition("[")[0].removeprefix("sklearn.") for test in tests)
        shown = ", ".join(f"`{name}`" for name in names)
        rows.append(f"* {' '.join(group['reason'].split())} ({len(tests)}: {shown})")
    return "\n".join(rows)


def write_page(text: str) -> None:
    """Put the table between its two marks."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> int:
    """Run, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"default: {' '.join(MODULES)}; these alone go to the docs")
    parser.add_argument("-n", "--processes", default="2", help="worker processes of pytest-xdist (default 2)")
    parser.add_argument("--again", action="store_true", help="do the plain run again")
    arguments = parser.parse_args()
    modules = arguments.modules or MODULES
    whole = not arguments.modules
    folder = ROOT / "build" / "test-sklearn"
    folder.mkdir(parents=True, exist_ok=True)
    spread = ("-n", arguments.processes, "--dist", "worksteal")
    name = "all" if whole else "-".join(modules)
    plain_report = folder / f"plain-{sklearn.__version__}-{name}.xml"
    if arguments.again or not plain_report.exists():
        part = folder / "part.xml"
        run(modules, part, *spread)
        part.replace(plain_report)  # a run that was broken off leaves none
    plain = outcomes(plain_report)
    stats_path = folder / f"stats-{name}.json"
    through = run(
        modules,
        folder / f"bridge-{name}.xml",
        *spread,
        *("-p", "gsb.pytest_plugin", "--gsb-xfail-list", str(EXPECTED), "--gsb-stats", str(stats_path)),
    )
    stats = json.loads(stats_path.read_text())
    worse = compare(plain, through)
    text = f"{table(plain, through, stats, modules)}\n\n{expected_failures()}"
    print(f"\n{text}\n")
    if worse:
        print(f"{len(worse)} cases are worse through the bridge:", *worse, sep="\n  ")
        return 1
    if not stats["calls_of_server"]:
        print("the server was not used")
        return 1
    if whole:
        write_page(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
