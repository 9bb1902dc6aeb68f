"""AlexNet: model, layers, loss, optimizer, learning-rate schedule, and their cost."""
