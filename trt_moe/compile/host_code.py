"""Whether an engine holds code that would run on the CPU, such as the lean runtime of version-compatible engines."""

from __future__ import annotations

import re
import struct

# e_ident of a 64-bit little-endian ELF file, then its type and machine.
_ELF = re.compile(rb"\x7fELF\x02\x01\x01.{9}(..)(..)\x01\x00\x00\x00", re.DOTALL)
_EM_CUDA = 190


def has_host_code(plan: bytes) -> bool:
    """Look for ELF files of any machine but CUDA, whose kernels are ELF files too.

    A sign, not a proof: code that is packed escapes it. What keeps it from running is that TensorRT opens no
    engine with host code unless `engine_host_code_allowed` is set, and that is for trusted engines only.
    """
    return any(struct.unpack("<H", match[2])[0] != _EM_CUDA for match in _ELF.finditer(plan))
