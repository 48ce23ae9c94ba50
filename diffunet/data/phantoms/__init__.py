"""Built-in synthetic images and volumes with exact targets, a function of a name, a seed and an index."""
