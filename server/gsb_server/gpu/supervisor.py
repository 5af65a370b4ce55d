# SPDX-License-Identifier: BSD-3-Clause
"""The server's side of the GPU worker: a `Backend` that forwards jobs, and the thread that keeps the worker alive.

One job is with the worker at a time; the others wait here, in the order in which they came, so that a worker that dies
takes one job with it and not a queue. What ends a worker (a sticky error, a kill, no answer by the deadline) fails that
job with ``worker_lost`` or ``timeout``; a new worker is started, after a pause that grows while they keep dying. Models
that lived in the old one are gone: calls that name them are answered with ``model_lost``, which clients can heal.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

import shmpool

from ..backends.base import EstimatorRaisedError, Job, Outcome, Probe, RefusedByBackend, StreamedArray, StreamSpec
from ..errors import ServerError
from ..settings import Settings
from .gate import Gate, GateClosedError, GateTimeoutError, Pass, estimate, estimate_stream
from .messages import (
    Answer,
    Channel,
    Failure,
    GarbledError,
    ModelReference,
    Ready,
    Request,
    WorkerConfig,
    pack,
    unpack,
)

__all__ = ["RemoteModel", "SupervisedBackend"]

log = logging.getLogger("gsb_server.gpu")

# A worker that lived this long was not ended by what ended the one before it.
_STABLE_SECONDS = 60.0
_FIRST_PAUSE = 0.1
# During a longer one jobs are refused, so that the CPU does them, instead of waiting.
_PATIENCE = 2.0
# Pinning a part takes the listening thread of a healthy worker microseconds.
_ACKNOWLEDGE_SECONDS = 30.0
# How long a worker has to end after its stdin was closed.
_END_SECONDS = 3.0
_FETCH_NBYTES = 64 * 2**20


class RemoteModel:
    """A model that lives in one worker process; forgotten there when this object dies."""

    __slots__ = ("__weakref__", "incarnation", "number")

    def __init__(self, incarnation: int, number: int) -> None:
        self.incarnation = incarnation
        self.number = number


@dataclass(slots=True)
class _Pending:
    """A request that waits for its answer."""

    arrived: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None


class _NotSentError(ServerError):
    """The worker had ended before it got the request: another may be asked."""


class _Worker:
    """One worker process and the conversation with it."""

    def __init__(
        self, incarnation: int, config: WorkerConfig, environment: Mapping[str, str], start_timeout: float
    ) -> None:
        self.incarnation = incarnation
        self.config = config
        self.ready: Ready | None = None
        self.ended = ""
        self._start_timeout = start_timeout
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gsb_server.gpu.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **environment},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._channel = Channel(self.process.stdout.fileno(), self.process.stdin.fileno(), patient=False)

    def start(self) -> Ready:
        """Wait until it can work, or says why it cannot."""
        timer = threading.Timer(self._start_timeout, self.end, [f"it did not start in {self._start_timeout:g} s"])
        timer.daemon = True
        timer.start()
        try:
            self._channel.send(self.config)
            ready = self._channel.receive()
            if not isinstance(ready, Ready):
                raise GarbledError(f"its first message is a {type(ready).__name__}")
            self.ready = ready
            return ready
        except (EOFError, BrokenPipeError):
            return Ready(error=self.ended or f"it ended with status {self._status()} while it started")
        except GarbledError as error:
            return Ready(error=f"its first message cannot be read: {error}")
        finally:
            timer.cancel()

    def converse(self, pool: shmpool.Pool) -> None:
        """Hand answers to those who wait for them, until the process ends."""
        try:
            while True:
                answer = self._channel.receive()
                if not isinstance(answer, Answer):
                    raise GarbledError(f"a message is a {type(answer).__name__}")
                if answer.failure is not None and answer.failure.kind == "lost":
                    self.ended = self.ended or f"the device is lost: {answer.failure.message}"
                with self._lock:
                    pending = self._pending.pop(answer.number, None)
                if pending is None:
                    free_all(pool, answer.handles)  # nobody waits for it any more
                    continue
                pending.answer = answer
                pending.arrived.set()
                del answer, pending
        except EOFError:
            pass
        except GarbledError as error:
            self.end(f"it sent what is not a message: {error}")

    def _status(self) -> int | None:
        try:
            return self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def end(self, why: str) -> None:
        """Kill it; whoever waits for an answer is told why."""
        self.ended = self.ended or why
        self.process.kill()

    def bury(self) -> str:
        """Reap the process, tell those who still wait, close the pipes; returns why it ended."""
        if self._status() is None:
            self.process.kill()
            self.process.wait()
        code = self.process.returncode
        self.ended = self.ended or (f"it was ended by signal {-code}" if code < 0 else f"it ended with status {code}")
        with self._lock:
            waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.arrived.set()
        self.hang_up()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.ended

    def hang_up(self) -> None:
        """Close its stdin, which tells it to end."""
        assert self.process.stdin is not None
        self._channel.close_writer(self.process.stdin)

    def ask(
        self,
        kind: str,
        body: bytes,
        handles: tuple[shmpool.Handle, ...],
        forget: tuple[int, ...],
        deadline: float,
    ) -> Answer:
        """Send a request and wait for its answer.

        Raises
        ------
        ServerError
            ``worker_lost``: the process ended. ``timeout``: it did not answer by the deadline and was killed.
        """
        pending = _Pending()
        number = next(self._numbers)
        with self._lock:
            if self.ended:
                raise self._lost(_NotSentError)
            self._pending[number] = pending
        sent = True
        try:
            self._channel.send(Request(number, kind, body, handles, forget), deadline)
        except BrokenPipeError:
            sent = False  # it has ended: the thread that reads finds out why
        except TimeoutError:
            pass  # as no answer
        left = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
        if not pending.arrived.wait(left):
            with self._lock:
                taken = self._pending.pop(number, None) is not None
            if taken:
                # It may hang in a kernel that never ends; there is no other way to stop it.
                self.end("it did not answer by the deadline of a request")
                raise ServerError(
                    "timeout",
                    "the GPU worker did not answer in time; it was ended and another is started",
                    "raise gsb.config(timeout=...), or send less at once",
                )
            pending.arrived.wait()
        if pending.answer is None:
            raise self._lost(ServerError if sent else _NotSentError)
        return pending.answer

    def _lost(self, kind: type[ServerError] = ServerError) -> ServerError:
        return kind(
            "worker_lost",
            f"the GPU worker ended while it worked on this call: {self.ended or 'it is gone'}",
            "call again: a new worker is being started; the server's log has the details",
        )


def free_all(pool: shmpool.Pool, handles: tuple[shmpool.Handle, ...]) -> None:
    """Free slots that nobody waits for."""
    for handle in handles:
        try:
            pool.free(handle)
        except shmpool.ShmPoolError:
            continue


def free_if_owned(pool: shmpool.Pool, handle: shmpool.Handle) -> None:
    """Free a slot that is still ours: nobody was given it."""
    with contextlib.suppress(shmpool.ShmPoolError):
        if pool.owner(handle) == pool.client:
            pool.free(handle)


@dataclass(slots=True)
class _Stream:
    """The admission and the worker of an array that arrives in parts."""

    incarnation: int
    admission: Pass
    nbytes: int


class SupervisedBackend:
    """Runs jobs in a worker process that has a GPU.

    Parameters
    ----------
    pool : shmpool.Pool
        The server's. The worker attaches to the same file.
    settings : Settings, optional
        Its ``gpu_…`` fields, ``output_timeout``.
    device : str
        ``"cupy"``, or ``"module:callable"`` for a stand-in.
    backends : tuple of str
        ``"module:Class"``, best first.
    device_options : dict, optional
        Keyword arguments of the device.
    environment : mapping, optional
        Added to the worker's.
    longest_pause : float
        Seconds between the end of a worker and the start of the next, where they keep ending.

    Notes
    -----
    Concurrency: any thread. Blocking: `run` waits for its turn, for memory of the device and for the worker, up to the
    job's deadline. Lifetime: `close` ends the worker; so does the end of this process, however it ends.
    """

    name = "gpu"
    accelerated = True
    several = True
    max_workers: int | None = None

    def __init__(
        self,
        pool: shmpool.Pool,
        settings: Settings | None = None,
        *,
        device: str = "cupy",
        backends: tuple[str, ...] = (),
        device_options: dict[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        longest_pause: float = 30.0,
    ) -> None:
        settings = settings or Settings()
        options = {"host_path": settings.gpu_host_path} if device == "cupy" else {}
        self.pool = pool
        self.probes: dict[str, Probe] = {}
        self.restarts = 0
        self._device = device
        self._config = WorkerConfig(
            pool_path=str(pool.path),
            server=(pool.client.index, pool.client.nonce),
            device=device,
            device_options={**options, **(device_options or {})},
            backends=backends,
            pin_nbytes=settings.gpu_pin_nbytes,
            resident_nbytes=settings.gpu_resident_nbytes,
            output_timeout=settings.output_timeout,
            log_level=log.getEffectiveLevel(),
        )
        # SciPy reads it when it is imported, and then refuses masked arrays: only the worker may have it.
        self._environment = {"SCIPY_ARRAY_API": "1", **(environment or {})}
        self._start_timeout = settings.gpu_start_timeout
        self._longest_pause = longest_pause
        self._gate = Gate()
        self._turn = Gate(capacity=1)
        self._state = threading.Condition()
        self._worker: _Worker | None = None
        self._starting: _Worker | None = None
        self._unusable = ""
        self._incarnations = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._forgotten: deque[tuple[int, int]] = deque()
        self._streams: dict[str, _Stream] = {}
        self._last_end = ""
        self._resident = (0, 0, 0, 0)

    # ------------------------------------------------------------------ the worker's life

    def probe(self) -> Probe:
        """Start the worker and say what it found. Never raises."""
        if self._device == "cupy" and importlib.util.find_spec("cupy") is None:
            return Probe(available=False, reason="CuPy is not installed: pip install 'shmpool[cuda13]' or [cuda12]")
        with self._state:
            if self._thread is None:
                self._thread = threading.Thread(target=self._supervise, name="gsb-gpu-supervisor", daemon=True)
                self._thread.start()
            self._state.wait_for(lambda: self._worker is not None or self._unusable or self._stopping)
            worker = self._worker
            if worker is None or worker.ready is None:
                reason = self._unusable or "the server is shutting down"
                return Probe(available=False, reason=f"the GPU worker does not start: {reason}")
            ready = worker.ready
        return Probe(
            available=True,
            reason=f"{ready.device} in a worker process, started in {ready.seconds:.1f} s; {ready.pin_reason}",
            device=ready.device,
            versions=ready.versions,
        )

    def _supervise(self) -> None:
        """Keep a worker alive. All are started here: the kernel's parent-death signal means the thread's death."""
        pause = _FIRST_PAUSE
        while not self._stopping:
            self._incarnations += 1
            try:
                worker = _Worker(self._incarnations, self._config, self._environment, self._start_timeout)
            except OSError as error:
                self._announce(None, f"it cannot be started: {error}")
                pause = self._rest(pause)
                continue
            self._starting = worker
            if self._stopping:
                worker.end("the server is shutting down")
            ready = worker.start()
            if ready.probes:
                self.probes = ready.probes
            born = time.monotonic()
            if ready.error:
                worker.end(ready.error)
                worker.bury()
                self._announce(None, ready.error)
            else:
                self._gate.resize(ready.free_nbytes)
                self._announce(worker, "")
                log.info("GPU worker %d on %s: %s", worker.process.pid, ready.device, ready.pin_reason)
                worker.converse(self.pool)
                why = self._bury(worker)
                if not self._stopping:
                    log.error("GPU worker %d: %s", worker.process.pid, why)
                if time.monotonic() - born > _STABLE_SECONDS:
                    pause = _FIRST_PAUSE
                self.restarts += 1
            if not self._stopping:
                pause = self._rest(pause)

    def _announce(self, worker: _Worker | None, unusable: str) -> None:
        with self._state:
            self._worker, self._unusable = worker, unusable
            self._state.notify_all()

    def _bury(self, worker: _Worker) -> str:
        with self._state:
            self._worker = None
            self._last_end = worker.ended
            self._resident = (0, 0, 0, 0)
        why = worker.bury()
        self._last_end = why
        # The streams of the dead worker are gone, and with them what they were admitted for.
        for key, stream in list(self._streams.items()):
            if stream.incarnation == worker.incarnation:
                self._streams.pop(key, None)
                stream.admission.give_back()
        try:
            self.pool.reclaim()
        except (shmpool.ShmPoolError, OSError):
            log.exception("the slots of the GPU worker are taken back later")
        return why

    def _rest(self, pause: float) -> float:
        if pause > _PATIENCE and not self._unusable:
            self._announce(None, f"it keeps ending ({self._last_end}); the next one is started in {pause:.0f} s")
        self._wake.wait(pause)
        if self._last_end:
            self._announce(None, "")
        return min(self._longest_pause, pause * 3)

    def _current(self, deadline: float) -> _Worker:
        """Return a worker that is ready, waiting for one that is being started."""
        limit = min(deadline, time.monotonic() + self._start_timeout)
        with self._state:
            while self._worker is None or self._worker.ended:
                if self._stopping:
                    raise ServerError("shutting_down", "the server is shutting down", "start it again")
                if self._unusable:
                    raise RefusedByBackend(f"the GPU worker does not start: {self._unusable}")
                if self._thread is None:
                    raise RefusedByBackend("the GPU worker was never started")
                if not self._state.wait(max(0.0, limit - time.monotonic())) and time.monotonic() >= limit:
                    raise ServerError("timeout", "the GPU worker was not ready in time", "call again")
            return self._worker

    def close(self) -> None:
        """End the worker and wait for it."""
        with self._state:
            self._stopping = True
            worker = self._worker or self._starting
            self._state.notify_all()
        self._wake.set()
        self._gate.close()
        self._turn.close()
        if worker is not None:
            try:
                worker.hang_up()
                worker.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                worker.end("the server is shutting down")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * _END_SECONDS)

    # ------------------------------------------------------------------ requests

    def _ask(
        self,
        worker: _Worker,
        kind: str,
        value: object,
        deadline: float,
    ) -> Answer:
        body, handles = pack(value, self.pool.handle_of)
        answer = worker.ask(kind, body, handles, self._take_forgotten(worker), deadline)
        failure = answer.failure
        if failure is None:
            return answer
        raise _error_of(failure, worker)

    def _take_forgotten(self, worker: _Worker) -> tuple[int, ...]:
        numbers = []
        while self._forgotten:
            incarnation, number = self._forgotten.popleft()
            if incarnation == worker.incarnation:
                numbers.append(number)
        return tuple(numbers)

    def _in_turn(self, deadline: float) -> Any:
        return self._turn.admitted(1, deadline)

    def _reference(self, model: RemoteModel, worker: _Worker) -> ModelReference:
        if model.incarnation != worker.incarnation:
            raise ServerError(
                "model_lost",
                f"the GPU worker that held the model has ended: {self._last_end or 'it was replaced'}",
                "send its state again, or fit again",
            )
        return ModelReference(model.number)

    def _model(self, worker: _Worker, number: int) -> RemoteModel:
        model = RemoteModel(worker.incarnation, number)
        weakref.finalize(model, self._forgotten.append, (worker.incarnation, number)).atexit = False
        return model

    def _open(self, answer: Answer, *, copy: bool = False) -> Any:
        """Unpickle an answer. Arrays in slots become views, or copies.

        A slot is freed when the view of it dies, unless it was given to a client by then: whoever sends the view on
        need not copy it, and whoever drops it need not know.
        """
        views: list[Any] = []
        try:
            for handle in answer.handles:
                view = self.pool.get(handle, copy=copy)
                if not copy:
                    weakref.finalize(view, free_if_owned, self.pool, handle).atexit = False
                views.append(view)
            return unpack(answer.body, lambda reference: views[reference[1]])
        finally:
            if copy or len(views) < len(answer.handles):
                free_all(self.pool, answer.handles)

    # ------------------------------------------------------------------ Backend

    def run(self, job: Job) -> Outcome:
        """Do the job in the worker.

        Raises
        ------
        RefusedByBackend
            No backend of the worker can do it, or there is no worker.
        ServerError
            ``worker_lost``, ``model_lost``, ``out_of_memory``, ``timeout``.
        EstimatorRaisedError
            The estimator raised.
        """
        deadline = math.inf if job.timeout is None else time.monotonic() + job.timeout
        self._current(deadline)
        begun = time.perf_counter()
        try:
            # What arrives in parts was admitted with its first part.
            streamed = any(True for _ in streams_of(job))
            with self._gate.admitted(0 if streamed else estimate(job), deadline), self._in_turn(deadline):
                waited = time.perf_counter() - begun
                while True:
                    with contextlib.suppress(_NotSentError):
                        return self._run(job, deadline, waited)
        except GateTimeoutError as error:
            raise ServerError("timeout", str(error), "wait for other calls to end, or raise the timeout") from None
        except GateClosedError as error:
            raise ServerError("shutting_down", str(error), "start it again") from None

    def _run(self, job: Job, deadline: float, waited: float) -> Outcome:
        worker = self._current(deadline)
        reference = None if job.model is None else self._reference(job.model, worker)
        args, kwargs = self._localized(job.args, worker), self._localized(job.kwargs, worker)
        sent = Job(job.estimator, job.params, reference, job.method, args, kwargs, job.config, strict=job.strict)
        number = None if reference is None else reference.number
        begun = time.perf_counter()
        answer = self._ask(worker, "run", (sent, number), deadline)
        if answer.free_nbytes >= 0:
            self._gate.resize(answer.free_nbytes)
            self._resident = answer.resident
        outcome, detail = self._open(answer)
        assert isinstance(outcome, Outcome)
        if job.model is not None:
            outcome.model = job.model
        elif outcome.state_changed:
            outcome.model = self._model(worker, outcome.model)
        else:
            outcome.model = None
        outcome.detail = {
            **detail,
            "device_wait": waited,
            "worker": time.perf_counter() - begun,
        }
        return outcome

    def attributes(self, model: RemoteModel) -> dict[str, Any]:
        """Return the attributes as a dict that fetches what is looked up."""
        return _Attributes(self, model)

    def fetch_attribute(self, model: RemoteModel, name: str) -> dict[str, Any]:
        """Return one attribute, in a dict that is empty if there is none of the name."""
        with self._in_turn(math.inf):
            worker = self._current(math.inf)
            answer = self._ask(worker, "attributes", (self._reference(model, worker), [name]), math.inf)
        found: dict[str, Any] = self._whole(answer)
        return found

    def export(self, model: RemoteModel) -> Any:
        """Return the plain estimator."""
        with self._in_turn(math.inf):
            worker = self._current(math.inf)
            answer = self._ask(worker, "export", self._reference(model, worker), math.inf)
        return self._whole(answer)

    def _whole(self, answer: Answer) -> Any:
        if not answer.handles:
            return self._open(answer)
        # A private copy, and a mutable one: arrays that are unpickled from immutable bytes are read-only.
        inner = self._open(answer, copy=True)
        return unpack(inner.data, _no_references)

    def load(self, estimator: str, params: dict[str, Any], state: dict[str, Any]) -> tuple[Any, int]:
        """Build a model in the worker."""
        return self._make("load", (estimator, params, state))

    def adopt(self, estimator: str, plain: Any) -> tuple[Any, int]:
        """Give a plain estimator to the worker."""
        return self._make("adopt", (estimator, plain))

    def _make(self, kind: str, value: object) -> tuple[Any, int]:
        with self._in_turn(math.inf):
            worker = self._current(math.inf)
            number, nbytes = self._open(self._ask(worker, kind, value, math.inf))
            return self._model(worker, number), nbytes

    # ------------------------------------------------------------------ arrays in parts

    def stream(self, spec: StreamSpec, offset: int, handle: shmpool.Handle, timeout: float | None) -> None:
        """Send one part of an array to the device. Returns when the worker has pinned it; the upload goes on.

        Raises
        ------
        ServerError
            ``timeout``: no device memory became free; ``worker_lost``; ``stale_handle``: earlier parts are gone.
        RefusedByBackend
            There is no worker.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        worker = self._current(deadline)
        found = self._streams.get(spec.key)
        if found is not None and found.incarnation != worker.incarnation:
            found = None
        if found is None:
            if offset:
                raise ServerError(
                    "stale_handle", "the parts that came before were lost with the GPU worker", "send the array again"
                )
            try:
                admission = self._gate.admit(estimate_stream(spec.nbytes), deadline, "stream")
            except GateTimeoutError as error:
                raise ServerError("timeout", str(error), "wait for other calls to end") from None
            except GateClosedError as error:
                raise ServerError("shutting_down", str(error), "start it again") from None
            self._streams[spec.key] = _Stream(worker.incarnation, admission, spec.nbytes)
        # Not in turn: parts go to the worker while it computes, which is the point of them.
        limit = min(deadline, time.monotonic() + _ACKNOWLEDGE_SECONDS)
        body, _ = pack((*astuple(spec), offset))
        try:
            answer = worker.ask("part", body, (handle,), (), limit)
            if answer.failure is not None:
                raise _error_of(answer.failure, worker)
        except BaseException:
            self.drop([spec.key])
            raise

    def drop(self, keys: list[str]) -> None:
        """Forget arrays that arrived in parts, wholly or not."""
        found = [(key, stream) for key in keys if (stream := self._streams.pop(key, None)) is not None]
        worker = self._worker
        alive = [key for key, stream in found if worker is not None and stream.incarnation == worker.incarnation]
        try:
            if alive and worker is not None:
                self._ask(worker, "drop", alive, time.monotonic() + self._start_timeout)
        except ServerError:
            log.info("arrays in parts went with the GPU worker")
        finally:
            for _, stream in found:
                stream.admission.give_back()

    def fetch(self, spec: StreamSpec) -> np.ndarray[Any, Any]:
        """Bring an array that arrived in parts to the host, slot by slot."""
        order: Any = "F" if spec.order == "F" else "C"
        whole = np.empty(spec.shape, np.dtype(spec.dtype), order=order)
        flat = whole.reshape(-1, order="A").view(np.uint8)
        step = min(_FETCH_NBYTES, self.pool.geometry.slot_nbytes)
        for offset in range(0, spec.nbytes, step):
            with self._in_turn(math.inf):
                worker = self._current(math.inf)
                nbytes = min(step, spec.nbytes - offset)
                answer = self._ask(worker, "fetch", (spec.key, offset, nbytes), math.inf)
                flat[offset : offset + nbytes] = self._open(answer)
        return whole

    def _localized(self, value: Any, worker: _Worker) -> Any:
        """Return the value with what the worker needs in place of arrays in parts."""
        if isinstance(value, StreamedArray):
            stream = self._streams.get(value.spec.key)
            if stream is None or stream.incarnation != worker.incarnation:
                raise ServerError("stale_handle", "an array in parts was lost with the GPU worker", "send it again")
            return value.spec
        if type(value) is dict:
            return {key: self._localized(item, worker) for key, item in value.items()}
        if type(value) is tuple or (type(value) is list and any(isinstance(item, StreamedArray) for item in value)):
            return type(value)(self._localized(item, worker) for item in value)
        return value

    # ------------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """Say how the worker is, for ``/v1/status``."""
        worker = self._worker
        ready = None if worker is None else worker.ready
        return {
            "running": worker is not None,
            "pid": None if worker is None else worker.process.pid,
            "reason": self._unusable or self._last_end,
            "restarts": self.restarts,
            "device": "" if ready is None else ready.device,
            "host_path": "" if ready is None else ready.pin_path,
            "pinned_nbytes": 0 if ready is None else ready.pinned_nbytes,
            "total_nbytes": 0 if ready is None else ready.total_nbytes,
            "admitted_nbytes": self._gate.taken,
            "capacity_nbytes": self._gate.capacity,
            "waiting": self._gate.waiting + self._turn.waiting,
            "streams": len(self._streams),
            "resident": dict(zip(("arrays", "nbytes", "hits", "misses"), self._resident, strict=True)),
        }


class _Attributes(dict[str, Any]):
    """Attributes of a model in the worker, fetched when they are looked up."""

    def __init__(self, backend: SupervisedBackend, model: RemoteModel) -> None:
        super().__init__()
        self._backend = backend
        self._model = model

    def __contains__(self, name: object) -> bool:
        if not super().__contains__(name) and isinstance(name, str):
            self.update(self._backend.fetch_attribute(self._model, name))
        return super().__contains__(name)

    def __missing__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise KeyError(name)


def _no_references(reference: Any) -> Any:
    raise GarbledError(f"an unexpected reference {reference!r}")


def streams_of(job: Job) -> Any:
    """Yield the arrays in parts among the arguments of a job."""
    stack: list[Any] = [job.args, job.kwargs]
    while stack:
        value = stack.pop()
        if isinstance(value, StreamedArray):
            yield value
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, tuple) or (isinstance(value, list) and len(value) < 1000):
            stack.extend(value)


def _error_of(failure: Failure, worker: _Worker) -> Exception:
    if failure.kind == "refused":
        return RefusedByBackend(failure.message)
    if failure.kind == "estimator":
        return EstimatorRaisedError(failure.exception)
    if failure.kind == "lost":
        return worker._lost()
    return ServerError(failure.code, failure.message, failure.hint)
