#!/usr/bin/env bash
# One rank, started by srun in train.sbatch: what torchrun would set, from what Slurm sets.
set -euo pipefail

export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
exec python -m sppo_megatron.train "$@"
