#!/usr/bin/env bash
# Online SPPO with a pairwise judge behind an OpenAI-compatible server.
# usage: run.sh [FOLDER [train's overrides ...]]; JUDGE_URL names a server that runs, else one is started here.
set -euo pipefail
cd "$(dirname "$0")/../.."

output=${1:-outputs/judge}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" examples/offline_paper/sevens.py prepare --output "$output"
# shellcheck source=examples/judge/serve_judge.sh
. examples/judge/serve_judge.sh "$output/judge" "${JUDGE_PORT:-8201}" "$output/judge.log"
"$python" -m sppo_megatron.train experiment=judge "model.hf_path=$output/policy" \
    "data.train_path=$output/prompts.jsonl" "data.eval_path=$output/held_out.jsonl" \
    "reward.judge.urls=[$JUDGE_URL]" "reward.judge.template=$output/question.txt" \
    "reward.judge.cache_path=$output/answers.sqlite" "output_dir=$output/run" "${@:2}"
"$python" examples/offline_paper/sevens.py count "$output"/run/evaluations/*.jsonl
