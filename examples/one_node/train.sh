#!/usr/bin/env bash
# One node of GPUs: examples/one_node/train.sh DATA [OVERRIDES...]
# DATA is a folder with train.jsonl and eval.jsonl, one {"prompt": ..., "answer": ...} a line.
# A rank that fails costs the steps since the last checkpoint: torchrun starts all of them again, and they continue.
set -euo pipefail

DATA=${1:?the folder of train.jsonl and eval.jsonl}
EXPERIMENT=qwen2.5-7b
GPUS=8
MAX_RESTARTS=3

exec torchrun --standalone "--nproc-per-node=$GPUS" "--max-restarts=$MAX_RESTARTS" \
    -m sppo_megatron.train \
    "experiment=$EXPERIMENT" \
    "data.train_path=$DATA/train.jsonl" \
    "data.eval_path=$DATA/eval.jsonl" \
    checkpoint.load=latest \
    "${@:2}"
