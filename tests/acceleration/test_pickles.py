# SPDX-License-Identifier: BSD-3-Clause
"""What is written in an accelerated process is scikit-learn's; what is read in one is accelerated again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import pytest
import sklearn.naive_bayes
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

Read = Callable[..., Any]

X = np.random.default_rng(0).random((40, 3))
y = np.arange(40) % 2


def _joblib_dumps(value: Any) -> bytes:
    file = io.BytesIO()
    joblib.dump(value, file)
    return file.getvalue()


def _joblib_loads(data: bytes) -> Any:
    return joblib.load(io.BytesIO(data))


PICKLERS: dict[str, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    "pickle": (pickle.dumps, pickle.loads),
    "pickle, protocol 2": (lambda value: pickle.dumps(value, protocol=2), pickle.loads),
    "pickle in Python": (pickle._dumps, pickle._loads),
    "joblib": (_joblib_dumps, _joblib_loads),
    "cloudpickle": (cloudpickle.dumps, cloudpickle.loads),
    "multiprocessing": (lambda value: bytes(ForkingPickler.dumps(value)), ForkingPickler.loads),
}
pickled_by = pytest.mark.parametrize("pickler", PICKLERS)


@pickled_by
def test_proxies_come_back(installed: None, read: Read, pickler: str) -> None:
    dumps, loads = PICKLERS[pickler]
    proxy = read("from sklearn.naive_bayes import GaussianNB as found")
    data = dumps(proxy(var_smoothing=0.5).fit(X, y))
    assert b"gsb" not in data
    back = loads(data)
    assert type(back) is proxy
    assert back.var_smoothing == 0.5
    np.testing.assert_array_equal(back.predict(X), proxy(var_smoothing=0.5).fit(X, y).predict(X))
    assert loads(dumps(proxy)) is proxy


@pickled_by
def test_originals_stay_originals(installed: None, pickler: str) -> None:
    """A forest's trees are scikit-learn's own, and the forest may be, too; their classes are found by their names."""
    dumps, loads = PICKLERS[pickler]
    forest = RandomForestClassifier(n_estimators=2, random_state=0).fit(X, y)
    back = loads(dumps(forest))
    assert type(back) is RandomForestClassifier
    assert type(back.estimators_[0]) is DecisionTreeClassifier
    np.testing.assert_array_equal(back.predict(X), forest.predict(X))
    plain = sklearn.naive_bayes.__dict__["GaussianNB"]
    assert loads(dumps(plain)) is plain
    assert type(loads(dumps(plain()))) is plain


@pickled_by
def test_proxy_of_a_forest_keeps_its_trees(installed: None, read: Read, pickler: str) -> None:
    dumps, loads = PICKLERS[pickler]
    proxy = read("from sklearn.ensemble import RandomForestClassifier as found")
    forest = proxy(n_estimators=2, random_state=0).fit(X, y)
    back = loads(dumps(forest))
    assert type(back) is proxy
    assert type(back.estimators_[0]) is DecisionTreeClassifier
    np.testing.assert_array_equal(back.predict_proba(X), forest.predict_proba(X))


def test_pickle_written_by_plain_scikit_learn_stays_plain(installed: None) -> None:
    plain = sklearn.naive_bayes.__dict__["GaussianNB"]
    assert type(pickle.loads(b"\x80\x04csklearn.naive_bayes\nGaussianNB\n)\x81.")) is plain


def test_state_is_scikit_learns(installed: None, read: Read) -> None:
    """The same dict, key by key in the same order."""
    proxy = read("from sklearn.naive_bayes import GaussianNB as found")
    plain = sklearn.naive_bayes.__dict__["GaussianNB"]
    ours, theirs = proxy().fit(X, y).__getstate__(), plain().fit(X, y).__getstate__()
    assert list(ours) == list(theirs)
    assert pickle.dumps(ours) == pickle.dumps(theirs)


def test_explicit_use_names_gsb(read: Read) -> None:
    proxy = read("from gsb.naive_bayes import GaussianNB as found")
    data = pickle.dumps(proxy())
    assert b"gsb.naive_bayes" in data
    assert type(pickle.loads(data)) is proxy


def test_copies(installed: None, read: Read) -> None:
    proxy = read("from sklearn.naive_bayes import GaussianNB as found")
    fitted = proxy().fit(X, y)
    for copied in (copy.copy(fitted), copy.deepcopy(fitted)):
        assert type(copied) is proxy
        np.testing.assert_array_equal(copied.predict(X), fitted.predict(X))
    assert copy.deepcopy(proxy) is proxy


WITHOUT_GSB = """
import sys
sys.modules["gsb"] = None
import pickle, joblib
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        model = joblib.load(file) if path.endswith("joblib") else pickle.load(file)
    cls = type(model)
    print(cls.__module__, cls.__qualname__, sorted(vars(model)), model.predict([[0.0, 0.0], [5.0, 5.0]]))
"""

WRITES = """
import pickle, joblib, sys, cloudpickle
from sklearn.naive_bayes import GaussianNB
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
X, y = [[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [5.0, 5.5]], [0, 0, 1, 1]
with open("nb.pickle", "wb") as file: pickle.dump(GaussianNB().fit(X, y), file)
with open("pipe.pickle", "wb") as file: cloudpickle.dump(make_pipeline(StandardScaler(), GaussianNB()).fit(X, y), file)
joblib.dump(LinearRegression().fit(X, y), "linear.joblib")
"""


@pytest.mark.parametrize("accelerated", [True, False])
def test_loads_without_gsb(python: Any, tmp_path: Path, accelerated: bool) -> None:
    (tmp_path / "writes.py").write_text(WRITES)
    (tmp_path / "reads.py").write_text(WITHOUT_GSB)
    written = python(*(["-m", "gsb.accel"] if accelerated else []), "writes.py", GSB_FALLBACK="quiet")
    assert (written.returncode, written.stderr) == (0, "")
    read = python("reads.py", "nb.pickle", "pipe.pickle", "linear.joblib")
    assert (read.returncode, read.stderr) == (0, "")
    lines = read.stdout.splitlines()
    assert lines[0] == (
        "sklearn.naive_bayes GaussianNB ['class_count_', 'class_prior_', 'classes_', 'epsilon_', 'n_features_in_', "
        "'priors', 'theta_', 'var_', 'var_smoothing'] [0 1]"
    )
    assert lines[1] == "sklearn.pipeline Pipeline ['memory', 'steps', 'transform_input', 'verbose'] [0 1]"
    assert lines[2].startswith("sklearn.linear_model._base LinearRegression ['coef_', 'copy_X',")
