"""Print what became of every odd or bad input as the page docs/robustness.md.

python -m tests.robustness.table > docs/robustness.md
"""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path

from tests.robustness.campaign import Outcome, all_cases, outcome

#: Characters of a message that are shown.
LONGEST = 300

HEAD = """# Odd and bad inputs

Every row is an input that something is odd about, tried by `pytest tests/robustness`, and what became of it: a right
result (with its error, in voxels or as a share of the intensity range), or an error of this package that says what was
got, what was wanted and what to do. This page is printed by `python -m tests.robustness.table`.
"""


def main() -> int:
    """Try all cases and print the page; 1 if any ended otherwise."""
    found: dict[str, list[tuple[str, Outcome]]] = {}
    for family, case in all_cases():
        with tempfile.TemporaryDirectory() as folder:
            with redirect_stdout(io.StringIO()):  # what commands say
                result = outcome(case, Path(folder))
            text = re.sub(re.escape(folder) + "/?", "", result.text)
        found.setdefault(family, []).append((case.name, Outcome(result.kind, text)))
    kinds = Counter(o.kind for rows in found.values() for _, o in rows)
    print(HEAD)
    print(f"{sum(kinds.values())} inputs: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) + ".")
    for family, rows in found.items():
        print(f"\n## {family.capitalize()}\n\n| input | outcome | |\n|--|--|--|")
        for name, result in rows:
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in result.text).replace("|", "\\|")
            text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
            print(f"| {name} | {result.kind} | {text} |")
    return int(any(not o.good for rows in found.values() for _, o in rows))


if __name__ == "__main__":
    raise SystemExit(main())
