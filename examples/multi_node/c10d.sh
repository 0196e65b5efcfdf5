#!/usr/bin/env bash
# Several nodes that find their ranks themselves. The same command on each, in any order:
#   RDZV_HOST=name-of-one-of-the-nodes examples/multi_node/c10d.sh DATA [OVERRIDES...]
# DATA and output_dir lie on storage that every node sees. A lost node (not RDZV_HOST) may be started again, or another
# in its place: the others wait for it, and all continue from the latest checkpoint.
set -euo pipefail

DATA=${1:?the folder of train.jsonl and eval.jsonl}
EXPERIMENT=qwen2.5-32b
NODES=4
GPUS=8
MAX_RESTARTS=3
RDZV_PORT=29400

# torchrun keeps one store over all rounds otherwise, whose address a node that comes later never gets.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun "--nnodes=$NODES" "--nproc-per-node=$GPUS" "--max-restarts=$MAX_RESTARTS" \
    --rdzv-backend=c10d "--rdzv-endpoint=${RDZV_HOST:?the host of the rendezvous}:$RDZV_PORT" \
    "--rdzv-id=$EXPERIMENT" \
    -m sppo_megatron.train \
    "experiment=$EXPERIMENT" \
    "data.train_path=$DATA/train.jsonl" \
    "data.eval_path=$DATA/eval.jsonl" \
    parallelism.distributed_timeout_minutes=10 \
    checkpoint.load=latest \
    "${@:2}"
