"""nipype's own interfaces of ANTs drive the programs of this package, which it finds on the PATH under their names."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itk_nir.cli import main
from itk_nir.images import load_image, save_image
from itk_nir.phantom import Phantom, brain_phantom

nipype_ants = pytest.importorskip("nipype.interfaces.ants", reason="nipype is not installed")
programs = pytest.importorskip("itk_nir.programs", reason="there are no programs in this version")

pytestmark = [pytest.mark.interop, pytest.mark.slow]

#: As niworkflows ask for it, with few iterations.
STAGES: dict[str, Any] = {
    "transforms": ["Rigid", "Affine", "SyN"],
    "transform_parameters": [(0.05,), (0.08,), (0.1, 3.0, 0.0)],
    "metric": ["Mattes", "Mattes", "CC"],
    "metric_weight": [1, 1, 1],
    "radius_or_number_of_bins": [32, 32, 3],
    "sampling_strategy": ["Regular", "Regular", None],
    "sampling_percentage": [0.25, 0.25, 1.0],
    "number_of_iterations": [[40], [40], [30, 10]],
    "convergence_threshold": [1e-6, 1e-6, 1e-6],
    "convergence_window_size": [20, 20, 10],
    "shrink_factors": [[2], [2], [2, 1]],
    "smoothing_sigmas": [[2.0], [1.0], [1.0, 0.0]],
    "sigma_units": ["vox"] * 3,
    "use_histogram_matching": [True] * 3,
    "winsorize_lower_quantile": 0.005,
    "winsorize_upper_quantile": 0.995,
    "collapse_output_transforms": True,
    "initial_moving_transform_com": 1,
    "dimension": 2,
    "float": True,
}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return brain_phantom(2, (56, 64))


@pytest.fixture
def folder(phantom: Phantom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, in which the programs are on the PATH."""
    save_image(phantom.fixed, phantom.geometry, tmp_path / "fixed.nii.gz")
    save_image(phantom.moving, phantom.moving_geometry, tmp_path / "moving.nii.gz")
    save_image(phantom.moving_labels.astype(np.uint8), phantom.moving_geometry, tmp_path / "labels.nii.gz")
    assert main(["install-programs", str(tmp_path / "bin")]) == 0
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def overlap(phantom: Phantom, labels: str) -> float:
    """Mean Dice of the tissues."""
    seen, known = np.rint(load_image(labels, "labels").array), phantom.fixed_labels
    pairs = [(seen == k, known == k) for k in np.unique(known) if k]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


def test_registration_and_what_applies_it(phantom: Phantom, folder: Path) -> None:
    found = nipype_ants.Registration(
        fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", output_transform_prefix="x_",
        output_warped_image="x_Warped.nii.gz", write_composite_transform=True, num_threads=1, **STAGES,
    ).run().outputs  # fmt: skip
    assert Path(found.composite_transform).name == "x_Composite.h5"
    assert Path(found.inverse_composite_transform).is_file()
    nipype_ants.CompositeTransformUtil(
        process="disassemble", in_file=found.composite_transform, output_prefix="part"
    ).run()  # fmt: skip
    # nipype looks for names that ANTs gave them once.
    affine, field = sorted(str(path) for path in folder.glob("part*"))
    images = []
    for transforms in ([found.composite_transform], [field, affine]):
        seen = nipype_ants.ApplyTransforms(
            input_image="labels.nii.gz", reference_image="fixed.nii.gz", transforms=transforms, dimension=2,
            interpolation="NearestNeighbor", output_image=f"seen{len(transforms)}.nii.gz", num_threads=1,
        ).run().outputs.output_image  # fmt: skip
        images.append(load_image(seen, "labels").array)
    assert np.mean(images[0] != images[1]) < 0.002
    nothing = nipype_ants.ApplyTransforms(
        input_image="labels.nii.gz", reference_image="fixed.nii.gz", transforms="identity", dimension=2,
        interpolation="NearestNeighbor", output_image="before.nii.gz", num_threads=1,
    ).run().outputs.output_image  # fmt: skip
    assert overlap(phantom, "seen1.nii.gz") > overlap(phantom, nothing) + 0.1


def test_quick_registration_and_points(phantom: Phantom, folder: Path) -> None:
    found = nipype_ants.RegistrationSynQuick(
        fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", dimension=2, output_prefix="q_", num_threads=1
    ).run().outputs  # fmt: skip
    for name in ("warped_image", "inverse_warped_image", "out_matrix", "forward_warp_field", "inverse_warp_field"):
        assert Path(getattr(found, name)).is_file()
    points = phantom.geometry.grid()[phantom.fixed_labels > 0][::40]
    truth = points + phantom.displacement[phantom.fixed_labels > 0][::40]
    np.savetxt("points.csv", np.pad(points, ((0, 0), (0, 2))), delimiter=",", header="x,y,z,t", comments="")
    moved = nipype_ants.ApplyTransformsToPoints(
        input_file="points.csv", transforms=[found.forward_warp_field, found.out_matrix], dimension=2,
        invert_transform_flags=[False, False], output_file="moved.csv",
    ).run().outputs.output_file  # fmt: skip
    got = np.loadtxt(moved, delimiter=",", skiprows=1)[:, :2]
    # Either order of the two lists of ANTs is used; the one that images need takes fixed points to the moving image.
    assert np.linalg.norm(got - truth, axis=1).mean() < 0.6 * np.linalg.norm(points - truth, axis=1).mean()


def test_every_line_that_nipype_writes_names_a_program_of_ours(folder: Path) -> None:
    interfaces = (
        nipype_ants.Registration(fixed_image="fixed.nii.gz", moving_image="moving.nii.gz", **STAGES),
        nipype_ants.RegistrationSynQuick(fixed_image="fixed.nii.gz", moving_image="moving.nii.gz"),
        nipype_ants.ApplyTransforms(input_image="moving.nii.gz", reference_image="fixed.nii.gz", transforms="identity"),
        nipype_ants.CompositeTransformUtil(process="disassemble", in_file="fixed.nii.gz"),
    )
    for interface in interfaces:
        name = shlex.split(interface.cmdline)[0]
        assert name in programs.PROGRAMS
        assert (folder / "bin" / name).is_file()
