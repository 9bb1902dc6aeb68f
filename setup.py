"""Builds the optional C kernels; everything else is in setup.cfg."""

from setuptools import Extension, setup

FOLDER = "src/alexnet2012/utils/native"

setup(
    ext_modules=[
        Extension(
            "alexnet2012.utils.native._kernels",
            [f"{FOLDER}/kernels.c", f"{FOLDER}/spatial_norm.c"],
            depends=[f"{FOLDER}/lrn_rows.h"],
            extra_compile_args=["-std=c99", "-O3", "-fno-math-errno", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            optional=True,  # without a compiler the installation goes on
        )
    ]
)
