# SPDX-License-Identifier: BSD-3-Clause
"""``python -m bench.gpu``: measure the bridge to a GPU, print it, write ``docs/gpu.md``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.gpu import jobs
from bench.gpu.report import render

ROOT = Path(__file__).resolve().parents[2]
STANDINS = ROOT / "tests" / "standins"
CALL_SECONDS = 300.0
JOB_SECONDS = 900.0
#: Settings of the server for each way of the bytes.
PATHS = {
    "parts": {},
    "pinned": {"GSB_PARTS_ABOVE": "1T"},
    "ring": {"GSB_PARTS_ABOVE": "1T", "GSB_GPU_HOST_PATH": "ring"},
    "pageable": {"GSB_PARTS_ABOVE": "1T", "GSB_GPU_HOST_PATH": "pageable"},
}


class Bench:
    """One run.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.fake = options.device == "fake"
        self.found: dict[str, Any] = {"described": {}}
        self.environment = {"PYTHONPATH": os.pathsep.join(self._paths())}
        os.environ.update(self.environment)

    def _paths(self) -> list[str]:
        own = [ROOT, *(ROOT / part for part in ("src", "python", "server"))]
        if self.fake:
            own = [STANDINS / "server", STANDINS, STANDINS / "fake", *own]
        return [*map(str, own), *filter(None, [os.environ.get("PYTHONPATH", "")])]

    @contextmanager
    def server(self, settings: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Run a server with a pool of its own; gives its status. Nothing is left behind."""
        import gsb
        from gsb.cli.server_process import ServerProcess

        folder = Path(tempfile.mkdtemp(prefix="gsb-bench-"))
        pool = Path(tempfile.mkdtemp(prefix="gsb-bench-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        token = secrets.token_hex(16)
        url = f"unix://{folder / 'server.sock'}"
        slot = self.options.slot
        arguments = ["--socket", str(folder / "server.sock"), "--pool", str(pool / "pool.bin"), "--slot-size", slot]
        environment = {
            "GSB_RUNTIME_DIR": str(folder),
            "GSB_TOKEN": token,
            "GSB_SERVER": url,
            "GSB_LOG_LEVEL": "warning",
            **settings,
        }
        try:
            with (folder / "log").open("wb") as log:
                try:
                    process = ServerProcess(arguments, environment, output=log, start_timeout=180.0)
                    with process, gsb.config(server=url, token=token, timeout=CALL_SECONDS):
                        self.reach = {"GSB_SERVER": url, "GSB_TOKEN": token, "GSB_RUNTIME_DIR": str(folder)}
                        from gsb._client import get_client

                        yield get_client().status()
                        gsb.disconnect()
                except BaseException:
                    sys.stderr.write((folder / "log").read_text(errors="replace")[-5000:])
                    raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(pool, ignore_errors=True)

    def run_path(self, key: str, X: Any) -> None:
        """Measure one way of the bytes: the first call of a fresh server, then warm ones."""
        from gsb.decomposition import PCA

        with self.server(PATHS[key]) as status:
            gpu = status["gpu"]
            if not gpu["running"]:
                raise SystemExit(f"bench-gpu: no GPU worker: {status['backend']['reason']}")
            self.found["described"][key] = f"{gpu['host_path']}, {gpu['pinned_nbytes'] >> 20} MiB pinned"
            self.found.setdefault("machine", self._machine(status))
            reports = []
            for _ in range(self.options.repeat + 1):
                pca = PCA(n_components=jobs.COMPONENTS)
                pca.fit_transform(X)
                report = pca.gsb_report_
                if report.backend == "sklearn":
                    raise SystemExit(f"bench-gpu: the call ran on the CPU: {report.reason}")
                reports.append({"stages": report.stages, "detail": report.detail, "total": report.total})
            self.found[f"path.{key}.cold"] = reports[0]
            self.found[f"path.{key}.warm"] = reports[1:]
            if key == "parts":
                self.run_clients()

    def _machine(self, status: dict[str, Any]) -> list[str]:
        gpu, probes = status["gpu"], status["backend"]["probes"]
        versions = {name: version for probe in probes.values() for name, version in probe["versions"].items()}
        lines = [
            f"{gpu['device']}, {gpu['total_nbytes'] / 2**30:.0f} GiB",
            ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
            f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPU cores",
            f"PCA(n_components={jobs.COMPONENTS}).fit_transform of {self.options.rows:,} x {self.options.columns} "
            f"float32, {self.options.rows * self.options.columns * 4 / 1e6:.0f} MB; backends {', '.join(probes)}",
        ]
        return lines + ["**stand-ins, no GPU: the figures mean nothing**"] * self.fake

    def run_clients(self) -> None:
        """Several processes at once."""
        import time

        count = self.options.clients
        size = [str(self.options.rows), str(self.options.columns), str(self.options.repeat)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.jobs", "client", *size],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **self.reach},
                cwd=ROOT,
            )
            for _ in range(count)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise SystemExit("bench-gpu: a client did not start")
            begun = time.perf_counter()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            answers = [json.loads(process.communicate(timeout=JOB_SECONDS)[0]) for process in processes]
            wall = time.perf_counter() - begun
        finally:
            for process in processes:
                process.kill()
                process.wait()
        seconds = [value for answer in answers for value in answer["seconds"]]
        self.found["clients"] = {
            "clients": count,
            "repeats": self.options.repeat,
            "wall": wall,
            "median": statistics.median(seconds) if seconds else float("nan"),
            "slowest": max(seconds, default=float("nan")),
            "errors": [text for answer in answers for text in answer["errors"]],
            "backends": ", ".join(sorted({name for answer in answers for name in answer["backends"]})),
        }

    def run_alone(self, library: str) -> None:
        """Measure a library in a process of its own."""
        size = [str(self.options.rows), str(self.options.columns), str(self.options.repeat)]
        done = subprocess.run(
            [sys.executable, "-m", "bench.gpu.jobs", library, *size],
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
            check=False,
            cwd=ROOT,
        )
        if done.returncode == 0:
            self.found[library] = json.loads(done.stdout.splitlines()[-1])
        else:
            print(f"{library} could not be measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)

    def read_tests(self, path: Path) -> None:
        """Take over what ``make test-gpu`` has found, if that was run here."""
        if self.fake or not path.exists():
            return
        cases = ElementTree.parse(path).getroot().findall(".//testcase")
        failures = [case.get("name", "") for case in cases if case.find("failure") is not None]
        failures += [case.get("name", "") for case in cases if case.find("error") is not None]
        skipped = [case for case in cases if case.find("skipped") is not None]
        done = {case.get("name", "") for case in cases if not list(case)}
        self.found["tests"] = {
            "passed": len(cases) - len(failures) - len(skipped),
            "failed": len(failures),
            "skipped": len(skipped),
            "failures": failures,
        }
        for key, name in (("sticky", "sticky_error_replaces"), ("pinning", "slots_are_pinned_where")):
            if any(name in test for test in done):
                self.found[key] = True

    def judge(self) -> None:
        """Compare with the bars. They are for an H100; elsewhere they are only shown."""
        warm = statistics.median([one["total"] for one in self.found["path.parts.warm"]])
        errors = self.found["clients"]["errors"]
        self.found["bar.warm"] = {
            "text": "end to end, warm: under 200 ms on an H100",
            "value": f"{warm * 1e3:.0f} ms",
            "met": warm < 0.2,
        }
        self.found["bar.errors"] = {
            "text": "four clients at once without an error",
            "value": f"{len(errors)} errors",
            "met": not errors,
        }
        if "cuml" in self.found:
            ratio = warm / statistics.median(self.found["cuml"]["warm"])
            self.found["bar.ratio"] = {
                "text": "end to end: at most 1.5 times in-process cuML on host arrays",
                "value": f"{ratio:.2f} times",
                "met": ratio <= 1.5,
            }

    def run(self) -> str:
        """Measure everything; the page."""
        X = jobs.make(self.options.rows, self.options.columns)
        for key in self.options.paths:
            print(f"measuring: {key}", file=sys.stderr, flush=True)
            self.run_path(key, X)
        for library in ("cuml", "sklearn"):
            print(f"measuring: {library} in-process", file=sys.stderr, flush=True)
            self.run_alone(library)
        self.judge()
        self.read_tests(ROOT / "build" / "test-gpu.xml")
        return render(self.found)


def main(argv: list[str] | None = None) -> int:
    """Run; the exit status says whether a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--device", choices=["cupy", "fake"], default="cupy", help="fake: stand-ins, for the scripts' sake"
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--columns", type=int, default=250)
    parser.add_argument("--repeat", type=int, default=5, help="warm runs of each")
    parser.add_argument("--slot", default="256M", help="bytes of a slot of the pool")
    parser.add_argument("--paths", nargs="+", choices=[*PATHS], default=[*PATHS], help="must have parts")
    parser.add_argument("--clients", type=int, default=4, help="how many at once")
    parser.add_argument("--output", type=Path, help="default: docs/gpu.md; a temporary file for the fake")
    options = parser.parse_args(argv)
    if options.device == "fake" and options.output and options.output.resolve() == (ROOT / "docs" / "gpu.md").resolve():
        raise SystemExit("bench-gpu: figures of stand-ins do not go into the documentation")
    bench = Bench(options)
    page = bench.run()
    output = options.output
    if output is None:
        output = Path(tempfile.mkdtemp(prefix="gsb-bench-")) / "gpu.md" if bench.fake else ROOT / "docs" / "gpu.md"
    output.write_text(page)
    print(page)
    print(f"written to {output}", file=sys.stderr)
    return 0 if all(found["met"] for key, found in bench.found.items() if key.startswith("bar.")) else 1


if __name__ == "__main__":
    sys.exit(main())
