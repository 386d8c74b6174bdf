"""The image and the self-contained tree, in real containers; run by ``make image-test``."""
