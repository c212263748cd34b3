"""`ray-deltastn schema`: print the JSON schema of a YAML file, for editors."""

from __future__ import annotations

import argparse
import json
import sys

from ray_deltastn.cli.reading import CLASSES
from ray_deltastn.tune.schema import schema


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # JSON has escapes for the characters that the encoding of the output lacks.
    escaped = not str(sys.stdout.encoding).lower().startswith("utf")
    print(json.dumps(schema(CLASSES[options.kind]), indent=1, ensure_ascii=escaped))
