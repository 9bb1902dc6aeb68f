#!/usr/bin/env bash
# Train a small network on a laptop: two gloo processes, a quarter of the kernels, 112 pixels.
#   launch/cpu.sh [overrides]
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"
exec python -m alexnet2012.train recipe=code145 model=small \
    schedule=constant data.batch_size=32 mesh.device=cpu "$@"
