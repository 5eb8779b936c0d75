"""Forms with made images, and what is asked of the answers."""

import io
import time

import numpy as np
import PIL.Image
from conftest import made_image

BASE = "http://127.0.0.1:8000"


def png(height=33, width=46, seed=0, colour=False):
    """A made image as the bytes of a PNG file of 300 dpi."""
    pixels = made_image(height, width, seed=seed)
    if colour:
        pixels = np.stack([pixels, pixels // 2 + 40, 255 - pixels // 2], axis=-1)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG", dpi=(300, 300))
    return buffer.getvalue()


def sources(*files, names=("infrared.png", "visible.png", "third.png")):
    """The form field `sources`."""
    return [("sources", (name, data, "image/png")) for name, data in zip(names, files, strict=False)]


FORM = sources(png(seed=1), png(seed=2, colour=True))


def wait_for(client, job, *states):
    for _ in range(500):
        status = client.get(f"/v1/jobs/{job}").json()
        if status["state"] in states:
            return status
        time.sleep(0.01)
    raise AssertionError(status)


def problem(response, status):
    """The sentence of a problem, which is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["detail"][-1] == "." and body["title"]
    return body["detail"]
