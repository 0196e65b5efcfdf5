#!/usr/bin/env bash
# One GPU: examples/single_gpu/train.sh DATA [OVERRIDES...]
# DATA is a folder with train.jsonl and eval.jsonl, one {"prompt": ..., "answer": ...} a line.
# The same command again continues the run.
set -euo pipefail

DATA=${1:?the folder of train.jsonl and eval.jsonl}
EXPERIMENT=qwen2.5-1.5b

exec python -m sppo_megatron.train \
    "experiment=$EXPERIMENT" \
    "data.train_path=$DATA/train.jsonl" \
    "data.eval_path=$DATA/eval.jsonl" \
    train.prompts_per_iteration=32 \
    train.minibatch_size=64 \
    checkpoint.load=latest \
    "${@:2}"
