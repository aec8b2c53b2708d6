"""Settings of the documentation site; `make docs` builds it into out/docs."""

import os

import subbit_infer

project = "subbit_infer"
author = "the subbit_infer authors"
copyright = f"2026, {author}"  # noqa: A001
release = version = subbit_infer.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# Links into the documentation of others need their inventories: made where the site is published, not on every machine.
intersphinx_mapping = (
    {"python": ("https://docs.python.org/3", None), "torch": ("https://docs.pytorch.org/docs/stable", None)}
    if "READTHEDOCS" in os.environ
    else {}
)
myst_heading_anchors = 3  # so that pages may link to each other's headings

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature would repeat what the docstring says of each argument
napoleon_numpy_docstring = False
napoleon_use_ivar = True

smartquotes_action = "D"  # dashes alone: "none" and the like are values

html_theme = "furo"
html_title = "subbit_infer"
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = "$ "
