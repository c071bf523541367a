"""Options as data: what there is a ``Set`` and a ``Get`` for, and what stands here for the methods of other filters.

The options are the arguments of `itk_nir.register` and the options of its presets; nothing is written down twice. The
methods, ``dir()``, what messages propose and the table in ``docs/coming_from_itk.md`` come from the two tables of this
module.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from itk_nir.compat.itk.inputs import INPUTS
from itk_nir.compat.options import register_arguments
from itk_nir.options import SYNONYMS


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes
    ----------
    name : str
        As `itk_nir.register` spells it: ``"learning_rates"``.
    default : object
        Of an option of `register` itself. What is not set of a preset's options is what the preset says.
    of_preset : bool
        Whether it belongs to presets.
    help : str
        What it means and may be.
    check : callable, optional
        Raises what is wrong with a value at once; all other values are checked when the registration runs.
    """

    name: str
    default: Any = None
    of_preset: bool = False
    help: str = ""
    check: Callable[[Any], object] | None = None


@dataclass(frozen=True)
class Counterpart:
    """Methods of ITK's or elastix' filters and what stands for them here.

    Attributes
    ----------
    methods : tuple of (str, str)
        Their method and the one here, for each.
    remark : str
        What else there is to know.
    note : str
        Whose they are, where it matters.
    exists : bool
        False where there is no such thing here: the method here is then the one to look at.
    """

    methods: tuple[tuple[str, str], ...]
    remark: str = ""
    note: str = ""
    exists: bool = True

    @property
    def row(self) -> str:
        """A row of a Markdown table."""
        theirs, here = ([f"`{name}`" for name in dict.fromkeys(names)] for names in zip(*self.methods, strict=True))
        what = "the same" if theirs == here else ", ".join(here)
        if not self.exists:
            return f"| {', '.join(theirs)}{self.note} | not here: {what} {self.remark} |"
        return f"| {', '.join(theirs)}{self.note} | {what}{'; ' if self.remark else ''}{self.remark} |"


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


#: Rows of the table in the docs, in its order.
COUNTERPARTS = (
    Counterpart(
        _same("SetFixedImage", "SetMovingImage"),
        "any real scalar pixel types, also unlike ones; any grids; 2D or 3D",
    ),
    Counterpart(_same("SetFixedMask", "SetMovingMask"), "an image above 0 where it counts", note=" (elastix)"),
    Counterpart(
        _same("SetInitialTransform"),
        "an ITK transform, a matrix, or a file, and it becomes part of the result",
    ),
    Counterpart(
        (("SetNumberOfIterationsPerLevel", "SetIterations"), ("SetNumberOfIterations", "SetIterations")),
        "one number a level",
    ),
    Counterpart(
        (("SetShrinkFactorsPerLevel", "SetShrinkFactors"), ("SetSmoothingSigmasPerLevel", "SetSmoothingSigmas"))
    ),
    Counterpart((("SetNumberOfWorkUnits", "SetThreads"),), "results do not depend on it"),
    Counterpart(
        _same("SetMetric"),
        "a name, a weighted sum such as `0.5*nmi + 0.5*lncc`, or a metric of this package, and none of ITK's",
    ),
    Counterpart((("SetOptimizer", "SetPreset"),), "and its options choose it", exists=False),
    Counterpart(
        (("GetTransform", "GetTransform"), ("GetModifiableTransform", "GetTransform")), "also `GetInverseTransform`"
    ),
    Counterpart(_same("GetOutput"), "the moving image on the fixed grid, always `itk.F`"),
    Counterpart(_same("AddObserver", "GetProgress", "AbortGenerateDataOn")),
)


def method_table() -> str:
    """The table of methods in the docs.

    Returns
    -------
    str
        Markdown.
    """
    return "\n".join(["| in ITK, elastix | here |", "|---|---|", *(one.row for one in COUNTERPARTS)])


def method_hint(name: str) -> str:
    """What stands here for a method of another filter, to be added to a message.

    Parameters
    ----------
    name : str
        The method that there is not.

    Returns
    -------
    str
        Empty where nothing is known of it.
    """
    for one in COUNTERPARTS:
        here = dict(one.methods).get(name)
        if here is not None:
            return f"; here it is {here}" if one.exists else f": {here} {one.remark}"
    return ""


@cache
def option_table() -> dict[str, Option]:
    """Every option by its name in ITK's spelling: the arguments of `register`, then the options of all presets.

    Returns
    -------
    dict of str to Option
        ``{"LearningRates": Option("learning_rates", ...), ...}``. The pipeline's inputs are not among them.
    """
    from itk_nir.registration import register
    from itk_nir.settings import PRESETS, described, preset_settings

    checks = {"preset": preset_settings}  # the defaults of other options depend on it
    table = {
        camel_case(name): Option(name, parameter.default, check=checks.get(name))
        for name, parameter in inspect.signature(register).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and camel_case(name) not in INPUTS
    }
    for preset in PRESETS:
        for name, (_, what) in described(preset).items():
            text = "" if what is None else f"{what.help} ({what.limits()})" if what.limits() else what.help
            table.setdefault(camel_case(name), Option(name, of_preset=True, help=textwrap.fill(text, 100)))
    return table


@cache
def old_names() -> dict[str, str]:
    """Options of before 0.2 in ITK's spelling → now."""
    from itk_nir.settings import RENAMED

    table = option_table()
    names = {camel_case(old): camel_case(now) for old, now in RENAMED.items()}
    return {old: now for old, now in names.items() if old not in table and now in table}


@cache
def method_synonyms() -> dict[str, str]:
    """Methods in the words of other tools, in lower case → here, for what messages propose."""
    known = option_table()
    words = {old: now for old, now in SYNONYMS.items() if camel_case(now) in known}
    return {
        f"{verb}{camel_case(word)}".lower(): f"{verb}{camel_case(now)}"
        for verb in ("Get", "Set")
        for word, now in words.items()
    }


def camel_case(name: str) -> str:
    """A name in ITK's spelling.

    Parameters
    ----------
    name : str
        ``"learning_rates"``, or ``"LearningRates"`` already.

    Returns
    -------
    str
        ``"LearningRates"``.
    """
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


class Options:
    """The options of one filter.

    Attributes
    ----------
    given : dict
        Name → value, of those that are set.
    """

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def get(self, option: Option) -> Any:
        """The value of an option: as set, or else the default; None for one that the preset does not have.

        Parameters
        ----------
        option : Option

        Returns
        -------
        object
        """
        if option.name in self.given:
            return self.given[option.name]
        if not option.of_preset:
            return option.default
        from itk_nir.settings import options_of

        return options_of(self.get(option_table()["Preset"])).get(option.name)

    def arguments(self) -> dict[str, Any]:
        """What is set, as keywords for `itk_nir.register`.

        Returns
        -------
        dict of str to object
            The arguments, and the preset with its options as ``preset``.

        Raises
        ------
        OptionError
            An option that the preset does not have, or a value that it cannot have.
        """
        given = dict(self.given)
        return register_arguments(given.pop("preset", option_table()["Preset"].default), given)

    def set(self, option: Option, value: Any) -> bool:
        """Set an option.

        Parameters
        ----------
        option : Option
        value : object
            A list is taken as a tuple.

        Returns
        -------
        bool
            Whether that changes anything.

        Raises
        ------
        OptionError
            A preset that there is not.
        """
        value = tuple(value) if isinstance(value, list) else value
        if option.check is not None:
            option.check(value)
        old = self.get(option)
        if value is old or (type(value) is type(old) and not isinstance(value, np.ndarray) and value == old):
            return False
        self.given[option.name] = value
        return True
