"""Quality of the bundled model: `python bench/quality.py [--json [FILE]]`.

Runs `unspool demo` and keeps its results beside the facts of the machine and the commit; with
`--json` the plot of the README is drawn anew as well.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import HERE, facts, parser, write

PLOT = HERE.parent / "docs" / "demo.png"


def main() -> None:
    """Prints what the demo prints; with --json writes results and plot."""
    options = parser(__doc__, "quality.json").parse_args()
    found = facts()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = "from unspool.cli.main import run; run()"
        subprocess.run([sys.executable, "-c", command, "demo", "-o", out], check=True)
        results = json.loads((out / "results.json").read_text())
        if options.json:
            shutil.copyfile(out / "kl-over-bits.png", PLOT)
    kept = {key: results[key] for key in ("convention", "text", "seconds")}
    write(options.json, {**found, **kept}, results["formats"])


if __name__ == "__main__":
    main()
