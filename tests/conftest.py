"""Brokers and links that tests of every area share; each test uses topics of its own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from broker_kinds import KINDS, need_broker
from fault_proxy import FaultProxy

from edge_server.broker import BrokerProcess, start_broker
from sdk.config import BrokerConfig
from sdk.transport.backoff import Backoff
from sdk.transport.mqtt import MqttTransport

# Torch computes on one thread unless a test asks for more, and threads that wait sleep, also in
# what tests start. Threads of tiny products that spin take up to twenty times as long where the
# machine is busy. Read when torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Without a GPU, Triton's kernels run in its interpreter; it is chosen when triton loads.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", params=KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    """A broker of each kind for the whole session; never to be killed."""
    need_broker(request.param)
    with start_broker(request.param) as process:
        yield process


@pytest.fixture(params=KINDS)
def own_broker(request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    """A broker of each kind for this test alone, which may kill and restart it."""
    need_broker(request.param)
    with start_broker(request.param) as process:
        yield process


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[BrokerProcess]:
    """A mosquitto for the whole session; never to be killed."""
    need_broker("mosquitto")
    with start_broker("mosquitto") as process:
        yield process


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses; append levels as needed."""
    return f"t/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def join() -> Iterator[Callable[..., MqttTransport]]:
    """Make connected transports that reconnect fast, and close them after the test."""
    with ExitStack() as stack:

        def connect(broker: BrokerConfig, **options: object) -> MqttTransport:
            options.setdefault("client_id", uuid.uuid4().hex[:12])
            options.setdefault("backoff", Backoff(base_s=0.05, cap_s=0.2))
            transport = stack.enter_context(MqttTransport(broker=broker, **options))  # type: ignore[arg-type]
            transport.connect(10.0)
            return transport

        yield connect


@pytest.fixture
def proxy_to() -> Iterator[Callable[[BrokerConfig], FaultProxy]]:
    """Make TCP proxies whose faults the test switches; closed after it."""
    with ExitStack() as stack:
        yield lambda broker: stack.enter_context(FaultProxy(broker))
