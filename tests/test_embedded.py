"""The embedded server, as real processes: its data, its lock, its rights and its end."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from broker.embedded import EmbeddedServer, EmbeddedServerError, answers

OWNER = """
import sys
from broker.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1], watchdog=sys.argv[2] == "watchdog")
server.start()
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""


def wait_until(true: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has collected yet has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in ("Z", "X")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "data")
    yield server
    server.stop()


def client(server: EmbeddedServer) -> Redis:
    return Redis.from_url(server.url, decode_responses=True)


def setting(server: EmbeddedServer, name: str) -> str:
    with client(server) as redis:
        return str(redis.config_get(name)[name])


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int, str]]]:
    """Starts another process that owns a server; gives that process, the server's number and its address."""
    owners: list[subprocess.Popen[str]] = []

    def start(way: str = "prctl") -> tuple[subprocess.Popen[str], int, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(tmp_path / "data"), way],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        owners.append(process)
        assert process.stdout is not None
        pid, url = process.stdout.readline().split()
        return process, int(pid), url

    yield start
    for process in owners:
        process.kill()
        process.communicate()


def test_answers_when_start_returns_and_not_after_stop(server: EmbeddedServer) -> None:
    server.start()
    with client(server) as redis:
        assert redis.ping()
    pid = server.pid
    assert pid is not None
    server.stop()
    assert is_gone(pid)
    assert server.pid is None
    assert not answers(server.socket_path)


def test_stop_may_be_called_twice_and_before_start(server: EmbeddedServer) -> None:
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_keeps_its_data_when_started_again(server: EmbeddedServer) -> None:
    server.start()
    with client(server) as redis:
        redis.set("kept", "yes")
    server.stop()
    server.start()
    with client(server) as redis:
        assert redis.get("kept") == "yes"


def test_settings_keep_every_write_and_drop_none(server: EmbeddedServer) -> None:
    server.start()
    expected = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "port": "0",
    }
    assert {name: setting(server, name) for name in expected} == expected


def test_socket_and_folder_are_for_the_owner_only(server: EmbeddedServer) -> None:
    server.start()
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    files = [file for file in server.data_dir.rglob("*.aof") if file.is_file()]
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_second_server_on_the_same_folder_is_refused(server: EmbeddedServer) -> None:
    server.start()
    second = EmbeddedServer(server.data_dir)
    with pytest.raises(EmbeddedServerError, match=rf"process {os.getpid()}\) keeps its data there"):
        second.start()
    with client(server) as redis:
        assert redis.ping()


def test_folder_is_free_again_after_stop(server: EmbeddedServer) -> None:
    server.start()
    server.stop()
    second = EmbeddedServer(server.data_dir)
    second.start()
    second.stop()


def test_long_and_odd_path_is_served_by_a_short_socket(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ("long folder 'with' \"marks\" " * 6))
    server.start()
    try:
        assert len(os.fsencode(server.socket_path)) <= 103
        with client(server) as redis:
            redis.set("kept", "yes")
        link = server.socket_path.parent.parent
    finally:
        server.stop()
    assert not link.exists()
    server.start()
    try:
        with client(server) as redis:
            assert redis.get("kept") == "yes"
    finally:
        server.stop()


def test_stale_socket_is_no_obstacle(server: EmbeddedServer) -> None:
    server.data_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(server.socket_path))
    server.start()
    assert answers(server.socket_path)


def test_program_that_ends_at_once_is_an_error_and_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"ended at once \(status 1\)"):
        EmbeddedServer(tmp_path, binary=Path("/bin/false")).start()
    server = EmbeddedServer(tmp_path)
    server.start()
    server.stop()


def test_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="cannot start: No such file"):
        EmbeddedServer(tmp_path, binary=tmp_path / "none").start()


def test_server_that_was_killed_comes_back_with_its_data(server: EmbeddedServer) -> None:
    server.start()
    with client(server) as redis:
        redis.set("kept", "yes")
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.pid not in (None, pid) and answers(server.socket_path), "another server")
    with client(server) as redis:
        assert redis.get("kept") == "yes"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
@pytest.mark.parametrize("way", ["prctl", "watchdog"])
def test_server_ends_with_its_owner(owner: Callable[..., tuple[subprocess.Popen[str], int, str]], way: str) -> None:
    process, pid, _ = owner(way)
    assert not is_gone(pid)
    process.kill()
    wait_until(lambda: is_gone(pid), "the server's end")


def test_data_survive_the_kill_of_owner_and_server(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int, str]]
) -> None:
    process, pid, url = owner()
    with Redis.from_url(url, decode_responses=True) as redis:
        redis.set("kept", "yes")
        wait_until(lambda: int(redis.info("persistence")["aof_buffer_length"]) == 0, "the write of the file")
    os.kill(process.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    try:
        with client(server) as redis:
            assert redis.get("kept") == "yes"
    finally:
        server.stop()


def test_owner_that_follows_a_killed_one_at_once_gets_the_folder(
    tmp_path: Path, owner: Callable[..., tuple[subprocess.Popen[str], int, str]]
) -> None:
    process, pid, _ = owner()
    process.kill()
    server = EmbeddedServer(tmp_path / "data")
    server.start()
    try:
        assert is_gone(pid), "two servers would write one file"
    finally:
        server.stop()
