"""The command line and the supervisor, as real processes."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from broker.embedded import answers

ROOT = Path(__file__).parent.parent
CONFIG = f"""\
listen: 127.0.0.1:0
operations_listen: 127.0.0.1:0
tenants: [{{name: agents, keys: ["sha256:{"ab" * 32}"]}}]
credentials: [{{name: red, vendor: openai, secret_env: RED_KEY}}]
"""

# A supervisor over a child that is given as a program text; every child gets its number and tells its process's.
SUPERVISOR = """
import os, sys
from broker.processes import Supervisor, metrics_folder
child, count = sys.argv[1], int(sys.argv[2])
with metrics_folder() as folder:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = lambda index: [sys.executable, "-c", child, str(index)]
    status = Supervisor(command, count, errand=b"redis://:canary@host", environ=environ, backoff=0.01).run()
print("over", folder.exists(), flush=True)
sys.exit(status)
"""
# It writes each line at once: several children share the pipe. It naps instead of pausing, because a signal that comes
# just before a pause does not end it.
CHILD = """
import os, signal, sys, time
def say(*words): os.write(1, (" ".join([sys.argv[1], str(os.getpid()), *words]) + "\\n").encode())
signal.signal(signal.SIGTERM, lambda *_: (say("told"), sys.exit(0)))
signal.signal(signal.SIGINT, lambda *_: (say("interrupted"), sys.exit(0)))
signal.signal(signal.SIGHUP, lambda *_: say("reload"))
folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
open(f"{folder}/gauge_livesum_{os.getpid()}.db", "w").close()
errand = sys.stdin.read()
say(errand, ",".join(sorted(os.listdir(folder))))
while True:
    time.sleep(0.02)
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


def broker(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "broker", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[[Sequence[str]], subprocess.Popen[str]]]:
    """Starts a process whose output can be read line by line; ends it after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            # A process that is killed leaves its temporary folders behind.
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


Spawn = Callable[[Sequence[str]], subprocess.Popen[str]]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def started(process: subprocess.Popen[str], count: int) -> dict[str, int]:
    """The process number of each child, by its index, once all have told it."""
    words = [line(process).split() for _ in range(count)]
    return {index: int(pid) for index, pid, *_ in words}


def test_version_is_printed_without_loading_the_product() -> None:
    code = "import sys\nimport broker.cli\nprint(sorted(m for m in sys.modules if m.split('.')[0] in sys.argv[1:]))"
    heavy = ("asyncio", "aiohttp", "msgspec", "yaml", "redis", "orjson", "uvloop", "logging")
    loaded = subprocess.run(
        [sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert loaded.stdout == "[]\n"
    assert re.fullmatch(r"broker \d+\.\d+\.\d+\n", broker("--version").stdout)


@pytest.mark.parametrize("command", ["serve", "check-config", "simulate", "worker", "mint-key"])
def test_help_teaches_with_examples(command: str) -> None:
    done = broker(command, "--help")
    assert done.returncode == 0
    assert f"  broker {command}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [(), ("dance",), ("serve",), ("serve", "--config", "x", "--processes", "0"), ("simulate", "--listen", "nowhere")],
)
def test_wrong_usage_is_2_without_a_traceback(arguments: Sequence[str]) -> None:
    done = broker(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_check_config_says_that_all_is_good(tmp_path: Path) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text(CONFIG)
    done = broker("check-config", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{file}: good: 1 tenant(s), 1 credential(s)\n"


@pytest.mark.parametrize("command", [("check-config",), ("serve", "--config"), ("worker", "--config")])
def test_wrong_configuration_is_2_with_one_line_for_each_finding(tmp_path: Path, command: Sequence[str]) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text(CONFIG.replace("openai", "opneai") + "lsten: x\n")
    done = broker(*command, str(file))
    assert done.returncode == 2
    assert [text.split(": ")[:2] for text in done.stderr.splitlines()] == [
        [f"{file}:4", "credentials[0].vendor"],
        [f"{file}:5", "lsten"],
    ]


@pytest.mark.parametrize("command", [("check-config", "--secrets"), ("serve", "--config")])
def test_missing_secret_is_2_and_named(tmp_path: Path, command: Sequence[str]) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text(CONFIG.replace("RED_KEY", "NO_SUCH_KEY"))
    done = broker(*command, str(file))
    assert done.returncode == 2
    assert done.stderr == f"{file}: credentials[0].secret_env: the environment variable NO_SUCH_KEY is not set\n"


def test_worker_needs_a_shared_redis(tmp_path: Path) -> None:
    file = tmp_path / "broker.yaml"
    file.write_text(CONFIG)
    done = broker("worker", "--config", str(file), RED_KEY="sk-red")
    assert done.returncode == 2
    assert "redis_url: is missing" in done.stderr


def test_serve_on_a_folder_that_cannot_be_used_is_1(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file, not a folder")
    file = tmp_path / "broker.yaml"
    file.write_text(f"{CONFIG}data_dir: '{tmp_path}/data'\n")
    done = broker("serve", "--config", str(file), RED_KEY="sk-red")
    assert done.returncode == 1
    assert "the embedded server cannot start" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_serve_runs_on_an_embedded_server_and_takes_it_along(tmp_path: Path, spawn: Spawn, processes: int) -> None:
    file = tmp_path / "broker.yaml"
    (tmp_path / "red").write_text("sk-red")
    settings = CONFIG.replace("secret_env: RED_KEY", f"secret_file: '{tmp_path}/red'")
    file.write_text(f"{settings}data_dir: '{tmp_path}/data'\n")
    process = spawn(["-m", "broker", "serve", "--config", str(file), "--processes", str(processes)])
    assert process.stderr is not None
    ready = 0
    while ready < processes:
        text = process.stderr.readline()
        assert text, "the node ended before it was ready"
        ready += " ready " in text
    assert answers(tmp_path / "data" / "valkey.sock")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert not answers(tmp_path / "data" / "valkey.sock")


def test_minted_key_fits_its_digest() -> None:
    done = broker("mint-key")
    key = re.search(r"sbk_[A-Za-z0-9_-]{43}\b", done.stdout)
    assert key is not None
    assert f"sha256:{hashlib.sha256(key[0].encode()).hexdigest()}" in done.stdout
    assert key[0] not in broker("mint-key").stdout


def test_minted_lines_for_a_tenant_load(tmp_path: Path) -> None:
    lines = broker("mint-key", "--tenant", "crew").stdout.partition("lines for the configuration:\n")[2]
    file = tmp_path / "broker.yaml"
    file.write_text(lines + "credentials: [{name: red, vendor: openai, secret_env: RED_KEY}]\n")
    assert broker("check-config", str(file)).returncode == 0


def test_simulate_answers_until_told_to_end(spawn: Spawn) -> None:
    process = spawn(["-m", "broker", "simulate", "--listen", "127.0.0.1:0", "--credential", "red:sk-red:org-a"])
    base_url = line(process).removeprefix("base_url ")
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/_sim/state", timeout=5) as answer:
        assert [known["name"] for known in json.load(answer)["credentials"]] == ["red"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_supervisor_starts_children_and_hands_each_the_errand(spawn: Spawn) -> None:
    process = spawn(["-c", SUPERVISOR, CHILD, "2"])
    words = [line(process).split() for _ in range(2)]
    assert sorted(index for index, *_ in words) == ["0", "1"]
    assert {errand for _, _, errand, _ in words} == {"redis://:canary@host"}
    for _, pid, *_ in words:
        assert "canary" not in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.parametrize(("sent", "heard"), [(signal.SIGTERM, "told"), (signal.SIGINT, "interrupted")])
def test_supervisor_forwards_the_end_and_waits_for_all(spawn: Spawn, sent: signal.Signals, heard: str) -> None:
    process = spawn(["-c", SUPERVISOR, CHILD, "2"])
    children = started(process, 2)
    process.send_signal(sent)
    assert process.wait(10) == 0
    output = process.communicate()[0].splitlines()
    assert sorted(output[:2]) == [f"{index} {children[index]} {heard}" for index in ("0", "1")]
    assert output[2] == "over False"
    assert all(is_gone(pid) for pid in children.values())


def test_supervisor_forwards_a_reload_and_goes_on(spawn: Spawn) -> None:
    process = spawn(["-c", SUPERVISOR, CHILD, "1"])
    children = started(process, 1)
    process.send_signal(signal.SIGHUP)
    assert line(process) == f"0 {children['0']} reload"
    assert process.poll() is None


def test_supervisor_starts_a_dead_child_again_and_drops_its_live_gauges(spawn: Spawn) -> None:
    process = spawn(["-c", SUPERVISOR, CHILD, "1"])
    first = started(process, 1)["0"]
    os.kill(first, signal.SIGKILL)
    index, pid, _, gauges = line(process).split()
    assert (index, gauges) == ("0", f"gauge_livesum_{pid}.db")
    assert int(pid) != first


def test_supervisor_gives_up_on_a_child_that_keeps_dying(spawn: Spawn) -> None:
    other = "import os, sys\nif sys.argv[1] == '0': os.write(1, b'0 dying\\n'); sys.exit(3)\n"
    process = spawn(["-c", SUPERVISOR, other + CHILD, "2"])
    assert process.wait(20) == 1
    output = process.communicate()[0].splitlines()
    assert output.count("0 dying") == 6
    assert output[-1] == "over False"


def test_supervisor_kills_a_child_that_does_not_end_in_time(spawn: Spawn) -> None:
    lines = [
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if "SIGTERM" in text else text for text in CHILD.splitlines()
    ]
    deaf = "\n".join(lines)
    process = spawn(["-c", SUPERVISOR.replace("backoff=0.01", "grace=0.2"), deaf, "1"])
    child = started(process, 1)["0"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert is_gone(child)


def test_children_end_with_a_supervisor_that_is_killed(spawn: Spawn) -> None:
    process = spawn(["-c", SUPERVISOR, CHILD, "2"])
    children = started(process, 2)
    process.kill()
    for pid in children.values():
        wait_until(lambda pid=pid: is_gone(pid), "the child's end")  # type: ignore[misc]
