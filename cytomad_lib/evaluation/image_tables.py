"""Predicted images beside the measured target and the truth: one table per question.

- `references`: the images to compare with.
- `image_table`: image quality, a row per method.
- `cell_measure_errors`: errors of area, mean phase and dry mass.
"""

import pandas as pd

from cytomad_lib.data.description import DESCRIPTION
from cytomad_lib.evaluation import image_quality

TRUTH = "truth"


def references(cells):
    """Return {"measured": images} and, if it is known, "truth", the images without batch effect."""
    found = {"measured": cells.qpi, "truth": cells.truth}
    return {kind: images for kind, images in found.items() if images is not None}


def named_references(cells, layout):
    """Return the references by the names that they have in tables."""
    target = layout.target.name if layout.described else "QPI"
    names = {"measured": f"measured {target}", "truth": TRUTH}
    return {names[kind]: images for kind, images in references(cells).items()}


def image_table(images, cells, unit="rad"):
    """Return the mean scores of the images of every method.

    Parameters
    ----------
    images : dict
        Method to images of the cells.
    cells : CellImages
    unit : str
        Of the target.

    Returns
    -------
    DataFrame
        One row per method; Pearson r, MAE, SSIM and structure r against each reference.
    """
    rows = {name: _image_row(stack, cells, unit) for name, stack in images.items()}
    return pd.DataFrame(rows).T.rename_axis(index="method")


def _image_row(images, cells, unit="rad"):
    row = {}
    for name, reference in references(cells).items():
        means = image_quality.image_scores(images, reference).mean()
        row[f"r, {name}"] = means["pearson_r"]
        row[f"MAE, {name} ({unit})" if unit else f"MAE, {name}"] = means["mae_rad"]
        row[f"SSIM, {name}"] = means["ssim"]
        fine = image_quality.structure_r(images, reference, pixel_size_um=cells.pixel_size_um)
        row[f"structure r, {name}"] = pd.Series(fine).mean()  # of the cells that have one
    return row


def cell_measure_errors(measured, references, measures):
    """Compare measures of the cell in the images of each method with those in the references.

    Parameters
    ----------
    measured : dict
        Method to its table of `biophysics.measure_images`; references are methods, too.
    references : dict
        "measured" and, if it is known, "truth", to their names in `measured`.
    measures : sequence of str
        Of `comparable_measures`.

    Returns
    -------
    DataFrame
        One row per method, `reference` ("measured" or "truth") and `measure`; columns
        `reference_mean`, `mean_error` and `sd_error` in the unit of the measure, `mean_abs_error`,
        and `r`, the correlation over the cells. A method is not compared with itself.
    """
    # Where no outline is found, there is no area and no mass.
    filled = {n: table.fillna({"area_um2": 0, "dry_mass_pg": 0}) for n, table in measured.items()}
    rows = []
    for name, table in filled.items():
        for kind, reference in references.items():
            for measure in measures if name != reference else ():
                true = filled[reference][measure]
                error = table[measure] - true
                row = {"method": name, "reference": kind, "measure": measure}
                row |= {"reference_mean": true.mean(), "mean_error": error.mean()}
                row |= {"sd_error": error.std(), "mean_abs_error": error.abs().mean()}
                rows.append(row | {"r": table[measure].corr(true)})
    return pd.DataFrame(rows)


def comparable_measures(layout, left_out):
    """Return the measures that can be compared; dry mass needs a phase and its wavelength."""
    if layout.target.unit != "rad":
        return ["area_um2"]
    if layout.wavelength_um is None:
        why = f"the wavelength is not known: add `wavelength_um = …` to the top of {DESCRIPTION}"
        left_out.append(("dry mass", "all", why))
        return ["area_um2", "mean_phase_rad"]
    return ["area_um2", "dry_mass_pg", "mean_phase_rad"]


def optics_text(layout):
    """Return the constants that dry mass was computed with, as text."""
    return (
        f"wavelength {layout.wavelength_um:g} µm, refraction increment "
        f"{layout.refraction_increment_um3_per_pg:g} µm³/pg"
    )
