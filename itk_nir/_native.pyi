# The native module (wrapping/module.cpp). Its functions take float32 tensors or arrays; itk_nir.engine.ops wraps them.
from typing import Any

def __getattr__(name: str) -> Any: ...
