# SPDX-License-Identifier: BSD-3-Clause
"""The worker process: one device, one thread that uses it, one that listens.

Started by `supervisor`, as ``python -m gsb_server.gpu.child``, with a pipe to its stdin and one from its stdout. ::

    listening thread    read a request -> pin the slots it names (so that the client may free them) -> queue
    main thread         upload -> compute -> results straight into output slots -> synchronise -> let go -> answer

It cannot outlive the server: the kernel kills it when the server dies (Linux), and everywhere the listening thread ends
it at the end of its stdin. A sticky error of the device ends it too: nothing works afterwards in the process that met
one. Whatever it held in the pool is taken back by whoever looks next, as after any death.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import numpy as np
from gsb.errors import UnsupportedValueError
from gsb.protocol import INLINE_LIMIT, encode_value

import shmpool
from shmpool.pool import Region

from ..backends.base import Backend, Deferred, Outcome, Probe, RefusedByBackend, StreamSpec
from ..backends.chain import ChainBackend
from ..errors import ServerError, describe_exception, from_exception
from .device import (
    DeviceLostError,
    PinningDevice,
    PinRefusedError,
    Verdict,
    classify,
    describe_sticky,
    make_device,
)
from .gate import estimate
from .messages import (
    Answer,
    Channel,
    Failure,
    Placed,
    Ready,
    Request,
    WorkerConfig,
    pack,
    unpack,
)
from .residency import Residency, ResidentDevice

__all__ = ["main"]

log = logging.getLogger("gsb_server.gpu")

#: Exit status of a worker whose device is lost; the answer to its last request said so already.
EXIT_LOST = 70

_PR_SET_PDEATHSIG = 1
_REGIONS: tuple[Region, ...] = ("input", "output")


def _die_with_parent(parent: int) -> None:
    """Have the kernel end this process with the server: one that hangs in CUDA cannot be told otherwise."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call


class _Stream:
    """An array that arrives in parts: what is there, or what went wrong."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.target: Any = None
        self.received = 0
        self.whole: Any = None
        self.error: Failure | None = None


class Worker:
    """The main thread's work.

    Notes
    -----
    Concurrency: `run` belongs to the main thread, `listen` to the other; they share the queue and the pool only.
    """

    def __init__(self, channel: Channel, config: WorkerConfig, device: PinningDevice, pool: shmpool.Pool) -> None:
        self.channel = channel
        self.config = config
        self.pool = pool
        self.plain = device
        total = device.memory()[1]
        limit = config.resident_nbytes if config.resident_nbytes >= 0 else total // 4
        self.residency = Residency(limit)
        self.device = ResidentDevice(device, self.residency)
        self.queue: SimpleQueue[tuple[Request, list[Any], Exception | None]] = SimpleQueue()
        self.models: dict[int, Any] = {}
        self.streams: dict[str, _Stream] = {}
        self._last_model = 0
        self.probes: dict[str, Probe] = {}
        self.chain = self._load_backends()

    def _load_backends(self) -> ChainBackend:
        usable: list[Backend] = []
        for spec in self.config.backends:
            module, _, attribute = spec.partition(":")
            name = module.rpartition(".")[2]
            try:
                backend: Backend = getattr(importlib.import_module(module), attribute)(self.device)
                probe = backend.probe()
            except Exception as error:
                # An ImportError, or a library that cannot be loaded: the next one may do.
                self.probes[name] = Probe(available=False, reason=f"{type(error).__name__}: {error}")
                continue
            self.probes[backend.name] = probe
            if probe.available:
                usable.append(backend)
        chain = ChainBackend(usable)
        if usable:
            chain.probe()
        return chain

    # ------------------------------------------------------------------ listening

    def listen(self) -> None:
        """Read requests until the server is gone, then end the process whatever the main thread is doing."""
        try:
            while True:
                request: Request = self.channel.receive()
                views: list[Any] = []
                error: Exception | None = None
                try:
                    views = [self.pool.get(handle) for handle in request.handles]
                except shmpool.ShmPoolError as caught:
                    error = caught
                if request.kind == "part":
                    # Pinned: the client may free the slot and fill the next one meanwhile.
                    self._answer(Answer(request.number, failure=None if error is None else _failure_of(error)))
                    if error is not None:
                        continue
                self.queue.put((request, views, error))
                del views
        except BaseException:
            # End of file is the normal end; anything else means that nobody can be understood any more.
            os._exit(0)

    def _answer(self, answer: Answer) -> None:
        self.channel.send(answer)

    # ------------------------------------------------------------------ working

    def run(self) -> None:
        """Do requests, one after the other, for as long as the process lives."""
        while True:
            request, views, error = self.queue.get()
            for number in request.forget:
                self.models.pop(number, None)
            handler = getattr(self, f"_do_{request.kind}")
            try:
                if error is not None:
                    raise error
                handler(request, views)
            except BaseException as caught:
                self._failed(request, caught)
            # Nothing of the request may stay alive in this frame: views pin slots.
            del request, views, error, handler

    def _failed(self, request: Request, error: BaseException) -> None:
        verdict = classify(error)
        if verdict is not Verdict.LOST:
            try:
                # Work that was started may still read slots; and a sticky error shows here at the latest.
                self.device.synchronize()
            except Exception as second:
                verdict, error = Verdict.LOST, second
        if verdict is Verdict.LOST:
            self._end_lost(request, error)
        self.device.begin({})
        failure = _failure_of(error)
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        if verdict is Verdict.MEMORY:
            self.device.release()
        if request.kind == "part":
            # The part itself was acknowledged: the call that names the array is told.
            spec = StreamSpec(*unpack(request.body, self._find([]))[:4])
            stream = self.streams.setdefault(spec.key, _Stream(spec))
            stream.target, stream.error = None, failure
            return
        self._answer(Answer(request.number, failure=failure, free_nbytes=self._free_nbytes()))

    def _end_lost(self, request: Request, error: BaseException) -> None:
        text = describe_sticky(error)
        log.error("the device is lost: %s", text)
        with contextlib.suppress(OSError):
            self._answer(Answer(request.number, failure=Failure("lost", text)))
        # Not sys.exit: destructors would call into a dead context.
        os._exit(EXIT_LOST)

    def _free_nbytes(self) -> int:
        held = sum(stream.spec.nbytes for stream in self.streams.values() if stream.error is None)
        return self.device.memory()[0] + self.residency.nbytes + held

    def _find(self, views: list[Any]) -> Any:
        def find(reference: tuple[str, Any]) -> Any:
            kind, which = reference
            if kind == "slot":
                return views[which]
            if kind == "model":
                return self.models[which]
            return self._whole(which)

        return find

    # ------------------------------------------------------------------ jobs

    def _do_run(self, request: Request, views: list[Any]) -> None:
        keys = {
            id(view): (handle.pool, handle.slot, handle.generation)
            for view, handle in zip(views, request.handles, strict=True)
        }
        number: int | None
        job, number = unpack(request.body, self._find(views))
        before = self.plain.transfer_seconds
        self.device.begin(keys)
        self.residency.make_room(self.plain, estimate(job))
        outcome = self.chain.run(job)
        self.device.synchronize()
        moved = self.plain.transfer_seconds - before
        place = self._new_number() if number is None else number
        if number is not None or outcome.state_changed:
            self.models[place] = outcome.model
        begun = time.perf_counter()
        computed = outcome.started + outcome.compute_seconds
        with _Results(self) as results:
            value = results.place(outcome.result)
            plain = self._portable(outcome, value, place)
            detail = {
                "upload": max(0.0, moved),
                "finish": max(0.0, begun - computed),
                "download": time.perf_counter() - begun,
            }
            body, _ = pack((plain, detail))
            # The slots are the server's from here on; the answer names them.
            del job, outcome, value, plain
            views.clear()
            self.device.begin({})
            kept = self.residency
            resident = (len(kept), kept.nbytes, kept.hits, kept.misses)
            self._answer(Answer(request.number, body, results.keep(), None, self._free_nbytes(), resident))

    def _new_number(self) -> int:
        self._last_model += 1
        return self._last_model

    def _portable(self, outcome: Outcome, value: Any, number: int) -> Outcome:
        return replace(
            outcome,
            result=value,
            model=number,
            attributes={name: self._summary_of(item) for name, item in outcome.attributes.items()},
            random_states={name: self._on_host(item) for name, item in outcome.random_states.items()},
        )

    def _on_host(self, value: Any) -> Any:
        return self.device.download(value) if self.device.owns(value) else value

    def _summary_of(self, value: Any) -> Any:
        """Return what the server needs of an attribute to name it: small values whole, of others only what they are."""
        if isinstance(value, Deferred):
            return value
        if self.device.owns(value):
            if value.nbytes >= INLINE_LIMIT:
                return Deferred("large")
            value = self.device.download(value)
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            return value if value.nbytes < INLINE_LIMIT else Deferred("large")
        large = False

        def note(array: Any) -> dict[str, Any]:
            nonlocal large
            large = True
            return {}

        try:
            encode_value(value, note)
        except UnsupportedValueError:
            return Deferred("opaque")
        return Deferred("large") if large else value

    # ------------------------------------------------------------------ models

    def _do_attributes(self, request: Request, views: list[Any]) -> None:
        model, names = unpack(request.body, self._find(views))
        found = self.chain.attributes(model)
        wanted = {name: self._on_host(found[name]) for name in names if name in found}
        self._send_value(request, wanted)

    def _do_export(self, request: Request, views: list[Any]) -> None:
        model = unpack(request.body, self._find(views))
        self._send_value(request, self.chain.export(model))

    def _send_value(self, request: Request, value: Any) -> None:
        self.device.synchronize()
        body, _ = pack(value)
        if len(body) < INLINE_LIMIT:
            self._answer(Answer(request.number, body))
            return
        with _Results(self) as results:
            # One slot for the whole pickle: an answer of several could wait for room while it holds some.
            placed = results.place(np.frombuffer(body, np.uint8))
            body, _ = pack(placed)
            self._answer(Answer(request.number, body, results.keep()))

    def _do_load(self, request: Request, views: list[Any]) -> None:
        estimator, params, state = unpack(request.body, self._find(views))
        self._keep(request, self.chain.load(estimator, params, state))

    def _do_adopt(self, request: Request, views: list[Any]) -> None:
        estimator, plain = unpack(request.body, self._find(views))
        self._keep(request, self.chain.adopt(estimator, plain))

    def _keep(self, request: Request, made: tuple[Any, int]) -> None:
        self.device.synchronize()
        number = self._new_number()
        self.models[number] = made[0]
        body, _ = pack((number, made[1]))
        self._answer(Answer(request.number, body, free_nbytes=self._free_nbytes()))

    # ------------------------------------------------------------------ arrays in parts

    def _do_part(self, request: Request, views: list[Any]) -> None:
        *parts, offset = unpack(request.body, self._find(views))
        spec = StreamSpec(*parts)
        stream = self.streams.setdefault(spec.key, _Stream(spec))
        if stream.error is not None:
            return
        if stream.target is None:
            self.residency.make_room(self.plain, spec.nbytes)
            stream.target = self.plain.empty(spec.shape, np.dtype(spec.dtype), spec.order)
        [view] = views
        data = view.reshape(-1, order="A").view(np.uint8)
        self.plain.write_part(stream.target, offset, data)
        stream.received += data.nbytes
        if stream.received == spec.nbytes:
            stream.whole, stream.target = self.plain.finish(stream.target), None

    def _whole(self, key: str) -> Any:
        stream = self.streams.get(key)
        if stream is None or (stream.whole is None and stream.error is None):
            raise ServerError("stale_handle", "an array in parts is not there, or not whole", "send it again")
        if stream.error is not None:
            raise ServerError(stream.error.code, stream.error.message, stream.error.hint)
        return stream.whole

    def _do_drop(self, request: Request, views: list[Any]) -> None:
        for key in unpack(request.body, self._find(views)):
            self.streams.pop(key, None)
        self._answer(Answer(request.number, free_nbytes=self._free_nbytes()))

    def _do_fetch(self, request: Request, views: list[Any]) -> None:
        key, offset, nbytes = unpack(request.body, self._find(views))
        whole = self._whole(key)
        with _Results(self) as results:
            placed = results.fill((nbytes,), np.dtype(np.uint8), lambda out: self.plain.read_part(whole, offset, out))
            body, _ = pack(placed)
            self._answer(Answer(request.number, body, results.keep()))


class _Results:
    """Puts the arrays of an answer into output slots and gives the slots to the server.

    The first slot is waited for while nothing is held, the others are taken only if they are free: an answer never
    waits while it holds something. What finds no slot travels in the message.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._pool = worker.pool
        self._server = shmpool.ClientId(*worker.config.server)
        self._handles: list[shmpool.Handle] = []
        self._kept = False

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._kept:
            for handle in self._handles:
                with contextlib.suppress(shmpool.ShmPoolError):
                    self._pool.free(handle)

    def keep(self) -> tuple[shmpool.Handle, ...]:
        """Return the handles; from now on the server frees them."""
        self._kept = True
        return tuple(self._handles)

    def place(self, value: Any) -> Any:
        """Return the value with host arrays and `Placed` in place of device arrays and large ones."""
        large = sorted(self._large(value), key=_nbytes, reverse=True)
        places: dict[int, Any] = {}
        for array in large:
            if id(array) not in places:
                places[id(array)] = self._place(array)
        return self._substitute(value, places)

    def _large(self, value: Any) -> Iterator[Any]:
        if self._worker.device.owns(value):
            yield value
        elif isinstance(value, np.ndarray):
            if value.dtype.kind != "O" and value.nbytes >= INLINE_LIMIT:
                yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from self._large(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from self._large(item)

    def _substitute(self, value: Any, places: dict[int, Any]) -> Any:
        if id(value) in places:
            return places[id(value)]
        if type(value) is dict:
            return {key: self._substitute(item, places) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self._substitute(item, places) for item in value)
        return value

    def _place(self, array: Any) -> Any:
        device = self._worker.device
        owned = device.owns(array)
        if owned and _nbytes(array) < INLINE_LIMIT:
            return device.download(array)
        try:
            if not owned:
                return self._give(self._pool.put(array, *self._where(array.nbytes)))
            dtype = _dtype(array)
            fill = functools.partial(device.download, array)
            return self.fill(tuple(array.shape), dtype, fill, "F" if _is_fortran(array) else "C")
        except shmpool.PoolFullError:
            if not self._handles:
                raise
            return device.download(array) if owned else array

    def fill(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Any, order: str = "C") -> Placed:
        """Let ``fill`` write an array into a slot, and give the slot away."""
        nbytes = math.prod(shape) * dtype.itemsize
        region, timeout = self._where(nbytes)
        with self._pool.loan(shape, dtype, "F" if order == "F" else "C", region=region, timeout=timeout) as loan:
            fill(loan.array)
            self._worker.device.synchronize()
            handle = loan.seal()
        return self._give(handle)

    def _where(self, nbytes: int) -> tuple[Region, float]:
        geometry = self._pool.geometry
        # As ShmTransport does: what is too large for the output region goes to scratch.
        slots = -(-nbytes // geometry.slot_nbytes)
        region: Region = "scratch" if geometry.output_slots < slots <= geometry.scratch_slots else "output"
        return region, 0.0 if self._handles else self._worker.config.output_timeout

    def _give(self, handle: shmpool.Handle) -> Placed:
        self._pool.give(handle, self._server)
        self._handles.append(handle)
        return Placed(len(self._handles) - 1)


def _dtype(array: Any) -> np.dtype[Any]:
    # Array libraries have dtypes of their own, such as "torch.float32".
    return np.dtype(str(array.dtype).rpartition(".")[2])


def _nbytes(array: Any) -> int:
    """Return the bytes of an array of any library; not all of them have ``nbytes``."""
    return int(math.prod(array.shape)) * _dtype(array).itemsize


def _is_fortran(array: Any) -> bool:
    flags = getattr(array, "flags", None)
    return bool(flags is not None and flags.f_contiguous and not flags.c_contiguous)


def _failure_of(error: BaseException) -> Failure:
    if isinstance(error, RefusedByBackend):
        return Failure("refused", str(error))
    if classify(error) is Verdict.MEMORY:
        return Failure(
            "server",
            f"the job does not fit into the device's memory: {error}",
            "out_of_memory",
            "Send less at once, use float32, or use a device with more memory.",
        )
    if isinstance(error, (ServerError, shmpool.ShmPoolError)):
        refused = from_exception(error)
        return Failure("server", refused.message, refused.code, refused.hint)
    if not isinstance(error, Exception):
        return Failure("server", f"{type(error).__name__} in the GPU worker")
    return Failure("estimator", str(error), exception=describe_exception(error))


def _pin_pool(device: PinningDevice, pool: shmpool.Pool, limit: int) -> None:
    """Pin the input and output slots once, as far as the limit and the free memory go. Never fails the start."""
    ranges: list[tuple[int, int]] = []
    for region in _REGIONS:
        address, nbytes = pool.memory(region)
        if not nbytes or nbytes > limit:
            continue
        try:
            # Pages that are there are registered twice as fast, and a full file system is noticed here.
            ready = pool.prefault(region, pool.geometry.slot_nbytes, wait=True)
        except shmpool.ShmPoolError as error:
            log.warning("the %s region is not pinned: %s", region, error)
            continue
        if ready < nbytes:
            log.warning("the %s region is not pinned: only %d MiB of memory for it", region, ready >> 20)
            continue
        limit -= nbytes
        ranges.append((address, nbytes))
    if len(ranges) == 2 and ranges[0][0] + ranges[0][1] == ranges[1][0]:
        # As one range, so that an array that lies in both regions is in one registration.
        whole = ranges[0][0], ranges[0][1] + ranges[1][1]
        with contextlib.suppress(PinRefusedError):
            device.pin(*whole)
            return
    for address, nbytes in ranges:
        try:
            device.pin(address, nbytes)
        except PinRefusedError as error:
            log.warning("slots are not pinned: %s", error)
            return


def _start(config: WorkerConfig, channel: Channel) -> Worker:
    device = make_device(config.device, config.device_options)
    device.warm_up()
    # After the device: at the end of a process its files are closed in order, so that the device has stopped writing
    # to our slots before the lock goes that says we are alive.
    pool = shmpool.Pool.attach(config.pool_path, prefault_nbytes=0)
    _pin_pool(device, pool, config.pin_nbytes)
    return Worker(channel, config, device, pool)


def main() -> int:
    """Run the worker; the process ends by itself when the server does."""
    begun = time.monotonic()
    _die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches every process: the server decides
    # Whatever a library prints must not end up between messages.
    writer = os.dup(1)
    os.dup2(2, 1)
    channel = Channel(0, writer)
    config: WorkerConfig = channel.receive()
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s [gpu] %(message)s", stream=sys.stderr)
    try:
        worker = _start(config, channel)
    except BaseException as error:
        log.info("the GPU worker cannot start: %s", error, exc_info=not isinstance(error, DeviceLostError))
        channel.send(Ready(error=f"{type(error).__name__}: {error}"))
        return 3
    free, total = worker.plain.memory()
    pins = worker.plain.pin_report()
    channel.send(
        Ready(
            error="" if worker.chain.backends else _nobody(worker.probes),
            device=worker.plain.name,
            versions=worker.plain.versions(),
            pin_path=pins.path,
            pin_reason=pins.reason,
            pinned_nbytes=pins.pinned_nbytes,
            total_nbytes=total,
            free_nbytes=free,
            probes=worker.probes,
            seconds=time.monotonic() - begun,
        )
    )
    if not worker.chain.backends:
        return 3
    threading.Thread(target=worker.listen, name="gsb-gpu-listen", daemon=True).start()
    worker.run()
    return 0


def _nobody(probes: dict[str, Probe]) -> str:
    return "; ".join(f"{name}: {probe.reason}" for name, probe in probes.items()) or "no backend is configured"


if __name__ == "__main__":
    sys.exit(main())
