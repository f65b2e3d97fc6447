"""Runs a module unchanged and writes down how long each garbage collection stops it.

`python -m bench.pauses FILE MODULE ARGUMENTS...`; a line of the file is `generation milliseconds`, and is there as
soon as the collection is over: nobody has to ask the process for it.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
import time
from pathlib import Path


def watch(file: Path) -> None:
    """From now on."""
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            took = time.perf_counter() - began
            os.write(out, f"{info['generation']} {took * 1e3:.4f}\n".encode())

    gc.callbacks.append(note)


def read(file: Path) -> list[tuple[int, float]]:
    """Every collection so far: its generation and its milliseconds."""
    rows = (line.split() for line in file.read_text().splitlines())
    return [(int(generation), float(took)) for generation, took in rows]


def main() -> None:
    """Watch, then become the other module."""
    file, module = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    watch(Path(file))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
