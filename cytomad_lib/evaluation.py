"""Score a training run on a split, by probes that the generator never met, and draw the figures.

`evaluate` scores side by side

* every trained stage: its features, its images (a fresh CNN, and probes on the pixels), its images
  beside the measured phase and, for simulated cells, beside the batch-free truth;
* the references: the measured phase and the truth themselves, pixel by pixel;
* the peers: well-known corrections of the pretrained features (`analysis.baselines`).

It writes

* `scores.csv`: probes, one row per method and measure;
* `image_scores.csv`: means over the cells, one row per method;
* `cell_measures.csv`: errors of area, dry mass and mean phase;
* `mixing.csv`: how well batches are mixed inside the classes;
* `peers.csv`: what each peer sees, or why it is missing, and whether it writes a batch in where
  there is none (`baselines.null_control`);
* `not_scored.csv`: what could not be scored of this design (a class with one batch, a group of few
  cells), and why;
* `dose_order.csv`, `dose_distance.csv`: for a dataset with doses, which nothing was shown in
  training, how well the features order them, and how far from untreated cells each one is;
* `figures/` and `report.html`.

Example
-------
>>> evaluation = evaluate(run, "Dataset/7LungCancerDataset", "Test", "results/run", progress=True)
>>> print(evaluation.summary())
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from cytomad_lib import plots
from cytomad_lib.analysis import baselines, biophysics, dose_response, image_quality, mixing, probes
from cytomad_lib.analysis.embedding import umap_coordinates
from cytomad_lib.analysis.image_probe import image_batch_accuracy
from cytomad_lib.data.cells import CellFiles
from cytomad_lib.data.description import DESCRIPTION
from cytomad_lib.data.errors import CytomadError
from cytomad_lib.data.files import write_table
from cytomad_lib.data.folders import listed
from cytomad_lib.data.layouts import find_layout, is_simulated
from cytomad_lib.pages import write_evaluation_page
from cytomad_lib.plots import report
from cytomad_lib.prediction import predict
from cytomad_lib.runs import IMAGES, LAST
from cytomad_lib.training.recipes import classifier_scores
from cytomad_lib.training.stages import say

METHOD_NAMES = {
    "pretraining": "pretrained",
    "published": "published recipe",
    "conditional": "conditional recipe",
}
MEASURED, TRUTH = "measured {} (pixels)", "truth (pixels)"  # with the name of the target
SCORES, IMAGE_SCORES, CELL_MEASURES = "scores.csv", "image_scores.csv", "cell_measures.csv"
MIXING, PEERS, REPORT = "mixing.csv", "peers.csv", "report.html"
NOT_SCORED = "not_scored.csv"
DOSE_ORDER, DOSE_DISTANCE = "dose_order.csv", "dose_distance.csv"
FEATURE_MEASURES = probes.MEASURES
IMAGE_MEASURE = "batch within class, images"
FIRST_MEASURES = (FEATURE_MEASURES[0], IMAGE_MEASURE, *FEATURE_MEASURES[1:])  # order of tables
PEER = "peer"  # in the column `kind`, beside "stage" and "reference"


@dataclass(eq=False)
class Evaluation:
    """Scores of a run on one split, and where its figures are.

    Parameters
    ----------
    split : str
    seed : int
        Of the probes.
    dataset : str
        Name of the dataset's folder; whether its cells are simulated is in `simulated`.
    simulated : bool
    n_cells : int
        Cells of the split.
    scores : DataFrame
        One row per method and measure; see `probes.results_table`. Column `kind` tells stages,
        references and peers apart.
    images : DataFrame
        One row per method: image quality against measured phase and, if known, the truth.
    cell_measures : DataFrame
        One row per method, reference and measure of the cell; see `cell_measure_errors`.
    mixing : DataFrame
        See `mixing.mixing_table`.
    peers : DataFrame
        Columns `peer`, `available`, `null_control` (accuracy of a probe in telling random halves
        apart, chance 0.5), `null_control_95` (what shuffled halves reach) and `note`.
    not_scored : DataFrame
        Columns `measure`, `left_out` and `why`.
    dose_order, dose_distance : DataFrame
        See `dose_response.dose_order` and `dose_distances`, with a column `method`; empty for a
        dataset without doses.
    classifier_scores : Series or None
        Share of cells that the published recipe's own classifiers call "first batch".
    first_batch : float
        Share of cells that are of the first batch.
    predictions : dict of Prediction
        Of each stage.
    figures : list of Path
    dry_mass : str
        Wavelength and refraction increment that dry mass was computed with; empty if it was not.
    """

    split: str
    seed: int
    dataset: str
    simulated: bool
    n_cells: int
    scores: pd.DataFrame
    images: pd.DataFrame
    cell_measures: pd.DataFrame
    mixing: pd.DataFrame
    peers: pd.DataFrame
    not_scored: pd.DataFrame
    dose_order: pd.DataFrame
    dose_distance: pd.DataFrame
    classifier_scores: pd.Series | None
    first_batch: float
    predictions: dict
    figures: list
    dry_mass: str = ""

    @property
    def main_scores(self):
        """The scores without those of the peers."""
        return self.scores[self.scores["kind"] != PEER]

    def peer_table(self):
        """Return the peers' accuracies and null control: peers in rows, pretrained first."""
        names = self.scores.loc[self.scores["kind"] == PEER, "method"]
        rows = self.scores[self.scores["method"].isin([METHOD_NAMES["pretraining"], *names])]
        rows = rows[rows["measure"].isin(FEATURE_MEASURES)]
        table = rows.pivot(index="method", columns="measure", values="accuracy")
        table = table.loc[rows["method"].unique(), rows["measure"].unique()]
        control = self.peers.set_index("peer")[["null_control", "null_control_95"]]
        return table.join(control).rename_axis(index="peer", columns=None)

    def dose_table(self):
        """Return Spearman's rho between dose and position: methods in rows, drugs in columns."""
        if not len(self.dose_order):
            return pd.DataFrame()
        rows = self.dose_order[self.dose_order["batch"] == "all"]
        table = rows.pivot(index="method", columns="class_name", values="rho_groups")
        table = table.loc[rows["method"].unique(), rows["class_name"].unique()]
        table["null 95 %"] = rows.groupby("method")["null_95_groups"].max()
        return table

    def peer_remarks(self):
        """Return a sentence for each peer that could not be had, or that writes a batch in."""
        return peer_remarks(self.peers)

    def not_scored_lines(self):
        """Return a line for each reason why something was not scored."""
        lines = []
        for why, rows in self.not_scored.groupby("why", sort=False):
            measures, names = rows["measure"].unique(), rows["left_out"].unique()
            lines.append(f"{'; '.join(measures)} – {listed(names, most=4)}: {why}")
        return lines

    def verdict(self):
        """Return what the published recipe's own classifiers say, and what to make of it."""
        if self.classifier_scores is None:
            return ""
        least, most = 100 * self.classifier_scores.min(), 100 * self.classifier_scores.max()
        return (
            f"The published recipe's own batch classifiers call {least:.1f} to {most:.1f} % of "
            f"these cells 'first batch' ({100 * self.first_batch:.1f} % are).\n"
            "So far they are fooled; whether the batch is gone, the probes say."
        )

    def summary(self):
        """Return the scores as text: measures in rows, methods in columns, chance beside them."""
        parts = [
            f"Accuracy of independent probes on {self.n_cells} cells of the {self.split} split "
            f"(strongest of {', '.join(probes.PROBES)}; probe seed {self.seed})\n"
            "Batch should be at chance, class high.\n"
            + as_text(report.format_scores(self.main_scores))
            if len(self.main_scores)
            else f"No probe can be asked about the {self.n_cells} cells of the {self.split} split.",
            "Images (mean over cells)\n" + as_text(self.images),
            self.verdict(),
        ]
        if len(self.dose_order):
            parts.append(
                "Order of the doses within each drug (Spearman's rho of the group means), which "
                "no training and no probe was shown\n" + as_text(self.dose_table())
            )
        if len(self.peers):
            parts.append(
                "Peers: corrections of the pretrained features "
                "(oracle: one that sees the class)\n" + as_text(self.peer_table())
            )
            parts.append("\n".join(self.peer_remarks()))
        if len(self.not_scored):
            parts.append("Not scored\n" + "\n".join(self.not_scored_lines()))
        return "\n\n".join(part for part in parts if part)


def evaluate(run, data, split, out, seed=0, progress=False, image_probe=True, peers=True):
    """Score every trained stage of a run on a split, and draw the figures.

    Parameters
    ----------
    run : Run
    data : path
        A dataset's folder, or the one above it.
    split : {"Train", "Valid", "Test"}
        Only Test was used for nothing else.
    out : path
        Folder that gets the tables, `figures/` and `report.html`.
    seed : int
        Of the probes.
    progress : bool
        Print what is being done.
    image_probe : bool
        Probe the images for the batch, too, by a fresh CNN and by the pixels; about half a minute
        per method.
    peers : bool
        Score the peers, too.

    Returns
    -------
    Evaluation
        Of a design of which not all can be scored (one batch, one class, few cells), what can be;
        its `not_scored` says what is left out.

    Raises
    ------
    CytomadError
        If the run has no trained stage, the dataset is of another kind than that of the run, or
        the split is unknown or has no measured target.
    """
    check_same_layout(run, data)
    if not run.stages():
        raise CytomadError(f"{run.folder} has no trained stage. Train it first.")
    layout, root = find_layout(data)
    cells = load_with_truth_if_there(data, split, run.preset.image_size)
    if cells.qpi is None:
        raise CytomadError(
            f"The {split} split of {root} has no measured {layout.target.name}, with which "
            "evaluate compares the predictions. Add its files, or use predict, which needs none."
        )
    predictions = {}
    for stage in run.stages():
        announce(progress, f"Predicting the {split} split with the generator: {stage}")
        predictions[stage] = predict(run.generator(stage), cells, progress)
    features = {METHOD_NAMES[stage]: made.features for stage, made in predictions.items()}
    images = {METHOD_NAMES[stage]: made.images for stage, made in predictions.items()}
    left_out = probes.left_out(cells.labels)
    corrected, notes = {}, _peer_notes([])
    if peers:
        pretrained = predictions["pretraining"]
        corrected, notes = _peers(run, data, pretrained, seed, progress, left_out)
    asked = seed, progress, image_probe, left_out
    references = reference_images(cells, layout)
    results, scores = _probed(features, images, corrected, references, cells, *asked)
    tables = _tables(layout, cells, features, images, corrected, seed, left_out)

    announce(progress, "Drawing figures")
    out = Path(out)
    figures = save_loss_figures(run, out / "figures")
    figures += _draw(out / "figures", layout, cells, images, results, scores)
    figures += _draw_features(out / "figures", layout, cells, features, seed, left_out)
    figures += _draw_doses(out / "figures", tables["dose_distance"])
    evaluation = Evaluation(
        split=split,
        seed=seed,
        dataset=root.name,
        simulated=is_simulated(root),
        n_cells=len(cells),
        scores=scores,
        peers=notes,
        not_scored=pd.DataFrame(left_out, columns=["measure", "left_out", "why"]),
        classifier_scores=classifier_scores(run, cells) if "published" in predictions else None,
        first_batch=float(np.mean(cells.batch_codes == 0)),
        predictions=predictions,
        figures=figures,
        **tables,
    )
    _write(evaluation, run, out)
    return evaluation


def save_loss_figures(run, folder):
    """Plot the losses of each trained stage of a run into a folder; return the paths."""
    titles = {stage: METHOD_NAMES[stage] for stage in run.stages()}
    if "conditional" in titles:  # it is trained in two parts
        name = titles.pop("conditional")
        titles |= {IMAGES: f"{name}: images", "conditional": f"{name}: features"}
    paths = []
    for stage, title in titles.items():
        figure = plots.loss_curves(
            run.history(stage),
            # Where the last epoch is kept, the lowest loss is nothing to point at.
            best_by=None if stage in (*LAST, IMAGES) else "val_loss",
            title=f"Losses, {title}",
        )
        paths.append(plots.save_figure(figure, folder / f"losses_{stage.replace('/', '_')}.png"))
    return paths


def cell_measure_errors(images, cells, measures=None):
    """Compare what a biologist would measure on images, with the measured phase and the truth.

    Parameters
    ----------
    images : dict
        Method to phase images of the cells, rad.
    cells : CellImages
    measures : sequence of str, optional
        Those that make sense; of images of no phase only the area does. By default all that
        `image_quality.per_cell_errors` gives: dry mass only if `cells` has a wavelength.

    Returns
    -------
    DataFrame
        One row per method, `reference` ("measured" or "truth") and `measure`; columns
        `reference_mean`, `mean_error` and `sd_error` in the unit of the measure, `mean_abs_error`,
        and `r`, the correlation over the cells. A method is not compared with itself.
    """
    rows = []
    for name, stack in images.items():
        for kind, reference in _references(cells).items():
            if stack is reference:
                continue
            table = image_quality.per_cell_errors(
                stack,
                reference,
                cells.pixel_size_um,
                wavelength_um=cells.wavelength_um,
                refraction_increment=cells.refraction_increment,
            )
            there = [name.removesuffix("_error") for name in table if name.endswith("_error")]
            for measure in there if measures is None else measures:
                found, true, error = (
                    table[f"{measure}_{part}"] for part in ("predicted", "reference", "error")
                )
                rows.append(
                    {
                        "method": name,
                        "reference": kind,
                        "measure": measure,
                        "reference_mean": true.mean(),
                        "mean_error": error.mean(),
                        "sd_error": error.std(),
                        "mean_abs_error": error.abs().mean(),
                        "r": found.corr(true),
                    }
                )
    return pd.DataFrame(rows)


def reference_images(cells, layout):
    """Return {name: images} of the measured target and, if known, the batch-free truth."""
    target = layout.target.name if layout.described else "QPI"
    references = {MEASURED.format(target): cells.qpi}
    if cells.truth is not None:
        references[TRUTH] = cells.truth
    return references


def check_same_layout(run, data):
    """Refuse a dataset of another kind than the run was trained on.

    A described dataset must show the same images. Its lists may have become longer, at their ends:
    a new day can be predicted, while the codes of the others, and the first batch, stay.
    """
    layout, root = find_layout(data)
    if layout.name != run.settings["dataset"]:
        raise CytomadError(
            f"{root} is a {layout.name} dataset, the run in {run.folder} was trained on "
            f"{run.settings['dataset']}. Give a dataset of the same kind."
        )
    images = run.settings.get("images", layout.images)
    if images != layout.images or run.channels != len(layout.inputs):
        raise CytomadError(
            f"{root} has the images {layout.images}, the run in {run.folder} was trained on "
            f"{images}. Give a dataset of the same images, in the same order."
        )
    for what in ("batches", "classes"):
        known, found = getattr(run, what), getattr(layout, what)
        if found[: len(known)] != known:
            raise CytomadError(
                f"{root} has the {what} {', '.join(found)}, the run in {run.folder} was trained on "
                f"{', '.join(known)}. Expected these first, in the same order; new ones come after."
            )


def peer_remarks(peers):
    """Return a sentence for each peer that is missing, or that writes a batch in.

    Parameters
    ----------
    peers : DataFrame
        As `Evaluation.peers`.

    Returns
    -------
    list of str
    """
    remarks = []
    for row in peers.itertuples():
        if not row.available:
            remarks.append(f"{row.peer} is missing: {row.note}")
        elif row.null_control > row.null_control_95:
            remarks.append(
                f"{row.peer} writes a batch in where there is none: random halves of the same "
                f"cells are told apart at {row.null_control:.2f} after it (chance 0.50, 95 % of "
                f"shuffles below {row.null_control_95:.2f}). Do not rely on its batch score."
            )
    return remarks


def as_text(table):
    """Return a table as text for the terminal: three decimals, a dash where nothing is."""
    table = table.rename_axis(index=None, columns=None)
    return table.to_string(float_format="{:.3f}".format, na_rep="-")


def announce(verbose, text):
    """Print a line about what comes next, after an empty one."""
    say(verbose, f"\n{text}")


# --- what can be asked -----------------------------------------------------------------------


def _if_possible(left_out, measure, ask, otherwise):
    """Return what `ask` gives; where these cells do not allow it, note why in `left_out`."""
    try:
        return ask()
    except CytomadError as error:
        left_out.append((measure, "all", str(error)))
        return otherwise


def _phase_measures(layout, left_out):
    """Return what of a cell can be compared; dry mass needs a phase and its wavelength."""
    if layout.target.unit != "rad":
        return ["area_um2"]
    if layout.wavelength_um is None:
        why = f"the wavelength is not known: add `wavelength_um = …` to the top of {DESCRIPTION}"
        left_out.append(("dry mass", "all", why))
        return ["area_um2", "mean_phase_rad"]
    return ["area_um2", "dry_mass_pg", "mean_phase_rad"]


def _optics(layout):
    return (
        f"wavelength {layout.wavelength_um:g} µm, refraction increment "
        f"{layout.refraction_increment_um3_per_pg:g} µm³/pg"
    )


# --- peers -----------------------------------------------------------------------------------


def _peers(run, data, prediction, seed, progress, left_out):
    """Return {name: features of the cells} of the peers, and the table of notes."""
    announce(progress, "Correcting the pretrained features by the peers")
    generator = run.generator("pretraining")
    train = _training_cells(run, data)
    known = None if train is None else predict(generator, train, progress)
    given = prediction.features, prediction.labels
    given += (None, None) if known is None else (known.features, known.labels)
    correct = partial(baselines.peer_features, *given, seed=seed)
    found = _if_possible(left_out, "peers", correct, {})
    found.pop("untouched", None)  # that is the pretrained stage itself
    announce(progress and found, "Testing the peers on halves that mean nothing")
    test = partial(baselines.null_control, *given, seed=seed)
    control = _if_possible(left_out, "null control of the peers", test, None) if found else None
    features = {
        _peer_name(peer): peer.features for peer in found.values() if peer.features is not None
    }
    return features, _peer_notes(found.values(), control)


def _peer_name(peer):
    return f"{peer.name} (oracle)" if peer.oracle else peer.name


def _peer_notes(peers, control=None):
    rows = []
    for peer in peers:
        row = {"peer": _peer_name(peer), "available": peer.features is not None}
        if control is not None and peer.name in control.index:
            row["null_control"], row["null_control_95"] = control.loc[
                peer.name, ["null_control", "null_95"]
            ]
        rows.append(row | {"note": peer.note})
    columns = ["peer", "available", "null_control", "null_control_95", "note"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({"available": bool, "null_control": float, "null_control_95": float})


def _training_cells(run, data):
    """Find the cells that a run was trained on, as files; None if this dataset lacks them."""
    counts = run.settings["training_cells"]
    wanted = {
        "image_size": run.preset.image_size,
        "batches": sorted({name.split("/")[0] for name in counts}),
    }
    try:
        files = CellFiles(data, "Train", **wanted)
        if run.was_trained_on(files.labels):
            return files
        # Else so many of each group; a class in several doses has several groups per batch.
        groups = files.labels.drop(columns="cell").drop_duplicates()
        per_name = groups.groupby(["batch", "class_name"], observed=True).size()
        first = per_name.index[0]
        per_group = counts.get("/".join(first), 0) // per_name[first]
        files = CellFiles(data, "Train", per_group or None, **wanted)
    except CytomadError:  # no Train split here, or another one
        return None
    return files if run.was_trained_on(files.labels) else None


# --- scores ----------------------------------------------------------------------------------


def _probed(features, images, peers, references, cells, seed, progress, image_probe, left_out):
    """Probe features, images, references and peers.

    Returns
    -------
    dict
        Method to its list of `ProbeResult`.
    DataFrame
        All of them, see `Evaluation.scores`.
    """
    labels = cells.labels
    probed = features | references
    announce(progress, "Probing in the background: " + ", ".join(probed))
    probing = probes.score_side_by_side(probed, labels, seed)
    asked = {}
    if image_probe:
        ask = partial(_ask_cnn, images | references, labels, seed, progress)
        asked = _if_possible(left_out, IMAGE_MEASURE, ask, {})
    results = dict(tqdm(probing, "probing", len(probed), disable=not progress, unit="method"))
    announce(progress and peers, "Probing the peers: " + ", ".join(peers))
    pretrained = results[METHOD_NAMES["pretraining"]]
    by_pixels = {name: results[name][0] for name in references if asked}
    null = pretrained[0] if asked else None  # of the batch within class, which images are asked for
    image_results = _or_pixels(asked, images, by_pixels, null, labels, seed)
    results |= _score_peers(peers, pretrained, labels, seed)
    kinds = dict.fromkeys(features, "stage") | dict.fromkeys(references, "reference")
    return results, _score_table(results, image_results, kinds)


def _ask_cnn(images, labels, seed, progress):
    """Return {method: ProbeResult} of a fresh CNN per method."""
    results = {}
    for name, stack in images.items():
        announce(progress, f"Asking a fresh CNN for the batch of the images: {name}")
        results[name] = image_batch_accuracy(stack, labels, seed, progress=progress)
    return results


def _or_pixels(asked, images, probed, null, labels, seed):
    """Return {method: ProbeResult}, the stronger of the CNN and the probes on the pixels.

    A faint pattern that stays in its place is plain to the one and not to the other. `probed` are
    the images whose pixels were probed before; `null` is the result that lends pixels its null.
    """
    results = {}
    for name, cnn in asked.items():
        pixels = probed.get(name)
        if pixels is None:
            pixels = probes.within_class_batch_accuracy(
                images[name], labels, seed, n_permutations=0
            )
        stronger = max(cnn, _with_null_of(null, pixels), key=lambda result: result.accuracy)
        per_probe = pixels.per_probe | cnn.per_probe
        results[name] = replace(stronger, measure=cnn.measure, per_probe=per_probe)
    return results


def _with_null_of(other, result):
    return replace(result, null_mean=other.null_mean, null_95=other.null_95)


def _score_peers(peers, pretrained, labels, seed):
    """Return {name: list of ProbeResult} of the peers, with the null of the pretrained features.

    Nine tenths of the probes' time go into the null, which depends on the labels and hardly on the
    features: for cells and folds that are the same, once is enough.
    """
    if not peers:
        return {}
    found = dict(probes.score_side_by_side(peers, labels, seed, n_permutations=0))
    return {
        name: [_with_null_of(*pair) for pair in zip(pretrained, own, strict=True)]
        for name, own in found.items()
    }


def _score_table(results, image_results, kinds):
    """Put features' and images' results into one table: the images' below the features' batch."""
    merged = {
        name: sorted(
            [*own, *filter(None, [image_results.get(name)])],
            key=lambda result: FIRST_MEASURES.index(result.measure),
        )
        for name, own in results.items()
    }
    table = probes.results_table(merged)
    table.insert(1, "kind", table["method"].map(kinds).fillna(PEER))
    if "cnn" in table:
        # Beside the other probes.
        table.insert(table.columns.get_loc("mlp") + 1, "cnn", table.pop("cnn"))
    return table


def _tables(layout, cells, features, images, peers, seed, left_out):
    """Return the tables of an `Evaluation` that need no probe, by the names of its fields."""
    references = reference_images(cells, layout)
    measures = _phase_measures(layout, left_out)
    mix = partial(mixing.mixing_table, features | peers, cells.labels, shuffled=True, seed=seed)
    # Which class is the untreated one is known of the drug dataset only.
    dosed = {} if layout.described else features | references
    order_doses = partial(_dose_tables, dosed, cells.labels, seed)
    empty = pd.DataFrame()
    order, distance = _if_possible(left_out, "doses", order_doses, (empty, empty))
    return {
        "images": _image_table(images | references, cells, layout.target.unit),
        "cell_measures": cell_measure_errors(images | references, cells, measures),
        "mixing": _if_possible(
            left_out, "mixing", mix, pd.DataFrame(columns=["method", *mixing.SCORES])
        ),
        "dose_order": order,
        "dose_distance": distance,
        "dry_mass": _optics(layout) if "dry_mass_pg" in measures else "",
    }


def _dose_tables(methods, labels, seed):
    """Return order and distance of the doses by every method; empty where there are none."""
    if "dose" not in labels or not methods:
        return pd.DataFrame(), pd.DataFrame()
    tables = [
        pd.concat({name: find(values, labels, seed=seed) for name, values in methods.items()})
        for find in (dose_response.dose_order, dose_response.dose_distances)
    ]
    return [table.rename_axis(["method", None]).reset_index("method") for table in tables]


def _references(cells):
    references = {"measured": cells.qpi}
    if cells.truth is not None:
        references["truth"] = cells.truth
    return references


def _image_table(images, cells, unit="rad"):
    rows = {name: _image_row(stack, cells, unit) for name, stack in images.items()}
    table = pd.DataFrame(rows).T
    return table.rename_axis(index="method")


def _image_row(images, cells, unit="rad"):
    """Return the mean scores of one method's images."""
    row = {}
    for name, reference in _references(cells).items():
        means = image_quality.image_scores(images, reference).mean()
        row[f"r, {name}"] = means["pearson_r"]
        row[f"MAE, {name} ({unit})" if unit else f"MAE, {name}"] = means["mae_rad"]
        row[f"SSIM, {name}"] = means["ssim"]
        fine = image_quality.structure_r(images, reference, pixel_size_um=cells.pixel_size_um)
        row[f"structure r, {name}"] = pd.Series(fine).mean()  # of the cells that have one
    return row


def _write(evaluation, run, out):
    write_table(evaluation.scores, out / SCORES, index=False)
    write_table(evaluation.images, out / IMAGE_SCORES, index_label="method")
    write_table(evaluation.cell_measures, out / CELL_MEASURES, index=False)
    write_table(evaluation.mixing, out / MIXING, index=False)
    write_table(evaluation.peers, out / PEERS, index=False)
    write_table(evaluation.not_scored, out / NOT_SCORED, index=False)
    if len(evaluation.dose_order):
        write_table(evaluation.dose_order, out / DOSE_ORDER, index=False)
        write_table(evaluation.dose_distance, out / DOSE_DISTANCE, index=False)
    stages = {stage: METHOD_NAMES[stage] for stage in run.stages()}
    write_evaluation_page(out / REPORT, evaluation, run, stages)


# --- figures ---------------------------------------------------------------------------------


def _draw(folder, layout, cells, images, results, scores):
    """Draw and save the cells and the scores; return the paths."""
    figures = {"cells.png": _picture_cells(layout, cells, images)}
    main = scores[scores["kind"] != PEER]
    if len(main):
        figures["scores.png"] = plots.score_bars(main)
    features_only = scores[scores["measure"].isin(FEATURE_MEASURES)]
    if (features_only["kind"] == PEER).any():
        figures["peers.png"] = plots.score_rows(
            features_only[features_only["kind"] != "reference"],
            faded=[name for name in scores["method"].unique() if name.endswith("(oracle)")],
        )
    for name in images:
        if results[name]:
            figures[f"confusion_{name.replace(' ', '_')}.png"] = plots.confusion_matrices(
                {f"{result.measure}\n({name})": result.confusion for result in results[name]}
            )
    return [plots.save_figure(figure, folder / name) for name, figure in figures.items()]


def _picture_cells(layout, cells, images):
    """Draw a cell of each class under every method, beside what was measured."""
    shown = _one_cell_of_each_class(cells.labels)
    some = cells.labels.iloc[shown]
    inputs = {
        layout.contrasts[kind].name: cells.brightfield[..., number]
        for number, kind in enumerate(layout.inputs)
    }
    # Under the names that pictures go by: they are not probed here, so no "(pixels)".
    references = reference_images(cells, layout)
    pictured = {name.removesuffix(" (pixels)"): stack for name, stack in references.items()}
    target = layout.target
    return plots.image_grid(
        {name: stack[shown] for name, stack in (inputs | images | pictured).items()},
        cells.pixel_size_um,
        cell_labels=[
            f"{name}, {batch}"
            for name, batch in zip(some["class_name"], some["batch"], strict=True)
        ],
        brightfield=tuple(inputs),
        error_of=(list(images)[-1], list(pictured)[-1]),
        quantity=f"{target.name} ({target.unit})" if target.unit else target.name,
    )


def _draw_features(folder, layout, cells, features, seed, left_out):
    """Draw a map of the features, and what of the cell each one follows; return the paths."""
    drawn = {}
    for name, values in features.items():
        place = partial(umap_coordinates, values, seed)
        coordinates = _if_possible(left_out, "map", place, None)
        if coordinates is not None:
            title = f"Bottleneck features, {name}"
            drawn["umap", name] = plots.embedding(coordinates, cells.labels, title=title)
    if layout.target.unit == "rad":
        # From the truth where it is known: the measured phase carries the batch's scale, and a
        # feature that knows nothing but the batch would seem to know the dry mass.
        measures = biophysics.measure_cells(
            cells.qpi if cells.truth is None else cells.truth,
            cells.pixel_size_um,
            wavelength_um=cells.wavelength_um,
            refraction_increment=cells.refraction_increment,
        )
        for name, values in features.items():
            encode = partial(_encoding, name, values, measures)
            figure = _if_possible(left_out, "encoding", encode, None)
            drawn |= {} if figure is None else {("encoding", name): figure}
    return [
        plots.save_figure(figure, folder / f"{kind}_{name.replace(' ', '_')}.png")
        for (kind, name), figure in drawn.items()
    ]


def _encoding(name, values, measures):
    # ReLU features that are zero for every cell follow nothing; they would fill half the map.
    alive = np.flatnonzero(np.ptp(values, axis=0) > 0)
    return plots.correlation_map(
        biophysics.correlate_features(values[:, alive], measures).set_axis(alive, axis=0),
        title=f"What the features encode, {name}\n"
        f"({len(alive)} of {values.shape[1]} features; the others never vary)",
    )


def _draw_doses(folder, distance):
    """Draw how far each dose is from untreated cells, a figure per method; return the paths."""
    if not len(distance):
        return []
    return [
        plots.save_figure(
            plots.dose_response(own, title=f"Dose response, {name}"),
            folder / f"doses_{name.removesuffix(' (pixels)').replace(' ', '_')}.png",
        )
        for name, own in distance.groupby("method", sort=False)
    ]


def _one_cell_of_each_class(labels):
    """Return a row per class, each from another batch where that can be."""
    rows, batches = [], set()
    for _, own in labels.groupby("class_name", observed=True):
        fresh = own[~own["batch"].isin(batches)]
        row = (fresh if len(fresh) else own).index[0]
        rows.append(row)
        batches.add(labels["batch"][row])
    return np.array(rows)


def load_with_truth_if_there(data, split, image_size):
    """Load a split, with the batch-free truth if the dataset has it."""
    files = CellFiles(data, split, image_size=image_size)
    layout, root = files.layout, files.root
    if "QPI_TRUE" in layout.contrasts and any(
        (root / group.file(split, "QPI_TRUE")).exists() for group in layout.groups
    ):
        files = CellFiles(data, split, image_size=image_size, with_truth=True)
    return files.read(np.arange(len(files)))
