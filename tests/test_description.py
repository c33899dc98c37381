"""Datasets of one's own: other folders, names, variables and channels, through `dataset.toml`."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from training_cells import ONE_EPOCH, write_dataset

from cytomad_lib import workflow
from cytomad_lib.conditional.training import image_statistics
from cytomad_lib.data.cells import CellFiles, load_cells
from cytomad_lib.data.check import check_dataset, value_warnings
from cytomad_lib.data.description import read_description
from cytomad_lib.data.errors import CytomadError, DatasetError
from cytomad_lib.data.layouts import DRUG, LUNG, dose_level, find_layout
from cytomad_lib.data.matfiles import write_mat
from cytomad_lib.evaluation.score import check_same_layout
from cytomad_lib.runs import Run

pytestmark = pytest.mark.usefixtures("untraced")
BATCHES, CLASSES = ("Tue", "Mon"), ("HeLa", "A549")  # not in the order of the alphabet
SPLITS = {"Train": "train", "Valid": "val", "Test": "held out"}
COUNTS = {"Train": 6, "Valid": 3, "Test": 8}
TEXT = """
name = "my-cells"
folders = "{batch}/{class}/{split}"
batches = ["Tue", "Mon"]
classes = ["HeLa", "A549"]
class_term = "cell line"
field_of_view_um = 32.0
wavelength_um = 0.633
splits = {Train = "train", Valid = "val", Test = "held out"}

[[input]]
file = "{class} {split} light.mat"
variable = "light"

[[input]]
file = "rest.mat"
variable = "img"
name = "DAPI"
scale = 0.001

[target]
file = "rest.mat"
variable = "phi"
name = "phase"
unit = "rad"
"""
DOSED = """
name = "screen"
folders = "{class}/{batch}/{dose}/{split}"
batches = ["1", "2"]
classes = ["none", "toxin"]
doses = ["0 uM", "1 uM", "10 uM"]
field_of_view_um = 32
input = [{file = "{batch}_{dose}.mat", variable = "in"}]
target = {file = "{batch}_{dose}.mat", variable = "out", name = "actin"}
"""


def images_of(batch, class_name, split):
    """Discs: light (16, 16, cells), DAPI in 16-bit numbers and phase, batch and class in both."""
    place = [BATCHES.index(batch), CLASSES.index(class_name), list(SPLITS).index(split)]
    random = np.random.default_rng(place)
    y, x = np.mgrid[:16, :16] - 7.5
    radius = 3.5 + 2 * place[1] + random.normal(0, 0.3, COUNTS[split])
    disc = np.clip(radius - np.hypot(x, y)[..., None], 0, 2)
    light = (0.8 + 0.5 * place[0]) * (1 - 0.3 * disc)
    noise = random.normal(0, 0.05, disc.shape)
    stored = 1000 * (disc * (1 + place[0]) + noise)
    return [array.astype("float32") for array in (light, stored, disc + noise)]


def write_my_cells(root, text=TEXT):
    for batch in BATCHES:
        for class_name in CLASSES:
            for split, name in SPLITS.items():
                light, stored, phase = images_of(batch, class_name, split)
                folder = root / batch / class_name / name
                write_mat(folder / f"{class_name} {name} light.mat", {"light": light})
                write_mat(folder / "rest.mat", {"img": stored, "phi": phase})
    (root / "dataset.toml").write_text(text, encoding="utf-8")
    return root


def write_dosed(root):
    groups = [("none", "1", "0 uM"), ("none", "2", "0 uM")]
    groups += [("toxin", batch, dose) for batch in "12" for dose in ("1 uM", "10 uM")]
    for number, (class_name, batch, dose) in enumerate(groups):
        for split in SPLITS:
            random = np.random.default_rng([number, COUNTS[split]])
            images = random.normal(number, 1, (2, 16, 16, 8)).astype("float32")
            path = root / class_name / batch / dose / split / f"{batch}_{dose}.mat"
            write_mat(path, {"in": images[0], "out": np.abs(images[1])})
    (root / "dataset.toml").write_text(DOSED)
    return root


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    return write_my_cells(tmp_path_factory.mktemp("above") / "mine")


@pytest.fixture
def own(tmp_path):
    """The same, to be spoilt."""
    return write_my_cells(tmp_path / "own")


# --- Loading and checking --------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_channel_belongs_to_its_label(mine, split):
    cells = load_cells(mine, split)
    assert cells.brightfield.shape == (4 * COUNTS[split], 16, 16, 2) and cells.channels == 2
    assert (cells.batches, cells.classes) == (BATCHES, CLASSES)
    assert cells.pixel_size_um == 2.0
    for index, row in enumerate(cells.labels.itertuples()):
        light, stored, phase = (
            images[..., row.cell] for images in images_of(row.batch, row.class_name, split)
        )
        np.testing.assert_array_equal(cells.brightfield[index, ..., 0], light)
        np.testing.assert_allclose(cells.brightfield[index, ..., 1], stored / 1000, atol=1e-5)
        np.testing.assert_array_equal(cells.qpi[index, ..., 0], phase)


def test_brightness_and_contrast_are_known_per_channel(mine):
    images = load_cells(mine, "Train").brightfield
    mean, spread = image_statistics(CellFiles(mine, "Train"))
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(spread, images.std(axis=(1, 2)).mean(axis=0), rtol=1e-4)


def test_streaming_and_the_folder_above_give_the_same(mine):
    every = load_cells(mine, "Test", image_size=8)
    files = CellFiles(mine.parent, "Test", image_size=8)
    some = files.read([30, 2, 17])
    assert files.channels == 2
    # On some processors, a matrix product rounds differently in stacks of different size.
    np.testing.assert_allclose(
        some.brightfield, every.brightfield[[30, 2, 17]], rtol=2e-6, atol=2e-6
    )


def test_groups_are_the_folders_that_are_there(own):
    (own / "Tue" / "A549").rename(own / ".Tue_A549")
    layout, root = find_layout(own)
    assert [group.name for group in layout.groups] == ["Tue/HeLa", "Mon/HeLa", "Mon/A549"]
    assert root == own and layout.classes_of_batch("Tue") == ("HeLa",)
    assert check_dataset(own).ok and len(load_cells(own, "Train")) == 18


def test_check_says_what_goes_in_and_out(mine):
    report = check_dataset(mine)
    assert report.ok and len(report.table) == 12
    assert "Goes in: light, DAPI. Comes out: phase (rad)." in str(report)
    assert "my-cells dataset" in str(report)


def test_truth_of_a_described_dataset(own):
    with pytest.raises(DatasetError, match=r"my-cells dataset has no truth.*\[truth\]"):
        load_cells(own, "Test", with_truth=True)
    truth = '\n[truth]\nfile = "true_{batch}.mat"\nvariable = "t"\nscale = 2\n'
    (own / "dataset.toml").write_text(TEXT + truth)
    for batch in BATCHES:
        for class_name in CLASSES:
            phase = images_of(batch, class_name, "Test")[2]
            write_mat(own / batch / class_name / "held out" / f"true_{batch}.mat", {"t": phase / 2})
    cells = load_cells(own, "Test", with_truth=True)
    np.testing.assert_array_equal(cells.truth, cells.qpi)
    assert check_dataset(own).table["truth"].sum() == 4


def test_classes_first_and_doses(tmp_path):
    root = write_dosed(tmp_path)
    layout, _ = find_layout(root)
    assert [group.name for group in layout.groups] == [
        "1/none/0 uM",
        "1/toxin/1 uM",
        "1/toxin/10 uM",
        "2/none/0 uM",
        "2/toxin/1 uM",
        "2/toxin/10 uM",
    ]
    file = layout.groups[2].file("Test", "BF")
    assert str(file) == "toxin/1/10 uM/Test/1_10 uM.mat"
    cells = load_cells(root, "Valid")
    assert tuple(cells.labels["dose"].cat.categories) == ("0 uM", "1 uM", "10 uM")
    means = cells.brightfield.mean(axis=(1, 2, 3)).reshape(6, 8).mean(axis=1)
    np.testing.assert_allclose(means, [0, 2, 3, 1, 4, 5], atol=0.1)
    assert [dose_level(dose, layout) for dose in layout.doses] == [0, 1, 2]
    with pytest.raises(DatasetError, match="'D1' is no dose.*0 uM, 1 uM, 10 uM"):
        dose_level("D1", layout)
    assert layout.images == {"input": ["in"], "target": "actin (no unit)"}
    assert check_dataset(root).ok


# --- Wrong files and folders -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "arrays", "words"),
    [
        ("rest.mat", {"img": 6, "phi": 5}, r"rest.mat has 6 cells.*rest.mat beside it has 5"),
        ("rest.mat", {"img": 5, "phi": 5}, r"light.mat has 6 cells.*rest.mat beside it has 5"),
        ("rest.mat", {"phi": 6}, "no variable 'img'"),
        ("HeLa train light.mat", None, "light.mat is missing.*there is rest.mat"),
    ],
)
def test_every_channel_is_checked_at_the_door(own, path, arrays, words):
    path = own / "Mon" / "HeLa" / "train" / path
    path.unlink()
    if arrays:
        stacks = {name: np.ones((16, 16, n), "float32") for name, n in arrays.items()}
        write_mat(path, stacks)
    with pytest.raises(CytomadError, match=words):
        load_cells(own, "Train")
    report = check_dataset(own)
    assert not report.ok and any(pd.Series(report.problems).str.contains(words))


def test_folders_and_lists_that_differ_are_all_named(own):
    text = TEXT.replace('"Mon"', '"Mon", "Wed"').replace('"A549"', '"A549", "K562"')
    (own / "dataset.toml").write_text(text)
    report = check_dataset(own)
    assert report.ok and report.uses == ("prediction",)
    for words in (
        r"training.*dataset.toml: batches has 'Wed'.*Wed.HeLa",
        r"training.*dataset.toml: classes has 'K562'.*Tue.K562",
    ):
        assert pd.Series(report.notes).str.contains(words).sum() == 1, words
    with pytest.raises(DatasetError, match="'Wed'"):
        load_cells(own, "Train")
    assert len(load_cells(own, "Train", with_target=False)) == 24
    (own / "Fri" / "HeLa" / "Val").mkdir(parents=True)
    (own / "Tue" / "MCF7" / "held out").mkdir(parents=True)
    (own / "Tue" / "HeLa" / "Test").mkdir()  # no name of a split here, so no problem
    problems = check_dataset(own).problems
    for words in (
        r"Fri is not a folder.*Tue, Mon, Wed",
        r"MCF7 is not a folder.*HeLa, A549, K562",
    ):
        assert pd.Series(problems).str.contains(words).sum() == 1, words
    assert len(problems) == 2
    with pytest.raises(DatasetError, match="Fri is not a folder"):
        load_cells(own, "Train", with_target=False)


def test_a_new_day_alone_is_predicted_without_its_target(tmp_path):
    """The days before stand in the list, as the model knows them, but their cells are elsewhere."""
    text = TEXT.replace('"rest.mat"\nvariable = "phi"', '"phase.mat"\nvariable = "phi"')
    for class_name in CLASSES:
        light, stored, _ = images_of("Mon", class_name, "Test")
        folder = tmp_path / "Mon" / class_name / "held out"
        write_mat(folder / f"{class_name} held out light.mat", {"light": light})
        write_mat(folder / "rest.mat", {"img": stored})
    (tmp_path / "dataset.toml").write_text(text)
    cells = load_cells(tmp_path, "Test", with_target=False)
    assert cells.qpi is None and cells.batches == BATCHES and set(cells.labels["batch"]) == {"Mon"}
    report = check_dataset(tmp_path)
    assert report.ok and report.uses == ("prediction",)
    assert any("2 group(s) have light and DAPI alone, without phase" in n for n in report.notes)
    assert value_warnings(cells, find_layout(tmp_path)[0]) == []


def test_no_folder_is_as_described(own):
    text = TEXT.replace("{batch}/{class}", "{class}/{batch}")
    (own / "dataset.toml").write_text(text)
    with pytest.raises(DatasetError, match=r"such as .*HeLa.Tue.train.*none of them.*Mon, Tue"):
        check_dataset(own)


def test_values_that_networks_learn_badly_from(own):
    (own / "dataset.toml").write_text(TEXT.replace("scale = 0.001", ""))
    notes = check_dataset(own).notes
    proposed = "write scale = 0.001 into the [[input]] of DAPI"
    assert any("12 file(s)" in note and proposed in note for note in notes)
    for scale, proposals in (("1e3", ["1"]), ("1e-3", ["1"]), ("1", [])):
        text = TEXT.replace('unit = "rad"', f"scale = {scale}")
        (own / "dataset.toml").write_text(text)
        wanted = [f"write scale = {number} into the [target] of phase" for number in proposals]
        texts = [note for note in check_dataset(own).notes if "write scale" in note]
        assert len(texts) == len(wanted)
        assert all(own in text for own, text in zip(wanted, texts, strict=True))
        layout = find_layout(own)[0]
        for cells in (load_cells(own, "Train"), CellFiles(own, "Train")):
            warned = value_warnings(cells, layout)
            assert len(warned) == len(wanted)
            assert all(own in text for own, text in zip(wanted, warned, strict=True))


def test_the_proposed_scale_is_accepted(own):
    (own / "dataset.toml").write_text(TEXT.replace("scale = 0.001", "scale = 1e-7"))
    said = next(note for note in check_dataset(own).notes if "write scale" in note)
    proposed = re.search(r"scale = \S+", said)[0]
    (own / "dataset.toml").write_text(TEXT.replace("scale = 0.001", proposed))
    assert not [note for note in check_dataset(own).notes if "write scale" in note]
    assert 1 <= load_cells(own, "Train").brightfield[..., 1].max() < 10


def test_a_training_proposes_the_scale_as_the_check_does(own, tmp_path, capsys):
    (own / "dataset.toml").write_text(TEXT.replace("scale = 0.001", ""))
    workflow.train(own, tmp_path / "run", ONE_EPOCH, recipes=(), verbose=2)
    assert "write scale = 0.001 into the [[input]] of DAPI" in capsys.readouterr().out


def test_two_datasets_in_one_folder(own, tmp_path):
    assert find_layout(tmp_path)[1] == own
    (tmp_path / LUNG.root_folder).mkdir()
    with pytest.raises(DatasetError, match=f"both {LUNG.root_folder} and own"):
        find_layout(tmp_path)
    with pytest.raises(DatasetError, match="holds no dataset.*dataset.toml"):
        find_layout(own / "Tue")


def test_a_description_wins_over_the_name_of_a_published_folder(tmp_path):
    root = write_my_cells(tmp_path / DRUG.root_folder)
    for folder in (root, tmp_path):
        layout, found = find_layout(folder)
        assert (layout.name, found) == ("my-cells", root)


# --- Mistakes in the description -------------------------------------------------------------

LIGHT = 'file = "{class} {split} light.mat"'
MISTAKES = {
    "no TOML": ("batches = [", "batches = ", "not valid TOML.*line 4"),
    "unknown key": ("class_term", "clas_term", "unknown key 'clas_term' at the top.*class_term"),
    "missing key": ('name = "my-cells"', "", "no key 'name' at the top.*folders"),
    "taken": ('"my-cells"', '"drug"', "name is 'drug'.*another name"),
    "number for text": ('"my-cells"', "7", "name is 7.*text in quotes"),
    "empty text": ('"my-cells"', '" "', "name is ' '.*text in quotes"),
    "no {split}": ("/{split}", "", r"folders is '\{batch\}/\{class\}'.*each of these once"),
    "unknown place": ("{batch}/", "{day}/", r"folders is .*\{day\}.*each of these once"),
    "place twice": ("{class}/", "{class}/{class}/", "folders is .*each of these once"),
    "split not last": ("{class}/{split}", "{split}/{class}", r"folders is .*\{split\} last"),
    "absolute": ('"{batch}/', '"/data/{batch}/', "folders is '/data.*each of these once"),
    "doses unasked": ("splits =", 'doses = ["1"]\nsplits =', "doses is .*exactly where"),
    "doses missing": ("{class}/{s", "{class}/{dose}/{s", "doses is 'missing'.*exactly where"),
    "list is text": ('["Tue", "Mon"]', '"Tue"', "batches is 'Tue'.*list of names"),
    "list is empty": ('["Tue", "Mon"]', "[]", r"batches is \[\].*list of names"),
    "list of numbers": ('["Tue", "Mon"]', "[1, 2]", "batches is 1.*plain name"),
    "twice": ('"Mon"]', '"tue"]', r"batches is \['Tue', 'tue'\].*different names"),
    "leaves the folder": ('"HeLa"', '"../HeLa"', "classes is '../HeLa'.*plain name"),
    "backslash": ('"HeLa"', r'"a\\b"', "classes is .*plain name"),
    "dots": ('"HeLa"', '".."', r"classes is '\.\.'.*not beginning"),
    "hidden": ('"HeLa"', '".HeLa"', "classes is '.HeLa'.*not beginning"),
    "joined alike": (
        'batches = ["Tue", "Mon"]\nclasses = ["HeLa", "A549"]',
        'batches = ["a", "a_b"]\nclasses = ["b_c", "c"]',
        "a/b_c and a_b/c are both a_b_c",
    ),
    "no such split": ("Valid =", "Val =", "unknown key 'Val' in splits.*Valid"),
    "split outside": ('"val"', '"../val"', r"splits Valid is '\.\./val'.*plain name"),
    "split is a number": ('"val"', "3", "splits Valid is 3.*plain name"),
    "splits alike": ('"val"', '"Train"', "splits is .*different names"),
    "splits as list": ("splits = {", "splits = [{", None),
    "field of view": ("32.0", "-1.5", "field_of_view_um is -1.5.*above zero"),
    "infinite": ("32.0", "inf", "field_of_view_um is inf.*above zero"),
    "truth value": ("32.0", "true", "field_of_view_um is True.*above zero"),
    "single brackets": (
        TEXT[TEXT.index("[[input]]") : TEXT.index("[target]")],
        '[input]\nfile = "a.mat"\nvariable = "b"\n',
        r"input is \{.*double brackets",
    ),
    "target twice": ("[target]", "[[target]]", r"target is \[.*one table"),
    "key in a table": (
        'unit = "rad"',
        'class_term = "x"',
        r"'class_term' in \[target\].*above the first \[table\]",
    ),
    "no variable": ('variable = "img"', "", r"no key 'variable' in \[\[input\]\] number 2"),
    "file with folder": (LIGHT, 'file = "x/{class}.mat"', r"number 1 file is 'x/.*split's folder"),
    "file above": (LIGHT, 'file = "../a.mat"', r"number 1 file is '\.\./a"),
    "dollar in a name": ('"HeLa"', '"He$La$"', r"classes is 'He\$La\$'.*plain name"),
    "dollar in a text": ('name = "DAPI"', 'name = "$x$"', r"name is '\$x\$'.*without \$"),
    "control character": ('"HeLa"', r'"He\u0007La"', "classes is .*plain name"),
    "control in a unit": ('"rad"', r'"r\u202ead"', "unit is .*one line"),
    "no label": ('"HeLa"', '"_HeLa"', "classes is '_HeLa'.*not beginning"),
    "too long": ('"HeLa"', f'"{"x" * 200}"', "has a name of 204 bytes.*shorter names"),
    "number too large": ("32.0", "1" + "0" * 400, "field_of_view_um is 1000.*up to|to 1e"),
    "too many digits": ("32.0", "1" * 5000, "not valid TOML.*digits"),
    "too deep": ("32.0", "[" * 5000, "not valid TOML"),
    "too large": ("32.0", "32.0 #" + "x" * 300_000, "too large.*256,000 bytes"),
    "too many dots": ("32.0", "32.0\n" + "a." * 300 + "a = 1", "too large.*200 dots"),
    "place in a variable": (
        'variable = "phi"',
        'variable = "{dose}"',
        r"\[target\] variable is '\{dose\}'.*no other placeholders.*\{class\}",
    ),
    "no .mat": (
        LIGHT + '\nvariable = "light"',
        'file = "{class}.png"',
        "file is '{class}.png'.*of a .mat",
    ),
    "variable of a TIFF": (LIGHT, 'file = "a.tif"', r"unknown key 'variable' in \[\[input\]\]"),
    "two stars": (LIGHT, 'file = "*_*.mat"', r"file is '\*_\*.mat'.*one file per cell"),
    "star in a folder": (LIGHT, 'file = "*/a.mat"', "file is '.*split's folder"),
    "axes": ('variable = "phi"', 'variable = "phi"\naxes = "NCYX"', "axes is 'NCYX'.*NYX.*YXN"),
    "tile": ('variable = "phi"', 'variable = "phi"\ntile = 4.5', "tile is 4.5.*whole number"),
    "groups": ('name = "my-cells"', 'name = "x"\ngroups = ["Tue"]', "groups is .*Tue/HeLa, Tue"),
    "dose in file": (LIGHT, 'file = "{dose}.mat"', r"file is '\{dose\}.*no other placeholders"),
    "open brace": (LIGHT, 'file = "{class.mat"', r"file is '\{class.mat"),
    "scale": ("scale = 0.001", "scale = 0", "number 2 scale is 0.*above zero"),
    "names alike": ('name = "DAPI"', 'name = "light"', "number 2 name is 'light'.*another name"),
    "target goes in": ('variable = "phi"', 'variable = "img"', r"\[target\] file.*number 2"),
}
MISTAKES["splits as list"] = (
    'splits = {Train = "train", Valid = "val", Test = "held out"}',
    'splits = ["train", "val", "held out"]',
    "splits is .*a table",
)


def test_the_light_is_read_and_else_not_known(tmp_path):
    path = tmp_path / "dataset.toml"
    path.write_text(DOSED)
    said = read_description(path)
    assert (said.wavelength_um, said.refraction_increment_um3_per_pg) == (None, 0.19)
    path.write_text("refraction_increment_um3_per_pg = 0.18\n" + TEXT)
    said = read_description(path)
    assert (said.wavelength_um, said.refraction_increment_um3_per_pg) == (0.633, 0.18)
    path.write_text("wavelength_um = -1\n" + DOSED)
    with pytest.raises(DatasetError, match="wavelength_um is -1.*above zero"):
        read_description(path)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(name, tmp_path):
    old, new, words = MISTAKES[name]
    assert TEXT.count(old) == 1
    path = tmp_path / "dataset.toml"
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(DatasetError, match=words) as caught:
        find_layout(tmp_path)
    assert str(path) in str(caught.value) and "xpected" in str(caught.value)


def test_the_product_of_long_lists_is_not_listed(tmp_path):
    names = [",".join(f'"{letter}{number}"' for number in range(10_000)) for letter in "ab"]
    text = TEXT.replace('"Tue", "Mon"', names[0]).replace('"HeLa", "A549"', names[1])
    path = tmp_path / "dataset.toml"
    path.write_text(text)
    with pytest.raises(DatasetError, match="10,000 x 10,000 groups.*at most 100,000"):
        read_description(path)


def test_what_is_no_file_is_not_read(tmp_path):
    path = tmp_path / "dataset.toml"
    path.mkdir()
    with pytest.raises(DatasetError, match="dataset.toml is not a file"):
        find_layout(tmp_path)
    path.rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(path)  # opening it would wait for ever
        with pytest.raises(DatasetError, match="dataset.toml is not a file"):
            find_layout(tmp_path)


def test_the_variable_may_depend_on_the_group(own):
    text = TEXT.replace('variable = "light"', 'variable = "{class}_{batch}_light"')
    (own / "dataset.toml").write_text(text)
    for batch in BATCHES:
        for class_name in CLASSES:
            for split, name in SPLITS.items():
                light = images_of(batch, class_name, split)[0]
                path = own / batch / class_name / name / f"{class_name} {name} light.mat"
                write_mat(path, {f"{class_name}_{batch}_light": light})
    cells = load_cells(own, "Test")
    for index, row in enumerate(cells.labels.itertuples()):
        light = images_of(row.batch, row.class_name, "Test")[0][..., row.cell]
        np.testing.assert_array_equal(cells.brightfield[index, ..., 0], light)
    assert "Goes in: light, DAPI." in str(check_dataset(own))


def test_other_encodings(tmp_path):
    path = tmp_path / "dataset.toml"
    path.write_bytes(TEXT.replace("cell line", "Zelllinie ä").encode("latin-1"))
    with pytest.raises(DatasetError, match="dataset.toml cannot be read.*UTF-8"):
        read_description(path)
    path.write_text(TEXT.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")  # as Notepad
    assert read_description(path).batches == BATCHES


# --- Training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(mine, tmp_path_factory):
    recipes = ("published", "conditional")
    return workflow.train(mine, tmp_path_factory.mktemp("run"), ONE_EPOCH, recipes=recipes)


def test_two_channels_train_and_open_again(run, mine):
    settings = json.loads((run.folder / "run.json").read_text())
    assert (settings["dataset"], settings["channels"]) == ("my-cells", 2)
    assert settings["images"] == {"input": ["light", "DAPI"], "target": "phase (rad)"}
    again = Run.open(run.folder)
    assert again.stages() == ["pretraining", "published", "conditional"]
    images = load_cells(mine, "Test").brightfield
    for stage in again.stages():
        generator = again.generator(stage)
        made = generator.predict(images, verbose=0)[0]
        without = generator.predict(images * [1, 0], verbose=0)[0]
        assert made.shape == (32, 16, 16, 1)
        assert np.abs(made - without).max() > 1e-4  # the second channel is looked at
    before = (run.folder / "pretraining" / "history.csv").read_bytes()
    workflow.train(mine, run.folder, ONE_EPOCH)  # taken up: nothing is left to do
    assert (run.folder / "pretraining" / "history.csv").read_bytes() == before


def test_two_channels_are_predicted_and_evaluated(run, mine, tmp_path):
    prediction = workflow.predict_split(run, mine, "Test", "conditional", tmp_path / "made")
    assert (tmp_path / "made" / "CytoMAD_test_conditional_Mon_HeLa.mat").exists()
    assert not list((tmp_path / "made").glob("*_BF.mat"))  # it would hold one channel of two
    options = {"image_probe": False, "baselines": False}
    found = workflow.evaluate(run, mine, "Test", tmp_path / "scores", **options)
    np.testing.assert_allclose(
        found.predictions["conditional"].features, prediction.features, atol=1e-5
    )
    assert "MAE, measured (rad)" in found.images and len(found.cell_measures) == 9
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert "wavelength 0.633 µm" in page and not len(found.not_scored)


def test_a_run_refuses_what_is_not_its_data(run, own, tmp_path):
    check_same_layout(run, own)
    swapped = TEXT.replace('variable = "light"', 'variable = "light"\nname = "a"')
    longer = TEXT.replace('"Mon"]', '"Mon", "Wed"]')
    for text, words in (
        (TEXT.replace("my-cells", "others"), "others dataset.*trained on my-cells"),
        (swapped, "images.*'a', 'DAPI'.*trained on.*'light', 'DAPI'"),
        (TEXT.replace('unit = "rad"', ""), r"phase \(no unit\).*trained on.*phase \(rad\)"),
        (TEXT.replace('["Tue", "Mon"]', '["Mon", "Tue"]'), "batches Mon, Tue.*Tue, Mon"),
    ):
        (own / "dataset.toml").write_text(text)
        with pytest.raises(CytomadError, match=words):
            check_same_layout(run, own)
    (own / "dataset.toml").write_text(longer)
    check_same_layout(run, own)  # a new day after the known ones
    with pytest.raises(CytomadError, match="lung dataset.*trained on my-cells"):
        check_same_layout(run, write_dataset(tmp_path / "lung", test=2))


def test_the_target_may_be_no_phase(tmp_path):
    root = write_dosed(tmp_path / "screen")
    run = workflow.train(root, tmp_path / "run", replace(ONE_EPOCH, removal_epochs=0), recipes=())
    options = {"image_probe": False, "baselines": False}
    found = workflow.evaluate(run, root, "Test", tmp_path / "out", **options)
    assert "MAE, measured" in found.images
    name = find_layout(root)[0].target.name
    assert f"measured {name}" in found.images.index and "QPI" not in found.summary()
    assert set(found.cell_measures["measure"]) == {"area_um2"}
    assert not any("encoding" in path.name for path in found.figures)
    assert not len(found.dose_order)  # nothing says which class is untreated


def test_a_file_of_the_published_programs_takes_one_channel(mine, tmp_path):
    old = Path(__file__).parent / "data" / "legacy" / "model_000005.h5"
    with pytest.raises(CytomadError, match="2 input images per cell, the generator takes 1"):
        workflow.predict_by_file(old, mine, "Test", tmp_path)
