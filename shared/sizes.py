"""Sizes as people read them."""


def readable_size(size_bytes: int) -> str:
    """Such as ``28.4 kB``, in powers of 1000."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    scaled = size_bytes / 1e3
    for unit in ("kB", "MB", "GB"):
        # 999.95 is written as 1000.0.
        if scaled < 999.95:
            return f"{scaled:.1f} {unit}"
        scaled /= 1e3
    return f"{scaled:.1f} TB"
