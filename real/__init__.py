"""The same plans on real devices."""
