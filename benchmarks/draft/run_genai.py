"""Measure ONNX Runtime GenAI: FOLDER CONTEXT TOKENS THREADS. Runs in the peer's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from figures import prompt_ids, report


def main(folder: Path, context: int, tokens: int, threads: int) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=2))
    model = genai.Model(str(folder))
    prompt = np.array([prompt_ids(context, config["model"]["vocab_size"])], np.int32)
    warm = generator(model, 16)
    warm.append_tokens(prompt[:, :4])
    warm.generate_next_token()
    timed: list[genai.Generator] = []

    def first() -> None:
        timed.append(generator(model, context + tokens + 2))
        timed[0].append_tokens(prompt)
        timed[0].generate_next_token()

    report(first, lambda: timed[0].generate_next_token(), tokens)


def generator(model: genai.Model, length: int) -> genai.Generator:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
    return genai.Generator(model, parameters)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
