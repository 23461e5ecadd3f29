"""A TCP proxy that plays a bad link: delay, split writes, half-open, reset, refusal."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

from sdk.config import BrokerConfig

LINGER_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """Forward to a broker; attributes switch the faults while it runs."""

    def __init__(self, broker: BrokerConfig) -> None:
        self.delay_s = 0.0
        self.chunk_bytes = 65_536
        self.stalled = False  # nobody reads: the kernel's buffers fill
        self.refusing = False
        self.up_bytes = 0
        self.down_bytes = 0
        self._upstream = (broker.host, broker.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.config = BrokerConfig(
            host="127.0.0.1",
            port=self._listener.getsockname()[1],
            keepalive_s=1,
        )
        self._pairs: list[_Pair] = []
        self._closing = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def half_open(self) -> None:
        """Swallow everything on the present connections; neither side is told."""
        for pair in self._pairs:
            pair.swallows = True

    def reset(self) -> None:
        """End the present connections with a TCP reset."""
        for pair in self._pairs:
            for end in (pair.client, pair.server):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            pair.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            with contextlib.suppress(OSError):  # either end may be gone again already
                self._join(client)

    def _join(self, client: socket.socket) -> None:
        if self.refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self._upstream, timeout=5)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        self._pairs.append(pair)
        for end in (client, server):
            end.settimeout(0.05)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, up in ((client, server, True), (server, client, False)):
            thread = threading.Thread(target=self._pump, args=(pair, source, sink, up))
            self._threads.append(thread)
            thread.start()

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with contextlib.suppress(OSError):
            while not self._closing:
                if self.stalled:
                    time.sleep(0.01)
                    continue
                try:
                    data = source.recv(min(self.chunk_bytes, 65_536))
                except TimeoutError:
                    continue
                if not data:
                    break
                if up:
                    self.up_bytes += len(data)
                else:
                    self.down_bytes += len(data)
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._forward(pair, sink, data)
        if not pair.swallows:
            pair.close()

    def _forward(self, pair: _Pair, sink: socket.socket, data: bytes) -> None:
        while data and not pair.swallows and not self._closing:
            with contextlib.suppress(TimeoutError):
                data = data[sink.send(data) :]

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._threads[0].join()  # the one that adds to the others
        for pair in self._pairs:
            pair.close()
        for thread in self._threads[1:]:
            thread.join()
        self._listener.close()


class _Pair:
    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.swallows = False

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
