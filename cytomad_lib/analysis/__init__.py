"""What is true of a result: probes of features, image quality, embeddings.

Everything here takes plain arrays and the labels table, and knows nothing of training.
"""
