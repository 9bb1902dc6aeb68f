"""Trained models: loading, predicting, evaluating, exporting."""
