# SPDX-License-Identifier: BSD-3-Clause
"""What the routes do: sessions, calls, models. No HTTP in here.

The methods named ``*_job`` run on a worker thread, all others on the event loop. The life of a call::

    loop    parse, find the session, note the call
    worker  decode: check and pin the slots -> compute -> encode: fill output slots, give them away
    loop    send the answer
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import secrets
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import sklearn
from gsb.errors import UnsupportedValueError
from gsb.protocol import FIT_METHODS, PROTOCOL_VERSION, REUPLOAD, client_proof, proofs_match, server_proof
from gsb.shm_transport import ShmTransport

from . import __version__, warning_capture
from .backends.base import CapturedWarning, EstimatorRaisedError, Job, Outcome, RefusedByBackend, said_before
from .backends.registry import choose
from .backends.sklearn import estimator_class
from .errors import ServerError, describe_exception, envelope, from_exception
from .metrics import Metrics
from .models import ModelEntry, ModelStore
from .parts import PartStore, streaming_backend
from .requests import ArrayReader, check_config, check_estimator, check_method, check_params, field
from .results import Results, ResultWriter
from .sessions import CallState, Session, SessionStore
from .settings import Settings
from .summary import pack_state, summarize
from .transports import DataListeners, Transports
from .transports.base import Given
from .transports.file import FileLink
from .workers import Workers

__all__ = ["EstimatorError", "Service"]

log = logging.getLogger("gsb_server")

# Their modules import most of scikit-learn.
_USUAL = (
    "sklearn.cluster.KMeans",
    "sklearn.decomposition.PCA",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.linear_model.Ridge",
    "sklearn.manifold.TSNE",
    "sklearn.neighbors.NearestNeighbors",
    "sklearn.preprocessing.StandardScaler",
    "sklearn.svm.SVC",
)

_PREFAULT_NBYTES = 64 * 2**20


class EstimatorError(Exception):
    """The estimator raised; ``description`` is what the client needs to raise the same."""

    def __init__(self, description: dict[str, Any]) -> None:
        super().__init__(description["message"])
        self.description = description

    def envelope(self, request_id: str) -> dict[str, Any]:
        """Return the body of the answer."""
        error = ServerError("estimator_error", self.description["message"])
        return envelope(error, request_id, self.description)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Service:
    """The server without its HTTP.

    Parameters
    ----------
    settings : Settings
        With a token.
    data : DataListeners, optional
        Where the data plane of `stream` listens. Without them the server does not offer it.
    """

    def __init__(self, settings: Settings, data: DataListeners | None = None) -> None:
        self.settings = settings
        self._data = data
        self.id = secrets.token_hex(8)
        self.metrics = Metrics()
        self.sessions = SessionStore(settings.max_sessions, settings.session_ttl)
        self.models = ModelStore(settings.model_nbytes, settings.model_ttl, settings.max_models_per_session)
        self.closing = False
        self._given: deque[tuple[float, Given]] = deque()
        self._watcher: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Open the pool, choose the backend, start the workers and the watcher."""
        settings = self.settings
        warning_capture.install()
        # A client in this very process may have left its transport behind; the server's is that of its settings.
        ShmTransport.reset()
        ShmTransport.configure(
            path=settings.pool_path,
            slot_nbytes=settings.slot_nbytes,
            input_slots=settings.input_slots,
            output_slots=settings.output_slots,
            scratch_slots=settings.scratch_slots,
        )
        self.pool = ShmTransport.get().pool
        self.transports = Transports(self.pool, settings, self._data)
        self.choice = choose(settings.backend, self.pool, settings)
        self.backend = self.choice.backend
        threads = min(settings.worker_threads, self.backend.max_workers or settings.worker_threads)
        self.workers = Workers(threads, settings.queue_limit)
        self.parts = PartStore(self.pool, streaming_backend(self.backend), settings.result_ttl, settings.parts_above)
        self._part_threads = ThreadPoolExecutor(2 * settings.max_sessions, thread_name_prefix="gsb-part")
        self.results = Results(self.pool, settings.output_timeout)
        # Results would otherwise pay for the first touch of every page of a slot, one after the other.
        self.pool.prefault("output", min(settings.slot_nbytes, _PREFAULT_NBYTES))
        self._watcher = asyncio.create_task(self._watch(), name="gsb-watcher")
        self._warm_up = asyncio.create_task(self.workers.run(self._warm_up_job), name="gsb-warm-up")
        log.info("backend %s on %s: %s", self.backend.name, self.choice.probe.device, self.choice.reason)

    def leave(self) -> None:
        """Say that the end is near: requests that only wait are answered."""
        self.closing = True

    async def stop(self) -> None:
        """Finish what runs, within the time allowed, and let go of everything."""
        self.closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await asyncio.gather(self._warm_up, return_exceptions=True)
        idle = await self.workers.drain(self.settings.shutdown_timeout)
        if not idle:
            log.warning("%d calls are still running and are abandoned", self.workers.pending)
        self.workers.close()
        self._part_threads.shutdown(wait=False, cancel_futures=True)
        for session in self.sessions.all():
            self.close_session(session.id)
        self.transports.close()
        self.models.clear()
        self.backend.close()
        # The mapping must not go away under a thread that is still computing on it.
        if idle:
            ShmTransport.reset()

    def _warm_up_job(self) -> None:
        """Import what calls will need, so that the first one does not wait for it."""
        for name in _USUAL:
            if self.closing:
                return
            estimator_class(name)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.watch_interval)
            try:
                self.look_after()
            except Exception:
                log.exception("the watcher stumbled; it goes on")

    def look_after(self) -> None:
        """Drop sessions of dead clients, models out of time, results nobody fetched."""
        lost = self.sessions.lost()
        for session in lost:
            models = self.close_session(session.id)
            self.metrics.sessions_lost += 1
            log.info(
                "session %s (%s) has ended without a word; %d models dropped",
                session.id[:8],
                session.label,
                models,
            )
        if lost:
            self.pool.reclaim()
        self.models.expire()
        self.parts.expire()
        now = time.monotonic()
        while self._given and self._given[0][0] < now:
            _, given = self._given.popleft()
            if given.link.take_back(given.wire):
                log.warning("a result was not fetched within %.0f s and is freed", self.settings.result_ttl)
        self.transports.look_after()

    # ------------------------------------------------------------------ sessions

    def hello(self, body: dict[str, Any], host: str) -> dict[str, Any]:
        """Prove to a client that has proved itself that this server knows the token."""
        self._check_protocol(body)
        nonce, proof = field(body, "nonce", str), field(body, "proof", str)
        if not 32 <= len(nonce) <= 128 or not nonce.isascii() or not nonce.isalnum():
            raise ServerError("malformed", "the nonce must be 32 to 128 hex digits", "see docs/http-api.md")
        token = self.settings.token
        if not proofs_match(client_proof(token, nonce, host), proof):
            raise ServerError(
                "unauthorized",
                "the proof is wrong: the tokens of client and server differ",
                "set GSB_TOKEN to the server's token, or unset it so that the server's own file is found",
            )
        geometry = self.pool.geometry
        return {
            "protocol": PROTOCOL_VERSION,
            "server": self.id,
            "version": __version__,
            "sklearn": sklearn.__version__,
            "backends": list(self.choice.names),
            "pool": {
                "path": str(self.pool.path),
                "uuid": self.pool.uuid,
                "nbytes": self.pool.nbytes,
                "n_slots": geometry.n_slots,
                "slot_nbytes": geometry.slot_nbytes,
            },
            "transports": self.transports.offers(),
            "proof": server_proof(token, nonce, host, self.id, self.pool.uuid),
        }

    def open_session(self, body: dict[str, Any]) -> dict[str, Any]:
        """Open a session by the transport that the client has chosen."""
        self._check_protocol(body)
        label = field(body, "label", str, "")[:200]
        link = self.transports.open(body)
        try:
            session = self.sessions.open(link, label)
        except BaseException:
            link.close()
            raise
        self.metrics.sessions_opened += 1
        return {"session": session.id, "server": self.id, "parts": self.parts.greeting, **link.greeting()}

    def close_session(self, session_id: str) -> int:
        """Forget a session and its models; return how many those were."""
        session = self.sessions.close(session_id)
        if session is not None:
            session.link.close()
        self.parts.drop_session(session_id)
        return self.models.drop_session(session_id)

    async def file(self, body: dict[str, Any]) -> dict[str, Any]:
        """Do what a client of the transport ``file`` asks for."""
        session, link = self._file_link(body)
        session.running += 1
        try:
            return await self.transports.file.run(link, body)
        finally:
            session.running -= 1

    async def attend(self, body: dict[str, Any], hung_up: Callable[[], Awaitable[Any]]) -> None:
        """Take a client of the transport ``file`` for alive until it hangs up."""
        _, link = self._file_link(body)
        await self.transports.file.attend(link, hung_up, lambda: self.closing)

    def _file_link(self, body: dict[str, Any]) -> tuple[Session, FileLink]:
        session = self.sessions.get(body.get("session"))
        if not isinstance(session.link, FileLink):
            raise ServerError("malformed", "the session has no mailbox", "open one with the transport `file`")
        return session, session.link

    def _check_protocol(self, body: dict[str, Any]) -> None:
        version = field(body, "protocol", int)
        if version != PROTOCOL_VERSION:
            raise ServerError(
                "protocol_mismatch",
                f"the client speaks protocol {version}, the server {PROTOCOL_VERSION}",
                "install the same version of gsb on both sides",
            )

    # ------------------------------------------------------------------ calls

    async def call(
        self, body: dict[str, Any], received: float, request_id: str, given: list[Given]
    ) -> tuple[int, bytes]:
        """Run one method of one estimator; ``given`` receives the slots that the answer names."""
        session = self.sessions.get(body.get("session"))
        call_id = field(body, "call", str)
        if not 1 <= len(call_id) <= 64:
            raise ServerError("malformed", "call must be 32 hex digits", "see docs/http-api.md")
        timeout = body.get("timeout")
        if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
            raise ServerError("malformed", "timeout must be a positive number", "see docs/http-api.md")
        for model_id in _texts(body, "forget"):
            self.models.remove(model_id, session.id)
        state = session.begin(call_id)
        session.running += 1
        try:
            status, answer, done = await self.workers.run(
                self._call_job, session, body, state, received, request_id, given
            )
        finally:
            session.running -= 1
            state.stage = "done"
            state.ended = time.monotonic()
        if done is not None:
            self.metrics.call(*done)
        else:
            self.metrics.error("estimator_error" if status == 422 else "call")
        return status, answer

    def progress(self, session_id: str, call_id: str) -> dict[str, Any]:
        """Say where a call is."""
        state = self.sessions.get(session_id).calls.get(call_id)
        if state is None:
            raise ServerError("not_found", "no such call in this session", "it may have ended long ago")
        end = state.ended if state.ended is not None else time.monotonic()
        return {"stage": state.stage, "elapsed": end - state.started, "backend": self.backend.name}

    def _call_job(
        self,
        session: Session,
        body: dict[str, Any],
        state: CallState,
        received: float,
        request_id: str,
        given: list[Given],
    ) -> tuple[int, bytes, tuple[Any, ...] | None]:
        writer = self.results.writer(session.link)
        try:
            answer, done = self._run_call(session, body, state, received, writer)
        except EstimatorError as error:
            writer.discard()
            return 422, _dumps(error.envelope(request_id)), None
        except BaseException as error:
            writer.discard()
            return self._refusal(error, request_id)
        self._note_given(writer, given)
        return 200, _dumps(answer), done

    def _refusal(self, error: BaseException, request_id: str) -> tuple[int, bytes, None]:
        refused = from_exception(error)
        if refused.code == "internal":
            log.error("request %s failed", request_id, exc_info=error)
        answer = refused.status, _dumps(envelope(refused, request_id)), None
        # Frames in a traceback hold views, and views pin slots.
        traceback.clear_frames(error.__traceback__)
        return answer

    def _run_call(
        self, session: Session, body: dict[str, Any], state: CallState, received: float, writer: ResultWriter
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        begun = time.perf_counter()
        queued = begun - received
        timeout = body.get("timeout")
        if timeout is not None and queued > timeout:
            raise ServerError("timeout", f"the call waited {queued:.1f} s for a worker", "start more workers")
        state.stage = "server_decode"
        name = check_estimator(field(body, "estimator", str))
        method = check_method(field(body, "method", str))
        cls = estimator_class(name)
        inputs = ArrayReader(session.link, functools.partial(self.parts.take, session.id))
        args = tuple([inputs.decode(item) for item in field(body, "args", list, [])])
        kwargs = {key: inputs.decode(item) for key, item in field(body, "kwargs", dict, {}).items()}
        reader = ArrayReader(session.link)
        params = {key: reader.decode(item) for key, item in field(body, "params", dict, {}).items()}
        config = {key: reader.decode(item) for key, item in field(body, "config", dict, {}).items()}
        if params:
            check_params(cls, params)
        check_config(config)
        strict = self.settings.strict_gpu or field(body, "strict", bool, False)
        entry = self._model_for(body, name, method, params)
        state.stage = "compute"
        left = None if timeout is None else max(0.0, timeout - (time.perf_counter() - received))
        try:
            outcome = self._compute(entry, Job(name, params, None, method, args, kwargs, config, strict, left))
        finally:
            if inputs.parts:
                del args, kwargs
                self.parts.drop(session.id, inputs.parts)
        computed = outcome.started + outcome.compute_seconds
        state.stage = "server_encode"
        answer: dict[str, Any] = {"result": None if outcome.is_self else writer.encode(outcome.result)}
        writer.commit()
        backend = outcome.backend or self.backend.name
        if outcome.state_changed:
            if entry is None:
                entry = self.models.add(session.id, name, backend, outcome.model, outcome.nbytes)
                if session.id not in self.sessions:
                    # The client died while we computed: nobody would ever drop the model.
                    self.models.drop_session(session.id)
            else:
                self.models.resize(entry, outcome.nbytes)
            answer["model"] = entry.id
            answer["summary"] = summarize(outcome.attributes)
        elif outcome.nbytes and entry is not None:
            self.models.resize(entry, outcome.nbytes)
        if outcome.random_states:
            answer["random_state"] = {key: writer.encode(value) for key, value in outcome.random_states.items()}
        answer["backend"] = backend
        answer["device"] = outcome.device or self.choice.probe.device
        answer["reason"] = outcome.reason or self.choice.reason
        answer.update(_said(outcome.warnings, outcome.output))
        stages = {
            "server_decode": outcome.started - begun,
            "compute": outcome.compute_seconds,
            "server_encode": time.perf_counter() - computed,
        }
        answer["stages"] = stages
        if outcome.detail:
            answer["detail"] = outcome.detail
        answer["queue"] = queued
        return answer, (name, method, {**stages, "queue": queued}, inputs.nbytes + reader.nbytes, writer.nbytes)

    def _model_for(self, body: dict[str, Any], name: str, method: str, params: dict[str, Any]) -> ModelEntry | None:
        model_id = body.get("model")
        if model_id is None:
            if method not in FIT_METHODS:
                raise ServerError("malformed", f"{method} needs the field 'model'", "see docs/http-api.md")
            return None
        entry = self.models.get(model_id)
        if entry.estimator != name:
            raise ServerError("malformed", f"the model is a {entry.estimator}, not a {name}", "see docs/http-api.md")
        if method in FIT_METHODS and method != "partial_fit" and not params.get("warm_start"):
            return None  # a fit from the start makes a new model
        return entry

    def _compute(self, entry: ModelEntry | None, job: Job) -> Outcome:
        if job.strict and not self.backend.accelerated:
            raise _refused(f"{job.estimator.rpartition('.')[2]}.{job.method}", self.choice.reason)
        try:
            if entry is None:
                return self.backend.run(job)
            if job.method in FIT_METHODS:
                with entry.lock:
                    job.model = entry.model
                    outcome = self.backend.run(job)
                    entry.model = outcome.model
                    return outcome
            job.model = entry.model
            outcome = self.backend.run(job)
            if outcome.state_changed:
                entry.model = outcome.model
            return outcome
        except RefusedByBackend as refusal:
            raise _refused(f"{job.estimator.rpartition('.')[2]}.{job.method}", str(refusal)) from None
        except (ServerError, MemoryError, UnsupportedValueError):
            raise
        except EstimatorRaisedError as error:
            raise EstimatorError(error.description) from None
        except Exception as error:
            description = {**describe_exception(error), **_said(*said_before(error))}
            traceback.clear_frames(error.__traceback__)
            raise EstimatorError(description) from None

    def take_back(self, given: list[Given]) -> None:
        """Free the arrays of an answer that cannot be delivered."""
        for one in given:
            one.link.take_back(one.wire)

    def _note_given(self, writer: ResultWriter, given: list[Given]) -> None:
        deadline = time.monotonic() + self.settings.result_ttl
        for wire in writer.wires:
            one = Given(writer.link, wire)
            given.append(one)
            self._given.append((deadline, one))

    async def part(self, body: dict[str, Any], request_id: str) -> tuple[int, bytes]:
        """Take one part of an array. Answered when its slot may be freed; an upload may still go on."""
        session = self.sessions.get(body.get("session"))
        session.running += 1
        try:
            # Threads of their own: the first part of an array may wait for memory that a call will set free.
            return await asyncio.get_running_loop().run_in_executor(
                self._part_threads, self._part_job, session, body, request_id
            )
        finally:
            session.running -= 1

    def _part_job(self, session: Session, body: dict[str, Any], request_id: str) -> tuple[int, bytes]:
        try:
            timeout = body.get("timeout")
            if timeout is not None and (type(timeout) not in (int, float) or not timeout > 0):
                raise ServerError("malformed", "timeout must be a positive number", "see docs/http-api.md")
            received = self.parts.receive(session.id, body, ArrayReader(session.link).decode, timeout)
        except BaseException as error:
            status, answer, _ = self._refusal(error, request_id)
            return status, answer
        return 200, _dumps({"nbytes": received})

    # ------------------------------------------------------------------ models

    async def on_worker(
        self, name: str, body: dict[str, Any], request_id: str, given: list[Given]
    ) -> tuple[int, bytes]:
        """Run ``attrs``, ``state`` or ``load`` on a worker."""
        session = self.sessions.get(body.get("session"))
        session.running += 1
        try:
            status, answer, _ = await self.workers.run(self._model_job, name, session, body, request_id, given)
        finally:
            session.running -= 1
        return status, answer

    def _model_job(
        self, name: str, session: Session, body: dict[str, Any], request_id: str, given: list[Given]
    ) -> tuple[int, bytes, tuple[Any, ...] | None]:
        writer = self.results.writer(session.link)
        try:
            answer = getattr(self, f"_{name}")(session, body, writer)
            writer.commit()
        except BaseException as error:
            writer.discard()
            return self._refusal(error, request_id)
        self._note_given(writer, given)
        return 200, _dumps(answer), None

    def _attrs(self, session: Session, body: dict[str, Any], writer: ResultWriter) -> dict[str, Any]:
        attributes = self.backend.attributes(self.models.get(body.get("model")).model)
        found = {}
        for name in _texts(body, "names"):
            if name not in attributes:
                raise ServerError("not_found", f"the model has no attribute {name[:100]!r}", "see docs/http-api.md")
            found[name] = writer.encode(attributes[name])
        return {"attrs": found}

    def _state(self, session: Session, body: dict[str, Any], writer: ResultWriter) -> dict[str, Any]:
        entry = self.models.get(body.get("model"))
        with entry.lock:
            stream, buffers = pack_state(self.backend.export(entry.model))
            answer = {
                "pickle": writer.encode(stream),
                "buffers": [writer.encode(buffer) for buffer in buffers],
            }
            writer.commit()
        return answer

    def _load(self, session: Session, body: dict[str, Any], writer: ResultWriter) -> dict[str, Any]:
        name = check_estimator(field(body, "estimator", str))
        if name not in REUPLOAD:
            raise ServerError(
                "unsupported_value", f"the state of {name} cannot be sent to a server", "fit it there again"
            )
        reader = ArrayReader(session.link)
        params = {key: reader.decode(item) for key, item in field(body, "params", dict).items()}
        attributes = {key: reader.decode(item) for key, item in field(body, "attrs", dict).items()}
        check_params(estimator_class(name), params)
        try:
            model, nbytes = self.backend.load(name, params, attributes)
        except RefusedByBackend as refusal:
            raise _refused(name.rpartition(".")[2], str(refusal)) from None
        except (ValueError, TypeError, AttributeError) as error:
            raise ServerError("bad_parameter", f"not a fitted state: {error}", "fit again") from None
        return {"model": self.models.add(session.id, name, self.backend.name, model, nbytes).id}

    def forget(self, body: dict[str, Any]) -> None:
        """Drop models; unknown ones are ignored."""
        session = self.sessions.get(body.get("session"))
        for model_id in _texts(body, "models"):
            self.models.remove(model_id, session.id)
        self.parts.drop(session.id, _texts(body, "arrays"))

    # ------------------------------------------------------------------ status

    def _gpu_status(self) -> dict[str, Any]:
        for backend in getattr(self.backend, "backends", (self.backend,)):
            if hasattr(backend, "status"):
                found: dict[str, Any] = backend.status()
                return found
        return {"running": False}

    def status(self) -> dict[str, Any]:
        """Say how things are."""
        pool = self.pool
        return {
            "status": "shutting down" if self.closing else "ok",
            "server": self.id,
            "pid": os.getpid(),
            "version": __version__,
            "protocol": PROTOCOL_VERSION,
            "sklearn": sklearn.__version__,
            "numpy": np.__version__,
            "backend": {
                "name": self.backend.name,
                "names": list(self.choice.names),
                "strict_gpu": self.settings.strict_gpu,
                "device": self.choice.probe.device,
                "reason": self.choice.reason,
                "probes": {
                    name: {"available": probe.available, "reason": probe.reason, "versions": probe.versions}
                    for name, probe in self.choice.probes.items()
                },
            },
            "pool": {
                "path": str(pool.path),
                "uuid": pool.uuid,
                "nbytes": pool.nbytes,
                "filesystem": pool.filesystem,
                "counters": dict(pool.counters),
                "stat": pool.stat().to_dict(),
            },
            "mailbox": self.transports.file.status(),
            "gpu": self._gpu_status(),
            "workers": {"threads": self.workers.threads, "pending": self.workers.pending},
            "sessions": [
                {
                    "label": session.label,
                    "id": session.id[:8],
                    "transport": session.link.kind,
                    "client": session.link.client,
                    "age_seconds": time.monotonic() - session.opened,
                    "idle_seconds": time.monotonic() - session.used,
                    "running": session.running,
                    "calls": len(session.calls),
                }
                for session in self.sessions.all()
            ],
            "models": {
                "count": len(self.models),
                "nbytes": self.models.nbytes,
                "max_nbytes": self.models.max_nbytes,
                "evictions": self.models.evictions,
            },
            "metrics": self.metrics.to_dict(),
        }


def _refused(what: str, reasons: str) -> ServerError:
    """Say why no backend with a GPU did it. Only strict calls come to this: the CPU refuses nothing."""
    return ServerError("gpu_refused", f"{what} cannot be done on a GPU: {reasons}", "allow the CPU with strict=False")


def _said(warned: list[CapturedWarning], output: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the fields that repeat on the client what an estimator has warned of and printed."""
    said: dict[str, Any] = {}
    if warned:
        said["warnings"] = [{"category": w.category, "message": w.message} for w in warned]
    if output:
        said["output"] = output
    return said


def _texts(body: dict[str, Any], name: str) -> list[str]:
    """Return a list of texts, empty where the field is missing."""
    value = field(body, name, list, [])
    if any(type(item) is not str for item in value):
        raise ServerError("malformed", f"the field {name!r} must be a list of texts", "see docs/http-api.md")
    return value  # type: ignore[no-any-return]
