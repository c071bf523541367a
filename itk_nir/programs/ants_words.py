"""The words of ANTs' command lines: flags, and values such as ``Rigid[0.1]`` or ``[ f.nii.gz, m.nii.gz, 1 ]``.

A value may stand in several words: it goes on until its brackets close. Everything here is text; what it means is
`itk_nir.programs.ants_request`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from itk_nir.errors import OptionError, escaped
from itk_nir.options import nearest_name

_FLAG = re.compile(r"--[A-Za-z]|-[A-Za-z]")
_NAMED = re.compile(r"([^\[\]]*)\[(.*)\]", re.DOTALL)


@dataclass(frozen=True)
class Value:
    """What follows a flag.

    Parameters
    ----------
    text : str
        As it was written, in one piece.
    name : str
        What stands before the bracket; everything where there is none.
    parts : tuple of str
        What stands within the brackets, at its commas; empty where there are none.
    """

    text: str
    name: str
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> Value:
        """Take a value apart.

        Parameters
        ----------
        text : str
            Such as ``"SyN[0.1, 3, 0]"``.

        Returns
        -------
        Value
        """
        text = text.strip()
        found = _NAMED.fullmatch(text)
        if found is None:
            return cls(text, text)
        return cls(text, found[1].strip(), tuple(part.strip() for part in _at_commas(found[2])))

    @property
    def bracketed(self) -> bool:
        """Whether it is a list alone, ``[a, b]``."""
        return not self.name and self.text.startswith("[")


@dataclass(frozen=True)
class Flag:
    """A flag and its value.

    Parameters
    ----------
    name : str
        The long name, without its dashes.
    written : str
        As it was written, for messages.
    value : Value or None
        None for a flag alone.
    """

    name: str
    written: str
    value: Value | None

    def wanted(self) -> Value:
        """Give the value.

        Returns
        -------
        Value

        Raises
        ------
        OptionError
            There is none.
        """
        if self.value is None:
            raise OptionError(f"{self.written} needs a value")
        return self.value

    def yes(self) -> bool:
        """Tell whether a flag is on: alone, or with 1, true or yes.

        Returns
        -------
        bool

        Raises
        ------
        OptionError
            A value that is neither yes nor no.
        """
        word = "1" if self.value is None else self.value.text.strip("[] ").lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise OptionError(f"{self.written} is 0 or 1, got {escaped(word)}")

    def whole(self, least: int) -> int:
        """Give the value as a whole number.

        Parameters
        ----------
        least : int
            The smallest one that there can be.

        Returns
        -------
        int

        Raises
        ------
        OptionError
            No such number.
        """
        return whole(self.wanted().text, self.written, least)


def flags_of(
    words: Sequence[str], short: Mapping[str, str], long: Iterable[str], several: Container[str] = ()
) -> list[Flag]:  # fmt: skip
    """The flags of a command line, in their order.

    Parameters
    ----------
    words : sequence of str
        Everything behind the name of the program.
    short : mapping of str to str
        Short name -> long name, without dashes.
    long : iterable of str
        The long names.
    several : container of str
        The long names of flags that take several values in a row, which is as if the flag were written before each.

    Returns
    -------
    list of Flag

    Raises
    ------
    OptionError
        An unknown flag (with the nearest name), a word that belongs to none, or a bracket that does not close.
    """
    out: list[Flag] = []
    known = {**short, **{name: name for name in long}}
    for written, texts in _grouped(words, lambda flag: known.get(flag.lstrip("-")) in several):
        name = written.lstrip("-")
        if name not in known or (len(name) == 1) == written.startswith("--"):
            hint = nearest_name(name, list(known))
            raise OptionError(f"there is no flag {escaped(written)}{hint}; --help lists them")
        if len(texts) > 1 and known[name] not in several:
            raise OptionError(f"{written} takes one value, got {escaped(' '.join(texts))}")
        values: list[Value | None] = [Value.of(text) for text in texts]
        out.extend(Flag(known[name], written, value) for value in values or [None])
    return out


def _grouped(words: Sequence[str], takes_several: Callable[[str], bool]) -> Iterator[tuple[str, list[str]]]:
    """Every flag with the values that follow it."""
    written, texts, open_text = "", list[str](), ""
    for word in words:
        if open_text:
            open_text = f"{open_text} {word}"
        elif _FLAG.match(word):
            if written:
                yield written, texts
            written, texts = word, []
            continue
        else:
            open_text = word
        if not written:
            raise OptionError(f"{escaped(word)} belongs to no flag; every value follows a flag such as --output")
        # ``Rigid [0.1]``: a bracket that begins a word belongs to the name before it.
        if open_text.startswith("[") and texts and "[" not in texts[-1] and not takes_several(written):
            open_text = f"{texts.pop()}{open_text}"
        if open_text.count("[") <= open_text.count("]"):
            texts.append(open_text)
            open_text = ""
    if open_text:
        raise OptionError(f"{written} {escaped(open_text)}: a bracket is not closed")
    if written:
        yield written, texts


def _at_commas(text: str) -> list[str]:
    """The parts of a list; commas within inner brackets are not those of the list."""
    out, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            out.append("")
        else:
            out[-1] += letter
    return out


def number(text: str, what: str) -> float:
    """A finite number.

    Parameters
    ----------
    text : str
        What was written.
    what : str
        What to call it in messages.

    Returns
    -------
    float

    Raises
    ------
    OptionError
        No such number.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value != value or value in (float("inf"), -float("inf")):
        raise OptionError(f"{what} is a number, got {escaped(text)}")
    return value


def whole(text: str, what: str, least: int) -> int:
    """A whole number; ``4.0`` is one too.

    Parameters
    ----------
    text : str
        What was written.
    what : str
        What to call it in messages.
    least : int
        The smallest one that there can be.

    Returns
    -------
    int

    Raises
    ------
    OptionError
        No such number.
    """
    value = number(text, what)
    if not value.is_integer() or value < least:
        raise OptionError(f"{what} is a whole number of at least {least}, got {escaped(text)}")
    return int(value)


def dimension_of(text: str) -> int:
    """The value of ``--dimensionality``.

    Parameters
    ----------
    text : str
        What was written.

    Returns
    -------
    int
        2 or 3.

    Raises
    ------
    OptionError
        Another.
    """
    dimension = whole(text, "--dimensionality", 2)
    if dimension not in (2, 3):
        raise OptionError(f"--dimensionality is 2 or 3, got {dimension}")
    return dimension


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Numbers with an ``x`` between them, such as ``100x70x50``.

    Parameters
    ----------
    text : str
        What was written.
    what : str
        What to call them in messages.

    Returns
    -------
    tuple of float

    Raises
    ------
    OptionError
        Something else.
    """
    return tuple(number(part, f"{what} {escaped(text)}: each") for part in text.strip("[] ").lower().split("x"))
