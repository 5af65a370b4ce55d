# SPDX-License-Identifier: BSD-3-Clause
"""The package as a whole: what it exports, what it imports, settings, reports, the progress bar."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import threading
from typing import Any

import gsb
import numpy as np
import pytest
from gsb._config import ConfigError
from gsb.decomposition import PCA
from gsb.preprocessing import StandardScaler
from gsb.protocol import STAGES
from gsb.svm import SVC
from rich.console import Console

rng = np.random.default_rng(0)


def loaded_by(statement: str) -> set[str]:
    script = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(found.stdout.split())


def test_the_protocol_loads_neither_scikit_learn_nor_the_client() -> None:
    loaded = loaded_by("import gsb.protocol, gsb.runtime")
    assert not {"sklearn", "shmpool", "gsb._client", "gsb.proxy", "starlette"} & loaded


def test_the_client_does_not_load_the_server() -> None:
    loaded = loaded_by("import gsb.proxy, gsb._client; gsb.all_proxies()")
    assert not [
        name for name in loaded if name.partition(".")[0] in ("gsb_server", "starlette", "uvicorn", "cupy", "cuml")
    ]


def test_exports_are_there() -> None:
    for name in gsb.__all__:
        assert getattr(gsb, name) is not None
        assert name in dir(gsb)
    with pytest.raises(AttributeError):
        gsb.nonsense  # noqa: B018


# --------------------------------------------------------------------------------- settings
def test_config_restores_what_was() -> None:
    before = gsb.get_config()
    with gsb.config(timeout=3.0, fallback="local") as inside:
        assert inside.timeout == 3.0
        assert gsb.get_config().fallback == "local"
        with gsb.config(timeout=None):
            assert gsb.get_config().timeout is None
        assert gsb.get_config().timeout == 3.0
    assert gsb.get_config() == before


@pytest.mark.parametrize("settings", [{"fallback": "yes"}, {"timeout": 0}, {"timeout": -1.0}, {"nonsense": 1}])
def test_config_refuses_nonsense(settings: dict[str, Any]) -> None:
    before = gsb.get_config()
    with pytest.raises(ConfigError):
        gsb.config(**settings)
    assert gsb.get_config() == before


# --------------------------------------------------------------------------------- reports
@pytest.mark.parametrize("n", [10, 20_000])
def test_stages_sum_to_the_total(server: Any, n: int) -> None:
    estimator = StandardScaler()
    estimator.fit_transform(rng.standard_normal((n, 8)))
    report = estimator.gsb_report_
    assert report is gsb.last_report()
    assert set(report.stages) == set(STAGES)
    assert sum(report.stages.values()) == pytest.approx(report.total, rel=0.05)
    assert all(seconds >= 0 for seconds in report.stages.values())
    assert 0 < report.overhead < report.total
    assert (report.estimator, report.method) == ("sklearn.preprocessing.StandardScaler", "fit_transform")
    assert report.device
    assert report.reason
    assert (report.nbytes_sent, report.nbytes_received) == ((0, 0) if n == 10 else (n * 64, n * 64))
    assert (len(report.slots_sent), len(report.slots_received)) == ((0, 0) if n == 10 else (1, 1))
    assert json.loads(json.dumps(report.to_dict()))["total"] == report.total
    for name in (*STAGES, "total", "StandardScaler.fit_transform"):
        assert name in str(report)
    assert pickle.loads(pickle.dumps(report)) == report


def test_last_report_is_of_the_thread(server: Any) -> None:
    StandardScaler().fit(np.eye(3))
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(gsb.last_report()))
    thread.start()
    thread.join(30)
    assert found == [None]
    assert gsb.last_report() is not None


# --------------------------------------------------------------------------------- progress
def test_progress_shows_calls_and_stages(server: Any) -> None:
    out = io.StringIO()
    data = rng.standard_normal((4000, 20))
    with gsb.progress(Console(file=out, force_terminal=True, width=120)):
        PCA(2).fit(data)
        SVC(kernel="linear").fit(data, rng.integers(0, 2, 4000))
        with pytest.raises(ValueError, match="NaN"):
            PCA(2).fit(np.full((3, 3), np.nan))
    text = out.getvalue()
    for expected in ("PCA.fit", "SVC.fit", "computing", "done in", "failed"):
        assert expected in text
    assert not [thread for thread in threading.enumerate() if thread.name == "gsb-progress"]
    PCA(2).fit(data)
    assert out.getvalue() == text
