"""The 2012 AlexNet as it was built: two towers, two processes, every claim measured."""

from alexnet2012.mesh import init_mesh
from alexnet2012.model import AlexNet

__all__ = ["AlexNet", "init_mesh"]
