"""Which arithmetic a device is fast in."""

import torch


def best_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies matrices in it, else float32, in which it would only be emulated.

    Asks what the processor or GPU is, measures nothing: AMX or AVX-512 BF16 on x86, bfloat16 instructions on ARM
    where PyTorch reports them, CUDA from compute capability 8 (Ampere) on. The embedded prior's results differ
    between the two by less than 1/255 rms.
    """
    device = torch.device(device)
    if device.type == "cuda":
        fast = torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu":
        fast = any(cpu_has(name) for name in ("amx_tile", "avx512_bf16", "arm_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def cpu_has(feature: str) -> bool:
    """What torch.cpu says of the processor; False where this version of PyTorch does not know the question."""
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", bool)())
