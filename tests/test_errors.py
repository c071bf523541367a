from __future__ import annotations

import pytest

from itk_nir import errors


def test_warnings_name_the_line_outside_the_package() -> None:
    with pytest.warns(UserWarning, match="told") as told:
        errors.warn_caller("told")
    assert told[0].filename == __file__
    inside: dict[str, object] = {"__name__": "itk_nir.somewhere", "warn": errors.warn_caller}
    exec("def deep(n):\n    return deep(n - 1) if n else warn('told', DeprecationWarning)", inside)
    with pytest.warns(DeprecationWarning, match="told") as told:
        inside["deep"](5)  # type: ignore[operator]
    assert told[0].filename == __file__
    other: dict[str, object] = {"__name__": "itk_nirvana", "warn": errors.warn_caller}
    exec(compile("def f():\n    warn('told')", "nirvana.py", "exec"), other)
    with pytest.warns(UserWarning, match="told") as told:
        other["f"]()  # type: ignore[operator]
    assert told[0].filename == "nirvana.py"


def test_kinds_can_be_caught_as_the_builtin_and_as_ours() -> None:
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.NothingToCompare, errors.InputError)
    assert issubclass(errors.OptionError, ValueError)
    assert issubclass(errors.OptionError, TypeError)
    for kind in (errors.InputError, errors.OptionError, errors.RegistrationCancelled):
        assert issubclass(kind, errors.ItkNirError)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n  first thing\nsecond", "first thing"),
        (
            "Exception thrown in SimpleITK ImageFileReader_Execute: /a/b.cxx:97:\n"
            "sitk::ERROR: Unable to determine ImageIO reader for x",
            "Unable to determine ImageIO reader for x",
        ),
        (
            "Exception thrown in SimpleITK ReadTransform: /a/b.cxx:97:\n/c/d.hxx:5:\n"
            "ITK ERROR: TransformFileReaderTemplate(0x55d): could not read",
            "could not read",
        ),
        ("", "ValueError"),
    ],
)
def test_one_line_finds_the_telling_line(text: str, line: str) -> None:
    assert errors.one_line(ValueError(text)) == line


def test_one_line_keeps_a_file_name_of_two_lines_whole() -> None:
    assert errors.one_line(errors.InputError("image a\nb.nii: no such file")) == "image a\\nb.nii: no such file"
    assert errors.one_line(errors.ItkNirError(" a\x1b[2Kb\u2028c ")) == "a\\x1b[2Kb\\u2028c"
    assert errors.one_line(errors.OptionError("")) == "OptionError"


def test_a_failed_self_check_is_a_warning_that_is_shown_by_default() -> None:
    assert issubclass(errors.SelfCheckWarning, UserWarning)
