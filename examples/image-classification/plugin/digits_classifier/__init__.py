"""A DEEPaaS model that recognises the digit in a picture.

A model for DEEPaaS 2 is a module with the public names below. ``deepaas-run`` calls ``predict``. ``deepaas-predict``
needs both ``predict_data`` and ``predict_url``, and calls one of them. ``python -m digits_classifier.train`` makes the
classifier, a file beside this one.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from marshmallow import fields

MODEL_PATH = Path(__file__).with_name("digits.joblib")
SIDE = 8  # the classifier is trained with pictures of 8 by 8 pixels
INK = 16  # the values of their pixels: 0 is paper, 16 is ink
TOP = 5

# The form of the answer of ``deepaas-run``. Without it, DEEPaaS puts the answer into another dictionary.
schema = {"status": fields.Str(required=True), "predictions": fields.List(fields.Dict(), required=True)}


class _Json(dict[str, Any]):
    """A dictionary that shows itself as JSON: ``deepaas-predict`` writes the answer's ``repr()``."""

    def __repr__(self) -> str:
        return json.dumps(self)


def get_metadata() -> dict[str, str]:
    return {"name": "digits", "version": "0.1.0", "summary": "Which digit is in a picture", "license": "Apache-2.0"}


def get_predict_args() -> dict[str, Any]:
    return {"image": fields.Raw(required=True, metadata={"type": "file", "location": "form"})}


def get_train_args() -> dict[str, Any]:
    return {}


def warm() -> None:
    """Load the classifier before the first picture arrives."""
    _classifier()


def train(**_: Any) -> None:
    raise NotImplementedError("train with: python -m digits_classifier.train")


def predict(image: Any) -> dict[str, Any]:
    """Return the same as ``predict_data`` for one uploaded picture."""
    return predict_data({"files": [image]})


def predict_data(args: dict[str, Any]) -> dict[str, Any]:
    """Return the five most likely digits for the picture in ``args["files"][0]``, the most likely one first."""
    pixels = picture_to_pixels(args["files"][0].filename)
    classifier = _classifier()
    shares = classifier.predict_proba([pixels])[0]
    ranked = sorted(zip(classifier.classes_, shares, strict=True), key=lambda pair: pair[1], reverse=True)
    return _Json(
        status="ok",
        predictions=[{"label": str(label), "probability": round(float(share), 4)} for label, share in ranked[:TOP]],
    )


def predict_url(args: dict[str, Any]) -> dict[str, Any]:
    raise NotImplementedError("only files are supported, no URLs: the caller of a function sends the input")


def picture_to_pixels(path: str) -> list[float]:
    """Return the 64 values for the classifier. The colours of a dark digit on light paper are inverted."""
    from PIL import Image, ImageOps, ImageStat

    with Image.open(path) as picture:
        grey = picture.convert("L")
    if ImageStat.Stat(grey).mean[0] > 127:
        grey = ImageOps.invert(grey)
    small = grey.resize((SIDE, SIDE), Image.Resampling.BOX)
    return [value * INK / 255 for value in small.tobytes()]


@functools.cache
def _classifier() -> Any:
    import joblib

    return joblib.load(MODEL_PATH)
