"""`windtunnel schema`: the JSON Schema of scenarios."""

from pathlib import Path
from typing import Annotated

import typer

from simcore.commands.options import AsJson
from simcore.commands.output import note, show_json


def schema(
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here.")] = None,
    _as_json: AsJson = True,  # there is nothing but JSON
) -> None:
    """JSON Schema of a scenario, so that an editor completes and checks it as you type."""
    import json

    from costmodels.files import write_atomically
    from simcore.schema import scenario_schema

    made = scenario_schema()
    if output is None:
        show_json(made)
        return
    write_atomically(output, json.dumps(made, indent=2) + "\n")
    note(f"wrote {output}; in a scenario's first line:  # yaml-language-server: $schema={output}")
