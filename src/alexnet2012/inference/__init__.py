"""Inference: trained models, predictions, activations, features, export and import."""
