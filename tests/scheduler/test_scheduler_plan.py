"""Cell files, `multispin plan` and `multispin simulate`."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_server.scheduler.cell import CellError
from edge_server.scheduler.cell_file import parse_cell
from edge_server.scheduler.solve import SCHEMES
from sdk.cli import main


def cell_data(**changes: Any) -> dict[str, Any]:
    devices = [
        {"id": "a", "acceptance": 0.7126, "draft_s_per_token": 0.0055, "spectral_efficiency": 2},
        {"id": "b", "acceptance": 0.7390, "draft_s_per_token": 0.006, "spectral_efficiency": 4},
        {"id": "c", "acceptance": 0.8582, "draft_s_per_token": 0.0066, "spectral_efficiency": 6},
    ]
    data: dict[str, Any] = {
        "bandwidth_hz": 1.5e6,
        "payload_bits_per_token": 31744,
        "verify": {"fixed_s": 0.06084},
        "min_draft_length": 1,
        "devices": devices,
    }
    return {**data, **changes}


def write(tmp_path: Path, data: object) -> str:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def planned(tmp_path: Path, capsys: Any, data: object, *options: str) -> dict[str, Any]:
    assert main(["plan", "--cell", write(tmp_path, data), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_document_s_cell_can_be_planned(tmp_path: Path, capsys: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    found = planned(tmp_path, capsys, json.loads(example))
    assert found["devices"] == ["pi-1", "pi-2"]
    assert main(["plan", "--cell", write(tmp_path, json.loads(example))]) == 0
    assert "tokens/s times weight, " in capsys.readouterr().out  # pi-2 counts twice


@pytest.mark.parametrize("policy", SCHEMES)
def test_plan_prints_what_it_should(policy: str, tmp_path: Path, capsys: Any) -> None:
    found = planned(tmp_path, capsys, cell_data(), "--policy", policy, "--length", "3")
    assert set(found) >= {
        "policy",
        "draft_length",
        "bandwidth_hz",
        "round_s",
        "goodput_tokens_per_s",
        "bound_tokens_per_s",
        "solve_s",
    }
    assert len(found["draft_length"]) == len(found["bandwidth_hz"]) == 3
    assert found["goodput_tokens_per_s"] <= found["bound_tokens_per_s"] * (1.0 + 1e-9)
    assert policy in {found["policy"], "auto"}


def test_plan_of_the_worked_example(tmp_path: Path, capsys: Any) -> None:
    found = planned(tmp_path, capsys, cell_data(), "--policy", "heterogeneous")
    assert found["draft_length"] == [1, 2, 3]
    assert found["goodput_tokens_per_s"] == pytest.approx(68.093850, abs=5e-7)
    assert "joules_per_token" not in found


def test_plan_with_energy_and_a_rate(tmp_path: Path, capsys: Any) -> None:
    data = cell_data(min_draft_length=0, min_rate_tokens_per_s=10.0)
    for device in data["devices"]:
        device |= {"draft_j_per_token": 0.02, "tx_j_per_bit": 1e-8, "wait_w": 2.0}
    found = planned(tmp_path, capsys, data, "--objective", "energy", "--rate", "10")
    assert found["joules_per_token"] > 0.0
    assert min(found["rate_tokens_per_s"]) >= 10.0
    assert found["served_at_rate"] == ["a", "b", "c"]
    data["energy_cap_w"] = 0.1
    assert main(["plan", "--cell", write(tmp_path, data)]) == 2
    assert "energy_cap_w" in capsys.readouterr().err


def test_plan_in_plain_words(tmp_path: Path, capsys: Any) -> None:
    assert main(["plan", "--cell", write(tmp_path, cell_data()), "--rate", "12"]) == 0
    text = capsys.readouterr().out
    assert "Drafting pays: the best scheme" in text
    assert "holds it back" in text
    assert "can be served" in text
    cheap = cell_data(verify={"fixed_s": 0.002}, min_draft_length=0)
    assert main(["plan", "--cell", write(tmp_path, cheap)]) == 0
    assert "Drafting does not pay here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"bandwidth_hz": -1}, "bandwidth_hz"),
        ({"bandwidth_hz": float("nan")}, "bandwidth_hz"),
        ({"bandwidth_hz": "wide"}, "bandwidth_hz"),
        ({"payload_bits_per_token": None}, "payload_bits_per_token"),
        ({"verify": {"fixed_s": -0.1}}, "verify.fixed_s"),
        ({"verify": {"fixed": 0.1}}, "unknown key 'fixed'"),
        ({"verify": {}}, "verify"),
        ({"devices": []}, "devices"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"max_draft_length": 2.5}, "max_draft_length"),
        ({"min_draft_length": 30}, "min_draft_length"),
        ({"overlap": "yes"}, "overlap"),
        ({"energy_cap_w": 0}, "energy_cap_w"),
    ],
)
def test_bad_cells_are_one_line_that_names_the_field(
    changes: dict[str, Any], field: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(cell_data(**changes)), encoding="utf-8")
    assert main(["plan", "--cell", str(path)]) == 2
    error = capsys.readouterr().err
    assert field in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "field"),
    [
        ({"acceptance": 1.0}, "devices[0].acceptance"),
        ({"acceptance": float("inf")}, "devices[0].acceptance"),
        ({"survival": [0.5]}, "either acceptance or survival"),
        ({"acceptance": None, "survival": [0.5, 0.6]}, "devices[0].survival"),
        ({"spectral_efficiency": 0}, "devices[0].spectral_efficiency"),
        ({"draft_s_per_token": True}, "devices[0].draft_s_per_token"),
        ({"weight": -1}, "devices[0].weight"),
        ({"id": "b"}, "devices[1].id"),
        ({"speed": 1}, "unknown key 'speed'"),
    ],
)
def test_bad_devices_are_named(device: dict[str, Any], field: str) -> None:
    data = cell_data()
    data["devices"][0] |= device
    if data["devices"][0].get("acceptance", 0) is None:
        del data["devices"][0]["acceptance"]
    with pytest.raises(CellError) as caught:
        parse_cell(data)
    assert field in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["devices", "verify", "bandwidth_hz", "fixed_s", "acceptance"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_raises_anything_else(data: object) -> None:
    with pytest.raises(CellError):
        parse_cell(data)


def test_a_short_survival_curve_ends_there() -> None:
    data = cell_data()
    del data["devices"][0]["acceptance"]
    data["devices"][0]["survival"] = [0.9, 0.5]
    cell = parse_cell(data)
    assert list(cell.survival[0, :4]) == [0.9, 0.5, 0.0, 0.0]


@pytest.mark.parametrize("policy", [name for name in SCHEMES if name != "algorithm-1"])
@pytest.mark.parametrize(("shortest", "longest"), [(0, 0), (2, 2)])
def test_one_length_alone_is_a_cell_too(
    policy: str, shortest: int, longest: int, tmp_path: Path, capsys: Any
) -> None:
    data = cell_data(min_draft_length=shortest, max_draft_length=longest)
    found = planned(tmp_path, capsys, data, "--policy", policy, "--length", str(longest))
    assert set(found["draft_length"]) <= {0, longest}


def test_files_that_are_none(tmp_path: Path, capsys: Any) -> None:
    assert main(["plan", "--cell", str(tmp_path / "none.json")]) == 2
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    assert main(["plan", "--cell", str(tmp_path / "bad.json")]) == 2
    assert main(["plan", "--cell", write(tmp_path, cell_data()), "--policy", "magic"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


@pytest.mark.parametrize("policy", ["heterogeneous", "ping-pong", "continuous", "server-only"])
def test_simulation_agrees_with_the_plan(policy: str, tmp_path: Path, capsys: Any) -> None:
    data = cell_data(min_draft_length=0)
    options = ["--policy", policy, "--seconds", "60", "--json"]
    assert main(["simulate", "--cell", write(tmp_path, data), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["simulated_tokens_per_s"] == pytest.approx(
        found["predicted_tokens_per_s"], rel=0.1
    )


def test_simulation_is_seeded_and_live_control_comes_close(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, cell_data())
    found = []
    for options in (["--seed", "3"], ["--seed", "3"], ["--seed", "3", "--live"], ["--fading"]):
        base = ["simulate", "--cell", path, "--policy", "heterogeneous", "--seconds", "20"]
        assert main([*base, *options, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["simulated_tokens_per_s"])
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], rel=0.15)
    assert found[3] < found[0]


def test_figures_are_written(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    base = ["simulate", "--pair", "llama", "--realisations", "1", "--out", str(tmp_path)]
    for number in ("4", "5"):
        assert main([*base, "--figure", number]) == 0
    assert main([*base, "--figure", "6", "--no-png", "--json"]) == 0
    capsys.readouterr()
    with (tmp_path / "figure_6_llama.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert float(row["fixed"]) <= float(row["heterogeneous"])
    assert float(row["algorithm-1"]) <= float(row["heterogeneous"]) * (1.0 + 1e-6)
    assert (tmp_path / "figure_5_llama.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "figure_6_llama.png").exists()
