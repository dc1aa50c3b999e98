"""Generated inputs: what they are, what must come of them, and a runner that survives none of its crashes."""
