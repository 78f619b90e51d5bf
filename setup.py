"""agejax: a training engine for face-age models in JAX."""

from setuptools import find_packages, setup

setup(
    name="agejax",
    version="0.1.0",
    description="Train and judge face-age models in JAX",
    packages=find_packages(include=("agejax", "agejax.*")),
    python_requires=">=3.11",
    # Lower bounds are the versions tested; constraints.txt pins one whole working set.
    install_requires=[
        "absl-py>=2.3",
        "array_record>=0.8",
        "clu>=0.0.12",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "matplotlib>=3.10",
        "ml-collections>=1.1",
        "numpy>=2.4",
        "opencv-python-headless>=4.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "safetensors>=0.6",
        "scikit-learn>=1.7",
        "scipy>=1.16",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "test": [
            "hypothesis>=6.150",
            "mypy>=1.18",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.14",
        ],
    },
)
