"""A folder that appears whole or not at all. Knows nothing about models but one file's name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from sdk.errors import ExportError
from sdk.model.manifest import MANIFEST_NAME

__all__ = ["partial_folder", "publish"]


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `out` that is gone afterwards; a full disk is one line."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        partial.chmod(0o755)  # mkdtemp makes it private, and it may become `out` itself
    except OSError as error:
        raise ExportError(f"exporting to {out}: {error.strerror}") from error
    try:
        yield partial
    except OSError as error:
        raise ExportError(
            f"exporting to {out}: {error.strerror or error}; nothing was written"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, out: Path, *, keep: Collection[str] = ()) -> None:
    """Move finished files to `out`: at once where it does not exist, else the manifest last.

    Files named in `keep` stay as they are where `out` has them.
    """
    if not out.exists():
        os.rename(partial, out)
        return
    (out / MANIFEST_NAME).unlink(missing_ok=True)
    kept = {MANIFEST_NAME, *(name for name in keep if (out / name).exists())}
    names = [path.name for path in partial.iterdir() if path.name not in kept]
    for name in [*sorted(names), MANIFEST_NAME]:
        os.replace(partial / name, out / name)
