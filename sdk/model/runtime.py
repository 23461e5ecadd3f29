"""Which onnxruntime a model needs, found by running the graphs on versions from 1.20 on.

Knows nothing of sessions and folders.
"""

from __future__ import annotations

from collections.abc import Iterator

from sdk.model.manifest import Manifest

__all__ = ["lacks"]

Version = tuple[int, int]

_QUANTISED_SINCE: Version = (1, 23)  # older ones refuse the graph
_WINDOW_SINCE: Version = (1, 24)  # older ones attend to the wrong keys
_KV_INT8_SINCE: Version = (1, 27)


def lacks(manifest: Manifest, version: str) -> str:
    """Return why an onnxruntime of this version cannot run a model, or nothing.

    Args:
        manifest: the model's.
        version: as onnxruntime says it, for example "1.23.2".
    """
    have = tuple(int(number) for number in version.split(".")[:2])
    for what, since, instead in _needs(manifest):
        if have < since:
            needed = ".".join(map(str, since))
            return (
                f"{what}, for which onnxruntime {version} is too old; update it to {needed} or "
                f"{instead}"
            )
    return ""


def _needs(manifest: Manifest) -> Iterator[tuple[str, Version, str]]:
    if manifest.kv_type == "int8":
        yield "keeps keys and values in 8 bits", _KV_INT8_SINCE, "export without --kv int8"
    if manifest.windowed:
        yield "attends to a sliding window", _WINDOW_SINCE, "choose a model without"
    if manifest.weights.startswith(("int8", "int4")):
        yield f"has {manifest.weights} weights", _QUANTISED_SINCE, "export with --weights fp32"
