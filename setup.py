"""Package metadata of mcbeit_mm; pyproject.toml configures the tools."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mcbeit_mm/__init__.py').read_text())[1]

# Segmentation and detection libraries are heavy and optional; pretraining needs neither.
SEG = ['onedl-mmsegmentation>=1.4.2']
DET = ['onedl-mmdetection>=3.5.1']
DEMO = ['scikit-learn>=1.4', 'scikit-image>=0.24', 'matplotlib>=3.8']
DEV = [*DEMO, 'pytest>=8', 'pytest-xdist>=3.5', 'ruff==0.17.6']

setup(
    name='mcbeit_mm',
    version=VERSION,
    description='mc-BEiT pretraining and transfer on OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mcbeit_mm', 'mcbeit_mm.*']),
    package_data={'mcbeit_mm.visualization': ['*.j2']},
    python_requires='>=3.10,<3.13',
    install_requires=[
        'torch>=2.6',
        'torchvision>=0.21',
        'timm>=1.0.31',
        'scipy>=1.11',
        'numpy>=1.26',
        'pillow>=10',
        'pyyaml',
        'torchmetrics>=1.5',
        'safetensors>=0.4',
        'jinja2>=3.1',
        'rich>=13',
        'onedl-mmengine>=0.10.12',
        'onedl-mmcv>=2.3.6',
        'onedl-mmpretrain>=1.3.6',
    ],
    extras_require={
        'seg': SEG,
        'det': DET,
        'demo': DEMO,
        'dev': DEV,
        'all': [*SEG, *DET, *DEV],
    },
)
