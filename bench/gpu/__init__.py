# SPDX-License-Identifier: BSD-3-Clause
"""What the GPU worker costs and gains; ``python -m bench.gpu`` (``make bench-gpu``) writes ``docs/gpu.md``."""
