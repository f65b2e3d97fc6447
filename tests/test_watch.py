"""The watch over configuration and secret files: what counts as a change, and what does not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.config import load
from broker.config.watch import Look, Watch, files_of

SAME, MOVING, CHANGED = Look.SAME, Look.MOVING, Look.CHANGED


def known(*files: Path, young: float = 3.0) -> Watch:
    """A watch that knows these files as they are."""
    watch = Watch(files, young=young)
    watch.accept()
    assert watch.look() is SAME
    return watch


def looks(watch: Watch) -> list[Look]:
    """Three looks: the two in which a change is found, and the one behind them."""
    return [watch.look(), watch.look(), watch.look()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("sk-old")
    return file


def edit(file: Path) -> None:
    file.write_text("sk-a-new-one")


def replace(file: Path) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text("sk-new")
    fresh.replace(file)


def edit_without_a_trace(file: Path) -> None:
    before = file.stat()
    file.write_text("sk-new")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [edit, replace, edit_without_a_trace])
def test_finds_a_change(file: Path, change: Callable[[Path], None]) -> None:
    watch = known(file)
    change(file)
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_finds_an_edit_that_only_the_time_of_the_change_tells(file: Path) -> None:
    watch = known(file, young=0.0)
    before = file.stat().st_ctime_ns
    deadline = time.monotonic() + 5.0
    while file.stat().st_ctime_ns == before:
        assert time.monotonic() < deadline
        edit_without_a_trace(file)
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_finds_a_change_of_the_same_size_in_the_same_tick_of_the_clock(file: Path) -> None:
    watch = known(file)
    for number in range(100, 150):
        file.write_text(f"sk-{number}")
        assert looks(watch) == [MOVING, CHANGED, SAME]


@pytest.mark.parametrize("young", [3.0, 0.0], ids=["young", "settled"])
def test_finds_a_mounted_secret_that_was_swapped(tmp_path: Path, young: float) -> None:
    """As Kubernetes does it: the files are links through `..data`, which is renamed over."""
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "key").write_text(f"sk-{version}")
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "key").symlink_to("..data/key")
    watch = known(tmp_path / "key", young=young)
    (tmp_path / "..fresh").symlink_to("..two")
    (tmp_path / "..fresh").replace(tmp_path / "..data")
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_waits_until_a_change_stands_still(file: Path) -> None:
    watch = known(file)
    for half in ("s", "sk", "sk-n"):
        file.write_text(half)
        assert watch.look() is MOVING
    assert watch.look() is CHANGED


def test_finds_nothing_when_a_file_was_written_with_what_it_held(file: Path) -> None:
    watch = known(file)
    fresh = file.with_suffix(".new")
    fresh.write_text("sk-old")
    fresh.replace(file)
    assert looks(watch) == [SAME, SAME, SAME]


def test_finds_nothing_when_a_change_was_taken_back(file: Path) -> None:
    watch = known(file)
    file.write_text("sk-new")
    assert watch.look() is MOVING
    file.write_text("sk-old")
    assert looks(watch) == [SAME, SAME, SAME]


def test_finds_nothing_while_a_file_is_away(file: Path) -> None:
    watch = known(file)
    file.unlink()
    assert looks(watch) == [SAME, SAME, SAME]
    file.write_text("sk-old")
    assert looks(watch) == [SAME, SAME, SAME]
    file.unlink()
    assert watch.look() is SAME
    file.write_text("sk-new")
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_finds_nothing_in_what_is_no_file(file: Path) -> None:
    watch = known(file)
    file.unlink()
    os.mkfifo(file)
    assert looks(watch) == [SAME, SAME, SAME]
    file.unlink()
    file.mkdir()
    assert looks(watch) == [SAME, SAME, SAME]


@pytest.mark.parametrize("how", ["found", "accepted"])
def test_finds_a_file_that_was_away_when_another_change_was_taken(file: Path, how: str) -> None:
    """Who then read the files could not read this one, whatever it held before."""
    config = file.with_name("broker.yaml")
    config.write_text("old")
    watch = known(config, file)
    file.unlink()
    config.write_text("new")
    if how == "found":
        assert looks(watch) == [MOVING, CHANGED, SAME]
    else:
        watch.accept()
    file.write_text("sk-old")
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_finds_a_file_that_comes_later(file: Path) -> None:
    late = file.with_name("late")
    watch = known(file, late)
    late.write_text("sk-late")
    assert looks(watch) == [MOVING, CHANGED, SAME]


def test_takes_a_file_that_is_new_to_it_for_changed(file: Path) -> None:
    assert looks(Watch([file])) == [MOVING, CHANGED, SAME]


def test_follows_to_other_files(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("sk-other")
    watch = known(file)
    watch.follow([other, file, other])
    assert looks(watch) == [MOVING, CHANGED, SAME]
    watch.follow([other])
    assert watch.look() is SAME
    file.write_text("sk-new")
    assert looks(watch) == [SAME, SAME, SAME]


def test_accepts_what_is_there(file: Path) -> None:
    watch = known(file)
    file.write_text("sk-new")
    watch.accept()
    assert looks(watch) == [SAME, SAME, SAME]


@pytest.mark.skipif(sys.platform != "linux", reason="counts what was read as Linux does")
def test_reads_contents_only_when_the_times_have_moved(file: Path) -> None:
    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    size = 4 * 1024 * 1024
    file.write_bytes(b"x" * size)
    for young, most in ((-60.0, 0), (60.0, 3)):
        watch = known(file, young=young)
        before = read()
        assert looks(watch) == [SAME, SAME, SAME]
        assert (read() - before) // size == most


def test_files_of_a_configuration_are_all_it_points_to(tmp_path: Path) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text(
        f"""\
redis_url_file: /run/redis
tenants: [{{name: agents, keys: ["sha256:{"ab" * 32}"]}}]
credentials:
  - {{name: red, vendor: openai, secret_file: /run/red}}
  - {{name: blue, vendor: openai, secret_env: BLUE}}
session: {{encryption_key_file: /run/key}}
"""
    )
    assert set(map(str, files_of(file, load(file)))) == {str(file), "/run/redis", "/run/red", "/run/key"}
