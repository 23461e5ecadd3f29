"""Measure llama.cpp: FILE CONTEXT TOKENS THREADS. Runs in the peer's environment."""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np
from figures import prompt_ids, report


class Runner:
    """llama.cpp's own interface, without the Python class that expects a vocabulary."""

    def __init__(self, path: str, capacity: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = capacity
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.next_id = 0

    def feed(self, ids: list[int]) -> None:
        for start in range(0, len(ids), 512):
            part = ids[start : start + 512]
            array = (llama_cpp.llama_token * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(array, len(part))
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
        row = llama_cpp.llama_get_logits_ith(self.context, -1)
        address = ctypes.cast(row, ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(address, shape=(self.vocabulary_size,))
        self.next_id = int(logits.argmax())


def main(path: str, context: int, tokens: int, threads: int) -> None:
    runner = Runner(path, context + tokens + 16, threads)
    runner.feed([1, 2, 3, 4])
    runner.feed([5])
    prompt = prompt_ids(context, runner.vocabulary_size)

    def first() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(runner.context), True)
        runner.feed(prompt)

    report(first, lambda: runner.feed([runner.next_id]), tokens)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
