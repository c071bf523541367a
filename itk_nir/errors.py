"""The exceptions and warnings of the package. Messages are one line: what was got, what was wanted, what to do."""

from __future__ import annotations

import re
import sys
import warnings


class ItkNirError(Exception):
    """Anything the package refuses or fails to do.

    Examples
    --------
    >>> import itk_nir
    >>> try:
    ...     itk_nir.load_transform("no such file.h5")
    ... except itk_nir.ItkNirError as error:
    ...     print(type(error).__name__)
    InputError
    """


class InputError(ItkNirError, ValueError):
    """An image, mask, transform or point file that cannot be used as it is.

    Examples
    --------
    >>> import itk_nir
    >>> try:
    ...     itk_nir.register("no such fixed image.nii.gz", "moving.nii.gz")
    ... except itk_nir.InputError as error:
    ...     print(error)
    fixed image no such fixed image.nii.gz: no such file; check the path
    """


class NothingToCompare(InputError):
    """No position of the fixed image counts: it is flat, masked out, or outside the moving image everywhere."""


class WriteError(ItkNirError, OSError):
    """A file that cannot be written: the disk is full, or refuses otherwise. Nothing of it was kept."""


class OptionError(ItkNirError, ValueError, TypeError):
    """An option that does not exist or has a value it cannot have. Both a `ValueError` and a `TypeError`.

    Examples
    --------
    >>> import itk_nir
    >>> try:
    ...     itk_nir.make_settings("fast", smoothnes=1)
    ... except itk_nir.OptionError as error:
    ...     print(str(error).split(";")[0])
    unknown option 'smoothnes' for preset 'fast', did you mean 'smoothness'?
    """


class OutOfMemory(ItkNirError, MemoryError):
    """A registration needs more memory than there is; nothing of it is left in the process."""


class WorkerDied(ItkNirError):
    """A worker process of `itk_nir.register_many` ended before it had an answer."""


class RegistrationCancelled(ItkNirError):
    """The registration was stopped before there was anything to return.

    Examples
    --------
    `itk_nir.register` keeps the best deformation so far when its callback stops it. Interfaces of programs whose own
    call returns nothing after that raise this instead:

    >>> import itk_nir
    >>> import SimpleITK as sitk
    >>> from itk_nir.compat.sitk import ImageRegistrationMethod
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> method = ImageRegistrationMethod(preset="fast")
    >>> command = method.AddCommand(sitk.sitkIterationEvent, method.Abort)
    >>> try:
    ...     method.Execute(fixed, moving)
    ... except itk_nir.RegistrationCancelled:
    ...     print("stopped")
    stopped
    """


class VerdictWarning(UserWarning):
    """The evidence does not support the result of a registration, see `itk_nir.Report`.

    Examples
    --------
    >>> import warnings, itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", itk_nir.VerdictWarning)
    ...     itk_nir.register(fixed, moving, preset="fast").report.verdict.grade
    'good'
    """


class SelfCheckWarning(UserWarning):
    """A transform file was written, but read back it is not the transform to the wanted tolerance.

    Examples
    --------
    >>> import tempfile, warnings, itk_nir
    >>> from itk_nir.images import to_sitk
    >>> from itk_nir.phantom import brain_phantom
    >>> phantom = brain_phantom(2, (48, 56))
    >>> fixed, moving = (to_sitk(a, phantom.geometry) for a in (phantom.fixed, phantom.moving))
    >>> result = itk_nir.register(fixed, moving, deformable=False)
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    ...     warnings.simplefilter("error", itk_nir.SelfCheckWarning)
    ...     sorted(result.save(folder + "/"))
    ['composite', 'inverse_composite', 'report', 'warped']
    """


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn in the name of the line outside the package that called into it, however deep below it this is called.

    Parameters
    ----------
    message : str
        One line.
    category : type
        A class of warnings.
    """
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and f"{frame.f_globals.get('__name__', '')}.".startswith("itk_nir."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_renamed(old: str, now: str) -> None:
    """Warn of a name of before 0.2, in the name of the line that uses it.

    Parameters
    ----------
    old, now : str
        The name of before and the one to use.
    """
    warn_caller(f"{old} is called {now} since 0.2", DeprecationWarning)


#: Control characters and line separators, which would cut a message or steer a terminal, and what to print for them.
_CONTROL_CHARACTERS = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def escaped(text: str) -> str:
    """Write control characters (a file name may hold line ends) as escapes, so that the text is one line.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        The text on one line.

    Examples
    --------
    >>> print(escaped("a file\\nof two lines"))
    a file\\nof two lines
    """
    return text.translate(_CONTROL_CHARACTERS)


#: "Exception thrown in SimpleITK ...: /.../itkNrrdImageIO.cxx:410:".
_THROWN = re.compile(r"(Exception thrown in .*|/.*)\.(h|hxx|cxx|cpp):\d+:$")


def one_line(error: BaseException | str) -> str:
    """Find the telling line of a message that may be pages long.

    ITK's exceptions put it last, behind ``"ITK ERROR: Class(0x...): "``; Python's put it first. A message of this
    package is one line by itself: line ends in it belong to a file's name and are escaped.

    Parameters
    ----------
    error : BaseException or str
        What was raised, or its message.

    Returns
    -------
    str
        One line; empty for an empty message.
    """
    if isinstance(error, ItkNirError) and str(error).strip():
        return escaped(str(error).strip())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__ if isinstance(error, BaseException) else ""
    # Where in the C++ sources it was thrown is no news to anybody.
    lines = [line for line in lines if not line.startswith("Exception thrown in SimpleITK")] or lines
    for line in lines:
        for mark in ("ITK ERROR:", "sitk::ERROR:", "itk::ERROR:"):
            if mark in line:
                rest = line.split(mark, 1)[-1].strip().split("): ", 1)[-1]
                # One that ends in a colon says what follows, the last of which is the cause.
                return rest if rest and not rest.endswith(":") else lines[-1]
    # Where it was thrown comes first.
    first = next((line for line in lines if not _THROWN.match(line)), lines[-1])
    return lines[-1] if first.endswith(":") else first
