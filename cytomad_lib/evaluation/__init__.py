"""What is true of a result: probes, image quality, biophysics, baselines, mixing, dose response.

`evaluate` scores a run on a split, draws the figures and writes the report; `compare` does so for
several seeds. The other modules take plain arrays and the labels table, and know nothing of
training. Import the modules by name: this one imports none, so that one measure loads quickly.
"""
