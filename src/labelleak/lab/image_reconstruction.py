"""The images that a trial's gradient gives away, their scores, and the pictures for the page.

A record holds::

    "pictures": {
      "labels": "restored",             # what was known of the labels
      "exact": true,                    # whether the fixed labels are right; null without any
      "distance": 0.06,                 # between the gradients, at the end of the search
      "psnr": [21.3, ...],              # of every image, in the order of the batch
      "best": [17, 3, ...],             # the six best, indices into the batch
      "files": {"found": "pictures/....png", "true": ..., "all": ..., "all_true": ...}
    }

``found`` and ``true`` are the six best in one row, ``all`` and ``all_true`` the whole batch.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from labelleak.inversion import IG, assess, grid, invert, match, png
from labelleak.lab.datasets import Dataset
from labelleak.lab.definition import Experiment
from labelleak.metrics import counts_of
from labelleak.updates import observe

BEST = 6
"""Number of images that are shown, as in figure 4 of the paper."""

_SHORT_KEY = 16


def reconstruct(
    experiment: Experiment,
    model: nn.Module,
    dataset: Dataset,
    inputs: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    seed: int,
    index: int,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Invert the gradient of one batch, and score the images.

    Args:
        experiment: An experiment with an inversion.
        model: Its network, in evaluation mode.
        dataset: The data set of the batch.
        inputs: The batch, normalized as the network takes it.
        labels: Classes of the batch, int64, shape (batch,).
        seed: Seed of the initial noise, the same whatever is known of the labels.
        index: Number of the trial.

    Returns:
        Two dicts. The measures ``psnr`` (mean over the batch) and ``psnr_best6`` (mean of the six
        best images), and the same of ``ssim`` and, if its weights are installed, ``lpips``. For the
        record, ``pictures`` as above, and ``files``: the content of each picture by name.
    """
    settings = experiment.inversion
    assert settings is not None, "the caller has checked"
    loss = nn.functional.cross_entropy(model(inputs), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    found = invert(
        observe(model, gradients, batch_size=len(labels)),
        IG(
            iterations=settings.iterations,
            restarts=settings.restarts,
            total_variation=settings.total_variation,
        ),
        image_shape=dataset.image_shape,
        mean=dataset.mean,
        std=dataset.std,
        mode=settings.labels,
        labels=labels if settings.labels == "given" else None,
        attack=experiment.attack_settings[0].registered_name,
        seed=seed,
    )
    mean, std = (inputs.new_tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    truth = (inputs * std + mean).clamp_(0.0, 1.0)
    fixed = settings.labels in ("restored", "given")
    order = match(found.images, truth, found.labels if fixed else None, labels if fixed else None)
    images = found.images[order.to(found.images.device)]
    quality = assess(images, truth)
    best = quality.best(BEST)
    means = {
        name + suffix: quality.mean(name, indices)
        for name in ("psnr", "ssim", "lpips")
        for suffix, indices in (("", None), ("_best6", best))
    }
    measures = {name: v for name, v in means.items() if v is not None and math.isfinite(v)}
    pictures = {
        "found": grid(images[list(best)], BEST),
        "true": grid(truth[list(best)], BEST),
        "all": grid(images),
        "all_true": grid(truth),
    }
    stem = experiment.trial_key(index)[:_SHORT_KEY]
    names = {what: f"pictures/{stem}-{what}.png" for what in pictures}
    exact = None
    if fixed and found.labels is not None:
        exact = torch.equal(
            counts_of(found.labels, dataset.classes), counts_of(labels, dataset.classes)
        )
    content = {
        "labels": settings.labels,
        "exact": exact,
        "distance": found.distance,
        "psnr": quality.as_dict()["psnr"],
        "best": list(best),
        "files": names,
    }
    files = {names[what]: png(picture) for what, picture in pictures.items()}
    return measures, {"pictures": content, "files": files}
