"""Other programs' transforms, damaged ones, units and scale."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

import itk_nir
from itk_nir.cli import main
from itk_nir.geometry import Geometry
from itk_nir.images import to_sitk
from itk_nir.phantom import brain_phantom
from itk_nir.transforms import CompositeTransform, DisplacementField, LinearTransform
from itk_nir.transforms.formats.elastix import write_elastix
from itk_nir.transforms.formats.itk_h5 import write_h5
from itk_nir.transforms.save import FORMATS, save_transform, write_both
from tests.robustness.campaign import Case

FLIP = np.array([-1.0, -1.0, 1.0])
#: A map of RAS mm, fixed -> moving, and the voxels of a grid with where it takes them, RAS mm.
RAS = np.array([[1.05, 0.1, -0.02, 4.0], [-0.08, 0.97, 0.05, -7.0], [0.03, -0.06, 1.1, 9.5], [0, 0, 0, 1.0]])
GRID = np.array([[-4, 0, 0, 38.0], [0, 5, 0, -40], [0, 0, 4.5, -30], [0, 0, 0, 1]])
SIZE = (12, 14, 10)
VOXELS = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE], indexing="ij"), -1) @ GRID[:3, :3].T + GRID[:3, 3]
MAPPED = VOXELS @ RAS[:3, :3].T + RAS[:3, 3]
POINTS = np.random.default_rng(0).uniform(-5, 30, (20, 3))


def error(transform: CompositeTransform) -> float:
    """How far a transform is from the map, mm."""
    p = POINTS * FLIP
    wanted = (p @ RAS[:3, :3].T + RAS[:3, 3]) * FLIP
    return float(np.abs(transform.map(POINTS) - wanted).max())


def of_field(transform: CompositeTransform) -> float:
    """The same at the voxels of the grid."""
    return float(np.abs(transform.map(VOXELS.reshape(-1, 3) * FLIP) - MAPPED.reshape(-1, 3) * FLIP).max())


def field(intent: int, name: str = "", first: float = 0.0, values: np.ndarray = MAPPED) -> Callable[[Path], float]:
    """A 5D NIfTI file with an intent."""

    def run(folder: Path) -> float:
        image = nib.Nifti1Image(values.reshape(*SIZE, 1, 3).astype("f4"), GRID)
        image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name, first
        nib.save(image, folder / "w.nii.gz")
        return of_field(itk_nir.load_transform(folder / "w.nii.gz"))

    return run


def text(name: str, content: str, measure: Callable[[CompositeTransform], float] = error, **how: object):
    """A text file."""

    def run(folder: Path) -> float:
        (folder / name).write_text(content)
        return measure(itk_nir.load_transform(folder / name, **how))

    return run


def rows(matrix: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:.14g}" for v in row) for row in matrix) + "\n"


def four_dimensional(folder: Path) -> float:
    nib.save(nib.Nifti1Image((MAPPED - VOXELS).astype("f4"), GRID), folder / "w.nii.gz")
    return of_field(itk_nir.load_transform(folder / "w.nii.gz"))


def flirt(folder: Path) -> float:
    """Both images with a determinant below 0: FSL's coordinates are voxels times spacing."""
    scale = np.diag([4, 5, 4.5, 1.0])
    matrix = np.linalg.inv(scale @ np.linalg.inv(GRID) @ RAS @ GRID @ np.linalg.inv(scale))
    (folder / "m.mat").write_text(rows(matrix))
    lps = np.diag([*FLIP, 1]) @ GRID
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = Geometry.make(SIZE, spacing, lps[:3, 3], lps[:3, :3] / spacing)
    return error(itk_nir.load_transform(folder / "m.mat", image, moving=image, convention="fsl"))


def as_object(folder: Path) -> float:
    return error(itk_nir.load_transform(RAS, convention="ras"))


def applied(folder: Path, *more: str) -> float:
    """`itk-nir convert` of a RAS matrix."""
    (folder / "greedy.mat").write_text(rows(RAS))
    status = main(["convert", str(folder / "greedy.mat"), str(folder / "t.tfm"), *more])
    if status:
        raise itk_nir.InputError(f"status {status}")
    return error(itk_nir.load_transform(folder / "t.tfm"))


# --- damage ----------------------------------------------------------------------------------------------------------

SMALL = Geometry.make([5, 4], [1.5, 2.0], [3.0, -4.0])
BOTH = CompositeTransform(
    (
        DisplacementField(SMALL, np.random.default_rng(0).normal(size=(4, 5, 2))),
        LinearTransform.make([[1.1, 0.123456], [-0.2, 0.95]], [3.25, -4.125], [10, 20]),
    )
)


def write(path: Path) -> None:
    if path.name.startswith("TransformParameters"):
        write_elastix(BOTH, f"{path.parent}/", SMALL)
    elif path.suffix == ".h5":
        write_h5(BOTH, path)
    elif path.suffix in (".mat", ".xfm"):
        d = 3 if path.suffix == ".xfm" else 2
        sitk.WriteTransform(sitk.AffineTransform(np.eye(d).ravel() * 1.25, [1.5] * d, [3.25] * d), str(path))
    else:
        save_transform(BOTH, path, reference=SMALL)


def cuts(name: str) -> Callable[[Path], float]:
    """Cut at 60 places, more of them at the end: refused, or the same map."""

    def run(folder: Path) -> float:
        path = folder / name
        write(path)
        raw = path.read_bytes()
        whole = itk_nir.load_transform(path)
        p = np.full((1, whole.dimension), 4.1)
        worst, refused = 0.0, 0
        places = {*np.linspace(0, len(raw) - 1, 30).astype(int).tolist(), *range(max(0, len(raw) - 30), len(raw))}
        for at in sorted(places):
            path.write_bytes(raw[:at])
            try:
                worst = max(worst, float(np.abs(itk_nir.load_transform(path).map(p) - whole.map(p)).max()))
            except itk_nir.InputError:
                refused += 1
        return worst if refused > len(places) // 2 else 1.0

    return run


def spoilt(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        path = folder / name
        write(path)
        path.write_bytes(change(path.read_bytes()))
        itk_nir.load_transform(path)
        return 0.0

    return run


def repacked(raw: bytes) -> bytes:
    """A packed file whose checksum is of something else."""
    packed = bytearray(gzip.compress(raw))
    packed[-5] ^= 0x55
    return bytes(packed)


# --- units -----------------------------------------------------------------------------------------------------------


def unit(kind: str, spacing: float, away: float) -> Callable[[Path], float]:
    """A result written in a format: how much of its tolerance it needs."""

    def run(folder: Path) -> float:
        grid = Geometry.make([8, 7, 6], [spacing] * 3, np.array([1, -2, 0.5]) * away * spacing)
        waves = np.sin((grid.grid() - grid.centre) / spacing / 3) * spacing
        there, back = DisplacementField(grid, waves), DisplacementField(grid, waves).inverse()
        linear = LinearTransform.make(np.diag([1.1, 0.9, 1.05]), [2 * spacing] * 3, grid.centre)
        both = CompositeTransform((there, linear), (linear.inverse(), back))
        written = write_both(kind, both, grid, grid, folder, "x_", folder)
        return max(written.differences.values()) / spacing

    return run


def registered(spacing: float, away: float) -> Callable[[Path], float]:
    """The deformation of two images in another unit, beside that in mm, in voxels."""

    def run(folder: Path) -> float:
        phantom = brain_phantom(2, (40, 48))
        found = []
        for scale, shift in ((1.0, 0.0), (spacing, away)):
            grid = Geometry.make(phantom.geometry.size, [scale] * 2, [shift * scale] * 2)
            images = (to_sitk(a, grid) for a in (phantom.fixed, phantom.moving))
            result = itk_nir.register(*images, preset="fast", iterations=3, linear="none", threads=1)
            saved = result.save(f"{folder}/{scale}_")
            p = grid.index_to_physical([[10, 12], [20, 30], [30, 20]])
            moved = itk_nir.load_transform(saved["composite"]).map(p)
            found.append(grid.physical_to_index(moved))
        return float(np.abs(found[0] - found[1]).max())

    return run


def mirrored(folder: Path) -> float:
    phantom = brain_phantom(2, (40, 48))
    fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    start = np.diag([-1.0, 1.0, 1.0])
    itk_nir.register(fixed, moving, initial_transform=start, preset="fast", iterations=1, linear="none", threads=1)
    return 0.0


AFNI = np.diag([*FLIP, 1]) @ RAS @ np.diag([*FLIP, 1])
XFM = "MNI Transform File\n% a comment\n\nTransform_Type = Linear;\nLinear_Transform =\n"

CASES = [
    Case("SPM y_ field", field(1007, "Mapping")),
    Case("NiftyReg deformation", field(1007, "NREG_TRANS", 0)),
    Case("NiftyReg displacement", field(1007, "NREG_TRANS", 1, MAPPED - VOXELS)),
    Case("NiftyReg control points, no reference", field(1007, "NREG_TRANS", 2), refused="give the fixed image"),
    Case("NiftyReg velocities", field(1007, "NREG_TRANS", 3), refused="velocity field.*reg_transform"),
    Case("NiftyReg velocity control points", field(1007, "NREG_TRANS", 5), refused="of a velocity.*reg_transform"),
    Case("NiftyReg of an old version", field(1007, "NREG_CPP_FILE"), refused="NREG_CPP_FILE"),
    Case("RAS displacements, intent 1006", field(1006, "", 0, MAPPED - VOXELS)),
    Case("LPS displacements, intent 1007", field(1007, "", 0, (MAPPED - VOXELS) * FLIP)),
    Case("RAS positions, no name", field(1007), refused="absolute positions in RAS"),
    Case("LPS positions, no name", field(1007, "", 0, MAPPED * FLIP), refused="absolute positions in LPS"),
    Case("FNIRT field", field(2006), refused="FNIRT.*wb_command"),
    Case("FNIRT coefficients", field(2009), refused="coefficients of FSL's FNIRT.*fnirtfileutils"),
    Case("FNIRT DCT coefficients", field(2008), refused="FNIRT"),
    Case("topup coefficients", field(2016), refused="topup"),
    Case("topup field", field(2018), refused="topup"),
    Case("4D (x, y, z, 3)", four_dimensional, refused="says nowhere whether they are displacements"),
    Case("FLIRT matrix", flirt),
    Case("FLIRT matrix without images", text("m.mat", rows(RAS), convention="fsl"), refused="give the fixed one"),
    Case("4x4 text without a convention", text("m.txt", rows(RAS)), refused="give its convention"),
    Case("4x4 .mat in text", text("greedy.mat", rows(RAS), convention="greedy")),
    Case("4x4 text of NiftyReg", text("aff.txt", rows(RAS), convention="niftyreg")),
    Case("4x4 text with commas", text("aff.csv", rows(RAS).replace(" ", ","), convention="ras")),
    Case("4x4 text in LPS", text("itk.txt", rows(AFNI), convention="lps")),
    Case("MRtrix", text("t.txt", "# command_history: mrregister\n#centre: 1 2 3\n" + rows(RAS))),
    Case("AFNI .aff12.1D", text("a.aff12.1D", rows(AFNI[:3].reshape(1, -1)))),
    Case("AFNI matrices of a series", text("a.aff12.1D", 3 * rows(AFNI[:3].reshape(1, -1))), refused="3 matrices"),
    Case("AFNI parameters", text("a.1D", "# 3dAllineate parameters:\n" + "0 " * 12 + "\n"), refused="no matrix"),
    Case("AFNI .1D that says nothing", text("a.1D", rows(AFNI[:3].reshape(1, -1))), refused="give its convention"),
    Case("MINC .xfm", text("a.xfm", XFM + rows(np.linalg.inv(RAS)[:3]).rstrip() + ";\n")),
    Case(".xfm cut before its end", text("a.xfm", XFM + rows(np.linalg.inv(RAS)[:3])), refused="damaged"),
    Case(".xfm of a grid", text("a.xfm", "MNI Transform File\nTransform_Type = Grid_Transform;\n"), refused="Grid"),
    Case("FreeSurfer register.dat", text("register.dat", "bert\n1\n1\n"), refused="lta_convert"),
    Case("FreeSurfer .lta cut", text("a.lta", "type = 1\nnxforms = 1\n1 4 4\n1 0 0"), refused="truncated"),
    Case("a matrix object in RAS", as_object),
    Case("convert --convention ras", lambda folder: applied(folder, "--convention", "ras")),
    Case("an unknown convention", text("m.txt", rows(RAS), convention="spm"), refused="convention is one of"),
    Case("singular matrix", text("m.txt", rows(RAS * [1, 1, 0, 1]), convention="ras"), refused="invertible"),
    Case("last row not 0 0 0 1", text("m.txt", rows(RAS + 1), convention="ras"), refused="last row"),
    Case("3x3 text of a 3D matrix", text("m.txt", rows(np.ones((3, 4))), convention="ras"), refused="invertible"),
    Case("a rectangle of numbers", text("m.txt", rows(np.ones((5, 4))), convention="ras"), refused="4x4"),
    *(
        Case(f"{name} cut at 60 places", cuts(name), within=0.0)
        for name in (
            "t.tfm", "t.txt", "t.mat", "t.xfm", "t.h5", "t.nii", "t.nii.gz", "t.nrrd", "t.mha",
            "TransformParameters.1.txt",
        )
    ),
    Case("trailing bytes in .mat", spoilt("t.mat", lambda raw: raw + b"\0\0"), refused="damaged"),
    Case("a number less in .tfm", spoilt("t.tfm", lambda raw: raw.replace(b"1.1 ", b"", 1)), refused="5 parameters"),
    Case("NaN in .tfm", spoilt("t.tfm", lambda raw: raw.replace(b"1.1 ", b"nan ", 1)), refused="no finite number"),
    Case("elastix with a number less", spoilt("TransformParameters.1.txt", lambda raw: raw.replace(b" 1.1", b"", 1)),
         refused="has 5 values, 6 are needed"),
    Case("elastix without its grid", spoilt("TransformParameters.1.txt", lambda raw: raw.replace(b"(Dir", b"//(", 1)),
         refused="lacks Direction"),
    Case("gzip with another checksum", spoilt("t.nii.gz", lambda raw: repacked(gzip.decompress(raw))),
         refused="damaged"),
    *(
        Case(f"{kind}, voxels of {spacing:g}, {away:g} voxels away", unit(kind, spacing, away))
        for kind in FORMATS
        for spacing, away in ((1e-6, 1e-6), (1e-6, 1e7), (1e6, 1e7))
    ),
    Case("registered in nanometres", registered(1e6, 0.0)),
    Case("registered in metres", registered(1e-6, 0.0)),
    Case("registered in stage coordinates", registered(1.0, 1e6)),
    Case("mirroring initial transform", mirrored, warned="initial transform: mirrors"),
]  # fmt: skip
