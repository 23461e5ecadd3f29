"""A board's serial console: open the port, get to a shell, run commands whatever else is printed.

Every failure says what to do. Knows nothing about what is run.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from firmware_tools.errors import FlashError

__all__ = ["Console", "open_port", "why_no_prompt"]

_LOGIN, _PASSWORD, _SHELL, _PAGER, _REFUSED = range(5)
_END_OF_LINE = rb"(\x1b\[[0-9;?]*[a-zA-Z])*$"
_AGAIN = rb"sudo password: $|[Ss]orry, try again"
_PROMPTS = [
    rb"login: ?$",
    rb"[Pp]assword[^\n]{0,40}: ?$",
    rb"[#$%>] ?" + _END_OF_LINE,
    rb"\(END\)|--More--|lines \d+-\d+|(^|\n|\r)(\x1b\[[0-9;?]*[a-zA-Z])*:" + _END_OF_LINE,
    rb"Login incorrect",
]
_SILENCE_S = 0.3
_STEP_S = 5.0
_KEPT_BYTES = 8192
_SAID = 3
"""Times that a mark is printed: messages of the kernel may fall into the middle of one."""


def open_port(port: str, baud: int) -> Any:
    """Open a serial port for this program alone.

    Raises:
        FlashError: if it is missing, closed to this user, or in use.
    """
    import serial
    from serial.tools import list_ports

    try:
        return serial.Serial(port, baud, timeout=1, exclusive=True)
    except serial.SerialException as error:
        code = error.errno or _cause(error)
        if code == errno.ENOENT:
            known = ", ".join(each.device for each in list_ports.comports()) or "none"
            raise FlashError(f"flash serial: {port} is not there; ports here: {known}") from error
        if code in (errno.EACCES, errno.EPERM):
            raise FlashError(
                f"flash serial: no permission for {port}: run 'sudo usermod -aG {_group(port)} "
                "$USER' and log in again"
            ) from error
        if code in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK) or "lock" in str(error):
            raise FlashError(
                f"flash serial: {port} is in use: close the other terminal program "
                "(or stop ModemManager)"
            ) from error
        raise FlashError(f"flash serial: {port}: {error}") from error


def _cause(error: BaseException) -> int | None:
    context = error.__context__
    return context.errno if isinstance(context, OSError) else None


def _group(port: str) -> str:
    import grp

    try:
        return grp.getgrgid(os.stat(port).st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"


@dataclass(slots=True, kw_only=True)
class Console:
    """A shell at the other end of a wire.

    Attributes:
        port: an open serial port; patience_s: how long a login prompt may take (a booting board).
    """

    port: Any
    patience_s: float = 60.0
    _child: Any = None
    _seen: bytes = b""

    def login(self, user: str, password: str) -> None:
        """Get to a shell, from a login prompt, a shell left open, or a pager.

        Raises:
            FlashError: no answer, garbage, no prompt, or refused.
        """
        import pexpect.fdpexpect

        self._child = pexpect.fdpexpect.fdspawn(self.port, timeout=_STEP_S)
        deadline_s = time.monotonic() + self.patience_s
        sent_user = sent_password = False
        while time.monotonic() < deadline_s:
            self._settle()
            found = self._look()
            if found == _LOGIN:
                self._send(user)
                sent_user = True
            elif found == _PASSWORD and sent_user:
                self._send(password)
                sent_password = True
            elif found == _SHELL and self._is_shell():
                return
            elif found == _PAGER:
                self._child.send("q")
            elif found == _REFUSED and sent_password:
                raise FlashError(f"flash serial: the board refused user {user}; try --user, --ask")
            else:
                self._send("")
        raise FlashError(why_no_prompt(self._seen))

    def run(self, command: str, timeout_s: float = 60.0) -> tuple[int, str]:
        """Run one line in the shell and return its exit code and output.

        Raises:
            FlashError: if it does not end in time, or the cable is gone.
        """
        import pexpect

        mark = secrets.token_hex(6)
        # The mark is split in the command, so that its echo is not taken for its end.
        says = f"for _n in {'x ' * _SAID}; do printf"
        begin = f"{says} '\\n%s-%s\\n' BEGIN {mark}; done"
        end = f"_c=$?; {says} '\\n%s-%s %d\\n' END {mark} $_c; done"
        self._send(f"{begin}; {command}; {end}")
        try:
            self._child.expect_exact(f"BEGIN-{mark}".encode(), timeout=timeout_s)
            self._child.expect(f"END-{mark} (\\d+)".encode(), timeout=timeout_s)
        except pexpect.TIMEOUT as error:
            raise FlashError(f"flash serial: no end of {command[:40]!r}…; run it again") from error
        except (pexpect.EOF, OSError) as error:
            raise FlashError("flash serial: the cable was pulled; plug it in, run again") from error
        code = int(self._child.match[1])
        said = self._child.before.rpartition(f"BEGIN-{mark}".encode())[2]
        text = said.decode(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "")
        return code, plain.strip("\n")

    def start(self, command: str) -> None:
        """Start a command that takes the wire over."""
        self._send(command)

    def check(self, command: str, timeout_s: float = 60.0) -> str:
        """Run a command that must succeed and return its output."""
        code, text = self.run(command, timeout_s)
        if code:
            last = text.strip().splitlines()[-1:] or ["no message"]
            raise FlashError(f"flash serial: on the board, {command[:60]!r}: {last[0]}")
        return text

    def become_root(self, password: str) -> None:
        """Get a root shell.

        Raises:
            FlashError: if sudo refuses.
        """
        if self.check("id -u").strip() == "0":
            return
        if self.run("sudo -n true")[0] == 0:
            self._send("sudo -n -s")
        else:
            self._give_password(password)
        if not self._reach_shell() or self.check("id -u").strip() != "0":
            raise FlashError("flash serial: sudo gave no root shell; log in with --user root")

    def _give_password(self, password: str) -> None:
        """Start a root shell and answer what sudo asks; without one, get back to our own shell."""
        import pexpect

        no_more = [rb"not found", rb"not in the sudoers|not allowed|may not", pexpect.TIMEOUT]
        self._send("sudo -k -p 'sudo password: ' -s")
        found = self._child.expect([rb"sudo password: $", *no_more], timeout=_STEP_S)
        if found == 0:
            self._send(password)
            found = self._child.expect([rb"[#$%>] ?" + _END_OF_LINE, *no_more, _AGAIN])
        if found == 0:
            return
        self._child.send("\x03")
        self._reach_shell()
        if found <= len(no_more):
            raise FlashError("flash serial: this user may not use sudo; log in with --user root")
        raise FlashError("flash serial: sudo did not take the password")

    def _reach_shell(self) -> bool:
        """Say whether a shell answers, now that another program has started or ended."""
        for _ in range(3):
            self._settle()
            if self._is_shell():
                return True
        return False

    def _is_shell(self) -> bool:
        """Say whether what looks like a prompt is one, and quieten it."""
        try:
            self.run("stty -echo cols 500; PS1='$ '; unset PROMPT_COMMAND", timeout_s=_STEP_S)
            self.run("dmesg -n 1 2>/dev/null", timeout_s=_STEP_S)
        except FlashError:
            return False
        return True

    def _settle(self) -> None:
        """Take what comes until nothing does for a moment: boot messages end some time."""
        import pexpect

        deadline_s = time.monotonic() + _STEP_S
        try:
            while time.monotonic() < deadline_s:
                self._seen += self._child.read_nonblocking(4096, timeout=_SILENCE_S)
        except pexpect.TIMEOUT:
            pass
        except (pexpect.EOF, OSError) as error:
            raise FlashError("flash serial: the cable was pulled; run it again") from error
        self._seen = self._seen[-_KEPT_BYTES:]

    def _look(self) -> int | None:
        """Return which prompt the console stands at."""
        seen = self._seen.rstrip(b"\r\n")[-400:]
        for number in (_REFUSED, _PAGER, _PASSWORD, _LOGIN, _SHELL):
            if re.search(_PROMPTS[number], seen):
                self._seen = b""
                return number
        return None

    def _send(self, line: str) -> None:
        try:
            self._child.send(line + "\r")
        except OSError as error:
            raise FlashError("flash serial: the cable was pulled; run it again") from error


def why_no_prompt(seen: bytes) -> str:
    """Return what to do about a console that showed this and no prompt."""
    if not seen.strip(b"\x00\r\n"):
        return (
            "flash serial: the board says nothing: check power, ground, and TX to RX; on a "
            "Raspberry Pi set enable_uart=1 in config.txt"
        )
    strange = sum(not 32 <= byte <= 126 and byte not in b"\t\r\n\x1b" for byte in seen)
    if strange * 5 > len(seen):
        return "flash serial: the board sends garbage: wrong speed; try --baud 115200 or 9600"
    return "flash serial: no login prompt; is a getty on this port? (console= in cmdline.txt)"
