"""Settings, errors, files, random numbers and devices: used by all other packages, importing none of them."""
