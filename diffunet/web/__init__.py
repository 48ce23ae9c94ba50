"""The page: sample, edit, predict and follow runs in a browser, on this computer alone unless a host is given."""
