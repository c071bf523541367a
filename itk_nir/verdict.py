"""Whether the evidence supports a registration: ``good``, ``doubtful`` or ``worse than the start``, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from itk_nir.engine.progress import LEAST_SHARED, NO_OVERLAP, Measures

Grade = Literal["good", "doubtful", "worse than the start"]

#: Shares of the metric and of mutual information that two maps may differ by before one counts as worse. A deformation
#: interpolates, which blurs the moving image and costs information wherever things belong.
TOLERANCE, INFORMATION_TOLERANCE = 0.005, 0.02

#: Difference in the mean overlap of labels, and in the mean distance of landmarks (voxels), that tells two maps apart.
LABEL_TOLERANCE, LANDMARK_TOLERANCE = 0.005, 0.25

#: Overlap below which a result is doubtful, and mutual information below which two images tell nothing of each other.
LEAST_OVERLAP, LEAST_INFORMATION = 0.4, 0.01

#: Mean inverse error, in voxels, above which a result is doubtful, and the share of folded voxels in percent.
MOST_INVERSE_ERROR, MOST_FOLDS = 0.5, 0.1


@dataclass(frozen=True)
class Verdict:
    """Whether the evidence supports a registration.

    Parameters
    ----------
    grade : {"good", "doubtful", "worse than the start"}
        In one word or four.
    reasons : tuple of str
        Why, one clause each; for ``good`` what is to be known all the same, mostly nothing.
    """

    grade: Grade
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.grade + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


def known(now: Measures, before: Measures) -> tuple[list[str], list[str]]:
    """What landmarks and labels say of one map beside another.

    Parameters
    ----------
    now, before : Measures
        Under either map.

    Returns
    -------
    better, worse : list of str
        With the figures; both empty without landmarks and labels, or where they tell no difference.
    """
    better, bad = list[str](), list[str]()
    for what, a, b, sign, tolerance in (
        ("the landmarks' mean distance in voxels", now.landmark_voxels, before.landmark_voxels, -1, LANDMARK_TOLERANCE),
        ("the labels' mean overlap", now.label_overlap, before.label_overlap, 1, LABEL_TOLERANCE),
    ):
        if a is not None and b is not None and abs(a - b) > tolerance:
            (better if sign * (a - b) > 0 else bad).append(f"{what} is {a:.3f}, before {b:.3f}")
    return better, bad


def worse(now: Measures, before: Measures, *, clearly: bool = True) -> list[str]:
    """The measures of the images by which one map is worse than another.

    Parameters
    ----------
    now, before : Measures
        Under either map; what the moving image does not cover counts as no match.
    clearly : bool
        By more than `TOLERANCE` and `INFORMATION_TOLERANCE`; else the least difference tells where both measures agree.

    Returns
    -------
    list of str
        With the figures.
    """
    if not now.images:
        return []
    found = [
        (name, a * now.overlap, b * before.overlap, tolerance)
        for name, a, b, tolerance in (
            ("the metric", now.metric, before.metric, TOLERANCE),
            ("mutual information", now.mutual_information, before.mutual_information, INFORMATION_TOLERANCE),
        )
    ]
    if before.overlap < NO_OVERLAP < now.overlap:  # a metric that may be below zero is above it where there is nothing
        del found[0]
    least = not clearly and all(end < start for _, end, start, _ in found)
    return [
        f"{name} is {end:.3f}, before {start:.3f}"
        for name, end, start, tolerance in found
        if end < start - (0.0 if least else tolerance) * abs(start)
    ]


def against_deformation(
    linear: Measures, end: Measures, *, gained: bool, little_evidence: float | None
) -> tuple[list[str], list[str]] | None:
    """What speaks against a deformation, where it is to be given up.

    Parameters
    ----------
    linear, end : Measures
        Without it and with it.
    gained : bool
        Whether the metric gained enough by it.
    little_evidence : float or None
        The metric below which chance alone may have raised it; None where landmarks, labels or the contrast tell that
        it has not.

    Returns
    -------
    doubts, remarks : list of str
        A sentence in one of them; None in place of both where it is kept.
    """
    better, against = known(end, linear)
    if better and not against:
        return None
    chance = little_evidence is not None and end.metric < little_evidence
    if gained and not chance and not against and not worse(end, linear, clearly=False):
        return None
    found = [*against, *worse(end, linear)]
    if chance:
        found.append(f"the metric is {end.metric:.2f}, which chance reaches ({little_evidence:.2f})")
    if found:
        return [f"the deformation was given up: with it, {' and '.join(found)}"], []
    much = "next to nothing" if end.metric > linear.metric else "nothing"
    return [], [f"a deformation would have gained {much}: the result is the linear map alone"]


def judge(
    start: Measures, end: Measures, *, little_evidence: float, folded_percent: float | None,
    inverse_error: float | None, doubts: tuple[str, ...] = (), remarks: tuple[str, ...] = (),
    shared: Sequence[Measures] = (),
) -> Verdict:  # fmt: skip
    """Whether the evidence supports a map.

    Parameters
    ----------
    start, end : Measures
        Under the map that the registration began with, and under its result.
    little_evidence : float
        The metric below which it says little about where things belong.
    folded_percent : float or None
        Share of folded voxels.
    inverse_error : float or None
        Mean inverse error, voxels of the fixed image.
    doubts : tuple of str
        What the stages found.
    remarks : tuple of str
        What is to be known where all is well.
    shared : sequence of Measures, optional
        Of `start` and `end` over the positions that both have, which decide where `end` lost no more than half of the
        positions: a turn takes the corners of an image out of the other one, which is no sign of a wrong map.

    Returns
    -------
    Verdict
    """
    found = worse(end, start)
    if shared and end.overlap > LEAST_SHARED * start.overlap:
        before, now = (replace(m, overlap=1.0) for m in shared)
        # A metric that cannot exceed 1 may have less to gain than these corners; mutual information has no such limit.
        informed = end.mutual_information * end.overlap >= start.mutual_information * start.overlap
        found = [] if informed and not worse(now, before) else found
    better, against = known(end, start)
    if (found and not better) or (against and (found or not end.images)):
        return Verdict("worse than the start", (*against, *found))
    reasons = [*doubts, *against, *(f"{what}, although {' and '.join(better)}" for what in found)]
    if end.images and end.metric < little_evidence:
        reasons.append(
            f"the images have little in common (metric {end.metric:.2f}, little evidence below {little_evidence:.2f})"
        )
    elif end.images and end.mutual_information < LEAST_INFORMATION:
        reasons.append(f"the images tell next to nothing of each other (NMI {end.mutual_information:.3f})")
    # Empty surroundings that the moving image does not have are no part that is missing.
    if max(end.overlap, end.object_overlap or 0.0) < LEAST_OVERLAP:
        reasons.append(f"the moving image covers {100 * end.overlap:.0f} % of what counts of the fixed image")
    if folded_percent is not None and folded_percent > MOST_FOLDS:
        reasons.append(f"{folded_percent:.2f} % of the voxels are folded")
    if inverse_error is not None and inverse_error > MOST_INVERSE_ERROR:
        reasons.append(f"the inverse is {inverse_error:.2f} voxels off on average")
    return Verdict("doubtful", tuple(reasons)) if reasons else Verdict("good", remarks)
