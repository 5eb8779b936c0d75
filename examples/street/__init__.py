"""A night street in perspective, thermal and visible, both rendered from the same scene.

Lamps, shop windows and headlights light the visible image and are reflected by the wet road; the thermal image shows
the warmth of the same surfaces.

    world       lengths, colours, the lights, and random textures
    view        projection of the scene into the image; polygons painted over it
    houses      house fronts and the sky behind them, pixel by pixel
    ground      the road and the pavements, pixel by pixel
    furniture   lamps, cars and people, painted from far to near
    cameras     the two cameras' images of light and warmth

Images of the scene are float32 (h, w, 4): linear red, green, blue, and warmth, each about 0 to 1.
"""

import numpy as np
from drawing import shrunk

from street.cameras import night_camera, thermal_camera
from street.furniture import paint_furniture
from street.ground import ground
from street.houses import Houses
from street.view import Painter, View
from street.world import Texture, lights_of

__all__ = ["night_street"]


def night_street(size: tuple[int, int] = (480, 640), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A night street in thermal infrared and in visible light, registered pixel by pixel.

    Some people stand in the dark and show only in the infrared image; signs, lamplight, brickwork and road markings
    emit no heat and show only in the visible image.

    Args:
        size: (H, W) in pixels.
        seed: for houses, windows, textures and noise; the same seed gives the same images.

    Returns:
        infrared (H, W) uint8, warm is bright; visible (H, W, 3) uint8, RGB.
    """
    scene = _scene(View(2 * size[0], 2 * size[1]), np.random.default_rng(seed))
    light, warmth = shrunk(scene[..., :3], size), shrunk(scene[..., 3], size)
    rng = np.random.default_rng(seed + 1)
    return thermal_camera(warmth, rng), night_camera(light, rng)


def _scene(view: View, rng: np.random.Generator) -> np.ndarray:
    """The scene (h, w, 4), before any camera."""
    texture = Texture(rng)
    houses = Houses(texture, rng)
    lights = lights_of(houses.shop)
    below = view.below
    scene, mirror = np.zeros((2, view.h, view.w, 4), np.float32)
    mirror[below] = houses.seen(lights, view.right[below], view.up[below], flip=-1)
    paint_furniture(Painter(view, mirror, flip=-1), lights)
    scene[~below] = houses.seen(lights, view.right[~below], view.up[~below], flip=1)
    scene[below] = ground(view, texture, lights, mirror)
    paint_furniture(Painter(view, scene, flip=1), lights)
    return scene
