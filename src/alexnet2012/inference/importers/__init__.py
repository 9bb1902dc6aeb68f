"""The model files of Caffe and torchvision."""
