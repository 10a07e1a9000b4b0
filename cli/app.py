"""The `weft` command. Each subcommand is one file of this package; what is heavy is imported when a command runs."""

from __future__ import annotations

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
from .terminal import say
from .verify import verify

app = typer.Typer(
    name="weft",
    help="Merge language-model checkpoints in the memory you allow. Takes mergekit's YAML configs.",
    epilog="Example: weft run configs/slerp.yaml ./merged --ram 4GiB",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes leave no room for words in 80 columns
)
app.command(
    short_help="Show what a merge will do and cost, from headers alone.",
    epilog="Example: weft plan configs/ties.yaml ./merged --ram 2GiB",
)(plan)
app.command(
    short_help="Merge; after a stop the same command continues.", epilog="Example: weft run configs/ties.yaml ./merged --ram 2GiB"
)(run)
app.command(
    short_help="Say where one tensor of a merge comes from.",
    epilog="Example: weft explain configs/slerp.yaml layers.7.mlp.up_proj",
)(explain)
app.command(short_help="Say what a model is, without its weights.", epilog="Example: weft inspect Qwen/Qwen2.5-0.5B")(inspect)
app.command(short_help="Show how two models differ.", epilog="Example: weft diff ./base ./merged --ram 512MiB")(diff)
app.command(short_help="Check a result against its checksums, and repair it.", epilog="Example: weft verify ./merged --repair")(
    verify
)
app.command(short_help="Say how far a running or stopped merge is.", epilog="Example: weft status ./merged")(status)
app.command(short_help="List the merge methods and their parameters.", epilog="Example: weft methods")(methods)
app.command(short_help="Print the JSON Schema of the config, for editors.", epilog="Example: weft schema > weft.schema.json")(
    schema
)


def _version(value: bool) -> None:
    if value:
        say(f"weft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Merge language-model checkpoints in the memory you allow."""
