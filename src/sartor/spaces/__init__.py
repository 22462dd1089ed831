"""Search spaces: networks with choices, one file each."""
