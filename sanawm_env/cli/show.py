"""Numbers as people read them."""


def megabytes(count: float) -> str:
    """Bytes in MB, or GB from a thousand of them on."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
