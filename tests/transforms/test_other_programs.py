"""Other programs' transforms, against their definitions written out here."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import itk_nir
from itk_nir.errors import InputError, OptionError
from itk_nir.geometry import Geometry
from itk_nir.images.series import load_grid
from itk_nir.transforms.formats.field_image import write_vectors
from itk_nir.transforms.load import read_transform


def oblique(d: int) -> Geometry:
    """A grid along no axis."""
    return Geometry.make([9, 8, 7][:d], [3.0, 4.0, 5.0][:d], [-20.0, 30.0, 10.0][:d], turn(0.4)[:d, :d])


FLIP = np.diag([-1.0, -1, 1, 1])
#: A linear map in RAS mm, fixed -> moving.
RAS = np.array([[1.05, 0.1, -0.02, 4.0], [-0.08, 0.97, 0.05, -7.0], [0.03, -0.06, 1.1, 9.5], [0, 0, 0, 1.0]])


def lps(ras: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where a RAS matrix takes LPS points."""
    p = points * [-1, -1, 1]
    return (p @ ras[:3, :3].T + ras[:3, 3]) * [-1, -1, 1]


def points(count: int = 40) -> np.ndarray:
    return np.random.default_rng(3).uniform(-40, 40, (count, 3))


def geometry_of(affine: np.ndarray, size: tuple[int, ...]) -> Geometry:
    """The grid of a NIfTI affine (RAS)."""
    m = FLIP @ affine
    spacing = np.linalg.norm(m[:3, :3], axis=0)
    return Geometry.make(size, spacing, m[:3, 3], m[:3, :3] / spacing)


def turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def affine(spacing: list[float], origin: list[float], angle: float, flip: bool) -> np.ndarray:
    """A NIfTI affine; with `flip` its determinant is below 0 ("radiological")."""
    m = np.eye(4)
    m[:3, :3] = turn(angle) @ np.diag(np.array(spacing) * [-1 if flip else 1, 1, 1])
    m[:3, 3] = origin
    return m


# --- matrices in text ------------------------------------------------------------------------------------------------


def fsl_of_voxels(affine_: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """FSL's coordinates of voxels: times the spacing, x from the other side where the determinant is above 0."""
    m = np.diag([*np.linalg.norm(affine_[:3, :3], axis=0), 1.0])
    if np.linalg.det(affine_) > 0:
        swap = np.eye(4)
        swap[0, 0], swap[0, 3] = -1, size[0] - 1
        m = m @ swap
    return m


@pytest.mark.parametrize("flips", [(False, False), (True, True), (True, False), (False, True)])
def test_flirt(flips: tuple[bool, bool], tmp_path: Path) -> None:
    ref, src = affine([2, 1.5, 3], [-20, 10, 5], 0.3, flips[0]), affine([1, 2, 2.5], [30, -9, 4], -0.2, flips[1])
    sizes = (20, 24, 18), (31, 22, 16)
    # FLIRT's matrix of the map whose inverse, fixed -> moving, is RAS.
    flirt = (
        fsl_of_voxels(ref, sizes[0]) @ np.linalg.inv(ref) @ np.linalg.inv(RAS) @ src
        @ np.linalg.inv(fsl_of_voxels(src, sizes[1]))
    )  # fmt: skip
    np.savetxt(tmp_path / "m.mat", flirt, fmt="%.12f")
    grids = [geometry_of(a, s) for a, s in zip((ref, src), sizes, strict=True)]
    found = itk_nir.load_transform(tmp_path / "m.mat", grids[0], moving=grids[1], convention="fsl")
    np.testing.assert_allclose(found.map(points()), lps(RAS, points()), atol=1e-8)
    # Images tell their grids too.
    paths = [tmp_path / "f.nii", tmp_path / "m.nii"]
    for path, a, s in zip(paths, (ref, src), sizes, strict=True):
        nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=s).astype("f4"), a), path)
    found = itk_nir.load_transform(tmp_path / "m.mat", paths[0], moving=paths[1], convention="flirt")
    np.testing.assert_allclose(found.map(points()), lps(RAS, points()), atol=1e-3)
    with pytest.raises(InputError, match=r"give the fixed one .* and the moving one"):
        itk_nir.load_transform(tmp_path / "m.mat", grids[0], convention="fsl")


def test_a_matrix_behind_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors of Windows write one."""
    path = tmp_path / "m.txt"
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in RAS.tolist()), encoding="utf-8-sig")
    found = itk_nir.load_transform(path, convention="ras")
    np.testing.assert_allclose(found.map(points()), lps(RAS, points()), atol=1e-8)


def test_flirt_of_an_image_that_may_have_no_orientation_is_questioned(tmp_path: Path) -> None:
    """FSL does not turn x round where both codes are 0, and our grid does not tell that they are."""
    np.savetxt(tmp_path / "m.mat", np.eye(4))
    none, placed = Geometry.make((20, 24, 18)), oblique(3)
    with pytest.warns(UserWarning, match="the moving image lies as images without an orientation") as told:
        itk_nir.load_transform(tmp_path / "m.mat", placed, moving=none, convention="fsl")
    assert len(told) == 1


@pytest.mark.parametrize("kind", ["nifti", "analyze", "in memory", "4D"])
def test_flirt_of_images_without_orientation_is_read_as_fsl_does(kind: str, tmp_path: Path) -> None:
    """FSL takes both codes 0 for radiological, so that x is not counted from the other side, whatever the axes are."""
    spacing, size = (2.0, 1.5, 3.0), (20, 24, 18)
    m = affine([1, 1, 1], [5, -3, 2], 0.2, False)
    np.savetxt(tmp_path / "m.mat", m, fmt="%.12f")
    data = np.ones((*size, 2) if kind == "4D" else size, np.int16)
    image = nib.Nifti1Image(data, None) if kind != "analyze" else nib.AnalyzeImage(data, None)
    image.header.set_zooms((*spacing, 1.0) if kind == "4D" else spacing)
    path = tmp_path / ("f.hdr" if kind == "analyze" else "f.nii")
    nib.save(image, path)
    assert kind == "analyze" or nib.load(path).header["sform_code"] == nib.load(path).header["qform_code"] == 0
    source = nib.load(path) if kind == "in memory" else path
    found = itk_nir.load_transform(tmp_path / "m.mat", source, moving=source, convention="fsl")
    grid = load_grid(source, "image")
    index = np.random.default_rng(0).uniform(0, 17, (50, 3))
    moved = (index * spacing) @ np.linalg.inv(m)[:3, :3].T + np.linalg.inv(m)[:3, 3]
    expected = grid.index_to_physical(moved / spacing)
    np.testing.assert_allclose(found.map(grid.index_to_physical(index)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["m.mat", "m.txt", "m.tfm", "affine", "m.aff"])
def test_matrices_in_text_need_a_convention(name: str, tmp_path: Path) -> None:
    np.savetxt(tmp_path / name, RAS)
    with pytest.raises(InputError, match=r"give its convention .*fsl .*ras .*lps"):
        read_transform(tmp_path / name)
    for convention in ("ras", "greedy", "c3d", "niftyreg", "mrtrix"):
        found = read_transform(tmp_path / name, convention=convention).map(points())
        np.testing.assert_allclose(found, lps(RAS, points()), atol=1e-9)
    there = points() @ RAS[:3, :3].T + RAS[:3, 3]
    for convention in ("lps", "itk"):
        np.testing.assert_allclose(
            read_transform(tmp_path / name, convention=convention).map(points()), there, atol=1e-9
        )
    with pytest.raises(OptionError, match=r"convention is one of .*got 'spm'"):
        read_transform(tmp_path / name, convention="spm")


def test_a_matrix_in_memory_may_have_a_convention() -> None:
    np.testing.assert_allclose(read_transform(RAS, convention="ras").map(points()), lps(RAS, points()), atol=1e-9)
    m = np.array([[1, 0, 5], [0, 1, -3], [0, 0, 1.0]])
    np.testing.assert_allclose(read_transform(m, convention="ras").map([[1.0, 2]]), [[-4, 5]])


def test_mrtrix_tells_itself(tmp_path: Path) -> None:
    rows = "\n".join(" ".join(f"{v:.12g}" for v in row) for row in RAS)
    (tmp_path / "t.txt").write_text(f"# command_history: mrregister a.mif b.mif -affine t.txt\n#centre 1 2 3\n{rows}\n")
    np.testing.assert_allclose(read_transform(tmp_path / "t.txt").map(points()), lps(RAS, points()), atol=1e-8)


def test_afni(tmp_path: Path) -> None:
    """DICOM coordinates, which are LPS, from the base (fixed) to the source (moving)."""
    m = FLIP @ RAS @ FLIP
    row = " ".join(f"{v:.10g}" for v in m[:3].ravel())
    head = "# 3dAllineate matrices (DICOM-to-DICOM, row-by-row):\n"
    files = {
        "one.aff12.1D": f"{head}{row}\n", "bare.aff12.1D": f"{row}\n", "told.1D": f"{head}{row}\n",
        "rows.aff12.1D": "\n".join(" ".join(f"{v:.10g}" for v in r) for r in m[:3]) + "\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        np.testing.assert_allclose(read_transform(tmp_path / name).map(points()), lps(RAS, points()), atol=1e-7)
    (tmp_path / "series.aff12.1D").write_text(f"{head}{row}\n{row}\n")
    (tmp_path / "p.param.1D").write_text("# 3dAllineate parameters:\n" + " ".join(["0"] * 12) + "\n")
    (tmp_path / "plain.1D").write_text(f"{row}\n")
    (tmp_path / "motion.1D").write_text("0 0 0 0 0 0\n" * 9)
    for name, text in (
        ("series.aff12.1D", "2 matrices"), ("p.param.1D", "AFNI's parameters"), ("plain.1D", "convention"),
        ("motion.1D", "rows of 6"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            read_transform(tmp_path / name)
    with pytest.raises(InputError, match="oblique"):
        read_transform(tmp_path / "one.aff12.1D", oblique(3))


def test_damaged_matrices(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    for text, what in (
        ("1 0 0 1\n0 1 0 2\n0 0 1 3\n0 0 0", "truncated"),
        ("1 0 0 1\n0 1 0 2\n0 0 1 nan\n0 0 0 1\n", "'nan' is no number"),
        ("1 0 0 1\n0 1 0 2\n0 0 1 3\n0 0 1 1\n", "last row"),
        ("1 0 0 1\n0 1 0 2\n0 0 1 3", "not complete"),
        ("1 0 0 1\n0 1 0 2\n0 0 0 3\n0 0 0 1\n", "invertible"),
        ("1 0 0 1\n0 1 0 2\n0 0 1_0 3\n0 0 0 1\n", "'1_0' is no number"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=what) as error:
            read_transform(path, convention="ras")
        assert str(error.value).startswith(f"transform {path}: ")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_comments_of_matrices_in_any_encoding(end: bytes, tmp_path: Path) -> None:
    """Python ends a line at U+2028 and others as well, which are part of a comment."""
    rows = [" ".join(f"{v:.15g}" for v in row).encode() for row in RAS]
    path = tmp_path / "m.txt"
    path.write_bytes(end.join([b"# caf\xe9, 3 \xb5m \x85 \xe2\x80\xa8 on", *rows, b""]))
    np.testing.assert_allclose(read_transform(path, convention="ras").map(points()), lps(RAS, points()), atol=1e-9)


# --- FreeSurfer, MINC ------------------------------------------------------------------------------------------------

LTA = """# transform file {name}
# created by a program

type      = {kind} # LINEAR_RAS_TO_RAS
nxforms   = 1
mean      = 0.0000 0.0000 0.0000
sigma     = 10000.0000
1 4 4
{rows}
src volume info
{source}
dst volume info
{target}
subject fsaverage
fscale 0.150000
"""


def volume_info(affine_: np.ndarray, size: tuple[int, ...]) -> str:
    """FreeSurfer keeps the middle of the volume, which is the voxel size / 2, instead of its corner."""
    spacing = np.linalg.norm(affine_[:3, :3], axis=0)
    axes = affine_[:3, :3] / spacing
    middle = affine_[:3, :3] @ (np.array(size) / 2) + affine_[:3, 3]
    lines = [
        f"{n} = " + " ".join(f"{v:.15e}" for v in axes[:, k]) for k, n in enumerate(("xras  ", "yras  ", "zras  "))
    ]
    return "\n".join([
        "valid = 1  # volume info valid", "filename = /a/b#c.mgz", f"volume = {size[0]} {size[1]} {size[2]}",
        "voxelsize = " + " ".join(f"{v:.15e}" for v in spacing), *lines,
        "cras   = " + " ".join(f"{v:.15e}" for v in middle),
    ])  # fmt: skip


@pytest.mark.parametrize("kind", [0, 1])
def test_lta(kind: int, tmp_path: Path) -> None:
    """From the source, which is the moving image, to the destination."""
    fixed, moving = affine([2, 1.5, 3], [-20, 10, 5], 0.3, True), affine([1, 2, 2.5], [30, -9, 4], -0.2, False)
    sizes = (21, 24, 18), (31, 22, 17)
    m = np.linalg.inv(RAS) if kind == 1 else np.linalg.inv(fixed) @ np.linalg.inv(RAS) @ moving
    rows = "\n".join(" ".join(f"{v:.15e}" for v in row) for row in m)
    ends = volume_info(moving, sizes[1]), volume_info(fixed, sizes[0])
    text = LTA.format(name="t.lta", kind=kind, rows=rows, source=ends[0], target=ends[1])
    path = tmp_path / "t.lta"
    path.write_text(text)
    np.testing.assert_allclose(read_transform(path).map(points()), lps(RAS, points()), atol=1e-6)
    # Asked for the other way round, with both images known, it is turned.
    grids = geometry_of(moving, sizes[1]), geometry_of(fixed, sizes[0])
    back = read_transform(path, grids[0], moving=grids[1])
    np.testing.assert_allclose(back.map(lps(RAS, points())), points(), atol=1e-6)
    straight = read_transform(path, grids[1], moving=grids[0])
    np.testing.assert_allclose(straight.map(points()), lps(RAS, points()), atol=1e-6)
    for encoding in ("utf-8", "latin-1"):
        path.write_text(text.replace("/a/b#c.mgz", "/données/Åse/b.mgz"), encoding=encoding)
        np.testing.assert_allclose(read_transform(path).map(points()), lps(RAS, points()), atol=1e-6)
    for cut in range(0, len(text.rstrip()), 37):
        path.write_text(text[:cut])
        try:
            found = read_transform(path).map(points())
        except InputError:
            continue
        np.testing.assert_allclose(found, lps(RAS, points()), atol=1e-6)
    path.write_text(text.replace(f"type      = {kind}", "type      = 14"))
    with pytest.raises(InputError, match="REGISTER_DAT"):
        read_transform(path)
    (tmp_path / "register.dat").write_text("bert\n1.0\n1.0\n0.15\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\nround\n")
    with pytest.raises(InputError, match=r"register.dat names no geometry"):
        read_transform(tmp_path / "register.dat")


def test_xfm(tmp_path: Path) -> None:
    """MINC's and FreeSurfer's from the moving image to the fixed one in RAS; ITK's as it is."""
    m = np.linalg.inv(RAS)
    rows = "\n".join(" ".join(f"{v:.15g}" for v in row) for row in m[:3])
    text = f"MNI Transform File\n% avi2talxfm\n\nTransform_Type = Linear;\nLinear_Transform =\n{rows};\n"
    path = tmp_path / "talairach.xfm"
    path.write_text(text)
    np.testing.assert_allclose(read_transform(path).map(points()), lps(RAS, points()), atol=1e-9)
    path.write_text(text.replace("Linear_Transform", "Invert_Flag = True;\nLinear_Transform"))
    np.testing.assert_allclose(read_transform(path).map(lps(RAS, points())), points(), atol=1e-9)
    shift = sitk.AffineTransform([1, 0.2, 0, 0, 1, 0, 0.1, 0, 1], [3, 4, 5])
    sitk.WriteTransform(shift, str(path))
    there = [shift.TransformPoint(p.tolist()) for p in points()]
    np.testing.assert_allclose(read_transform(path).map(points()), there, atol=1e-6)
    for bad, what in (
        (text + "Transform_Type = Linear;\nLinear_Transform =\n1 0 0 0\n0 1 0 0\n0 0 1 0;\n", "holds Linear, Linear"),
        (text[:-3], "damaged"),
        (
            "MNI Transform File\nTransform_Type = Grid_Transform;\nDisplacement_Volume = a;\n",
            "holds Grid_Transform",
        ),
    ):
        path.write_text(bad)
        with pytest.raises(InputError, match=what):
            read_transform(path)


# --- fields ----------------------------------------------------------------------------------------------------------

GRID = affine([4, 5, 4.5], [-38, -60, -30], 0.15, True)
SIZE = (16, 18, 14)


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Voxels of a grid (RAS mm) and where a smooth map takes them."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE], indexing="ij"), -1)
    p = index @ GRID[:3, :3].T + GRID[:3, 3]
    return p, p @ RAS[:3, :3].T + RAS[:3, 3] + 3 * np.sin(p[..., [1, 2, 0]] / 25)


def save(path: Path, vectors: np.ndarray, intent: int, name: str = "", first: float = 0.0) -> None:
    image = nib.Nifti1Image(vectors.reshape(*vectors.shape[:3], 1, 3).astype("f4"), GRID)
    image.header.set_intent(0)
    image.header["intent_code"], image.header["intent_name"], image.header["intent_p1"] = intent, name.encode(), first
    nib.save(image, path)


@pytest.mark.parametrize(
    ("name", "first", "relative"), [("Mapping", 0, False), ("NREG_TRANS", 0, False), ("NREG_TRANS", 1, True)]
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_spm_and_niftyreg_fields(name: str, first: int, relative: bool, ending: str, tmp_path: Path) -> None:
    p, q = positions()
    path = tmp_path / f"y_t1{ending}"
    save(path, q - p if relative else q, 1007, name, first)
    found = read_transform(path).map(p.reshape(-1, 3) * [-1, -1, 1])
    np.testing.assert_allclose(found, q.reshape(-1, 3) * [-1, -1, 1], atol=2e-4)


def test_niftyreg_control_points(tmp_path: Path) -> None:
    """The sum over four nodes an axis of their positions times cubic B-splines."""
    _, q = positions()
    path = tmp_path / "cpp.nii"
    save(path, q, 1007, "NREG_TRANS", 2)
    with pytest.raises(InputError, match="control points have to be sampled; give the fixed image"):
        read_transform(path)
    reference = geometry_of(affine([2, 2, 2], [-60, -30, -10], 0.0, True), (9, 10, 8))
    found = read_transform(path, reference).map(reference.grid().reshape(-1, 3))
    ras = reference.grid().reshape(-1, 3) * [-1, -1, 1]
    index = (ras - GRID[:3, 3]) @ np.linalg.inv(GRID[:3, :3]).T
    first = np.floor(index).astype(int) - 1
    t = index - np.floor(index)
    basis = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    want = np.zeros_like(ras)
    for a in range(4):
        for b in range(4):
            for c in range(4):
                node = q[first[:, 0] + a, first[:, 1] + b, first[:, 2] + c]
                want += (basis[a, :, 0] * basis[b, :, 1] * basis[c, :, 2])[:, None] * node
    np.testing.assert_allclose(found, want * [-1, -1, 1], atol=2e-4)
    # Beyond the control points their displacement goes on as at the nearest.
    far = geometry_of(affine([2, 2, 2], [-400, -30, -10], 0.0, True), (4, 10, 8))
    moved = read_transform(path, far).displacement_on(far).vectors
    assert np.ptp(moved.reshape(-1, 3), axis=0).max() < 6
    assert np.abs(moved).max() > 3


@pytest.mark.parametrize(
    ("intent", "name", "first", "what"),
    [
        (1007, "NREG_TRANS", 3, "velocity field"),
        (1007, "NREG_TRANS", 4, "velocity field"),
        (1007, "NREG_TRANS", 5, "control points of a velocity"),
        (1007, "NREG_TRANS", 6, "linear spline"),
        (1007, "NREG_TRANS", 17, "kind 'NREG_TRANS'"),
        (1007, "NREG_CPP_FILE", 0, "kind 'NREG_CPP_FILE'"),
        (2006, "", 0, "FNIRT .*wb_command"),
        (2007, "", 0, "coefficients of FSL's FNIRT"),
        (2008, "", 0, "coefficients of FSL's FNIRT"),
        (2009, "", 0, "coefficients of FSL's FNIRT"),
        (2016, "", 0, "topup"),
        (2018, "", 0, "topup"),
        (1007, "", 0, "looks like absolute positions in RAS"),
        (1007, "Something", 0, "looks like absolute positions in RAS"),
    ],
)
def test_fields_that_are_refused_by_name(intent: int, name: str, first: float, what: str, tmp_path: Path) -> None:
    path = tmp_path / "w.nii.gz"
    save(path, positions()[1], intent, name, first)
    with pytest.raises(InputError, match=what) as error:
        read_transform(path, role="initial transform")
    assert str(error.value).startswith(f"initial transform {path}: ")


def test_dartels_flow_fields_are_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 1, 3), "f4"), GRID)
    image.header["intent_code"], image.header["descrip"] = 1007, b"Flow Field"
    nib.save(image, tmp_path / "u_rc1.nii")
    with pytest.raises(InputError, match="flow field, as of SPM's DARTEL"):
        read_transform(tmp_path / "u_rc1.nii")


def test_niftyreg_in_2d(tmp_path: Path) -> None:
    index = np.stack(np.meshgrid(np.arange(8), np.arange(9), indexing="ij"), -1)
    p = index * [-2.0, -3.0] + [10, 20]
    q = p * 1.1 + [1, 2] + np.sin(p / 9)
    affine_ = np.diag([-2.0, -3, 1, 1])
    affine_[:2, 3] = 10, 20
    image = nib.Nifti1Image(q.reshape(8, 9, 1, 1, 2).astype("f4"), affine_)
    image.header["intent_code"], image.header["intent_name"] = 1007, b"NREG_TRANS"
    nib.save(image, tmp_path / "def.nii")
    np.testing.assert_allclose(
        read_transform(tmp_path / "def.nii").map(-p.reshape(-1, 2)), -q.reshape(-1, 2), atol=1e-4
    )


def test_4d_images_without_an_intent_are_refused(tmp_path: Path) -> None:
    p, q = positions()
    nib.save(nib.Nifti1Image((q - p).astype("f4"), GRID), tmp_path / "w.nii.gz")
    with pytest.raises(InputError, match="4D with 3 volumes and says nowhere"):
        read_transform(tmp_path / "w.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_positions_in_any_image_are_questioned(ending: str, tmp_path: Path) -> None:
    grid = oblique(3)
    path = tmp_path / f"w{ending}"
    for flip, frame in ((np.ones(3), "LPS"), (np.array([-1.0, -1, 1]), "RAS")):
        write_vectors(((grid.grid() + 2.0) * flip).astype(np.float32), grid, path)
        with pytest.raises(InputError, match=f"absolute positions in {frame}"):
            read_transform(path)
    write_vectors(grid.grid().astype(np.float32), grid, path)
    p = grid.corners()
    np.testing.assert_allclose(read_transform(path, convention="displacements").map(p), 2 * p, atol=1e-3)


def test_true_maps_are_not_taken_for_positions(tmp_path: Path) -> None:
    """Large turns, stretches and shifts are displacements still; one that leaves its grid and turns is warned of."""
    grid = oblique(3)
    p = grid.grid()
    centred = p - grid.centre
    path = tmp_path / "w.nrrd"
    for matrix, shift in ((turn(np.pi), 0), (turn(1.6), 0), (np.diag([1.5, 1.5, 1.5]), 0), (np.eye(3), 4000.0)):
        moved = centred @ np.asarray(matrix).T + grid.centre + shift
        write_vectors((moved - p).astype(np.float32), grid, path)
        with warnings.catch_warnings():  # a quarter turn leaves an anisotropic grid
            warnings.simplefilter("ignore")
            np.testing.assert_allclose(read_transform(path).map(p), moved, atol=1e-3)
    write_vectors((centred @ turn(1.0).T + grid.centre + 900 - p).astype(np.float32), grid, path)
    with pytest.warns(UserWarning, match="takes 100% of its own grid outside itself"):
        read_transform(path)
