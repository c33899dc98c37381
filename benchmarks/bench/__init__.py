"""How fast the kit works on this machine, beside the same work done the published way."""
