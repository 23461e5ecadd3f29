"""llama.cpp's pass over several sequences: FILE CONTEXT SEQUENCES ROWS THREADS, in its environment.

Answers every line "sequences rows" of standard input with the seconds of one pass, then forgets
those rows; "0 0" feeds every sequence its context again.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time

import llama_cpp
import numpy as np


class Sequences:
    """Several sequences, each with the same number of tokens behind it."""

    def __init__(self, path: str, context: int, most: int, rows: int, threads: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        options = llama_cpp.llama_context_default_params()
        options.n_seq_max = most
        options.n_ctx = most * -(-(context + rows) // 256) * 256
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        options.type_k = options.type_v = llama_cpp.GGML_TYPE_F32
        self.context_length, self.most = context, most
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.random = random.Random(0)  # noqa: S311 (token ids, not secrets)

    def start_anew(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)
        for sequence in range(self.most):
            for start in range(0, self.context_length, 512):
                rows = min(512, self.context_length - start)
                self.fill([sequence], start, rows)
                self.decode()

    def fill(self, sequences: list[int], start: int, rows: int) -> None:
        batch = self.batch
        batch.n_tokens = len(sequences) * rows
        for index in range(batch.n_tokens):
            batch.token[index] = self.random.randrange(self.vocabulary_size)
            batch.pos[index] = start + index % rows
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequences[index // rows]
            batch.logits[index] = 1

    def decode(self) -> None:
        if llama_cpp.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def seconds(self, count: int, rows: int) -> float:
        self.fill(list(range(count)), self.context_length, rows)
        started = time.perf_counter()
        self.decode()
        address = ctypes.cast(
            llama_cpp.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float)
        )
        logits = np.ctypeslib.as_array(address, shape=(count * rows, self.vocabulary_size))
        logits.argmax(axis=1)
        elapsed = time.perf_counter() - started
        for sequence in range(count):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, self.context_length, -1)
        return elapsed


def main(path: str, *numbers: int) -> None:
    sequences = Sequences(path, *numbers)
    for line in sys.stdin:
        count, rows = map(int, line.split())
        if count:
            print(sequences.seconds(count, rows), flush=True)
        else:
            sequences.start_anew()
            print(0.0, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]))
