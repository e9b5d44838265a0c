"""The page of an inversion: the images that were found, enlarged, beside the true ones."""

import base64
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from labelleak.report.pages import render

_MODES = {
    "restored": "labels restored from the same update, by {attack}",
    "given": "the true labels, given to the search",
    "free": "no labels: one for each image was sought for, too",
    "shared": "no labels: one for the whole batch was sought for, too",
}
_DISTANCES = {
    "ig": "Cosine distance of their gradient from the one that was sent: 0 is the same direction, "
    "1 has nothing in common with it",
    "dlg": "Squared distance of their gradient from the one that was sent: 0 is the same gradient",
}


def inversion_page(
    record: Mapping[str, Any],
    found: Sequence[bytes],
    true: Sequence[bytes] | None = None,
    *,
    flat: float | None = None,
    flags: Mapping[str, str] | None = None,
) -> str:
    """A self-contained HTML page of the images of an inversion, best first where that is known.

    Args:
        record: The record of the inversion, schema ``labelleak/inversion/1``.
        found: The images that were found, as PNG files, in the order of the record's scores.
        true: The true images in that order; None where they are not known.
        flat: Error per pixel of a picture without content, see `pixel_error`: the root mean square
            difference of the true images from their mean color, from 0 to 1.
        flags: Text of each flag of the record.

    Returns:
        The page, one file with nothing to load.
    """
    score = record["score"]
    pictures = [
        {
            "number": place + 1,
            "found": _data(image),
            "true": None if true is None else _data(true[place]),
            **_scores(score, place),
        }
        for place, image in enumerate(found)
    ]
    pictures.sort(key=lambda picture: picture["error"])
    result = record["result"]
    mode = result["mode"]
    return render(
        "inversion.html",
        record=record,
        pictures=pictures,
        compared=score is not None and true is not None,
        error=fmean(picture["error"] for picture in pictures) if score else None,
        flat=flat,
        ssim=bool(score and score["ssim"]),
        lpips=bool(score and isinstance(score["lpips"], list)),
        labels="" if mode is None else _MODES[mode].format(attack=result["attack"]),
        distance=_DISTANCES.get(result["method"]),
        flags={name: (flags or {}).get(name, "") for name in result["flags"]},
    )


def pixel_error(psnr: float | None) -> float:
    """Root mean square error of a pixel, as a share of the range from black to white.

    Args:
        psnr: Peak signal-to-noise ratio with peak 1, in dB; None for equal images.

    Examples:
        >>> pixel_error(20.0), pixel_error(None)
        (0.1, 0.0)
    """
    return 0.0 if psnr is None else float(10 ** (-psnr / 20))


def _scores(score: Mapping[str, Any] | None, place: int) -> dict[str, Any]:
    if score is None:
        return {"error": 0.0, "psnr": None, "ssim": None, "lpips": None}
    ssim, lpips = score["ssim"], score["lpips"]
    psnr = score["psnr"][place]
    return {
        "error": pixel_error(psnr),
        "psnr": psnr,
        "ssim": ssim[place] if ssim else None,
        "lpips": lpips[place] if isinstance(lpips, list) else None,
    }


def _data(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
