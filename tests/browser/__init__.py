"""The try-it page in a real browser; run by ``make browser-test``."""
