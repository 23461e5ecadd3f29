"""The power is cut at random moments of updates: the board always starts a healthy slot."""

from __future__ import annotations

import os
import random
import re
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest
from board_bundles import bare_bundle
from board_card import copy_card
from board_image import Kit
from emulated import Emulated

from firmware_tools.bundle.signed import open_bundle
from firmware_tools.flash.ext4 import RootFile, edit_partition
from firmware_tools.flash.image import Image
from firmware_tools.keys import KeyStore
from firmware_tools.seed import Identity, make_seed

pytestmark = [pytest.mark.board, pytest.mark.slow]

CUTS = int(os.environ.get("MULTISPIN_POWER_CUTS", "20"))
SEED = os.environ.get("MULTISPIN_POWER_SEED", "1")

# Runs as process 1: what a boot does to the slots, then the next update, for ever.
_INIT = """\
#!/usr/bin/python3
import json, os, subprocess, sys, time
sys.path.insert(0, "/opt/multispin/guard.pyz" if os.path.exists("/opt/multispin/guard.pyz")
                else "/opt/seed/guard.pyz")
from pathlib import Path
from firmware_tools.board.paths import BoardPaths
from firmware_tools.board.install import Host, install_seed
from firmware_tools.board.slots import Slots
from firmware_tools.bundle.manifest import Manifest
from firmware_tools.bundle.tree import check_folder

def say(text):
    os.write(1, ("\\n@ " + text + "\\n").encode())

paths = BoardPaths()
slots = Slots(paths)
seed = Path("/opt/seed")
if paths.state.exists():
    state = slots.started()
    damage = "nothing installed"
    if state.active:
        damage = check_folder(slots.manifest(state.active), paths.current.resolve())
    say("RUNS %d %s" % (state.running.release, damage or "healthy"))
    if state.active:
        slots.good()
while True:
    manifest = json.loads((seed / "manifest.json").read_bytes())
    manifest["release"] = slots.load().running.release + 1
    Path("/opt/next").mkdir(exist_ok=True)
    for name in ("guard.pyz", "payload.tar.gz"):
        if not os.path.lexists("/opt/next/" + name):
            os.symlink("/opt/seed/" + name, "/opt/next/" + name)
    encoded = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\\n"
    Path("/opt/next/manifest.json").write_bytes(encoded)
    say("UPDATING %d" % manifest["release"])
    install_seed(Path("/opt/next"), paths, Host.present())
    slots.started()
    slots.good()
    say("UPDATED %d" % manifest["release"])
"""


@pytest.fixture(scope="module")
def card(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card whose process 1 updates without end."""
    folder = tmp_path_factory.mktemp("power")
    now = datetime.now(timezone.utc).replace(microsecond=0)
    keys = KeyStore.create(folder / "keys", ["broker.test"], now=now)
    bundle = bare_bundle(folder, keys)
    identity = Identity(
        files=keys.issue_device("power-1", now=now),
        broker_host="broker.test",
        broker_port=8883,
        bundle_key=keys.read("bundle.pub"),
        root=b"{}",
    )
    make_seed(open_bundle(bundle, [keys.verify_key("bundle")]), identity, folder / "seed", now=now)
    card = copy_card(kit, folder / "card.img")
    image = Image.open(card)
    assert image.root is not None
    files = {
        f"/opt/seed/{path.name}": RootFile(content=path) for path in (folder / "seed").iterdir()
    }
    files["/opt/init.py"] = RootFile(content=_INIT.encode(), mode=0o755)
    with edit_partition(card, image.root.start_bytes, image.root.size_bytes) as root:
        root.put(files)
    return card


@pytest.mark.timeout(60 + 30 * CUTS)
def test_the_board_always_starts_a_healthy_slot(kit: Kit, card: Path) -> None:
    chance = random.Random(SEED)
    seen: list[int] = []
    interrupted = 0
    for cut in range(CUTS + 1):
        with Emulated(
            kit, card, words="board.init=/opt/init.py", memory_mib=512, network=False
        ) as board:
            # A board without a slot has none to start: the cuts begin after the first install.
            board.wait_for("@ UPDATING" if cut else "@ UPDATED", 120)
            if cut:
                runs = re.search(r"@ RUNS (\d+) (.*)", board.console())
                assert runs, board.console()
                assert runs[2].strip() == "healthy", f"cut {cut}, seed {SEED}: {runs[2]}"
                seen.append(int(runs[1]))
            time.sleep(chance.uniform(0, 3.0))
            board.cut_power()
            last = re.findall(r"@ (UPDATING|UPDATED) (\d+)", board.console())[-1]
            interrupted += last[0] == "UPDATING"
    assert seen == sorted(seen), "a slot that was good went back"
    assert len(seen) == CUTS
    assert interrupted >= CUTS // 4, "too few cuts hit an update; they come too late"
