"""flash ssh over a connection that breaks at every step, and onto disks that are full."""

from __future__ import annotations

import dataclasses
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from firmware_disk import small_disk
from firmware_ssh import Server, flash, no_password

from firmware_tools.errors import FlashError
from firmware_tools.flash.ssh import Remote, flash_over_ssh
from sdk.config import BrokerConfig
from tests.fault_proxy import FaultProxy, _Pair

STEPS = ("looking", "making a folder", "uploading", "checking", "installing")
"""Each is one connection."""


class CutProxy(FaultProxy):
    """Ends one connection, counted from `cut`, once more than so many bytes went up."""

    def __init__(self, port: int) -> None:
        self._number = self._left_bytes = 0
        super().__init__(BrokerConfig(host="127.0.0.1", port=port))

    def cut(self, step: str, after_bytes: int = 0) -> None:
        """Choose the connection."""
        self._number, self._left_bytes = STEPS.index(step), after_bytes

    @property
    def has_cut(self) -> bool:
        """Whether it happened."""
        return self._left_bytes < 0

    def _join(self, client: socket.socket) -> None:
        self._number -= 1
        if self._number == -1 and self._left_bytes == 0:
            self._left_bytes = -1
            client.close()
            return
        super()._join(client)

    def _forward(self, pair: _Pair, sink: socket.socket, data: bytes) -> None:
        if self._number == -1 and sink is pair.server:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                pair.close()
                return
        super()._forward(pair, sink, data)


def over(server: Server, proxy: FaultProxy) -> Remote:
    """Return the server as it is reached over a proxy."""
    port = proxy.config.port
    key = (server.folder / "host.pub").read_text()
    (server.folder / "known").write_text(f"[127.0.0.1]:{port} {key}")
    return dataclasses.replace(server.remote, port=port)


def flash_over(remote: Remote, seed: Path) -> bool:
    return flash_over_ssh(remote, seed, no_password, lambda _: None)


LOST = r"the connection to 127\.0\.0\.1 was lost: run it again, it goes on"


def test_a_connection_lost_at_any_step_is_said_and_the_next_run_goes_on(
    server: Server, seed: Path
) -> None:
    with CutProxy(server.port) as proxy:
        remote = over(server, proxy)
        for step in STEPS:
            if step != "uploading":
                proxy.cut(step)
                with pytest.raises(FlashError, match=LOST):
                    flash_over(remote, seed)
                assert proxy.has_cut
                assert not (server.root / "opt").exists()
        (server.folder / "home/.multispin-seed/payload.tar.gz").write_bytes(b"")
        proxy.cut("uploading", 100_000)  # less than half of it: the rest is sent by itself
        assert (seed / "payload.tar.gz").stat().st_size > 200_000
        assert flash_over(remote, seed)
        assert proxy.has_cut
    assert server.slots.load().running.version == "1.0.0"


def test_a_connection_lost_while_the_board_installs_loses_nothing(
    server: Server, seed: Path
) -> None:
    """The board installs all the same; the next run finds that, and starts the service."""
    python = server.folder / "bin/python3"
    text = python.read_text()
    wait = (
        f"    import time; plain({str(server.folder / 'installs')!r}, 'w').close()\n"
        f"    while not os.path.exists({str(server.folder / 'cut')!r}): time.sleep(0.05)\n"
    )
    python.write_text(text.replace("else:\n", f"else:\n{wait}"))
    said: list[str] = []

    def first_run(remote: Remote) -> None:
        try:
            flash_over(remote, seed)
        except FlashError as error:
            said.append(str(error))

    with FaultProxy(BrokerConfig(host="127.0.0.1", port=server.port)) as proxy:
        run = threading.Thread(target=first_run, args=(over(server, proxy),))
        run.start()
        wait_for((server.folder / "installs").exists)
        proxy.reset()
        run.join(10)
        assert re.search(LOST, said[0])
        (server.folder / "cut").touch()
        wait_for(lambda: server.slots.load().trying)
        python.write_text(text)
        assert flash_over(over(server, proxy), seed)
    state = server.slots.load()
    assert (state.active, state.trying, state.running.version) == ("a", True, "1.0.0")
    assert not (server.folder / "home/.multispin-seed").exists()  # no secret stays behind


def wait_for(happened: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_full_disk_is_said_before_anything_is_sent(server: Server, seed: Path) -> None:
    with small_disk(server.folder / "home", 1 << 20):
        with pytest.raises(FlashError, match=r"disk is full: \d+ MiB are needed"):
            flash(server, seed)
        assert not list((server.folder / "home").iterdir())


def test_a_full_disk_for_the_slots_changes_nothing(server: Server, seed: Path) -> None:
    opt = server.root / "opt/multispin"
    with small_disk(opt, 1 << 20):
        with pytest.raises(FlashError, match=r"is full: .* MiB are needed, .* make room"):
            flash(server, seed)
        assert not list(opt.iterdir())
        assert not (server.root / "etc").exists()


@pytest.mark.parametrize(
    ("said", "todo"),
    [
        ("sh: 1: sudo: not found", "give root@cam-7.lan"),
        ("bash: line 1: sudo: command not found", "give root@cam-7.lan"),
        ("pi is not in the sudoers file.", "give root@cam-7.lan"),
        ("client_loop: send disconnect: Broken pipe", "run it again"),
        ("Connection to cam-7.lan closed by remote host.", "run it again"),
        ("Connection reset by 192.168.1.7 port 22", "run it again"),
        ("OSError: [Errno 28] No space left on device", "make room"),
        ("ssh: connect to host cam-7.lan port 22: No route to host", "check cable"),
        ("", "run it again"),
    ],
)
def test_what_ssh_says_becomes_what_to_do(said: str, todo: str) -> None:
    assert todo in Remote(address="pi@cam-7.lan").explain(said)
