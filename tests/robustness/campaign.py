"""Odd and bad inputs, one `Case` each, and what became of them: a right result, or one of our own errors.

A module ``cases_<family>.py`` beside this one has a list ``CASES``; `all_cases` gathers them, ``test_campaign.py``
tries each, and ``python -m tests.robustness.table`` prints the page docs/robustness.md.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from itk_nir.errors import ItkNirError


@dataclass(frozen=True)
class Case:
    """One odd or bad input.

    Attributes
    ----------
    name : str
        What is odd about it, in a few words; alone in its family.
    run : callable
        Takes an empty folder of its own and returns how far the result is from the truth, in voxels (or in the share
        of the intensity range, or 0.0 where the result was compared with ``==``), or raises.
    refused : str or None
        A regular expression that the message of our own error must match; None where the result must be right.
    within : float
        The largest error of a right result.
    warned : str or None
        A regular expression that one of the warnings must match; None where it does not matter.
    """

    name: str
    run: Callable[[Path], float]
    refused: str | None = None
    within: float = 1e-3
    warned: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes
    ----------
    kind : str
        ``"right"``, ``"refused"``, ``"wrong"``, ``"foreign exception"``, ``"partial files"`` or ``"not warned"``.
    text : str
        The error, the message, or the warning.
    """

    kind: str
    text: str

    @property
    def good(self) -> bool:
        """Whether that is what it should be."""
        return self.kind in ("right", "refused")


def outcome(case: Case, folder: Path) -> Outcome:
    """Try a case in an empty folder."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error = float(case.run(folder))
        except ItkNirError as refusal:
            text = str(refusal)
            left = [p.name for p in folder.rglob("*") if ".part" in p.name]
            if left:
                return Outcome("partial files", ", ".join(left))
            if case.refused is None:
                return Outcome("wrong", f"refused, and should not be: {text}")
            if "\n" in text or not re.search(case.refused, text):
                return Outcome("wrong", f"refused with another message: {text}")
            return Outcome("refused", text)
        except Exception as foreign:  # every other kind is what this looks for
            return Outcome("foreign exception", f"{type(foreign).__name__}: {foreign}")
    told = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    if case.refused is not None:
        return Outcome("wrong", f"accepted, and should be refused (error {error:.3g})")
    if not np.isfinite(error) or error > case.within:
        return Outcome("wrong", f"error {error:.3g}, allowed {case.within:.3g}; warnings: {told}")
    if case.warned is not None and not any(re.search(case.warned, t) for t in told):
        return Outcome("not warned", f"error {error:.3g}; warnings: {told}")
    said = next((t for t in told if case.warned is not None and re.search(case.warned, t)), "")
    return Outcome("right", f"error {error:.2g}" + (f"; warns: {said}" if said else ""))


def all_cases() -> Iterator[tuple[str, Case]]:
    """Every case with the name of its family."""
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        family = path.stem.removeprefix("cases_").replace("_", " ")
        for case in importlib.import_module(f"tests.robustness.{path.stem}").CASES:
            yield family, case
