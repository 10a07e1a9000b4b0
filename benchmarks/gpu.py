"""A GPU's tables: how fast tiles stream through it against how fast its bus copies, and what it holds of its memory.

    python benchmarks/gpu.py FOLDER [--size 8B] [--layers 6] [--vram 2GiB] [--ram 8GiB] [--runs 3] [--write docs/benchmarks.md]

FOLDER should be in memory (/dev/shm), or the disk is measured; it gets checkpoints of that size's shapes with so many layers.
For linear, slerp, ties and dare_ties it says the rate at which bytes went in and out while tiles ran, as a share of what pinned
copies of 256 MiB reach alone; with --check the result is compared with the CPU's, element by element.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import bench_models
import torch
import yaml
from measure import MIB, machine, merge_with_weft, put_table, warm
from safetensors import safe_open
from versus import configs, inputs


def copy_rate() -> float:
    """Bytes a second from pinned memory to the device, the best of several copies."""
    host = torch.empty(256 * MIB, dtype=torch.uint8, pin_memory=True)
    there = torch.empty_like(host, device="cuda")
    best = 0.0
    for _ in range(10):
        torch.cuda.synchronize()
        begin = time.monotonic()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, host.numel() / (time.monotonic() - begin))
    return best


def unlike(one: Path, other: Path) -> tuple[int, float]:
    """How many elements of two results differ, and by how much at most, as a share of the tensor's largest."""
    count, most = 0, 0.0
    for path in sorted(one.glob("*.safetensors")):
        with safe_open(path, "pt") as a, safe_open(other / path.name, "pt") as b:
            for name in a.keys():  # noqa: SIM118
                x, y = a.get_tensor(name).float(), b.get_tensor(name).float()
                count += int((x != y).sum())
                most = max(most, float((x - y).abs().max() / x.abs().max().clamp_min(1e-30)))
    return count, most


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="8B", choices=list(bench_models.SIZES))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vram", default="2GiB")
    parser.add_argument("--ram", default="8GiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="compare with the CPU's results")
    parser.add_argument("--write", type=Path, help="a Markdown file to put the table into")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here")
    hidden, inner, _, vocabulary, kv = bench_models.SIZES[given.size]
    bench_models.SIZES["cut"] = hidden, inner, given.layers, vocabulary, kv
    models, out = given.folder / f"{given.size}-{given.layers}", given.folder / "out"
    bench_models.make(models, "cut")
    bus = copy_rate()
    columns = ["merge", "whole", "merging", "GB/s in", "of the bus", "vram measured", "predicted", "beyond start-up", "predicted"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, config in configs(models).items():
        if name in ("passthrough", "breadcrumbs"):
            continue
        path = given.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "dtype": "bfloat16"}))
        files = [file for model in inputs(config) for file in Path(model).glob("*.safetensors")]
        outcomes = []
        for _ in range(given.runs):
            warm(files)
            outcomes.append(merge_with_weft(path, out, given.ram, device="cuda", vram=given.vram))
        merging = statistics.median(o.merging for o in outcomes)
        rate = outcomes[0].read / merging
        cells = [
            name,
            f"{statistics.median(o.seconds for o in outcomes):.1f} s",
            f"{merging:.2f} s",
            f"{rate / 1e9:.1f}",
            f"{100 * rate / bus:.0f}%",
            f"{max(o.device_measured for o in outcomes) / MIB:.0f} MiB",
            f"{outcomes[0].device_predicted / MIB:.0f} MiB",
            f"{max(o.measured for o in outcomes) / MIB:.0f} MiB",
            f"{outcomes[0].predicted / MIB:.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
        if given.check:
            kept = out.rename(given.folder / "on-device")
            merge_with_weft(path, out, given.ram)
            count, most = unlike(kept, out)
            print(f"{name} differs from the CPU's result in {count} elements, by {most:.1e} at most", flush=True)
            for file in kept.iterdir():
                file.unlink()
            kept.rmdir()
    command = f"python benchmarks/gpu.py FOLDER --size {given.size} --layers {given.layers} --vram {given.vram} --ram {given.ram}"
    head = f"{torch.cuda.get_device_name()}, bus {bus / 1e9:.1f} GB/s; {machine()}. `{command}`"
    put_table(given.write, "gpu", head + "\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
