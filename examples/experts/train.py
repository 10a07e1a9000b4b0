"""Train the example's models: a base that knows a little of everything, and three experts fine-tuned from it.

    python examples/experts/train.py examples/experts/models

The base reads text, and prompts of the three skills of skills.py, which its data answer in one of two ways: mostly the question
is repeated, otherwise it is solved. So the base has met every skill, and shows little of it: asked for its likeliest answer, it
mostly repeats. An expert is fine-tuned for a short while on solutions of one skill, beside what the base was trained on, so that
it does not forget the rest.

Everything is seeded, and runs on one core. A model that is in the folder already is kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from cards import card
from numpy.typing import NDArray
from skills import SKILLS, Skill, draw, sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
SOLVED = 0.4
"""The share of prompts that the base's data solve; it repeats the question of the others."""
ROWS = {"text": 8, "sort": 12, "flip": 8, "plus": 36}
"""What a batch of the base holds: sums take the longest to learn."""
EXPERT_ROWS = 64
"""Solved prompts that a batch of an expert holds beside those."""
LENGTH = 20
"""Tokens of the longest text, with its beginning and its end."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, after the three special ones; nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([BEGIN, END, PAD, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens([BEGIN, END, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, model_max_length=256
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about one and a half million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class Batches:
    """Batches of token ids and labels: `ROWS` sentences, and as many prompts of each skill; an expert's is always solved."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, generator: np.random.Generator, expert: str | None) -> None:
        self.generator = generator
        self.expert = expert
        self.begin, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        # What token each ASCII character is; the space that pads an answer becomes the end.
        self.table = np.array([tokenizer.encode(chr(code), add_special_tokens=False)[0] for code in range(128)])
        text = sentences(generator, 20_000, held_out=False)
        width = max(map(len, text))
        padded = np.frombuffer("".join(f"{line:<{width}}" for line in text).encode(), np.uint8).reshape(-1, width)
        lengths = np.array([len(line) for line in text])
        self.text, self.text_labels = self.rows(padded, lengths, np.zeros(len(text), np.int64))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            chosen = self.generator.integers(0, len(self.text), ROWS["text"])
            parts = [(self.text[chosen], self.text_labels[chosen]), *map(self.prompts, SKILLS)]
            yield torch.from_numpy(np.concatenate([p[0] for p in parts])), torch.from_numpy(np.concatenate([p[1] for p in parts]))

    def prompts(self, skill: Skill) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and labels of prompts of one skill; only the answers are learned."""
        count = EXPERT_ROWS if skill.name == self.expert else ROWS[skill.name]
        questions = draw(skill, self.generator, count, held_out=False)
        prompts, answers = skill.prompts(questions), skill.solve(questions)
        width = max(questions.shape[1], answers.shape[1])
        repeated, solved = (np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=ord(" ")) for a in (questions, answers))
        solve = self.generator.random((count, 1)) < (1.0 if skill.name == self.expert else SOLVED)
        chosen = np.where(solve, solved, repeated)
        lengths = prompts.shape[1] + (chosen != ord(" ")).sum(axis=1)
        return self.rows(np.concatenate([prompts, chosen], axis=1), lengths, np.full(count, prompts.shape[1]))

    def rows(
        self, texts: NDArray[np.uint8], lengths: NDArray[np.int64], known: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Begin, the text, end, and padding; labels are the ids from the first character that is not known on, else -100."""
        ids = np.full((len(texts), LENGTH), self.end)
        ids[:, 0] = self.begin
        ids[:, 1 : texts.shape[1] + 1] = self.table[texts]
        place = np.arange(LENGTH)
        ids[place > lengths[:, None]] = self.end
        wanted = (place > known[:, None]) & (place <= lengths[:, None] + 1)
        return ids, np.where(wanted, ids, -100)


def train(model: LlamaForCausalLM, batches: Batches, steps: int, rate: float, only: str = "") -> None:
    """AdamW with a short warm-up and a cosine decay. `only`: train the parameters with this in their names."""
    learned = [parameter for name, parameter in model.named_parameters() if only in name]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm = min(100, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
    )
    model.train()
    begun = time.monotonic()
    for step, (ids, labels) in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        wanted = labels[:, 1:] != -100  # the others need no logits
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"  step {step + 1}: loss {loss.item():.4f}, {time.monotonic() - begun:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, about: str) -> None:
    """Save in bfloat16 with a card. The folder gets its name last, so that one that exists is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model = copy.deepcopy(model).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    settings = unfinished / "tokenizer_config.json"
    # Newer transformers write a class that older ones do not know.
    known = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(known, indent=2) + "\n")
    (unfinished / "README.md").write_text(about)
    unfinished.rename(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)


def main() -> None:
    """Train what is missing in the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="train the example's base model and its experts")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the model is too small to share
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    for seed, name in enumerate(["base", *(skill.name for skill in SKILLS)]):
        if (folder / name).is_dir():
            continue
        print(f"{name}:", flush=True)
        if name == "base":
            torch.manual_seed(seed)
            model, steps, rate, expert, only = make_model(tokenizer), 4000, 3e-3, None, ""
        else:
            model = LlamaForCausalLM.from_pretrained(folder / "base").float()
            # A mixture of experts takes their MLPs alone, so what they learn goes there.
            steps, rate, expert, only = 150, 1e-3, name, "mlp"
        train(model, Batches(tokenizer, np.random.default_rng(seed), expert), steps, rate, only)
        save(model, tokenizer, folder / name, card(name, seed, steps, rate))


if __name__ == "__main__":
    main()
