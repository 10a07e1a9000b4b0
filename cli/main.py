"""The `weft` command. Each subcommand is one file of this package; what is heavy is imported when a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .. import __version__
from .diff import diff
from .explain import explain
from .inspect import inspect
from .methods import methods
from .plan import plan
from .run import run
from .schema import schema
from .status import status
from .terminal import one_line
from .verify import verify

app = typer.Typer(
    name="weft",
    help="Merge language-model checkpoints in the memory you allow. Takes mergekit's YAML configs.",
    epilog="Example: weft run configs/slerp.yaml ./merged --ram 4GiB",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(epilog="Example: weft plan configs/ties.yaml ./merged --ram 2GiB")(plan)
app.command(epilog="Example: weft run configs/ties.yaml ./merged --ram 2GiB")(run)
app.command(epilog="Example: weft explain configs/slerp.yaml layers.7.mlp.up_proj")(explain)
app.command(epilog="Example: weft inspect Qwen/Qwen2.5-0.5B")(inspect)
app.command(epilog="Example: weft diff ./base ./merged --ram 512MiB")(diff)
app.command(epilog="Example: weft verify ./merged --repair")(verify)
app.command(epilog="Example: weft status ./merged")(status)
app.command(epilog="Example: weft methods")(methods)
app.command(epilog="Example: weft schema > weft.schema.json")(schema)


def _version(value: bool) -> None:
    if value:
        print(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Merge language-model checkpoints in the memory you allow."""


def main() -> None:
    """Run the command line; errors meant for people are one line on stderr and an exit code."""
    from ..errors import WeftError, check_platform

    try:
        check_platform()
        app(prog_name="weft")
    except WeftError as error:
        print(f"weft: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("weft: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
