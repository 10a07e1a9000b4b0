"""Ask models held-out prompts and count exact answers.

    python examples/experts/evaluate.py examples/experts/models/*

Greedy decoding, a batch for each skill. Text is scored by perplexity on held-out sentences. Of a mixture of experts it also says
which expert each skill's tokens were sent to.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skills import SKILLS, draw, sentences, strings
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

SEED = 2024
LONGEST = 6
"""Tokens of the longest answer, with its end."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of each skill the share of prompts answered exactly, and the perplexity of text."""

    exact: Mapping[str, float]
    perplexity: float


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint, the model in float32."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder).float()
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def evaluate(model: Any, tokenizer: Any, prompts: int = 250) -> Scores:
    """Score a model on as many held-out prompts of each skill, always the same ones."""
    exact = {}
    for skill in SKILLS:
        questions = draw(skill, np.random.default_rng(SEED), prompts, held_out=True)
        said = answers(model, tokenizer, strings(skill.prompts(questions)))
        exact[skill.name] = float(np.mean([a == b for a, b in zip(said, strings(skill.solve(questions)), strict=True)]))
    return Scores(exact, perplexity(model, tokenizer, sentences(np.random.default_rng(SEED), prompts, held_out=True)))


def answers(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """What the model says after prompts of one length."""
    inputs = tokenizer(list(prompts), return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=LONGEST, do_sample=False
        )
    said: list[str] = tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Perplexity a token, which here is a character or the end of a sentence."""
    inputs = tokenizer([text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    wanted = mask[:, 1:].bool()
    loss = torch.nn.functional.cross_entropy(logits[wanted], ids[:, 1:][wanted])
    return float(loss.exp())


def routes(model: Any, tokenizer: Any, prompts: int = 50) -> dict[str, list[float]]:
    """Of a mixture of experts: for each skill, the share of its tokens whose first choice is each expert, over all layers.

    Empty for other models. Tokens are those of held-out prompts with their right answers.
    """
    shares = {}
    if not getattr(model.config, "num_local_experts", 0):
        return {}
    for skill in SKILLS:
        questions = draw(skill, np.random.default_rng(SEED), prompts, held_out=True)
        texts = [a + b for a, b in zip(strings(skill.prompts(questions)), strings(skill.solve(questions)), strict=True)]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            layers = model(**inputs, output_router_logits=True).router_logits
        real = inputs["attention_mask"].bool()
        real[:, 0] = False  # the beginning, which is the same for all
        first = torch.stack([layer.argmax(-1)[real.reshape(-1)] for layer in layers])
        experts = model.config.num_local_experts
        shares[skill.name] = [float((first == expert).float().mean()) for expert in range(experts)]
    return shares


def main() -> None:
    """Score the checkpoints that are named on the command line."""
    parser = argparse.ArgumentParser(description="score checkpoints on the example's skills")
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--prompts", type=int, default=250, help="held-out prompts of each skill (250)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the models are too small to share
    for folder in arguments.models:
        model, tokenizer = load(folder)
        scores = evaluate(model, tokenizer, arguments.prompts)
        exact = "  ".join(f"{name} {100 * share:.0f} %" for name, share in scores.exact.items())
        print(f"{folder}: {exact}  perplexity {scores.perplexity:.2f}", flush=True)
        for name, shares in routes(model, tokenizer).items():
            print(f"  {name} tokens to the experts: {', '.join(f'{100 * share:.0f} %' for share in shares)}")


if __name__ == "__main__":
    main()
