"""``antsApplyTransforms``: images through lists of transforms, with the numbers of ANTs' own."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from itk_nir.cli.arguments import grid_of
from itk_nir.cli.console import tell
from itk_nir.compat.options import OptionSupport
from itk_nir.errors import InputError, OptionError, escaped, warn_caller
from itk_nir.findings import texts
from itk_nir.interpolating import Interpolation
from itk_nir.programs.ants_apply_values import (
    FLAGS,
    INPUT_TYPES,
    INTERPOLATIONS,
    NAMES,
    OUTPUT_TYPES,
    Entry,
    input_type_of,
    interpolation_of,
)
from itk_nir.programs.ants_common import THREADS, asked_about, environment_number
from itk_nir.programs.ants_words import Value, dimension_of, flags_of, number, whole
from itk_nir.transforms.listed import Listed, chain_of, listed

if TYPE_CHECKING:
    from itk_nir.geometry import Geometry
    from itk_nir.images import Volume
    from itk_nir.images.series import Series
    from itk_nir.transforms.model import CompositeTransform

#: Input image types of several values a pixel, and those of which are vectors.
_OF_SEVERAL = ("1", "4", "6")
_OF_VECTORS = ("1", "6")
#: Spacing and origin of the last axis of a series of one image, whose file has no such axis.
ALONE = (1.0, 0.0)
#: What `--output` may be.
OUTPUTS = ("image", "field", "composite", "linear")


@dataclass(frozen=True)
class Request:
    """A command line of antsApplyTransforms.

    Attributes
    ----------
    dimension : int
        Of the transforms.
    input, reference : str or None
        Files.
    output : str
        The file to write.
    kind : str
        One of `OUTPUTS`.
    invert : bool
        Of a linear output: its inverse is written.
    transforms : tuple of Listed
        In the order in which they meet a point of the reference.
    input_type : str
        A key of `INPUT_TYPES`.
    time_index : int or None
        The one volume of a series.
    interpolation : Entry
        Its name.
    how : Interpolation
        The interpolation with its parameters.
    fill : float
        Value outside the input.
    pixel_type : str
        NumPy's name of what is written.
    single : bool
        Fields are written in single precision.
    verbose : bool
        Tell what is done.
    given : tuple of str
        Long names of the flags.
    """

    dimension: int
    input: str | None
    reference: str | None
    output: str
    kind: str
    invert: bool
    transforms: tuple[Listed, ...]
    input_type: str
    time_index: int | None
    interpolation: Entry
    how: Interpolation
    fill: float
    pixel_type: str
    single: bool
    verbose: bool
    given: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Run a command line of antsApplyTransforms.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    int
        0: the file is complete; 1 where nothing was asked for.

    Raises
    ------
    InputError, OptionError
        A flag, value or file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    answered = asked_about(arguments, help_text)
    if answered is not None:
        return answered
    run_request(read_request(arguments))
    return 0


def read_request(arguments: Sequence[str]) -> Request:
    """Read a command line; no file is opened.

    Parameters
    ----------
    arguments : sequence of str
        Everything behind the name of the program.

    Returns
    -------
    Request

    Raises
    ------
    InputError, OptionError
        An unknown flag, a value that cannot be used, or a flag that is missing.
    """
    flags = flags_of(arguments, NAMES, FLAGS, several=("transform",))
    # Of a flag that is given twice ANTs takes the last, but for transforms.
    values = {flag.name: flag for flag in flags}

    def text(name: str, default: str) -> str:
        return values[name].wanted().text if name in values else default

    dimension = dimension_of(text("dimensionality", "3"))
    if "output" not in values:
        raise OptionError("--output is missing; give the file to write")
    kind, output, invert = _output(values["output"].wanted())
    single = "float" in values and values["float"].yes()
    asked = text("output-data-type", "default").lower()
    if asked not in OUTPUT_TYPES and asked != "default":
        raise OptionError(f"--output-data-type is one of {', '.join(OUTPUT_TYPES)} or default, got {escaped(asked)}")
    entry, how = interpolation_of(values["interpolation"].wanted() if "interpolation" in values else Value.of("Linear"))
    time_index = whole(text("time-index", "0"), "--time-index", 0) if "time-index" in values else None
    request = Request(
        dimension=dimension,
        input=text("input", "") or None,
        reference=text("reference-image", "") or None,
        output=output,
        kind=kind,
        invert=invert,
        transforms=tuple(listed(flag.wanted().text) for flag in flags if flag.name == "transform"),
        input_type=input_type_of(text("input-image-type", "0")),
        time_index=time_index,
        interpolation=entry,
        how=how,
        fill=number(text("default-value", "0"), "--default-value"),
        pixel_type=OUTPUT_TYPES.get(asked, "float32" if single else "float64"),
        single=single,
        verbose="verbose" in values and values["verbose"].yes(),
        given=tuple(dict.fromkeys(flag.name for flag in flags)),
    )
    if request.kind == "image" and request.input is None:
        raise OptionError("--input is missing; give the image to warp")
    if request.kind in ("image", "field") and request.reference is None:
        raise OptionError("--reference-image is missing; give the image whose grid is wanted")
    return request


def _output(value: Value) -> tuple[str, str, bool]:
    """Kind, file, and whether the inverse is meant."""
    word, parts = value.name.lower(), value.parts
    flag = parts[1] if len(parts) > 1 else "0"
    if flag not in ("0", "1") or len(parts) > 2:
        raise OptionError(f"--output {escaped(value.text)}: the second part is 0 or 1")
    if not value.name and parts:
        return ("field" if flag == "1" else "image"), parts[0], False
    for kind, name in (("field", "displacementfield"), ("composite", "compositetransform"), ("linear", "linear")):
        if word == name:
            if not parts or not parts[0]:
                raise OptionError(f"--output {escaped(value.text)}: needs a file in brackets, {value.name}[file]")
            return kind, parts[0], kind == "linear" and flag == "1"
    return "image", value.text, False


# --- running ---------------------------------------------------------------------------------------------------------


def run_request(request: Request, threads: int | None = None) -> None:
    """Do what a command line asks for, and write its file.

    Parameters
    ----------
    request : Request
        The command line.
    threads : int, optional
        CPU threads; left out, the environment says, else all that the process may use.

    Raises
    ------
    InputError, OptionError
        A file that cannot be used.
    WriteError
        The disk is full, or refuses otherwise.
    """
    # Here, because they import the libraries that read images: help and mistakes must not wait for that.
    from itk_nir.places import check_output_file
    from itk_nir.transforms.load import read_transform

    threads = environment_number(THREADS, 1) if threads is None else threads
    say = tell if request.verbose else _nothing
    # It may be one of the files that are read, as in ANTs' scripts: it appears when it is complete.
    check_output_file(request.output)
    for line in _told(request):
        say(line)
    grid = grid_of(request.reference, "reference image")
    if grid is not None and grid.dimension != request.dimension:
        raise InputError(
            f"reference image {request.reference}: is {grid.dimension}D, but --dimensionality is {request.dimension}"
        )
    chain = chain_of(request.transforms, lambda file: read_transform(file, grid), request.dimension)
    if chain.dimension != request.dimension:
        raise InputError(f"the transforms are {chain.dimension}D, but --dimensionality is {request.dimension}")
    if request.kind == "linear":
        _write_linear(chain, request)
    elif request.kind == "composite":
        _write_composite(chain, request)
    else:
        assert grid is not None
        if request.kind == "field":
            _write_field(chain, grid, request, threads)
        else:
            _write_image(chain, grid, request, threads)
    say(f"Output {request.kind}: {request.output}")


def _nothing(text: str) -> None:
    """Print nothing."""


def _told(request: Request) -> Iterator[str]:
    """What ``-v 1`` prints before the work begins."""
    yield f"Using {'single' if request.single else 'double'} precision for what is written."
    yield f"Input {INPUT_TYPES[request.input_type][0]} image: {request.input or 'none'}"
    yield f"Reference image: {request.reference or 'none'}"
    yield "The composite transform comprises the following transforms (in order): "
    for place, entry in enumerate(request.transforms, start=1):
        yield f"  {place}. {'inverse of ' if entry.inverse else ''}{entry.file or 'identity'}"
    yield f"Default pixel value: {request.fill:g}"
    yield f"Interpolation type: {request.interpolation.itk}"
    for name in request.given:
        yield f"  --{name}: {FLAGS[name].status}: {FLAGS[name].meaning}"
    support = request.interpolation.support
    yield f"  --interpolation {request.interpolation.name}: {support.status}: {support.meaning}"


def _write_linear(chain: CompositeTransform, request: Request) -> None:
    from itk_nir.atomic import replacing
    from itk_nir.transforms.formats.itk_text import write_itk_file

    if not chain.is_linear:
        raise InputError("--output Linear[...]: the transforms are not all linear; write DisplacementField[...]")
    if not request.output.lower().endswith((".mat", ".txt", ".tfm")):
        raise InputError(f"{request.output}: a linear transform is written to .mat, .txt or .tfm; end the name so")
    collapsed = chain.simplified()
    collapsed = collapsed.inverse() if request.invert else collapsed
    with replacing(request.output) as temporary:
        write_itk_file(collapsed, temporary)


def _write_composite(chain: CompositeTransform, request: Request) -> None:
    from itk_nir.transforms.formats.itk_h5 import write_h5

    if not request.output.lower().endswith((".h5", ".hdf5")):
        raise InputError(f"{request.output}: a composite transform is written to .h5; end the name so")
    write_h5(chain, request.output)


def _write_field(chain: CompositeTransform, grid: Geometry, request: Request, threads: int | None) -> None:
    from itk_nir.images import save_image
    from itk_nir.interpolating import displacement_on
    from itk_nir.transforms.formats.itk_h5 import write_h5
    from itk_nir.transforms.model import CompositeTransform

    field = displacement_on(chain, grid, threads=threads)
    if request.output.lower().endswith((".h5", ".hdf5")):
        write_h5(CompositeTransform((field,)), request.output)
        return
    vectors = field.vectors if request.single else field.vectors.astype(np.float64)
    save_image(vectors, grid, request.output)


def _write_image(chain: CompositeTransform, grid: Geometry, request: Request, threads: int | None) -> None:
    from itk_nir.images import check_image_name, save_image
    from itk_nir.images.series import open_series
    from itk_nir.images.series_writing import check_series_path, write_series

    check_image_name(request.output)
    series = request.input_type == "3" and request.time_index is None
    if series and request.dimension == 3:
        check_series_path(request.output)
    source = open_series(request.input, "input image", nan="mask")
    for text in texts(source.findings):  # ANTs may read such a header otherwise
        warn_caller(text)
    volumes = _volumes(source, request)
    seen = (_seen(volume, chain, grid, request, threads) for volume in volumes)
    if not series:
        save_image(next(seen), grid, request.output)
    elif request.dimension == 3:
        write_series(seen, source.count, grid, source.time or ALONE, request.output)
    else:
        save_image(np.stack(list(seen)), _with_axis(grid, source.geometry), request.output)


def _volumes(source: Series, request: Request) -> Iterator[Volume]:
    """What is to be warped, one after the other."""
    d, name = request.dimension, INPUT_TYPES[request.input_type][0]
    dimension = source.geometry.dimension + (source.time is not None)
    wanted = d + (request.input_type == "3")
    if dimension != wanted and not (request.input_type == "3" and dimension == d):
        raise InputError(
            f"{source.name}: is {dimension}D, but --input-image-type {name} with --dimensionality {d} is {wanted}D; "
            "give another type"
        )
    flat = request.input_type == "3" and d == 2 and dimension == 3
    volumes = _slices(next(source.volumes())) if flat else source.volumes()
    for place, volume in enumerate(volumes):
        several = volume.array.ndim > d
        if several != (request.input_type in _OF_SEVERAL):
            what = f"has {volume.array.shape[-1]} values a pixel" if several else "has one value a pixel"
            raise InputError(f"{source.name}: {what}; that is not --input-image-type {name}")
        if request.input_type in _OF_VECTORS and volume.array.shape[-1] != d:
            raise InputError(f"{source.name}: has {volume.array.shape[-1]} values a pixel; vectors have {d}")
        if request.time_index in (None, place) or request.input_type != "3":
            yield volume
            if request.time_index is not None:
                return
    if request.time_index is not None and request.input_type == "3":
        raise InputError(f"{source.name}: --time-index {request.time_index} is not below its {place + 1} volumes")


def _slices(volume: Volume) -> Iterator[Volume]:
    """The slices of a 3D image that is a series of 2D ones."""
    from itk_nir.geometry import Geometry

    g = volume.geometry
    flat = Geometry.make(g.size[:2], g.spacing[:2], g.origin[:2], g.rotation[:2, :2])
    for k, part in enumerate(volume.array):
        missing = None if volume.missing is None else volume.missing[k]
        yield replace(volume, array=np.ascontiguousarray(part), geometry=flat, missing=missing)


def _with_axis(grid: Geometry, series: Geometry) -> Geometry:
    """A 2D grid with the third axis of a series."""
    from itk_nir.geometry import Geometry

    direction, size, (spacing, origin) = np.eye(3), 1, ALONE
    if series.dimension == 3:
        direction, size = series.rotation.copy(), series.size[2]
        spacing, origin = series.spacing[2], series.origin[2]
    direction[:2, :2] = grid.rotation
    return Geometry.make((*grid.size, size), (*grid.spacing, spacing), (*grid.origin, origin), direction)


def _seen(
    volume: Volume, chain: CompositeTransform, grid: Geometry, request: Request, threads: int | None
) -> NDArray[Any]:
    """One volume on the grid of the reference."""
    from itk_nir.programs import ants_vectors
    from itk_nir.resample import resample

    several = volume.array.ndim > volume.geometry.dimension
    vectors, of_voxels = request.input_type in _OF_VECTORS, request.input_type == "1"
    array = volume.array
    if of_voxels:
        array = ants_vectors.from_image_to_grid(array.astype(np.float64), volume.geometry, grid)
    # Vectors are turned in double precision.
    real = np.dtype(np.float32 if request.pixel_type == "float32" and not vectors else np.float64)
    parts = []
    for part in np.moveaxis(array, -1, 0) if several else [array]:
        one = replace(volume, array=np.ascontiguousarray(part))
        parts.append(resample(one, chain, grid, request.how, request.fill, pixel_type=real, threads=threads))
    seen = np.stack(parts, -1) if several else parts[0]
    if vectors:
        seen = ants_vectors.turned(seen, chain, grid, of_voxels=of_voxels)
    return _cast(seen, np.dtype(request.pixel_type))


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Whole numbers lose what is behind the point, as by a cast of C++; they are clipped where their type ends."""
    if dtype.kind == "f":
        return values.astype(dtype, copy=False)
    ends = np.iinfo(dtype)
    return np.trunc(values).clip(ends.min, ends.max).astype(dtype)


# --- help ------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    """What ``--help`` prints.

    Returns
    -------
    str
    """
    short = {long: f"-{letter}, " for letter, long in NAMES.items()}
    lines = ["", "COMMAND: ", "     antsApplyTransforms"]
    lines += _wrapped(
        "Takes the command lines of ANTs' antsApplyTransforms, and warps an image onto the grid of a reference image "
        "through a list of transforms.", 10,
    )  # fmt: skip
    lines += ["", "OPTIONS: ", "     --version ", "     -h, --help "]
    for name, support in FLAGS.items():
        lines += _entry(f"{short.get(name, '')}--{name}", support)
    lines += ["", "INPUT IMAGE TYPES: "]
    for key, (name, support) in INPUT_TYPES.items():
        lines += _entry(f"{key}, {name}", support)
    lines += ["", "INTERPOLATIONS: "]
    for entry in INTERPOLATIONS.values():
        lines += _entry(entry.name, entry.support)
    return "\n".join(lines)


def _entry(what: str, support: OptionSupport) -> list[str]:
    return [f"     {what} ", *_wrapped(f"{support.status}: {support.meaning}", 10)]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=" " * indent, subsequent_indent=" " * indent)
