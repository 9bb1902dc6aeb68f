#!/usr/bin/env bash
# The paper's two processes on one machine, started by torchrun:
#   launch/torchrun.sh [overrides]                 launch/torchrun.sh recipe=code145 model=small
# On N machines, the same command on each (data replicas × towers):
#   NNODES=2 MASTER=host0:29500 launch/torchrun.sh data=store data.store=STORE [overrides]
# After a fault all workers start again, up to MAX_RESTARTS times, from the newest checkpoint of the
# run directory, which has to be named (docs/faults.md):
#   MAX_RESTARTS=3 launch/torchrun.sh hydra.run.dir=RUN [overrides]
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/.." && pwd)/.venv/bin:$PATH"  # runs start in your own folder

per_node=${NPROC_PER_NODE:-2}

# A mistake ends here, in one line, before any process is started; so does waiting for pictures.
ALEXNET2012_PROCESSES_HERE=$per_node python -m alexnet2012.train check "$@" "mesh.processes=$((${NNODES:-1} * per_node))"

if [ "${NNODES:-1}" = 1 ]; then
    # Agent and workers meet in a file that has no name any more: nothing listens to the network, where
    # torch would unpickle what anyone sends. It is gone when torchrun is, which takes over this process.
    file=$(mktemp)
    exec 9<>"$file"
    rm "$file"
    export ALEXNET2012_MEETING=/proc/$$/fd/9 GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint "$ALEXNET2012_MEETING" --rdzv-conf store_type=file
        --rdzv-id "$$" --local-addr localhost)
else
    unset ALEXNET2012_MEETING
    rendezvous=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "${MASTER:?host:port of one node}"
        --rdzv-id "${RDZV_ID:-alexnet2012}")
fi
# Workers that start again would meet the addresses of those before them (pytorch issue 135712), and
# on one machine the store that is shared else would listen to the network.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # each process shares out the cores by itself
exec torchrun "${rendezvous[@]}" --nproc-per-node "$per_node" \
    --max-restarts "${MAX_RESTARTS:-0}" -m alexnet2012.train "$@"
