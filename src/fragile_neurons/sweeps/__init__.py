"""Sweeps over neurons: one interface, `Dropped` out of images and channels, whichever way is taken."""
