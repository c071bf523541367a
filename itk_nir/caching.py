"""`cached_property` without a lock."""

from __future__ import annotations

import functools
import sys
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


__all__ = ["cached_property"]
