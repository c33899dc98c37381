"""What is true of a result: probes, image quality, biophysics, embeddings.

Everything here takes plain arrays and the labels table, and knows nothing of training.
"""
