"""The light obeys physics: every test has its answer from theory, not from the program."""

import numpy as np
import pytest

from cytomad_lib.simulation.morphology import OUTLINE_MODES, spheroid_thickness
from cytomad_lib.simulation.optics import (
    DRY_MASS_ALPHA,
    MEDIUM_INDEX,
    WAVELENGTH_UM,
    bin_pixels,
    brightfield,
    dry_mass,
    gaussian_blur,
    oversampling,
    phase_of_path,
    propagate,
    transfer_function,
)

SIZE = 128
FIELD = 45.0
PIXEL = FIELD / SIZE
AXIS = (np.arange(SIZE) + 0.5) * PIXEL - FIELD / 2


def sphere_path(diameter=15.0, delta_n=0.025):
    """Optical path of a smooth homogeneous sphere in the middle of the field."""
    thickness = spheroid_thickness(
        AXIS[None, None, :],
        AXIS[None, :, None],
        diameter=np.array([diameter]),
        aspect=np.ones(1),
        angle=np.zeros(1),
        outline=np.zeros((1, len(OUTLINE_MODES)), complex),
        flattening=np.ones(1),
    )
    return delta_n * thickness


def smooth_field(seed=0, cutoff=0.8):
    """A random field of travelling waves only (frequencies in cycles per micrometre)."""
    rng = np.random.default_rng(seed)
    f = np.fft.fftfreq(SIZE, PIXEL)
    keep = np.hypot(f[:, None], f[None, :]) < cutoff
    spectrum = (rng.normal(size=(SIZE, SIZE)) + 1j * rng.normal(size=(SIZE, SIZE))) * keep
    return np.fft.ifft2(spectrum)[None]


def grating(strength, cycles):
    """A weak phase grating along x with a whole number of periods in the field."""
    frequency = cycles / FIELD
    wave = np.cos(2 * np.pi * frequency * AXIS)
    return strength * np.broadcast_to(wave, (1, SIZE, SIZE)), wave, frequency


def test_sphere_peak_phase():
    phase = phase_of_path(sphere_path(15.0, 0.025))
    assert phase.max() == pytest.approx(2 * np.pi / WAVELENGTH_UM * 0.025 * 15.0, rel=0.002)


def test_sphere_dry_mass():
    mass = dry_mass(phase_of_path(sphere_path(15.0, 0.025)), PIXEL)
    volume = np.pi / 6 * 15.0**3
    assert mass[0] == pytest.approx(volume * 0.025 / DRY_MASS_ALPHA, rel=0.003)


def test_phase_object_in_focus_is_invisible():
    phase = phase_of_path(sphere_path())
    image = brightfield(phase, 0.0, None, PIXEL, absorption_per_radian=0.0)
    np.testing.assert_allclose(image, 1.0, atol=1e-10)


def test_free_propagation_conserves_energy():
    field = smooth_field()
    before = np.sum(np.abs(field) ** 2)
    assert np.sum(np.abs(propagate(field, 7.3, PIXEL)) ** 2) == pytest.approx(before, rel=1e-12)


def test_evanescent_waves_die_out():
    # Finer than the wavelength in the medium: cannot travel.
    cycles = int(1.05 * MEDIUM_INDEX / WAVELENGTH_UM * FIELD)
    wave = np.exp(2j * np.pi * cycles / FIELD * AXIS)
    field = np.broadcast_to(wave, (1, SIZE, SIZE))
    for distance in (3.0, -3.0):
        assert np.abs(propagate(field, distance, PIXEL)).max() < 0.01


def test_there_and_back_again():
    field = smooth_field(1)
    back = propagate(propagate(field, 5.0, PIXEL), -5.0, PIXEL)
    np.testing.assert_allclose(back, field, atol=1e-12 * np.abs(field).max())


def test_two_short_steps_are_one_long_step():
    field = smooth_field(2)
    two = propagate(propagate(field, 2.0, PIXEL), 3.0, PIXEL)
    np.testing.assert_allclose(propagate(field, 5.0, PIXEL), two, atol=1e-12)


@pytest.mark.parametrize("cycles", [4, 9, 14])
@pytest.mark.parametrize("distance", [-4.0, 2.0, 6.0])
def test_weak_phase_transfer(cycles, distance):
    """Defocus shows a weak phase grating with contrast 2 sin(pi lambda z f^2)."""
    strength = 1e-4
    phase, wave, frequency = grating(strength, cycles)
    image = brightfield(phase, distance, None, PIXEL, absorption_per_radian=0.0)[0]
    contrast = 2 * np.mean((image - 1) * wave) / strength
    turn = np.pi * WAVELENGTH_UM / MEDIUM_INDEX * distance * frequency**2
    assert contrast == pytest.approx(2 * np.sin(turn), abs=0.02)


def test_transport_of_intensity():
    """Close to focus the intensity changes by -z lambda / (2 pi n) times the phase's Laplacian."""
    x, y = AXIS[None, :], AXIS[:, None]
    width = 4.0
    phase = 1.5 * np.exp(-(x**2 + y**2) / (2 * width**2))
    laplacian = phase * ((x**2 + y**2) / width**4 - 2 / width**2)
    distance = 0.2
    image = brightfield(phase[None], distance, None, PIXEL, absorption_per_radian=0.0)[0]
    expected = -distance * WAVELENGTH_UM / (2 * np.pi * MEDIUM_INDEX) * laplacian
    np.testing.assert_allclose(image - 1, expected, atol=0.03 * np.abs(expected).max())


def test_defocus_sign_flips_contrast():
    phase = 0.05 * phase_of_path(sphere_path())
    over, under = (
        brightfield(phase, z, 0.45, PIXEL, absorption_per_radian=0.0) - 1 for z in (4.0, -4.0)
    )
    assert np.corrcoef(over.ravel(), under.ravel())[0, 1] < -0.98
    # A cell is a weak lens: beyond it the light has gathered in its middle.
    middle = np.s_[0, SIZE // 2 - 8 : SIZE // 2 + 8, SIZE // 2 - 8 : SIZE // 2 + 8]
    assert over[middle].mean() > 0 > under[middle].mean()


def test_pupil_cuts_the_field_at_na_over_wavelength():
    field = smooth_field(3, cutoff=1.2)
    spectrum = np.abs(np.fft.fft2(propagate(field, 2.0, PIXEL, na=0.45)[0]))
    before = np.abs(np.fft.fft2(field[0]))
    f = np.fft.fftfreq(SIZE, PIXEL)
    radius = np.hypot(f[:, None], f[None, :])
    beyond = radius > 0.45 / WAVELENGTH_UM
    assert spectrum[beyond].max() < 1e-10 * before.max()
    np.testing.assert_allclose(spectrum[~beyond], before[~beyond], rtol=1e-9, atol=1e-9)


def test_phase_grating_finer_than_the_pupil_is_lost():
    na = 0.45
    coarse, wave, _ = grating(0.01, int(0.8 * na / WAVELENGTH_UM * FIELD))
    fine, _, _ = grating(0.01, int(1.2 * na / WAVELENGTH_UM * FIELD))
    seen, lost = (
        brightfield(p, 3.0, na, PIXEL, absorption_per_radian=0.0)[0].std() for p in (coarse, fine)
    )
    assert seen > 0.003
    assert lost < 1e-6


def test_absorption_darkens_in_focus():
    phase = phase_of_path(sphere_path())
    image = brightfield(phase, 0.0, None, PIXEL, absorption_per_radian=0.02)
    np.testing.assert_allclose(image, np.exp(-2 * 0.02 * phase), atol=1e-10)


def test_oblique_light_turns_phase_slope_into_brightness():
    """A phase ramp of f cycles per micrometre passes the pupil at 1 + slope * f / cutoff."""
    frequency = 6 / FIELD
    ramp = np.broadcast_to(2 * np.pi * frequency * AXIS, (1, SIZE, SIZE))
    na, slope = 0.45, 0.3
    expected = (1 + slope * frequency / (na / WAVELENGTH_UM)) ** 2
    image = brightfield(ramp, 0.0, na, PIXEL, (slope, 0.0), absorption_per_radian=0.0)
    np.testing.assert_allclose(image, expected, atol=1e-9)
    other = brightfield(ramp, 0.0, na, PIXEL, (0.0, slope), absorption_per_radian=0.0)
    np.testing.assert_allclose(other, 1.0, atol=1e-9)


def test_oblique_light_moves_a_defocused_image():
    """The image walks by distance * NA * slope / 4: a shift is a phase that is odd in frequency."""
    na, slope, distance = 0.45, 0.3, 4.0
    factor = transfer_function((SIZE, SIZE), distance, PIXEL, na, (slope, 0.0))
    frequency = 3 / FIELD
    odd = np.angle(factor[0, 3] / factor[0, -3]) / 2
    assert odd == pytest.approx(2 * np.pi * frequency * distance * na * slope / 4, rel=1e-9)


def test_oblique_needs_a_pupil():
    with pytest.raises(ValueError, match="give na"):
        propagate(smooth_field(), 1.0, PIXEL, oblique=(0.1, 0.0))


def test_each_cell_has_its_own_settings():
    phase = np.concatenate([phase_of_path(sphere_path(d)) for d in (12.0, 16.0)])
    defocus, na = np.array([3.0, -5.0]), np.array([0.40, 0.50])
    oblique = (np.array([0.1, -0.2]), np.array([0.0, 0.2]))
    together = brightfield(phase, defocus, na, PIXEL, oblique)
    for i in range(2):
        alone = brightfield(
            phase[i : i + 1], defocus[i], na[i], PIXEL, (oblique[0][i], oblique[1][i])
        )
        np.testing.assert_allclose(together[i], alone[0], atol=1e-12)


def test_blur_has_the_asked_width_and_keeps_the_sum():
    point = np.zeros((2, SIZE, SIZE))
    point[:, 64, 64] = 1.0
    sigma = np.array([0.8, 1.6])
    blurred = gaussian_blur(point, sigma, PIXEL)
    np.testing.assert_allclose(blurred.sum(axis=(1, 2)), 1.0, rtol=1e-12)
    offset = (np.arange(SIZE) - 64) * PIXEL
    variance = (blurred.sum(axis=1) * offset**2).sum(axis=1)
    np.testing.assert_allclose(np.sqrt(variance), sigma, rtol=1e-3)


def test_binning_averages_blocks():
    images = np.random.default_rng(0).normal(size=(3, 12, 18))
    binned = bin_pixels(images, 3)
    assert binned.shape == (3, 4, 6)
    np.testing.assert_allclose(binned.mean(axis=(1, 2)), images.mean(axis=(1, 2)))
    assert binned[1, 2, 4] == pytest.approx(images[1, 6:9, 12:15].mean())


@pytest.mark.parametrize(("size", "factor"), [(256, 1), (128, 1), (96, 2), (64, 2), (32, 4)])
def test_oversampling_resolves_the_light(size, factor):
    assert oversampling(size, FIELD) == factor
    assert FIELD / (size * factor) <= 0.36
