"""Draw a figure's rows with matplotlib, which is an extra and imported only here."""

from __future__ import annotations

from pathlib import Path

from edge_server.simulation.figures import Row
from sdk.errors import DependencyError

__all__ = ["draw_rows"]

TITLES = {
    3: "goodput over a common draft length",
    4: "optimal draft length",
    5: "verification time",
    6: "against one device and against the server",
    7: "goodput over the band",
    8: "goodput over the number of devices",
    9: "goodput over bits per drafted token",
    10: "goodput over the verifier's speed (ids only)",
}


def draw_rows(number: int, rows: list[Row], path: Path, *, title: str) -> None:
    """Draw the rows as PNG: the first column across, every other numeric column a line.

    Raises:
        DependencyError: without matplotlib.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise DependencyError("drawing figures", "plot") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    names = list(rows[0])
    if number == 6:
        bars = [name for name in names if isinstance(rows[0][name], float)]
        axes.barh(bars, [float(rows[0][name]) for name in bars])
        axes.set_xlabel("tokens/s")
    elif number == 4:
        for swept in dict.fromkeys(str(row["swept"]) for row in rows):
            chosen = [row for row in rows if row["swept"] == swept]
            top = max(float(row["value"]) for row in chosen)
            across = [float(row["value"]) / top for row in chosen]
            axes.step(across, [float(row["length"]) for row in chosen], where="mid", label=swept)
        axes.set_xlabel("value over the largest tried")
        axes.set_ylabel("tokens")
        axes.legend()
    else:
        across = [float(row[names[0]]) for row in rows]
        for name in names[1:]:
            axes.plot(across, [float(row[name]) for row in rows], marker="o", ms=3, label=name)
        axes.set_xlabel(names[0].replace("_", " "))
        axes.set_ylabel("s" if number == 5 else "tokens/s")
        axes.legend(fontsize=7)
        if number == 9:
            axes.set_xscale("log")
    axes.set_title(f"{TITLES[number]}, {title}", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
