"""Integer and small-float programs of float ones: calibrate, prepare, code, correct."""
