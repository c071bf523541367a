"""Lists of transforms as ANTs writes them: a file, ``[file,1]`` for its inverse, ``identity``; the first listed is the
first that a fixed point meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from itk_nir.errors import InputError, escaped
from itk_nir.places import bracketed
from itk_nir.transforms.model import CompositeTransform, LinearTransform, compose


@dataclass(frozen=True)
class Listed:
    """An entry of a list.

    Attributes
    ----------
    file : str, object or None
        The transform; None for the identity.
    inverse : bool
        Whether its inverse is meant.
    """

    file: Any
    inverse: bool = False


def listed(word: str) -> Listed:
    """Read an entry of a list.

    Parameters
    ----------
    word : str
        ``"file"``, ``"[file]"``, ``"[file,0]"``, ``"[file,1]"`` or ``"identity"``, blanks within the brackets allowed.
        A file that exists under the whole of it is that file.

    Returns
    -------
    Listed

    Raises
    ------
    InputError
        Brackets around something else.

    Examples
    --------
    >>> listed("[ x_0GenericAffine.mat, 1 ]")
    Listed(file='x_0GenericAffine.mat', inverse=True)
    """
    if word.lower() == "identity":
        return Listed(None)
    parts = bracketed(word)
    if not parts:
        return Listed(word)
    file, *rest = parts
    if not file or len(rest) > 1 or (rest and rest[0].lower() not in ("0", "1", "false", "true")):
        raise InputError(
            f"transform {escaped(word)}: give a file, [file,1] for its inverse, or identity; images are aligned by "
            "antsRegistration, or by itk-nir register"
        )
    return Listed(file, bool(rest) and rest[0].lower() in ("1", "true"))


def chain_of(
    entries: Iterable[Listed], load: Callable[[Any], CompositeTransform], dimension: int | None
) -> CompositeTransform:
    """The transforms of a list, one after the other.

    Parameters
    ----------
    entries : iterable of Listed
        In the order in which they meet a fixed point.
    load : callable
        Reads what is listed.
    dimension : int or None
        Of the identity; None where a list of identities alone cannot be used.

    Returns
    -------
    CompositeTransform
        Fixed → moving; the identity where nothing is listed.

    Raises
    ------
    InputError
        A file that cannot be read, unlike dimensions, or identities alone of no known dimension.
    """
    parts = []
    for entry in entries:
        if entry.file is not None:
            part = load(entry.file)
            parts.append(part.inverse() if entry.inverse else part)
    if parts:
        return compose(*parts)
    if dimension is None:
        raise InputError("transform identity: of no known dimension; give a reference image")
    return CompositeTransform((LinearTransform.identity(dimension),))
