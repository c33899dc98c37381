"""The explorer of the simulated microscope, see `explorers`.

- `SettingsExplorer`: a slider for each setting, and the images that they lead to.
"""

import html

import numpy as np

from cytomad_lib.data.layouts import LUNG
from cytomad_lib.evaluation.image_quality import image_scores
from cytomad_lib.plots import widgets
from cytomad_lib.plots.cells import image_grid
from cytomad_lib.plots.explorer_figures import setting_label
from cytomad_lib.prediction import predict
from cytomad_lib.simulation.microscope_settings import (
    LIGHT_SETTINGS,
    PHASE_SETTINGS,
    SETTINGS,
    SimulatedMicroscope,
    check_settings,
    day_settings,
)
from cytomad_lib.simulation.morphology import LUNG_LINES


class SettingsExplorer(widgets.Explorer):
    """Change the settings of the simulated microscope; compare measured and predicted phase.

    Parameters
    ----------
    generators : keras.Model or dict
        One, or title to generator; all for images of one size and one channel.
    names : sequence of str, optional
        Of the settings that get a slider; see `cytomad_lib.simulation.microscope_settings`.
    seed : int
        Of the dataset whose days can be chosen; the demonstration dataset has 26.

    Attributes
    ----------
    class_name, day, model : Dropdown
        A day sets all sliders to its values; moving a slider makes it "as set by hand".
    cell : IntSlider
    sliders : dict
        Name of the setting to FloatSlider.
    """

    def __init__(self, generators, names=LIGHT_SETTINGS + PHASE_SETTINGS, seed=26):
        named = generators if isinstance(generators, dict) else {"model": generators}
        check_settings({name: SETTINGS[name].nominal if name in SETTINGS else 0 for name in names})
        self.generators, self._seed = named, seed
        self._size = next(iter(named.values())).input_shape[1]
        self.class_name = widgets.choice("class", list(LUNG_LINES), value="H358")
        self.cell = widgets.integer_slider("cell", 0, 29)
        self.model = widgets.choice("model", list(named))
        self._by_hand = "as set by hand"
        self.day = widgets.choice("day", ["nominal", *LUNG.batches, self._by_hand])
        self._settings = day_settings(seed, "nominal")
        self.sliders = {name: widgets.setting_slider(SETTINGS[name]) for name in names}
        self._fetch()
        sliders = list(self.sliders.values())
        pairs = [sliders[at : at + 2] for at in range(0, len(sliders), 2)]
        self._start([self.model, self.day, self.class_name, self.cell], *pairs)

    @property
    def settings(self):
        """All settings of the microscope, as `SimulatedMicroscope.measure` takes them."""
        return dict(self._settings)

    def _fetch(self):
        cell = self.class_name.value, [self.cell.value]
        self._microscope = SimulatedMicroscope(*cell, self._seed, image_size=self._size)

    def _follow(self, moved):
        if moved in (self.class_name, self.cell):
            self._fetch()
        elif moved is self.day and self.day.value != self._by_hand:
            self._settings = day_settings(self._seed, self.day.value)
            for name, slider in self.sliders.items():
                slider.value = self._settings[name]
        elif moved in self.sliders.values():
            name = next(name for name, slider in self.sliders.items() if slider is moved)
            self._settings[name] = moved.value
            self.day.value = self._by_hand

    def _show(self):
        measured = self._microscope.measure(self._settings)
        generator = self.generators[self.model.value]
        predicted = predict(generator, measured).images
        truth, qpi = measured.truth, measured.qpi
        images = {
            "brightfield": measured.brightfield,
            "measured phase": qpi,
            "predicted phase": predicted,
            "batch-free truth": truth,
            "predicted − truth": predicted - truth,
        }
        # One scale for all cells and settings: a gain must be visible.
        limits = {"brightfield": (0.3, 1.7), "phase": (-0.3, 4.0), "difference": (-1.0, 1.0)}
        look = {"difference": ("predicted − truth",), "limits": limits}
        figure = image_grid(images, measured.pixel_size_um, **look)
        scores = image_scores(np.stack([qpi[0], predicted[0]]), np.repeat(truth, 2, axis=0))
        words = [
            f"<b>{self.class_name.value}, cell {self.cell.value}</b> (simulated), "
            f"{html.escape(str(self.model.value))}.",
            "Mean absolute error against the truth: "
            f"measured phase {scores['mae_rad'][0]:.3f} rad, "
            f"predicted phase {scores['mae_rad'][1]:.3f} rad (r = {scores['pearson_r'][1]:.3f}).",
            self._usual_words(),
        ]
        return figure, "<br>".join(words)

    def _usual_words(self):
        beyond = [
            setting_label(name)
            for name in self.sliders
            if not SETTINGS[name].is_usual(self._settings[name])
        ]
        if not beyond:
            return "All settings are within the range of the simulated days."
        return f"Beyond what any simulated day had: {', '.join(beyond)}."
