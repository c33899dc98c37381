"""Reading the datasets: folder layouts, ``.mat`` files, and cell images with their labels."""
