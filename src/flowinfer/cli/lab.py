"""flowinfer lab: says where the lab's generators and training went."""

from __future__ import annotations

from typing import Annotated

import typer

from flowinfer.errors import UsageError


def command(arguments: Annotated[list[str] | None, typer.Argument(metavar="make|train|eval")] = None) -> None:
    """Make items, train and measure the lab's small models: moved out of the package."""
    wanted = " ".join(arguments or ["make"])
    raise UsageError(
        "the lab's generators and training are no longer part of the package; its three models and items are",
        help=f"in a checkout of flowinfer: python -m lab {wanted}",
    )
