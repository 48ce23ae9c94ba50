"""Types of conditions, one per file: configuration, values from the data or from the user, embedding."""
