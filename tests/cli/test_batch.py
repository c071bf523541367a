"""``itk-nir batch``: a table of pairs."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

import itk_nir
from itk_nir.cli import main
from itk_nir.images import save_image
from itk_nir.phantom import brain_phantom
from itk_nir.transforms.formats.itk_h5 import write_h5
from tests.cli.commands import error_line, read

#: Over at once, in this process.
FLAGS = ("--preset", "fast", "--linear", "none", "--iterations", "2", "--in-flight", "1", "--device", "cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images."""
    phantom = brain_phantom(2, (40, 48))
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("fixed", "moving"):
        save_image(getattr(phantom, name), phantom.geometry, folder / f"{name}.nii.gz")
    return folder


def table(folder: Path, text: str) -> str:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "summary.csv", encoding="utf-8", newline="") as file:
        return {line["line"]: line for line in csv.DictReader(file)}


def test_a_table_and_what_is_left_of_it(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, the console, the summary; a pair that fails; the rest with ``--resume``."""
    given = table(
        images,
        "fixed,moving,output,iterations,resample-shear,format\n"
        "fixed.nii.gz,moving.nii.gz,there_,,,\n"
        "\n"
        'moving.nii.gz,fixed.nii.gz,,"3,2,1",yes,ants\n'
        "none.nii.gz,fixed.nii.gz,wrong/,,no,\n",
    )
    out = tmp_path / "out"
    assert main(["batch", given, "--output", str(out), *FLAGS]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in told[:3]] == [
        ["1/3 there_", "registered"], ["2/3 0002/", "registered"], ["3/3 wrong/", "failed"],
    ]  # fmt: skip
    assert told[3] == f"2 registered, 1 failed; wrote {out / 'summary.csv'}"
    found = summary(out)
    assert list(found) == ["2", "4", "5"]
    assert [line["status"] for line in found.values()] == ["registered", "registered", "failed"]
    assert "none.nii.gz: no such file" in found["5"]["error"]
    assert float(found["2"]["similarity"]) > float(found["2"]["similarity_start"])
    assert {path.name for path in out.iterdir()} == {
        "0002", "summary.csv", *(f"there_{n}" for n in ("Warped.nii.gz", "Composite.h5", "InverseComposite.h5")),
        "there_report.json",
    }  # fmt: skip
    assert (out / "0002" / "1Warp.nii.gz").exists()
    same = itk_nir.register(
        str(images / "fixed.nii.gz"), str(images / "moving.nii.gz"), preset="fast", linear="none", iterations=2
    )
    np.testing.assert_array_equal(read(out / "there_Warped.nii.gz"), same.warped_pixels[0])

    kept = (out / "there_Composite.h5").stat().st_mtime_ns
    (out / "0002" / "1Warp.nii.gz").unlink()
    noise = np.random.default_rng(0).normal(size=(40, 48)).astype(np.float32)
    save_image(noise, brain_phantom(2, (40, 48)).geometry, images / "none.nii.gz")
    assert main(["batch", given, "--output", str(out), "--resume", "--strict", "--threads", "1", *FLAGS]) == 3
    captured = capsys.readouterr()
    assert "itk-nir: warning: 3/3 wrong/: " in captured.err
    told = captured.out.splitlines()
    assert told[0] == "1/3 there_: skipped, is finished"
    assert told[-1].startswith("2 registered, 1 skipped; ")
    assert (out / "there_Composite.h5").stat().st_mtime_ns == kept
    assert summary(out)["2"]["status"] == "skipped"
    assert summary(out)["2"]["similarity"] == found["2"]["similarity"]
    assert summary(out)["5"]["verdict"] != "good"
    assert summary(out)["5"]["warnings"]

    later = (out / "there_report.json").stat().st_mtime + 10
    os.utime(images / "moving.nii.gz", (later, later))  # of the first two; an option is another for the last
    given = table(images, Path(given).read_text(encoding="utf-8").replace("wrong/,,no", "wrong/,1,no"))
    assert main(["batch", given, "--output", str(out), "--resume", *FLAGS]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 registered; ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fixed,moving\n", "has no rows"),
        ("fixed,movin\na,b\n", "unknown column 'movin', did you mean 'moving'?"),
        ("fixed,moving,device\na,b,cpu\n", "column device: holds for the whole batch"),
        ("fixed,moving,checkpoint\na,b,c\n", "unknown column 'checkpoint'"),
        ("fixed,moving,fixed\na,b,c\n", "a column twice"),
        ("fixed,moving\na,b\na,b,c\n", "line 3: has 3 cells for 2 columns"),
        ("fixed,moving\na,b\n,b\n", "line 3: --fixed: missing"),
        ("fixed,moving,linear\na,b,turned\n", "line 2: argument --linear: invalid choice"),
        ("fixed,moving,radius\na,b,-1\n", "line 2: radius"),
        ("fixed,moving,symmetric\na,b,perhaps\n", "line 2: symmetric: is yes or no"),
        ("fixed,moving,output\na,b,c_\na,d,./c_\n", "c_Warped.nii.gz is that of line 2 too"),
        ("fixed,moving,output\na,b,a\x00\n", "line 2: "),
    ],
)
def test_a_table_that_cannot_be(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before any work, in one line that names the place; nothing is written."""
    given = table(tmp_path, text)
    assert main(["batch", given, "--output", str(tmp_path / "out")]) == 2
    assert told in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_summary_of_somebody_else(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = table(images, "fixed\tmoving\nfixed.nii.gz\tmoving.nii.gz\n")
    (tmp_path / "summary.csv").write_text("name,age\n", encoding="utf-8")
    assert main(["batch", given, "--output", str(tmp_path)]) == 2
    assert "is no summary of this program" in error_line(capsys)
    assert main(["batch", str(tmp_path / "none.csv"), "--output", str(tmp_path / "out")]) == 2
    assert "no such file" in error_line(capsys)


def test_no_line_writes_over_what_another_one_reads(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither images nor the table; with ``--resume`` a line that is not run again is no danger."""
    first = "fixed,moving,output\nfixed.nii.gz,moving.nii.gz,p_\n"
    given = table(images, first)
    assert main(["batch", given, "--output", str(images), *FLAGS]) == 0
    capsys.readouterr()
    kept = (images / "p_Warped.nii.gz").read_bytes()
    given = table(images, first + "p_Warped.nii.gz,moving.nii.gz,r_\n")
    assert main(["batch", given, "--output", str(images), "--iterations", "3", *FLAGS[:4], *FLAGS[6:]]) == 2
    assert "pairs.csv, line 2: " in (told := error_line(capsys))
    assert "and would be replaced" in told
    assert (images / "p_Warped.nii.gz").read_bytes() == kept
    assert main(["batch", given, "--output", str(images), "--resume", *FLAGS]) == 0
    assert "1 registered, 1 skipped" in capsys.readouterr().out
    (images / "pairs.csv").rename(images / "summary.csv")
    assert main(["batch", str(images / "summary.csv"), "--output", str(images), *FLAGS]) == 2
    assert "is an input itself" in error_line(capsys)


def test_initial_transforms_of_a_table_in_another_folder(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shift = np.eye(3)
    shift[0, 2] = 2.0
    write_h5(itk_nir.load_transform(shift), images / "s.h5")
    words = {"a": '"[s.h5,1]"', "b": "identity", "c": "s.h5"}
    rows = "".join(f"fixed.nii.gz,moving.nii.gz,{name}_,{word}\n" for name, word in words.items())
    table(images, "fixed,moving,output,initial_transform\n" + rows)
    assert main(["batch", "images/pairs.csv", "--output", "out", *FLAGS]) == 0
    starts = [json.loads(Path(f"out/{n}_report.json").read_text())["metrics"]["call"]["arguments"] for n in "abc"]
    assert [start["initial_transform"] for start in starts] == [f"[{images}/s.h5,1]", "identity", f"{images}/s.h5"]
    # What a report says of a file means the same in another folder.
    assert main(["register", "--from-report", "out/a_report.json", "--output", "again_"]) == 0
