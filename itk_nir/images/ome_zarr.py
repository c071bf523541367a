"""One level of an OME-Zarr image -> `Volume`, by the package zarr where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from itk_nir.errors import InputError, one_line
from itk_nir.findings import Finding, note
from itk_nir.images.volume import ReadOptions, Volume, check_layout, check_memory, check_pixels, make_geometry

#: Files that make a folder a part of a Zarr store.
_MARKS = (".zattrs", ".zgroup", ".zarray", "zarr.json")


def is_zarr(file: Path) -> bool:
    """Tell whether a path is an OME-Zarr image or a level of one.

    Parameters
    ----------
    file : Path
        A file or folder.

    Returns
    -------
    bool
    """
    return file.is_dir() and any((file / mark).is_file() for mark in _MARKS)


def read_zarr(folder: Path, label: str, options: ReadOptions) -> Volume:
    """Read a level: its own folder, or the image's where it has one level.

    Parameters
    ----------
    folder : Path
        A folder of a Zarr store.
    label : str
        What opens every message.
    options : ReadOptions
        How to read it.

    Returns
    -------
    Volume
        Placed by the level's scale and translation, its axes along LPS; channels are values a pixel.

    Raises
    ------
    InputError
        The package zarr is not installed, no level is meant, or the level is no image.
    """
    try:
        import zarr
    except ImportError as error:
        raise InputError(
            f"{label}: is a Zarr image, which needs the package zarr; pip install zarr, or convert it to .nrrd"
        ) from error
    try:
        node = zarr.open(str(folder), mode="r")
        if hasattr(node, "shape"):
            root, path, array = _above(zarr, folder, label)
            levels = _levels(root, label)
        else:
            levels = _levels(node, label)
            if len(levels["datasets"]) > 1:
                paths = [d["path"] for d in levels["datasets"]]
                sizes = ", ".join(f"{folder.name}/{p} ({'x'.join(map(str, node[p].shape))})" for p in paths)
                raise InputError(f"{label}: has {len(levels['datasets'])} levels; give the folder of one: {sizes}")
            path = levels["datasets"][0]["path"]
            array = node[path]
        return _volume(array, levels, path, label, options)
    except InputError:
        raise
    except Exception as error:  # zarr and its codecs have no common class of errors
        raise InputError(f"{label}: zarr cannot read it ({one_line(error)}); get a fresh copy") from error


def _above(zarr: Any, folder: Path, label: str) -> tuple[Any, str, Any]:
    """The group that says what a level is, the level's path in it, and its array."""
    for parent in list(folder.parents)[:3]:
        if not is_zarr(parent):
            break
        group = zarr.open(str(parent), mode="r")
        path = folder.relative_to(parent).as_posix()
        attributes = dict(group.attrs)
        if "multiscales" in attributes.get("ome", attributes):
            return group, path, group[path]
    raise InputError(f"{label}: is a Zarr array that no OME-Zarr image says the place of; give (array, Geometry)")


def _levels(group: Any, label: str) -> Any:
    attributes = dict(group.attrs)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        raise InputError(f"{label}: is a Zarr group without an OME-Zarr image (multiscales); give the image's folder")
    return scales[0]


def _volume(array: Any, levels: Any, path: str, label: str, options: ReadOptions) -> Volume:
    named = [a if isinstance(a, str) else a["name"] for a in levels.get("axes") or ["t", "c", "z", "y", "x"]]
    if len(named) != len(array.shape) or named[-2:] != ["y", "x"] or not set(named) <= set("tczyx"):
        raise InputError(f"{label}: has axes {', '.join(named)} of size {array.shape}; ([t,] [c,] [z,] y, x) are read")
    dataset = next((d for d in levels["datasets"] if d["path"] == path), None)
    if dataset is None:
        raise InputError(f"{label}: is no level of its OME-Zarr image; give one of the levels")
    scale, shift = np.ones(len(named)), np.zeros(len(named))
    for step in [*(dataset.get("coordinateTransformations") or []), *(levels.get("coordinateTransformations") or [])]:
        if step["type"] == "scale":
            scale, shift = scale * np.array(step["scale"]), shift * np.array(step["scale"])
        elif step["type"] == "translation":
            shift = shift + np.array(step["translation"])
    sizes = dict(zip(named, array.shape, strict=True))
    space = [n for n in "zyx" if n in named and not (n == "z" and sizes["z"] == 1)]
    times, channels = sizes.get("t", 1), sizes.get("c", 1)
    check_layout(label, len(space) + (times > 1), channels, options.several, times)
    check_pixels(label, np.dtype(array.dtype))
    check_memory(label, array.shape, np.dtype(array.dtype).itemsize)
    values = np.asarray(array[...])
    keep = [n for n in named if n in space or (n == "c" and channels > 1)]
    values = values.reshape([sizes[n] for n in keep])
    if "c" in keep:
        values = np.moveaxis(values, keep.index("c"), -1)
    order = [named.index(n) for n in reversed(space)]
    geometry = make_geometry(label, [sizes[named[k]] for k in order], scale[order], shift[order], np.eye(len(order)))
    dtype = values.dtype.newbyteorder("=")
    return Volume(np.array(values, dtype, order="C"), geometry, label, "path", dtype, _units(levels.get("axes"), label))


def _units(axes: Any, label: str) -> tuple[Finding, ...]:
    named = [a for a in axes or [] if isinstance(a, dict) and a.get("unit")]
    units = sorted({str(a["unit"]) for a in named if a.get("name") in ("z", "y", "x")})
    if not units or units == ["millimeter"]:
        return ()
    return (note(f"{label}: its lengths are in {', '.join(units)}", "the numbers are used as they are"),)
