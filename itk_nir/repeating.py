"""`repeat`: a registration once more, from its report."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itk_nir import call as calls
from itk_nir.errors import InputError, OptionError, one_line, warn_caller
from itk_nir.identity import inputs_of
from itk_nir.problem import Problem
from itk_nir.registration import register
from itk_nir.report import Report
from itk_nir.result import RegistrationResult
from itk_nir.telling import versions

#: What may be given anew: where things are, and how it is run.
_HOW = ("callback", "threads", "device", "checkpoint", "checkpoint_seconds")


def repeat(
    report: str | os.PathLike[str] | Report | RegistrationResult | Mapping[str, Any], **anew: Any
) -> RegistrationResult:
    """Run a registration once more from its report: on the same machine to the bit.

    The files are read again from where they were; each must hold what it held, voxel by voxel.

    Parameters
    ----------
    report : path, Report, RegistrationResult or mapping
        A ``report.json`` that was saved, or a report in memory.
    **anew : object
        Arguments of `itk_nir.register` that say where an input is now (a moved file, an image in memory), or how it is
        run: `callback`, `threads`, `device`, `checkpoint`.

    Returns
    -------
    RegistrationResult

    Raises
    ------
    InputError
        No report that holds all that is needed, or an input that is not what it was.
    OptionError
        An argument that would make another registration of it.

    Warns
    -----
    UserWarning
        The versions are others: the bits may be, too.

    Examples
    --------
    >>> import itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, preset="fast", iterations=2)
    >>> again = itk_nir.repeat(result.report, fixed=fixed, moving=moving)
    >>> bool((again.warped_array == result.warped_array).all())
    True
    """
    name, values = _values(report)
    call, arguments = _call(name, values)
    inputs = [a for a in arguments if a not in calls.CHOICES]
    wrong = sorted(set(anew) - set(inputs) - set(_HOW))
    if wrong:
        raise OptionError(
            f"{', '.join(wrong)}: {name} says it already, and another value makes another registration; leave it out, "
            "or use register"
        )
    more = sorted(a for a, value in anew.items() if a not in _HOW and value is not None and arguments[a] is None)
    if more:
        raise OptionError(
            f"{', '.join(more)}: {'was' if len(more) == 1 else 'were'} not given to the registration of {name}, and "
            "would make another one of it; leave it out, or use register"
        )
    missing = sorted(set(calls.objects_in(call)) - set(anew))
    if missing:
        raise InputError(f"{name}: {', '.join(missing)} was in memory, not a file; give it again: {missing[0]}=...")
    try:
        settings = calls.settings_of(call)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{name}: its options cannot be used by this version ({one_line(error)})") from error
    arguments |= anew
    known = inspect.signature(Problem.prepare).parameters
    problem = Problem.prepare(settings=settings, **{k: v for k, v in arguments.items() if k in known})
    then, now = values.get("inputs", {}), inputs_of(problem)
    unlike = sorted(k for k in {*then, *now} if then.get(k) != now.get(k))
    # A mask is a lesion's too: what was given is what can be mended.
    unlike = [k for k in unlike if arguments.get(k, k) is not None] or unlike
    if unlike:
        raise InputError(
            f"{name}: {', '.join(unlike)} {'is' if len(unlike) == 1 else 'are'} not what it was then (other voxels, "
            "another grid or other points); give the right file"
        )
    others = [f"{k} {v} (now {versions().get(k)})" for k, v in values["versions"].items() if versions().get(k) != v]
    if others:
        warn_caller(f"{name}: was made with {', '.join(others)}; the result may differ in its last bits")
    return register(preset=settings, **arguments)


def arguments_in(report: str | os.PathLike[str] | Report | RegistrationResult | Mapping[str, Any]) -> dict[str, Any]:
    """Read what a registration was given, from its report.

    Parameters
    ----------
    report : path, Report, RegistrationResult or mapping
        As for `repeat`.

    Returns
    -------
    dict of str to object
        Argument of `itk_nir.register` -> its value: an absolute path where it was a file.

    Raises
    ------
    InputError
        No report that says so.
    """
    return _call(*_values(report))[1]


def _call(name: str, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """What the registration was called with, and of that the arguments; of a report that may have been edited.

    Raises
    ------
    InputError
        It does not say, or has tables, names or values that no registration leaves.
    """
    call = values.get("call")
    if not isinstance(call, Mapping) or not {"arguments", "preset", "options"} <= set(call):
        raise InputError(f"{name}: does not say how the registration was called; it is of an older version")
    tables = {
        "arguments": call["arguments"], "options": call["options"],
        "inputs": values.get("inputs", {}), "versions": values.get("versions"),
    }  # fmt: skip
    odd = [key for key, table in tables.items() if not isinstance(table, Mapping)]
    if odd:
        raise InputError(f"{name}: its {' and '.join(odd)} are no table of names; give the report as it was saved")
    known = set(inspect.signature(register).parameters)
    odd = sorted({"fixed", "moving"} - set(call["arguments"])) or sorted(set(call["arguments"]) - known)
    if odd:
        what = "has no" if odd[0] in known else "has unknown"
        raise InputError(f"{name}: {what} {', '.join(odd)} among its arguments; give the report as it was saved")
    try:
        return call, calls.arguments_of(call)
    except (ValueError, TypeError) as error:
        raise InputError(f"{name}: its arguments cannot be read ({one_line(error)})") from error


def _values(report: Any) -> tuple[str, Mapping[str, Any]]:
    """What it is called, and the report as a table.

    Raises
    ------
    InputError
        No report, or a file that is none.
    """
    if isinstance(report, RegistrationResult):
        report = report.report
    if isinstance(report, Report):
        return "report", report.as_dict()
    if isinstance(report, Mapping):
        within = report.get("metrics", report)
        return "report", within if isinstance(within, Mapping) else {}
    if not isinstance(report, (str, os.PathLike)):
        raise InputError(f"report: a file, a Report or a result, got {type(report).__name__}")
    path = Path(os.fsdecode(report))
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"report {path}: no such file; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"report {path}: cannot be read as a report ({one_line(error)})") from error
    found = values.get("metrics") if isinstance(values, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise InputError(f"report {path}: is not the report of a registration; give the report.json that was saved")
    return f"report {path}", found
