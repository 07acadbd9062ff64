"""A report in the forms that other tools read: JSON, JUnit, SARIF, Markdown."""
