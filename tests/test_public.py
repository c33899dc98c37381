"""Public cells: fetched through a local server, cut, divided, described; tables of phenotypes."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from cytomad_lib.cli import app
from cytomad_lib.data import download, fetch, public
from cytomad_lib.data.cells import load_cells
from cytomad_lib.data.check import check_dataset
from cytomad_lib.data.download import download_dataset
from cytomad_lib.data.errors import DatasetError
from cytomad_lib.data.fetch import DownloadError, git_blob_sha1
from cytomad_lib.data.public import cut_montages, load_phenotypes

REAL = Path(__file__).parents[2] / "shared" / "real"
genuine = pytest.mark.skipif(not REAL.is_dir(), reason=f"the genuine files are not in {REAL}")
HERE = ["Experiment_1/G1", "Experiment_1/G2", "Experiment_1/S_phase", "Experiment_2/G1/CP0001"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder; gives its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(folder):
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def montage(path, tiles):
    """Write 3 x 4 tiles of 40 x 40 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = tiles.reshape(3, 4, 40, 40).swapaxes(1, 2).reshape(120, 160)
    tifffile.imwrite(path, tiles, compression="zlib")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small jurkat of our own: two groups, two tiles empty; with its table."""
    random = np.random.default_rng(0)
    folder, rows = tmp_path / "repository", []
    for group in ("Experiment_1/G1", "Experiment_2/G1"):
        for channel in ("Ch3", "Ch4"):
            tiles = random.integers(100, 2000, (12, 40, 40), dtype=np.uint16)
            tiles[:, 0, 0] = np.arange(12)  # tells which tile it is
            tiles[3], tiles[11] = 0, 500 if channel == "Ch3" else tiles[11]
            place = f"images/{group}/{channel}_CP0001.tif"
            montage(folder / place, tiles)
            sha1 = git_blob_sha1(folder / place)
            path = f"Jurkat/montages/{group}/{channel}_CP0001.tif"
            name = f"{group}/CP0001"
            rows.append(dict(group=name, split="", path=path, place=place, git_blob_sha1=sha1))
    monkeypatch.setattr(download, "read_table", lambda name: rows)
    return folder


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_montages_are_cut_and_divided_and_the_empty_tiles_left_out(repository, serve, tmp_path):
    told = []
    root = download_dataset(
        "jurkat", tmp_path / "out", base_url=serve(repository), report=told.append
    )
    assert "Experiment_1/G1: 10 cells; 2 empty tiles left out." in told
    splits = {split: load_cells(root, split) for split in ("Train", "Valid", "Test")}
    assert [len(cells) for cells in splits.values()] == [12, 2, 6]
    for batch in ("Experiment_1", "Experiment_2"):
        seen = []
        for cells in splits.values():
            rows = (cells.labels["batch"] == batch).to_numpy()
            tile = cells.brightfield[rows, 0, 0, 0] / 0.001
            np.testing.assert_allclose(cells.qpi[rows, 0, 0, 0] / 0.001, tile, atol=1e-3)
            seen += [round(number) for number in tile.tolist()]
        assert sorted(seen) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]  # each cell once
    assert cells.pixel_size_um == 0.5 and cells.classes == ("G1",)
    report = check_dataset(root)
    assert report.ok and "training" in report.uses
    notice = (root / "SOURCE.txt").read_text()
    assert all(word in notice for word in ("minh-doan/MLCP", "4b4d936", "BSD", "Blasi"))
    assert told[-1] + "\n" == notice and not (root / "montages").exists()


def test_a_second_call_cuts_the_same_cells_and_fetches_nothing_twice(repository, serve, tmp_path):
    url, told = serve(repository), []
    one, other = "Experiment_1/G1", "Experiment_2/G1"
    root = download_dataset("jurkat", tmp_path / "a", groups=one, base_url=url)
    before = {name: (root / name).read_bytes() for name in files_in(root)}
    download_dataset("jurkat", tmp_path / "a", base_url=url, report=told.append)
    assert told[0].startswith("Fetched 2 file(s)")
    download_dataset("jurkat", tmp_path / "a", base_url=url, report=told.append)
    assert "Fetched 0 file(s)" in "".join(told[2:])
    for name in before.keys() - {"dataset.toml"}:
        assert (root / name).read_bytes() == before[name]
    assert check_dataset(root).layout.batches == ("Experiment_1", "Experiment_2")

    # The same cells, whichever groups come first.
    again = download_dataset("jurkat", tmp_path / "b", groups=other, base_url=url, raw=True)
    assert (again / "montages" / other / "Ch3_CP0001.tif").exists()
    for name in files_in(root / other):
        assert (again / other / name).read_bytes() == (root / other / name).read_bytes()


def test_a_montage_that_comes_later_joins_the_others(repository, serve, tmp_path):
    group, first = "Experiment_2/G1", "Experiment_2/G1/CP0001"
    rows = download.read_table("jurkat")
    for row in [row for row in rows if row["group"] == first]:
        later = {key: value.replace("CP0001", "CP0002") for key, value in row.items()}
        shutil.copy(repository / row["place"], repository / later["place"])
        rows.append(later)
    url, told = serve(repository), []
    root = download_dataset("jurkat", tmp_path, groups=[first], base_url=url)
    assert len(load_cells(root, "Train")) == 6
    download_dataset("jurkat", tmp_path, groups=[group], base_url=url, report=told.append)
    assert told[0].startswith("Fetched 4") and len(load_cells(root, "Train")) == 12
    assert (root / group / "montages.txt").read_text().split() == [first, f"{group}/CP0002"]


def test_raw_keeps_the_montages_and_a_second_call_verifies_them(repository, serve, tmp_path):
    url, told = serve(repository), []
    root = download_dataset("jurkat", tmp_path, base_url=url, raw=True)
    assert len(list(root.glob("montages/*/*/*.tif"))) == 4
    download_dataset("jurkat", tmp_path, base_url=url, raw=True, report=told.append)
    assert told[0].endswith("4 verified file(s) were there already.")


def test_what_is_not_on_the_server_is_named_with_the_way_round_it(repository, serve, tmp_path):
    shutil.rmtree(repository / "images/Experiment_2")
    url = serve(repository)
    with pytest.raises(
        DownloadError, match="images/Experiment_2.* 404 .*choose them with --groups"
    ):
        download_dataset("jurkat", tmp_path, base_url=url)
    root = download_dataset("jurkat", tmp_path, groups=["Experiment_1/G1"], base_url=url)
    assert check_dataset(root).layout.batches == ("Experiment_1",)


@pytest.mark.parametrize("name", ["jurkat", "phenotypes"])
def test_a_split_is_refused_where_the_files_have_none(name, tmp_path):
    with pytest.raises(DownloadError, match="no splits to choose from"):
        download_dataset(name, tmp_path, split="Test")


def test_the_tables_name_each_file_once():
    for name, count in (("jurkat", 24), ("phenotypes", 2)):
        rows = download.read_table(name)
        assert len(rows) == len({row["path"] for row in rows}) == count
        fetch._refuse_unsafe({row["path"]: row["git_blob_sha1"] for row in rows})
        assert all(row["path"].startswith(public.SOURCES[name].folder) for row in rows)


def test_a_montage_whose_channels_do_not_match_is_refused(tmp_path):
    folder = tmp_path / "montages/Experiment_1/G1"
    montage(folder / "Ch3_CP0001.tif", np.arange(12 * 1600, dtype=np.uint16))
    with pytest.raises(DatasetError, match="Experiment_1/G1 has 1 .*Ch3.* 0 .*Ch4"):
        cut_montages(tmp_path)


# --- Phenotypes ------------------------------------------------------------------------------


def test_a_missing_table_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match="four_lines.csv is missing.*download phenotypes"):
        load_phenotypes(tmp_path)
    with pytest.raises(DatasetError, match="'s1'. Expected 'four_lines' or 'gemcitabine'"):
        load_phenotypes(tmp_path, "s1")


@genuine
def test_the_genuine_phenotypes(serve, tmp_path):
    for number, name in (("s1", "four_lines"), ("s3", "gemcitabine")):
        place = tmp_path / "repository/Sample" / number / "input1.csv"
        place.parent.mkdir(parents=True)
        shutil.copy(REAL / "phenotypes" / f"{name}.csv", place)
    url = serve(tmp_path / "repository")
    command = ["download", "phenotypes", "--out", str(tmp_path / "out"), "--base-url", url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0 and "MIT" in done.output and "Fetched 2 file(s)" in done.output
    root = tmp_path / "out/Phenotypes"

    lines = load_phenotypes(root)
    assert lines.shape == (2400, 85)
    assert lines["label"].value_counts(sort=False).to_dict() == dict.fromkeys(
        ("H1975", "H2170", "MB231", "HL60"), 600
    )
    medians = lines.groupby("label", observed=True)[["Area", "AspectRatio", "Dry Mass"]].median()
    np.testing.assert_allclose(medians["Area"], [144, 139, 143, 92], atol=0.6)
    np.testing.assert_allclose(medians["AspectRatio"], [0.875, 0.885, 0.889, 0.865], atol=6e-4)
    np.testing.assert_allclose(medians["Dry Mass"], [75, 65, 73, 36], atol=0.6)

    doses = load_phenotypes(root, "gemcitabine")
    counts = doses["dose"].value_counts().sort_index()
    assert counts.to_dict() == dict.fromkeys([0, 0.000751, 0.00751, 0.03755, 0.0751, 0.751], 350)
    area = doses.groupby("dose")["Area"].median()
    np.testing.assert_allclose(area / area[0], [1, 1.01, 1.21, 1.23, 1.29, 1.28], atol=0.006)
    assert list(doses.columns[2:]) == list(lines.columns[1:])


# --- The genuine montages --------------------------------------------------------------------


@genuine
def test_the_genuine_montages(serve, tmp_path):
    options = [word for group in HERE for word in ("--groups", group)]
    url = serve(REAL / "jurkat")
    command = ["download", "jurkat", "--out", str(tmp_path), "--base-url", url, *options]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "Experiment_1/G1: 900 cells; 0 empty tiles" in done.output and "Blasi" in done.output
    report = check_dataset(tmp_path / "Jurkat")
    assert report.ok, str(report)
    assert report.table.groupby("split")["cells"].sum().to_dict() == {
        "Train": 4 * 540, "Valid": 4 * 90, "Test": 4 * 270,
    }  # fmt: skip
