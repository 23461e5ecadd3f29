"""The demo's live view: every device's text as it is accepted; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from edge_server.processes import DeviceProcess

__all__ = ["DemoView"]

_REFRESH_S = 0.1
_LINES = 10


class DemoView:
    """Show devices at work until all have ended."""

    def __init__(self, *, console: Console, plain: bool) -> None:
        self._console = console
        self._plain = plain

    def watch(self, devices: Sequence[DeviceProcess]) -> None:
        """Return when every device has ended.

        Raises:
            ConnectError: if one ended without a result.
        """
        if self._plain:
            self._watch_plain(devices)
        else:
            self._watch_live(devices)
        for device in devices:
            device.check()

    def _watch_plain(self, devices: Sequence[DeviceProcess]) -> None:
        for device in devices:
            device.done.wait()
            device.check()
            heading = f"--- {device.request.id}: {len(device.token_ids)} tokens"
            self._console.print(heading, markup=False, highlight=False)
            self._console.print(device.text, markup=False, highlight=False)

    def _watch_live(self, devices: Sequence[DeviceProcess]) -> None:
        with Live(self._frame(devices), console=self._console, auto_refresh=False) as live:
            while not all(device.done.wait(0) for device in devices):
                time.sleep(_REFRESH_S)
                live.update(self._frame(devices), refresh=True)
            live.update(self._frame(devices), refresh=True)

    def _frame(self, devices: Sequence[DeviceProcess]) -> Group:
        return Group(*(self._panel(device) for device in devices))

    def _panel(self, device: DeviceProcess) -> Panel:
        prompt_tail = "\n".join(device.request.prompt.splitlines()[-3:])
        text = Text(prompt_tail, style="dim")
        text.append(device.text, style="bold green")
        text = Text("\n").join(text.split("\n")[-_LINES:])
        state = "done" if device.done.is_set() else "drafting"
        title = f"{device.request.id} · {len(device.token_ids)} tokens · {state}"
        return Panel(text, title=title, title_align="left", height=_LINES + 2)
