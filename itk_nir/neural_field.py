"""What a registration learned, kept in a file: its trained field, to be baked again later at any resolution.

A baked result is a grid of displacements, and its spacing is decided once. The trained field itself is continuous: its
file (``.safetensors``: named tensors and a text header, no code) holds the control points or network weights, the
geometry of the fixed image, the linear part and the caller's initial transform, so that the whole map

    phi(p) = T(A(p + u(p)))        fixed → moving, LPS mm

can be evaluated at any point, or baked finer or coarser, without the images.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

import itk_nir
from itk_nir.engine.sampling import Baked, BakeSettings, bake
from itk_nir.engine.coordinate_networks import build_field
from itk_nir.engine.lattice import Axis, shape_of
from itk_nir.engine.optimize import LatticeField
from itk_nir.paper.field import PointField
from itk_nir.paper.registration import PointRegistration, PointSettings
from itk_nir.engine.execution import torch_on_one_thread
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.geometry import Geometry
from itk_nir.atomic import replacing
from itk_nir.images import load_image
from itk_nir.result import RegistrationResult, _plain
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step

F64 = NDArray[np.float64]

#: Key of the header's text that is ours, and the number of the layout below it.
KEY, LAYOUT = "itk-nir", 1


@dataclass(frozen=True, eq=False)
class Network:
    """A trained field and what stands around it in the whole map, fixed → moving.

    Attributes
    ----------
    field : the trained field.
    linear : the linear part, which follows the deformation.
    start : the caller's initial transform where it is not linear (a linear one is part of `linear`), last of all.
    about : how it was trained (preset, settings, seed, versions): plain values, kept with the file, not needed.
    """

    field: LatticeField | PointField
    linear: LinearTransform
    start: CompositeTransform | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """The grid of the fixed image."""
        return self.field.geometry

    def map(self, points: ArrayLike) -> F64:
        """The continuous map, no grid between: ``(N, d)`` fixed points → ``(N, d)`` moving points, LPS mm."""
        p = np.asarray(points, float)
        d = self.geometry.dimension
        if p.ndim != 2 or p.shape[1] != d:
            raise InputError(f"points have shape (N, {d}), got {p.shape}")
        moved: F64 = self.linear.map(p + self.field.displacement(p))
        return moved if self.start is None else self.start.map(moved)

    def bake(self, *, bake_error: float | None = None, bake_spacing: int | None = None) -> CompositeTransform:
        """The map as plain grids.

        Parameters
        ----------
        bake_error : largest error in voxels of the fixed image that linear interpolation between the points of the
            grid may make (0.05 where neither is given); the coarsest grid that keeps it is taken.
        bake_spacing : spacing of the grid in voxels of the fixed image instead.

        Returns
        -------
        A chain with its inverse, fixed → moving: what `RegistrationResult.chain` is.

        Raises
        ------
        OptionError : both given, or values that no grid can have.
        """
        return self.chain(self._bake(bake_error, bake_spacing))

    def result(
        self, fixed: Any, moving: Any, *, bake_error: float | None = None, bake_spacing: int | None = None
    ) -> RegistrationResult:
        """`bake`, with the two images again: a `RegistrationResult` that can be saved, exported and drawn.

        Parameters
        ----------
        fixed, moving : the images of the registration, as `itk_nir.register` takes them.
        bake_error, bake_spacing : see `bake`.

        Raises
        ------
        InputError : a fixed image on another grid than the one that was registered.
        """
        a, b = load_image(fixed, "fixed image"), load_image(moving, "moving image")
        if a.dimension != self.geometry.dimension or not a.geometry.same_grid(self.geometry):
            raise InputError(
                f"{a.name}: lies on a grid of size {a.geometry.size}, spacing {a.geometry.spacing} and origin "
                f"{a.geometry.origin}, but the network was trained on {self.geometry.size}, {self.geometry.spacing}, "
                f"{self.geometry.origin}; give the fixed image of that registration"
            )
        if b.dimension != a.dimension:
            raise InputError(f"{b.name}: is {b.dimension}D and the fixed image {a.dimension}D; both must be alike")
        baked = self._bake(bake_error, bake_spacing)
        metrics = {
            **self.about,
            **baked.metrics(),
            "linear_matrix": self.linear.matrix.tolist(),
        }
        return RegistrationResult(a, b, self.chain(baked), metrics, self.map, self)

    def chain(self, baked: Baked) -> CompositeTransform:
        """Baked grids and the other parts of the map as one chain with its inverse."""
        forward: tuple[Step, ...] = (DisplacementField(baked.geometry, baked.forward), self.linear)
        backward: tuple[Step, ...] = (self.linear.inverse(), DisplacementField(baked.geometry, baked.inverse))
        if self.start is not None:
            forward, backward = (*forward, *self.start.transforms), (*self.start.inverse().transforms, *backward)
        return CompositeTransform(forward, backward)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ``.safetensors`` file; it appears complete or not at all. See `save_network`."""
        return save_network(self, path)

    def _bake(self, error: float | None, spacing: int | None) -> Baked:
        if error is not None and spacing is not None:
            raise OptionError(f"give bake_error or bake_spacing, not both (got {error!r} and {spacing!r})")
        if spacing is not None and (isinstance(spacing, bool) or not isinstance(spacing, int)):
            raise OptionError(f"bake_spacing is a whole number of voxels, got {spacing!r}")
        try:
            settings = BakeSettings(bake_spacing=spacing) if error is None else BakeSettings(bake_error=float(error))
        except ValueError as problem:
            raise OptionError(str(problem)) from None
        f = self.field
        device = f.values.device if isinstance(f, LatticeField) else next(f.registration.fields[0].parameters()).device
        everywhere = torch.ones(*[1, *self.geometry.shape][-3:], dtype=torch.bool, device=device)
        threads = f.threads if isinstance(f, LatticeField) else 1
        with torch_on_one_thread(device):
            return bake(f, settings, everywhere, threads)


def save_network(network: Network, path: str | os.PathLike[str]) -> Path:
    """Write a trained field as ``.safetensors``; the file appears complete or not at all.

    Returns
    -------
    The path.

    Raises
    ------
    InputError : another ending than ``.safetensors``, or no such folder.
    """
    from safetensors.numpy import save_file

    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: a network is saved as .safetensors; give the file that ending")
    tensors: dict[str, NDArray[Any]] = {}
    header = {
        "layout": LAYOUT,
        "itk-nir": itk_nir.__version__,
        "geometry": _geometry_out(network.geometry),
        "linear": network.linear.matrix.tolist(),
        "field": _field_out(network.field, tensors),
        "about": _plain(network.about),
    }
    if network.start is not None:
        header["start"] = _steps_out(network.start.transforms, "start", tensors)
        header["start_inverse"] = _steps_out(network.start.inverse().transforms, "start_inverse", tensors)
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata={KEY: json.dumps(header, allow_nan=False)})
    return target


def load_network(path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None) -> Network:
    """Read a trained field.

    Parameters
    ----------
    path : a file of `save_network`.
    device : ``"cpu"``, ``"cuda"`` or ``"auto"``: where it is evaluated. On the device it was trained on, displacements
        are those of the original, bit for bit.
    threads : CPU threads; all that the process may use by default. Results do not depend on it.

    Raises
    ------
    InputError : missing, truncated or damaged file, no network of this package, or one of a later version.
    OptionError : a device or number of threads that cannot be used.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from itk_nir.registration import _device, _threads

    where, count = _device(device), _threads(threads)
    file = Path(path)
    if not file.is_file():
        raise InputError(f"network {file}: no such file; check the path")
    try:
        header = _header(file)
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"network {file}: damaged, truncated or no .safetensors file ({one_line(error)})") from error
    if header is None:
        raise InputError(f"network {file}: a .safetensors file of another program; give one that itk-nir saved")
    if header.get("layout") != LAYOUT:
        raise InputError(
            f"network {file}: written in layout {header.get('layout')} by itk-nir {header.get('itk-nir')}, this is "
            f"{itk_nir.__version__} with layout {LAYOUT}; install the version that wrote it"
        )
    try:
        geometry = _geometry_in(header["geometry"])
        start = None
        if "start" in header:
            start = CompositeTransform(_steps_in(header["start"], tensors), _steps_in(header["start_inverse"], tensors))
        trained = _field_in(header["field"], tensors, geometry, where, count)
        return Network(trained, LinearTransform(np.array(header["linear"])), start, header["about"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"network {file}: its parts do not fit together ({one_line(error)}); get a fresh copy"
        ) from error


def _header(file: Path) -> dict[str, Any] | None:
    """Our part of the file's text header, or None where there is none."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        text = (opened.metadata() or {}).get(KEY)
    if text is None:
        return None
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header


# --- fields ----------------------------------------------------------------------------------------------------------


def _field_out(trained: LatticeField | PointField, tensors: dict[str, NDArray[Any]]) -> dict[str, Any]:
    if isinstance(trained, LatticeField):
        tensors["values"] = _numpy(trained.values)
        if trained.coarse is not None:
            tensors["coarse"], tensors["coarse_inverse"] = map(_numpy, trained.coarse)
        return {
            "kind": "lattice",
            "axes": [dataclasses.asdict(a) for a in trained.axes],
            "spacing": trained.spacing,
            "flow": trained.flow,
            "squarings": trained.squarings,
        }
    registration = trained.registration
    for number, module in enumerate(registration.fields):
        for name, value in module.state_dict().items():
            tensors[f"field.{number}.{name}"] = _numpy(value)
    return {
        "kind": "points",
        "fields": len(registration.fields),
        "settings": dataclasses.asdict(registration.settings),
    }


def _field_in(
    part: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    geometry: Geometry,
    device: torch.device,
    threads: int,
) -> LatticeField | PointField:
    if part["kind"] == "lattice":
        axes = [Axis(**a) for a in part["axes"]]
        names = ["values", "coarse", "coarse_inverse"] if "coarse" in tensors else ["values"]
        grids = [torch.from_numpy(tensors[name].copy()).to(device) for name in names]
        for grid in grids:
            if tuple(grid.shape) != (3, *shape_of(axes)):
                raise ValueError(
                    f"a lattice of {shape_of(axes)} control points with values of shape {tuple(grid.shape)}"
                )
        if part["flow"] not in ("velocity", "displacement"):
            raise ValueError(f"an unknown flow {part['flow']!r}")
        coarse = (grids[1], grids[2]) if len(grids) == 3 else None
        return LatticeField(
            geometry, axes, part["spacing"], grids[0], part["flow"], part["squarings"], threads, coarse
        )  # fmt: skip
    if part["kind"] != "points":
        raise ValueError(f"an unknown kind of field {part['kind']!r}")
    settings = _rebuild(PointSettings, part["settings"])
    if not 1 <= part["fields"] <= len(settings.phases):
        raise ValueError(f"{part['fields']} fields of {len(settings.phases)} phases")
    d = geometry.dimension
    extent = [n * s / 2 / geometry.half_extent for n, s in zip(geometry.size, geometry.spacing, strict=True)]
    modules = []
    for number, phase in enumerate(settings.phases[: part["fields"]]):
        module = build_field(phase.field, d, torch.Generator().manual_seed(0), "cpu", torch.float32, extent)
        prefix = f"field.{number}."
        state = {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(state)
        modules.append(module.to(device).requires_grad_(False))
    return PointField(geometry, PointRegistration(tuple(modules), settings, (), False))


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


def _rebuild(hint: Any, value: Any) -> Any:
    """JSON's lists and tables as the tuples and dataclasses they were. Names that a class lacks are errors."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise ValueError(f"{hint.__name__} has no {', '.join(unknown)}: of a later version")
        return hint(**{name: _rebuild(hints[name], v) for name, v in value.items()})
    if origin is tuple:
        inner = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_rebuild(h, v) for h, v in zip(inner, value, strict=True))
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _rebuild(next(a for a in arguments if a is not type(None)), value)
    return value


# --- geometry and steps ----------------------------------------------------------------------------------------------


def _geometry_out(geometry: Geometry) -> dict[str, Any]:
    return dataclasses.asdict(geometry)


def _geometry_in(value: Mapping[str, Any]) -> Geometry:
    return Geometry.make(value["size"], value["spacing"], value["origin"], value["direction"])


def _steps_out(steps: tuple[Step, ...], name: str, tensors: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number, step in enumerate(steps):
        if isinstance(step, LinearTransform):
            out.append({"matrix": step.matrix.tolist()})
        else:
            key = f"{name}.{number}"
            tensors[key] = step.vectors
            out.append({"geometry": _geometry_out(step.geometry), "vectors": key})
    return out


def _steps_in(steps: list[Mapping[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> tuple[Step, ...]:
    return tuple(
        LinearTransform(np.array(s["matrix"]))
        if "matrix" in s
        else DisplacementField(_geometry_in(s["geometry"]), tensors[s["vectors"]])
        for s in steps
    )
