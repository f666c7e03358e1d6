"""Hardening a network by the gains of its channels, and judging whether that helps."""
