#!/usr/bin/env bash
# Offline SPPO as in the paper: generate, score, train, again and again, each from the model of the one before.
# usage: run.sh [FOLDER [train's overrides ...]]; ITERATIONS, K and JUDGE_URL (a server that runs) from the environment.
# The same command continues where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."

output=${1:-outputs/offline_paper}
iterations=${ITERATIONS:-3}
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" examples/offline_paper/sevens.py prepare --output "$output"

# What lies in FOLDER is continued only if it was made by the same command.
mkdir -p "$output"
settings="K=${K:-5} $(cat "$output/prepared.sha256" 2>/dev/null || true) ${*:2}"
[ -e "$output/settings" ] || printf '%s' "$settings" >"$output/settings"
if [ "$(cat "$output/settings")" != "$settings" ]; then
    echo "$output holds the iterations of other settings: give another FOLDER" >&2
    exit 2
fi

# The judge: vLLM's own server. Elsewhere it is another machine's, and JUDGE_URL says where.
# shellcheck source=examples/judge/serve_judge.sh
. examples/judge/serve_judge.sh "$output/judge" "${JUDGE_PORT:-8200}" "$output/judge.log"

model=$output/policy
for ((i = 0; i < iterations; i++)); do
    folder=$output/iteration_$i
    common=(precision=fp32 "model.hf_path=$model" model.make_vocab_size_divisible_by=1)

    # 1. K responses to every prompt, at temperature 1
    [ -e "$folder/rollouts.jsonl" ] || "$python" -m sppo_megatron.cli.main generate "${common[@]}" \
        "data.train_path=$output/prompts.jsonl" "rollout.num_samples_per_prompt=${K:-5}" \
        rollout.max_response_length=8 "rollout.seed=$i" --output "$folder/rollouts.jsonl"

    # 2. the judge's K×K matrix for each of them
    [ -e "$folder/scored.jsonl" ] || "$python" -m sppo_megatron.cli.main score reward=judge "reward.judge.urls=[$JUDGE_URL]" \
        "reward.judge.template=$output/question.txt" --input "$folder/rollouts.jsonl" --output "$folder/scored.jsonl"

    # 3. the best and the worst of each group, regressed onto their win rates
    [ -e "$folder/train/hf" ] || "$python" -m sppo_megatron.train "${common[@]}" \
        rollout=replay "rollout.path=$folder/scored.jsonl" objective=sppo_pairs objective.eta=4 \
        train.iterations=1 train.prompts_per_iteration=null train.minibatch_size=32 \
        train.micro_batch_size=8 train.epochs_per_iteration=4 optimizer.lr=1e-3 checkpoint.load=latest \
        "output_dir=$folder/train" "${@:2}"
    model=$folder/train/hf
done
"$python" examples/offline_paper/sevens.py count "$output"/iteration_*/rollouts.jsonl
