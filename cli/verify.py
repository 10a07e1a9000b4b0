"""`weft verify`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .terminal import say

if TYPE_CHECKING:
    from ..engine.verify import Verdict


def verify(
    out: Annotated[Path, typer.Argument(help="A finished result of `weft run`.")],
    repair: Annotated[bool, typer.Option("--repair", help="Make what is damaged again; the inputs must be unchanged.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict for programs.")] = False,
    ram: o.Ram = None,
    vram: o.Vram = None,
    device: o.Device = None,
    workers: o.Workers = None,
    quiet: o.Quiet = False,
) -> None:
    """Read a result again and compare every tensor with the checksum it was written with. Exit code 2: something is damaged."""
    from ..engine.verify import verify as examine

    if repair:
        from ..engine.repair import end_swap

        end_swap(out)
    verdict = examine(out)
    if json:
        import json as serializer

        print(serializer.dumps(verdict.to_dict(), indent=2))
    elif not quiet:
        _print(verdict, out)
    if not verdict.damage:
        return
    if not repair:
        if not (quiet or json):
            say("`weft verify --repair` repairs what is damaged")
        raise typer.Exit(2)
    _repair(out, verdict, o.Wishes(ram, vram, device, workers, None, None, None), quiet=quiet or json)


def _print(verdict: Verdict, out: Path) -> None:
    from ..planner.sizes import format_size

    for damage in verdict.damage:
        say(f"damaged  {damage.text()}")
    for name in verdict.edited:
        say(f"differs  {name}: edited, or damaged: delete it, and --repair writes it again")
    found = f"damage in {len(verdict.damage)} places" if verdict.damage else "as written"
    say(f"{out}: {verdict.checked} tensors, {format_size(verdict.nbytes)}: {found}")


def _repair(out: Path, verdict: Verdict, wishes: o.Wishes, *, quiet: bool) -> None:
    from ..engine.repair import plan_again, repair
    from ..engine.verify import open_result
    from .progress import progress

    manifest = open_result(out)
    plan = plan_again(out, manifest, o.choose_options(wishes, manifest.settings, manifest.commits))
    with progress(quiet=quiet, verbose=False) as observer:
        summary = repair(plan, out, verdict.tensors, observer, quiet=quiet)
    if not quiet:
        say(f"repaired {out}: {summary.computed} tensors made again, {summary.reused} as they were")
