"""Feeds the readers of the wire with whatever reaches a branch that was not reached before.

`python tests/fuzz/fuzz_wire.py --seconds 60` in an environment that has atheris (and orjson and msgspec); the tests do
without. What breaks a reader ends the run with its input, which becomes a test.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 4096
SLOWEST = 10
"""Seconds for one input, of which even a busy machine needs milliseconds."""


def main() -> None:
    """Run for a number of seconds; the status is 0 if nothing broke."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seconds", type=int, default=60, help="how long (60)")
    asked.add_argument("--seed", type=int, default=1, help="where chance begins (1)")
    asked.add_argument("--corpus", type=Path, help="a directory that keeps what was found worth keeping")
    told = asked.parse_args()
    atheris: Any = importlib.import_module("atheris")
    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["broker.domain", "tests.fuzz"]):
        readers: Any = importlib.import_module("tests.fuzz.readers")

    def feed(data: bytes) -> None:
        """The first byte says which reader gets the rest."""
        if data:
            readers.READERS[data[0] % len(readers.READERS)](data[1:])

    with tempfile.TemporaryDirectory() as place:
        corpus = told.corpus or Path(place) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        _sow(corpus, readers)
        words = _words(Path(place) / "words", readers)
        limits = [f"-max_total_time={told.seconds}", f"-max_len={LARGEST}", f"-timeout={SLOWEST}", f"-seed={told.seed}"]
        found = f"-artifact_prefix={tempfile.gettempdir()}/"
        atheris.Setup([sys.argv[0], str(corpus), f"-dict={words}", "-print_final_stats=1", found, *limits], feed)
        atheris.Fuzz()


def _sow(corpus: Path, readers: Any) -> None:
    for number, read in enumerate(readers.READERS):
        for each, seed in enumerate(readers.SEEDS[read.__name__]):
            (corpus / f"{read.__name__}-{each}").write_bytes(bytes([number]) + seed)


def _words(path: Path, readers: Any) -> Path:
    """The words of the wire, as libFuzzer takes them."""
    found = {word for seeds in readers.SEEDS.values() for seed in seeds for word in seed.split(b'"')[1::2]}
    lines = ("".join(f"\\x{byte:02x}" for byte in b'"%b"' % word) for word in sorted(found) if 0 < len(word) < 40)
    path.write_text("".join(f'"{line}"\n' for line in lines))
    return path


if __name__ == "__main__":
    main()
