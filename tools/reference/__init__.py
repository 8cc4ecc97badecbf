"""What writes the generated pages of the manual: ``make reference``."""
