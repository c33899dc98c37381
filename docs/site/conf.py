"""How Sphinx builds the site to read. `cytomad course --site` puts this file beside the pages."""

from docutils import nodes
from latex2mathml.converter import convert

project = "CytoMAD kit"
extensions = ["myst_nb"]
root_doc = "index"

# Notebooks are shown as they are saved.
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}  # they would come from the network; explorers show their saved picture
nb_mime_priority_overrides = [("html", "image/png", 1)]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_search_summary = False  # they need a server
html_math_renderer = "mathml"


def write_math(self, node):
    """Write a formula as MathML, which browsers show without a script from the network."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    self.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app):
    """Tell Sphinx about the formulas."""
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
