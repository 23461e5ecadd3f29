"""Our own broker: it starts, it says why not, and it never outlives us."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_kinds import KINDS, need_broker

import edge_server.broker as broker_module
from edge_server.broker import BrokerProcess, start_broker
from edge_server.mosquitto_conf import private_conf
from sdk.errors import BrokerError, ConfigError

ROOT = Path(__file__).parents[2]
WAIT_S = 10.0


@pytest.fixture
def temp_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that an unprivileged mosquitto can enter too."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def runs(pid: int) -> bool:
    """Whether a process is there and not just waiting to be buried."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while runs(pid):
        assert time.monotonic() < deadline_s, f"process {pid} lives on"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_broker_ends_with_its_context_and_leaves_nothing(kind: str, temp_folder: Path) -> None:
    need_broker(kind)
    threads = threading.active_count()
    with start_broker(kind) as broker:
        assert broker.kind == kind
        assert runs(broker.pid)
        assert list(temp_folder.iterdir()) == []  # nothing that a crash could leave
        pid, port = broker.pid, broker.config.port
    assert not runs(pid)
    assert threading.active_count() == threads
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    broker.stop()
    with pytest.raises(BrokerError, match="does not run"):
        broker.pid  # noqa: B018


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_broker_dies_with_a_killed_parent(kind: str, temp_folder: Path) -> None:
    need_broker(kind)
    program = (
        "import time\n"
        "from edge_server.broker import start_broker\n"
        f"print(start_broker({kind!r}).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.send_signal(signal.SIGKILL)
    until_gone(pid)
    assert list(temp_folder.iterdir()) == []


def test_broker_outlives_the_thread_that_asked_for_it(own_broker: BrokerProcess) -> None:
    """The kernel binds a child to its parent's thread; ours must not be the caller's."""
    thread = threading.Thread(target=own_broker.restart)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert runs(own_broker.pid)


def test_restart_keeps_the_port_and_changes_the_process(own_broker: BrokerProcess) -> None:
    pid, config = own_broker.pid, own_broker.config
    own_broker.restart()
    assert own_broker.pid != pid
    assert own_broker.config == config
    assert not runs(pid)
    with socket.socket() as probe:
        assert probe.connect_ex((config.host, config.port)) == 0


def test_private_mosquitto_is_not_root_and_listens_on_loopback_only(
    mosquitto: BrokerProcess,
) -> None:
    status = Path(f"/proc/{mosquitto.pid}/status").read_text()
    user_ids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert set(user_ids) != {"0"} if os.geteuid() == 0 else {str(os.geteuid())}
    port = f":{mosquitto.config.port:04X}"
    listeners = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[1].endswith(port) and line.split()[3] == "0A"
    ]
    assert listeners == [f"0100007F{port}"]


def test_private_conf_has_every_bound() -> None:
    lines = private_conf(host="127.0.0.1", port=1884).splitlines()
    assert lines[0] == "listener 1884 127.0.0.1"
    keys = {line.split()[0] for line in lines}
    assert keys >= {"max_packet_size", "max_queued_messages", "max_queued_bytes", "memory_limit"}
    assert "set_tcp_nodelay true" in lines
    assert "persistence false" in lines


def test_taken_port_is_named_with_both_ways_out(mosquitto: BrokerProcess) -> None:
    """Never mistake somebody else's broker for ours."""
    port = mosquitto.config.port
    with pytest.raises(BrokerError, match=rf"--broker 127.0.0.1:{port}, .* --port"):
        start_broker("mosquitto", port=port)


def test_conf_that_mosquitto_refuses_is_quoted() -> None:
    need_broker("mosquitto")
    with pytest.raises(BrokerError, match=r"ended at once: .*no_such_option"):
        start_broker("mosquitto", conf="listener 1 127.0.0.1\nno_such_option 1\n")


def test_no_broker_at_all_names_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    for kind in ("auto", "amqtt", "mosquitto"):
        with pytest.raises(BrokerError) as caught:
            start_broker(kind)
        assert "apt install mosquitto" in str(caught.value)
        assert "pip install 'multispin[broker]'" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_auto_falls_back_to_amqtt_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_broker("amqtt")
    monkeypatch.setattr(broker_module, "find_mosquitto", lambda: None)
    with start_broker() as broker:
        assert broker.kind == "amqtt"
    assert "amqtt serves instead" in capsys.readouterr().err


def test_unknown_kind_is_a_mistake_of_the_user() -> None:
    with pytest.raises(ConfigError, match="use auto, mosquitto or amqtt"):
        start_broker("rabbit")
