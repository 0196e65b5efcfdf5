#!/usr/bin/env bash
# Several nodes with fixed ranks. On node 0, 1, 2, ... the same command with its own number:
#   NODE_RANK=0 MASTER_ADDR=address-of-node-0 examples/multi_node/static.sh DATA [OVERRIDES...]
# DATA and output_dir lie on storage that every node sees. If a node is lost for good, start all of them again:
# they continue from the latest checkpoint.
set -euo pipefail

DATA=${1:?the folder of train.jsonl and eval.jsonl}
EXPERIMENT=qwen2.5-32b
NODES=4
GPUS=8
MAX_RESTARTS=3
MASTER_PORT=29500

exec torchrun "--nnodes=$NODES" "--nproc-per-node=$GPUS" "--max-restarts=$MAX_RESTARTS" \
    "--node-rank=${NODE_RANK:?the number of this node, from 0}" \
    "--master-addr=${MASTER_ADDR:?the address of node 0}" "--master-port=$MASTER_PORT" \
    -m sppo_megatron.train \
    "experiment=$EXPERIMENT" \
    "data.train_path=$DATA/train.jsonl" \
    "data.eval_path=$DATA/eval.jsonl" \
    parallelism.distributed_timeout_minutes=10 \
    checkpoint.load=latest \
    "${@:2}"
