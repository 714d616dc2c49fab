"""Sphinx's settings; `docs/build_site.py` assembles the pages and calls it."""

from pathlib import Path

from sphinx_gallery.sorting import FileNameSortKey

from cs_models import __version__

project = "cs-models"
author = copyright = "the cs-models contributors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["gallery/*.ipynb", "gallery/*.py", "gallery/*.md5"]
html_theme = "furo"
html_title = f"cs-models {version}"
html_copy_source = False

# Headings get anchors as GitHub gives them.
myst_heading_anchors = 4
# Docstrings name parts of the code in single backticks.
default_role = "code"
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of other packages refer to their own sites
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes that have a docstring of their own too are described once
# Text that quotes |x| and x* is no markup, and a class that two modules show is documented twice on purpose.
suppress_warnings = ["docutils", "ref.python", "config.cache"]

sphinx_gallery_conf = {
    "examples_dirs": str(Path(__file__).resolve().parent.parent / "gallery"),
    "gallery_dirs": "gallery",
    "filename_pattern": "/plot_",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "min_reported_time": 3600,  # times of a busy machine tell nobody anything
    "write_computation_times": False,  # in pages that fetch scripts from elsewhere
    "show_signature": False,
    "plot_gallery": "True",
    "remove_config_comments": True,
}
