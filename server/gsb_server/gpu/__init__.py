# SPDX-License-Identifier: BSD-3-Clause
"""The GPU worker: a supervised process of its own that holds a device, and the server's way to it.

Importing this package, `supervisor` and `messages` needs no CUDA: CuPy is imported by
`CupyDevice` alone, in the worker.
"""
