"""Packaging: the top-level folders install as one package, `upweight`, so none of them can collide with a user's own."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("influence", "models", "cache", "reports")
ROOT_MODULES = {
    "__init__", "__main__", "attribute_commands", "averaging", "cli", "commands", "comparison", "design", "dry_run", "evaluation",
    "evaluation_bench", "evaluation_commands", "evaluation_sets", "evaluation_tables", "feature_commands",
    "features", "options", "mislabelling", "pipeline", "processes", "questions", "retraining", "scoring", "sweep",
    "sweep_plan", "sweep_tables", "sweep_work", "unrolling",
}  # fmt: skip


class BuildPackage(build_py):
    """Keep the package's own modules of the repository root; setup.py and stray files stay out of the wheel."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        if package != "upweight":
            return found
        return [module for module in found if Path(module[2]).stem in ROOT_MODULES]


setup(
    packages=["upweight", *(f"upweight.{folder}" for folder in FOLDERS)],
    package_dir={"upweight": ".", **{f"upweight.{folder}": folder for folder in FOLDERS}},
    package_data={
        "upweight": ["py.typed"],
        "upweight.models": ["sources/*.safetensors", "sources/*.json"],
        "upweight.reports": ["templates/*"],
    },
    cmdclass={"build_py": BuildPackage},
)
