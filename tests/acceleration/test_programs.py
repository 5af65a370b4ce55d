# SPDX-License-Identifier: BSD-3-Clause
"""``python -m gsb.accel``: as Python itself, and the same results."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gsb.cli.private_server import PrivateServer
from helpers.programs import DEADLINE, environment

Run = Callable[..., "subprocess.CompletedProcess[str]"]

# What a program sees of itself; nothing of scikit-learn, so that each run is short.
SHOWS = '''"""The docstring."""
import sys
main = sys.modules["__main__"]
print(sys.argv, sys.path[0], main.__dict__ is globals(), __name__, __doc__)
print(globals().get("__file__"), __package__, getattr(__spec__, "name", None), type(__loader__), __builtins__)
print("sklearn" in sys.modules, "numpy" in sys.modules)
class Mine: pass
import pickle
print(type(pickle.loads(pickle.dumps(Mine()))).__module__)
if "fail" in sys.argv:
    def fail(): raise KeyError("why")
    fail()
if "interrupt" in sys.argv: raise KeyboardInterrupt
if "status" in sys.argv: sys.exit(7)
if "text" in sys.argv: sys.exit("bye")
'''

COMMANDS: dict[str, tuple[list[str], str]] = {
    "script": (["show.py", "a", "-m", "--report", "-c"], ""),
    "script in a folder": (["folder/show.py"], ""),
    "link": (["link.py"], ""),
    "folder": (["folder"], ""),
    "archive": (["archive.zip", "x"], ""),
    "module": (["-m", "show", "--help"], ""),
    "package": (["-m", "folder", "1"], ""),
    "module in a package": (["-m", "folder.show"], ""),
    "command": (["-c", SHOWS, "a", "b"], ""),
    "stdin": (["-", "a"], SHOWS),
    "exception": (["show.py", "fail"], ""),
    "exception in a module": (["-m", "show", "fail"], ""),
    "interrupt": (["show.py", "interrupt"], ""),
    "status": (["show.py", "status"], ""),
    "text": (["show.py", "text"], ""),
    "syntax error": (["-c", "x ="], ""),
    "syntax error in a file": (["wrong.py"], ""),
    "no file": (["nothing.py"], ""),
    "no module": (["-m", "nothing"], ""),
    "own hook": (["-c", "import sys; sys.excepthook = lambda *a: print('mine', a[0], a[2].tb_lineno); 1/0"], ""),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import zipfile

    folder = tmp_path_factory.mktemp("programs")
    (folder / "folder").mkdir()
    for name in ("show.py", "folder/show.py", "folder/__main__.py"):
        (folder / name).write_text(SHOWS)
    (folder / "folder" / "__init__.py").write_text("")
    (folder / "wrong.py").write_text("x = 1\ny = = 2\n")
    (folder / "link.py").symlink_to("folder/show.py")
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SHOWS)
    return folder


@pytest.mark.parametrize("kind", COMMANDS)
def test_as_python_itself(python: Run, programs: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    command, stdin = COMMANDS[kind]
    monkeypatch.chdir(programs)
    plain = python(*command, stdin=stdin, cwd=programs)
    ours = python("-m", "gsb.accel", *command, stdin=stdin, cwd=programs)
    assert ours.stdout == plain.stdout
    # -m shows frames of runpy, which carries the program there and not here.
    words = re.sub(r'  File "<frozen runpy>".*\n', "", plain.stderr)
    assert ours.stderr == words
    assert ours.returncode == plain.returncode
    if kind == "interrupt":
        assert ours.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--local-below", "much", "x.py"], "'much' is not a size"),
        (["--no-such-option", "x.py"], "unrecognized arguments: --no-such-option"),
        (["-x"], "unknown option -x"),
        (["-m"], "argument expected for the -m option"),
        (["--exclude", "a-b", "-c", ""], "'a-b' in exclude is not the name of a package"),
        (["--fallback", "maybe", "x.py"], "invalid choice: 'maybe'"),
    ],
)
def test_wrong_options(python: Run, arguments: list[str], words: str) -> None:
    found = python("-m", "gsb.accel", *arguments)
    assert found.returncode != 0
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_help(python: Run) -> None:
    found = python("-m", "gsb.accel", "--help")
    assert found.returncode == 0
    assert "--local-below SIZE" in found.stdout


# ---------------------------------------------------------------------------------- results
WORKS = """
import sys
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
if __name__ == "__main__":
    np.random.seed(3)
    X, y = make_classification(300, 8, random_state=0)
    pipe = make_pipeline(StandardScaler(), PCA(n_components=4), LogisticRegression())
    print(pipe.fit(X, y).predict_proba(X).tobytes().hex())
    print(pipe, type(pipe[1]), pipe[1].components_.tobytes().hex())
    print(KMeans(3, n_init=2).fit(X).cluster_centers_.tobytes().hex(), np.random.random())
    print(cross_val_score(pipe, X, y, cv=3))
    try:
        pipe.fit(X, y[:-1])
    except ValueError as error:
        print(error)
    for backend in sys.argv[1:]:
        import joblib
        with joblib.parallel_backend(backend):
            search = GridSearchCV(pipe, {"logisticregression__C": [0.1, 1.0]}, n_jobs=2, cv=2).fit(X, y)
        print(backend, search.best_params_, search.cv_results_["mean_test_score"], search.predict(X).tobytes().hex())
"""
BACKENDS = ("loky", "threading", "multiprocessing")


def test_same_output_as_plain(python: Run, tmp_path: Path, server: PrivateServer) -> None:
    """Everything on the server; nothing on the server because it is small; no server."""
    (tmp_path / "works.py").write_text(WORKS)
    plain = python("works.py", *BACKENDS, PYTHONWARNINGS="")
    assert plain.returncode == 0
    here = {"GSB_SERVER": server.url, "GSB_TOKEN": server.token, "PYTHONWARNINGS": ""}
    sent = python("-m", "gsb.accel", "--local-below=0", "--report", "works.py", *BACKENDS, **here)
    assert (sent.returncode, sent.stdout) == (0, plain.stdout)
    assert "FallbackWarning" not in sent.stderr
    table = _table(sent.stderr)
    assert table[("PCA.fit_transform", "server, sklearn")] > 0
    # Here: the first fit, three of cross validation, four by threads, three refits. Then four in children of loky, and
    # four in children of multiprocessing, which are killed as soon as they have answered: their last may be missing.
    assert 11 + 4 <= table[("LogisticRegression.fit", "server, sklearn")] <= 11 + 4 + 4
    assert re.search(r"in the program and its [1-4] child", sent.stderr)
    small = python("-m", "gsb.accel", "--report", "works.py", **here)
    assert small.returncode == 0
    assert plain.stdout.startswith(small.stdout)
    assert all(where == "program" for _, where in _table(small.stderr))
    alone = python("-m", "gsb.accel", "--local-below=0", "works.py", PYTHONWARNINGS="")
    assert alone.returncode == 0
    assert alone.stdout == small.stdout
    assert alone.stderr.count("FallbackWarning") == 1


def _table(text: str) -> dict[tuple[str, str], int]:
    rows = re.findall(r"^(\w+\.\w+) +(program|server, \w+) +(\d+) ", text, re.MULTILINE)
    assert rows, text
    table: dict[tuple[str, str], int] = {}
    for name, where, calls in rows:
        table[name, where] = table.get((name, where), 0) + int(calls)
    return table


WORKERS = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from sklearn.decomposition import PCA
class Mine(PCA): pass
def where(model):
    from sklearn.naive_bayes import GaussianNB
    return type(model).__module__, GaussianNB.__module__, type(model) in (PCA, Mine), isinstance(model, PCA)
if __name__ == "__main__":
    for method in sys.argv[1:]:
        if method == "loky":
            from joblib import Parallel, delayed
            print(*Parallel(n_jobs=2)(delayed(lambda model: where(model))(model) for model in [PCA(), Mine()]))
        else:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
                print(*pool.map(where, [PCA(), Mine()]))
"""


@pytest.mark.parametrize("run", ["workers.py fork spawn forkserver loky", "-m workers spawn"])
def test_worker_processes(python: Run, tmp_path: Path, run: str) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    found = python("-m", "gsb.accel", *run.split(), PYTHONWARNINGS="")
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert len(lines) == len(run.replace("-m ", "").split()) - 1
    for line in lines:
        assert "('gsb.decomposition', 'gsb.naive_bayes', True, True)" in line
        assert re.search(r"\('(__main__|__mp_main__|workers)', 'gsb\.naive_bayes', True, True\)", line)


def test_starts_a_server_if_none_answers(python: Run) -> None:
    program = "from sklearn.linear_model import Ridge; import gsb; m = Ridge().fit([[0.], [1.]], [0., 1.]); "
    program += "print(m.gsb_report_.backend, gsb.get_config().server)"
    options = ("-m", "gsb.accel", "--local-below=0", "--start-server", "--backend=sklearn", "-c", program)
    started = python(*options)
    assert (started.returncode, started.stderr) == (0, "")
    backend, url = started.stdout.split()
    assert backend == "sklearn"
    folder = Path(url.removeprefix("unix://")).parent
    assert folder.name.startswith("gsb-private-")
    assert not folder.exists()


def test_starts_none_if_one_answers(server: PrivateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsb.accel import _server

    monkeypatch.setenv("GSB_TOKEN", server.token)
    assert _server.ensure(server.url, None) == {}


EXPERIMENTAL = """
import sklearn.impute
from sklearn.experimental import enable_iterative_imputer
from sklearn.impute import IterativeImputer
print(IterativeImputer.__module__, sklearn.impute.IterativeImputer is IterativeImputer)
"""


def test_experimental_estimators(python: Run) -> None:
    found = python("-m", "gsb.accel", "-c", EXPERIMENTAL)
    assert (found.stdout, found.stderr) == ("gsb.impute True\n", "")


NOTEBOOK = """
from IPython.testing.globalipapp import start_ipython
shell = start_ipython()
def run(text): shell.run_cell(text, store_history=False).raise_error()
run("%load_ext gsb.accel")
run("from sklearn.naive_bayes import GaussianNB")
run("assert GaussianNB.__module__ == 'gsb.naive_bayes'")
run("%%gsb\\nmodel = GaussianNB().fit([[0.0], [1.0]], [0, 1])")
run("%unload_ext gsb.accel")
run("from sklearn.naive_bayes import GaussianNB")
run("assert GaussianNB.__module__ == 'sklearn.naive_bayes'")
run("assert model.predict([[0.9]]) == [1]")
run("import sys; assert sys.modules['gsb.accel'].is_installed() is False")
assert "gsb" not in shell.magics_manager.magics["cell"]
run("%load_ext gsb.accel")
"""


def test_notebook(python: Run, tmp_path: Path) -> None:
    pytest.importorskip("IPython")
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    found = python("notebook.py", PYTHONWARNINGS="", IPYTHONDIR=str(tmp_path / "ipython"))
    assert found.returncode == 0, found.stderr
    assert "0 calls on the server, 1 call in the program" in found.stdout
    assert "not accelerated: GaussianNB" in found.stderr


def test_prompt(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gsb.accel"]
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env=environment(TERM="dumb")
    )
    os.close(theirs)
    try:
        os.write(ours, b"class Mine: pass\n\nimport pickle; pickle.loads(pickle.dumps(Mine))\nexit(3)\n")
        shown = b""
        # A terminal whose other side is gone gives an error rather than end of file.
        with contextlib.suppress(OSError):
            while select.select([ours], [], [], DEADLINE)[0] and (data := os.read(ours, 1024)):
                shown += data
        assert child.wait(DEADLINE) == 3
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert b"accelerated by gsb" in shown
    assert b"<class '__main__.Mine'>" in shown


def test_stays_for_questions_afterwards(python: Run, tmp_path: Path) -> None:
    """``python -i``: what the program has defined is there."""
    (tmp_path / "defines.py").write_text("value = 41\n")
    found = python("-i", "-m", "gsb.accel", "defines.py", stdin="print(value + 1, __name__)\n")
    assert found.stdout == "42 __main__\n"
