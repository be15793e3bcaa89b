"""Which matrix instructions the CPU of this process has, and whether they make bfloat16 faster than float32."""

import os

# Without AMX, oneDNN's products in bfloat16 took longer than in float32: 1.4 times as long with AVX512-BF16, 4 times
# with AVX-512 alone and 10 times with AVX2 (docs/decisions.md, 2026-11-29).
_ENOUGH_FOR_BF16 = "AMX"


def cpu_instructions() -> str:
    """The vector instructions that PyTorch uses here, and AMX where oneDNN may use AMX: `AVX512`, `AVX512 and AMX`."""
    import torch  # imported here, because actors that read and write load this module but should not load PyTorch

    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{vectors} and {_ENOUGH_FOR_BF16}" if _has_amx(vectors) else vectors


def bf16_refusal() -> str | None:
    """Why this CPU should not compute in bfloat16; None if it may."""
    found = cpu_instructions()
    if found.endswith(_ENOUGH_FOR_BF16):
        return None
    return f"bf16 on a CPU needs {_ENOUGH_FOR_BF16}, this CPU has {found}, where bf16 is slower than fp32"


def _has_amx(vectors: str) -> bool:
    import torch

    # PyTorch reports the processor's instructions; the user may forbid some of them for oneDNN.
    most = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    allowed = most in ("ALL", "DEFAULT") or "AMX" in most
    allowed = allowed and torch.backends.mkldnn.is_available()
    return allowed and vectors == "AVX512" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
