# mypy: allow-untyped-defs
# (Numba infers the types of the kernels)
"""Optics of a phantom patch: from amounts of dye to transmitted light, ink, blur and the scanner's pixel values."""

import numpy as np

from histoblend.data.phantom.noise import THICKNESS, WARP, compiled, normal, ramp, uniform
from histoblend.data.phantom.tissue import BLOOD, EOSIN, HAEMATOXYLIN

HAEMOGLOBIN = np.array([0.18, 0.66, 0.73], dtype=np.float32)
INKS = np.array([[0.95, 0.75, 0.12], [0.95, 0.25, 0.75], [0.9, 0.9, 0.85]], dtype=np.float32)  # blue, green, black
# Colour mixing (rows sum to 1), white point, gamma and read noise of two scanners. The first imitates the brownish and
# the second the violet images of the two laboratories of CAMELYON16. They were adjusted by eye and to the stain vectors
# measured on real patches (haematoxylin 0.56 0.69 0.46 and 0.60 0.76 0.26, eosin 0.36 0.87 0.34 and 0.26 0.94 0.19).
MATRICES = np.array(
    [
        [[0.62, 0.10, 0.28], [0.00, 1.02, -0.02], [0.25, 0.42, 0.33]],
        [[0.72, 0.17, 0.11], [0.00, 1.00, 0.00], [0.00, 0.10, 0.90]],
    ],
    dtype=np.float32,
)
WHITES = np.array([[248.0, 246.0, 247.0], [230.0, 228.0, 238.0]], dtype=np.float32)
GAMMAS = np.array([1.0, 0.94])
NOISES = np.array([3.4, 4.2], dtype=np.float32)
SHARPENING = np.array([1.5, 1.1])
_STEPS = 1024
RESPONSES = ((np.arange(_STEPS + 1) / _STEPS) ** GAMMAS[:, None]).astype(np.float32)
_OPAQUE = 4.0  # optical density above which no light is transmitted
TRANSMITTANCES = (10.0 ** -np.linspace(0, _OPAQUE, 4097)).astype(np.float32)
_PER_DENSITY = np.float32(4096 / _OPAQUE)


@compiled
def _band(x, y, size, heading, offset, breadth, softness):
    """Return 1 inside a straight band across the patch and 0 outside."""
    distance = abs((x - 0.5 * size) * np.cos(heading) + (y - 0.5 * size) * np.sin(heading) - offset)
    return np.float32(1) - ramp(distance, breadth - softness, breadth)


@compiled
def vary_thickness(patch, stream, planes):
    """Convert the thickness plane from noise to a factor around 1, larger along a fold (up to about double)."""
    size = planes.shape[1]
    heading, offset = 6.2831853 * uniform(stream), 0.5 * (uniform(stream) - 0.5) * size
    breadth = 5.0 + 7.0 * uniform(stream)
    for y in range(size):
        for x in range(size):
            factor = np.float32(0.85) + np.float32(0.3) * planes[THICKNESS, y, x]
            if patch.fold > 0:
                wave = 10.0 * planes[WARP, y, x]
                factor *= 1 + patch.fold * _band(x + wave, y, size, heading, offset, breadth, 3.0)
            planes[THICKNESS, y, x] = factor


@compiled
def transmit(patch, planes, layers, stains, haemoglobin, transmittances, light):
    """Convert amounts of dye to transmitted light (Beer-Lambert law)."""
    size = light.shape[1]
    haematoxylin, eosin = patch.haematoxylin_intensity, patch.eosin_intensity
    top = np.float32(_OPAQUE)
    for channel in range(3):
        of_h, of_e, of_blood = haematoxylin * stains[0, channel], eosin * stains[1, channel], haemoglobin[channel]
        for y in range(size):
            for x in range(size):
                dye = layers[HAEMATOXYLIN, y, x] * of_h + layers[EOSIN, y, x] * of_e + layers[BLOOD, y, x] * of_blood
                dye = min(max(dye * planes[THICKNESS, y, x], np.float32(0)), top)
                light[channel, y, x] = transmittances[np.int32(dye * _PER_DENSITY + np.float32(0.5))]


@compiled
def draw_ink(patch, stream, ink, light):
    """Draw a band of pen ink through the centre of the patch."""
    size = light.shape[1]
    heading, breadth = 6.2831853 * uniform(stream), 16.0 + 0.3 * size * uniform(stream)
    for y in range(size):
        for x in range(size):
            amount = patch.ink * _band(x, y, size, heading, 0.0, breadth, 4.0)
            for channel in range(3):
                light[channel, y, x] *= 10.0 ** (-amount * ink[channel])


@compiled
def point_spread(sigma, sharpening):
    """Return half of a symmetric kernel that sums to 1: Gaussian blur followed by the scanner's unsharp mask."""
    wide = np.sqrt(sigma * sigma + 1.0)
    reach = int(2.6 * (wide if sharpening > 0 else sigma)) + 1
    weights, narrow_sum, wide_sum = np.empty((2, reach + 1)), 0.0, 0.0
    for i in range(reach + 1):
        weights[0, i], weights[1, i] = np.exp(-0.5 * (i / sigma) ** 2), np.exp(-0.5 * (i / wide) ** 2)
        narrow_sum += weights[0, i] * (1 if i == 0 else 2)
        wide_sum += weights[1, i] * (1 if i == 0 else 2)
    return ((1 + sharpening) * weights[0] / narrow_sum - sharpening * weights[1] / wide_sum).astype(np.float32)


@compiled
def blur(light, buffer, kernel):
    """Convolve with a separable kernel, with repeated edge pixels."""
    size = light.shape[1]
    padded = np.empty(size + 2 * kernel.size, dtype=np.float32)
    pad = kernel.size
    for channel in range(3):
        for y in range(size):
            padded[:pad] = light[channel, y, 0]
            padded[pad : pad + size] = light[channel, y]
            padded[pad + size :] = light[channel, y, size - 1]
            for x in range(size):
                buffer[y, x] = kernel[0] * padded[pad + x]
            for i in range(1, kernel.size):
                for x in range(size):
                    buffer[y, x] += kernel[i] * (padded[pad + x - i] + padded[pad + x + i])
        for y in range(size):
            for x in range(size):
                light[channel, y, x] = kernel[0] * buffer[y, x]
            for i in range(1, kernel.size):
                above, below = max(y - i, 0), min(y + i, size - 1)
                for x in range(size):
                    light[channel, y, x] += kernel[i] * (buffer[above, x] + buffer[below, x])


@compiled
def read_out(patch, stream, light, matrix, white, response, read_noise, image):
    """Digitise the light: colour mixing, gamma, white point, noise, 8 bits."""
    size = light.shape[1]
    for y in range(size):
        for x in range(size):
            for channel in range(3):
                value = np.float32(0)
                for other in range(3):
                    value += matrix[channel, other] * light[other, y, x]
                level = response[int(min(max(value, np.float32(0)), np.float32(1)) * _STEPS)]
                if value > 1:  # overshoot of the unsharp mask next to dark nuclei
                    level = np.float32(value)
                noise = np.float32(read_noise * (0.4 + 0.6 * level) * normal(stream))
                image[y, x, channel] = np.uint8(min(max(white[channel] * level + noise + 0.5, 0.0), 255.0))
