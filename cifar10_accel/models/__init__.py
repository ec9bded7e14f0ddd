"""Models for small images; `registry.build_model` builds the one that the settings name."""
