"""What newcomers get wrong is one line that names the thing, before anybody waits for a broker."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_server.broker import start_broker
from sdk.cli import main
from sdk.errors import BrokerError, ConfigError
from sdk.journal import Journal
from sdk.transport.mqtt import MqttTransport
from tests.session.test_journal import opening


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(self: MqttTransport, **_: object) -> None:
        raise AssertionError("the mistake should have been told before the broker was asked")

    monkeypatch.setattr(MqttTransport, "__init__", connect)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--top-p 2", "top_p"),
        ("--temperature -1", "temperature"),
        ("--max-tokens 0", "max_tokens"),
        ("--seed -1", "seed"),
        ("--threads 0", "threads: at least 1"),
        ("--lost-after -1", "--lost-after -1"),
        ("--slow-down-ms -1", "--slow-down-ms -1"),
        ("--energy no-such-meter", "no-such-meter"),
        ("--energy null --energy-idle -1", "--energy-idle -1"),
        ("--device a/b", "device id 'a/b'"),
        ("--model /nowhere", "there is no folder /nowhere"),
        ("--model /", "is no exported model"),
        ("--broker localhost", "write HOST:PORT"),
        ("--config /nowhere.toml", "/nowhere.toml: cannot be read"),
    ],
)
def test_generate(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", *options.split()]) in (2, 5, 8)
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--sessions 0", "--sessions 0: must be at least 1"),
        ("--kv-memory 0", "--kv-memory 0: must be"),
        ("--max-draft 65", "--max-draft 65: must be 0 to 64"),
        ("--threads 0", "--threads 0: must be at least 1"),
        ("--lanes 0", "--lanes 0: must be"),
        ("--rate -1", "--rate -1.0: must be"),
        ("--idle 0", "--idle 0.0: must be"),
        ("--report-every 0", "--report-every 0.0: must be"),
        ("--port 65536", "--port 65536: must be 0 to 65535"),
        ("--metrics here", "give PORT or ADDRESS:PORT"),
        ("--broker here", "write HOST:PORT"),
        ("--config /nowhere.toml", "/nowhere.toml: cannot be read"),
        ("--broker b:1883 --port 1884", "for a broker that 'serve' starts"),
        ("--weights int8", "--weights: only with --backend torch"),
        ("--dtype bf16", "--dtype: only with --backend torch"),
        ("--invariant", "--invariant: only with --backend torch"),
    ],
)
def test_serve_before_a_model_is_loaded(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--model", "/nowhere", *options.split()]) == 2
    shown = capsys.readouterr().err
    assert told in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize("port", [0, 29_999])
@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.example"])  # RFC 5737, RFC 2606
def test_an_address_that_is_not_this_machine_s(host: str, port: int) -> None:
    with pytest.raises(BrokerError, match=f"cannot listen on {host}.* --listen"):
        start_broker("amqtt", host=host, port=port)


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; name a file in a folder"):
        Journal(path=tmp_path / "no" / "j", opening=opening())
    with pytest.raises(ConfigError, match="Is a directory"):
        Journal(path=tmp_path, opening=opening())
    if Path("/dev/full").exists():  # takes no byte
        with Journal(path=tmp_path / "j", opening=opening()) as journal:
            os.dup2(os.open("/dev/full", os.O_WRONLY), journal._file)
            with pytest.raises(ConfigError, match=f"{os.strerror(errno.ENOSPC)}; make room"):
                journal.deliver((1,))


def test_nobody_reads_on() -> None:
    """`multispin … | head` ends without a word."""
    command = [sys.executable, "-m", "sdk.cli", "energy", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_takes_no_output() -> None:
    command = [sys.executable, "-m", "sdk.cli", "energy", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].endswith(
        "No space left on device; make room, then try again"
    )


def test_a_missing_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None; from sdk.cli import main; "
        "sys.exit(main(['keys', 'show']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 11
    assert "cryptography is missing" in done.stderr
    assert "pip install 'multispin[firmware]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["link"]])
def test_a_certificate_without_its_device_s_id(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id of our own invention would be answered by nobody: the broker's rules forbid it."""
    config = tmp_path / "c.toml"
    config.write_text('[broker]\nca_file = "ca"\ncert_file = "pi.crt"\nkey_file = "pi.key"\n')
    assert main([*command, "--config", str(config)]) == 2
    assert "pi.crt was made for is missing; give --device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/no/x.rec"), "No such file; check"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/no/.x.rec.part"), "No such file; check"),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), "denied; name a place"),
        (OSError(errno.EROFS, "Read-only", "/etc/x"), "Read-only; name a place"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/our/own/bug"), None),
    ],
)
def test_a_file_that_the_user_named_is_one_line_and_a_bug_is_none(
    error: OSError,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr("sdk.energy.cli.run", fail)
    if told is None:
        with pytest.raises(type(error)):
            main(["energy", "report", "/no/x.rec"])
        return
    assert main(["energy", "report", "/no/x.rec"]) == 1
    assert f"multispin: energy: {error.filename}: " in (shown := capsys.readouterr().err)
    assert told in shown
