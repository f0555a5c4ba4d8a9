"""The third verb: a checkpoint becomes an engine folder."""
