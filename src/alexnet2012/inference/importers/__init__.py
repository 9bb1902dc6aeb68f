"""Readers of the model files of Caffe and torchvision."""
