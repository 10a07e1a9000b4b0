"""Coverage-guided fuzzing of the parsers, by atheris: `make fuzz`, or `python tests/fuzz/run.py SECONDS [TARGET...]`.

Each target runs in a process of its own. A finding is left in `.fuzz/`; keep it in tests/fuzz/corpus/TARGET/, where the tests
replay it for ever.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parent.parent / ".fuzz"


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process until libFuzzer's arguments say that it is enough."""
    import atheris  # type: ignore[import-untyped, unused-ignore]

    sys.path.insert(0, str(HERE.parent))
    with atheris.instrument_imports(include=["weft.planner", "weft.errors", "pickle", "zipfile", "yaml"]):
        from fuzz import targets

    def one(data: bytes) -> None:
        targets.accepts(name, data)

    seeds = WORK / "seeds" / name
    seeds.mkdir(parents=True, exist_ok=True)
    (seeds / "valid").write_bytes(targets.TARGETS[name][1])
    atheris.Setup([sys.argv[0], *arguments, str(seeds), *map(str, sorted((HERE / "corpus").glob(name)))], one)
    atheris.Fuzz()


def main(seconds: int, names: list[str]) -> int:
    """Fuzz each target for so long; the number of targets with findings."""
    WORK.mkdir(exist_ok=True)
    failed = 0
    for name in names:
        options = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=3000", "-print_final_stats=1"]
        command = [sys.executable, __file__, "--one", name, *options, f"-artifact_prefix={WORK}/{name}-"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        stats = [line.split()[-1] for line in done.stdout.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: {stats[0] if stats else '?'} executions, {'a finding' if done.returncode else 'no finding'}", flush=True)
        if done.returncode:
            failed += 1
            print("\n".join(done.stdout.splitlines()[-40:]), flush=True)
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.path.insert(0, str(HERE.parent))
        from fuzz.targets import TARGETS

        sys.exit(main(int(sys.argv[1]), sys.argv[2:] or list(TARGETS)))
