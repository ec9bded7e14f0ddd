"""Sphinx configuration (`make docs`): pages are Markdown, and reference.py generates parts of them from the sources."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

project = "cifar10_accel"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "reference"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
smartquotes = False  # else the two dashes of a flag become one
default_role = "literal"  # in docstrings `name` is code, as in Markdown
add_module_names = False
python_maximum_signature_line_length = 90
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_rtype = False  # the type is in the signature already
html_theme = "furo"
html_title = "cifar10_accel"
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
