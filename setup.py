# SPDX-License-Identifier: BSD-3-Clause
"""Build the extension modules. Everything declarative lives in pyproject.toml.

Environment switches, for developers:

``SHMPOOL_FAILPOINTS=1``  compile the labelled places at which crash tests kill the process
``SHMPOOL_SANITIZE=address,undefined``  pass ``-fsanitize=...``
``SHMPOOL_DEBUG=1``  no optimisation, debug symbols
"""

import os
import sys
import sysconfig

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

macros = [("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")]
compile_args = []
link_args = []
if LIMITED_API:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if sys.platform != "win32":
    debug = os.environ.get("SHMPOOL_DEBUG") == "1"
    compile_args += ["-std=gnu11", "-O0" if debug else "-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
    # Cython's own output is not warning-free under -Wextra
    compile_args += ["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-unused-function"]
    compile_args += ["-g"] if debug else ["-g0"]
    link_args += ["-pthread"]
    if sanitize := os.environ.get("SHMPOOL_SANITIZE"):
        compile_args.append(f"-fsanitize={sanitize}")
        link_args.append(f"-fsanitize={sanitize}")
if os.environ.get("SHMPOOL_FAILPOINTS") == "1":
    macros.append(("SHMPOOL_FAILPOINTS", "1"))

depends = [f"src/shmpool/{folder}/{name}" for folder in ("core", "os") for name in os.listdir(f"src/shmpool/{folder}")]
# also puts them into the source distribution: the compiler's sources are what Cython made of them
depends += [f"src/shmpool/{name}" for name in ("_core.pyx", "_channel.pyx", "_native.pxd", "_dtype_cache.pxi")]


def extension(name: str) -> Extension:
    return Extension(
        f"shmpool.{name}",
        sources=[f"src/shmpool/{name}.pyx"],
        include_dirs=["src/shmpool", np.get_include()],
        depends=depends,
        define_macros=macros,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        py_limited_api=LIMITED_API,
    )


class LimitedApiWheel(bdist_wheel):
    """Tag the wheel ``cp311-abi3``: one wheel serves CPython 3.11 and everything after it."""

    def finalize_options(self) -> None:
        if LIMITED_API:
            self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    ext_modules=cythonize(
        [extension("_core"), extension("_channel")],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": True,
            "embedsignature.format": "python",
            "auto_pickle": False,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
        },
    ),
    cmdclass={"bdist_wheel": LimitedApiWheel},
)
