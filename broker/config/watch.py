"""Notices when the configuration, or a secret file that it points to, has changed."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from broker.config.schema import Config

_YOUNG = 3.0
"""Seconds for which the times of a file prove nothing: on coarse clocks a second write may leave them as they were."""

_Mark = tuple[int, int, int, int, int]


class Look(Enum):
    """What a look at the files shows."""

    SAME = "same"
    MOVING = "moving"
    """Something is other than it was, and was not so at the look before: it may still be being written."""
    CHANGED = "changed"
    """Something is other than it was, and has been so for two looks. From now on this is what is known."""


def files_of(source: str | Path, config: Config) -> list[Path]:
    """The file of a configuration, and every file it takes a secret from."""
    named = [item.secret_file for item in config.credentials]
    named += [name for hook in config.webhooks for name in (hook.url_file, hook.secret_file)]
    named += [config.session.encryption_key_file, config.redis_url_file]
    return [Path(source), *(Path(name) for name in named if name is not None)]


class Watch:
    """Tells by their contents whether files have changed: edited, renamed over, or behind a link that was swapped.

    A file that is away, or cannot be read, has not changed until it is back. One that is new to the watch has, for it
    may be other than what was read before. Contents are read where the times of a file are not those of the look
    before (`young`: or are fewer seconds ago), and only their digests are kept. It blocks, so it belongs into a thread,
    and into one at a time.
    """

    def __init__(self, files: Iterable[Path], *, young: float = _YOUNG) -> None:
        self._files: list[Path] = []
        self._young = young
        self._marks: dict[Path, tuple[_Mark, bytes]] = {}
        self._known: dict[Path, bytes] = {}
        self._before: dict[Path, bytes] = {}
        self.follow(files)

    def follow(self, files: Iterable[Path]) -> None:
        """Look at these files from now on; of those it has looked at before, what is known stays."""
        self._files = list(dict.fromkeys(files))
        self._marks = {file: self._marks[file] for file in self._files if file in self._marks}
        self._known = {file: self._known[file] for file in self._files if file in self._known}

    def look(self) -> Look:
        """Look at all files once."""
        found = self._read()
        seen = {**self._known, **found}
        before, self._before = self._before, seen
        if seen == self._known:
            return Look.SAME
        if seen != before:
            return Look.MOVING
        self._known = found
        return Look.CHANGED

    def accept(self) -> None:
        """What the files hold now is known, whether or not it is still being written."""
        self._known = self._before = self._read()

    def _read(self) -> dict[Path, bytes]:
        return {file: digest for file in self._files if (digest := self._digest(file)) is not None}

    def _digest(self, file: Path) -> bytes | None:
        try:
            now, status = time.time(), file.stat()
            mark = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            kept = self._marks.pop(file, None)
            if kept is None or kept[0] != mark:
                if not stat.S_ISREG(status.st_mode):
                    return None
                with file.open("rb") as opened:
                    kept = (mark, hashlib.file_digest(opened, "sha256").digest())
        except OSError:
            return None
        if now - max(status.st_mtime, status.st_ctime) > self._young:
            self._marks[file] = kept
        return kept[1]
