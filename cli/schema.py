"""`weft schema`"""

from __future__ import annotations


def schema() -> None:
    """Print the JSON Schema of the config, for editors that check YAML."""
    import json

    from ..ops.registry import methods
    from ..planner.config import json_schema

    print(json.dumps(json_schema(list(methods())), indent=2))
