"""What is wrong with the name of a file, before any work."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from itk_nir.errors import InputError
from itk_nir.geometry import Geometry
from itk_nir.images import save_image
from itk_nir.places import (
    check_input,
    check_name,
    check_output_file,
    itk_name,
    named_files,
    refuse_inputs,
    refuse_other_kind,
)
from itk_nir.saving import check_output_prefix, check_transform_output, file_names

GRID = Geometry.make([6, 5])
VALUES = np.arange(30, dtype=np.float32).reshape(5, 6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "the name is empty"),
        ("  ", "the name is empty"),
        ("a\0b", "cannot hold the character of value 0"),
        ("https://example.org/f.nii.gz", "is a web address, not a file; download it"),
        ("file:///data/f.nii.gz", "is a web address"),
        ("f\udcff.nii.gz", "not UTF-8"),
    ],
)
def test_names_that_nothing_has(name: str, text: str) -> None:
    for check in (check_input, check_name):
        with pytest.raises(InputError, match=text) as refused:
            check(name, "image")
        assert "\n" not in str(refused.value)
        assert "\udcff" not in str(refused.value) or check is check_input


def test_names_that_are_odd_and_good(tmp_path: Path) -> None:
    for name in (
        "-o.nii.gz",
        "two\nlines.nii.gz",
        "a b.nii.gz",
        "*[a]?.nii.gz",
        "~x.nii.gz",
        "é→.nii.gz",
        "a:b.nii.gz",
    ):
        check_output_file(tmp_path / name)
        save_image(VALUES, GRID, tmp_path / name)
        check_input(tmp_path / name, "image")
        assert sitk.ReadImage(itk_name(tmp_path / name)).GetSize() == (6, 5)
    assert len(list(tmp_path.iterdir())) == 7


def test_what_no_reader_would_come_to_the_end_of(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with pytest.raises(InputError, match="is a named pipe, not a file; write what comes from it to a file first"):
        check_input(tmp_path / "pipe.nii.gz", "image")
    with pytest.raises(InputError, match="is a device"):
        check_input("/dev/zero", "image")
    (tmp_path / "there").symlink_to("nowhere")
    with pytest.raises(InputError, match="is a link to nowhere, which does not exist"):
        check_input(tmp_path / "there", "image")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"no such file \(Too many levels"):
        check_input(tmp_path / "loop", "image")
    with pytest.raises(InputError, match=r"no such file \(File name too long\)"):
        check_input(tmp_path / ("n" * 300), "image")
    with pytest.raises(InputError, match="~ is for the shell to replace"):
        check_input("~/no such file", "image")
    check_input(tmp_path / "missing", "image")  # for the reader to say


def test_prefixes_that_nothing_can_be_written_to(tmp_path: Path) -> None:
    check_output_prefix(tmp_path / "out_")
    check_output_prefix(f"{tmp_path}/new/folder/", file_names("ants"))
    (tmp_path / "file").write_text("")
    (tmp_path / "there").symlink_to("nowhere")
    before = set(tmp_path.iterdir())
    for prefix, text in (
        (f"{tmp_path}/file/out_", "is a file; choose another folder"),
        (f"{tmp_path}/there/out_", "is a link that leads nowhere"),
        ("/proc/out_", "the folder /proc is not writable"),
        ("~/out_", "~ is for the shell to replace, give the whole path"),
        ("s3://bucket/out_", "is a web address"),
        ("", "the name is empty"),
        (f"{tmp_path}/{'n' * 300}/out_", "would have 300 bytes, and the file system takes 255"),
    ):
        with pytest.raises(InputError, match=text):
            check_output_prefix(prefix)
    assert set(tmp_path.iterdir()) == before
    # 255 bytes with the longest ending, and one more.
    longest = max(map(len, file_names("itk")))
    check_output_prefix(tmp_path / ("n" * (255 - longest)), file_names("itk"))
    with pytest.raises(InputError, match=r"InverseComposite\.h5 would have 256 bytes"):
        check_output_prefix(tmp_path / ("n" * (256 - longest)), file_names("itk"))
    with pytest.raises(InputError, match=r"would have 2[0-9]+ bytes"):
        check_output_prefix(tmp_path / ("é" * 125), file_names("itk"))


def test_single_files(tmp_path: Path) -> None:
    for name, text in (
        (tmp_path, "is a folder, and would be replaced by a file"),
        (f"{tmp_path}/", "is the name of a folder"),
        (tmp_path / "no" / "f.nii.gz", "does not exist; create it first"),
        ("/dev/null", "is a device"),
        ("/dev/full", "is a device"),
    ):
        with pytest.raises(InputError, match=text):
            check_output_file(name)
    check_transform_output(tmp_path / "t.h5", None)
    with pytest.raises(InputError, match=r"would have 25[0-9] bytes"):
        check_transform_output(tmp_path / ("n" * 240), "ants")
    with pytest.raises(InputError, match="would have"):
        check_transform_output(tmp_path / f"{'n' * 232}TransformParameters.0.txt", None)


@pytest.mark.parametrize("name", ["a.h5", "a.nii.gz", "a.nrrd", "a.png", "a_report.json"])
def test_files_of_another_kind_are_not_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    refuse_other_kind(path)
    path.write_bytes(b"")
    refuse_other_kind(path)  # nothing is lost
    path.write_text('{"shopping": ["milk"]}')
    with pytest.raises(InputError, match="is there already and was not written by this program"):
        refuse_other_kind(path)
    good = {
        "a.h5": b"\x89HDF\r\n\x1a\nx", "a.nii.gz": b"\x1f\x8bx", "a.nrrd": b"NRRD0004", "a.png": b"\x89PNG",
        "a_report.json": b'{"self_check": {}, "metrics": {}}',
    }  # fmt: skip
    path.write_bytes(good[name])
    refuse_other_kind(path)


@pytest.mark.parametrize(
    ("name", "beside"),
    [("a.hdr", "a.img"), ("a.img", "a.hdr"), ("a.img.gz", "a.hdr.gz"), ("a.mhd", "a.zraw"), ("a.nhdr", "a.raw.gz")],
)
def test_files_beside_that_belong_to_nothing_are_not_replaced(name: str, beside: str, tmp_path: Path) -> None:
    grid = Geometry.make([4, 3, 2])
    for _ in range(2):  # a pair of before may be replaced
        check_output_file(tmp_path / name)
        save_image(np.zeros(grid.shape, np.float32), grid, tmp_path / name)
        assert (tmp_path / beside).exists()
    (tmp_path / name).unlink()
    (tmp_path / beside).write_bytes(b"precious")
    with pytest.raises(InputError, match="is there already, does not belong to"):
        check_output_file(tmp_path / name)
    if beside.endswith((".img", "raw", ".raw.gz")):
        (tmp_path / name).write_bytes(b"NRRD of other voxels")
        with pytest.raises(InputError, match="is there already, does not belong to"):
            refuse_other_kind(tmp_path / name)


def named(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_standard_output_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="nothing is written to standard output; give a file name"):
        check_output_file("-")
    check_output_file("./-")


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    image = named(tmp_path, "f.nii.gz", "x")
    (tmp_path / "soft").symlink_to("f.nii.gz")
    os.link(image, tmp_path / "hard")
    (tmp_path / "folder").mkdir()
    slice_ = named(tmp_path / "folder", "1.dcm", "x")
    for source, output in (
        (image, image),
        (image, f"{tmp_path}/folder/../f.nii.gz"),
        (image, f"{tmp_path}/soft"),
        (image, f"{tmp_path}/hard"),
        (f"{tmp_path}/soft", image),
        (f"{tmp_path}/folder", slice_),
    ):
        with pytest.raises(InputError, match=r"is (an input itself|the input .*part of it), and would"):
            refuse_inputs([f"{tmp_path}/new", output], [f"{tmp_path}/other", source])
    refuse_inputs([f"{tmp_path}/new", f"{tmp_path}/folder/2.dcm"], [image, f"{tmp_path}/folder"])


@pytest.mark.parametrize(
    ("header", "text", "data"),
    [
        ("a.mhd", "NDims = 2\nElementDataFile = v.bin\n", "v.bin"),
        ("a.mhd", "ElementDataFile = LIST\r\ns0.bin\r\ns1.bin\r\n", "s1.bin"),
        ("a.mhd", "ElementDataFile = s%02d.bin 0 3 1\n", "s03.bin"),
        ("a.nhdr", "NRRD0004\ndata file: v.raw.gz\n", "v.raw.gz"),
        ("a.nhdr", "NRRD0004\ndatafile: LIST\ns0.bin\ns1.bin\n", "s0.bin"),
        ("a.hdr", "", "a.img"),
        ("a.img", "", "a.hdr"),
        ("a.img.gz", "", "a.hdr.gz"),
        ("a.hdr.gz", "", "a.img.gz"),
        ("T.1.txt", '(InitialTransformParametersFileName "T.0.txt")\n', "T.0.txt"),
        ("T.1.txt", '(InitialTransformParameterFileName "T.0.txt")\n', "T.0.txt"),
        ("T.1.txt", '(Size 3)\n(DeformationFieldFileName "D.mha")\n', "D.mha"),
    ],
)
def test_an_output_that_an_input_consists_of(header: str, text: str, data: str, tmp_path: Path) -> None:
    source, part = named(tmp_path, header, text), named(tmp_path, data, "x")
    with pytest.raises(InputError, match="or a part of it"):
        refuse_inputs([part], [source])
    # The other way round: what is written has parts too.
    if header in ("a.hdr", "a.img"):
        with pytest.raises(InputError, match="and would be replaced"):
            refuse_inputs([source], [part])


def test_files_that_name_each_other_come_to_an_end(tmp_path: Path) -> None:
    line = '(InitialTransformParametersFileName "{}")\n'.format
    first = named(tmp_path, "T.0.txt", line("T.1.txt"))
    named(tmp_path, "T.1.txt", line("T.0.txt"))
    refuse_inputs([tmp_path / "other"], [first])


def test_files_among_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named(tmp_path, "a", "x")
    assert named_files("a", [Path("a"), ("no", tmp_path)], None, VALUES, 3) == (f"{tmp_path}/a", str(tmp_path))
    named(tmp_path, "[b]", "x")
    assert named_files("[ a, 1 ]", "[no,1]", "[b]") == (f"{tmp_path}/a", f"{tmp_path}/[b]")
