"""The exceptions of the package. Messages are one line: what was got, what was wanted, what to do."""

from __future__ import annotations


class ItkNirError(Exception):
    """Anything the package refuses or fails to do."""


class InputError(ItkNirError, ValueError):
    """An image, mask, transform or point file that cannot be used as it is."""


class OptionError(ItkNirError, TypeError):
    """An option that does not exist or has a value it cannot have."""


class RegistrationCancelled(ItkNirError):
    """The registration was stopped before there was anything to return."""


class SelfCheckWarning(UserWarning):
    """A file was written and kept that, read back, is not the transform that it stands for."""


def one_line(error: BaseException | str) -> str:
    """The telling line of a message that may be pages long.

    ITK's exceptions put it last, behind ``"ITK ERROR: Class(0x…): "``; Python's put it first.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__ if isinstance(error, BaseException) else ""
    for line in lines:
        for mark in ("ITK ERROR:", "sitk::ERROR:"):
            if mark in line:
                rest = line.split(mark, 1)[-1].strip()
                return rest.split("): ", 1)[-1] if rest else lines[-1]
    return lines[0]
