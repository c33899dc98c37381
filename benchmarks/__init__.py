"""How fast the library is, beside the published way; `python -m cytomad_lib bench` runs it."""
