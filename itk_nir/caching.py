"""`cached_property` without a lock, and keys of caches that stand for one object."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property
else:

    class cached_property(functools.cached_property):
        """As Python 3.12 has it.

        Before, all objects of a class shared one lock: they waited for one another, and in a process that was forked
        while another thread was in the property they waited for ever.
        """

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = instance.__dict__.get(self.attrname, self)
            if value is self:
                value = instance.__dict__[self.attrname] = self.func(instance)
            return value


@dataclass(frozen=True)
class ById:
    """A cache key that stands for one object, whatever it holds, and keeps it alive.

    Parameters
    ----------
    value : object
        The object.
    """

    value: Any

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.value is self.value


__all__ = ["ById", "cached_property"]
