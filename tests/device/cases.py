"""Registrations on the pretend device, each beside the same one on the CPU; a process of its own runs them.

``python -m tests.device.cases GROUP`` prints what each case found as a line of JSON.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

#: Few iterations: a step is enough to see where tensors lie.
FEW = {"preset": "fast", "iterations": (2, 1, 0), "search": "never"}
STILL = {"linear": "none"}
#: Expert settings of a linear stage that is over soon.
BRIEF = {
    "linear_size": (12, 20), "linear_start_iterations": 1, "linear_iterations": (4, 2), "linear_fine_iterations": 2,
}  # fmt: skip


def groups() -> dict[str, dict[str, Callable[[Any], dict[str, Any]]]]:
    """Group → case → function of the pretend module. Together they touch every part; each has several at once.

    There are as few groups as a machine of two cores has use for: each is a process of its own, which loads all anew.
    """
    return {
        "metrics, 3D": {
            "lncc, nmi, masks": _both(channels=2, metric=("lncc", "nmi"), masks=True, **STILL),
            "mse, mind, lesions": _both(channels=2, metric=("mse", "mind"), lesions=True, **STILL),
            "ncc, mi": _both(channels=2, metric=("ncc", "mi"), **STILL),
            "auto, a start": _both(metric="auto", start=True, **STILL),
            "op cases": _op_cases,
            "planted": _planted,
            "3D, lncc, lesions": _both(size=(16, 20, 14), iterations=(1, 1, 0), lesions=True, **STILL),
            "3D, mind, affine": _both(
                size=(14, 16, 12), metric="mind", iterations=(1, 0, 0), linear="affine", brief=True, start=True
            ),
            "waits": _waits((16, 20, 14)),
            "waits, 2D": _waits(
                (32, 40), metric="nmi + mind", restrict=(1, 0), masks=True, labels=True, landmarks=True, symmetric=True
            ),
        },
        "linear, fields": {
            name: _both(linear=name, deformable=False, brief=True, start=True) for name in ("translation", "similarity")
        }
        | {
            "affine, then deformable": _both(linear="affine", brief=True),
            "nmi, landmarks": _both(
                linear="rigid", deformable=False, linear_metric="nmi", brief=True, start=True, landmarks=True
            ),
            "paper": _both(preset="paper", **STILL),
            "symmetric, diffusion": _both(symmetric=True, regulariser="diffusion", **STILL),
            "displacement, cancelled": _both(transform_model="displacement", cancel=2, **STILL),
            "restrict, labels, regions, landmarks": _both(
                restrict=(1, 0), labels=True, regions=True, landmarks=True, **STILL
            ),
            "search": _both(search="always", **STILL),
            "search, if a part was missed": _both(search="auto", iterations=(4, 2, 0), **STILL),
            "network, reloaded": _reloaded,
        },
    }


def _arguments(phantom: Any, given: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """What `register` is given, besides the device."""
    import numpy as np

    import itk_nir

    fixed, moving = (phantom.fixed, phantom.geometry), (phantom.moving, phantom.moving_geometry)
    options = {**FEW, **given}
    grid, brain = phantom.geometry, (phantom.fixed_labels > 0).astype(np.float32)
    if options.pop("channels", 1) == 2:
        fixed, moving = [fixed, (200 - phantom.fixed, grid)], [moving, (200 - phantom.moving, grid)]
    if options.pop("masks", False):
        options |= {"fixed_mask": (brain, grid), "moving_mask": ((phantom.moving_labels > 0).astype(np.float32), grid)}
    lesion = np.zeros_like(brain)
    lesion[tuple(slice(n // 2, n // 2 + 5) for n in brain.shape)] = 1
    if options.pop("lesions", False):
        options |= {"fixed_lesion": (lesion, grid), "moving_lesion": (lesion[::-1].copy(), grid)}
    if options.pop("regions", False):
        options |= {"rigid_regions": (lesion, grid), "volume_regions": (lesion[:, ::-1].copy(), grid)}
    if options.pop("labels", False):
        options |= {
            "fixed_labels": (phantom.fixed_labels, grid), "moving_labels": (phantom.moving_labels, grid),
        }  # fmt: skip
    if options.pop("landmarks", False):
        points = grid.corners() * 0.4
        options |= {"fixed_landmarks": points, "moving_landmarks": points + 1.5}
    if options.pop("start", False):
        turn = np.eye(grid.dimension + 1)
        turn[0, -1] = 4.0
        options["initial_transform"] = turn
    cancel = options.pop("cancel", None)
    if cancel:
        seen: list[Any] = []
        options["callback"] = lambda p: (seen.append(p), len(seen) >= cancel)[1]
    expert = options.pop("expert", {}) | (BRIEF if options.pop("brief", False) else {})
    if options["preset"] == "paper":
        options = {k: v for k, v in options.items() if k not in ("iterations", "search")}
        phases = itk_nir.make_settings("paper").deformable.phases
        expert["phases"] = tuple(replace(phase, iterations=2) for phase in phases)
    if expert:
        kept = {k: options.pop(k) for k in list(options) if k in ("iterations", "search", "metric", "linear_metric")}
        options["preset"] = itk_nir.make_settings(options["preset"], **kept, **expert)
    return fixed, moving, options


def _phantom(size: tuple[int, ...]) -> Any:
    from itk_nir.phantom import brain_phantom

    return brain_phantom(len(size), size)


def _register(phantom: Any, device: str, given: dict[str, Any]) -> Any:
    import itk_nir

    fixed, moving, options = _arguments(phantom, given)
    return itk_nir.register(fixed, moving, device=device, threads=1, seed=3, **options)


def _both(size: tuple[int, ...] = (32, 40), **given: Any) -> Callable[[Any], dict[str, Any]]:
    """A case: whether the pretend device and the CPU give the same losses and the same bits of the transform."""

    def case(pretend: Any) -> dict[str, Any]:
        phantom = _phantom(size)
        cpu = _register(phantom, "cpu", given)
        with pretend.Pretend() as mode:
            there = _register(phantom, "pretend", given)
        return {"kernels": sum(mode.kernels.values()), **_same(cpu, there)}

    return case


def _same(a: Any, b: Any, *, network: bool = False) -> dict[str, bool]:
    """Whether two results are the same: to the bit, but where the device computes in another way."""
    import numpy as np

    def apart(name: str) -> float:
        one, other = getattr(a, name), getattr(b, name)
        return 0.0 if one is None else float(np.abs(one.vectors - other.vectors).max())

    traces = [np.array([(t.loss, t.metric) for t in r.report.trace]) for r in (a, b)]
    said = [(r.report.labels, r.report.stop) for r in (a, b)]
    similarity = [-1.0 if r.report.similarity is None else r.report.similarity for r in (a, b)]
    distances = [() if r.report.landmarks is None else r.report.landmarks.after for r in (a, b)]
    # Histograms are sums of whole numbers on a GPU, and torch takes another way through the layers of a network.
    metrics = a.report.settings["deformable"]["metric"], a.report.settings["linear"]["linear_metric"]
    histogram = re.search(r"\bn?mi\b", str(metrics)) is not None
    least = 0.05 if network else 1e-4 if histogram else 0.0
    return {
        "losses": traces[0].shape == traces[1].shape
        and (len(traces[0]) > 0 or a.displacement is None)
        and bool((np.abs(traces[0] - traces[1]) <= (1e-4 if network else 0.0)).all()),
        "linear": bool(np.abs(a.affine.matrix - b.affine.matrix).max() <= min(least, 1e-4)),
        "transform": apart("displacement") <= least,
        # On the CPU the search for the inverse ends where it is exact to rounding; a GPU would be waited for.
        "inverse": apart("inverse_displacement") <= least + 1e-3,
        "report": network
        or (
            repr(said[0]) == repr(said[1])
            and np.allclose(*similarity, rtol=0, atol=least)
            and np.allclose(*distances, rtol=0, atol=least)
        ),
    }


def _op_cases(pretend: Any) -> dict[str, Any]:
    """Every op of the self-test, value and gradient."""
    import torch

    from itk_nir.engine.op_cases import distance, op_cases, value_and_gradients

    found = {}
    for case in op_cases((1, 14, 17)):
        here = value_and_gradients(case, torch.device("cpu"), torch.float32)
        with pretend.Pretend():
            there = [x.cpu() for x in value_and_gradients(case, pretend.DEVICE, torch.float32)]
        # Histograms are sums of whole numbers on a GPU; the search for an inverse ends on the CPU where it is exact to
        # rounding, for which a GPU would be waited for.
        most = 1e-6 if case.name.startswith(("mutual information", "invert", "inverse")) else 0
        found[case.name] = all(distance(a, b) <= most for a, b in zip(here, there, strict=True))
    return found


def _reloaded(pretend: Any) -> dict[str, Any]:
    """A network trained on the device, and the field from its file evaluated there."""
    import numpy as np

    import itk_nir

    given = {"expert": {"network_above": 0.0}, "iterations": (8, 1, 0), **STILL}
    phantom = _phantom((32, 40))
    result = _register(phantom, "cpu", given)
    with pretend.Pretend():
        trained = _same(result, _register(phantom, "pretend", given), network=True)
    points = phantom.geometry.grid().reshape(-1, 2)[::7]
    with tempfile.TemporaryDirectory() as folder:
        path = result.save_field(Path(folder) / "field.safetensors")
        here = itk_nir.load_field(path)
        with pretend.Pretend() as mode:
            there = itk_nir.load_field(path, device="pretend")
            found = there.displacement(points), there.displacement(points, inverse=True)
            sampled = itk_nir.RegistrationResult.from_field(
                there, (phantom.fixed, phantom.geometry), (phantom.moving, phantom.geometry)
            )
    wanted = here.displacement(points), here.displacement(points, inverse=True)
    return {
        "kernels": sum(mode.kernels.values()),
        "network": len(result.field.trained.networks) > 0,
        **trained,
        "points": all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True)),
        "sampled": result.displacement.vectors.tobytes() == sampled.displacement.vectors.tobytes(),
    }


def _planted(pretend: Any) -> dict[str, Any]:
    """A tensor that is left on the CPU is found."""
    from itk_nir.engine.ops import reference

    plain = reference.identity
    reference.identity = lambda shape, like: plain(shape, like).cpu()
    try:
        with pretend.Pretend():
            _register(_phantom((32, 40)), "pretend", STILL)
    except RuntimeError as error:
        return {"found": "found at least two devices" in str(error)}
    finally:
        reference.identity = plain
    return {"found": False}


class _Enough(Exception):
    """The iterations that are looked at are over."""


def _waits(size: tuple[int, ...], **given: Any) -> Callable[[Any], dict[str, Any]]:
    """A case: what the host waits for, and uploads, between one iteration and the next."""

    def case(pretend: Any) -> dict[str, Any]:
        found: dict[str, int] = {}
        for told in (True, False):
            counts: list[tuple[int, int]] = []
            with pretend.Pretend() as mode:

                def note(progress: Any, mode: Any = mode, counts: Any = counts) -> bool:
                    counts.append((progress.level, sum(mode.waits.values()) + sum(mode.uploads.values())))
                    if len(counts) == 4:
                        raise _Enough
                    return False

                with _noted(note, told) as more, suppress(_Enough):
                    _register(_phantom(size), "pretend", {"iterations": (4, 3, 0), **STILL, **given, **more})
            assert {level for level, _ in counts} == {0}
            found["told" if told else "not told"] = max(b - a for (_, a), (_, b) in itertools.pairwise(counts))
        return found

    return case


@contextmanager
def _noted(note: Callable[[Any], bool], told: bool) -> Iterator[dict[str, Any]]:
    """Have iterations noted: by the callback that a caller gives, or without anybody having asked for them."""
    if told:
        yield {"callback": note}
        return
    from itk_nir.engine.level import Level

    plain = Level.loss

    class Seen:
        level = 0

    def loss(self: Any, field: Any, iteration: int) -> Any:
        Seen.level = self.number
        note(Seen)
        return plain(self, field, iteration)

    Level.loss = loss  # type: ignore[method-assign]
    try:
        yield {}
    finally:
        Level.loss = plain  # type: ignore[method-assign]


def prepared() -> Any:
    """The pretend device, which `register` now knows by its name.

    The native ops are hidden, so that the CPU runs what the device runs.
    """
    sys.modules["itk_nir._native"] = None  # type: ignore[assignment]
    warnings.simplefilter("ignore")
    import torch

    from itk_nir import neural_field, problem
    from tests.device import pretend

    torch.set_num_threads(1)
    for module in (problem, neural_field):
        plain = module.device_named
        module.device_named = lambda name, plain=plain: pretend.DEVICE if name == pretend.NAME else plain(name)
    return pretend


def main(group: str) -> None:
    """Run the cases of a group."""
    pretend = prepared()
    for name, case in groups()[group].items():
        try:
            found = case(pretend)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            if "--debug" in sys.argv:
                raise
        print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    from tests.device import pretend

    main(sys.argv[1])
    pretend.leave()
