"""Merge the experts with every config of configs/, ask each result, and print the scores as a table.

    python examples/experts/table.py                        # everything
    python examples/experts/table.py ties moe_hidden        # the models, and the merges that are named
    python examples/experts/table.py --write                # also put the table into README.md and docs/merging-works.md

Run it in the repository's root, which the configs' paths start from. Merges go to a folder that is removed afterwards, or to
`--out`, where a merge that is complete is not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from evaluate import Scores, evaluate, load, routes
from skills import SKILLS

import weft

HERE = Path(__file__).parent
MODELS = ("base", "sort", "flip", "plus")
MERGES = (
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_ties",
    "breadcrumbs",
    "model_stock",
    "passthrough",
    "moe_hidden",
    "moe_cheap_embed",
    "moe_random",
)
PAGES = (Path("README.md"), Path("docs/merging-works.md"))
BEGIN, END = "<!-- made by `make experts` -->", "<!-- end of what `make experts` made -->"


@dataclass(frozen=True, slots=True)
class Row:
    """A model, what it scored, and where it sent each skill's tokens, if it is a mixture of experts."""

    name: str
    scores: Scores
    routes: Mapping[str, Sequence[float]]


def measure(names: Sequence[str], folder: Path, prompts: int) -> Iterator[Row]:
    """Score the base, the experts, and the merges that are named, which are made in the folder."""
    for name in (*MODELS, *names):
        path = HERE / "models" / name
        if name not in MODELS:
            path = folder / name
            weft.run(weft.plan(HERE / "configs" / f"{name}.yaml"), path)
        model, tokenizer = load(path)
        yield Row(name, evaluate(model, tokenizer, prompts), routes(model, tokenizer))


def markdown(rows: Sequence[Row]) -> str:
    """The table, and a second one for what the mixtures' routers do."""
    skills = [skill.name for skill in SKILLS]
    best = {skill: next(row.scores.exact[skill] for row in rows if row.name == skill) for skill in skills}
    lines = [
        f"| model | {' | '.join(skills)} | least share of an expert's skill | text, perplexity |",
        "|---|" + "---:|" * (len(skills) + 2),
    ]
    for row in rows:
        exact = row.scores.exact
        least = min(exact[skill] / best[skill] for skill in skills)
        label = f"expert: {row.name}" if row.name in skills else row.name if row.name == "base" else f"`{row.name}`"
        cells = [f"{100 * exact[skill]:.0f} %" for skill in skills]
        lines.append(f"| {label} | {' | '.join(cells)} | {100 * least:.0f} % | {row.scores.perplexity:.2f} |")
    mixtures = [row for row in rows if row.routes]
    if mixtures:
        lines += ["", f"| tokens go to their own expert | {' | '.join(skills)} |", "|---|" + "---:|" * len(skills)]
        for row in mixtures:
            own = [f"{100 * row.routes[skill][number]:.0f} %" for number, skill in enumerate(skills)]
            lines.append(f"| `{row.name}` | {' | '.join(own)} |")
    return "\n".join(lines) + "\n"


def show(row: Row) -> str:
    """A row as it is done, for somebody who watches."""
    exact = "  ".join(f"{name} {100 * share:3.0f} %" for name, share in row.scores.exact.items())
    return f"{row.name:16} {exact}  perplexity {row.scores.perplexity:.2f}"


def write(table: str) -> None:
    """Put the table between its marks in the pages that show it."""
    for page in PAGES:
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{page}: no place for the table: it goes between {BEGIN} and {END}")
        page.write_text(f"{before}{begin}\n\n{table}\n{end}{after}")


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description="merge the example's experts and score the results")
    parser.add_argument("merges", nargs="*", default=MERGES, metavar="MERGE", help=f"default: all of {', '.join(MERGES)}")
    parser.add_argument("--out", type=Path, help="keep the merges in this folder")
    parser.add_argument("--prompts", type=int, default=250, help="held-out prompts of each skill (250)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md and docs/merging-works.md")
    arguments = parser.parse_args()
    if unknown := set(arguments.merges) - set(MERGES):
        parser.error(f"no such merge: {', '.join(sorted(unknown))}")
    if arguments.write and tuple(arguments.merges) != MERGES:
        parser.error("--write writes the whole table: name no merges")
    torch.set_num_threads(1)  # the models are too small to share
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(arguments.merges, arguments.out or Path(folder), arguments.prompts):
            print(show(row), flush=True)
            rows.append(row)
    table = markdown(rows)
    print(f"\n{table}", end="")
    if arguments.write:
        write(table)


if __name__ == "__main__":
    main()
