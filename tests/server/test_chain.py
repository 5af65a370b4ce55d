# SPDX-License-Identifier: BSD-3-Clause
"""Which backend does a job: the chain with its refusals and hand-overs, the choice at start, strict calls."""

from __future__ import annotations

import ctypes
import pickle
import threading
import types
from typing import Any

import numpy as np
import pytest
from gsb_server.backends import hardware, registry
from gsb_server.backends.base import Deferred, Job, Outcome, Probe, RefusedByBackend
from gsb_server.backends.chain import ChainBackend
from gsb_server.backends.sklearn import SklearnBackend
from gsb_server.settings import Settings
from gsb_server.summary import summarize

X = np.random.default_rng(3).standard_normal((60, 4))


class Halting(SklearnBackend):
    """scikit-learn under another name, which refuses what it is told to."""

    accelerated = True
    max_workers = 1

    def __init__(self, name: str, refuses: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.name = name
        self.refuses = set(refuses)
        self.ran: list[str] = []
        self.closed = False
        self.inside = 0

    def probe(self) -> Probe:
        return Probe(available=True, reason=f"{self.name} works", device=f"device of {self.name}", versions={"v": "1"})

    def _object(self, what: str) -> None:
        if what in self.refuses:
            raise RefusedByBackend(f"no {what} here")

    def run(self, job: Job) -> Outcome:
        assert self.inside < 1, "more threads than max_workers"
        self.inside += 1
        try:
            self._object(job.method)
            self.ran.append(job.method)
            return super().run(job)
        finally:
            self.inside -= 1

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        self._object("adopt")
        self.ran.append("adopt")
        return super().adopt(estimator, plain)

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        self._object("load")
        return super().load(estimator, params, state)

    def close(self) -> None:
        self.closed = True


def job(method: str, model: Any = None, *args: Any, strict: bool = False, **params: Any) -> Job:
    return Job("sklearn.preprocessing.StandardScaler", params, model, method, args or (X,), {}, {}, strict)


def chain(*backends: Any, **unavailable: str) -> ChainBackend:
    made = ChainBackend(backends, unavailable)
    made.probe()
    return made


def test_the_first_that_does_not_refuse_does_it_and_the_reasons_are_told() -> None:
    first, second, cpu = Halting("first", ("fit",)), Halting("second"), SklearnBackend()
    outcome = chain(first, second, cpu).run(job("fit"))
    assert (outcome.backend, outcome.device) == ("second", "device of second")
    assert outcome.reason == "first: no fit here"
    assert (first.ran, second.ran) == ([], ["fit"])
    cpu_only = chain(Halting("first", ("fit",)), Halting("second", ("fit",)), cpu).run(job("fit"))
    assert (cpu_only.backend, cpu_only.reason) == ("sklearn", "first: no fit here; second: no fit here")
    assert cpu_only.device.startswith("cpu")


def test_all_refuse() -> None:
    with pytest.raises(RefusedByBackend, match=r"^a: no fit here; b: no fit here$") as caught:
        chain(Halting("a", ("fit",)), Halting("b", ("fit",))).run(job("fit"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_refused_method_takes_the_model_along_once() -> None:
    first, second = Halting("first", ("transform",)), Halting("second")
    both = chain(first, second)
    fitted = both.run(job("fit"))
    expected = vars(fitted.model.model)["mean_"]
    for turn in range(3):
        outcome = both.run(job("transform", fitted.model))
        assert (outcome.backend, outcome.reason) == ("second", "first: no transform here")
        # Only the hand-over makes the model larger.
        assert (outcome.nbytes > fitted.nbytes) == (turn == 0)
        np.testing.assert_allclose(outcome.result, (X - X.mean(0)) / X.std(0))
    assert second.ran == ["adopt", "transform", "transform", "transform"]
    # The model's home is where it was; the next method goes there first.
    assert both.run(job("inverse_transform", fitted.model)).backend == "first"
    np.testing.assert_array_equal(both.export(fitted.model).mean_, expected)
    np.testing.assert_array_equal(both.attributes(fitted.model)["mean_"], expected)


def test_a_state_changed_elsewhere_stays_there_and_old_copies_are_forgotten() -> None:
    first, second, third = (
        Halting("first", ("partial_fit", "transform")),
        Halting("second", ("transform",)),
        Halting("3"),
    )
    all_ = chain(first, second, third)
    held = all_.run(job("fit")).model
    all_.run(job("transform", held))  # a copy in the third
    outcome = all_.run(job("partial_fit", held))
    assert outcome.backend == "second"
    seen = all_.attributes(held)["n_samples_seen_"]
    assert seen == 2 * len(X)
    # The third is given the new state, not asked with its old copy.
    again = all_.run(job("transform", held))
    assert again.backend == "3"
    assert third.ran == ["adopt", "transform", "adopt", "transform"]
    assert first.ran == ["fit"], "a backend that no longer has the state is not asked"


def test_errors_of_an_estimator_are_not_refusals() -> None:
    first, second = Halting("first"), Halting("second")
    with pytest.raises(ValueError, match="NaN"):
        chain(first, second).run(
            Job("sklearn.decomposition.PCA", {}, None, "fit", (np.full((5, 2), np.nan),), {}, {}),
        )
    assert second.ran == []


def test_a_hand_over_that_is_refused_goes_on_to_the_next() -> None:
    all_ = chain(Halting("a", ("transform",)), Halting("b", ("adopt",)), SklearnBackend())
    outcome = all_.run(job("transform", all_.run(job("fit")).model))
    assert (outcome.backend, outcome.reason) == ("sklearn", "a: no transform here; b: no adopt here")


def test_load_and_adopt_find_the_first_that_takes_them() -> None:
    all_ = chain(Halting("a", ("load", "adopt")), Halting("b"))
    state = {"mean_": np.zeros(4), "scale_": np.ones(4), "var_": np.ones(4), "n_features_in_": 4, "n_samples_seen_": 5}
    for held, nbytes in (
        all_.load("sklearn.preprocessing.StandardScaler", {}, state),
        all_.adopt("sklearn.preprocessing.StandardScaler", all_.run(job("fit")).model.model),
    ):
        assert nbytes > 0
        assert all_.run(job("transform", held)).backend == "b"
    with pytest.raises(RefusedByBackend, match="a: no load here"):
        chain(Halting("a", ("load",))).load("sklearn.preprocessing.StandardScaler", {}, state)


def test_strict_jobs_go_to_a_gpu_or_nowhere() -> None:
    gpu, cpu = Halting("gpu", ("fit",)), SklearnBackend()
    both = chain(gpu, cpu, cuml="cuML is not installed")
    with pytest.raises(RefusedByBackend, match=r"^gpu: no fit here; cuml: cuML is not installed$"):
        both.run(job("fit", strict=True))
    assert both.run(job("fit")).backend == "sklearn"
    held = both.run(job("fit")).model
    with pytest.raises(RefusedByBackend, match="the model is held by sklearn, which has no GPU"):
        both.run(job("transform", held, strict=True))
    gpu.refuses.clear()
    assert both.run(job("fit", strict=True)).backend == "gpu"


def test_a_backend_is_entered_by_as_many_threads_as_it_allows_and_adopts_once() -> None:
    first, second = Halting("first", ("transform",)), Halting("second")
    both = chain(first, second)
    held = both.run(job("fit")).model
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                assert both.run(job("transform", held)).backend == "second"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert second.ran.count("adopt") == 1


def test_closing_closes_all() -> None:
    members = Halting("a"), Halting("b")
    ChainBackend(members).close()
    assert [member.closed for member in members] == [True, True]


def test_deferred_attributes_are_named_not_sent() -> None:
    found = summarize({"_fit_X": Deferred("large"), "estimators_": Deferred("opaque"), "n_": 3})
    assert found == {"attrs": {"n_": 3}, "large": ["_fit_X"], "opaque": ["estimators_"]}


# ---------------------------------------------------------------------------------- the choice at start


class Worker(Halting):
    """Stands for the GPU worker."""

    answers: dict[str, Probe] = {}
    made: list[Worker] = []

    def __init__(self, **given: Any) -> None:
        super().__init__("gpu", ("fit_transform",))
        self.given = given
        names = {path: name for name, path in registry._ON_THE_GPU.items()}
        self.probes = {names[path]: self.answers[names[path]] for path in given["backends"]}
        Worker.made.append(self)

    def probe(self) -> Probe:
        good = [probe for probe in self.probes.values() if probe.available]
        return good[0] if good else Probe(available=False, reason="the worker has no backend that works")


YES = Probe(available=True, reason="cuML 26.10 on an abacus", device="abacus")
NO = Probe(available=False, reason="cuML is not installed")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[Worker]:
    module = types.ModuleType("gsb_server.gpu.supervisor")
    module.SupervisedBackend = Worker  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    monkeypatch.setattr(hardware, "missing", lambda: "")
    monkeypatch.setattr(Worker, "made", [])
    monkeypatch.setattr(Worker, "answers", {"cuml": YES, "array_api": YES})
    return Worker


def test_auto_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "missing", lambda: "there is no NVIDIA driver")
    choice = registry.choose("auto", object(), Settings())
    assert (choice.backend.name, choice.names, choice.probe.available) == ("sklearn", ("sklearn",), True)
    assert choice.reason == "cuml, array_api: there is no NVIDIA driver; scikit-learn on the CPU"
    with pytest.raises(ValueError, match="'cuml' does not work here: there is no NVIDIA driver"):
        registry.choose("cuml", object(), Settings())
    assert registry.choose("sklearn").reason == "chosen by name: scikit-learn on the CPU"
    with pytest.raises(ValueError, match="there are: auto, cuml, array_api, sklearn"):
        registry.choose("abacus")


def test_a_backend_that_cannot_work_ends_the_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gsb_server import __main__ as command

    monkeypatch.setattr(hardware, "missing", lambda: "there is no NVIDIA driver")
    for name, words in (
        ("cuml", "'cuml' does not work here: there is no NVIDIA driver"),
        ("abacus", "there are: auto"),
    ):
        assert command.main(["--backend", name]) == 2
        said = capsys.readouterr().err
        assert said.startswith("gsb_server: ")
        assert words in said
        assert said.count("\n") == 1


def test_auto_with_a_gpu(worker: type[Worker]) -> None:
    pool, settings = object(), Settings()
    choice = registry.choose("auto", pool, settings)
    assert choice.names == ("cuml", "array_api", "sklearn")
    assert (choice.reason, choice.probe.device) == ("cuML 26.10 on an abacus", "abacus")
    given = worker.made[0].given
    assert (given["pool"], given["settings"], given["device"]) == (pool, settings, "cupy")
    assert given["backends"] == (
        "gsb_server.backends.cuml:CumlBackend",
        "gsb_server.backends.array_api:ArrayApiBackend",
    )
    outcome = choice.backend.run(job("fit_transform"))
    assert (outcome.backend, outcome.reason) == ("sklearn", "gpu: no fit_transform here")


def test_one_of_two_works(worker: type[Worker]) -> None:
    worker.answers["cuml"] = NO
    choice = registry.choose("auto", object(), Settings())
    assert choice.names == ("array_api", "sklearn")
    assert choice.reason == "cuml: cuML is not installed; cuML 26.10 on an abacus"
    assert not choice.probes["cuml"].available


def test_none_of_two_works_and_the_worker_is_closed(worker: type[Worker]) -> None:
    worker.answers.update(cuml=NO, array_api=NO)
    choice = registry.choose("auto", object(), Settings())
    assert choice.names == ("sklearn",)
    assert worker.made[0].closed
    assert choice.reason.startswith("cuml, array_api: cuML is not installed")


def test_chosen_by_name_leaves_the_other_out(worker: type[Worker]) -> None:
    choice = registry.choose("array_api", object(), Settings())
    assert worker.made[0].given["backends"] == ("gsb_server.backends.array_api:ArrayApiBackend",)
    assert choice.names == ("array_api", "sklearn")


def test_no_worker_without_a_pool(worker: type[Worker]) -> None:
    assert "no pool" in registry.choose("auto").reason
    assert worker.made == []


def test_a_worker_that_cannot_be_imported_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "missing", lambda: "")
    monkeypatch.setitem(__import__("sys").modules, "gsb_server.gpu.supervisor", None)
    assert "cannot be imported" in registry.choose("auto", object(), Settings()).reason


class _Driver:
    """What ``ctypes.CDLL`` gives for a driver of some version."""

    def __init__(self, version: int, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, pointer: Any) -> int:  # noqa: N802 - the driver's name
        pointer._obj.value = self.version
        return self.status


@pytest.mark.parametrize(
    ("version", "cupy", "expected"),
    [
        (None, False, "no NVIDIA driver"),
        (11080, True, "is for CUDA 11.8"),
        (12040, False, "pip install 'shmpool[cuda12]'"),
        (13010, False, "pip install 'shmpool[cuda13]'"),
        (13000, True, ""),
    ],
)
def test_what_is_missing(monkeypatch: pytest.MonkeyPatch, version: int | None, cupy: bool, expected: str) -> None:
    def load(name: str) -> Any:
        if version is None:
            raise OSError(name)
        return _Driver(version)

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: object() if cupy else None)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    found = hardware.missing()
    assert expected in found
    assert bool(found) == bool(expected)


def test_a_driver_that_does_not_answer_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Driver(13000, status=999))
    assert hardware.driver_cuda_version() is None
    assert "driver" in hardware.advice(None)


# ---------------------------------------------------------------------------------- through the server


def test_a_strict_call_without_a_gpu_is_refused(peer: Any) -> None:
    answer = peer.call("decomposition.PCA", "fit", X, strict=True)
    assert (answer.status, answer.code) == (422, "gpu_refused")
    assert "PCA.fit cannot be done on a GPU" in answer.json["error"]["message"]
    assert peer.call("decomposition.PCA", "fit", X, strict="yes").code == "malformed"
    assert peer.ok("decomposition.PCA", "fit", X, strict=False)["backend"] == "sklearn"


def test_a_strict_server(make_server: Any, make_peer: Any) -> None:
    server = make_server(strict_gpu=True)
    client = make_peer(server)
    assert client.call("decomposition.PCA", "fit", X).code == "gpu_refused"
    assert client.call("decomposition.PCA", "fit", X, strict=False).code == "gpu_refused", "a client cannot loosen it"


def test_strictness_comes_from_variable_option_and_gsb_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from gsb.cli import commands
    from gsb.cli import serve as starter
    from gsb_server import __main__ as command
    from gsb_server import listen
    from typer.testing import CliRunner

    assert Settings.from_env({"GSB_STRICT_GPU": "1"}).strict_gpu
    assert not Settings.from_env({}).strict_gpu
    seen: list[Any] = []
    monkeypatch.setattr(listen, "serve", lambda settings, **given: seen.append(settings.strict_gpu) or 0)
    assert command.main(["--strict-gpu"]) == 0
    monkeypatch.setenv("GSB_STRICT_GPU", "yes")
    assert command.main([]) == 0
    assert seen == [True, True]
    monkeypatch.setattr(starter, "run_server", lambda console, arguments, socket: seen.append(arguments) or 0)
    assert CliRunner().invoke(commands.app, ["serve", "--strict-gpu", "--backend", "cuml"]).exit_code == 0
    assert seen[-1] == ["--backend", "cuml", "--log-level", "warning", "--strict-gpu"]


def test_the_server_reports_who_did_it(worker: type[Worker], make_server: Any, make_peer: Any) -> None:
    server = make_server()
    assert server.service.choice.names == ("cuml", "array_api", "sklearn")
    client = make_peer(server)
    fitted = client.ok("preprocessing.StandardScaler", "fit", X)
    assert (fitted["backend"], fitted["device"]) == ("gpu", "abacus")
    scaled = client.ok("preprocessing.StandardScaler", "fit_transform", X)
    assert (scaled["backend"], scaled["reason"]) == ("sklearn", "gpu: no fit_transform here")
    assert scaled["device"].startswith("cpu")
    client.decode(scaled["result"])
    strict = client.call("preprocessing.StandardScaler", "fit_transform", X, strict=True)
    assert strict.code == "gpu_refused"
    assert "gpu: no fit_transform here" in strict.json["error"]["message"]
    before = server.service.models.nbytes
    worker.made[0].refuses.add("transform")
    again = client.ok("preprocessing.StandardScaler", "transform", X, model=fitted["model"])
    client.decode(again["result"])
    assert again["backend"] == "sklearn"
    assert server.service.models.nbytes > before, "the copy that was handed over counts"
    stated = server.request("POST", "/v1/state", {"session": client.session, "model": fitted["model"]})
    assert stated.status == 200, stated
    for array in (stated.json["pickle"], *stated.json["buffers"]):
        client.decode(array)
