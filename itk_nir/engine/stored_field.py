"""A trained field as plain values and arrays, for a file, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from itk_nir.engine.coordinate_networks import FieldConfig
from itk_nir.engine.lattice import Axis, shape_of
from itk_nir.engine.lattices import Lattices
from itk_nir.engine.overlay import Overlay
from itk_nir.engine.velocity_field import SplineVelocity, VelocityField
from itk_nir.geometry import Geometry
from itk_nir.options import rebuilt


def describe(field: VelocityField) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A trained field as JSON's values and named arrays; `restore` is the way back.

    Parameters
    ----------
    field : VelocityField
        The field.

    Returns
    -------
    dict
        JSON's values.
    dict of str to ndarray
        Coefficients and weights.
    """
    arrays: dict[str, NDArray[Any]] = {}
    parts = {"fine": field.fine} | ({} if field.coarse is None else {"coarse": field.coarse})
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            arrays[f"{name}.{key}"] = np.ascontiguousarray(value.detach().cpu().numpy())
    if field.unfolded is not None:
        arrays["unfolded"] = field.unfolded.cpu().numpy()
    if field.overlay is not None:
        arrays["overlay"] = field.overlay.values.cpu().numpy()
    description = {
        "axes": [dataclasses.asdict(a) for a in field.fine.lattices.axes[0]],
        "coarsest_spacing": field.fine.lattices.coarsest_spacing,
        "block": field.fine.lattices.block,
        "restrict": field.fine.lattices.restrict,
        "transform_model": field.transform_model,
        "integration_steps": field.integration_steps,
        **{
            name: {
                "lattice": part.number,
                "network": None if part.config is None else dataclasses.asdict(part.config),
            }
            for name, part in parts.items()
        },
    }
    if field.overlay is not None:
        description["overlay_start"] = list(field.overlay.start)
    return description, arrays


def restore(
    description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], geometry: Geometry, *, device: torch.device,
    threads: int,
) -> VelocityField:  # fmt: skip
    """The trained field of `describe`.

    Parameters
    ----------
    description : mapping
        The first of what `describe` gave.
    arrays : mapping of str to ndarray
        The second.
    geometry : Geometry
        The fixed grid.
    device : torch.device
        Where it is evaluated.
    threads : int
        CPU threads.

    Returns
    -------
    VelocityField

    Raises
    ------
    KeyError, ValueError
        Parts that are missing or do not fit together.
    """
    axes = [Axis(**a) for a in description["axes"]]
    parts = {name: description[name] for name in ("fine", "coarse") if name in description}
    finest = max(int(part["lattice"]) for part in parts.values())
    restrict = tuple(description.get("restrict", ()))
    block = description.get("block")  # files that were written before it was kept have none
    ends = None if block is None else [(float(first), float(last)) for first, last in block]
    lattices = Lattices.halved(axes, float(description["coarsest_spacing"]), finest, ends, restrict)
    velocities = {}
    for name, part in parts.items():
        config = None if part["network"] is None else rebuilt(FieldConfig, part["network"])
        velocity = SplineVelocity(
            geometry, lattices, int(part["lattice"]), config, torch.Generator().manual_seed(0), device, threads
        )
        prefix = f"{name}."
        state = {k.removeprefix(prefix): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(prefix)}
        try:
            velocity.load_state_dict(state)
        except RuntimeError as error:  # torch's text has several lines, the first of which says nothing
            reasons = "; ".join(line.strip().rstrip(".") for line in str(error).splitlines()[1:])
            raise ValueError(f"control points or weights of the {name} field do not fit: {reasons}") from error
        velocities[name] = velocity.requires_grad_(False)
    if description["transform_model"] not in ("velocity", "displacement"):
        raise ValueError(f"an unknown transform model {description['transform_model']!r}")
    unfolded = overlay = None
    if "unfolded" in arrays:
        unfolded = torch.from_numpy(arrays["unfolded"].copy()).to(device)
        if tuple(unfolded.shape) != (3, *shape_of(lattices.axes[velocities["fine"].number])):
            raise ValueError(f"an unfolded displacement of shape {tuple(unfolded.shape)}")
    if "overlay" in arrays:
        x, y, z = (int(v) for v in description["overlay_start"])
        if arrays["overlay"].ndim != 4 or len(arrays["overlay"]) != 3:
            raise ValueError(f"an overlay of shape {arrays['overlay'].shape}")
        overlay = Overlay((x, y, z), torch.from_numpy(arrays["overlay"].copy()).to(device))
    return VelocityField(
        geometry, velocities["fine"], velocities.get("coarse"), description["transform_model"],
        int(description["integration_steps"]), threads, unfolded, overlay,
    )  # fmt: skip
