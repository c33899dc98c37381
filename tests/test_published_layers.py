"""The lists of layers are those of our builders, and of the published table."""

import csv
from pathlib import Path

import pytest
from keras import layers

from cytomad_lib import networks
from cytomad_lib.models.published_layers import published_layers

TABLE = Path(__file__).parent / "data" / "published_networks.csv"
SIZES = [(16, 1), (32, 4), (64, 6), (256, 2)]


def builder_weights(network):
    """Name of each weight to its shape, for the layers that have any."""
    return [
        {weight.name: tuple(weight.shape) for weight in layer.weights}
        for layer in network.layers
        if layer.weights
    ]


def listed_weights(published):
    return [layer.weights for layer in published.layers if layer.weights]


@pytest.mark.parametrize("image_size, base_filters", SIZES)
@pytest.mark.parametrize("kind", ["generator", "discriminator", "cnn_classifier"])
def test_networks_of_images_have_the_builders_weights_in_order(kind, image_size, base_filters):
    sizes = {"image_size": image_size, "base_filters": base_filters}
    if kind == "cnn_classifier":
        sizes["n_classes"] = 3
    network = getattr(networks, f"build_{kind}")(**sizes)
    published = published_layers(kind, **sizes)
    assert listed_weights(published) == builder_weights(network)
    assert published.n_weights == network.count_params()
    assert [published.layers[place].type for place in published.inputs] == ["InputLayer"] * len(
        network.inputs
    )


@pytest.mark.parametrize("kind", ["cell_type_mlp", "batch_mlp"])
def test_mlps_have_the_builders_weights_in_order(kind):
    network = getattr(networks, f"build_{kind}")(n_classes=5, n_features=24)
    published = published_layers(kind, n_classes=5, n_features=24)
    assert listed_weights(published) == builder_weights(network)
    activations = [layer.settings["activation"] for layer in published.layers[1:]]
    assert activations == ["relu"] * (len(activations) - 1) + ["softmax"]


@pytest.mark.parametrize(
    "kind, row_name, sizes",
    [
        ("generator", "generator", {"image_size": 128, "base_filters": 64}),
        ("discriminator", "discriminator", {"image_size": 128, "base_filters": 64}),
        (
            "cnn_classifier",
            "cnn_classifier_7_classes",
            {"n_classes": 7, "image_size": 128, "base_filters": 64},
        ),
        ("cell_type_mlp", "cell_type_mlp_7_classes", {"n_classes": 7, "n_features": 512}),
        ("batch_mlp", "batch_mlp_7_classes", {"n_classes": 7, "n_features": 128}),
    ],
)
def test_published_sizes_give_the_published_table(kind, row_name, sizes):
    with TABLE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["network"] == row_name]
    published = published_layers(kind, **sizes)
    listed = list(published.layers)
    if kind == "discriminator":  # the table counts its last convolution and the sigmoid as one
        assert listed.pop().settings == {"activation": "sigmoid"}
    assert [layer.type for layer in listed] == [row["layer"] for row in rows]
    assert published.n_weights == sum(int(row["parameters"]) for row in rows)


@pytest.mark.parametrize("image_size", [16, 128])
def test_skip_connections_join_layers_of_one_size(image_size):
    """A concatenation of the wrong layer would still have the right number of weights."""
    published = published_layers("generator", image_size=image_size, base_filters=4)
    network = networks.build_generator(image_size, 4)
    joined = [layer for layer in network.layers if isinstance(layer, layers.Concatenate)]
    ours = [layer for layer in network.layers if layer.name != "features"]
    places = {id(layer.output): place for place, layer in enumerate(ours)}
    expected = [tuple(places[id(tensor)] for tensor in layer.input) for layer in joined]
    found = [layer.inputs for layer in published.layers if layer.type == "Concatenate"]
    assert found == expected
    bottleneck = places[id(network.get_layer("bottleneck").output)]
    assert published.outputs == (len(published.layers) - 1, bottleneck)
