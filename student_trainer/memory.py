"""How much memory is free for this process to take, on a device or on the host."""

import torch

from shared.host_memory import host_free_bytes


def free_bytes(device: torch.device) -> int:
    """Bytes that could be taken now; 0 where nothing says (no Linux). Of files, only idle pages are counted as free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_free_bytes(droppable=("inactive_file",))
