"""Run one call, from its arrival to its end. This package does not depend on HTTP."""
