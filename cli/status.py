"""`weft status`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .terminal import say


def status(
    out: Annotated[Path, typer.Argument(help="The output folder of a `weft run`, from another terminal.")],
    json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Say how far a running or interrupted merge is."""
    from ..engine.status import status as look
    from ..planner.sizes import format_size

    found = look(out)
    if json:
        import json as serializer

        print(serializer.dumps(found.to_dict(), indent=2))
        return
    line = f"{out}: {_WORDS[found.state]}"
    if found.tensors is not None and found.nbytes is not None and found.nbytes_done is not None:
        line += f": {found.tensors_done} of {found.tensors} tensors, "
        line += f"{format_size(found.nbytes_done)} of {format_size(found.nbytes)}"
        if found.rate:
            left = (found.nbytes - found.nbytes_done) / found.rate
            line += f", {format_size(found.rate)}/s, {left:.0f} s left"
    if found.earlier:
        line += "; the earlier result stays valid until then"
    say(line)


_WORDS = {
    "finished": "finished",
    "running": "running",
    "starting": "running, nothing written yet",
    "interrupted": "interrupted: the same `weft run` continues",
    "publishing": "interrupted while the files were put in place: the same `weft run` finishes that",
}
