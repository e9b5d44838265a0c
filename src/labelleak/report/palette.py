"""The colors of a score from 0 to 1, on light and dark pages, with ink that can be read on them."""

LIGHT = (
    *("#f2f5f8", "#e2edf7", "#d0e1f2", "#b6d4e9", "#94c4df", "#6baed6"),
    *("#519ccc", "#2c77b3", "#1661a8", "#084a92", "#08306b"),
)
"""Fills of the tenths of a score, from none to all, after ColorBrewer's blues."""

DARK = (
    *("#20262d", "#1f3043", "#1d3d5c", "#1b4b75", "#1b5a8e", "#2069a6"),
    *("#5297cc", "#72b1e0", "#8fc5eb", "#b0d8f4", "#d6ecfb"),
)
"""The same for a dark page."""

INKS = ("#ffffff", "#11161b")


def luminance(color: str) -> float:
    """Relative luminance of a color, as the Web Content Accessibility Guidelines 2.2 define it.

    Args:
        color: Such as ``#0072b2``.

    Returns:
        From 0, black, to 1, white.

    Examples:
        >>> luminance("#000000"), luminance("#ffffff")
        (0.0, 1.0)
    """
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colors, from 1 to 21; text needs 4.5 for level AA.

    Examples:
        >>> contrast("#ffffff", "#000000")
        21.0
    """
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def score_colors() -> dict[str, list[tuple[str, str]]]:
    """Fill and ink of every tenth of a score, of light and of dark pages."""
    return {
        name: [(fill, max(INKS, key=lambda ink: contrast(fill, ink))) for fill in fills]
        for name, fills in (("light", LIGHT), ("dark", DARK))
    }
