"""Every figure of the kit, one function each; each returns the figure.

The modules are `cells`, `training`, `diagrams`, `networks`, `scores`, `removal` and `doses`; call
their figures as `plots.image_grid(…)`. `style` holds what they share. A function with one panel
takes `ax=`, to draw into a panel of yours. `live` shows a training while it runs, `explorers` are
figures with sliders, `report` writes an HTML page; these three are imported by name.

In a notebook, a figure that is the last value of a cell is displayed.
"""

from cytomad_lib.plots.cells import (
    group_counts,
    histograms_by_batch,
    image_grid,
    image_steps,
    limits_of,
    phase_profile,
    points_by_batch,
    transferred_cells,
)
from cytomad_lib.plots.diagrams import method_diagram, unet_diagram
from cytomad_lib.plots.doses import batch_beside_drug, dose_order, dose_response, measures_by_dose
from cytomad_lib.plots.networks import (
    feature_maps,
    feature_strips,
    feature_subsets,
    half_level,
    parameter_bars,
    path_bars,
    predicted_probabilities,
    sensitivity_map,
)
from cytomad_lib.plots.removal import (
    batch_clouds,
    batch_targets,
    classifiers_beside_probes,
    first_batch_share,
    inference_leak,
    trade_off,
)
from cytomad_lib.plots.scores import (
    confusion_matrices,
    correlation_map,
    embedding,
    score_bars,
    score_rows,
)
from cytomad_lib.plots.style import save_figure
from cytomad_lib.plots.training import (
    cross_entropy_curve,
    discriminator_outputs,
    loss_curves,
    loss_parts,
    loss_table,
)
