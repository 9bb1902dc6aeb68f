#!/usr/bin/env bash
# The paper's two processes on one machine, started by torchrun:
#   launch/torchrun.sh [overrides]                 launch/torchrun.sh recipe=code145 model=small
# On N machines, the same command on each (data replicas × towers):
#   NNODES=2 MASTER=host0:29500 launch/torchrun.sh data=store data.store=STORE [overrides]
# After a failure all workers restart, up to MAX_RESTARTS times, from the latest checkpoint in the run
# directory, which must be set (docs/faults.md):
#   MAX_RESTARTS=3 launch/torchrun.sh hydra.run.dir=RUN [overrides]
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"  # without changing the working directory

per_node=${NPROC_PER_NODE:-2}

# Errors in the configuration are reported here, in one line, and the store is prepared before workers start.
ALEXNET2012_LOCAL_PROCESSES=$per_node python -m alexnet2012.train check "$@" "mesh.processes=$((${NNODES:-1} * per_node))"

if [ "${NNODES:-1}" = 1 ]; then
    # The rendezvous is an unlinked file: nothing listens on the network, where torch would unpickle
    # whatever anyone sends. The file disappears with torchrun, which replaces this process.
    file=$(mktemp)
    exec 9<>"$file"
    rm "$file"
    export ALEXNET2012_RENDEZVOUS_FILE=/proc/$$/fd/9 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint "$ALEXNET2012_RENDEZVOUS_FILE" --rdzv-conf store_type=file
        --rdzv-id "$$" --local-addr localhost)
else
    unset ALEXNET2012_RENDEZVOUS_FILE
    rendezvous=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "${MASTER:?host:port of one node}"
        --rdzv-id "${RDZV_ID:-alexnet2012}")
fi
# Without this, restarted workers read the addresses of the previous ones (pytorch issue 135712), and the
# shared store listens on the network.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # each process sets its own number of threads
exec torchrun "${rendezvous[@]}" --nproc-per-node "$per_node" \
    --max-restarts "${MAX_RESTARTS:-0}" -m alexnet2012.train "$@"
