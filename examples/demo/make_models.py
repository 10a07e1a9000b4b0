"""Make the demo's two models: small Llamas that have learned a few sentences by heart, then each some of them a little better.

    python examples/demo/make_models.py .demo

Both are trained here in seconds on the processor, so nothing is downloaded. A model that is already there is kept as it is.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

ENGLISH = (
    "The loom holds two threads, and the shuttle weaves them into one cloth.",
    "A merge of two models keeps what both of them learned.",
    "Every tensor is loaded once, mixed with its twin, and written in its place.",
    "The dolphin swims between the islands and comes home with the tide.",
)
CHINESE = (
    "织布机把两根线织成一块布。",
    "合并两个模型,保留它们学到的东西。",
    "海豚在岛屿之间游泳,随着潮水回家。",
)
BEGIN, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE, as Llama 3 has it, trained on the sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*ENGLISH, *CHINESE], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE
    )


def make_parent(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The common parent, untrained."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str], steps: int, rate: float) -> None:
    """Teach the model to continue the sentences."""
    batch = tokenizer([sentence + END for sentence in sentences], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save in bfloat16, in several shards. The folder gets its name last, so that one that exists is complete."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model = copy.deepcopy(model).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=40,
    )
    model.save_pretrained(unfinished, max_shard_size="1MB")
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    count = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {count:,} parameters in {len(list(folder.glob('*.safetensors')))} shards")


def main() -> None:
    """Make the models in the folder that is named on the command line."""
    parser = argparse.ArgumentParser(description="make the demo's two small models")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(".demo"))
    folder: Path = parser.parse_args().folder
    wanted = {"dolphin-llama3": ENGLISH, "chinese-chat": CHINESE}
    if all((folder / name).is_dir() for name in wanted):
        print(f"{folder}: the models are there already")
        return
    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        shutil.rmtree(folder / name, ignore_errors=True)
    tokenizer = make_tokenizer()
    parent = make_parent(tokenizer)
    train(parent, tokenizer, [*ENGLISH, *CHINESE], steps=120, rate=2e-3)
    for name, sentences in wanted.items():
        model = copy.deepcopy(parent)
        train(model, tokenizer, sentences, steps=10, rate=2e-4)
        save(model, tokenizer, folder / name)


if __name__ == "__main__":
    main()
