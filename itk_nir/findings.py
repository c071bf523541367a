"""What was found odd about an input: one sentence, the numbers behind it, what to do, and how bad it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: From bad to harmless: what stops a registration, what a user should look at, what is only told.
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something odd about an image, a mask, a transform, or about two of them together.

    Parameters
    ----------
    severity : {"error", "warning", "note"}
        Whether it stops the registration, should be looked at, or is only told.
    text : str
        What it is about and what was found, one sentence: ``"moving image m.nii.gz: is constant (every voxel is 0)"``.
    remedy : str
        What to do about it; empty where there is nothing to do.
    values : dict
        The numbers (or words) behind it, by name.

    Examples
    --------
    >>> print(warning("fixed image f.nii.gz: has 3 voxels along z", "expect little from that direction", voxels=3))
    fixed image f.nii.gz: has 3 voxels along z; expect little from that direction
    """

    severity: str
    text: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def error(text: str, remedy: str = "", **values: Any) -> Finding:
    """A finding that stops a registration.

    Parameters
    ----------
    text, remedy, **values
        As of `Finding`.

    Returns
    -------
    Finding
    """
    return Finding("error", text, remedy, values)


def warning(text: str, remedy: str = "", **values: Any) -> Finding:
    """A finding that a user should look at.

    Parameters
    ----------
    text, remedy, **values
        As of `Finding`.

    Returns
    -------
    Finding
    """
    return Finding("warning", text, remedy, values)


def note(text: str, remedy: str = "", **values: Any) -> Finding:
    """A finding that is only told.

    Parameters
    ----------
    text, remedy, **values
        As of `Finding`.

    Returns
    -------
    Finding
    """
    return Finding("note", text, remedy, values)


def texts(findings: Iterable[Finding], severity: str = "warning") -> tuple[str, ...]:
    """The lines of the findings of one severity.

    Parameters
    ----------
    findings : iterable of Finding
        Any.
    severity : str
        One of `SEVERITIES`.

    Returns
    -------
    tuple of str
    """
    return tuple(str(f) for f in findings if f.severity == severity)
