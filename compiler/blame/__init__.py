"""From a failing report to the step, the operator and a small reproduction."""
