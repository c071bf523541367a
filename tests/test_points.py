"""Tables of points in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itk_nir.errors import InputError
from itk_nir.images import load_image
from itk_nir.points import load_points, save_points


def test_points_keep_their_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("name, X, Y, Z, t\na, 1.5, 2, -3,0\n\nb, 4, 5, 6.25,0\n")
    table = load_points(path)
    np.testing.assert_array_equal(table.points, [[1.5, 2, -3], [4, 5, 6.25]])
    save_points(table, table.points + 1, tmp_path / "q.csv")
    assert (tmp_path / "q.csv").read_text().splitlines() == [
        "name,X,Y,Z,t", "a,2.500000,3.000000,-2.000000,0", "b,5.000000,6.000000,7.250000,0",
    ]  # fmt: skip
    assert load_points(path, 2).points.shape == (2, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.csv", "q.csv"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1,2,3\n4,5,6\n", "no column x, y"),
        ("", "no column x, y"),
        ("x,y\n1,2\n3\n", "row 2"),
        ("x,y\n1,two\n", "row 1"),
        ("x,y\n1,nan\n", "NaN"),
    ],
)
def test_bad_point_files(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=what) as error:
        load_points(path)
    assert str(path) in str(error.value)


def test_missing_point_files(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("x,y\n1,2\n")
    with pytest.raises(InputError, match="no column z"):
        load_points(tmp_path / "p.csv", 3)
    with pytest.raises(InputError, match="no such file"):
        load_points(tmp_path / "q.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="no CSV"):
        load_points(tmp_path / "b.csv")
    table = load_points(tmp_path / "p.csv")
    with pytest.raises(InputError, match="coordinates"):
        save_points(table, np.zeros((2, 2)), tmp_path / "r.csv")
    with pytest.raises(InputError, match="does not exist"):
        save_points(table, table.points, tmp_path / "no" / "r.csv")


def test_real_landmarks(data: Path) -> None:
    table = load_points(data / "lung_ct" / "fixed_landmarks.csv")
    assert table.points.shape == (51, 3)
    assert load_image(data / "lung_ct" / "fixed.nii.gz", "fixed image").geometry.contains(table.points).all()
