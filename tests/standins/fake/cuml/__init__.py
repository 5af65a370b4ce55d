# SPDX-License-Identifier: BSD-3-Clause
"""A stand-in for cuML on a machine without a GPU: the classes that gsb_server.backends.cuml drives.

The mathematics is scikit-learn's, on host copies. Kept of the real package, as read in its sources (26.10):

* ``cuml.accel._overrides.sklearn.*`` has the names; a class has ``_gpu_class``, ``_cpu_class``, ``_validate_params``
  and ``_call_gpu_method``, an instance ``_cpu`` and ``_gpu``;
* cuML's own classes take keywords only, translate parameters in ``_params_from_cpu``, which raises
  ``UnsupportedOnGPU``, lack some methods, keep their arrays on the device and give them out as the thread's output
  type says;
* PCA writes into its input where that needs no transposition;
* ``transform`` and its kind return device arrays, everything else NumPy arrays.

``tests/device/test_cuml.py`` compares names, refusals and signatures with the real package where that can be imported,
which needs no GPU.
"""

from __future__ import annotations

from .internals.outputs import GlobalSettings, using_output_type

__version__ = "26.10.00+fake"
global_settings = GlobalSettings()

__all__ = ["GlobalSettings", "global_settings", "using_output_type"]
