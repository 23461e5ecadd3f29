"""Drafting speed beside other runtimes: same weights, same threads, interleaved runs.

`python -m benchmarks.draft`, or `make bench-draft`. Each peer lives in a virtual environment of its
own under `build/bench-draft/`, because their dependencies exclude each other.
"""
