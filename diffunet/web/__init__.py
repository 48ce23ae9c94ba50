"""The page: sample, edit and follow runs in a browser, on this computer alone unless a host is given."""
