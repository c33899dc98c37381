"""Presets: the published schedule to the letter, and settings that come back from a file."""

import json
from dataclasses import replace

import pytest

from cytomad_lib import config
from cytomad_lib.data.errors import CytomadError


def test_published_preset_is_the_published_schedule():
    preset = config.PUBLISHED
    assert (preset.image_size, preset.n_features, preset.batch_size) == (128, 512, 10)
    assert (preset.pretraining_epochs, preset.classifier_epochs, preset.removal_epochs) == (
        100,
        100,
        300,
    )
    assert (preset.refit_every, preset.refit_epochs, preset.batch_mlps) == (5, 100, 4)
    assert (preset.generator_rate, preset.discriminator_rate, preset.beta_1) == (2e-4, 1e-4, 0.5)
    assert preset.removal_rate == preset.generator_rate
    assert (preset.batch_mlp_rate, preset.class_mlp_rate, preset.cnn_rate) == (0.05, 1e-3, 1e-3)
    weights = preset.weight_adversarial, preset.weight_classifier, preset.weight_mae_removal
    assert weights == (1, 100, 300)
    assert preset.weight_mae_pretraining == 100
    assert preset.norm_momentum == 0.99


def test_presets_are_found_by_name_and_keep_their_fields():
    assert config.find_preset("demo") is config.DEMO
    assert replace(config.DEMO, base_filters=4).n_features == 32
    with pytest.raises(CytomadError, match="'dmeo'.*published, demo, study, workshop"):
        config.find_preset("dmeo")


@pytest.mark.parametrize("preset", config.PRESETS.values(), ids=lambda preset: preset.name)
def test_presets_come_back_from_a_json_file(preset):
    assert config.Preset.from_dict(json.loads(json.dumps(preset.as_dict()))) == preset


def test_an_unknown_setting_is_refused():
    fields = config.DEMO.as_dict()
    fields["conditional"]["no_such_field"] = 1
    with pytest.raises(TypeError, match="no_such_field"):
        config.Preset.from_dict(fields)
