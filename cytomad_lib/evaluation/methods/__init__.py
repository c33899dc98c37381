"""The baselines of the field, each written as a method of one's own would be; see `baselines`."""
