import copy
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import pytest

_CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def _cell(ours, low, high, published, trials=50):
    both = ours is not None and published is not None
    return {
        "ours": ours,
        "low": low,
        "high": high,
        "published": published,
        "difference": ours - published if both else None,
        "inside": low <= published <= high if both and low is not None else None,
        "trials": trials,
    }


def _row(label, cells, **changes):
    return {
        "label": label,
        "data": "mnist",
        "stands_in_for": None,
        "split": "train",
        "image_size": None,
        "network": "fcn-3",
        "activation": "relu",
        "batchnorm": None,
        "dropout": None,
        "stem": None,
        "stage": "untrained",
        "stage_used": "untrained",
        "batch_size": 24,
        "sampler": "random",
        "defense": None,
        "known_classes": False,
        "trials": 50,
        "trials_planned": 50,
        "panel": None,
        "series": None,
        "x": None,
        "metrics": cells,
        "failed": {},
        "shrunk": [],
        "note": None,
    } | changes


_LNACC = {
    "name": "ilrg.lnacc",
    "attack": "ilrg",
    "title": "iLRG LnAcc",
    "description": "classes with the right number",
    "bounds": [0, 1],
}
_RLG = _LNACC | {"name": "rlg.leacc", "attack": "rlg", "title": "RLG LeAcc"}
_MSE = _LNACC | {"name": "a1_mse", "attack": None, "title": "A1 MSE", "bounds": [0, None]}
_STUDY = {
    "schema": "labelleak/study/1",
    "source": "a paper",
    "scale": "quick",
    "interval": "95% interval of the mean",
    "panels": [],
    "omitted": [],
    "environment": {"labelleak": "0.1.0", "cores": 2, "gpu": None},
}
_TABLE = _STUDY | {
    "name": "table1",
    "title": "Table 1: untrained",
    "metrics": [_LNACC, _RLG, _MSE],
    "omitted": ["10 trials instead of 50 (VGG-16)"],
    "rows": [
        _row(
            "FCN-3 on MNIST",
            {
                "ilrg.lnacc": _cell(0.994, 0.986, 1.0, 0.99),
                "rlg.leacc": _cell(None, None, None, 0.932, 0),
                "a1_mse": _cell(1.72e-11, 1.5e-11, 1.9e-11, 1.6e-11),
            },
            failed={"rlg": {"failed": 50, "of": 50, "error": "the rank is too high"}},
        ),
        _row(
            "LeNet-5 on CIFAR-100",
            {"ilrg.lnacc": _cell(0.8, 0.75, 0.85, 1.0)},
            data="tiny-imagenet-100",
            stands_in_for="cifar100",
            network="lenet5",
            trials=7,
            shrunk=["batch size 24 instead of 48"],
            note="iLRG LnAcc: published outside the interval; the reason is not known",
        ),
    ],
}
_FIGURE = _STUDY | {
    "name": "figure3",
    "title": "Figure 3: batch size",
    "metrics": [_LNACC, _RLG],
    "panels": [
        {
            "key": "fcn",
            "title": "FCN-3 on MNIST, by batch size",
            "x_title": "batch size K (instances)",
            "x_scale": "log2",
            "x_ticks": [8.0, 16.0, 64.0],
            "x_labels": None,
            "metrics": ["ilrg.lnacc", "rlg.leacc"],
        }
    ],
    "rows": [
        _row(
            f"FCN-3, K = {size}",
            {"ilrg.lnacc": _cell(ours, ours - 0.05, ours + 0.05, published)}
            | ({"rlg.leacc": _cell(0.9, None, None, 0.7, 1)} if size == 16 else {}),
            batch_size=size,
            panel="fcn",
            series="FCN-3",
            x=float(size),
        )
        for size, ours, published in ((8, 0.9, 0.95), (64, 0.4, 0.37), (16, 0.8, 0.8))
    ],
}


@pytest.fixture
def table():
    return copy.deepcopy(_TABLE)


@pytest.fixture
def figure():
    return copy.deepcopy(_FIGURE)


@pytest.fixture
def record():
    return {
        "schema": "labelleak/audit/1",
        "attack": "ilrg",
        "classes": 10,
        "features": 300,
        "head": "fc",
        "batch_size": 24,
        "local_steps": 1,
        "present": [0, 2, 9],
        "counts": [11, 0, 12, 0, 0, 0, 0, 0, 0, 1],
        "rounded": [11, 0, 12, 0, 0, 0, 0, 0, 0, 1],
        "proportions": None,
        "certified": False,
        "flags": [{"name": "no_bias", "text": "the head has no bias gradient"}],
        "true_counts": [12, 0, 11, 0, 0, 0, 0, 0, 0, 1],
        "score": {
            "leacc": 1.0,
            "lnacc": 0.8,
            "recall": 0.958,
            "accuracy": 0.958,
            "exact": False,
            "existence_precision": 1.0,
            "existence_recall": 1.0,
        },
        "score_rounded": None,
        "threshold": None,
        "verdict": "audited",
        "reason": "ilrg restored what the update gives away",
        "seconds": 0.004,
        "source": {"before": "model.safetensors", "learning_rate": None},
        "version": "0.1.0",
    }


class Document(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.texts = []
        self.styles = []
        self._inside = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        (self.styles if self._inside == "style" else self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def loads(self):
        """Everything that would be fetched from somewhere, or run."""
        fetching = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}
        found = [tag for tag, _ in self.tags if tag in ("script", "link", "base", "iframe")]
        for _, attributes in self.tags:
            found += [name for name in attributes if name.startswith("on")]
            found += [v for k, v in attributes.items() if k in fetching and not v.startswith("#")]
        styles = self.styles + [a["style"] for _, a in self.tags if a.get("style")]
        found += re.findall(r"@import[^;]*|url\((?!#)[^)]*\)", " ".join(styles))
        return found


@pytest.fixture
def document():
    return Document


@pytest.fixture
def chromium(tmp_path):
    """Opens a file in Chromium, and returns the document as its scripts left it."""
    if _CHROMIUM is None:
        pytest.skip("no Chromium here")

    def document_of(path, *options):
        return subprocess.run(
            [
                _CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
                *options, path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        ).stdout  # fmt: skip

    return document_of


@pytest.fixture
def overflow(tmp_path, chromium):
    """Measures how many pixels wide a page is at a width, with everything unfolded."""

    def measure(page, width):
        # A window has a least width; a frame has none.
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{escape(page)}" '
            'onload="const inner = this.contentDocument;'
            "inner.querySelectorAll('details').forEach(one => one.open = true);"
            "document.title = inner.documentElement.clientWidth + ' '"
            ' + inner.documentElement.scrollWidth"></iframe>',
            encoding="utf-8",
        )
        document = chromium(frame, "--hide-scrollbars")
        shown, needed = re.search(r"<title>(\d+) (\d+)</title>", document).groups()
        assert int(shown) == width
        return int(needed)

    return measure
