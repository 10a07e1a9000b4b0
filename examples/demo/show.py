"""Load a merged model with transformers and let it finish a few sentences.

    python examples/demo/show.py .demo/merged

The demo's models know a handful of sentences by heart, and so does their merge.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PROMPTS = ("The loom holds", "A merge of two", "海豚在")


def main() -> None:
    """Generate greedily, so that the same model always says the same."""
    parser = argparse.ArgumentParser(description="generate a few tokens with a merged model")
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", nargs="*", default=PROMPTS)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    model.eval()
    for prompt in arguments.prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=40, do_sample=False
            )
        said = tokenizer.decode(tokens[0], skip_special_tokens=True)
        print(f"{prompt} | {said.removeprefix(prompt).strip()}")
    count = sum(p.numel() for p in model.parameters())
    layers = model.config.num_hidden_layers
    print(f"{arguments.model}: {type(model).__name__}, {layers} layers, {count:,} parameters, {model.dtype}")


if __name__ == "__main__":
    main()
