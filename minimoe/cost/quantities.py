"""Numbers as text: with three digits and a unit, or in full."""

SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(n, unit=""):
    """A number with three digits and a prefix: 46.7 G.  From a million P on, a power of ten is used.

    unit: text after the prefix, such as "B" for bytes.
    """
    n = float(f"{n:.3g}")  # rounded first, since 999.6 is 1 k
    if abs(n) >= 1e21:
        return f"{n:.3g} {unit}".rstrip()
    for scale, letter in SCALES:
        if abs(n) >= scale:
            return f"{n / scale:.3g} {letter}{unit}" if n < 1000 * scale else f"{n / scale:.0f} {letter}{unit}"
    return f"{n:.3g} {unit}".rstrip()


def full(n):
    """A number without its fraction, with all digits; from 10^15 on, which no model reaches, with three digits."""
    return f"{n:,.0f}" if abs(n) < 1e15 else short(n)
