"""Every odd or bad input ends in a right result or in one of our own errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.campaign import Case, all_cases, outcome

CASES = list(all_cases())


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[f"{f}: {c.name}" for f, c in CASES])
def test_case(case: Case, tmp_path: Path) -> None:
    found = outcome(case, tmp_path)
    assert found.good, ascii(f"{found.kind}: {found.text}")  # names of files may hold any bytes


def test_names_are_unlike() -> None:
    names = [(family, case.name) for family, case in CASES]
    assert len(names) == len(set(names))
