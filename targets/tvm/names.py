"""What Relax variables are called: after the program's tensors that they stand for."""

_END, _DOT = "@", "·"


def variable(tensor: str) -> str:
    """Return what to call a variable that stands for a tensor of the program."""
    # TVM writes "_" for dots, and appends digits to a name that it has seen before.
    return tensor.replace(".", _DOT) + _END


def tensor(variable: str) -> str:
    """Return the tensor that a variable is called after, or ""."""
    name, mark, count = variable.rpartition(_END)
    # Digits without ASCII are no count of TVM's, and neither is anything else.
    known = mark and (not count or (count.isascii() and count.isdigit()))
    return name.replace(_DOT, ".") if known else ""
