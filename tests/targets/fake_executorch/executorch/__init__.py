"""A stand-in for ExecuTorch that enforces the calls npuc makes of it; it compiles nothing."""

import misbehave

misbehave.at_start()
