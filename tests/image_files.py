"""Made images, encoded, and what a sentence is."""

import io

import numpy as np
import PIL.Image
from hypothesis import HealthCheck, settings

relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60, derandomize=True)


def picture(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def sentence(error):
    """The text of an InputError, checked to be one line that ends as a sentence does."""
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) > 20
    return text


def encoded(mode="RGB", format="PNG", size=(20, 15), **options):
    values = (picture((size[1], size[0], 4)) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values, "RGBA").convert("RGB").convert(mode).save(buffer, format, **options)
    return buffer.getvalue()
