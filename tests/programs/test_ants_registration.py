"""``antsRegistration`` and its scripts, run: their files, their console, their exit status, and how well they do."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.cli import main
from itk_nir.images import load_image, save_image
from itk_nir.loading import load_transform
from itk_nir.phantom import brain_phantom
from itk_nir.programs.ants_output import collapsed, separate
from itk_nir.programs.ants_plan import Plan
from itk_nir.programs.ants_registration_syn import SCRIPT_FLAGS, TYPES, read_script
from itk_nir.programs.ants_request import Metric, Start, read_request
from itk_nir.programs.ants_run import Outcome
from itk_nir.programs.ants_run import run as perform
from itk_nir.transforms.model import CompositeTransform, DisplacementField, LinearTransform

PHANTOM = brain_phantom(2, (48, 56))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("images")
    save_image(PHANTOM.fixed, PHANTOM.geometry, out / "f.nii.gz")
    save_image(PHANTOM.moving, PHANTOM.moving_geometry, out / "m.nii.gz")
    save_image((PHANTOM.fixed_labels > 0).astype(np.float32), PHANTOM.geometry, out / "mask.nii.gz")
    return out


@pytest.fixture(autouse=True)
def _in_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")


def stage(transform: str, metric: str = "CC[f.nii.gz,m.nii.gz,1,2]", iterations: str = "1") -> list[str]:
    factors, sigmas = ("2x1", "1x0vox") if "x" in iterations else ("2", "1vox")
    return ["-t", transform, "-m", metric, "-c", f"[{iterations},1e-6,5]", "-f", factors, "-s", sigmas]


RIGID, AFFINE, TRANSLATION = stage("Rigid[0.1]"), stage("Affine[0.1]"), stage("Translation[0.1]")
SYN = stage("SyN[0.1,3,0]")
CENTRES = ["-r", "[f.nii.gz,m.nii.gz,1]"]


def run(out: Path, *given: str) -> set[str]:
    """What the program wrote under the prefix ``x``."""
    status = main(["antsRegistration", "-d", "2", "-o", f"{out}/x", "--preset", "fast", "--device", "cpu", *given])
    assert status == 0
    return {path.name.removeprefix("x") for path in out.iterdir()}


#: Stages and flags -> the files that ANTs writes for them (v2.5.1.post95, as antspyx 0.6 has it).
NAMES = {
    "deformable alone": (SYN, "0Warp.nii.gz 0InverseWarp.nii.gz"),
    "deformable twice": ([*SYN, *SYN], "0Warp.nii.gz 0InverseWarp.nii.gz"),
    "deformable from centres": ([*CENTRES, *SYN], "0GenericAffine.mat 1Warp.nii.gz 1InverseWarp.nii.gz"),
    "linear": ([*RIGID, *AFFINE], "0GenericAffine.mat"),
    "all": ([*CENTRES, *TRANSLATION, *AFFINE, *SYN], "0GenericAffine.mat 1Warp.nii.gz 1InverseWarp.nii.gz"),
    "linear, one a stage": (["-z", "0", *RIGID, *AFFINE], "0Rigid.mat 1Affine.mat"),
    "one a stage": (
        ["-z", "0", *CENTRES, *TRANSLATION, *RIGID, *stage("Similarity[0.1]"), *AFFINE, *SYN],
        "0DerivedInitialMovingTranslation.mat 1Translation.mat 2Rigid.mat 3Similarity.mat 4Affine.mat 5Warp.nii.gz "
        "5InverseWarp.nii.gz",
    ),
    "one a stage, from a file": (
        ["-z", "0", "-r", "a.mat", *RIGID, *SYN], "1Rigid.mat 2Warp.nii.gz 2InverseWarp.nii.gz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_files_have_the_names_of_ants(name: str) -> None:
    given, wanted = NAMES[name]
    request = read_request(["-o", "x", *given])
    volume, still = load_image("f.nii.gz", "fixed image"), LinearTransform.identity(2)
    field = DisplacementField(PHANTOM.geometry, np.zeros((*PHANTOM.geometry.shape, 2), np.float32))
    found = None if all(s.linear for s in request.stages) else CompositeTransform((field,), (field,))
    outcome = Outcome(volume, volume, found, still, None, still, Plan((), ()), None)
    files = (collapsed if request.collapse else separate)(request, outcome)
    assert [file.ending for file in files] == wanted.split()


def test_files_of_each_stage_are_together_the_map(tmp_path: Path) -> None:
    run(tmp_path, "-z", "0", *CENTRES, *RIGID, *AFFINE, *SYN)
    warp = load_transform(str(tmp_path / "x3Warp.nii.gz")).fields[0]
    assert warp.geometry.same_grid(PHANTOM.geometry)  # as scripts that average warps need it
    assert run(tmp_path, "-a", "1", *CENTRES, *RIGID, *AFFINE, *SYN) >= {"Composite.h5", "InverseComposite.h5"}
    # The last of them meets a point first.
    parts = [*sorted(tmp_path.glob("x3W*")), *sorted(tmp_path.glob("x*.mat"), reverse=True)]
    assert len(parts) == 4
    points = PHANTOM.geometry.centre + np.array([[0.0, 0.0], [30.0, -20.0], [-10.0, 25.0]])
    single, whole = load_transform([str(p) for p in parts]), load_transform(str(tmp_path / "xComposite.h5"))
    assert np.abs(single.map(points) - whole.map(points)).max() < 1e-3


def test_initial_files_are_part_of_what_is_written(tmp_path: Path) -> None:
    shift = sitk.TranslationTransform(2, (6.0, -3.0))
    sitk.WriteTransform(shift, str(tmp_path / "shift.tfm"))
    field = np.full((*PHANTOM.geometry.shape, 2), (2.0, 1.0), np.float32)
    save_image(field, PHANTOM.geometry, tmp_path / "field.nii.gz")
    # A point meets the first that is named first.
    starts = ["-r", f"{tmp_path}/field.nii.gz", "-r", f"[{tmp_path}/shift.tfm,1]"]
    out = tmp_path / "out"
    none = stage("SyN[0.1,3,0]", iterations="0")
    assert run(out, *starts, *none) == {"0GenericAffine.mat", "1Warp.nii.gz", "2Warp.nii.gz", "2InverseWarp.nii.gz"}
    parts = [str(out / f"x{name}") for name in ("2Warp.nii.gz", "1Warp.nii.gz", "0GenericAffine.mat")]
    point = PHANTOM.geometry.centre[None]
    assert np.allclose(load_transform(parts).map(point) - point, [[-4.0, 4.0]], atol=1e-4)
    # The order in which ANTs' own program takes them: the last one of the line is applied to the image last.
    assert run(tmp_path / "b", *starts[2:], *starts[:2], *none) >= {"0Warp.nii.gz", "1GenericAffine.mat"}


def test_a_deformation_of_no_iterations_behind_a_linear_stage_is_written_as_none(tmp_path: Path) -> None:
    none = stage("SyN[0.1,3,0]", iterations="0")
    assert run(tmp_path, *AFFINE, *none) == {"0GenericAffine.mat", "1Warp.nii.gz", "1InverseWarp.nii.gz"}
    for name in ("1Warp", "1InverseWarp"):
        assert not sitk.GetArrayFromImage(sitk.ReadImage(f"{tmp_path}/x{name}.nii.gz")).any()


def test_initial_files_in_a_row_are_one_flag_each() -> None:
    row, each = (["-r", "a.mat", *between, "[b.mat,1]"] for between in ([], ["-r"]))
    starts = [read_request(["-o", "x", *RIGID, *given]).starts for given in (row, each)]
    assert starts[0] == starts[1]
    assert len(starts[0]) == 2


def test_neighbouring_linear_maps_are_one_file() -> None:
    turn = LinearTransform.make([[0.8, -0.6], [0.6, 0.8]], [3.0, 4.0], PHANTOM.geometry.centre)
    scale = LinearTransform.make([[1.1, 0.0], [0.0, 0.9]], [-5.0, 2.0])
    field = DisplacementField(PHANTOM.geometry, np.full((*PHANTOM.geometry.shape, 2), 1.5, np.float32))
    volume, still = load_image("f.nii.gz", "fixed image"), LinearTransform.identity(2)
    # A point meets the linear stage, then the first of the initial files.
    start = CompositeTransform((turn, field))
    outcome = Outcome(volume, volume, None, scale, start, still, Plan((), ()), None)
    files = collapsed(read_request(["-o", "x", *RIGID]), outcome)
    assert [file.ending for file in files] == ["0Warp.nii.gz", "1GenericAffine.mat"]
    whole = CompositeTransform(tuple(file.step for file in reversed(files)))
    points = PHANTOM.geometry.centre + np.array([[0.0, 0.0], [20.0, -10.0]])
    assert np.allclose(whole.map(points), outcome.mapping.map(points))


def test_two_registrations_behind_a_start_that_is_no_linear_map(tmp_path: Path) -> None:
    field = np.full((*PHANTOM.geometry.shape, 2), (2.0, 1.0), np.float32)
    save_image(field, PHANTOM.geometry, tmp_path / "field.nii.gz")
    masks = ["-x", "NULL", "-x", "mask.nii.gz"]
    given = ["-r", f"{tmp_path}/field.nii.gz", *TRANSLATION, *SYN, *masks, "--preset", "fast"]
    outcome = perform(read_request(["-o", "x", *given]), 1)
    assert len(outcome.plan.calls) == 2
    assert not outcome.linear.is_identity
    points = PHANTOM.geometry.centre + np.array([[0.0, 0.0], [20.0, -10.0]])
    assert outcome.result is not None
    assert np.allclose(outcome.mapping.map(points), outcome.result.mapping.map(points), atol=1e-4)


@pytest.mark.parametrize(("feature", "way"), [("0", "centres"), ("1", "mass"), ("2", "origins")])
def test_alignments_before_a_deformation(feature: str, way: str, tmp_path: Path) -> None:
    none = stage("SyN[0.1,3,0]", iterations="0")
    run(tmp_path, "-r", f"[f.nii.gz,m.nii.gz,{feature}]", *none)
    fixed, moving = sitk.ReadImage("f.nii.gz", sitk.sitkFloat64), sitk.ReadImage("m.nii.gz", sitk.sitkFloat64)
    if way == "origins":
        wanted = np.subtract(moving.GetOrigin(), fixed.GetOrigin())
    else:
        mode = sitk.CenteredTransformInitializerFilter.MOMENTS if way == "mass" else 0
        start = sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler2DTransform(), mode)
        wanted = np.array(start.GetParameters()[1:])
    got = load_transform(str(tmp_path / "x0GenericAffine.mat"))
    assert np.allclose(got.map([[0.0, 0.0]])[0], wanted, atol=1e-3)


def test_warped_images_are_the_transforms_applied(tmp_path: Path) -> None:
    names = [f"{tmp_path}/W.nii.gz", f"{tmp_path}/other/IW.nii.gz"]
    wanted = {"W.nii.gz", "other", "Composite.h5", "InverseComposite.h5"}
    assert (
        run(tmp_path, "-o", f"[{tmp_path}/x,{','.join(names)}]", "-a", "1", "-w", "[0.1,0.9]", *AFFINE, *SYN) == wanted
    )
    for name, source, onto, file in (
        (names[0], "m.nii.gz", "f.nii.gz", "xComposite.h5"), (names[1], "f.nii.gz", "m.nii.gz", "xInverseComposite.h5"),
    ):  # fmt: skip
        image, grid = sitk.ReadImage(source, sitk.sitkFloat32), sitk.ReadImage(onto, sitk.sitkFloat32)
        again = sitk.Resample(image, grid, sitk.ReadTransform(f"{tmp_path}/{file}"), sitk.sitkLinear, 0.0)
        found = sitk.ReadImage(name)
        assert found.GetPixelID() == sitk.sitkFloat32
        error = np.abs(sitk.GetArrayFromImage(again) - sitk.GetArrayFromImage(found))
        # At the very rim the two differ in which side of it a point lies on; within, the images are not clipped.
        assert np.quantile(error, 0.99) < 1e-3 * sitk.GetArrayFromImage(image).max()


def test_masks_that_differ_from_stage_to_stage(tmp_path: Path) -> None:
    run(tmp_path, *AFFINE, *SYN, "-x", "[NULL,NULL]", "-x", "[mask.nii.gz,NULL]", "-v")
    both = load_transform([str(tmp_path / f"x{n}") for n in ("1Warp.nii.gz", "0GenericAffine.mat")])
    alone = tmp_path / "alone"
    run(alone, *AFFINE)
    linear = load_transform(str(alone / "x0GenericAffine.mat"))
    found = load_transform(str(tmp_path / "x0GenericAffine.mat"))
    # The linear stage is that of a run without a mask.
    assert np.allclose(found.transforms[0].matrix, linear.transforms[0].matrix)  # type: ignore[union-attr]
    assert not both.is_linear


def test_only_what_may_move_does(tmp_path: Path) -> None:
    run(tmp_path, *stage("SyN[0.1,3,0]", iterations="10x5"), "-g", "0x1")
    field = load_transform(str(tmp_path / "x0Warp.nii.gz")).fields[0]
    assert np.abs(field.vectors[..., 0]).max() == 0
    assert np.abs(field.vectors[..., 1]).max() > 0.5


def test_console_of_ants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "-v", "1", *AFFINE, *stage("SyN[0.1,3,0]", iterations="20"))
    out = capsys.readouterr().out
    number = r"-?\d\.\d{12}e[+-]\d{2,3}"
    line = rf"DIAGNOSTIC, +(\d+), {number}, {number}, \d\.\d{{4}}e[+-]\d\d, -?\d\.\d{{4}}e[+-]\d\d, $"
    linear, deformable = (re.findall(rf"^ {first}{line}", out, re.MULTILINE) for first in "21")
    assert len(linear) > 10
    assert [int(n) for n in deformable[:15]] == list(range(1, 16))
    assert len(re.findall("^ [12]DIAGNOSTIC", out, re.MULTILINE)) == len(linear) + len(deformable)
    assert "XXDIAGNOSTIC,Iteration,metricValue,convergenceValue,ITERATION_TIME_INDEX,SINCE_LAST" in out
    assert "--convergence: approximated: of the deformable stage: up to twice" in out
    assert re.search(r"Total elapsed time: \d", out)
    run(tmp_path, *AFFINE)
    assert capsys.readouterr().out == ""


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("antsRegistration", "antsRegistrationSyN.sh", "antsRegistrationSyNQuick.sh"):
        assert main([program, "--version"]) == 0
        first = capsys.readouterr().out.splitlines()[0]
        # As nipype reads it.
        assert first.startswith("ANTs Version: ")
        assert re.fullmatch(r"\d+\.\d+\.\d+", first.split()[2])
        assert main([program, "--help"]) == 0
        assert len(capsys.readouterr().out.splitlines()) > 15
        assert main([program]) == 1
        capsys.readouterr()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*SYN, "-d", "3"], "give -d 2"),
        ([*stage("SyN[0.1]", "CC[no.nii.gz,m.nii.gz,1,2]")], "no.nii.gz"),
        ([*SYN, "-x", "no.nii.gz"], "no.nii.gz"),
        ([*RIGID, *SYN, "-x", "NULL", "-x", "later.nii.gz"], "later.nii.gz"),
        ([*SYN, "-r", "no.mat"], "no.mat"),
        ([*SYN, "-o", "[x,f.nii.gz]"], "f.nii.gz"),
        ([*SYN, "-n", "Sinc"], "got Sinc"),
        ([*SYN, "--preset", "best"], "best"),
        ([*SYN, *RIGID], "Rigid behind SyN"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["antsRegistration", "-o", f"{tmp_path}/x", "-v", *given]) == 1
    out, err = capsys.readouterr()
    assert "Running" not in out  # before any work
    assert err.startswith("itk-nir: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_seed_and_threads_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, message in (("ANTS_RANDOM_SEED", "SEED is a"), ("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "THREADS is a")):
        monkeypatch.setenv(name, "many")
        assert main(["antsRegistration", "-o", f"{tmp_path}/x", *SYN]) == 1
        assert message in capsys.readouterr().err
        monkeypatch.setenv(name, "1")


@pytest.mark.slow
@pytest.mark.interop
def test_at_least_as_good_as_ants(tmp_path: Path) -> None:
    internal = pytest.importorskip("ants.internal", reason="antspyx is not installed")
    line = ["-d", "2", "-r", "[f.nii.gz,m.nii.gz,1]", "-u", "1", "-w", "[0.005,0.995]", "-a", "1"]
    line += stage("Affine[0.1]", "MI[f.nii.gz,m.nii.gz,1,32,Regular,0.25]", "50x20")
    line += stage("SyN[0.1,3,0]", "CC[f.nii.gz,m.nii.gz,1,4]", "50x30")
    assert internal.get_lib_fn("antsRegistration")([*line, "-o", f"{tmp_path}/t"]) == 0
    assert main(["antsRegistration", *line, "-o", f"{tmp_path}/x"]) == 0
    points = PHANTOM.geometry.grid()[PHANTOM.fixed_labels > 0]
    truth = points + PHANTOM.displacement[PHANTOM.fixed_labels > 0]
    theirs, ours = (
        np.linalg.norm(load_transform(f"{tmp_path}/{who}Composite.h5").map(points) - truth, axis=1).mean()
        for who in "tx"
    )
    assert ours < theirs


# --- the scripts -----------------------------------------------------------------------------------------------------


def script(*given: str) -> list[str]:
    return ["-d", "2", "-f", "f.nii.gz", "-m", "m.nii.gz", "-o", "x", *given]


def test_types_of_the_scripts() -> None:
    for letters, kinds in TYPES.items():
        request, _ = read_script(script("-t", letters), quick=False)
        assert tuple(s.transform for s in request.stages) == kinds
        assert request.starts == (Start(pair=("f.nii.gz", "m.nii.gz"), feature="centres of mass"),)
        assert (request.warped, request.inverse_warped) == ("xWarped.nii.gz", "xInverseWarped.nii.gz")
    request, threads = read_script(
        script("-t", "b", "-s", "40", "-n", "3", "-e", "5", "-z", "0", "-p", "f", "-i", "[f,m,0]", "-i", "[a.mat,1]"),
        quick=False,
    )
    assert request.stages[-1].numbers == ("0.1", "40", "0")
    assert (threads, request.seed, request.collapse, request.single) == (3, 5, False, True)
    assert request.starts == (Start(pair=("f", "m"), feature="centres"), Start("a.mat", inverse=True))


def test_the_number_behind_r_is_a_radius_or_bins() -> None:
    """nipype sends ``-r 32`` to the quick script in every call: its bins, not a radius."""

    def metric(*given: str, quick: bool) -> Metric:
        return read_script(script(*given), quick=quick)[0].stages[-1].metrics[0]

    pair = ("f.nii.gz", "m.nii.gz")
    assert metric(quick=False) == metric("-r", "32", quick=True) == Metric("auto", *pair)
    assert metric("-r", "3", quick=False) == Metric("CC", *pair, 1.0, 3)
    assert metric("-r", "48", quick=True) == Metric("MI", *pair, 1.0, 48)
    # Linear types take it, and it changes nothing.
    assert (
        metric("-t", "a", "-r", "32", quick=True) == metric("-t", "r", "-r", "4", quick=False) == Metric("auto", *pair)
    )


def test_pairs_and_masks_of_the_scripts() -> None:
    request, _ = read_script(script("-f", "f2", "-m", "m2", "-x", "NULL", "-x", "NULL", "-x", "a,b"), quick=False)
    assert [len(s.metrics) for s in request.stages] == [1, 1, 2]
    assert [s.masks for s in request.stages] == [(None, None), (None, None), ("a", "b")]
    request, _ = read_script(script("-x", "[ a, NULL ]"), quick=False)
    assert {s.masks for s in request.stages} == {("a", None)}
    request, _ = read_script(script("-x", "a,NOMASK,NULL"), quick=False)
    assert {s.masks for s in request.stages} == {("a", None)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["-t", "q"], "no type q"),
        (["-x", "a", "-x", "b"], "2 -x and 3 stages"),
        (["-x", "a,b,c"], "give FIXED or"),
        (["-f", "g.nii.gz"], "2 -f and 1 -m"),
        (["-r", "0"], "-r is a whole number of at least 1"),
        (["-p", "e"], "-p is"),
        (["-s", "-2"], "-s is a distance"),
        (["-q", "1"], "-q"),
        (["-d", "3"], "give -d 2"),
        (["-x", "no.nii.gz"], "no.nii.gz"),
        (["-e", "-1"], "-e is a whole number"),
    ],
)
def test_flags_of_the_scripts_that_cannot_be_had(
    given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["antsRegistrationSyN.sh", *script(), "-o", f"{tmp_path}/new/x", *given]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


SCRIPT_FILES = "0GenericAffine.mat 1Warp.nii.gz 1InverseWarp.nii.gz"


@pytest.mark.parametrize(
    ("program", "given", "wanted"),
    [
        ("ants", ["-t", "so", "--preset", "fast", "-x", "mask.nii.gz"], SCRIPT_FILES),
        ("antsRegistrationSyNQuick.sh", ["-t", "t", "-r", "32", "-s", "26", "-p", "d"], "0GenericAffine.mat"),
    ],
)
def test_files_of_the_scripts(
    program: str, given: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([program, *script(), "-o", f"{tmp_path}/x", *given]) == 0
    images = {"Warped.nii.gz", "InverseWarped.nii.gz"}
    assert {p.name for p in tmp_path.iterdir()} == {f"x{name}" for name in {*wanted.split(), *images}}
    out = capsys.readouterr().out
    assert all(f"x{name}" in out for name in {*wanted.split(), *images})
    before, after = (
        np.corrcoef(load_image("f.nii.gz", "f").array.ravel(), array.ravel())[0, 1]
        for array in (
            sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage("m.nii.gz"), sitk.ReadImage("f.nii.gz"))),
            load_image(tmp_path / "xWarped.nii.gz", "w").array,
        )
    )
    assert after > before + 0.02


def test_every_flag_of_the_scripts_is_taken() -> None:
    values = {"t": "s", "x": "a", "i": "a.mat", "p": "d", "d": "2", "o": "y"}
    for letter in SCRIPT_FLAGS.keys() - {"f", "m"}:
        request, _ = read_script(script(f"-{letter}", values.get(letter, "1")), quick=False)
        assert request.stages
