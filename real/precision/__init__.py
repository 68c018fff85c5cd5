"""Training in mixed precision on real devices: operators of torch modules, named as in plans."""
