"""`multispin model`: export a decoder to ONNX, and show what an exported folder contains."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdk.errors import DependencyError
from sdk.export import KV_TYPES, WEIGHTS
from sdk.model.manifest import Manifest

__all__ = ["configure", "run"]

MAX_ACCEPTANCE_FALL = 0.03


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands export and show."""
    commands = parser.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    export = commands.add_parser("export", help="export a Hugging Face decoder to ONNX")
    export.add_argument(
        "--model", required=True, help="a folder, or a name on the Hugging Face Hub"
    )
    export.add_argument(
        "--out", required=True, type=Path, help="folder to write, may be the model's own"
    )
    export.add_argument(
        "--weights",
        choices=sorted(WEIGHTS),
        default="fp32",
        help="default: fp32; "
        + "; ".join(f"{name}: {meaning}" for name, meaning in WEIGHTS.items()),
    )
    export.add_argument(
        "--kv",
        choices=sorted(KV_TYPES),
        default="float",
        help="keys and values; "
        + "; ".join(f"{name}: {meaning}" for name, meaning in KV_TYPES.items()),
    )
    export.add_argument(
        "--context", type=int, help="longest text in tokens (default: at most 8192)"
    )
    export.add_argument(
        "--target", type=Path, help="exported model by which this drafter's acceptance is measured"
    )
    export.add_argument("--json", action="store_true", help="print the manifest as JSON")
    show = commands.add_parser("show", help="verify an exported folder and print its manifest")
    show.add_argument("folder", type=Path)
    show.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the chosen subcommand."""
    manifest = export(args) if args.model_command == "export" else show(args.folder)
    if args.json:
        print(json.dumps(manifest.as_json(), indent=2, sort_keys=True))
    else:
        print_manifest(manifest)
    return 0


def export(args: argparse.Namespace) -> Manifest:
    try:
        from sdk.export.exporter import export_model
    except ImportError as error:
        raise DependencyError("'multispin model export'", "export") from error
    if args.target is not None:
        Manifest.load(args.target)  # a wrong folder is told now, not after the export
    with step_display() as progress:
        manifest = export_model(
            args.model,
            args.out,
            weights=args.weights,
            kv=args.kv,
            context_length=args.context,
            target=args.target,
            progress=progress,
        )
    warn_of_fall(manifest)
    return manifest


def warn_of_fall(manifest: Manifest) -> None:
    """Say on standard error when what was stored costs a drafter too much acceptance."""
    before = manifest.quality.get("coupled_acceptance_before", 0.0)
    after = manifest.quality.get("coupled_acceptance_after", 0.0)
    if before - after > MAX_ACCEPTANCE_FALL:
        print(
            f"model export: {stored_types(manifest)} lower this drafter's acceptance from "
            f"{before:.2f} to {after:.2f}; {cheaper(manifest)}",
            file=sys.stderr,
        )


def stored_types(manifest: Manifest) -> str:
    weights = f"{manifest.weights} weights"
    return f"{weights} and {manifest.kv_type} keys and values" if manifest.kv_scales else weights


def cheaper(manifest: Manifest) -> str:
    """Name what would cost less."""
    if manifest.weights == "fp32":
        return "--kv float costs nothing"
    weights = "int8 or fp16-stored costs less"
    return f"{weights}, and so may --kv float" if manifest.kv_scales else weights


@contextmanager
def step_display() -> Iterator[Callable[[str], None]]:
    """Yield what shows the current step on standard error, with a spinner on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: print(f"model export: {step}", file=sys.stderr)
        return
    with console.status("model export") as status:
        yield lambda step: status.update(f"model export: {step} …")


def show(folder: Path) -> Manifest:
    manifest = Manifest.load(folder)
    manifest.verify(folder)
    return manifest


def print_manifest(manifest: Manifest) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    fields = manifest.as_json()
    files, versions = fields.pop("files"), fields.pop("versions")
    for part, scales in fields.pop("kv_scales").items():
        fields[f"{part} scales"] = f"{min(scales):.3g} … {max(scales):.3g}, largest of each layer"
    measured = {name: fields.pop(name) for name in ("parity", "quality")}
    for name, value in fields.items():
        table.add_row(name, str(value))
    for kind, values in measured.items():
        for name, value in values.items():
            table.add_row(f"{kind}: {name}", f"{value:.6g}")
    for name, record in files.items():
        table.add_row(name, f"{record['size_bytes']:,} bytes, sha256 {record['sha256'][:16]}…")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    Console().print(table)
