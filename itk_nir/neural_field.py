"""What a registration learned, kept in a file: its trained field, to be evaluated and sampled again at any resolution.

A sampled result is a grid of displacements, and its spacing is decided once. The trained field itself is continuous:
its file (``.safetensors``: named tensors and a text header, no code) holds the weights of the coordinate network and
the control points, the geometry of the fixed image, the linear part and the caller's initial transform, so that the
whole map

    phi(p) = T(A(p + u(p)))        fixed → moving, LPS mm

can be evaluated at any point, or sampled finer or coarser, without the images.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from itk_nir.atomic import replacing
from itk_nir.engine.execution import device_named, thread_count
from itk_nir.engine.frame import AxisOrder, Frame
from itk_nir.engine.sampling import Field, SampledField, Target, sample_field
from itk_nir.engine.settings import SamplingSettings
from itk_nir.engine.torch_state import engine_state
from itk_nir.errors import InputError, OptionError, one_line
from itk_nir.geometry import Geometry, checked_points
from itk_nir.options import converted, truth_value
from itk_nir.places import check_input, check_name, shown
from itk_nir.report import as_json
from itk_nir.settings import engine_named
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform, Step
from itk_nir.version import __version__

F64 = NDArray[np.float64]

#: Ending of its files.
SUFFIX = ".safetensors"
#: Key of the header's text that is ours, and the number of the layout below it.
KEY, LAYOUT = "itk-nir", 3
#: The layout before it, whose fields are measured in LPS mm along the axes as they are stored.
PLAIN_LAYOUT = 2
#: That of fields over a part of the fixed grid.
PART_LAYOUT = 4


@dataclass(frozen=True, eq=False)
class NeuralField:
    """A trained field and what stands around it in the whole map, fixed → moving.

    Parameters
    ----------
    kind : str
        The engine that trained it, a key of `itk_nir.settings.ENGINES`.
    trained : Field
        The field itself: coordinate network, control points, how they are integrated.
    linear : LinearTransform
        The linear part, which follows the deformation, LPS mm.
    frame : Frame
        What `trained` is measured in.
    start : CompositeTransform or None
        The caller's initial transform where it is not linear (a linear one is part of `linear`), last of all.
    about : mapping
        How it was trained (preset, settings, seed, versions): plain values, kept with the file, not needed.

    Notes
    -----
    ``phi(p) = T(A(p + u(p)))`` with ``u`` of `trained`, ``A`` of `linear` and ``T`` of `start`, LPS mm.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> field = itk_nir.register(fixed, moving, preset="fast", iterations=2).field
    >>> field
    NeuralField(deformable, fixed grid 48x56, preset 'fast')
    >>> field.map([[10.0, -5.0]]).shape
    (1, 2)
    >>> field.sample(field_spacing=1).dimension
    2
    """

    kind: str
    trained: Field
    linear: LinearTransform
    frame: Frame
    start: CompositeTransform | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def geometry(self) -> Geometry:
        """The grid of the fixed image."""
        return self.frame.stored

    @property
    def networks(self) -> tuple[torch.nn.Module, ...]:
        """The coordinate networks, weights included; none where none was trained (``network=None``)."""
        return self.trained.networks

    def __repr__(self) -> str:
        size = "x".join(map(str, self.geometry.size))
        return f"NeuralField({self.kind}, fixed grid {size}, preset {self.about.get('preset', '?')!r})"

    def map(self, points: ArrayLike) -> F64:
        """The continuous map, no grid between.

        Parameters
        ----------
        points : array_like
            ``(N, d)`` fixed points, LPS mm.

        Returns
        -------
        ndarray
            ``(N, d)`` moving points, LPS mm.

        Raises
        ------
        InputError
            Points of another shape, or what is no finite real number.
        """
        p = checked_points(points, self.geometry.dimension)
        moved: F64 = self.linear.map(p + self.displacement(p))
        return moved if self.start is None else self.start.map(moved)

    def displacement(self, points: ArrayLike, inverse: bool = False) -> F64:
        """The deformation alone, before the linear part.

        Parameters
        ----------
        points : array_like
            ``(N, d)`` fixed points ``p``, LPS mm.
        inverse : bool
            The displacement of the inverse of ``p + u(p)`` instead.

        Returns
        -------
        ndarray
            ``(N, d)`` displacements ``u(p)``, LPS mm.

        Raises
        ------
        InputError
            Points of another shape, or what is no finite real number.
        OptionError
            `inverse` is neither True nor False.
        """
        p, back = checked_points(points, self.geometry.dimension), truth_value(inverse, "inverse")
        with engine_state(self.trained.device):
            return self.trained.displacement(self.frame.points(p), back) * self.frame.unit

    def sample(
        self, *, max_interpolation_error: float | None = None, field_spacing: int | None = None
    ) -> CompositeTransform:
        """The map as plain grids, with its inverse, fixed → moving.

        Parameters
        ----------
        max_interpolation_error : float, optional
            Largest error in voxels of the fixed image that linear interpolation between the points of the grid may make
            (0.05 where neither is given); the coarsest grid that keeps it is taken.
        field_spacing : int, optional
            Spacing of the grid in voxels of the fixed image instead.

        Returns
        -------
        CompositeTransform
            Fixed → moving, LPS mm.

        Raises
        ------
        OptionError
            Both given, or values that no grid can have.
        """
        return self.mapping(self.sampled(max_interpolation_error, field_spacing))

    def sampled(
        self,
        max_interpolation_error: float | None = None,
        field_spacing: int | None = None,
        moving: Geometry | None = None,
    ) -> SampledField:
        """The deformation alone on a grid, with what was measured on it.

        Parameters
        ----------
        max_interpolation_error, field_spacing : float, int, optional
            As of `sample`.
        moving : Geometry, optional
            The grid of the moving image, beyond which the inverse need not be known.

        Returns
        -------
        SampledField
            Displacements before the linear part, mm LPS.

        Raises
        ------
        OptionError
            As of `sample`.
        """
        asked = {"max_interpolation_error": max_interpolation_error, "field_spacing": field_spacing}
        given = {name: converted(SamplingSettings, name, v) for name, v in asked.items() if v is not None}
        if len(given) > 1:
            raise OptionError(
                f"give max_interpolation_error or field_spacing, not both (got {max_interpolation_error!r} and "
                f"{field_spacing!r})"
            )
        with engine_state(self.trained.device):
            target, frame = None, self.frame
            if moving is not None:
                theirs = frame.placed(AxisOrder.of(moving).geometry(moving))
                linear = frame.matrix(self.linear.matrix)
                target = Target.of(frame.geometry, theirs, linear, last=self.start is None)
            return sample_field(self.trained, SamplingSettings(**given), target=target, frame=frame)

    def mapping(self, sampled: SampledField) -> CompositeTransform:
        """Sampled grids and the other parts of the map as one transform with its inverse.

        Parameters
        ----------
        sampled : SampledField
            What `sampled` gave.

        Returns
        -------
        CompositeTransform
            Fixed → moving, LPS mm.
        """
        forward: tuple[Step, ...] = (DisplacementField(sampled.geometry, sampled.forward), self.linear)
        backward: tuple[Step, ...] = (
            self.linear.inverse(),
            DisplacementField(sampled.inverse_geometry, sampled.inverse),
        )
        if self.start is not None:
            forward = (*forward, *self.start.transforms)
            backward = (*self.start.inverse().transforms, *backward)
        return CompositeTransform(forward, backward)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the ``.safetensors`` file, for `itk_nir.load_field`; it appears complete or not at all.

        Parameters
        ----------
        path : path
            Ends in ``.safetensors``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        InputError
            No file's name, another ending, or no such folder.
        """
        from safetensors.numpy import save

        check_name(path, f"trained field {shown(path)}")
        target = Path(path)
        if target.suffix != SUFFIX:
            raise InputError(f"{target}: a trained field is saved as {SUFFIX}; give the file that ending")
        if not target.parent.is_dir():
            raise InputError(f"{target}: the folder {target.parent} does not exist; create it first")
        description, tensors = engine_named(self.kind).describe(self.trained)
        part = _part_of(self.frame.geometry, self.trained.geometry)
        header = {
            "layout": PART_LAYOUT if part else LAYOUT,
            "itk-nir": __version__,
            "geometry": dataclasses.asdict(self.geometry),
            "unit": self.frame.unit if self.frame.canonical else None,
            "linear": self.linear.matrix.tolist(),
            "kind": self.kind,
            "field": description,
            **part,
            "about": as_json(self.about),
        }
        if self.start is not None:
            header["start"] = _described(self.start.transforms, "start", tensors)
            header["start_inverse"] = _described(self.start.inverse().transforms, "start_inverse", tensors)
        with replacing(target) as temporary:
            temporary.write_bytes(save(tensors, metadata={KEY: json.dumps(header, allow_nan=False)}))
        return target


def load_field(path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None) -> NeuralField:
    """Read a trained field.

    Parameters
    ----------
    path : path
        A file of `NeuralField.save`.
    device : str
        ``"cpu"``, ``"cuda"`` or ``"auto"``: where it is evaluated. On the device it was trained on, displacements are
        those of the original, bit for bit.
    threads : int, optional
        CPU threads; all that the process may use by default. Results do not depend on it.

    Returns
    -------
    NeuralField
        The field, evaluated on `device`.

    Raises
    ------
    InputError
        Missing, truncated or damaged file, no field of this package, or one of another version's layout.
    OptionError
        A device or number of threads that cannot be used.

    Examples
    --------
    >>> import tempfile
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, preset="fast", iterations=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     field = itk_nir.load_field(result.save_field(folder + "/field.safetensors"))
    >>> bool((field.map([[10.0, -5.0]]) == result.transform_points([[10.0, -5.0]])).all())
    True
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    where, count = device_named(device), thread_count(threads)
    check_input(path, f"trained field {shown(path)}")
    file = Path(path)
    if not file.is_file():
        raise InputError(f"trained field {file}: no such file; check the path")
    try:
        header = _header(file)
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"trained field {file}: damaged, truncated or no {SUFFIX} file ({one_line(error)})"
        ) from error  # fmt: skip
    if header is None:
        raise InputError(f"trained field {file}: a {SUFFIX} file of another program; give one that itk-nir saved")
    if header.get("layout") not in (PLAIN_LAYOUT, LAYOUT, PART_LAYOUT):
        raise InputError(
            f"trained field {file}: written in layout {header.get('layout')} by itk-nir {header.get('itk-nir')}, this "
            f"is {__version__} with layouts up to {PART_LAYOUT}; install the version that wrote it"
        )
    try:
        stored = _geometry(header["geometry"])
        unit = None if header["layout"] == PLAIN_LAYOUT else header["unit"]
        frame = Frame.plain(stored) if unit is None else Frame.of(stored, float(unit))
        start = None
        if "start" in header:
            start = CompositeTransform(
                _restored(header["start"], tensors), _restored(header["start_inverse"], tensors)
            )  # fmt: skip
        engine = engine_named(header["kind"])
        with engine_state(where):
            grid = frame.geometry.crop(*header["part"]) if "part" in header else frame.geometry
            trained = engine.restore(header["field"], tensors, grid, device=where, threads=count)
        linear = LinearTransform(np.array(header["linear"]))
        return NeuralField(header["kind"], trained, linear, frame, start, header["about"])
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise InputError(
            f"trained field {file}: its parts do not fit together ({one_line(error)}); get a fresh copy"
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


def _part_of(whole: Geometry, part: Geometry) -> dict[str, Any]:
    """First voxel and size of the part of the fixed grid that was looked at, where that is not all of it."""
    if part.size == whole.size:
        return {}
    return {"part": [whole.start_of(part), list(part.size)]}


def _geometry(value: Mapping[str, Any]) -> Geometry:
    return Geometry.make(value["size"], value["spacing"], value["origin"], value["direction"])


def _described(parts: tuple[Step, ...], name: str, tensors: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if isinstance(part, LinearTransform):
            out.append({"matrix": part.matrix.tolist()})
        else:
            key = f"{name}.{number}"
            tensors[key] = part.vectors
            out.append({"geometry": dataclasses.asdict(part.geometry), "vectors": key})
    return out


def _restored(parts: list[Mapping[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> tuple[Step, ...]:
    return tuple(
        LinearTransform(np.array(p["matrix"]))
        if "matrix" in p
        else DisplacementField(_geometry(p["geometry"]), tensors[p["vectors"]])
        for p in parts
    )
