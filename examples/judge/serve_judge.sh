# shellcheck shell=bash
# Starts a vLLM server on CPU as the judge and waits until it answers; ends it with the script that sources this file.
# usage: . serve_judge.sh MODEL_FOLDER PORT LOG; sets JUDGE_URL. If JUDGE_URL is already set, nothing is started.
# The Python to use is in $python.
: "${python:=python}"
if [ -z "${JUDGE_URL:-}" ]; then
    JUDGE_URL=http://127.0.0.1:$2
    VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 \
        "$python" -m vllm.entrypoints.openai.api_server --model "$1" --port "$2" --dtype float32 \
        --max-model-len 64 --enforce-eager --generation-config vllm --kv-cache-memory-bytes 33554432 \
        --served-model-name judge > "$3" 2>&1 &
    judge=$!
    trap 'kill "$judge" 2> /dev/null; wait "$judge" || true' EXIT
    echo "waiting for the judge at $JUDGE_URL; its messages go to $3"
    until "$python" -c "import urllib.request as u; u.urlopen('$JUDGE_URL/health', timeout=5)" 2> /dev/null; do
        kill -0 "$judge" || { echo "the judge did not start: see $3" >&2; exit 1; }
        sleep 1
    done
fi
