"""The command line: what is wrong with a user's files is said, and nothing is left behind."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from training_cells import TINY, environment_of_a_program, untraced_steps

from cytomad_lib import cli as command_line
from cytomad_lib import config
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.layouts import LUNG
from cytomad_lib.data.matfiles import write_mat

GROUP = LUNG.groups[0]
GROUPS = [group for group in LUNG.groups if group.batch in ("Batch1", "Batch2")]


def stack(cells=4, size=16, seed=0):
    return np.random.default_rng(seed).normal(1, 0.1, (size, size, cells)).astype("float32")


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data" / LUNG.root_folder
    for group in GROUPS:
        for split in ("Train", "Valid", "Test"):
            for kind in ("BF", "QPI"):
                write_mat(root / group.file(split, kind), {kind: stack()})
    return root


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "tiny", TINY)


def run(*words):
    """Call the command line in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cytomad_lib", *map(str, words)])
        try:
            command_line.main()
        except SystemExit as end:
            if isinstance(end.code, str):  # as the interpreter does
                print(end.code, file=sys.stderr)
                return 1
            return end.code or 0
    return 0


def hdf5(path, make):
    with h5py.File(path, "w") as file:
        dataset = make(file)
        if dataset is not None:
            dataset.attrs["MATLAB_class"] = np.bytes_("single")


def virtual(file):
    layout = h5py.VirtualLayout((4, 16, 16), "f4")
    layout[...] = h5py.VirtualSource("elsewhere.h5", "BF", (4, 16, 16))
    return file.create_virtual_dataset("BF", layout)


def external_link(file):
    file["BF"] = h5py.ExternalLink("elsewhere.h5", "/BF")


def with_nan():
    images = stack()
    images[3, 3, 2] = np.nan
    return images


@dataclass
class Fault:
    """How to spoil the first group's training BF file (or the folders), and what must be said."""

    spoil: object  # called with the dataset's root and the file's path
    says: tuple
    names: str = "H69_BF.mat"


def add_group(folder):
    def spoil(root, path):
        for kind in ("BF", "QPI"):
            write_mat(root / folder / "Train" / f"X_{kind}.mat", {kind: stack()})

    return spoil


FAULTS = {
    "missing file": Fault(lambda root, path: path.unlink(), ("is missing", "add it")),
    "wrong variable": Fault(
        lambda root, path: write_mat(path, {"phase": stack()}), ("phase", "Expected", "BF")
    ),
    "2-D array": Fault(
        lambda root, path: write_mat(path, {"BF": stack()[..., 0]}), ("16 x 16", "Expected")
    ),
    "NaN": Fault(lambda root, path: write_mat(path, {"BF": with_nan()}), ("NaN", "Expected")),
    "other counts": Fault(
        lambda root, path: write_mat(path, {"BF": stack(cells=3)}),
        ("3 cells", "4 cells", "Expected"),
    ),
    "other sizes": Fault(
        lambda root, path: write_mat(path, {"BF": stack(size=20)}),
        ("20 x 20", "16 x 16", "Expected"),
    ),
    "empty file": Fault(lambda root, path: path.write_bytes(b""), ("empty", "Expected")),
    "truncated": Fault(
        lambda root, path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        ("Expected",),
    ),
    "1 TB": Fault(
        lambda root, path: hdf5(
            path, lambda file: file.create_dataset("BF", (2**20, 512, 512), "f4")
        ),
        ("1,099,511,627,776 bytes", "Expected"),
    ),
    "external link": Fault(lambda root, path: hdf5(path, external_link), ("link", "Expected")),
    "virtual dataset": Fault(lambda root, path: hdf5(path, virtual), ("other files", "Expected")),
    "text file": Fault(lambda root, path: path.write_text("hello " * 100), ("Expected",)),
    "unknown batch": Fault(
        add_group("Batch9/H69"), ("Batch9", "Expected", "Batch7", "rename or move"), "Batch9"
    ),
    "unknown class": Fault(
        add_group("Batch1/HeLa"), ("HeLa", "Expected", "H2170", "rename or move"), "HeLa"
    ),
}


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_nothing_is_left(name, command, data, tmp_path, capsys):
    fault = FAULTS[name]
    fault.spoil(data, data / GROUP.file("Train", "BF"))
    out = tmp_path / "out"
    words = ("train", data, "--out", out, "--preset", "tiny")
    assert run(*(words if command == "train" else ("check", data))) == 1
    captured = capsys.readouterr()
    said = captured.err if command == "train" else captured.out + captured.err
    for words in (fault.names, *fault.says):
        assert words in said, said
    assert not out.exists()
    assert "Traceback" not in said


def test_more_cells_than_there_are(data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("train", data, "--out", out, "--preset", "tiny", "--cells", 1000) == 1
    said = capsys.readouterr().err
    for words in ("_BF.mat has 4 cells", "Expected the 1000 asked", "ask for 4 or fewer"):
        assert words in said
    assert not out.exists()


def test_v5_files_cannot_be_trained_on_from_disk(data, tmp_path, capsys):
    path = data / LUNG.groups[0].file("Train", "BF")
    write_mat(path, {"BF": np.ones((16, 16, 4), "float32")}, version="5")
    words = ("train", data, "--out", tmp_path / "out", "--preset", "tiny")
    assert run(*words, "--from-disk") == 1
    said = capsys.readouterr().err
    for words in (f"{path} is a MATLAB v5 file", "-v7.3", "write_mat"):
        assert words in said
    assert not (tmp_path / "out").exists()


def test_a_dataset_is_copied_with_fewer_cells(data, tmp_path, capsys):
    assert run("subsample", data, "--cells", "2,1,1", "--out", tmp_path / "small") == 0
    assert len(load_cells(tmp_path / "small", "Train")) == 2 * len(GROUPS)
    assert "Smaller dataset:" in capsys.readouterr().out
    assert run("subsample", data, "--cells", "2,1", "--out", tmp_path / "other") == 1
    assert "Expected three numbers" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--updates", "--precision"])
def test_training_options_that_there_are_not(data, tmp_path, capsys, option):
    words = ("train", data, "--out", tmp_path / "out", "--preset", "tiny")
    assert run(*words, option, "sideways") == 1
    assert f"{option[2:]} is 'sideways'. Expected one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_single_batch(data, tmp_path, capsys):
    shutil.rmtree(data / "Batch2")
    out = tmp_path / "out"
    assert run("train", data, "--out", out, "--preset", "tiny") == 1
    said = capsys.readouterr().err
    for words in ("only Batch1", "at least two batches", "load more groups"):
        assert words in said
    assert not out.exists()


def test_check_of_a_good_dataset(data, capsys):
    assert run("check", data) == 0
    said = capsys.readouterr().out
    assert "lung dataset" in said and "No problem found." in said
    assert said.count("Batch1/H69") == 3  # a row per split


def test_simulate_then_check_then_refuse_to_overwrite(tmp_path, capsys):
    words = ("simulate", "--out", tmp_path, "--image-size", 16, "--train", 1, "--valid", 1)
    assert run(*words, "--test", 1) == 0
    assert run("check", tmp_path) == 0
    assert run(*words, "--test", 2) == 1
    assert "overwrite" in capsys.readouterr().err
    assert run(*words, "--test", 2, "--overwrite") == 0


def test_unknown_names_are_answered_with_the_known_ones(data, tmp_path, capsys):
    assert run("train", data, "--out", tmp_path / "out", "--preset", "fast") == 1
    assert "'fast'. Expected one of published, demo, study, workshop" in capsys.readouterr().err
    assert run("evaluate", tmp_path, data, "--out", tmp_path / "out") == 1
    assert "run.json does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_options_are_answered_with_what_is_expected(data, tmp_path, capsys):
    out = tmp_path / "out"
    tiny = ("--out", out, "--preset", "tiny")
    for words, says in (
        (("train", data, *tiny, "--recipe", "best"), ("'best'", "published, conditional")),
        (("compare", data, *tiny, "--recipe", "best"), ("'best'", "published, conditional")),
        (("compare", data, *tiny, "--seeds", "0,one"), ("'0,one'", "such as 0,1,2")),
        (("compare", data, *tiny, "--seeds", "1,1"), ("[1, 1]", "each once")),
        (("compare", data, *tiny, "--method", "mine.txt"), ("mine.txt", "such as my_method.py")),
        (
            ("leave-batch-out", data, *tiny, "--batch", "Batch5"),
            ("'Batch5'", "Expected one of Batch1, Batch2"),
        ),
    ):
        assert run(*words) == 1
        said = capsys.readouterr().err
        for part in says:
            assert part in said
        assert not out.exists()


@pytest.mark.parametrize(
    "words, says",
    [
        (("predict", "run", "data", "--split", "Tset"), "'Tset' is none"),
        (("evaluate", "run", "data", "--split", "test"), "'test' is none"),
        (("download", "lung", "--split", "Tset"), "'Tset' is none"),
        (("train", "data", "--seed", str(2**40)), "4294967295"),
        (("evaluate", "run", "data", "--seed", str(2**32)), "4294967295"),
        (("simulate", "--seed", str(2**40)), "4294967295"),
        (("demo", "--seed", "-1"), "--seed"),
        (("train", "data", "--cells", "0"), "--cells"),
        (("train", "",), "It is empty"),
    ],
)  # fmt: skip
def test_options_out_of_bounds_are_a_wrong_call(words, says, tmp_path, capsys):
    assert run(*words, "--out", tmp_path / "out") == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_path_is_not_the_folder_one_is_in(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert run("train", data, "--out", "", "--preset", "tiny") == 2
    assert "It is empty" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_seeds_of_a_comparison_have_the_same_bound(data, tmp_path, capsys):
    assert run("compare", data, "--out", tmp_path / "out", "--seeds", f"0,{2**32}") == 1
    assert "Expected a whole number from 0 to 4294967295" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("train", "{data}", "--preset", "tiny"),
        ("compare", "{data}", "--preset", "tiny"),
        ("leave-batch-out", "{data}", "--batch", "Batch1"),
        ("demo", "--data", "{data}"),
        ("predict", "nowhere", "{data}"),
        ("evaluate", "nowhere", "{data}"),
    ],
)
def test_no_command_writes_into_the_dataset(words, data, capsys):
    words = [word.format(data=data) for word in words]
    assert run(*words, "--out", data / "results") == 1
    assert "is inside the dataset" in capsys.readouterr().err
    assert not (data / "results").exists()


@pytest.mark.parametrize("engine", ["tensroflow", "jax"])
def test_a_missing_engine_is_named_with_what_to_do(engine, data, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "cytomad_lib", "train", data, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment_of_a_program(KERAS_BACKEND=engine),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: Keras ") and "Traceback" not in result.stderr
    for words in (engine, "Expected one of tensorflow, torch", "KERAS_BACKEND"):
        assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_too_little_memory_is_said(data, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise MemoryError("Unable to allocate 16 TiB")

    monkeypatch.setattr("cytomad_lib.data.check.check_dataset", full)
    assert run("check", data) == 1
    said = capsys.readouterr().err
    assert "too little memory (Unable to allocate 16 TiB)" in said and "fewer or smaller" in said


def test_predict_takes_the_last_stage_and_says_which(data, tmp_path, capsys):
    with untraced_steps():
        assert run("train", data, "--out", tmp_path / "run", "--preset", "tiny") == 0
    assert "Trained: pretraining, published, conditional." in capsys.readouterr().out
    assert run("predict", tmp_path / "run", data, "--out", tmp_path / "last") == 0
    assert "by conditional" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run" / "conditional")
    shutil.rmtree(tmp_path / "run" / "published")
    assert run("predict", tmp_path / "run", data, "--out", tmp_path / "first") == 0
    assert "by pretraining" in capsys.readouterr().out
    words = ("predict", tmp_path / "run", data, "--out", tmp_path / "none")
    assert run(*words, "--stage", "published") == 1
    assert "found pretraining; choose one of these" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    words = ("train", data, "--preset", "tiny", "--recipe", "none")
    with untraced_steps():
        assert run(*words, "--out", tmp_path / "alone") == 0
    assert "Trained: pretraining." in capsys.readouterr().out


def test_the_program_itself_ends_with_a_message_and_exit_code_1(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "cytomad_lib", "check", tmp_path / "nowhere"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ") and "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_the_commands():
    result = subprocess.run(
        [sys.executable, "-m", "cytomad_lib", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0
    for command in (
        *("demo", "simulate", "check", "train", "predict", "evaluate"),
        *("compare", "leave-batch-out", "download"),
    ):
        assert command in result.stdout


LEGACY = Path(__file__).parent / "data" / "legacy"


def test_an_old_file_takes_the_place_of_a_run(data, tmp_path, capsys):
    assert run("predict", LEGACY / "model_000005.h5", data, "--out", tmp_path / "out") == 0
    assert f"Predicted {4 * len(GROUPS)} cells" in capsys.readouterr().out
    assert (tmp_path / "out" / "CytoMAD_test_model_000005_Batch1_H69.mat").exists()


def test_an_old_file_of_another_network_is_refused(data, tmp_path, capsys):
    file = LEGACY / "bmodel1_all_000005_0.500.h5"
    assert run("predict", file, data, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert file.name in said and "batch MLP" in said and "generator" in said
    assert not (tmp_path / "out").exists()


def test_simulated_drug_responses_are_a_valid_dataset(tmp_path, capsys):
    size = ("--image-size", 16, "--train", 1, "--valid", 1, "--test", 1)
    assert run("simulate", "--layout", "drug", "--out", tmp_path, *size) == 0
    assert run("check", tmp_path) == 0
    assert "H2170DrugTreatmentDataset" in capsys.readouterr().out
    assert run("simulate", "--layout", "liver", "--demo", "--out", tmp_path) == 1
    assert "no dataset 'liver'. Expected one of lung, drug" in capsys.readouterr().err


def test_a_download_of_something_else_is_refused(tmp_path, capsys):
    assert run("download", "liver", "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "liver" in said and "lung" in said and "drug" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, made",
    [
        (["--student"], {"copies"}),
        (["--slides"], {"pages"}),
        ([], {"copies", "pages"}),
        (["--site"], {"site"}),
        (["--site", "--slides", "--add", "more"], {"site", "pages"}),
    ],
)
def test_the_course_is_written_for_a_class(options, made, tmp_path, monkeypatch, capsys):
    from cytomad_lib import handouts

    def build_site(out, add):
        called.update(site=out)
        assert add == (Path("more") if "--add" in options else None)
        return out / "index.html"

    called = {}
    monkeypatch.setattr(handouts, "student_copies", lambda out: called.update(copies=out) or [out])
    monkeypatch.setattr(handouts, "write_slides", lambda out: called.update(pages=out) or [out])
    monkeypatch.setattr(handouts, "build_site", build_site)
    assert run("course", *options, "--out", tmp_path / "class") == 0
    assert called == dict.fromkeys(made, tmp_path / "class")
    printed, files = capsys.readouterr().out, len(made - {"site"})
    assert (f"Wrote {files} files" in printed) == bool(files)
    assert ("Site: " in printed) == ("site" in made)


def test_the_page_to_try_is_written_where_the_site_expects_it(tmp_path, monkeypatch, capsys):
    from cytomad_lib import try_page

    written = []
    monkeypatch.setattr(try_page, "write_page", written.append)
    assert run("try-page", "--out", tmp_path) == 0
    assert written == [tmp_path / "try"]
    assert str(tmp_path / "try" / "index.html") in capsys.readouterr().out


@pytest.mark.parametrize("word, address", [("none", None), ("https://a.org", "https://a.org")])
def test_the_address_of_the_kit_is_set_without_a_folder(word, address, monkeypatch, capsys):
    from cytomad_lib import handouts

    given = []
    monkeypatch.setattr(handouts, "set_repository", lambda text: given.append(text) or ["README"])
    assert run("course", "--repository", word) == 0
    assert given == [address] and "changed 1 files" in capsys.readouterr().out
    assert run("course", "--student") == 1
    assert "Expected --out with a new folder" in capsys.readouterr().err
