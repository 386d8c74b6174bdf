"""Every setting, declared once; every problem with them reported at once."""
