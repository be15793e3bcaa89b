"""Which matrix instructions the CPU of this process has, and which precisions they make faster than float32."""

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


def int8_refusal() -> str | None:
    """Why this CPU should not compute in 8 bits; None if it may: products of bytes need VNNI (or AMX, which has it)."""
    import torch

    found = torch.cpu.get_capabilities()
    has_vnni = found.get("avx512_vnni", False) or found.get("avx_vnni", False)
    most = _most_for_onednn()
    allowed = most in ("ALL", "DEFAULT") or "VNNI" in most or "AVX512_CORE_" in most or "AMX" in most
    if has_vnni and allowed and torch.backends.mkldnn.is_available():
        return None
    return f"int8 on a CPU needs VNNI, this CPU has {cpu_instructions()} without VNNI, where int8 is slower than fp32"


def _most_for_onednn() -> str:
    """The user may forbid oneDNN some of the instructions that PyTorch reports."""
    return (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()


def _has_amx(vectors: str) -> bool:
    import torch

    most = _most_for_onednn()
    allowed = most in ("ALL", "DEFAULT") or "AMX" in most
    allowed = allowed and torch.backends.mkldnn.is_available()
    return allowed and vectors == "AVX512" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
