"""From noise to images: the sampling loop, guidance, and batches of images with one seed each."""
