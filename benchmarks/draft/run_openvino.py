"""Measure OpenVINO GenAI: FOLDER CONTEXT TOKENS THREADS. Runs in the peer's environment.

Precision is pinned: else OpenVINO computes in bf16 where the CPU can and keeps keys in 8 bits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from figures import print_figures, prompt_ids


def main(folder: Path, context: int, tokens: int, threads: int) -> None:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    pipeline = openvino_genai.LLMPipeline(
        str(folder),
        "CPU",
        INFERENCE_NUM_THREADS=threads,
        INFERENCE_PRECISION_HINT="f32",
        KV_CACHE_PRECISION="f32",
        ATTENTION_BACKEND="SDPA",
    )
    generate(pipeline, [1, 2, 3, 4], 4)
    metrics = generate(pipeline, prompt_ids(context, vocabulary), tokens + 1)
    print_figures(metrics.get_tpot().mean, metrics.get_ttft().mean)


def generate(
    pipeline: openvino_genai.LLMPipeline, ids: list[int], tokens: int
) -> openvino_genai.PerfMetrics:
    prompt = openvino.Tensor(np.array([ids], np.int64))
    mask = openvino.Tensor(np.ones((1, len(ids)), np.int64))
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    inputs = openvino_genai.TokenizedInputs(prompt, mask)
    return pipeline.generate(inputs, config).perf_metrics


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
