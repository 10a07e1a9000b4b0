"""How time grows with a model's size, what a small budget costs, and how long planning takes for what no disk here could hold.

    python benchmarks/scaling.py FOLDER [--sizes 0.1B 0.85B 3B] [--budgets 256MiB 1GiB 8GiB] [--write docs/benchmarks.md]

Merges: ties of a base and one model, from memory where they fit, else from the disk. Plans: of a 405B-shaped model and of a
mixture of experts with 50,000 tensors, from headers alone, over files without contents. FOLDER gets the checkpoints, if they are
not there; what was made is removed with --remove.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import yaml
from bench_models import SIZES, make
from measure import MIB, machine, merge_with_weft, put_table, warm


def merges(folder: Path, sizes: list[str], budgets: list[str], remove: bool) -> str:
    """The table of merges."""
    lines = [
        "| size | parameters | --ram | time | of it merging | ns a parameter | read | beyond start-up | predicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        models = folder / size
        made = not models.exists()
        make(models, size, ("base", "a"))
        path, out = folder / f"ties-{size}.yaml", folder / "out"
        model = {"model": str(models / "a"), "parameters": {"weight": 0.5, "density": 0.5}}
        base = str(models / "base")
        path.write_text(yaml.safe_dump({"merge_method": "ties", "base_model": base, "models": [model], "dtype": "bfloat16"}))
        for budget in budgets:
            warm(models.glob("*/*.safetensors"))
            outcome = merge_with_weft(path, out, budget)
            count = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 2
            lines.append(
                f"| {size} | {count / 1e9:.2f} G | {budget} | {outcome.seconds:.1f} s | {outcome.merging:.1f} s "
                f"| {outcome.merging / count * 1e9:.1f} | {outcome.read / 1e9:.1f} GB "
                f"| {outcome.measured / MIB:.0f} MiB | {outcome.predicted / MIB:.0f} MiB |"
            )
            print(lines[-1], flush=True)
            shutil.rmtree(out)
        if made and remove:
            shutil.rmtree(models)
    return "\n".join(lines)


def hollow(folder: Path, layers: int, hidden: int, inner: int, vocabulary: int, kv: int, experts: int = 0) -> None:
    """A checkpoint whose tensors take no room: headers, and files that are long but hold nothing."""
    folder.mkdir(parents=True)
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [vocabulary, hidden]}
    for i in range(layers):
        head = f"model.layers.{i}."
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            shapes[f"{head}self_attn.{name}.weight"] = [rows, hidden]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{head}{name}.weight"] = [hidden]
        for prefix in [f"{head}mlp.experts.{e}." for e in range(experts)] or [f"{head}mlp."]:
            shapes[f"{prefix}gate_proj.weight"] = shapes[f"{prefix}up_proj.weight"] = [inner, hidden]
            shapes[f"{prefix}down_proj.weight"] = [hidden, inner]
    shapes |= {"model.norm.weight": [hidden], "lm_head.weight": [vocabulary, hidden]}
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_hidden_layers": layers, "vocab_size": vocabulary})
    )


SHAPES = {
    "405B-shaped, slerp": (126, 16384, 53248, 128256, 1024, 0),
    "mixture of 50,400 tensors, slerp": (96, 64, 32, 1000, 32, 173),
}


def plans(folder: Path) -> str:
    """The table of plans: whole commands."""
    lines = ["| plan | tensors | time | peak of the whole process |", "|---|---|---|---|"]
    for name, shape in SHAPES.items():
        place = folder / "hollow"
        shutil.rmtree(place, ignore_errors=True)
        for model in ("one", "two"):
            hollow(place / model, *shape)
        one, two = ({"model": str(place / model)} for model in ("one", "two"))
        config = place / "slerp.yaml"
        settings = {"merge_method": "slerp", "base_model": one["model"], "models": [one, two], "parameters": {"t": 0.5}}
        config.write_text(yaml.safe_dump(settings))
        begin = time.monotonic()
        code = "import sys, weft.cli.main as m; sys.argv = ['weft', 'plan', *sys.argv[1:]]; m.main()"
        command = [sys.executable, "-c", code, str(config), "--ram", "2GiB", "--json"]
        with (place / "plan.json").open("w") as file:
            subprocess.run(command, check=True, stdout=file)
        seconds = time.monotonic() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        tensors = json.loads((place / "plan.json").read_text())["tensors"]
        lines.append(f"| {name} | {tensors:,} | {seconds:.1f} s | {peak:.0f} MiB |")
        print(lines[-1], flush=True)
        shutil.rmtree(place)
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", nargs="*", default=["0.1B", "0.85B", "3B"], choices=list(SIZES))
    parser.add_argument("--budgets", nargs="*", default=["256MiB", "1GiB", "16GiB"])
    parser.add_argument("--remove", action="store_true", help="remove checkpoints that were made here, one size after the other")
    parser.add_argument("--write", type=Path, help="a Markdown file to put the tables into")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    planned = plans(given.folder)  # first: the system tells the largest child's memory only
    merged = merges(given.folder, given.sizes, given.budgets, given.remove)
    command = f"python benchmarks/scaling.py FOLDER --sizes {' '.join(given.sizes)} --budgets {' '.join(given.budgets)}"
    put_table(given.write, "scaling", f"{machine()}. `{command}`\n\n{merged}\n\n{planned}")


if __name__ == "__main__":
    main()
