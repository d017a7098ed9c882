#!/usr/bin/env bash
# Everything worth doing on one large GPU, within one ten-minute command:
#     bash benchmarks/gpu.sh [--out DIR] [--seconds 560] [...]
# Needs `python3` with PyTorch 2.11 or later, and nothing else: no network, no installation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
