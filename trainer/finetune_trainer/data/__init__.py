"""From files to batches: read, label, divide, encode, augment, order."""
