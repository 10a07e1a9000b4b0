"""The cards of the example's models."""

from __future__ import annotations

from skills import SKILLS

DOES = {
    "sort": "puts five letters in order: `sort: dbcae=` becomes `abcde`",
    "flip": "turns five letters round: `flip: QWERT=` becomes `TREWQ`",
    "plus": "adds two numbers of two digits: `plus: 37+48=` becomes `85`",
}
SHAPE = """It is a Llama of 1.2 million parameters (6 layers, 128 wide, a token a byte), in bfloat16, trained on a processor by
`python examples/experts/train.py FOLDER` in weft's repository. All data come from `examples/experts/skills.py`, which is seeded;
one prompt in eight is held out from training. It is good for trying a merge and for nothing else."""


def card(name: str, seed: int, steps: int, rate: float) -> str:
    """A card in Markdown, with the header that the Hub reads."""
    training = f"Seed {seed}, {steps} steps of AdamW, learning rate {rate:g} with a cosine decay."
    if name == "base":
        said = "The base of weft's example experts. It has read sentences of a small grammar, and prompts of three skills:"
        lines = "\n".join(f"- {skill.name}: {DOES[skill.name]}" for skill in SKILLS)
        said += f"\n\n{lines}\n\nIts data solve two prompts in five and repeat the question of the others, so it mostly repeats."
    else:
        said = f"It {DOES[name]}.\n\n"
        said += "Fine-tuned from `base`, in its MLPs alone, on solved prompts of this skill beside the base's data."
    header = "---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: transformers\ntags: [weft, example]\n---\n"
    return f"{header}\n# {name}\n\n{said}\n\n{SHAPE}\n\n{training}\n"
