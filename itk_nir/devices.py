"""The names of devices, which are known without torch."""

from __future__ import annotations

import re

from itk_nir.errors import OptionError

#: What `device` may be; the number is that of the card.
_DEVICE = re.compile(r"auto|cpu|mps|cuda(?::[0-9]{1,3})?")


def checked_device(name: str) -> str:
    """The name of a device, if it is one.

    Parameters
    ----------
    name : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``. Whether there is such a device is not asked.

    Returns
    -------
    str
        The same.

    Raises
    ------
    OptionError
        Another word.
    """
    if not isinstance(name, str) or _DEVICE.fullmatch(name) is None:
        raise OptionError(f"device is 'auto', 'cpu', 'cuda' or 'cuda:N', got {name!r:.60}")
    return name
