# SPDX-License-Identifier: BSD-3-Clause
"""Who gets proxies, by which way of reading; what stays as it is; and that everything comes back."""

from __future__ import annotations

import importlib
import multiprocessing.spawn
import sys
import threading
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import gsb.accel
import pytest
import sklearn
import sklearn.decomposition._pca
import sklearn.naive_bayes
from gsb import get_config
from gsb.accel._install import AccelError
from sklearn.base import BaseEstimator, clone

Read = Callable[..., Any]

PCA = sklearn.decomposition.PCA
GaussianNB = sklearn.naive_bayes.GaussianNB

WAYS = {
    "from import": "from sklearn.{module} import {name} as found",
    "import": "import sklearn.{module}\nfound = sklearn.{module}.{name}",
    "import as": "import sklearn.{module} as module\nfound = module.{name}",
    "inside a function": "def f():\n from sklearn.{module} import {name}\n return {name}\nfound = f()",
    "lazily": "import sklearn\nfound = sklearn.{module}.{name}",
    "star": "from sklearn.{module} import *\nfound = {name}",
    "importlib": "import importlib\nfound = importlib.import_module('sklearn.{module}').{name}",
    "getattr": "import importlib\nfound = getattr(importlib.import_module('sklearn.{module}'), '{name}')",
    "getattr, called": "import sklearn.{module} as m\nfound = type(getattr(m, '{name}')())",
    "called": "import sklearn.{module} as m\nfound = type(m.{name}())",
    "in a comprehension": "import sklearn.{module} as m\n[found] = [getattr(m, n) for n in ['{name}']]",
    "pkgutil": "import pkgutil\nfound = pkgutil.resolve_name('sklearn.{module}:{name}')",
    "inspect": "import inspect, sklearn.{module} as m\nfound = dict(inspect.getmembers(m, inspect.isclass))['{name}']",
    "many names": "\n".join(f"name_{i} = {i}" for i in range(300))
    + "\nimport sklearn.{module} as m\nfound = getattr(m, '{name}')",
}
# The second defines its classes itself, where picklers look for them; the third is nobody's public module.
PLACES = {"decomposition": "PCA", "naive_bayes": "GaussianNB", "decomposition._pca": "PCA"}


@pytest.mark.parametrize("module", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_program_reads_proxy(installed: None, read: Read, way: str, module: str) -> None:
    if way == "star" and module == "decomposition._pca":
        pytest.skip("a private module exports nothing")
    name = PLACES[module]
    found = read(WAYS[way].format(module=module, name=name))
    assert found.__module__ == f"gsb.{module.partition('.')[0]}"
    assert found is getattr(importlib.import_module(found.__module__), name)


@pytest.mark.parametrize(
    "name", ["sklearn.pipeline", "sklearn.utils.estimator_checks", "gsb.proxy", "other", "other.part"]
)
@pytest.mark.parametrize("way", ["from import", "import", "getattr", "inside a function"])
def test_others_read_the_original(read: Read, name: str, way: str) -> None:
    gsb.accel.install(exclude=["other"])
    try:
        assert read(WAYS[way].format(module="naive_bayes", name="GaussianNB"), name) is GaussianNB
        assert read(WAYS[way].format(module="naive_bayes", name="GaussianNB"), "another") is not GaussianNB
    finally:
        gsb.accel.uninstall()


@pytest.mark.parametrize(
    "name", ["sklearn.decomposition.tests.test_pca", "sklearn.tests.test_common", "sklearn.conftest"]
)
def test_tests_of_scikit_learn_are_a_program(installed: None, read: Read, name: str) -> None:
    assert read("from sklearn.decomposition import PCA as found", name) is not PCA


def test_scikit_learn_works_with_its_own(installed: None, read: Read) -> None:
    bagging = read("from sklearn.ensemble import BaggingRegressor as found")(n_estimators=1)
    bagging.fit([[0.0], [1.0]], [0.0, 1.0])
    assert type(bagging.estimators_[0]).__module__ == "sklearn.tree._classes"


def test_compositions_stay(installed: None, read: Read) -> None:
    assert read("from sklearn.pipeline import Pipeline as found").__module__ == "sklearn.pipeline"
    assert read("from sklearn.model_selection import GridSearchCV as found").__module__.startswith("sklearn.")


def test_relations_between_proxy_and_original(installed: None, read: Read) -> None:
    proxy = read("from sklearn.decomposition import PCA as found")
    assert isinstance(PCA(), proxy)
    assert isinstance(proxy(), PCA)
    assert issubclass(PCA, proxy)
    assert issubclass(proxy, PCA)
    assert not isinstance(GaussianNB(), proxy)
    assert not issubclass(BaseEstimator, proxy)
    assert type(proxy()) is proxy
    assert type(clone(proxy())) is proxy
    assert type(clone(PCA())) is PCA
    assert repr(proxy) == repr(PCA)
    assert repr(proxy(n_components=2)) == "PCA(n_components=2)"


def test_users_subclass(installed: None, read: Read) -> None:
    source = (
        "from sklearn.decomposition import PCA\nclass Mine(PCA):\n"
        " def own(self): return super().fit([[1.0, 2.0], [3.0, 5.0]])\nfound = Mine, PCA"
    )
    mine, proxy = read(source)
    assert isinstance(mine(), proxy)
    assert isinstance(mine(), PCA)
    assert not isinstance(proxy(), mine)
    assert not isinstance(PCA(), mine)
    fitted = mine(n_components=1).own()
    assert fitted.components_.shape == (1, 2)
    assert fitted.gsb_report_.backend == "local"
    assert "Mine" in repr(mine)


def test_after_uninstall_they_differ_again(read: Read) -> None:
    gsb.accel.install()
    proxy = read("from sklearn.decomposition import PCA as found")
    gsb.accel.uninstall()
    assert not isinstance(PCA(), proxy)
    assert repr(proxy) == "<class 'gsb.decomposition.PCA'>"


@pytest.mark.parametrize("imported", ["from sklearn.utils import", "from sklearn.utils.discovery import"])
def test_all_estimators(installed: None, read: Read, imported: str) -> None:
    found = dict(read(f"{imported} all_estimators\nfound = all_estimators('transformer')"))
    assert found["PCA"] is read("from sklearn.decomposition import PCA as found")
    assert found["ColumnTransformer"].__module__.startswith("sklearn.")


def test_mocks_reach_everybody_and_leave_no_trace(installed: None, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sklearn.naive_bayes
    with mock.patch("sklearn.naive_bayes.GaussianNB") as fake:
        assert read("from sklearn.naive_bayes import GaussianNB as found") is fake
        assert read("from sklearn.naive_bayes import GaussianNB as found", "sklearn.pipeline") is fake
    with monkeypatch.context() as patch:
        patch.setattr(module, "GaussianNB", 7)
        assert module.GaussianNB == 7
    with monkeypatch.context() as patch:
        patch.delattr(module, "GaussianNB")
        assert not hasattr(module, "GaussianNB")
        with pytest.raises(AttributeError, match=r"module 'sklearn\.naive_bayes' has no attribute 'GaussianNB'"):
            module.GaussianNB  # noqa: B018
        with pytest.raises(ImportError, match="cannot import name 'GaussianNB'"):
            read("from sklearn.naive_bayes import GaussianNB as found")
    assert vars(module)["GaussianNB"] is GaussianNB


def test_reload(read: Read) -> None:
    module = importlib.import_module("sklearn.dummy")
    before = dict(vars(module))
    try:
        gsb.accel.install()
        assert importlib.reload(module) is module
        fresh = vars(module)["DummyClassifier"]
        assert fresh is not before["DummyClassifier"]
        found = read("from sklearn.dummy import DummyClassifier as found")
        assert found.__mro__[2] is fresh
        gsb.accel.uninstall()
        assert type(module) is types.ModuleType
        assert module.DummyClassifier is fresh
        assert (
            type(module.__spec__.loader).__module__
            == module.__loader__.__class__.__module__
            == "_frozen_importlib_external"
        )
    finally:
        gsb.accel.uninstall()
        vars(module).update(before)


# ---------------------------------------------------------------------------------- life
def _state() -> dict[str, Any]:
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sklearn"}
    return {
        "types": {name: type(module) for name, module in modules.items()},
        "dicts": {name: {key: id(value) for key, value in vars(module).items()} for name, module in modules.items()},
        "finders": list(sys.meta_path),
        "spawn": multiprocessing.spawn.get_preparation_data,
        "settings": get_config(),
    }


def test_uninstall_restores_exactly(read: Read) -> None:
    read("from sklearn.utils import all_estimators\nfound = all_estimators()")  # all modules are loaded
    gsb.accel.install()
    gsb.accel.uninstall()
    before = _state()
    gsb.accel.install(server="unix:///nonexistent")
    for name, module in PLACES.items():
        read(WAYS["from import"].format(module=name, name=module))
    during = _state()
    assert gsb.accel.is_installed()
    gsb.accel.uninstall()
    assert not gsb.accel.is_installed()
    gsb.accel.uninstall()  # nothing to do
    assert _state() == before
    assert during["dicts"] == before["dicts"]
    assert during["types"] != before["types"]
    assert during["spawn"] is not before["spawn"]
    assert during["settings"] != before["settings"]


def test_twice_is_once_and_other_settings_are_refused() -> None:
    gsb.accel.install(local_nbytes=5)
    try:
        gsb.accel.install(local_nbytes=5)
        assert get_config().local_nbytes == 5
        with pytest.raises(AccelError, match="installed with other settings"):
            gsb.accel.install(local_nbytes=6)
    finally:
        gsb.accel.uninstall()


@pytest.mark.parametrize("exclude", ["package", ["no-name"], [3]])
def test_exclude_is_checked(exclude: Any) -> None:
    with pytest.raises(AccelError, match="package"):
        gsb.accel.install(exclude=exclude)
    assert not gsb.accel.is_installed()


def test_wrong_setting_leaves_nothing_installed() -> None:
    before = _state()
    with pytest.raises(ValueError, match="colour"):
        gsb.accel.install(colour="red")
    assert not gsb.accel.is_installed()
    assert _state() == before


def test_early_imports_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    vars(main).update(Mine=PCA, other=3, clone=clone)
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.warns(UserWarning, match="not accelerated: Mine; install first"):
        gsb.accel.install()
    gsb.accel.uninstall()


def test_threads(read: Read) -> None:
    """Whoever reads while others install and uninstall gets the one or the other, and never an error."""
    errors: list[BaseException] = []
    stop = threading.Event()
    proxy = read("import gsb.naive_bayes\nfound = gsb.naive_bayes.GaussianNB")

    def reader() -> None:
        try:
            while not stop.is_set():
                assert read(WAYS["from import"].format(module="naive_bayes", name="GaussianNB")) in (proxy, GaussianNB)
                assert vars(sklearn.naive_bayes)["GaussianNB"] is GaussianNB
        except BaseException as error:
            errors.append(error)

    def switcher() -> None:
        try:
            for _ in range(20):
                gsb.accel.install()
                gsb.accel.uninstall()
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=reader) for _ in range(3)]
    switchers = [threading.Thread(target=switcher) for _ in range(3)]
    for thread in readers + switchers:
        thread.start()
    for thread in switchers:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    gsb.accel.uninstall()
    assert not errors
    assert not any(thread.is_alive() for thread in readers + switchers)
    assert type(sklearn.naive_bayes) is types.ModuleType
